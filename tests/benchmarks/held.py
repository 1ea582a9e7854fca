"""Many streams that are open and nearly silent, beside which something else is measured.

This runs in the load client's process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.benchmarks.connection import Answer, Connection, connect, request_bytes
from tests.benchmarks.crowd import check_delivery
from tests.benchmarks.loads import Stuck
from tests.benchmarks.scenarios import Scenario
from tests.benchmarks.templates import Template

SILENT = Scenario(frames=120, pace_ms=10_000)
"""Its client always leaves first. A gateway that breaks a silence does so after 15 seconds."""

AT_ONCE = 32
"""How many streams may wait for their first bytes while a crowd of them is opened."""


class Held:
    """`open` once, then `release` once."""

    def __init__(self, port: int, template: Template) -> None:
        self._port = port
        self._template = template
        self._request = request_bytes(port, SILENT.request())
        self._connections: list[Connection] = []
        self._lost: list[Answer] = []

    async def open(self, number: int, within: float) -> None:
        """Open streams until that many have sent their first chunk; `within` is in seconds.

        Raises Stuck when they do not.
        """
        slots = asyncio.Semaphore(AT_ONCE)
        opening = [asyncio.create_task(self._open_one(slots)) for _ in range(number)]
        done, pending = await asyncio.wait(opening, timeout=within)
        for task in pending:
            task.cancel()
        errors = [error for task in done if (error := task.exception())]
        begun = len(done) - len(errors)
        if begun < number:
            why = f"{errors[0]}" if errors else f"no more within {within:g} s"
            raise Stuck(f"only {begun} of {number} streams open: {why}")

    def release(self) -> None:
        """Leave all. Raises Stuck if one ended by itself, WrongAnswer if one went wrong."""
        answers = [c.answer for c in self._connections if c.answer is not None]
        self.drop()
        for answer in self._lost:
            check_delivery(answer)
            raise Stuck("a stream ended that should have gone on")
        for answer in answers:
            self._template.check_stamped(answer.body, whole=False)

    def drop(self) -> None:
        """Leave all, right or not."""
        for connection in self._connections:
            connection.leave()
        self._connections.clear()

    def chunks(self, begin: int, end: int) -> int:
        """Return how many chunks came between two moments, in nanoseconds."""
        answers: Sequence[Answer] = [c.answer for c in self._connections if c.answer is not None]
        return sum(begin <= at < end for answer in answers for _, at in answer.marks)

    async def _open_one(self, slots: asyncio.Semaphore) -> None:
        async with slots:
            begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def is_begun() -> None:
                if not begun.done():
                    begun.set_result(None)

            def is_lost(connection: Connection, answer: Answer) -> None:
                self._lost.append(answer)
                is_begun()

            connection = await connect(self._port, is_lost, is_begun)
            self._connections.append(connection)
            connection.ask(self._request)
            await begun
            if connection.answer is None:
                check_delivery(self._lost[-1])
                raise Stuck("a stream ended that should have gone on")
