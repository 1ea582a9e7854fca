"""A limit on an answer's length for an upstream that keeps none: by what its text weighs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from qwen_asgi.chat import (
    Batches,
    ChatRequest,
    Event,
    Finish,
    Notes,
    ReasoningDelta,
    TextDelta,
    Upstream,
)
from qwen_asgi.layers.tokens import UNIT, weight_of, within


class TokenLimit:
    """An `Upstream` whose answers end at the request's `max_tokens`, thinking counted.

    The upstream is told of the limit all the same: where it keeps one, that comes first.
    """

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    def __call__(self, request: ChatRequest) -> AbstractAsyncContextManager[Batches]:
        if request.max_tokens is None:
            return self._upstream(request)
        return self._limited(request, request.max_tokens)

    @asynccontextmanager
    async def _limited(self, request: ChatRequest, tokens: int) -> AsyncIterator[Batches]:
        async with self._upstream(request) as batches:
            yield _cut(batches, tokens * UNIT, request.notes)


async def _cut(batches: Batches, left: int, notes: Notes) -> AsyncIterator[Sequence[Event]]:
    """Yield the batches until their text weighs more than `left`, and the answer's end there."""
    async for batch in batches:
        events: list[Event] = []
        for event in batch:
            if type(event) is TextDelta or type(event) is ReasoningDelta:
                weight = weight_of(event.text)
                if weight > left:
                    text = within(event.text, left)
                    if text:
                        events.append(type(event)(text))
                    notes.leave_rest(batch[batch.index(event) + 1 :])
                    yield [*events, Finish("length")]
                    return
                left -= weight
            events.append(event)
        if events:
            yield events
