"""The programs that a run starts, each stopped at its end whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tests.benchmarks.accounting import session_members

ROOT = Path(__file__).parents[2]

STOPS_WITHIN = 5.0
"""Seconds that a program has to end when asked; then it is killed."""


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without what would change a program's ways."""
    foreign = ("QWEN_", "UVICORN_", "WEB_CONCURRENCY", "PYTHON", "OPENAI_", "LITELLM_")
    kept = {
        name: value
        for name, value in os.environ.items()
        # A proxy in the environment would lead what stays on this machine out of it.
        if not name.startswith(foreign) and not name.upper().endswith("_PROXY")
    }
    # Compiled modules are kept, as they are where a program is installed.
    return {**kept, "PYTHONUNBUFFERED": "1", **variables}


@contextmanager
def started(
    command: Sequence[str],
    variables: Mapping[str, str],
    folder: Path,
    output: IO[bytes] | int,
    stdin: int = subprocess.DEVNULL,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, in a session of its own so that Ctrl-C is ours to hand on, to the block's end.

    `output` takes both its streams.
    """
    stderr = None if output == subprocess.PIPE else subprocess.STDOUT
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(variables),
        stdin=stdin,
        stdout=output,
        stderr=stderr,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it has started."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOPS_WITHIN)
    for member in session_members(process.pid):
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """Return a port that the system has just given, and that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
