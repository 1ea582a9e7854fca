"""How long each wait is, and what does not make it longer."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from qwen_asgi.errors import UpstreamTimeout
from tests.transports.exchanges import Lane, call, check_healthy, outcome
from tests.transports.torture import CHUNKED_HEAD, Do, Step, TortureServer, answer, chunk, chunked

pytestmark = pytest.mark.anyio

HEAD = CHUNKED_HEAD[:-2]


@contextmanager
def takes(seconds: float) -> Iterator[None]:
    """Check that the block takes about so long."""
    start = time.monotonic()
    yield
    taken = time.monotonic() - start
    assert seconds * 0.95 < taken < seconds + 0.35, taken


def drip(piece: bytes, pause: float = 0.01, times: int = 200) -> list[Step]:
    return [piece, pause] * times


SLOW_HEADS: dict[str, list[Step]] = {
    "nothing": [],
    "a part": [HEAD],
    "letters": [b"HTTP/1.1 200 OK\r\nx: ", *drip(b"v")],
    "headers": [b"HTTP/1.1 200 OK\r\n", *drip(b"x: y\r\n")],
    "1xx": drip(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "blank lines": drip(b"\r\n"),
}


@pytest.mark.parametrize("name", SLOW_HEADS)
async def test_the_head_is_waited_for_so_long(
    lane: Lane, torture: TortureServer, name: str
) -> None:
    if not lane.is_direct and name == "blank lines":
        pytest.skip("h11 takes an empty line for an answer that is none")
    transport = lane(max_connections=1)
    torture.then(*SLOW_HEADS[name], Do.WAIT)
    with takes(0.1):
        got = await outcome(transport, call(torture.url), head=0.1)
    assert (got.error, got.status) == (UpstreamTimeout, 0)
    await torture.until(lambda: torture.open == 0)
    await check_healthy(transport, torture)


SLOW_BODIES: dict[str, tuple[list[Step], bytes]] = {
    "nothing": ([CHUNKED_HEAD], b""),
    "between": ([CHUNKED_HEAD, 0.05, chunk(b"hello")], b"hello"),
    "in a chunk": ([CHUNKED_HEAD + chunk(b"hello!")[:-3]], b"hello"),
    "at the end": ([chunked(b"hello")[:-1]], b"hello"),
    "content-length": ([answer(b"hello!")[:-1]], b"hello"),
    "its own end": ([b"HTTP/1.1 200 OK\r\n\r\nhello"], b"hello"),
}
"""What comes before the silence, and its part of the body."""


@pytest.mark.parametrize("name", SLOW_BODIES)
async def test_each_piece_is_waited_for_so_long(
    lane: Lane, torture: TortureServer, name: str
) -> None:
    transport = lane(max_connections=1)
    steps, expected = SLOW_BODIES[name]
    torture.then(*steps, Do.WAIT)
    async with transport.open(call(torture.url), within=5) as response:
        body = b""
        while body != expected:
            body += await response.read(1)
        with takes(0.1), pytest.raises(UpstreamTimeout):
            await response.read(0.1)
    await torture.until(lambda: torture.open == 0)
    await check_healthy(transport, torture)


DRIPS: dict[str, list[Step]] = {
    "a chunk's extension": [b"5;", *drip(b"x")],
    "a chunk's size": drip(b"0", times=12),
    "a trailer": [b"0\r\nx: ", *drip(b"x")],
    "trailers": [b"0\r\n", *drip(b"x: y\r\n")],
}


@pytest.mark.parametrize("name", DRIPS)
async def test_what_does_not_bring_the_body_on_is_silence(
    lane: Lane, torture: TortureServer, name: str
) -> None:
    transport = lane(max_connections=1)
    torture.then(CHUNKED_HEAD + chunk(b"hello"), *DRIPS[name], Do.WAIT)
    async with transport.open(call(torture.url), within=5) as response:
        assert await response.read(5) == b"hello"
        with takes(0.1), pytest.raises(UpstreamTimeout):
            await response.read(0.1)
    await check_healthy(transport, torture)


async def test_a_slow_answer_that_goes_on_may_take_longer_than_one_wait(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane()
    torture.then(0.1, CHUNKED_HEAD, *drip(chunk(b"x"), 0.03, 8), b"0\r\n\r\n")
    got = await outcome(transport, call(torture.url), head=0.15, within=0.15)
    assert (got.body, got.error) == (b"x" * 8, None)
    await check_healthy(transport, torture)


async def test_a_wait_is_as_long_as_said_after_a_longer_and_a_shorter_one(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane()
    for first, second in ((5.0, 0.1), (0.1, 0.2)):
        torture.then(CHUNKED_HEAD, 0.02, chunk(b"hello"), Do.WAIT)
        async with transport.open(call(torture.url), within=5) as response:
            assert await response.read(first) == b"hello"
            with takes(second), pytest.raises(UpstreamTimeout):
                await response.read(second)
    await check_healthy(transport, torture)


async def test_no_time_is_no_time(lane: Lane, torture: TortureServer) -> None:
    transport = lane(max_connections=1)
    for _ in range(5):
        with takes(0.0):
            got = await outcome(transport, call(torture.url), head=0.0)
        assert got.error is not None
        assert issubclass(got.error, UpstreamTimeout)
    await check_healthy(transport, torture)


async def test_what_has_arrived_is_read_without_waiting(lane: Lane, torture: TortureServer) -> None:
    transport = lane()
    torture.then(CHUNKED_HEAD + chunk(b"hello"), 0.02, b"0\r\n\r\n")
    async with transport.open(call(torture.url), within=5) as response:
        await torture.until(lambda: len(torture.requests) == 1)
        await asyncio.sleep(0.05)
        assert await response.read(0.05) == b"hello"
        assert await response.read(0.05) == b""
    await check_healthy(transport, torture)


# Connecting.


@contextmanager
def full_backlog() -> Iterator[str]:
    """A listening socket which answers no further connection."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            connection = stack.enter_context(socket.socket())
            connection.setblocking(False)
            connection.connect_ex(listener.getsockname())
        time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(("connect", "head"), [(0.1, 5.0), (5.0, 0.1)], ids=["connect", "within"])
async def test_a_connection_is_waited_for_so_long(
    lane: Lane, torture: TortureServer, connect: float, head: float
) -> None:
    transport = lane(max_connections=1, connect_timeout=connect)
    with full_backlog() as url:
        with takes(0.1):
            got = await outcome(transport, call(url), head=head)
        assert got.error is not None
        assert issubclass(got.error, UpstreamTimeout)
        await check_healthy(transport, torture)
        with takes(0.2):
            for _ in range(2):
                got = await outcome(transport, call(url), head=head)
    assert got.error is not None
    assert issubclass(got.error, UpstreamTimeout)
