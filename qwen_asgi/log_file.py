"""A log file that is rotated by size, also where several worker processes write it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler

try:
    import fcntl
except ImportError:  # Windows: there the program runs one worker.
    fcntl = None  # type: ignore[assignment]

MAX_BYTES = 10 * 1024 * 1024
BACKUPS = 4
"""So that the log takes 50 MiB of the disk at most."""


class SharedRotatingFileHandler(RotatingFileHandler):
    """A RotatingFileHandler whose file another process may rotate too.

    Without this, the others write on into the renamed file, and each rotates it once more.
    """

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        if self._was_rotated():
            self._reopen()
        return bool(super().shouldRollover(record))

    def doRollover(self) -> None:
        with self._alone():
            if self._was_rotated():
                self._reopen()
            else:
                super().doRollover()

    def _was_rotated(self) -> bool:
        if self.stream is None:
            return True
        try:
            there = os.stat(self.baseFilename)
        except FileNotFoundError:
            return True
        mine = os.fstat(self.stream.fileno())
        return (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino)

    def _reopen(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self.stream = self._open()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of all processes that write this file."""
        if fcntl is None:
            yield
            return
        with open(f"{self.baseFilename}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
