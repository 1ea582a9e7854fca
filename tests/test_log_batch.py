"""Lines that are gathered and written together, and when they have to be there."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from qwen_asgi.log_batch import (
    MOST_GATHERED,
    BatchHandler,
    Console,
    Formatter,
    Record,
    spare_log_records,
)
from tests.conftest import eventually

FORMAT = "%(asctime)s - %(levelname)s - %(message)s"


class Recorder:
    """An output that keeps what it is given, each batch by itself."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.closed = 0
        self.failure: Exception | None = None

    @property
    def lines(self) -> list[str]:
        return [line for batch in self.batches for line in batch]

    def write_lines(self, lines: Sequence[str]) -> None:
        if self.failure is not None:
            raise self.failure
        self.batches.append(list(lines))

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def output() -> Recorder:
    return Recorder()


@pytest.fixture
def log(output: Recorder) -> Iterator[logging.Logger]:
    logger = logging.Logger("tests.batch")
    handler = BatchHandler([output])
    logger.addHandler(handler)
    yield logger
    handler.close()


def test_lines_come_together_and_soon(log: logging.Logger, output: Recorder) -> None:
    for number in range(10):
        log.info("line %d", number)
    assert output.batches == []
    eventually(lambda: output.batches)
    assert output.batches == [[f"line {number}" for number in range(10)]]
    # The thread waits for the next ones.
    log.info("later")
    eventually(lambda: len(output.batches) == 2)
    assert output.batches[1] == ["later"]


@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR, logging.CRITICAL])
def test_a_warning_goes_out_at_once_with_what_came_before_it(
    log: logging.Logger, output: Recorder, level: int
) -> None:
    log.info("before")
    log.log(level, "bad")
    assert output.batches == [["before", "bad"]]


def test_what_is_gathered_is_bounded(log: logging.Logger, output: Recorder) -> None:
    for number in range(10 * MOST_GATHERED):
        log.info("%d", number)
    assert len(output.lines) > 8 * MOST_GATHERED
    assert max(map(len, output.batches)) <= MOST_GATHERED


def test_flush_and_close_write_what_is_left(log: logging.Logger, output: Recorder) -> None:
    [handler] = log.handlers
    log.info("a")
    handler.flush()
    assert output.lines == ["a"]
    log.info("b")
    handler.close()
    assert (output.lines, output.closed) == (["a", "b"], 1)
    eventually(lambda: "qwen_asgi log" not in {t.name for t in threading.enumerate()})


def test_threads_that_log_together_lose_no_line(log: logging.Logger, output: Recorder) -> None:
    def write(name: int) -> None:
        for number in range(2000):
            log.log(logging.WARNING if number % 50 == 0 else logging.INFO, "%d %d", name, number)

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.handlers[0].flush()
    for name in range(4):
        mine = [line for line in output.lines if line.startswith(f"{name} ")]
        assert mine == [f"{name} {number}" for number in range(2000)]
    assert len(output.lines) == 8000


@pytest.mark.parametrize("failure", [OSError(28, "No space left"), ValueError("closed file")])
def test_an_output_that_fails_is_said_and_ends_nothing(
    log: logging.Logger, output: Recorder, capsys: pytest.CaptureFixture[str], failure: Exception
) -> None:
    output.failure = failure
    log.warning("lost")
    assert "1 lines of the log could not be written" in capsys.readouterr().err
    output.failure = None
    log.warning("kept")
    assert output.lines == ["kept"]


def test_a_message_that_cannot_be_made_is_said_and_ends_nothing(
    log: logging.Logger, output: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    log.warning("%d", "no number")
    assert "Logging error" in capsys.readouterr().err
    log.warning("kept")
    assert output.lines == ["kept"]


@pytest.mark.parametrize("datefmt", [None, "%H:%M", "%Y"])
def test_the_time_is_the_one_that_logging_itself_gives(datefmt: str | None) -> None:
    ours, theirs = Formatter(FORMAT, datefmt), logging.Formatter(FORMAT, datefmt)
    for created in [0.0, 1.25, 1.9994, 1_700_000_000.001, 1_700_000_000.5, time.time()]:
        record = logging.makeLogRecord({"msg": "x", "levelname": "INFO"})
        record.created = created
        record.msecs = int((created - int(created)) * 1000) + 0.0
        assert ours.format(record) == theirs.format(record)


def test_the_console_is_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.write_lines(["a", "ü 好"])
    console.close()
    assert capsys.readouterr().err == "a\nü 好\n"


ENDING = """
import logging, os, sys
from qwen_asgi.log_batch import BatchHandler, Console
handler = BatchHandler([Console()])
logging.getLogger().addHandler(handler)
logging.getLogger().setLevel("INFO")
"""


def run(program: str, **variables: str) -> str:
    # Python 3.12 and later warn of a fork beside a thread, which is what is tried here.
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", ENDING + program],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        timeout=50,
        check=True,
    )
    return done.stderr


def test_a_program_that_ends_writes_its_last_lines() -> None:
    assert run("logging.info('last')") == "last\n"


def test_from_a_moment_on_each_line_is_written_at_once(
    log: logging.Logger, output: Recorder
) -> None:
    [handler] = log.handlers
    assert isinstance(handler, BatchHandler)
    log.info("before")
    handler.write_through()
    assert output.lines == ["before"]
    log.info("after")
    assert output.lines == ["before", "after"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_does_not_write_its_parent_s_lines_again() -> None:
    program = """
logging.info("parent")
if os.fork() == 0:
    sys.exit(0)
os.wait()
"""
    assert run(program) == "parent\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_writes_its_own_lines() -> None:
    program = """
logging.info("parent"); handler.flush()
import time
if os.fork() == 0:
    logging.info("child")
    time.sleep(0.5)
    os._exit(0)
os.wait()
"""
    assert run(program) == "parent\nchild\n"


# Records.


@pytest.fixture
def lean(logging_untouched: None) -> None:
    spare_log_records()


@pytest.mark.usefixtures("lean")
def test_a_lean_record_says_what_logging_s_own_says() -> None:
    shown = "%(name)s %(levelname)s %(levelno)d %(message)s"
    arguments: list[tuple[object, ...]] = [("a",), ("%s", 1), ("%(a)s", {"a": 1}), ({"a": 1},)]
    for message, *given in arguments:
        lean, own = (
            make("log", logging.INFO, "", 0, message, tuple(given), None)
            for make in (logging.getLogRecordFactory(), logging.LogRecord)
        )
        assert isinstance(lean, Record)
        assert logging.Formatter(shown).format(lean) == logging.Formatter(shown).format(own)


@pytest.mark.usefixtures("lean")
def test_a_lean_record_has_all_that_a_format_may_ask_for() -> None:
    own = logging.LogRecord("log", logging.INFO, "", 0, "a", (), None)
    record = logging.getLogRecordFactory()("log", logging.INFO, "", 0, "a", (), None)
    assert record.__dict__.keys() | {"taskName"} == own.__dict__.keys() | {"taskName"}
    assert abs(record.created - own.created) < 1
    assert 0 <= record.msecs < 1000


@pytest.mark.usefixtures("lean")
def test_a_lean_record_takes_a_traceback_and_extra_fields(
    log: logging.Logger, output: Recorder
) -> None:
    log.handlers[0].setFormatter(Formatter("%(message)s %(more)s"))
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("a bug", extra={"more": "told"})
    assert output.lines[0].startswith("a bug told\nTraceback")
    assert output.lines[0].endswith("ValueError: boom")


def test_what_logs_while_it_is_made_into_a_line_holds_nothing_up(
    log: logging.Logger, output: Recorder
) -> None:
    class Talkative:
        def __str__(self) -> str:
            log.warning("within")
            return "told"

    log.warning("%s", Talkative())
    assert sorted(output.lines) == ["told", "within"]


@pytest.mark.parametrize("function", ["create_app", "main"])
def test_only_the_program_of_our_own_changes_how_records_are_made(function: str) -> None:
    program = f"""
import logging, uvicorn
from qwen_asgi import standalone
uvicorn.run = lambda *a, **k: None
getattr(standalone, {function!r})(*[[]] * ({function!r} == "main"))
print(logging.getLogRecordFactory().__name__, file=sys.stderr)
"""
    expected = "Record" if function == "main" else "LogRecord"
    assert run(program, QWEN_API_KEY="k", QWEN_LOG_FILE="-").splitlines()[-1] == expected
