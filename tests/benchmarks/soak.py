"""Whether memory grows with what has been answered, with many clients leaving before the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tests.benchmarks.accounting import open_files
from tests.benchmarks.running import Running
from tests.benchmarks.session import FAILURES, Session, blamed, say
from tests.benchmarks.visitors import Visits

LEAVING = 0.3
WARM_SHARE = 0.2
"""How much of a soak is left out of the slope: pools and caches fill first."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a target holds after so much."""

    seconds: float
    answers: int
    chunks: int
    left: int
    resident: float
    """In MiB."""
    files: int


def measure_soak(session: Session) -> None:
    """Raises WrongAnswer."""
    for name in session.targets:
        with ExitStack() as stack:
            running = session.start(stack, name, 1)
            if running is None:
                continue
            samples: list[Sample] = []
            try:
                _soak(session, running, samples)
            except FAILURES as exc:
                session.failed(name, 1, "soak", exc)
            if samples:
                session.results.soak.append(_summary(name, samples))


def _soak(session: Session, running: Running, samples: list[Sample]) -> None:
    scale = session.scale
    begin = time.monotonic()
    answers = chunks = left = 0
    visits = Visits(
        port=running.port,
        requests=scale.soak_requests,
        streams=scale.soak_streams,
        connections=scale.clients,
        leaving=LEAVING,
    )
    for number in range(scale.soak_slices):
        with blamed(running.name, "soak"):
            visited = session.driver.visit(visits, relayed=running.relayed)
        answers, chunks = answers + visited.answers, chunks + visited.chunks
        left += visited.left
        time.sleep(scale.settle)
        memory = session.memory(running).resident / 2**20
        files = open_files(running.processes())
        samples.append(Sample(time.monotonic() - begin, answers, chunks, left, memory, files))
        say(
            f"soak of {running.name}, {number + 1} of {scale.soak_slices}: {answers:,} answers, "
            f"{chunks:,} chunks, {left:,} left early, {memory:.1f} MiB, {files} files"
        )


def _summary(name: str, samples: Sequence[Sample]) -> dict[str, object]:
    kept = samples[int(len(samples) * WARM_SHARE) :]
    memory = [sample.resident for sample in kept]
    last = samples[-1]
    return {
        "target": name,
        "answers": last.answers,
        "chunks": last.chunks,
        "left": last.left,
        "seconds": round(last.seconds, 1),
        "first_mib": samples[0].resident,
        "last_mib": last.resident,
        "mib_per_100000_answers": 1e5 * slope([sample.answers for sample in kept], memory),
        "mib_per_hour": 3600 * slope([sample.seconds for sample in kept], memory),
        "first_files": samples[0].files,
        "last_files": last.files,
        "samples_mib": [round(sample.resident, 2) for sample in samples],
    }


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return how much y grows with x, by the line with the least squares."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    square = sum((value - mean_x) ** 2 for value in x)
    if not square:
        return 0.0
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / square
