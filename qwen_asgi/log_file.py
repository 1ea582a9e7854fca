"""A log file that is rotated by size, also where several worker processes write it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from typing import TextIO, cast

try:
    import fcntl
except ImportError:  # Windows: there the program runs one worker.
    fcntl = None  # type: ignore[assignment]

MAX_BYTES = 10 * 1024 * 1024
BACKUPS = 4
"""So that the log takes 50 MiB of the disk at most."""


class SharedRotatingFileHandler(RotatingFileHandler):
    """A UTF-8 log of `backups` + 1 files of `max_bytes` at most, written by several processes.

    RotatingFileHandler counts characters for bytes; and each process that shares its file goes on
    writing into the renamed one, then rotates once more. So here the size is counted in bytes, and
    one lock is held from the look at the file until the line stands in it. Raises OSError when the
    file or its lock, `filename.lock`, cannot be written.
    """

    def __init__(self, filename: str | os.PathLike[str], max_bytes: int, backups: int) -> None:
        super().__init__(
            filename,
            maxBytes=max_bytes,
            backupCount=backups,
            encoding="utf-8",
            errors="backslashreplace",
        )
        self._lock_file: TextIO | None = None
        if fcntl is not None and self._is_a_file():
            try:
                self._lock_file = open(f"{self.baseFilename}.lock", "a", opener=_own)  # noqa: SIM115
            except OSError:
                self.close()
                raise

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.write_lines([self.format(record)])
        except Exception:
            self.handleError(record)

    def write_lines(self, lines: Sequence[str]) -> None:
        """Write lines, given without line ends; one lock and one look at the file for all of them.

        Raises OSError.
        """
        with self._alone():
            if self._was_rotated():
                self._reopen()
            text = "".join([f"{line}{self.terminator}" for line in lines])
            if self._has_room(text):
                self._put(text)
            else:
                for line in lines:
                    self._put_where_there_is_room(line + self.terminator)

    def _put_where_there_is_room(self, text: str) -> None:
        if not self._has_room(text) and os.stat(self.baseFilename).st_size > 0:
            self.doRollover()
        self._put(text)

    def _has_room(self, text: str) -> bool:
        if self.maxBytes <= 0 or not self._is_a_file():
            return True
        length = len(text.encode("utf-8", "backslashreplace"))
        return os.stat(self.baseFilename).st_size + length <= self.maxBytes

    def _put(self, text: str) -> None:
        assert self.stream is not None
        self.stream.write(text)
        self.flush()

    def _open(self) -> TextIOWrapper:
        file = open(  # noqa: SIM115
            self.baseFilename, self.mode, encoding=self.encoding, errors=self.errors, opener=_own
        )
        return cast(TextIOWrapper, file)

    def close(self) -> None:
        super().close()
        if self._lock_file is not None:
            self._lock_file.close()

    def _is_a_file(self) -> bool:
        """Not so for /dev/stdout and the like."""
        return os.path.isfile(self.baseFilename)

    def _was_rotated(self) -> bool:
        """Whether another process has put a new file in the place of the one that is open here."""
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
        """Hold the lock of all processes that write this file.

        It is a lock of the process: one that a forked worker inherited would not keep it out.
        """
        if self._lock_file is None or self._lock_file.closed:
            yield
            return
        fcntl.lockf(self._lock_file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._lock_file, fcntl.LOCK_UN)


def _own(path: str, flags: int) -> int:
    """Open a file that its owner alone may read: the words of users stand in it."""
    return os.open(path, flags, 0o600)
