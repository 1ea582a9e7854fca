"""Connections that keep a target busy. This runs in the load client's process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from tests.benchmarks.connection import Answer, Connection, connect, request_bytes
from tests.benchmarks.loads import Load, Stuck
from tests.benchmarks.templates import WrongAnswer

GOLDEN = 0.6180339887498949
"""The golden ratio: the fractional parts of its multiples fall evenly, however many they are."""


class Crowd:
    """Connections that each ask again as soon as they are answered: `go`, `rest`, and again."""

    def __init__(self, load: Load, answered: Callable[[Answer], None]) -> None:
        self._load = load
        self._answered = answered
        self._request = request_bytes(load.port, load.scenario.request())
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._resting = True
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended = 0
        """Answers that came to their end."""

    async def gather(self) -> None:
        """Open the connections. Raises Stuck."""
        for _ in range(self._load.connections):
            self._connections.add(await self._connect())

    def go(self) -> None:
        """Begin all at once."""
        self._resting = False
        for connection in list(self._connections):
            self._ask(connection)

    async def go_spread(self, seconds: float) -> None:
        """Begin all, spread evenly over a time, and return when it is over."""
        self._resting = False
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for number, connection in enumerate(list(self._connections)):
            # Evenly on the life of a stream, and on the time between two frames too.
            loop.call_at(begin + seconds * (number * GOLDEN % 1), self._ask, connection)
        await self.sleep(seconds)

    async def sleep(self, seconds: float) -> None:
        """Let it go on for that long. Raises WrongAnswer or Stuck as soon as one is known."""
        done, _ = await asyncio.wait({self._failed}, timeout=max(seconds, 0))
        if done:
            self._failed.result()

    async def rest(self) -> bool:
        """Wait until what is under way has ended; return whether it has, in time."""
        self._resting = True
        deadline = monotonic() + self._load.patience
        while any(c.answer for c in self._connections) and monotonic() < deadline:
            await self.sleep(0.002)
        # The last of them may have been the wrong one.
        await self.sleep(0)
        return not any(c.answer for c in self._connections)

    def cut(self) -> list[Answer]:
        """Leave at once; return what was under way."""
        self._resting = True
        for task in self._tasks:
            task.cancel()
        answers = [c.answer for c in self._connections if c.answer is not None]
        for connection in self._connections:
            connection.leave()
        self._connections.clear()
        return answers

    def _ask(self, connection: Connection) -> None:
        if self._resting:
            return
        if connection.is_open:
            connection.ask(self._request)
            return
        # Servers may close a connection between two requests.
        self._connections.discard(connection)
        task = asyncio.create_task(self._ask_anew())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask_anew(self) -> None:
        try:
            connection = await self._connect()
        except Stuck as exc:
            self._fail(exc)
            return
        self._connections.add(connection)
        self._ask(connection)

    async def _connect(self) -> Connection:
        try:
            return await connect(self._load.port, self._ended)
        except OSError as exc:
            raise Stuck(f"it takes no connection: {exc}") from None

    def _ended(self, connection: Connection, answer: Answer) -> None:
        self.ended += 1
        self._ask(connection)
        try:
            check_delivery(answer)
            self._answered(answer)
        except (WrongAnswer, Stuck) as exc:
            self._fail(exc)

    def _fail(self, reason: Exception) -> None:
        self._resting = True
        if not self._failed.done():
            self._failed.set_exception(reason)


def check_delivery(answer: Answer) -> None:
    """Raises Stuck for a refusal or a cut, which a target may well do under load."""
    if answer.broken:
        raise Stuck(f"it closed the connection after {answer.size} bytes of an answer")
    if answer.status != 200:
        raise Stuck(f"it answered {answer.status}: {answer.body[:300]!r}")
