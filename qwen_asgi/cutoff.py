"""Ending what a task is at, from outside, by an error of one's own and no cancellation.

`asyncio.timeout` does that too, and takes five times as long: it is made for a time that is known.
"""

from __future__ import annotations

import asyncio
from types import TracebackType


class Cutoff:
    """What runs inside it is cancelled by `cut`, and `error` raised in its place.

        with cutoff:
            ...

    It cancels its own task and takes that back by the counting that `asyncio.timeout` uses, so a
    cancellation from elsewhere passes through untouched.
    """

    __slots__ = ("_cancelling", "is_cut", "task")

    task: asyncio.Task[object]

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.is_cut = False
        self._cancelling = task.cancelling()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.is_cut:
            return
        by_others = self.task.uncancel() > self._cancelling
        if exc_type is asyncio.CancelledError and not by_others:
            raise self.error() from None

    def cut(self) -> None:
        """End what runs inside, in its own loop."""
        self.is_cut = True
        self.task.cancel()

    def error(self) -> Exception:
        """Return what is raised then."""
        raise NotImplementedError


class TimeLimit(Cutoff):
    """What runs inside it is cut after so many seconds."""

    __slots__ = ("_loop", "_seconds", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        super().__enter__()
        self._loop = self.task.get_loop()
        self._timer = self._loop.call_later(self._seconds, self.cut)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        super().__exit__(exc_type, exc, traceback)

    def begin_anew(self) -> None:
        """Give it all of its seconds again, from now on."""
        self._timer.cancel()
        self._timer = self._loop.call_later(self._seconds, self.cut)
