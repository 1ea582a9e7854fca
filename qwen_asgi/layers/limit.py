"""Lets so many chats in at once; the others wait in a queue that has a length and a patience."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

from qwen_asgi.chat import Batches, ChatRequest, Upstream
from qwen_asgi.errors import Overloaded


class Limit:
    """An `Upstream` with at most `most` chats under way at once, in each event loop."""

    def __init__(
        self, upstream: Upstream, most: int | None, *, queue: int, patience: float, name: str
    ) -> None:
        """`queue` chats may wait, `patience` seconds each; `most` None lets all in."""
        self.busy = 0
        """Chats under way and waiting."""
        self._upstream = upstream
        self._most = most
        self._queue = queue
        self._patience = patience
        self._name = name
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = WeakKeyDictionary()

    @asynccontextmanager
    async def __call__(self, request: ChatRequest) -> AsyncIterator[Batches]:
        self.busy += 1
        try:
            if self._most is None:
                async with self._upstream(request) as batches:
                    yield batches
                return
            turns = self._here(self._most)
            await self._wait(turns, request)
            try:
                async with self._upstream(request) as batches:
                    yield batches
            finally:
                turns.free.release()
        finally:
            self.busy -= 1

    def _here(self, most: int) -> _Turns:
        loop = asyncio.get_running_loop()
        turns = self._turns.get(loop)
        if turns is None:
            turns = self._turns[loop] = _Turns(most)
        return turns

    async def _wait(self, turns: _Turns, request: ChatRequest) -> None:
        """Take a turn. Raises Overloaded where the queue is full, or does not move in time."""
        if turns.waiting >= self._queue and turns.free.locked():
            raise Overloaded(
                f"the upstream {self._name} is busy, and {turns.waiting} chats wait for it",
                retry_after=1,
            )
        patience = self._patience
        if request.deadline is not None:
            patience = min(patience, max(0.0, request.deadline - time.monotonic()))
        turns.waiting += 1
        try:
            async with asyncio.timeout(patience):
                await turns.free.acquire()
        except TimeoutError:
            raise Overloaded(
                f"the upstream {self._name} was busy for {patience:.3g} seconds", retry_after=1
            ) from None
        finally:
            turns.waiting -= 1


class _Turns:
    """One event loop's turns."""

    def __init__(self, most: int) -> None:
        self.free = asyncio.Semaphore(most)
        self.waiting = 0
