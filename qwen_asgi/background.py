"""Tasks that go on when the request that began them is over: bounded, and ended by the gateway."""

from __future__ import annotations

import asyncio


class Background:
    """Up to `most` tasks, each of whatever loop it runs in."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tasks: set[asyncio.Task[None]] = set()

    def has_room(self) -> bool:
        """Whether one more task may run."""
        if len(self._tasks) >= self._most:
            # Those of a loop that was left without an end never come to theirs.
            self._tasks = {task for task in self._tasks if not task.get_loop().is_closed()}
        return len(self._tasks) < self._most

    def keep(self, task: asyncio.Task[None]) -> None:
        """Let a task go on until it ends, or the gateway does."""
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._tasks.discard(task))

    def here(self) -> set[asyncio.Task[None]]:
        """Return those of the running loop."""
        loop = asyncio.get_running_loop()
        return {task for task in self._tasks if task.get_loop() is loop}


async def end(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel tasks, and wait until they are over."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
