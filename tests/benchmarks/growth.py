"""Whether a request, or a chunk, costs more when many streams are open beside it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from statistics import median
from typing import Any

from tests.benchmarks.accounting import raise_file_limit
from tests.benchmarks.figures import Work
from tests.benchmarks.loads import Outcome
from tests.benchmarks.running import Running
from tests.benchmarks.session import FAILURES, Session, say

OPEN_WITHIN = 120.0
FILES_A_STREAM = 2
"""That a gateway has open: a socket to either side."""
OTHER_FILES = 500


def measure_growth(session: Session) -> None:
    """Hold streams open that are nearly silent, and measure the same load beside them.

    Each target stands alone here, and its sizes take turns. Raises WrongAnswer.
    """
    limit = raise_file_limit()
    sizes = [n for n in session.scale.growth if n * FILES_A_STREAM + OTHER_FILES <= limit]
    for left_out in set(session.scale.growth) - set(sizes):
        say(f"{left_out} streams are not possible: a process may open {limit} files here")
    for name in session.targets:
        with ExitStack() as stack:
            running = session.start(stack, name, 1)
            if running is None:
                continue
            costs: dict[tuple[int, str], list[float]] = {}
            try:
                for block in range(session.scale.blocks):
                    say(f"growth of {name}, block {block + 1} of {session.scale.blocks}")
                    for size in sizes:
                        _measure_beside(session, running, size, costs)
            except FAILURES as exc:
                session.failed(name, 1, "growth", exc)
            session.results.growth += _rows(name, costs)


def _measure_beside(
    session: Session, running: Running, size: int, costs: dict[tuple[int, str], list[float]]
) -> None:
    session.hold(running, size, OPEN_WITHIN)
    for work in _works(session):
        cost = _cost(work, session.measure(running, work))
        costs.setdefault((size, work.name), []).append(cost)
    session.release(running)


def _works(session: Session) -> list[Work]:
    scale = session.scale
    return [
        Work(name="request", frames=0, connections=min(10, scale.clients)),
        Work(name="chunk", frames=scale.paced_frames, pace_ms=20, connections=scale.few),
    ]


def _cost(work: Work, outcome: Outcome) -> float:
    """Return microseconds for an answer or, of a stream, for a chunk, the held ones' included."""
    return outcome.cpu / max(outcome.chunks if work.frames else outcome.answers, 1) * 1e6


def _rows(name: str, costs: Mapping[tuple[int, str], list[float]]) -> list[dict[str, Any]]:
    return [
        {"target": name, "open": size, "of": work, "median_us": median(values), "values": values}
        for (size, work), values in costs.items()
    ]
