"""An answer that is read on when its client has left, so that its usage becomes known."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from qwen_asgi.background import Background, end
from qwen_asgi.chat import (
    Batches,
    ChatRequest,
    Event,
    ReasoningDelta,
    Rest,
    TextDelta,
    ToolCallDelta,
    Upstream,
    Usage,
)
from qwen_asgi.errors import QwenASGIError
from qwen_asgi.layers.tokens import UNIT, weight_of

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 1000
"""Answers that are read on at one time; of further clients that leave, the calls are ended."""

MOST_HELD = 16
"""Batches of events that wait for their client."""


class Drains:
    """The answers that are read on, in whatever loop their clients left them."""

    def __init__(self) -> None:
        self.is_closed = False
        """Whether no more are taken, as the gateway is about to end."""
        self._background = Background(MOST_AT_ONCE)

    def has_room(self) -> bool:
        """Whether one more may be read on."""
        return self._background.has_room()

    def keep(self, task: asyncio.Task[None]) -> None:
        """Let one be read on until it ends."""
        self._background.keep(task)

    async def aclose(self, within: float) -> None:
        """Give those of the running loop that many seconds, then end them."""
        if here := self._background.here():
            _, late = await asyncio.wait(here, timeout=within)
            await end(late)


class Draining:
    """An `Upstream` that is read on for up to `seconds`, and `tokens`, when its client has left.

    It is read by a task of its own, which waits for the client as long as there is one.
    """

    def __init__(
        self, upstream: Upstream, drains: Drains, *, seconds: float, tokens: int | None
    ) -> None:
        self._upstream = upstream
        self._drains = drains
        self._seconds = seconds
        self._most = None if tokens is None else tokens * UNIT

    @asynccontextmanager
    async def __call__(self, request: ChatRequest) -> AsyncIterator[Batches]:
        reading = _Reading(self._upstream, request)
        try:
            await reading.begun()
            yield reading.batches()
        finally:
            if reading.is_heard:
                pass
            elif not reading.has_begun or self._drains.is_closed:
                # Nothing is asked for nobody: what has not begun to answer may still be waiting.
                await reading.end()
            elif self._drains.has_room():
                self._drains.keep(reading.leave(self._seconds, self._most))
            else:
                logger.warning("an answer is not read on: too many others are")
                await reading.end()


class _Reading:
    """One call, in a task of its own."""

    def __init__(self, upstream: Upstream, request: ChatRequest) -> None:
        self.is_heard = False
        """Whether its client has heard all of it, to the end or to an error."""
        self._upstream = upstream
        self._request = request
        self._said: asyncio.Queue[Sequence[Event] | None] = asyncio.Queue(MOST_HELD)
        self._has_news = asyncio.Event()
        self.has_begun = False
        """Whether the upstream has begun to answer."""
        self._rest: Rest | None = None
        """There when nobody listens any more."""
        self._left: int | None = None
        """What may then be read, in weight; None for any length."""
        self._task = asyncio.get_running_loop().create_task(self._read(), name="qwen_asgi read")

    async def begun(self) -> None:
        """Wait until the upstream has begun to answer. Raises what it raises before."""
        await self._has_news.wait()
        if not self.has_begun:
            await self._hear_the_end()

    async def batches(self) -> Batches:
        while (batch := await self._said.get()) is not None:
            yield batch
        await self._hear_the_end()

    def leave(self, seconds: float, most: int | None) -> asyncio.Task[None]:
        """Read on without a client; return the task that is done when all of it is."""
        self._rest = self._request.notes.rest = Rest()
        self._left = most
        self._drop_what_waits()
        return asyncio.get_running_loop().create_task(
            self._read_on(self._rest, seconds), name="qwen_asgi drain"
        )

    async def end(self) -> None:
        """End the call."""
        self._rest = self._rest or Rest()
        await end({self._task})

    async def _hear_the_end(self) -> None:
        # It is only waited for: a client that leaves just now ends nothing.
        await asyncio.wait({self._task})
        self.is_heard = True
        self._task.result()

    async def _read_on(self, rest: Rest, seconds: float) -> None:
        how = "shutdown"
        try:
            done, _ = await asyncio.wait({self._task}, timeout=seconds)
            how = _end_of(self._task) if done else "seconds"
        finally:
            if not self._task.done():
                await self.end()
            rest.over(how)

    async def _read(self) -> None:
        try:
            async with self._upstream(self._request) as batches:
                self.has_begun = True
                self._has_news.set()
                async for batch in batches:
                    if self._rest is None:
                        await self._said.put(batch)
                    else:
                        self._drop(batch)
                    if self._rest is not None:
                        # The last one may have waited for room when the client left.
                        self._drop_what_waits()
                    if self._left is not None and self._left < 0:
                        raise _TooLong
        finally:
            self._has_news.set()
            if self._rest is None and self.has_begun:
                await self._said.put(None)

    def _drop_what_waits(self) -> None:
        while not self._said.empty():
            if batch := self._said.get_nowait():
                self._drop(batch)

    def _drop(self, batch: Sequence[Event]) -> None:
        """Take from what nobody hears what it cost."""
        for event in batch:
            if type(event) is Usage:
                assert self._rest is not None
                self._rest.usage = event
            elif self._left is not None:
                self._left -= _weight(event)


class _TooLong(Exception):
    """More was said to nobody than was to be read."""


def _weight(event: Event) -> int:
    if isinstance(event, TextDelta | ReasoningDelta):
        return weight_of(event.text)
    return weight_of(event.arguments) if isinstance(event, ToolCallDelta) else 0


def _end_of(task: asyncio.Task[None]) -> str:
    if task.cancelled():
        return "shutdown"
    match task.exception():
        case None:
            return "done"
        case _TooLong():
            return "tokens"
        case QwenASGIError() as error:
            return error.code or error.type
        case error:
            logger.error("a bug ended an answer whose client had left", exc_info=error)
            return "internal_error"
