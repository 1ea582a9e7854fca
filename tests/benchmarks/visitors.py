"""The clients of a soak: plain requests and streams, of which some leave before the end.

This runs in the load client's process. Nothing is measured here; every answer is checked, those
that were left as far as they came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from tests.benchmarks.connection import Answer, Connection, connect, request_bytes
from tests.benchmarks.crowd import GOLDEN, check_delivery
from tests.benchmarks.loads import Stuck
from tests.benchmarks.scenarios import Scenario
from tests.benchmarks.templates import Template

PLAIN = Scenario(frames=0)
STREAM = Scenario(frames=64, pace_ms=2)

PLAIN_LIFE = 0.004
"""Seconds within which those that leave a plain request do so: before, in and after the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visits:
    """What is to be asked for."""

    port: int
    requests: int
    streams: int
    connections: int
    """Of each of the two kinds."""
    leaving: float
    """The share of the clients that leave early."""


@dataclass(slots=True)
class Visited:
    """What came of it."""

    answers: int = 0
    chunks: int = 0
    left: int = 0


async def visit(visits: Visits, plain: Template, stream: Template) -> Visited:
    """Raises WrongAnswer, Stuck."""
    visited = Visited()
    plans = _plans(visits.requests, visits.leaving), _plans(visits.streams, visits.leaving)
    kinds = (PLAIN, plain), (STREAM, stream)
    try:
        async with asyncio.TaskGroup() as tasks:
            for plan, (scenario, template) in zip(plans, kinds, strict=True):
                for _ in range(visits.connections):
                    visitor = _Visitor(visits.port, scenario, template, visited)
                    tasks.create_task(visitor.go(plan))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return visited


def _plans(number: int, leaving: float) -> Iterator[float | None]:
    """Yield for each visit after which share of the answer its client leaves; None is not."""
    for visit in range(number):
        share = visit * GOLDEN % 1
        yield share / leaving if share < leaving else None


class _Visitor:
    """One client after another, on one connection as long as it lasts."""

    def __init__(self, port: int, scenario: Scenario, template: Template, visited: Visited) -> None:
        self._port = port
        self._scenario = scenario
        self._template = template
        self._visited = visited
        self._request = request_bytes(port, scenario.request())
        self._life = scenario.life or PLAIN_LIFE
        self._connection: Connection | None = None
        self._is_over = asyncio.Event()

    async def go(self, plan: Iterator[float | None]) -> None:
        for share in plan:
            await self._visit(share)
        if self._connection is not None:
            self._connection.leave()

    async def _visit(self, share: float | None) -> None:
        connection = self._connection
        if connection is None or not connection.is_open:
            connection = self._connection = await connect(self._port, self._ended)
        self._is_over.clear()
        answer = connection.ask(self._request)
        try:
            async with asyncio.timeout(60 if share is None else share * self._life):
                await self._is_over.wait()
        except TimeoutError:
            if share is None:
                raise Stuck("an answer did not end within 60 s") from None
            connection.leave()
            self._visited.left += 1
        else:
            check_delivery(answer)
        self._count(answer, whole=self._is_over.is_set())

    def _ended(self, connection: Connection, answer: Answer) -> None:
        self._is_over.set()

    def _count(self, answer: Answer, *, whole: bool) -> None:
        self._visited.answers += 1
        if self._scenario.frames:
            stamps = self._template.check_stamped(answer.body, whole=whole)
            self._visited.chunks += len(stamps)
        else:
            self._template.check(answer.body, whole=whole)
