"""How many connections there are, who waits for one, and which are used again."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import threading
import time

import pytest

from qwen_asgi.errors import Overloaded, UpstreamTruncated
from qwen_asgi.transports import Transport, _pool
from qwen_asgi.transports import httpx as httpx_lane
from qwen_asgi.transports._connection import Connection
from tests.transports.exchanges import KEY, Lane, Outcome, call, check_healthy, outcome, read
from tests.transports.torture import CHUNKED_HEAD, Do, Flood, TortureServer, answer, chunk

pytestmark = pytest.mark.anyio


async def test_there_are_never_more_connections_than_allowed(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane(max_connections=7)
    torture.default = (0.002, CHUNKED_HEAD, chunk(b"he"), 0.002, chunk(b"llo") + b"0\r\n\r\n")
    results = await asyncio.gather(*(outcome(transport, call(torture.url)) for _ in range(200)))
    assert {(got.status, got.body, got.error) for got in results} == {(200, b"hello", None)}
    assert len(torture.requests) == 200
    assert torture.most_open == len(torture.visits) == 7


async def test_broken_connections_make_place_for_new_ones(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane(max_connections=5)
    torture.default = (0.001, answer(b"hello")[:-1], Do.CLOSE)
    results = await asyncio.gather(*(outcome(transport, call(torture.url)) for _ in range(50)))
    assert {got.error for got in results} == {UpstreamTruncated}
    assert len(torture.visits) == 50
    # The server sees a connection end a moment after the client has ended it.
    assert torture.most_open <= 10
    await check_healthy(transport, torture)


async def test_who_waits_is_served_in_turn(lane: Lane, torture: TortureServer) -> None:
    transport = lane(max_connections=1)
    torture.default = (0.002, answer())
    served: list[int] = []

    async def one(number: int) -> None:
        await outcome(transport, call(torture.url))
        served.append(number)

    await asyncio.gather(*(one(number) for number in range(20)))
    assert served == list(range(20))


@pytest.mark.parametrize(("connect", "head"), [(0.1, 5.0), (5.0, 0.1)], ids=["connect", "within"])
async def test_the_wait_in_line_has_an_end_that_says_what_to_do(
    lane: Lane, torture: TortureServer, connect: float, head: float
) -> None:
    transport = lane(max_connections=1, connect_timeout=connect)
    torture.then(CHUNKED_HEAD, Do.WAIT)
    async with transport.open(call(torture.url), within=5):
        start = time.monotonic()
        with pytest.raises(Overloaded, match="QWEN_MAX_CONNECTIONS") as caught:
            async with transport.open(call(torture.url), within=head):
                pass
        assert 0.09 < time.monotonic() - start < 0.5
        assert (caught.value.status, caught.value.retry_after) == (503, 1)
    assert len(torture.requests) == 1
    await check_healthy(transport, torture)


async def test_the_wait_in_line_is_part_of_the_time_for_the_head(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane(max_connections=1)
    torture.then(CHUNKED_HEAD, Do.WAIT)
    torture.then(Do.WAIT)
    held = transport.open(call(torture.url), within=5)
    await held.__aenter__()
    start = time.monotonic()
    waiting = asyncio.create_task(outcome(transport, call(torture.url), head=0.4))
    await asyncio.sleep(0.25)
    await held.__aexit__(None, None, None)
    got = await waiting
    assert got.status == 0
    assert got.error is not None
    assert 0.38 < time.monotonic() - start < 0.6
    await check_healthy(transport, torture)


async def test_a_connection_that_could_not_be_opened_gives_its_place_to_the_next(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane(max_connections=2)
    torture.greeting = (Do.RESET,)
    results = await asyncio.gather(*(outcome(transport, call(torture.url)) for _ in range(20)))
    assert all(got.error for got in results)
    torture.greeting = ()
    await check_healthy(transport, torture)


async def test_the_connection_that_was_used_last_is_used_next(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane(max_connections=5)
    torture.default = (0.01, answer())
    await asyncio.gather(*(outcome(transport, call(torture.url)) for _ in range(5)))
    assert len(torture.visits) == 5
    for _ in range(10):
        await outcome(transport, call(torture.url))
    assert sorted(visit.requests for visit in torture.visits) == [1, 1, 1, 1, 11]


# Connections that end while nobody uses them.


@pytest.mark.parametrize("end", [Do.CLOSE, Do.RESET], ids=["closed", "reset"])
@pytest.mark.parametrize("pause", [0.0, 0.05], ids=["at once", "later"])
async def test_a_connection_that_was_closed_while_idle_is_not_used(
    lane: Lane, torture: TortureServer, pause: float, end: Do
) -> None:
    transport = lane(max_connections=2)
    for round in range(3):
        torture.then(answer(b"hello"), pause, end)
        got = await outcome(transport, call(torture.url))
        assert (got.body, got.error) == (b"hello", None), (round, got)
        visit = torture.visits[-1]
        await torture.until(lambda visit=visit: visit.closed)  # type: ignore[misc]
        if round == 1:
            # The loop has no chance to see it before the next request.
            time.sleep(0.005)  # noqa: ASYNC251
        await check_healthy(transport, torture)
        torture.then(answer(b"again"), Do.CLOSE)
        assert (await outcome(transport, call(torture.url))).body == b"again"
        await torture.until(lambda: torture.open == 0)


async def test_a_connection_that_ended_while_the_loop_stood_still_is_not_used(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane(max_connections=2)
    for end in (Do.CLOSE, Do.RESET):
        torture.then(answer(b"hello"), 0.01, end)
        assert (await outcome(transport, call(torture.url))).body == b"hello"
        while torture.visits[-1].closed is None:
            time.sleep(0.001)  # noqa: ASYNC251
        time.sleep(0.005)  # noqa: ASYNC251
        assert (await outcome(transport, call(torture.url))).error is None
        await check_healthy(transport, torture)


async def test_a_connection_that_ended_is_not_handed_to_who_waits_in_line(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane(max_connections=1)
    torture.then(answer(b"hello"), 0.01, Do.CLOSE)
    async with transport.open(call(torture.url), within=5) as response:
        waiting = asyncio.create_task(outcome(transport, call(torture.url)))
        assert await read(response) == b"hello"
        await asyncio.sleep(0.002)
        while torture.visits[-1].closed is None:
            time.sleep(0.001)  # noqa: ASYNC251
        time.sleep(0.005)  # noqa: ASYNC251
    assert await waiting == Outcome(200, (("content-length", "2"),), b"ok")


async def test_idle_connections_that_end_at_the_worst_moment(
    lane: Lane, torture: TortureServer
) -> None:
    """A request may be lost on one; that it is never seen twice, the server checks at its end."""
    transport = lane(max_connections=3)
    dice = random.Random(4)
    lost = 0
    for _ in range(100):
        torture.then(answer(b"hello"), dice.uniform(0, 0.003), dice.choice([Do.CLOSE, Do.RESET]))
        first = await outcome(transport, call(torture.url))
        assert first.error in (None, UpstreamTruncated)
        await asyncio.sleep(dice.uniform(0, 0.004))
        got = await outcome(transport, call(torture.url))
        if got.error is None:
            assert (got.status, got.body) in ((200, b"ok"), (200, b"hello"))
        else:
            assert got.error is UpstreamTruncated
            lost += 1
    assert lost < 70
    await torture.until(lambda: torture.open <= 1)
    torture.clear()
    torture.default = (answer(),)
    await outcome(transport, call(torture.url))
    await check_healthy(transport, torture)


async def test_what_could_not_be_sent_on_an_idle_connection_is_sent_on_a_new_one(
    lane: Lane, torture: TortureServer, monkeypatch: pytest.MonkeyPatch, lane_and_loop: str
) -> None:
    if lane_and_loop != "direct":
        pytest.skip("only asyncio's own loop writes at once, and tells that it could not")
    monkeypatch.setattr(Connection, "is_usable", True)
    transport = lane(max_connections=3)
    for size in (0, 1_000_000):
        torture.default = (0.01, answer())
        await asyncio.gather(*(outcome(transport, call(torture.url)) for _ in range(3)))
        opened = len(torture.visits)
        torture.reset_all()
        time.sleep(0.02)  # noqa: ASYNC251 The loop is not to see it.
        got = await outcome(transport, call(torture.url, size=size))
        assert (got.body, got.error) == (b"ok", None)
        assert len(torture.visits) == opened + 1
    await check_healthy(transport, torture)


async def test_a_connection_is_not_kept_for_long(
    lane: Lane, torture: TortureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pool, "KEEP_SECONDS", 0.1)
    monkeypatch.setattr(httpx_lane, "KEEP_SECONDS", 0.1)
    transport = lane()
    torture.default = (0.01, answer())
    await asyncio.gather(*(outcome(transport, call(torture.url)) for _ in range(3)))
    assert torture.open == 3
    if lane.is_direct:
        await torture.until(lambda: torture.open == 0, within=1.5)
    else:
        # This lane looks when it is used, and httpx itself never closes what nobody uses.
        await asyncio.sleep(0.15)
        await outcome(transport, call(torture.url))
        await torture.until(lambda: torture.open == 1)
    await check_healthy(transport, torture)


# Event loops, and the end.


async def test_each_event_loop_has_connections_of_its_own(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane()
    await check_healthy(transport, torture)
    for _ in range(2):
        # Nobody closes what these open: the end of their loop does.
        await asyncio.to_thread(asyncio.run, check_healthy(transport, torture))
    both = [asyncio.to_thread(asyncio.run, check_healthy(transport, torture)) for _ in range(2)]
    await asyncio.gather(*both)
    await check_healthy(transport, torture)
    assert len(torture.visits) == 5
    await torture.until(lambda: torture.open == 1)
    gc.collect()


async def test_many_loops_in_many_threads_come_and_go(lane: Lane, torture: TortureServer) -> None:
    transport = lane()
    errors: list[BaseException] = []
    start = threading.Barrier(8)

    def run() -> None:
        try:
            start.wait(5)
            for _ in range(12):
                asyncio.run(_one(transport, torture))
        except BaseException as exc:
            errors.append(exc)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    assert len(torture.requests) == 96


async def _one(transport: Transport, torture: TortureServer) -> None:
    got = await outcome(transport, call(torture.url))
    assert got.error is None


async def test_to_close_what_was_never_opened_is_no_error(lane: Lane) -> None:
    transport = lane()
    await transport.aclose()
    await transport.aclose()


async def test_after_the_end_everything_can_be_opened_anew(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane()
    for number in range(1, 4):
        await check_healthy(transport, torture)
        assert len(torture.visits) == number
        await transport.aclose()
        await torture.until(lambda: torture.open == 0)


async def test_the_end_cuts_no_request_and_leaves_nothing_open(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane(max_connections=2)
    steps = (CHUNKED_HEAD, 0.02, chunk(b"he"), 0.02, chunk(b"llo") + b"0\r\n\r\n")
    torture.default = (0.02, *steps)
    # Two are being answered, the other two wait in line.
    calls = [asyncio.create_task(outcome(transport, call(torture.url))) for _ in range(4)]
    await torture.until(lambda: len(torture.requests) == 2)
    await transport.aclose()
    for got in await asyncio.gather(*calls):
        assert (got.body, got.error) == (b"hello", None)
    await torture.until(lambda: torture.open == 0)
    await check_healthy(transport, torture)


# Back-pressure.


async def test_who_does_not_read_is_not_sent_more_than_fits(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane()
    piece, times = b"x" * 65_536, 1024
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(piece) * times)
    torture.then(head, Flood(piece, times))
    async with transport.open(call(torture.url), within=5) as response:
        before = -1
        while torture.visits[0].written > before:
            before = torture.visits[0].written
            await asyncio.sleep(0.1)
        assert before < 16 * 1024 * 1024
        total = 0
        while data := await response.read(5):
            total += len(data)
        assert total == len(piece) * times
    await check_healthy(transport, torture)
    assert len(torture.visits) == 1


async def test_the_environment_s_proxies_and_secrets_are_not_used(
    lane: Lane, torture: TortureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    await outcome(lane(), call(torture.url))
    assert dict(torture.requests[0].headers)["authorization"] == f"Bearer {KEY}"
