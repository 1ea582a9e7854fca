"""One block of load on one target: what is asked for, and what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.benchmarks.scenarios import Scenario


class Stuck(Exception):
    """A target did not do in time what it was asked for, or closed the connection over it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is to be measured. Times are in seconds."""

    port: int
    relayed: bool
    """Whether the target passes on the upstream's bytes as they are."""
    processes: Sequence[int]
    """The target's, whose CPU time is measured."""
    upstream: Sequence[int]
    frames: int
    pace_ms: int
    connections: int
    warm: float
    """How long it goes on before the measuring begins."""
    window: float
    """How long is measured."""
    apart: bool = False
    patience: float = 60.0
    """How long answers under way may take to end afterwards."""

    @property
    def scenario(self) -> Scenario:
        return Scenario(self.frames, self.pace_ms, self.apart)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was measured. Times are in seconds."""

    begin: int
    end: int
    """The moments between which it was measured, in nanoseconds of CLOCK_MONOTONIC."""
    answers: int
    """Those that ended while it was measured."""
    chunks: int
    """Text chunks that came while it was measured."""
    cpu: float
    upstream_cpu: float
    client_cpu: float
    first: Sequence[float] = ()
    """From a request to its first text chunk; percentiles 50 and 99, for paced streams."""
    delay: Sequence[float] = ()
    """From the upstream's sending of a chunk to its arrival; percentiles 50 and 99."""
    checked: int = 0
    """Answers compared with the template, whole or as far as they came."""
    cut: int = 0
    """Those of them that would not end in time afterwards."""

    @property
    def seconds(self) -> float:
        return (self.end - self.begin) / 1e9
