"""Work that is left behind when a request is over: bounded, in the background, never unheard."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from qwen_asgi.background import Background, end
from qwen_asgi.errors import QwenASGIError

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 100
"""Removals that run at one time."""

MOST_WAITING = 10_000
"""Removals that wait for their turn; of more than these the chats stay, with a warning."""

Removal = Callable[[], Awaitable[None]]


class Removals:
    """Takes chats out of an account, some at a time, in whatever loop has them left."""

    def __init__(self) -> None:
        self._waiting: deque[Removal] = deque()
        self._background = Background(MOST_AT_ONCE)

    def add(self, removal: Removal) -> None:
        """Run `removal` soon, and log the error that it raises."""
        if len(self._waiting) >= MOST_WAITING:
            logger.warning("a chat stays in the upstream's account: too many are being removed")
            return
        self._waiting.append(removal)
        self._begin()

    def has_room(self) -> bool:
        """Whether one more task may run."""
        return self._background.has_room()

    def keep(self, task: asyncio.Task[None]) -> None:
        """Let a task end before the gateway does."""
        self._background.keep(task)
        task.add_done_callback(self._over)

    async def aclose(self, within: float) -> None:
        """Give the removals of this loop that many seconds, then end them and say so."""
        loop = asyncio.get_running_loop()
        until = loop.time() + within
        while here := self._background.here():
            _, late = await asyncio.wait(here, timeout=max(until - loop.time(), 0))
            if late:
                await self._end(late)
                return

    def _begin(self) -> None:
        if self._waiting and self.has_room():
            self.keep(asyncio.get_running_loop().create_task(self._work(), name="qwen_asgi chats"))

    def _over(self, task: asyncio.Task[None]) -> None:
        # What was added since the task looked last found no room; a loop that ends takes no more.
        if not task.cancelled():
            self._begin()

    async def _end(self, late: set[asyncio.Task[None]]) -> None:
        number = len(late) + len(self._waiting)
        self._waiting.clear()
        await end(late)
        logger.warning(
            "%d chats may stay in the upstream's account: the gateway ended before they were "
            "removed",
            number,
        )

    async def _work(self) -> None:
        while self._waiting:
            removal = self._waiting.popleft()
            try:
                await removal()
            except QwenASGIError as error:
                logger.info("a chat may stay in the upstream's account: %s", error)
