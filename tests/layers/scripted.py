"""An upstream whose answers are written down beforehand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from qwen_asgi.chat import Batches, ChatRequest, Event, Finish, Message, TextDelta, Upstream

ANSWER: tuple[Event, ...] = (TextDelta("hi"), Finish("stop"))
CHAT = ChatRequest(model="m", messages=(Message("user", "Hi"),), stream=True)

Outcome = BaseException | Sequence[Event | BaseException | float]
"""What happens to one call: it is refused, or it answers; an error in an answer ends it, a number
is a silence, in seconds."""


class Scripted:
    """Meets its calls with these outcomes, one each; the last one serves all further calls."""

    def __init__(self, *outcomes: Outcome) -> None:
        self._outcomes = list(outcomes or [ANSWER])
        self.asked: list[ChatRequest] = []
        self.open = 0
        self.most_open = 0

    @asynccontextmanager
    async def __call__(self, request: ChatRequest) -> AsyncIterator[Batches]:
        self.asked.append(request)
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await asyncio.sleep(0)
            if isinstance(outcome, BaseException):
                raise outcome
            yield _batches(outcome)
        finally:
            self.open -= 1


async def _batches(
    outcome: Sequence[Event | BaseException | float],
) -> AsyncIterator[Sequence[Event]]:
    for step in outcome:
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, float):
            await asyncio.sleep(step)
        else:
            yield [step]


async def answer(upstream: Upstream, request: ChatRequest = CHAT) -> list[Event]:
    """Return the events of one chat."""
    async with upstream(request) as batches:
        return [event async for batch in batches for event in batch]
