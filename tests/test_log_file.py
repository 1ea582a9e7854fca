"""The rotated log file, also with several processes at it."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qwen_asgi.log_file import SharedRotatingFileHandler
from tests.programs import STARTS_WITHIN, environment

MAX_BYTES = 8_000
BACKUPS = 4
LINES = 3000
"""A writer's; together they are more than the files may hold, so the oldest have to go."""

WRITER = f"""
import logging, os, sys
from qwen_asgi.log_file import SharedRotatingFileHandler

path, names = sys.argv[1], sys.argv[2:]
logger = logging.getLogger()
logger.setLevel(logging.INFO)
logger.addHandler(SharedRotatingFileHandler(path, {MAX_BYTES}, {BACKUPS}))
for name in names[1:]:
    # Each name is a process of its own, and all of them have the handler of the first.
    if os.fork() == 0:
        names = [name]
        break
os.write(1, b"!")  # ready
sys.stdin.readline()
for number in range({LINES}):
    logger.info("%s %d 好", names[0], number)
if len(names) > 1:
    os.wait()
"""

Handler = Callable[..., SharedRotatingFileHandler]


@pytest.fixture
def handler(tmp_path: Path) -> Iterator[Handler]:
    """Makes handlers of `tmp_path / "log"`, that stand for those of so many processes."""
    made: list[SharedRotatingFileHandler] = []

    def handler(max_bytes: int = MAX_BYTES, backups: int = BACKUPS) -> SharedRotatingFileHandler:
        made.append(SharedRotatingFileHandler(tmp_path / "log", max_bytes, backups))
        return made[-1]

    yield handler
    for one in made:
        one.close()


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("name", logging.INFO, "path", 1, text, None, None)


def files(folder: Path) -> list[Path]:
    """Return the files of `folder / "log"`, newest first."""
    return [folder / "log", *sorted(folder.glob("log.[0-9]*"))]


def lines_of(folder: Path) -> list[str]:
    """Return what the files hold, oldest first."""
    texts = [file.read_text(encoding="utf-8") for file in reversed(files(folder))]
    return "".join(texts).splitlines()


@pytest.mark.skipif(os.name == "nt", reason="one worker writes there")
@pytest.mark.parametrize(
    "processes", [[["a"], ["b"]], [["a", "b"]]], ids=["two programs", "one program, forked"]
)
def test_two_processes_that_write_and_rotate_one_file_lose_no_line(
    processes: list[list[str]], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", WRITER, str(tmp_path / "log"), *names],
                    env=environment(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            )
            for names in processes
        ]
        for writer, names in zip(writers, processes, strict=True):
            assert writer.stdout is not None
            assert writer.stdout.read(len(names)) == b"!" * len(names), "each is ready"
        for writer in writers:
            assert writer.stdin is not None
            # This is what they wait for, so that they write at the same time.
            writer.stdin.close()
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.read() == b""
            assert writer.wait(STARTS_WITHIN) == 0

    sizes = [file.stat().st_size for file in files(tmp_path)]
    longest = len(f"a {LINES} 好\n".encode())
    assert len(sizes) == BACKUPS + 1
    assert max(sizes) <= MAX_BYTES, "no file grows over its size"
    assert min(sizes[1:]) > MAX_BYTES - longest, "each was full when it was put away"
    numbers: dict[str, list[int]] = {"a": [], "b": []}
    for line in lines_of(tmp_path):
        found = re.fullmatch(r"([ab]) (\d+) 好", line)
        assert found is not None, line
        numbers[found[1]].append(int(found[2]))
    for kept in numbers.values():
        assert kept == list(range(LINES - len(kept), LINES)), "of each, the newest without a gap"


def test_a_file_that_another_process_has_rotated_is_written_in_its_new_place(
    handler: Handler, tmp_path: Path
) -> None:
    one, other = handler(max_bytes=20), handler(max_bytes=20)
    other.emit(record("before"))
    one.emit(record("it rotates"))
    one.emit(record("it rotates again"))
    other.emit(record("!"))
    other.emit(record("after"))
    assert [file.read_text() for file in files(tmp_path)] == [
        "after\n",
        "it rotates again\n!\n",
        "before\nit rotates\n",
    ]


def test_the_size_is_counted_in_bytes(handler: Handler, tmp_path: Path) -> None:
    one = handler(max_bytes=100)
    for _ in range(20):
        one.emit(record("好" * 10))
    assert [file.stat().st_size for file in files(tmp_path)] == [62, 93, 93, 93, 93]


def test_a_line_longer_than_a_file_stands_alone_and_rotates_no_empty_one(
    handler: Handler, tmp_path: Path
) -> None:
    one = handler(max_bytes=10)
    one.emit(record("x" * 50))
    one.emit(record("y" * 50))
    assert [file.read_text() for file in files(tmp_path)] == ["y" * 50 + "\n", "x" * 50 + "\n"]


def test_a_file_that_was_taken_away_is_made_anew(handler: Handler, tmp_path: Path) -> None:
    one = handler()
    one.emit(record("first"))
    (tmp_path / "log").unlink()
    one.emit(record("second"))
    assert lines_of(tmp_path) == ["second"]


def test_what_utf_8_cannot_hold_is_written_escaped(handler: Handler, tmp_path: Path) -> None:
    handler().emit(record("\ud800"))
    assert lines_of(tmp_path) == ["\\ud800"]


def test_a_line_after_the_end_is_no_failure(
    handler: Handler, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Threads may log while the program ends and its handlers are closed."""
    one = handler()
    one.close()
    one.emit(record("late"))
    one.close()
    assert lines_of(tmp_path) == ["late"]
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(os.name == "nt", reason="one worker writes there, without a lock")
def test_a_folder_where_no_lock_can_be_made_is_an_error_at_once(
    handler: Handler, tmp_path: Path
) -> None:
    (tmp_path / "log.lock").mkdir()
    with pytest.raises(OSError, match=r"log\.lock"):
        handler()


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="it is Unix's")
def test_a_device_is_written_without_a_lock_and_never_rotated() -> None:
    device = SharedRotatingFileHandler("/dev/null", 10, BACKUPS)
    for _ in range(5):
        device.emit(record("x" * 20))
    device.close()
    assert not os.path.exists("/dev/null.lock")
    assert not os.path.isfile("/dev/null")


@pytest.mark.skipif(os.name == "nt", reason="there are no such modes")
def test_its_owner_alone_may_read_it(tmp_path: Path) -> None:
    handler = SharedRotatingFileHandler(tmp_path / "log", max_bytes=100, backups=2)
    handler.write_lines(["x" * 60] * 5)
    handler.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["log", "log.1", "log.2", "log.lock"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


@pytest.mark.skipif(os.name == "nt", reason="there are no such modes")
def test_a_file_that_was_there_keeps_the_mode_it_was_given(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    log.chmod(0o640)
    handler = SharedRotatingFileHandler(log, max_bytes=100, backups=2)
    handler.write_lines(["x" * 60] * 2)
    handler.close()
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("log.1", "log")] == [0o640, 0o600]
