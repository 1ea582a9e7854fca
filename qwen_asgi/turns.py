"""Turns: so many at once, the others wait in a queue that has a length and a patience."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from weakref import WeakKeyDictionary

import anyio


class NoTurn(Exception):
    """The queue is full, or does not move in time; the message says which, after a subject."""


class Turns:
    """Those who are let in at one place, up to a number in each event loop. They outlive what lets
    them in, so that other settings count those who are there already."""

    def __init__(self) -> None:
        self._most = math.inf
        self._limiters: WeakKeyDictionary[asyncio.AbstractEventLoop, anyio.CapacityLimiter] = (
            WeakKeyDictionary()
        )

    @property
    def busy(self) -> int:
        """How many are there or wait, in all loops that there are."""
        limiters = [limiter for loop, limiter in self._there() if not loop.is_closed()]
        return sum(one.borrowed_tokens + one.statistics().tasks_waiting for one in limiters)

    def allow(self, most: int | None) -> None:
        """Let so many be there at once from now on; None for any number."""
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

    def take_at_once(self) -> Callable[[], None] | None:
        """Take a turn, and return what gives it back; None where there is none to be had now."""
        limiter, turn = self.here(), object()
        try:
            limiter.acquire_on_behalf_of_nowait(turn)
        except anyio.WouldBlock:
            return None
        return partial(limiter.release_on_behalf_of, turn)

    async def take(self, *, queue: int, patience: float) -> Callable[[], None]:
        """Take a turn, and return what gives it back.

        `queue` may wait, `patience` seconds each. Raises NoTurn.
        """
        give_back = self.take_at_once()
        if give_back is not None:
            return give_back
        limiter, turn = self.here(), object()
        waiting = limiter.statistics().tasks_waiting
        if waiting >= queue:
            raise NoTurn(f"is busy, and {waiting} wait for their turn")
        try:
            async with asyncio.timeout(patience):
                await limiter.acquire_on_behalf_of(turn)
        except TimeoutError:
            raise NoTurn(f"was busy for {patience:.3g} seconds") from None
        return partial(limiter.release_on_behalf_of, turn)

    def _adjust(self) -> None:
        self.here().total_tokens = self._most

    def _there(self) -> list[tuple[asyncio.AbstractEventLoop, anyio.CapacityLimiter]]:
        # Another thread's loop may come in meanwhile, which a walk over the pairs does not survive.
        loops = [loop for ref in self._limiters.keyrefs() if (loop := ref()) is not None]
        return [(loop, self._limiters[loop]) for loop in loops]
