"""A target under way: started, asked until it answers, known by its processes, stopped."""

from __future__ import annotations

import http.client
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks.accounting import process_tree
from tests.benchmarks.driver import Upstream
from tests.benchmarks.launch import Place
from tests.benchmarks.loads import Stuck
from tests.benchmarks.processes import free_port, started
from tests.benchmarks.scenarios import Scenario
from tests.benchmarks.targets import DIRECT, Target
from tests.benchmarks.templates import learn

STARTS_WITHIN = 120.0
POLL = 0.005
"""Seconds between two tries of the first request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Where a target is reached."""

    name: str
    relayed: bool
    port: int
    process: int
    workers: int
    started_in: float
    """Seconds from its process's start to its first good answer; 0 for no target at all."""

    def processes(self) -> list[int]:
        """Return its processes as they are now."""
        return process_tree(self.process)


def direct(upstream: Upstream) -> Running:
    """Return the upstream itself, in the place of a target."""
    return Running(
        name=DIRECT,
        relayed=True,
        port=upstream.port,
        process=upstream.process,
        workers=1,
        started_in=0.0,
    )


@contextmanager
def running(target: Target, executable: str, upstream: Upstream, workers: int) -> Iterator[Running]:
    """Start a target, and stop it at the block's end. Raises Stuck, with its last words."""
    with TemporaryDirectory(prefix=f"bench-{target.name}-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        port = free_port()
        place = Place(
            port=port,
            upstream=upstream.url,
            workers=workers,
            folder=folder,
            executable=executable,
        )
        launch = target.launch(place)
        output = folder / "output"
        with open(output, "wb") as file:
            begin = time.monotonic()
            with started(launch.command, launch.variables, folder, file) as process:
                _first_good_answer(process, port, target.relayed, begin + STARTS_WITHIN, output)
                yield Running(
                    name=target.name,
                    relayed=target.relayed,
                    port=port,
                    process=process.pid,
                    workers=workers,
                    started_in=time.monotonic() - begin,
                )


def _first_good_answer(
    process: subprocess.Popen[bytes], port: int, relayed: bool, deadline: float, output: Path
) -> None:
    while True:
        if process.poll() is not None:
            raise Stuck(f"it ended with status {process.returncode}: {_last_words(output)}")
        left = deadline - time.monotonic()
        if left <= 0:
            raise Stuck(f"no answer within {STARTS_WITHIN:g} s: {_last_words(output)}")
        body = _answer(port, left)
        if body is not None:
            learn(0, body, relayed=relayed)
            return
        time.sleep(POLL)


def _answer(port: int, within: float) -> bytes | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=within)
    headers = {"authorization": "Bearer sk-benchmark", "content-type": "application/json"}
    try:
        connection.request("POST", "/v1/chat/completions", Scenario(0).request(), headers)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return body if response.status == 200 else None


def _last_words(output: Path) -> str:
    text = output.read_bytes()[-4096:].decode(errors="replace")
    return " / ".join([line.strip() for line in text.splitlines() if line.strip()][-3:])
