"""Lets so many chats in at once; the others wait in a queue that has a length and a patience."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from qwen_asgi.chat import Batches, ChatRequest, Upstream
from qwen_asgi.errors import Overloaded
from qwen_asgi.turns import NoTurn, Turns


class Limit:
    """An `Upstream` with at most `most` chats under way at once, in each event loop."""

    def __init__(
        self,
        upstream: Upstream,
        most: int | None,
        *,
        queue: int,
        patience: float,
        name: str,
        turns: Turns | None = None,
    ) -> None:
        """`queue` chats may wait, `patience` seconds each; `most` None lets all in."""
        self.turns = turns or Turns()
        self.turns.allow(most)
        self._upstream = upstream
        self._queue = queue
        self._patience = patience
        self._name = name

    @property
    def busy(self) -> int:
        """Chats under way and waiting."""
        return self.turns.busy

    @asynccontextmanager
    async def __call__(self, request: ChatRequest) -> AsyncIterator[Batches]:
        give_back = await self._taken(request)
        try:
            async with self._upstream(request) as batches:
                yield batches
        finally:
            give_back()

    async def _taken(self, request: ChatRequest) -> Callable[[], None]:
        patience = self._patience
        if request.deadline is not None:
            patience = min(patience, max(0.0, request.deadline - time.monotonic()))
        try:
            return await self.turns.take(queue=self._queue, patience=patience)
        except NoTurn as why:
            raise Overloaded(f"the upstream {self._name} {why}", retry_after=1) from None
