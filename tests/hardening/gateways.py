"""All gateways of the fault matrix, mounted in one app, before one faulty upstream.

Nothing of it is a stub; it runs in this process, so that what it holds can be counted.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from itertools import product
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.routing import Mount

from qwen_asgi import Gateway, Settings, anonymous
from qwen_asgi.testing import serve
from tests.conftest import DIALECTS, MODEL
from tests.hardening.faulty_upstream import OPENINGS, FaultyUpstream
from tests.transports.torture import Do, TortureServer

LANES = ("direct", "httpx")
SILENCE = 2.0
"""Seconds that the gateways wait for an event."""

UP, REFUSED, HANGING, RESETTING, CLOSING = "up", "refused", "hanging", "resetting", "closing"
"""Addresses: of the faulty upstream, and those at which there is nobody, nobody who takes a
connection, or somebody who drops it at once."""


class Gateways:
    """All gateways behind one server, before one faulty upstream."""

    def __init__(self) -> None:
        self.upstream = FaultyUpstream()
        self.url = ""
        self.gateways: list[Gateway] = []
        self._clients: list[httpx.AsyncClient] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextmanager
    def running(self) -> Iterator[Gateways]:
        with ExitStack() as stack:
            addresses = {UP: stack.enter_context(self.upstream.running())}
            for address, context in _addresses().items():
                addresses[address] = stack.enter_context(context)
            mounts = [
                Mount(f"/{address}/{lane}/{dialect}", self._gateway(lane, dialect, url, address))
                for address, url in addresses.items()
                for lane, dialect in product(LANES, DIALECTS)
            ]
            self.url = stack.enter_context(serve(Starlette(routes=mounts, lifespan=self._lifespan)))
            yield self

    def _gateway(self, lane: str, dialect: str, url: str, address: str) -> Gateway:
        client = None
        if lane == "httpx":
            client = httpx.AsyncClient(trust_env=False)
            self._clients.append(client)
        settings = Settings(
            upstream=dialect,
            base_url=url + DIALECTS[dialect],
            api_key="k",
            models=(MODEL, *(f"fault-{number}" for number in range(OPENINGS))),
            connect_timeout=SILENCE / 2 if address == HANGING else SILENCE,
            first_timeout=SILENCE,
            idle_timeout=SILENCE,
        )
        gateway = Gateway(settings, http_client=client, authenticate=anonymous)
        self.gateways.append(gateway)
        return gateway

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            for gateway in self.gateways:
                await stack.enter_async_context(gateway.lifespan())
            yield
            await self._close_clients()

    def tasks(self) -> int:
        """How many tasks there are in the gateways' loop."""
        return int(self._in_loop(_count_tasks()))

    def chats(self) -> int:
        """How many are counted as open."""
        return sum(gateway._admission.open for gateway in self.gateways)

    def close_connections(self) -> None:
        """Close those that rest between the gateways and the upstream."""
        self._in_loop(self._close_connections())

    async def _close_connections(self) -> None:
        for gateway in self.gateways:
            await gateway.aclose()
        await self._close_clients()

    async def _close_clients(self) -> None:
        for client in self._clients:
            await client.aclose()

    def _in_loop(self, coroutine: Any) -> Any:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)


async def _count_tasks() -> int:
    return len(asyncio.all_tasks()) - 1


def _addresses() -> dict[str, AbstractContextManager[str]]:
    return {
        REFUSED: _refusing(),
        HANGING: _hanging(),
        RESETTING: _greeting(Do.RESET),
        CLOSING: _greeting(Do.CLOSE),
    }


@contextmanager
def _refusing() -> Iterator[str]:
    """A port that is taken, and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def _hanging() -> Iterator[str]:
    """A port whose queue of connections is full: the system answers no further one."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as stack:
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def _greeting(end: Do) -> Iterator[str]:
    server = TortureServer()
    server.greeting = (end,)
    with server.running():
        yield server.url.replace("localhost", "127.0.0.1")
