"""The figures that are read from loads: the targets take turns at each, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.benchmarks.figures import Figure, Work
from tests.benchmarks.fleet import Fleet, fleet
from tests.benchmarks.loads import Outcome
from tests.benchmarks.results import Results
from tests.benchmarks.session import Session, say, turns
from tests.benchmarks.targets import DIRECT, GATEWAY

AT_ITS_LIMIT = 0.9
"""Share of one core, from which on the load client holds a target back."""
BEHIND = 0.95
"""Share of the scheduled chunks, below which a target does not keep the pace."""
FASTER = 5.0
"""How many times cheaper than the gateway the simulated upstream must be."""


class UpstreamTooSlow(Exception):
    """The simulated upstream costs so much that what is measured may be its cost."""


def measure_loads(
    session: Session, workers: int, works: Sequence[Work], figures: Sequence[Figure]
) -> None:
    """Raises WrongAnswer, UpstreamTooSlow."""
    say(f"starting {', '.join(session.targets)}; {workers} worker(s)")
    with fleet(session, workers, list(session.targets)) as started:
        if workers == 1:
            check_upstream(session, started, works)
        for work in works:
            _measure(session, workers, started, work, [f for f in figures if f.work == work.name])


def check_upstream(session: Session, started: Fleet, works: Sequence[Work]) -> None:
    """See that the upstream is far cheaper than the gateway, per request and per chunk.

    Of paced streams this cannot be asked: nearly all of a lone chunk's cost is the system's, to
    wake a process and to carry the bytes, and that is the same for both.
    """
    if GATEWAY.name not in started.names:
        say("the gateway is not measured, so the upstream is not compared with it")
        return
    for work in works:
        if work.name not in ("plain", "burst64"):
            continue
        gateway = _cpu_of_one(started.measure(GATEWAY.name, work))
        upstream = _cpu_of_one(started.measure(DIRECT, work))
        if not gateway or not upstream:
            continue
        ratio = session.results.upstream_check[work.name] = gateway / upstream
        say(f"the upstream is {ratio:.1f} times cheaper than the gateway ({work.name})")
        # The figures of a quick run mean nothing, this one either.
        if ratio < FASTER and not session.scale.is_quick:
            raise UpstreamTooSlow(
                f"{work.name}: the upstream takes {upstream:.1f} us, the gateway {gateway:.1f} us; "
                f"that is {ratio:.1f} times as much and should be {FASTER:g} times"
            )


def _cpu_of_one(outcome: Outcome | None) -> float:
    """Return microseconds for a chunk, or for an answer where there is none; 0 if it failed."""
    if outcome is None:
        return 0.0
    return outcome.cpu / max(outcome.chunks or outcome.answers, 1) * 1e6


def _measure(
    session: Session, workers: int, started: Fleet, work: Work, figures: Sequence[Figure]
) -> None:
    names = [n for n in started.names if work.only is None or n in work.only]
    failed: set[str] = set()
    blocks = min(session.scale.blocks, work.blocks)
    for block in range(blocks):
        say(f"{work.name}, {workers} worker(s), block {block + 1} of {blocks}")
        outcomes: dict[str, Outcome] = {}
        for name in turns(names, block):
            if name in failed or name not in started.names:
                continue
            outcome = started.measure(name, work)
            if outcome is None:
                failed.add(name)
                continue
            outcomes[name] = outcome
        _note(session.results, workers, work, figures, outcomes)


def _note(
    results: Results,
    workers: int,
    work: Work,
    figures: Sequence[Figure],
    outcomes: Mapping[str, Outcome],
) -> None:
    for figure in figures:
        base = figure.read(outcomes[DIRECT]) if figure.added else 0.0
        for name, outcome in outcomes.items():
            value = figure.read(outcome)
            series = results.of(workers, name, figure.name)
            for remark in _remarks(work, outcome):
                series.remark(remark)
            if value is None or base is None:
                continue
            series.values.append(value if name == DIRECT else value - base)


def _remarks(work: Work, outcome: Outcome) -> list[str]:
    remarks = []
    if work.pace_ms:
        scheduled = work.connections * 1000 / work.pace_ms * outcome.seconds
        if outcome.chunks < BEHIND * scheduled:
            remarks.append("did not keep the pace")
    elif outcome.client_cpu > AT_ITS_LIMIT * outcome.seconds:
        remarks.append("the load client was at its limit")
    if outcome.cut:
        remarks.append(f"{outcome.cut} streams did not end in time")
    return remarks
