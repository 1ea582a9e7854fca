"""Lets so many chats in at once; the others wait in a queue that has a length and a patience."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from weakref import WeakKeyDictionary

import anyio

from qwen_asgi.chat import Batches, ChatRequest, Upstream
from qwen_asgi.errors import Overloaded


class Turns:
    """The chats that are let in at one upstream, in each event loop. They outlive the layer that
    lets them in, so that other settings count those who are there already."""

    def __init__(self) -> None:
        self._most = math.inf
        self._limiters: WeakKeyDictionary[asyncio.AbstractEventLoop, anyio.CapacityLimiter] = (
            WeakKeyDictionary()
        )

    @property
    def busy(self) -> int:
        """Chats under way and waiting, in all loops that there are."""
        limiters = [limiter for loop, limiter in self._there() if not loop.is_closed()]
        return sum(one.borrowed_tokens + one.statistics().tasks_waiting for one in limiters)

    def allow(self, most: int | None) -> None:
        """Let so many be under way at once from now on; None for any number."""
        self._most = math.inf if most is None else most
        for loop, _ in self._there():
            # Only its own loop may wake those who wait; one that is closed has nobody.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._adjust)

    def here(self) -> anyio.CapacityLimiter:
        """Return those of the running loop."""
        loop = asyncio.get_running_loop()
        limiter = self._limiters.get(loop)
        if limiter is None:
            limiter = self._limiters[loop] = anyio.CapacityLimiter(self._most)
        return limiter

    def _adjust(self) -> None:
        self.here().total_tokens = self._most

    def _there(self) -> list[tuple[asyncio.AbstractEventLoop, anyio.CapacityLimiter]]:
        return list(self._limiters.items())


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
        limiter, turn = self.turns.here(), object()
        try:
            limiter.acquire_on_behalf_of_nowait(turn)
        except anyio.WouldBlock:
            await self._wait(limiter, turn, request)
        try:
            async with self._upstream(request) as batches:
                yield batches
        finally:
            limiter.release_on_behalf_of(turn)

    async def _wait(
        self, limiter: anyio.CapacityLimiter, turn: object, request: ChatRequest
    ) -> None:
        """Wait for a turn. Raises Overloaded where the queue is full, or does not move in time."""
        waiting = limiter.statistics().tasks_waiting
        if waiting >= self._queue:
            raise Overloaded(
                f"the upstream {self._name} is busy, and {waiting} chats wait for it",
                retry_after=1,
            )
        patience = self._patience
        if request.deadline is not None:
            patience = min(patience, max(0.0, request.deadline - time.monotonic()))
        try:
            async with asyncio.timeout(patience):
                await limiter.acquire_on_behalf_of(turn)
        except TimeoutError:
            raise Overloaded(
                f"the upstream {self._name} was busy for {patience:.3g} seconds", retry_after=1
            ) from None
