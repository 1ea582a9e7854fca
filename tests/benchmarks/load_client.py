"""The load client, as a program: `python -m tests.benchmarks.load_client`.

It reads commands from its standard input, one JSON object a line, and answers each with one line;
it ends when its input does. `driver` is the other end.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from typing import Any

from tests.benchmarks.accounting import ProcessGone, raise_file_limit
from tests.benchmarks.connection import Answer, Connection, connect, request_bytes
from tests.benchmarks.crowd import check_delivery
from tests.benchmarks.event_loop import run
from tests.benchmarks.held import SILENT, Held
from tests.benchmarks.loads import Load, Stuck
from tests.benchmarks.measuring import measure
from tests.benchmarks.scenarios import Scenario
from tests.benchmarks.templates import Template, WrongAnswer, learn
from tests.benchmarks.visitors import PLAIN, STREAM, Visits, visit

REFERENCE_WITHIN = 30.0

FAILURES: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (WrongAnswer, Stuck, ProcessGone)
}
"""What a command may fail with, by the name that goes over the pipe."""


class LoadClient:
    """What the program can do, each method a command."""

    def __init__(self) -> None:
        self._templates: dict[tuple[int, int], Template] = {}
        """By a target's port and a scenario's number of frames."""
        self._held: Held | None = None
        self.commands: dict[str, Callable[..., Awaitable[Any]]] = {
            "measure": self.measure,
            "hold": self.hold,
            "release": self.release,
            "visit": self.visit,
        }

    async def measure(self, **load: Any) -> dict[str, Any]:
        load_ = Load(**load)
        template = await self._template(load_.port, load_.frames, load_.relayed)
        # No collection in the midst of it: it would show as a delay of the target's.
        gc.collect()
        gc.disable()
        try:
            outcome = await measure(load_, template)
        finally:
            gc.enable()
        if self._held is not None:
            # The target has worked for these too.
            background = self._held.chunks(outcome.begin, outcome.end)
            outcome = replace(outcome, chunks=outcome.chunks + background)
        return asdict(outcome)

    async def hold(self, port: int, relayed: bool, streams: int, within: float) -> None:
        template = await self._template(port, SILENT.frames, relayed)
        if self._held is not None:
            # Left over from a measure that failed.
            self._held.drop()
        held = Held(port, template)
        try:
            await held.open(streams, within)
        except BaseException:
            held.drop()
            raise
        self._held = held

    async def release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.release()

    async def visit(self, relayed: bool, **visits: Any) -> dict[str, Any]:
        visits_ = Visits(**visits)
        plain = await self._template(visits_.port, PLAIN.frames, relayed)
        stream = await self._template(visits_.port, STREAM.frames, relayed)
        return asdict(await visit(visits_, plain, stream))

    async def _template(self, port: int, frames: int, relayed: bool) -> Template:
        """Return what to compare with, from one answer that is read field by field."""
        key = port, frames
        if key not in self._templates:
            answer = await _one_answer(port, Scenario(frames))
            self._templates[key] = learn(frames, answer.body, relayed=relayed)
        return self._templates[key]


async def _one_answer(port: int, scenario: Scenario) -> Answer:
    over = asyncio.Event()

    def ended(connection: Connection, answer: Answer) -> None:
        over.set()

    try:
        connection = await connect(port, ended)
    except OSError as exc:
        raise Stuck(f"it takes no connection: {exc}") from None
    answer = connection.ask(request_bytes(port, scenario.request()))
    try:
        async with asyncio.timeout(REFERENCE_WITHIN):
            await over.wait()
    except TimeoutError:
        raise Stuck(f"no answer within {REFERENCE_WITHIN:g} s") from None
    finally:
        connection.leave()
    check_delivery(answer)
    return answer


async def serve() -> None:
    client = LoadClient()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command: dict[str, Any] = json.loads(line)
        try:
            result = {"result": await client.commands[command.pop("do")](**command)}
        except tuple(FAILURES.values()) as exc:
            result = {"failure": type(exc).__name__, "words": str(exc)}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    raise_file_limit()
    run(serve())
