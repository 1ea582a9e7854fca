"""The end of a gateway's service: no new work, and a bounded time for what is under way."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from types import TracebackType

from qwen_asgi.cutoff import Cutoff
from qwen_asgi.errors import ShuttingDown


class Shutdown:
    """Whether a gateway is ending, and the work that is under way until then.

    `begin` may be called from a signal handler or another thread: work is told in its own loop.
    """

    def __init__(self) -> None:
        self._ends_at: float | None = None
        """In seconds of the monotonic clock."""
        self._under_way: set[Work] = set()

    @property
    def is_begun(self) -> bool:
        return self._ends_at is not None

    def refuse(self) -> None:
        """Raise ShuttingDown once it has begun."""
        if self._ends_at is not None:
            raise ShuttingDown(
                "this gateway is shutting down; ask again, another one may answer", retry_after=1
            )

    def begin(self, seconds: float) -> None:
        """Take no more work; end what is under way then. Later calls change nothing."""
        if self._ends_at is not None:
            return
        self._ends_at = time.monotonic() + seconds
        for work in self._under_way.copy():
            work.end_soon()

    def left(self) -> float | None:
        """Return the seconds until all ends; None while it has not begun."""
        return None if self._ends_at is None else max(0.0, self._ends_at - time.monotonic())


class Work(Cutoff):
    """What runs inside it is cancelled at the end, and ShuttingDown is raised in its place.

        with Work(shutdown):
            ...

    One may be entered several times, one after the other.
    """

    __slots__ = ("_loop", "_shutdown", "_timer")

    def __init__(self, shutdown: Shutdown) -> None:
        self._shutdown = shutdown
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        super().__enter__()
        self._loop = self.task.get_loop()
        self._shutdown._under_way.add(self)
        if self._shutdown.is_begun:
            self._end_in_time()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._shutdown._under_way.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().__exit__(exc_type, exc, traceback)

    def error(self) -> Exception:
        return ShuttingDown(
            "this gateway was shut down before the answer had ended; ask again", retry_after=1
        )

    def end_soon(self) -> None:
        """End it when its time is over, from whatever thread this is said."""
        # A loop that is closed has ended it.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._end_in_time)

    def _end_in_time(self) -> None:
        left = self._shutdown.left()
        # It may be over by now.
        if self in self._shutdown._under_way and left is not None and self._timer is None:
            self._timer = self._loop.call_later(left, self.cut)
