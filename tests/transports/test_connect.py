"""Connecting by name: addresses in turns, a silent one not waited for, and nothing left open."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from qwen_asgi.transports import _connect
from qwen_asgi.transports._connect import Origin, connect

pytestmark = pytest.mark.anyio

GOOD, SILENT, CLOSED = "127.0.0.1", "127.0.0.2", "127.0.0.3"


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


class Listeners:
    """One port: GOOD takes connections, SILENT drops them, CLOSED refuses them."""

    def __init__(self) -> None:
        self.good = socket.create_server((GOOD, 0))
        self.good.setblocking(False)
        self.port = self.good.getsockname()[1]
        self.silent = socket.socket()
        self.silent.bind((SILENT, self.port))
        self.silent.listen(0)
        # Its queue is full, so that further connections are neither taken nor refused.
        self.fillers = []
        for _ in range(2):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex((SILENT, self.port))
            self.fillers.append(filler)

    def close(self) -> None:
        for each in [self.good, self.silent, *self.fillers]:
            each.close()

    @property
    def taken(self) -> list[socket.socket]:
        taken = []
        try:
            while True:
                taken.append(self.good.accept()[0])
        except BlockingIOError:
            return taken


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    listeners = Listeners()
    yield listeners
    listeners.close()


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has every name stand for these addresses."""

    def resolve(*addresses: str) -> None:
        async def found(self: object, *args: object, **options: object) -> list[Any]:
            families = {True: socket.AF_INET6, False: socket.AF_INET}
            return [(families[":" in a], socket.SOCK_STREAM, 6, "", (a, 0)) for a in addresses]

        class Loop:
            getaddrinfo = found

        original = _connect._addresses

        async def addresses_of(loop: Any, origin: Origin) -> Any:
            return await original(Loop(), origin)  # type: ignore[arg-type]

        monkeypatch.setattr(_connect, "_addresses", addresses_of)
        monkeypatch.setattr(_connect, "NEXT_ADDRESS_SECONDS", 0.2)

    return resolve


async def connect_to(port: int) -> Any:
    loop = asyncio.get_running_loop()
    return await connect(loop, Origin("qwen.example", port, False), None)


async def assert_all_closed(connections: list[socket.socket]) -> None:
    for connection in connections:
        connection.setblocking(True)
        connection.settimeout(2)
        assert await asyncio.to_thread(_is_closed, connection)
        connection.close()


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


async def test_a_silent_address_is_not_waited_for(listeners: Listeners, resolve: Any) -> None:
    resolve(SILENT, GOOD)
    began = time.monotonic()
    connection = await connect_to(listeners.port)
    assert 0.15 < time.monotonic() - began < 1.0
    assert connection.is_usable
    connection.close()
    await assert_all_closed(listeners.taken)


async def test_an_address_that_refuses_costs_no_time(listeners: Listeners, resolve: Any) -> None:
    resolve(CLOSED, GOOD)
    began = time.monotonic()
    connection = await connect_to(listeners.port)
    assert time.monotonic() - began < 0.15
    connection.close()
    await assert_all_closed(listeners.taken)


async def test_where_all_refuse_the_error_is_theirs(listeners: Listeners, resolve: Any) -> None:
    resolve(CLOSED, "127.0.0.4")
    with pytest.raises(ConnectionRefusedError):
        await connect_to(listeners.port)


async def test_the_first_that_answers_is_taken(listeners: Listeners, resolve: Any) -> None:
    resolve(GOOD, SILENT)
    connection = await connect_to(listeners.port)
    taken = listeners.taken
    assert len(taken) == 1
    connection.close()
    await assert_all_closed(taken)


@pytest.mark.parametrize("addresses", [(GOOD, SILENT), (SILENT, GOOD), (CLOSED, GOOD)])
async def test_a_connection_is_never_lost_whenever_it_is_cancelled(
    listeners: Listeners, resolve: Any, monkeypatch: pytest.MonkeyPatch, addresses: Any
) -> None:
    resolve(*addresses)
    monkeypatch.setattr(_connect, "NEXT_ADDRESS_SECONDS", 0.001)
    for turns in range(40):
        task = asyncio.create_task(connect_to(listeners.port))
        for _ in range(turns):
            await asyncio.sleep(0.0001 if turns % 2 else 0)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result().close()
        await asyncio.sleep(0.005)
        await assert_all_closed(listeners.taken)
    assert [t for t in asyncio.all_tasks() if "_connect_to" in repr(t)] == []


async def test_families_take_turns_and_each_address_is_tried_once(resolve: Any) -> None:
    resolve("::1", "::2", "10.0.0.1", "::1", "10.0.0.2")
    loop = asyncio.get_running_loop()
    found = await _connect._addresses(loop, Origin("qwen.example", 1, False))
    assert found == ["::1", "10.0.0.1", "::2", "10.0.0.2"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_address_is_not_looked_up(host: str) -> None:
    # It would fail: this loop looks nothing up.
    found = await _connect._addresses(object(), Origin(host, 1, False))  # type: ignore[arg-type]
    assert found == [host]


async def test_a_name_is_looked_up(listeners: Listeners) -> None:
    loop = asyncio.get_running_loop()
    connection = await connect(loop, Origin("localhost", listeners.port, False), None)
    assert connection.is_usable
    connection.close()
    await assert_all_closed(listeners.taken)
