"""Commands run for real: in processes of their own, on ports that the system gives, and ended."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import eventually

ROOT = Path(__file__).parent.parent
STARTS_WITHIN = 30.0
"""Seconds; a machine that runs other things too may need them."""

UVICORN = (sys.executable, "-m", "uvicorn")
QWEN_ASGI = (sys.executable, "-m", "qwen_asgi")


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without what would change a program's settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("QWEN_", "UVICORN_", "WEB_", "PYTEST_", "PYTHONWARNINGS"))
    }
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **variables}


def run(command: Sequence[str], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=STARTS_WITHIN,
    )


@dataclass(frozen=True)
class CurlRequest:
    """What a `curl` line of the documentation sends."""

    url: httpx.URL
    headers: dict[str, str]
    body: dict[str, Any]


def parse_curl(line: str) -> CurlRequest:
    """Return what a `curl URL -H ... -d JSON` line sends; not every machine has curl itself."""
    words = shlex.split(line.replace("\\\n", " "))
    assert words.pop(0) == "curl"
    url, headers, body = "", {}, None
    while words:
        match words.pop(0):
            case "-H":
                name, _, value = words.pop(0).partition(": ")
                headers[name.lower()] = value
            case "-d":
                body = json.loads(words.pop(0))
            case "-N":
                pass
            case word:
                assert word.startswith("http://"), word
                url = word
    assert isinstance(body, dict)
    return CurlRequest(httpx.URL(url), headers, body)


class Program:
    """A server under way."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self._process = process
        self._output = output

    @property
    def output(self) -> str:
        """What it has written so far, to either stream."""
        return self._output.read_text(encoding="utf-8")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def port(self) -> int:
        """The port that it says it listens on."""
        found = re.search(r"http://[\w.]+:(\d+)", self.output)
        assert found is not None
        return int(found[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def hang_up(self) -> None:
        """Send it SIGHUP."""
        self._process.send_signal(signal.SIGHUP)

    def end(self, by: signal.Signals = signal.SIGTERM, within: float = 5.0) -> int:
        """Ask it to end, and return its exit status, or the signal's number below zero."""
        self._process.send_signal(by)
        return self._process.wait(within)

    def says(self, pattern: str) -> bool:
        assert self._process.poll() is None, self.output
        return re.search(pattern, self.output) is not None


@contextmanager
def running(
    command: Sequence[str], cwd: Path, started: str = r"http://[\w.]+:[1-9]", **variables: str
) -> Iterator[Program]:
    """Run a server until the end of the block; it has started when it says what `started` finds."""
    output = cwd / f"output-{time.monotonic_ns()}"
    with (
        open(output, "wb") as file,
        subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            # Its workers end with it.
            start_new_session=True,
        ) as process,
    ):
        program = Program(process, output)
        try:
            eventually(lambda: program.says(started), STARTS_WITHIN)
            yield program
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
