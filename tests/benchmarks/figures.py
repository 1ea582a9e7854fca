"""What is measured of every target: the loads it is put under, and the figures read from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.benchmarks.loads import Outcome
from tests.benchmarks.targets import DIRECT, EMBEDDED, GATEWAY


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much of everything; times in seconds."""

    is_quick: bool = False
    """Whether it only shows that everything runs and every answer is right."""
    blocks: int
    """Times that each load is put on each target, the targets taking turns."""
    window: float
    warm: float
    clients: int
    paced_frames: int
    few: int
    many: int
    most: int
    """Paced streams that are open at once."""
    held: int
    """Open streams whose memory is measured."""
    starts: int
    imports: int
    growth: Sequence[int]
    """Open streams beside which the cost of others is measured."""
    settle: float
    """Wait before memory is read."""
    soak_slices: int
    soak_requests: int
    soak_streams: int
    """Requests and streams of one slice of the soak; the memory is read between two."""


FULL = Scale(
    blocks=5,
    window=3.0,
    warm=0.3,
    clients=50,
    paced_frames=100,
    few=50,
    many=200,
    most=2000,
    held=1000,
    starts=3,
    imports=7,
    growth=(1, 10, 100, 1000, 2000),
    settle=0.5,
    soak_slices=40,
    soak_requests=5000,
    soak_streams=500,
)

QUICK = Scale(
    is_quick=True,
    blocks=1,
    window=0.1,
    warm=0.02,
    clients=4,
    paced_frames=4,
    few=4,
    many=8,
    most=12,
    held=20,
    starts=1,
    imports=1,
    growth=(1, 4),
    settle=0.05,
    soak_slices=2,
    soak_requests=20,
    soak_streams=4,
)
"""Its figures mean nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One kind of load."""

    name: str
    frames: int
    connections: int
    pace_ms: int = 0
    apart: bool = False
    only: frozenset[str] | None = None
    """Targets that are put under it; None is all."""
    blocks: int = 100
    """At most that many."""


def works(scale: Scale) -> list[Work]:
    paced = scale.paced_frames
    # As many chunks a second as `many` streams at 20 ms give, which one core can carry.
    slow = 20 * scale.most // scale.many
    return [
        Work(name="plain", frames=0, connections=scale.clients),
        Work(name="burst64", frames=64, connections=scale.clients),
        Work(name="apart64", frames=64, connections=scale.clients, apart=True),
        Work(name="burst8", frames=8, connections=scale.clients),
        Work(name="paced-few", frames=paced, pace_ms=20, connections=scale.few),
        Work(name="paced-many", frames=paced, pace_ms=20, connections=scale.many),
        Work(
            name="paced-most",
            frames=paced,
            pace_ms=slow,
            connections=scale.most,
            only=frozenset({DIRECT, GATEWAY.name, EMBEDDED.name, "nginx"}),
            # One takes most of a minute: the streams live that long.
            blocks=2,
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row of the table."""

    name: str
    title: str
    unit: str
    digits: int = 0
    """Behind the point."""
    work: str = ""
    """The load it is read from; none for what is read from starts and imports."""
    read: Callable[[Outcome], float | None] = lambda outcome: None
    """None when there was too little to read it from."""
    added: bool = False
    """Whether it is what a target adds to the same figure of `direct`."""


def figures(scale: Scale) -> list[Figure]:
    few, many, most = (f"{n:,} streams" for n in (scale.few, scale.many, scale.most))
    rate = 20 * scale.most // scale.many
    return [
        Figure(
            name="cpu_plain",
            title=f"CPU per plain request, {scale.clients} clients",
            unit="us",
            work="plain",
            read=_cpu_per_answer,
        ),
        Figure(
            name="rate_plain",
            title=f"plain requests per second, {scale.clients} clients",
            unit="/s",
            work="plain",
            read=lambda outcome: outcome.answers / outcome.seconds,
        ),
        _chunk("burst64", "64 in a burst, one write"),
        _chunk("apart64", "64 in a burst, a write each"),
        _chunk("burst8", "8 in a burst, one write"),
        _chunk("paced-few", f"{few} paced at 20 ms"),
        _chunk("paced-many", f"{many} paced at 20 ms"),
        _chunk("paced-most", f"{most} paced at {rate} ms"),
        _latency("first_p50", f"time to first chunk added, {few}, p50", _first, 0),
        _latency("first_p99", f"time to first chunk added, {few}, p99", _first, 1),
        _latency("delay_p50", f"chunk delay added, {few}, p50", _delay, 0),
        _latency("delay_p99", f"chunk delay added, {few}, p99", _delay, 1),
        Figure(
            name="stream_memory",
            title=f"resident memory per open stream, {scale.held:,} streams",
            unit="KiB",
            digits=1,
        ),
        Figure(name="idle_memory", title="idle memory", unit="MiB", digits=1),
        Figure(name="start", title="start to first answer", unit="s", digits=2),
        Figure(name="import", title="import", unit="ms"),
    ]


def _chunk(work: str, what: str) -> Figure:
    return Figure(
        name=f"cpu_{work}",
        title=f"CPU per chunk, {what}",
        unit="us",
        digits=1,
        work=work,
        read=_cpu_per_chunk,
    )


def _latency(name: str, title: str, of: Callable[[Outcome], Sequence[float]], index: int) -> Figure:
    def read(outcome: Outcome) -> float | None:
        percentiles = of(outcome)
        return percentiles[index] * 1000 if percentiles else None

    return Figure(
        name=name, title=title, unit="ms", digits=2, work="paced-few", read=read, added=True
    )


def _first(outcome: Outcome) -> Sequence[float]:
    return outcome.first


def _delay(outcome: Outcome) -> Sequence[float]:
    return outcome.delay


def _cpu_per_answer(outcome: Outcome) -> float | None:
    return outcome.cpu / outcome.answers * 1e6 if outcome.answers else None


def _cpu_per_chunk(outcome: Outcome) -> float | None:
    return outcome.cpu / outcome.chunks * 1e6 if outcome.chunks else None
