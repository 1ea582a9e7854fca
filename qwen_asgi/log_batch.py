"""The log of the standalone program: records gathered, then made into lines and written together.

To lock, look at and write a file for every line costs several times what a request does, and to
make a line amidst a request several times what it costs among others. So records are gathered, for
a tenth of a second at most; a warning or worse goes out at once, with all that came before it. A
process that is killed outright loses what it had gathered. What a record is made of must not change
once it is logged.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

GATHER_SECONDS = 0.1
MOST_GATHERED = 256
"""Records after which they are written before their time is up."""


class Output(Protocol):
    """Where lines go."""

    def write_lines(self, lines: Sequence[str]) -> None:
        """Write lines, given without line ends. Raises OSError."""

    def close(self) -> None: ...


class Console:
    """Standard error."""

    def __init__(self) -> None:
        self._stream = sys.stderr

    def write_lines(self, lines: Sequence[str]) -> None:
        self._stream.write("\n".join([*lines, ""]))
        self._stream.flush()

    def close(self) -> None:
        """It is not ours to close."""


class Record(logging.LogRecord):
    """A log record without what nothing here asks for: file, function, thread and process.

    logging's own spends most of its time on those.
    """

    def __init__(
        self,
        name: str,
        level: int,
        pathname: str,
        lineno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        sinfo: str | None = None,
        **kwargs: Any,
    ) -> None:
        # Formats are filled from an instance's own attributes, so each has to be one.
        self.__dict__.update(_UNSAID)
        self.name = name
        self.msg = msg
        # As logging has it: one mapping stands for itself.
        is_mapping = args and len(args) == 1 and isinstance(args[0], Mapping) and args[0]
        self.args = args[0] if is_mapping else args
        self.levelno = level
        self.levelname = logging.getLevelName(level)
        self.exc_info = exc_info
        self.stack_info = sinfo
        self.created = time.time()
        self.msecs = int(self.created % 1 * 1000) + 0.0


_UNSAID = {
    "pathname": "",
    "filename": "",
    "module": "",
    "lineno": 0,
    "funcName": "",
    "relativeCreated": 0.0,
    "thread": 0,
    "threadName": "",
    "process": 0,
    "processName": "",
    "taskName": None,
    "exc_text": None,
}


def spare_log_records() -> None:
    """Have this process's log records made quickly: see `Record`, and the logging HOWTO under
    "Optimization"."""
    logging._srcfile = None
    logging.setLogRecordFactory(Record)


class Formatter(logging.Formatter):
    """logging's own, that works the default date and time out once a second."""

    _last = (-1, "")

    def format(self, record: logging.LogRecord) -> str:
        if record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        record.message = record.getMessage()
        record.asctime = self.formatTime(record, self.datefmt)
        return self.formatMessage(record)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        if datefmt:
            return super().formatTime(record, datefmt)
        second, text = self._last
        if second != int(record.created):
            second = int(record.created)
            text = time.strftime(self.default_time_format, self.converter(second))
            self._last = (second, text)
        return f"{text},{int(record.msecs):03d}"


class BatchHandler(logging.Handler):
    """Gathers records for its outputs; a thread writes them, or `flush`, or a warning."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        super().__init__()
        self._outputs = outputs
        self._gathers = True
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._records: list[logging.LogRecord] = []
        # What is made into a line may log in turn.
        self._writing = threading.RLock()
        self._gathering = threading.Event()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self._check_process()
        self._records.append(record)
        is_urgent = record.levelno >= logging.WARNING or not self._gathers
        if is_urgent or len(self._records) >= MOST_GATHERED:
            self.flush()
        elif not self._gathering.is_set():
            self._gathering.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="qwen_asgi log", daemon=True)
                self._thread.start()

    def write_through(self) -> None:
        """Write what is gathered, and from now on each line at once."""
        self._gathers = False
        self.flush()

    def flush(self) -> None:
        self._check_process()
        with self._writing:
            # Others only append meanwhile.
            records = self._records[:]
            del self._records[: len(records)]
            lines = self._lines(records)
            if lines:
                for output in self._outputs:
                    _write(output, lines)

    def _lines(self, records: Sequence[logging.LogRecord]) -> list[str]:
        lines = []
        for record in records:
            try:
                lines.append(self.format(record))
            except Exception:
                self.handleError(record)
        return lines

    def close(self) -> None:
        self.flush()
        self._ending.set()
        self._gathering.set()
        for output in self._outputs:
            output.close()
        super().close()

    def _check_process(self) -> None:
        if self._process != os.getpid():
            # A fork has neither the thread nor a lock to trust, and the records are its parent's.
            self._begin()

    def _run(self) -> None:
        while not self._ending.is_set():
            self._gathering.wait()
            self._ending.wait(GATHER_SECONDS)
            self._gathering.clear()
            self.flush()


def _write(output: Output, lines: Sequence[str]) -> None:
    try:
        output.write_lines(lines)
    except Exception as exc:
        # There is one place left to say so, and that may be what failed.
        with suppress(OSError, ValueError):
            sys.stderr.write(f"{len(lines)} lines of the log could not be written: {exc!r}\n")
