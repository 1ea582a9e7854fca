"""Requests that are given up, at any moment: the upstream sees it, and no other request does."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import pytest

from qwen_asgi.errors import Overloaded, UpstreamTimeout
from qwen_asgi.transports import Transport, UpstreamResponse
from tests.transports.exchanges import Lane, Outcome, call, check_healthy, outcome
from tests.transports.test_time import full_backlog
from tests.transports.torture import (
    CHUNKED_HEAD,
    Do,
    Flood,
    Script,
    TortureServer,
    answer,
    chunk,
    chunked,
)

pytestmark = pytest.mark.anyio

HANDSHAKE = "httpcore leaves a connection that is cancelled inside the handshake to the collector"


async def turns(number: int) -> None:
    """Let the loop turn so many times."""
    for _ in range(number):
        await asyncio.sleep(0)


async def cancel(task: asyncio.Task[Outcome]) -> None:
    """Cancel a task; it must obey, unless it was done."""
    is_cancelled = task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() or not is_cancelled
    if not task.cancelled():
        task.result()


async def check_left(torture: TortureServer) -> None:
    """All connections are closed, as the server sees it, and soon."""
    start = time.monotonic()
    await torture.until(lambda: torture.open == 0)
    assert time.monotonic() - start < 0.25


async def check_capacity(transport: Transport, torture: TortureServer, limit: int) -> None:
    """Exactly `limit` requests can be under way, and all of them are served."""
    torture.default = (CHUNKED_HEAD + chunk(b"hello"), Do.WAIT)
    async with AsyncExitStack() as stack:
        for _ in range(limit):
            response = await stack.enter_async_context(transport.open(call(torture.url), within=5))
            assert await response.read(5) == b"hello"
        with pytest.raises(Overloaded):
            await stack.enter_async_context(transport.open(call(torture.url), within=0.05))
    await check_left(torture)
    await check_healthy(transport, torture)


SCRIPTS: dict[str, tuple[Script, int]] = {
    "answered": ((answer(b"hello"),), 0),
    "before the head": ((Do.WAIT,), 0),
    "inside the head": ((b"HTTP/1.1 200 OK\r\nx: ", Do.WAIT), 0),
    "before the body": ((CHUNKED_HEAD, Do.WAIT), 0),
    "inside the body": ((CHUNKED_HEAD, chunk(b"hello"), Do.WAIT), 0),
    "under a flood": ((CHUNKED_HEAD, Flood(chunk(b"x" * 65_536), 500)), 0),
    "while sending": ((Do.EARLY, 0.02, Do.CLOSE), 5_000_000),
    "at the end": ((chunked(b"hello")[:-2], 0.0, b"\r\n"), 0),
    "as it breaks": ((chunked(b"hello")[:-2], Do.RESET), 0),
}


@pytest.mark.parametrize("name", SCRIPTS)
async def test_a_request_may_be_cancelled_after_any_number_of_the_loop_s_turns(
    lane: Lane, torture: TortureServer, name: str
) -> None:
    transport = lane(max_connections=2)
    torture.default, size = SCRIPTS[name]
    for number in range(0, 61, 1 if size == 0 else 4):
        task = asyncio.create_task(outcome(transport, call(torture.url, size=size)))
        await turns(number)
        await cancel(task)
    if name != "answered" and name != "at the end":
        await check_left(torture)
    await check_capacity(transport, torture, 2)


@pytest.mark.parametrize("name", SCRIPTS)
async def test_a_request_may_be_cancelled_at_any_moment(
    lane: Lane, torture: TortureServer, name: str
) -> None:
    """Those that wait for the server are caught at a place that turns alone do not reach."""
    transport = lane(max_connections=2)
    torture.default, size = SCRIPTS[name]
    for step in range(10):
        task = asyncio.create_task(outcome(transport, call(torture.url, size=size)))
        await asyncio.sleep(step * 0.0006)
        await cancel(task)
    await check_capacity(transport, torture, 2)


@pytest.mark.parametrize("kind", ["answered", "stalled", "mixed", "impatient", "twice"])
async def test_a_storm_of_cancellations_leaves_a_transport_that_works(
    lane: Lane, torture: TortureServer, kind: str
) -> None:
    """Twenty workers on ten connections, each cancelled within three milliseconds."""
    transport = lane(max_connections=10)
    scripts = {
        "answered": [SCRIPTS["answered"][0]],
        "stalled": [SCRIPTS["inside the body"][0]],
    }
    choices = scripts.get(kind, [script for script, size in SCRIPTS.values() if not size])
    dice = random.Random(kind)
    torture.default = SCRIPTS["answered"][0]
    for _ in range(1000):
        torture.then(*dice.choice(choices))

    async def worker() -> None:
        for _ in range(25):
            # Deadlines that come in the same moment are one more way to leave.
            head = dice.uniform(0, 0.003) if kind == "impatient" else 5.0
            task = asyncio.create_task(outcome(transport, call(torture.url), head=head))
            await asyncio.sleep(dice.uniform(0, 0.003))
            if kind == "twice" and task.cancel():
                # So a host may do, while the first is still being obeyed.
                await turns(dice.randrange(4))
            await cancel(task)

    await asyncio.gather(*(worker() for _ in range(20)))
    torture.clear()
    await check_capacity(transport, torture, 10)
    for _ in range(3):
        got = await asyncio.gather(*(outcome(transport, call(torture.url)) for _ in range(10)))
        assert {(each.status, each.body) for each in got} == {(200, b"fine")}


async def test_a_request_may_be_cancelled_again_while_it_obeys(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane(max_connections=3)
    torture.default = SCRIPTS["inside the body"][0]
    for number in range(20):
        task = asyncio.create_task(outcome(transport, call(torture.url)))
        await asyncio.sleep(0.003)
        for _ in range(4):
            task.cancel()
            await turns(number % 5)
        await asyncio.wait([task])
        assert task.cancelled()
    await check_left(torture)
    await check_capacity(transport, torture, 3)


# In line.


@pytest.mark.parametrize("is_kept", [True, False], ids=["a connection", "a place"])
@pytest.mark.parametrize("number", [-1, 0, 1, 2, 3, 4, 5])
async def test_what_is_handed_to_one_who_leaves_goes_to_the_next_in_line(
    lane: Lane, torture: TortureServer, number: int, is_kept: bool
) -> None:
    """The first in line is cancelled so many turns after it was handed over, or just before."""
    transport = lane(max_connections=1)
    for _ in range(5):
        torture.default = (answer(b"fine"),)
        torture.then(*(SCRIPTS["answered" if is_kept else "inside the body"][0]))
        held = transport.open(call(torture.url), within=5)
        response = await held.__aenter__()
        if is_kept:
            while await response.read(5):
                pass
        first, second = (
            asyncio.create_task(outcome(transport, call(torture.url))) for _ in range(2)
        )
        await turns(3)
        if number < 0:
            first.cancel()
        leaving = asyncio.ensure_future(_leave(held))
        await turns(number)
        await cancel(first)
        assert (await asyncio.wait_for(second, 2)).body == b"fine"
        await leaving
    await check_capacity(transport, torture, 1)


async def _leave(held: AbstractAsyncContextManager[UpstreamResponse]) -> None:
    await held.__aexit__(None, None, None)


async def test_who_leaves_the_line_is_not_waited_for(lane: Lane, torture: TortureServer) -> None:
    transport = lane(max_connections=1)
    torture.then(CHUNKED_HEAD, Do.WAIT)
    async with transport.open(call(torture.url), within=5):
        line = [asyncio.create_task(outcome(transport, call(torture.url))) for _ in range(50)]
        await turns(3)
        for task in line[:-1]:
            await cancel(task)
    assert (await asyncio.wait_for(line[-1], 2)).body == b"ok"
    assert len(torture.requests) == 2
    await check_capacity(transport, torture, 1)


async def test_a_wait_in_line_that_ends_by_its_deadline_as_its_turn_comes(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane(max_connections=1, connect_timeout=0.02)
    torture.default = (answer(b"fine"),)
    served = 0
    for step in range(20):
        async with transport.open(call(torture.url), within=5) as response:
            while await response.read(5):
                pass
            waiting = asyncio.create_task(outcome(transport, call(torture.url)))
            await asyncio.sleep(0.015 + step * 0.0004)
            if step % 2:
                time.sleep(0.005)  # noqa: ASYNC251 Both come in one turn of the loop.
        got = await waiting
        assert got.error in (None, Overloaded)
        served += got.error is None
    assert 0 < served < 20
    await check_capacity(transport, torture, 1)


# While connecting.


async def test_a_request_may_be_cancelled_while_it_connects(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane(max_connections=1)
    with full_backlog() as url:
        for number in range(10):
            task = asyncio.create_task(outcome(transport, call(url)))
            await (turns(number) if number < 5 else asyncio.sleep(0.002 * number))
            await cancel(task)
        # The place is free: this one waits for the network, not in line.
        got = await outcome(transport, call(url), head=0.05)
        assert got.error is not None
        assert issubclass(got.error, UpstreamTimeout)
    await check_capacity(transport, torture, 1)


async def test_a_request_may_be_cancelled_inside_the_tls_handshake(
    lane: Lane, torture: TortureServer
) -> None:
    if not lane.is_direct:
        pytest.skip(HANDSHAKE)
    transport = lane(max_connections=2)
    torture.greeting = (Do.WAIT,)
    url = torture.url.replace("http:", "https:")
    for _ in range(5):
        visits = len(torture.visits)
        task = asyncio.create_task(outcome(transport, call(url)))
        await torture.until(lambda: torture.visits[-1:] and torture.visits[-1].read)
        await cancel(task)
        await check_left(torture)
        assert len(torture.visits) > visits
        torture.visits.clear()
    got = await outcome(transport, call(url), head=0.05)
    assert got.error is not None
    assert issubclass(got.error, UpstreamTimeout)
    await check_left(torture)
    torture.greeting = ()
    await check_healthy(transport, torture)
