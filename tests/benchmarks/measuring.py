"""How a block of load is measured. This runs in the load client's process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic_ns

from tests.benchmarks.accounting import cpu_seconds
from tests.benchmarks.connection import Answer
from tests.benchmarks.crowd import Crowd
from tests.benchmarks.loads import Load, Outcome, Stuck
from tests.benchmarks.templates import Template


@dataclass(frozen=True, slots=True)
class _Moment:
    """The books at one edge of the measuring."""

    at: int
    answers: int
    target: float
    upstream: float
    client: float

    @classmethod
    def now(cls, load: Load, crowd: Crowd) -> _Moment:
        target, upstream = cpu_seconds(load.processes), cpu_seconds(load.upstream)
        return cls(monotonic_ns(), crowd.ended, target, upstream, cpu_seconds([os.getpid()]))


async def measure(load: Load, template: Template) -> Outcome:
    """Raises WrongAnswer, Stuck, ProcessGone."""
    if load.pace_ms:
        return await _measure_paced(load, template)
    return await _measure_closed(load, template)


async def _measure_closed(load: Load, template: Template) -> Outcome:
    """From rest to rest, so that all work for all answers counted is in the measure, no more."""
    crowd = Crowd(load, lambda answer: template.check(answer.body))
    try:
        await crowd.gather()
        await _go_for(load.warm, crowd)
        before = _Moment.now(load, crowd)
        await _go_for(load.window, crowd)
        after = _Moment.now(load, crowd)
    finally:
        crowd.cut()
    chunks = (after.answers - before.answers) * load.frames
    return _outcome(before, after, chunks, _Latencies(), crowd.ended, cut=0)


async def _go_for(seconds: float, crowd: Crowd) -> None:
    crowd.go()
    await crowd.sleep(seconds)
    if not await crowd.rest():
        raise Stuck("answers did not end in time")


async def _measure_paced(load: Load, template: Template) -> Outcome:
    """Between two moments in the midst of it: the cost of a chunk depends on how many are open."""
    # Looked at when all is over: it would make the arrivals of others late.
    answers: list[Answer] = []
    crowd = Crowd(load, answers.append)
    try:
        await crowd.gather()
        # Over the life of a stream, so that they end and begin again one after another too.
        await crowd.go_spread(load.scenario.life)
        await crowd.sleep(load.warm)
        before = _Moment.now(load, crowd)
        await crowd.sleep(load.window)
        after = _Moment.now(load, crowd)
        await crowd.rest()
    finally:
        unfinished = crowd.cut()
    latencies = _Latencies(before.at, after.at)
    for answer in answers:
        latencies.add(answer, template.check_stamped(answer.body), template)
    for answer in unfinished:
        latencies.add(answer, template.check_stamped(answer.body, whole=False), template)
    chunks, checked = len(latencies.delay), len(answers) + len(unfinished)
    return _outcome(before, after, chunks, latencies, checked, cut=len(unfinished))


def _outcome(
    before: _Moment,
    after: _Moment,
    chunks: int,
    latencies: _Latencies,
    checked: int,
    *,
    cut: int,
) -> Outcome:
    return Outcome(
        begin=before.at,
        end=after.at,
        answers=after.answers - before.answers,
        chunks=chunks,
        cpu=after.target - before.target,
        upstream_cpu=after.upstream - before.upstream,
        client_cpu=after.client - before.client,
        first=_percentiles(latencies.first),
        delay=_percentiles(latencies.delay),
        checked=checked,
        cut=cut,
    )


@dataclass(slots=True)
class _Latencies:
    """Nanoseconds, of what happened between two moments."""

    begin: int = 0
    end: int = 0
    first: list[int] = field(default_factory=list)
    delay: list[int] = field(default_factory=list)

    def add(self, answer: Answer, stamps: Sequence[int], template: Template) -> None:
        arrivals = answer.arrivals(template.layout.ends)
        if arrivals and self.begin <= answer.sent < self.end:
            self.first.append(arrivals[0] - answer.sent)
        for arrival, stamp in zip(arrivals, stamps, strict=True):
            if self.begin <= arrival < self.end:
                self.delay.append(arrival - stamp)


def _percentiles(nanoseconds: Sequence[int]) -> list[float]:
    if not nanoseconds:
        return []
    ordered = sorted(nanoseconds)
    return [
        ordered[min(int(len(ordered) * share), len(ordered) - 1)] / 1e9 for share in (0.5, 0.99)
    ]
