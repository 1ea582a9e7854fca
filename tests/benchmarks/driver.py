"""The helpers of a run, each a process: the simulated upstream, and the load client's other end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.load_client import FAILURES
from tests.benchmarks.loads import Load, Outcome
from tests.benchmarks.processes import ROOT, started
from tests.benchmarks.visitors import Visited, Visits


@dataclass(frozen=True, slots=True)
class Upstream:
    """The simulated upstream under way."""

    port: int
    process: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def simulated_upstream() -> Iterator[Upstream]:
    with _helper("upstream") as process:
        assert process.stdout is not None
        yield Upstream(int(process.stdout.readline()), process.pid)


class Driver:
    """What the load client can be told to do.

    Raises WrongAnswer, Stuck or ProcessGone, as the command says.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def measure(self, load: Load) -> Outcome:
        return Outcome(**self._command("measure", **asdict(load)))

    def hold(self, port: int, streams: int, *, relayed: bool, within: float) -> None:
        """Keep that many nearly silent streams open until `release`."""
        self._command("hold", port=port, streams=streams, relayed=relayed, within=within)

    def release(self) -> None:
        """Close the streams that are held, all of which must have been right so far."""
        self._command("release")

    def visit(self, visits: Visits, *, relayed: bool) -> Visited:
        return Visited(**self._command("visit", relayed=relayed, **asdict(visits)))

    def _command(self, do: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load client has ended; what it said stands above")
        reply = json.loads(line)
        if "failure" in reply:
            raise FAILURES[reply["failure"]](reply["words"])
        return reply["result"]


@contextmanager
def load_client() -> Iterator[Driver]:
    with _helper("load_client") as process:
        yield Driver(process)


@contextmanager
def _helper(module: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", f"tests.benchmarks.{module}"]
    with started(command, {}, Path(ROOT), output=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        yield process
