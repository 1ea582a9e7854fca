"""What upstreams and networks do wrong: each is an error of its class, and harms no other request.

Every outcome is also searched for the key and the prompt (`exchanges.outcome`), and after every
fault the same transport must serve healthy requests.
"""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import replace

import pytest

from qwen_asgi.errors import (
    UpstreamError,
    UpstreamInvalidResponse,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from tests.transports.exchanges import Lane, call, check_healthy, check_no_secret, outcome
from tests.transports.test_direct import BROKEN
from tests.transports.test_framing import spread
from tests.transports.torture import (
    CHUNKED_HEAD,
    Do,
    Flood,
    Step,
    TortureServer,
    answer,
    chunk,
    chunked,
)

pytestmark = pytest.mark.anyio


def invalid(lane: Lane) -> type[UpstreamError]:
    """What an answer is that breaks HTTP.

    httpx has one error for that and for a connection that ended too soon, so its lane cannot tell.
    """
    return UpstreamInvalidResponse if lane.is_direct else UpstreamTruncated


# Addresses.


async def test_a_refused_connection_is_unreachable(lane: Lane, torture: TortureServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    transport = lane(max_connections=2)
    for _ in range(5):
        got = await outcome(transport, call(f"http://127.0.0.1:{port}"))
        assert got.error is UpstreamUnreachable
        assert str(port) not in got.message
    await check_healthy(transport, torture)


ADDRESSES = {
    "unknown host": "http://nowhere.invalid",
    "broken host": "http://[::1",
    "port too large": "http://localhost:99999",
    "no port": "http://localhost:x",
    "label too long": "http://" + "a" * 64 + ".example",
    "label empty": "http://a..example",
    "no host": "http://",
    "unknown scheme": "gopher://localhost",
}


@pytest.mark.parametrize("name", ADDRESSES)
async def test_an_address_that_leads_nowhere_is_unreachable(
    lane: Lane, torture: TortureServer, name: str
) -> None:
    transport = lane(max_connections=2)
    for _ in range(3):
        got = await outcome(transport, call(ADDRESSES[name]))
        assert got.error is UpstreamUnreachable
    await check_healthy(transport, torture)


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\nb", "a\r", "a\0b", "key\n", "ключ"])
async def test_a_header_that_cannot_be_sent_is_an_error_and_not_sent(
    lane: Lane, torture: TortureServer, value: str
) -> None:
    """A key that was read from a file together with its line's end is such a header."""
    transport = lane(max_connections=2)
    for _ in range(3):
        try:
            got = await outcome(transport, call(torture.url, x=value))
        except ValueError as exc:
            check_no_secret(exc)
        else:
            assert got.error is not None
    assert not torture.requests
    await check_healthy(transport, torture)


# Ends too soon.


@pytest.mark.parametrize("end", [Do.CLOSE, Do.RESET], ids=["closed", "reset"])
@pytest.mark.parametrize("name", ["chunked", "content-length"])
async def test_an_answer_that_breaks_off_anywhere_is_truncated(
    lane: Lane, torture: TortureServer, name: str, end: Do
) -> None:
    samples = {
        "chunked": CHUNKED_HEAD + b"2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nx: 1\r\n\r\n",
        "content-length": answer(b"hello"),
    }
    data = samples[name]
    transport = lane(max_connections=2)
    for cut in range(len(data)):
        torture.then(*([data[:cut]] if cut else []), 0.001, end)
        got = await outcome(transport, call(torture.url))
        assert got.error is UpstreamTruncated, data[:cut]
        assert b"hello".startswith(got.body)
    await check_healthy(transport, torture)


@pytest.mark.parametrize("end", [Do.CLOSE, Do.RESET], ids=["closed", "reset"])
async def test_an_answer_is_whole_when_its_connection_breaks_after_the_last_byte(
    lane: Lane, torture: TortureServer, end: Do
) -> None:
    transport = lane(max_connections=2)
    for data in (answer(b"hello"), chunked(b"hello")):
        torture.then(data, 0.002, end)
        async with transport.open(call(torture.url), within=5) as response:
            # All of it came, and the end of the connection too, before anybody reads.
            await torture.until(lambda: torture.open == 0)
            assert await response.read(5) == b"hello"
            assert await response.read(5) == b""
        await check_healthy(transport, torture)


async def test_a_reset_is_no_end_of_a_body_that_ends_with_its_connection(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane()
    torture.then(b"HTTP/1.1 200 OK\r\n\r\nhel", 0.02, Do.RESET)
    got = await outcome(transport, call(torture.url))
    assert (got.error, got.body) == (UpstreamTruncated, b"hel")
    await check_healthy(transport, torture)


@pytest.mark.parametrize("data", [b"", CHUNKED_HEAD + chunk(b"hel")], ids=["head", "body"])
async def test_half_a_close_ends_an_answer_too(
    lane: Lane, torture: TortureServer, data: bytes
) -> None:
    transport = lane()
    torture.then(data, Do.HALF_CLOSE, Do.WAIT)
    got = await outcome(transport, call(torture.url), head=1, within=1)
    assert got.error is UpstreamTruncated
    await check_healthy(transport, torture)


async def test_half_a_close_ends_an_early_answer_whose_request_is_still_being_sent(
    lane: Lane, torture: TortureServer
) -> None:
    if not lane.is_direct:
        pytest.skip("httpcore sends all of a request before it reads")
    transport = lane()
    for data in (b"HTTP/1.1 400 Bad Request\r\n\r\nhello", answer(b"hello")[:-1]):
        torture.then(Do.EARLY, data, Do.HALF_CLOSE, 1.0, Do.CLOSE)
        got = await outcome(transport, call(torture.url, size=20_000_000), within=0.5)
        assert got.error is (None if got.ends_by_close else UpstreamTruncated)
        await check_healthy(transport, torture)


@pytest.mark.parametrize("end", [Do.CLOSE, Do.RESET], ids=["closed", "reset"])
async def test_a_connection_that_breaks_as_soon_as_it_is_open(
    lane: Lane, torture: TortureServer, end: Do
) -> None:
    transport = lane(max_connections=2)
    torture.greeting = (end,)
    for _ in range(10):
        got = await outcome(transport, call(torture.url))
        assert got.error in (UpstreamTruncated, UpstreamUnreachable)
    torture.greeting = ()
    await check_healthy(transport, torture)


async def test_a_connection_that_breaks_while_a_large_request_is_sent(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane(max_connections=2)
    for end in (Do.CLOSE, Do.RESET):
        torture.then(Do.EARLY, 0.01, end)
        got = await outcome(transport, call(torture.url, size=20_000_000))
        assert got.error is UpstreamTruncated
    await check_healthy(transport, torture)


# What is not HTTP.


LENIENT = {"length and chunks", "endless number"}
"""What h11 reads all the same; for the direct lane it is an attack."""


@pytest.mark.parametrize("name", BROKEN)
async def test_an_answer_that_is_not_http_is_an_error(
    lane: Lane, torture: TortureServer, name: str
) -> None:
    transport = lane(max_connections=2)
    for steps in ([BROKEN[name]], spread(BROKEN[name], 30)):
        torture.then(*steps, 0.01, Do.CLOSE)
        got = await outcome(transport, call(torture.url))
        if lane.is_direct or name not in LENIENT:
            assert got.error is invalid(lane), got
        await torture.until(lambda: torture.open == 0)
        await check_healthy(transport, torture)


ENDLESS: dict[str, list[Step]] = {
    "one header": [b"HTTP/1.1 200 OK\r\nx: ", Flood(b"v" * 4096, 2000)],
    "many headers": [b"HTTP/1.1 200 OK\r\n", Flood(b"x: " + b"v" * 1000 + b"\r\n", 8000)],
    "short headers": [b"HTTP/1.1 200 OK\r\n", Flood(b"x:\r\n" * 1000, 2000)],
    "reason": [b"HTTP/1.1 200 ", Flood(b"o" * 4096, 2000)],
    "1xx": [Flood(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 100, 2000)],
    "one trailer": [CHUNKED_HEAD + b"0\r\nx: ", Flood(b"v" * 4096, 2000)],
    "many trailers": [CHUNKED_HEAD + b"0\r\n", Flood(b"x: " + b"v" * 1000 + b"\r\n", 8000)],
    "blank lines": [Flood(b"\r\n" * 2048, 2000)],
}
"""Eight megabytes each, where nothing of it belongs to a body."""


@pytest.mark.parametrize("name", ENDLESS)
async def test_what_has_no_end_is_given_up_early(
    lane: Lane, torture: TortureServer, name: str
) -> None:
    if not lane.is_direct and name == "1xx":
        pytest.skip("httpcore skips any number of them; only the deadline ends it")
    transport = lane(max_connections=2)
    torture.then(*ENDLESS[name], Do.WAIT)
    got = await outcome(transport, call(torture.url))
    assert got.error is invalid(lane)
    await torture.until(lambda: torture.open == 0)
    # Some megabytes fit between the two in the sockets themselves.
    assert torture.visits[0].written < 7_000_000
    await check_healthy(transport, torture)


@pytest.mark.parametrize("name", ["one", "many"])
async def test_a_head_of_some_size_is_read_and_one_over_the_limit_is_not(
    lane: Lane, torture: TortureServer, name: str
) -> None:
    def headers(size: int) -> bytes:
        each = size if name == "one" else 1000
        lines = [b"x-%d: %b" % (number, b"v" * each) for number in range(size // each)]
        return answer(b"hello", *lines)

    transport = lane(max_connections=2)
    for data in ([headers(30_000)], spread(headers(30_000), *range(1000, 30_000, 5000))):
        torture.then(*data)
        got = await outcome(transport, call(torture.url))
        assert (got.body, got.error) == (b"hello", None)
    # h11 allows some more than the direct lane does.
    for data in ([headers(300_000)], spread(headers(300_000), *range(1000, 300_000, 50_000))):
        torture.then(*data)
        got = await outcome(transport, call(torture.url))
        if lane.is_direct or len(data) > 1:
            assert got.error is invalid(lane)
    await check_healthy(transport, torture)


async def test_a_change_of_protocol_is_no_answer(lane: Lane, torture: TortureServer) -> None:
    transport = lane(max_connections=2)
    head = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    for data in (head, head + b"\x81\x05hello", head.replace(b"upgrade: websocket\r\n", b"")):
        torture.then(data, 0.05, Do.CLOSE)
        got = await outcome(transport, call(torture.url))
        assert got.status == 101 or got.error is invalid(lane), got
        assert not got.body
        await check_healthy(transport, torture)
    assert [visit.requests for visit in torture.visits] == [1, 3, 3, 2]


# More than was asked for.


EVIL = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"


@pytest.mark.parametrize("more", [EVIL, EVIL[:9], b"evil", b"0\r\n\r\n"])
@pytest.mark.parametrize("pause", [None, 0.0, 0.002, 0.03], ids=["at once", "0", "2 ms", "30 ms"])
async def test_what_was_not_asked_for_is_not_taken_for_the_next_answer(
    lane: Lane, torture: TortureServer, more: bytes, pause: float | None
) -> None:
    if not pause and not lane.is_direct:
        pytest.xfail("h11 keeps what came in one read with an answer's end; nobody can see it")
    for data in (answer(b"hello"), chunked(b"hello")):
        transport = lane(max_connections=2)
        torture.then(*([data + more] if pause is None else [data, pause, more]))
        got = await outcome(transport, call(torture.url))
        assert (got.body, got.error) == (b"hello", None)
        expected = len(data) + len(more)
        await torture.until(lambda size=expected: torture.visits[-1].written == size)  # type: ignore[misc]
        await check_healthy(transport, torture)
    assert len(torture.requests) == 6


async def test_what_was_not_asked_for_is_not_taken_by_who_waits_in_line(
    lane: Lane, torture: TortureServer
) -> None:
    """A connection that is handed on at once may hold such bytes as well as one that rested."""
    transport = lane(max_connections=1)
    data = answer(b"hello")
    torture.then(data, 0.01, EVIL)
    torture.default = (answer(b"fine"),)
    async with transport.open(call(torture.url), within=5) as response:
        waiting = asyncio.create_task(outcome(transport, call(torture.url)))
        assert await response.read(5) == b"hello"
        assert await response.read(5) == b""
        await asyncio.sleep(0.002)
        while torture.visits[0].written < len(data) + len(EVIL):
            time.sleep(0.001)  # noqa: ASYNC251 The loop is not to see what comes.
        time.sleep(0.005)  # noqa: ASYNC251
    got = await waiting
    assert (got.body, got.error) == (b"fine", None)


async def test_an_answer_before_anything_was_asked_is_not_taken_for_one(
    lane: Lane, torture: TortureServer
) -> None:
    """Whether it is refused or read is the lane's choice, but only this one request may have it."""
    if not lane.is_direct:
        pytest.skip("anyio may have read the second answer already, where nobody can see it")
    transport = lane(max_connections=2)
    torture.greeting = (EVIL,)
    await outcome(transport, call(torture.url))
    sent = len(EVIL) + len(answer())
    await torture.until(lambda: torture.open == 0 or torture.visits[0].written == sent)
    torture.greeting = ()
    await check_healthy(transport, torture)


async def test_an_answer_left_in_its_middle_is_not_seen_by_the_next_request(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane(max_connections=1)
    for _ in range(10):
        torture.then(CHUNKED_HEAD + chunk(b"hello"), 0.002, chunk(b"rest") + b"0\r\n\r\n")
        async with transport.open(call(torture.url), within=5) as response:
            assert await response.read(5) == b"hello"
        await check_healthy(transport, torture)


async def test_errors_of_the_caller_s_own_close_the_connection(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane(max_connections=1)
    torture.then(CHUNKED_HEAD + chunk(b"hello"), Do.WAIT)

    async def fail() -> None:
        async with transport.open(call(torture.url), within=5) as response:
            await response.read(5)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    await torture.until(lambda: torture.open == 0)
    await check_healthy(transport, torture)


async def test_an_answer_of_two_lengths_that_agree_is_read_or_refused(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane()
    data = answer(b"hello", b"content-length: 5")
    torture.then(data, 0.01, Do.CLOSE)
    got = await outcome(transport, call(torture.url))
    # llhttp refuses the repetition, h11 reads it.
    expected = UpstreamInvalidResponse if lane.is_direct else None
    assert got == replace(got, error=expected)
    await torture.until(lambda: torture.open == 0)
    await check_healthy(transport, torture)
