"""One kind of trial: what was tried, how often, and what was lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen_asgi import Gateway
from qwen_asgi.testing import SimulatedQwen, serve
from tests.conftest import eventually

MOST_SHOWN = 20


@dataclass
class Trial:
    name: str
    tried: int = 0
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    not_run: str = ""
    """Why nothing was tried, if what it takes is not here."""

    def check(self, is_right: object, what: str) -> None:
        """Count one try; write down what it was if it did not come out right."""
        self.tried += 1
        if not is_right:
            self.lost.append(what)

    def row(self) -> str:
        if self.not_run:
            return f"| {self.name} | none | NOT RUN | {self.not_run} |"
        lost = "nothing" if not self.lost else str(len(self.lost))
        return f"| {self.name} | {self.tried:,} | {lost} | {'; '.join(self.notes)} |"


def table(trials: list[Trial]) -> str:
    head = "| what was tried | times | lost | |\n| --- | --- | --- | --- |\n"
    return head + "".join(trial.row() + "\n" for trial in trials)


class Served:
    """A gateway on a real socket, whose event loop can be looked into."""

    def __init__(
        self,
        gateway: Gateway,
        client: httpx.AsyncClient | None = None,
        app: ASGIApp | None = None,
    ) -> None:
        """`client` is what the gateway was given, and does not close; `app` is a host around it."""
        self.gateway = gateway
        self._app = app or gateway
        self.url = ""
        self._client = client
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._loop = asyncio.get_running_loop()

        async def close_first(message: Message) -> None:
            if message["type"] == "lifespan.shutdown.complete" and self._client is not None:
                await self._client.aclose()
            await send(message)

        await self._app(scope, receive, close_first)

    def tasks(self) -> int:
        """How many tasks there are in its loop."""
        assert self._loop is not None
        while True:
            try:
                return len(asyncio.all_tasks(self._loop))
            except RuntimeError:
                # They changed while they were counted.
                time.sleep(0.001)


@contextmanager
def served(
    gateway: Gateway,
    client: httpx.AsyncClient | None = None,
    app: ASGIApp | None = None,
    **uvicorn_options: Any,
) -> Iterator[Served]:
    it = Served(gateway, client, app)
    with serve(it, **uvicorn_options) as url:
        it.url = url
        yield it


def check_that_nothing_is_left(
    trial: Trial, app: Served, qwen: SimulatedQwen, tasks_before: int
) -> None:
    """Whatever was tried, afterwards nothing of it goes on."""
    for what, is_so in {
        "an upstream call is open": lambda: qwen.open == 0,
        "a chat is counted as open": lambda: app.gateway._admission.open == 0,
        "a task goes on": lambda: app.tasks() <= tasks_before,
    }.items():
        try:
            eventually(is_so, 5)
            trial.check(True, what)
        except AssertionError:
            trial.check(False, f"{what} ({app.tasks()} tasks, {tasks_before} before)")


def upstream_settings(dialect: str, url: str, path: str) -> dict[str, Any]:
    return {"upstream": dialect, "base_url": url + path, "api_key": "k"}
