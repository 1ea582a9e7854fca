"""Answers as they should be, in every form that HTTP/1.1 has for them, cut anywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwen_asgi.errors import UpstreamTruncated
from tests.transports.exchanges import KEY, Lane, Outcome, call, check_healthy, outcome
from tests.transports.torture import (
    CHUNKED_HEAD,
    Do,
    ReadBody,
    Step,
    TortureServer,
    answer,
    chunk,
    chunked,
)

pytestmark = pytest.mark.anyio

PLAIN = b"HTTP/1.1 200 OK\r\n"

WHOLE: dict[str, tuple[bytes, bytes]] = {
    "content-length": (answer(b"hello"), b"hello"),
    "chunked": (chunked(b"he", b"llo"), b"hello"),
    "chunk extensions": (
        CHUNKED_HEAD + b'2;a=b;c="d;e"\r\nhe\r\n3;f\r\nllo\r\n0;g=h\r\n\r\n',
        b"hello",
    ),
    "trailers": (chunked(b"hello", trailers=b"x-sum: 1\r\nx-more: 2\r\n"), b"hello"),
    "capital hexadecimal": (CHUNKED_HEAD + b"0A\r\n0123456789\r\n00\r\n\r\n", b"0123456789"),
    "no content": (b"HTTP/1.1 204 No Content\r\nx: 1\r\n\r\n", b""),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", b""),
    "content-length 0": (answer(b""), b""),
    "empty chunked": (chunked(), b""),
    "100": (b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"hello"), b"hello"),
    "102": (b"HTTP/1.1 102 Processing\r\nx: 1\r\n\r\n" + chunked(b"hello"), b"hello"),
    "103": (b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + answer(b"hello"), b"hello"),
    "several 1xx": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
        b"HTTP/1.1 102 Processing\r\n\r\n" + answer(b"hello"),
        b"hello",
    ),
    "an upgrade offered": (
        answer(b"hello", b"upgrade: h2,h2c", b"connection: Upgrade"),
        b"hello",
    ),
    "no reason": (b"HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\nok", b"ok"),
    "an error": (answer(b"{}", status=b"503 Service Unavailable"), b"{}"),
}
"""Responses after which a connection can be used again, each with its body."""


def status_of(data: bytes) -> int:
    """Return the status of the last head in a response."""
    return int(data[data.rindex(b"HTTP/1.1") :].split()[1])


def spread(data: bytes, *cuts: int) -> list[Step]:
    """Return the steps that send data in pieces, each of which arrives by itself."""
    steps: list[Step] = []
    for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        steps += [data[start:end], 0.0004]
    return steps[:-1]


@pytest.mark.parametrize("name", WHOLE)
async def test_an_answer_is_read_and_its_connection_used_again(
    lane: Lane, torture: TortureServer, name: str
) -> None:
    data, body = WHOLE[name]
    transport = lane()
    for _ in range(3):
        torture.then(data)
        got = await outcome(transport, call(torture.url))
        assert (got.status, got.body, got.error) == (status_of(data), body, None)
        assert not got.ends_by_close
    await check_healthy(transport, torture)
    assert len(torture.visits) == 1


SPLIT = ["chunk extensions", "trailers", "several 1xx", "content-length", "not modified"]


@pytest.mark.parametrize("name", SPLIT)
async def test_an_answer_cut_in_two_anywhere_is_the_same_answer(
    lane: Lane, torture: TortureServer, name: str
) -> None:
    data, body = WHOLE[name]
    transport = lane()
    results: set[Outcome] = set()
    for cut in range(1, len(data)):
        torture.then(*spread(data, cut))
        results.add(await outcome(transport, call(torture.url)))
    [got] = results
    assert (got.status, got.body, got.error) == (status_of(data), body, None)
    assert len(torture.visits) == 1


@pytest.mark.parametrize("name", WHOLE)
async def test_an_answer_that_comes_byte_by_byte_is_the_same_answer(
    lane: Lane, torture: TortureServer, name: str
) -> None:
    data, body = WHOLE[name]
    transport = lane()
    torture.then(data)
    expected = await outcome(transport, call(torture.url))
    assert expected.body == body
    torture.then(*spread(data, *range(1, len(data))))
    assert await outcome(transport, call(torture.url)) == expected
    assert len(torture.visits) == 1


async def test_many_chunks_in_one_read_and_one_chunk_in_many(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane()
    torture.then(chunked(*[b"%04d" % number for number in range(2000)]))
    got = await outcome(transport, call(torture.url))
    assert got.body == b"".join(b"%04d" % number for number in range(2000))
    large = bytes(range(256)) * 1024
    piece = CHUNKED_HEAD + chunk(large) + b"0\r\n\r\n"
    torture.then(*spread(piece, *range(1000, len(piece), 20_000)))
    assert (await outcome(transport, call(torture.url))).body == large
    await check_healthy(transport, torture)


@pytest.mark.parametrize(
    "data",
    [
        PLAIN + b"\r\nhello",
        PLAIN + b"connection: close\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nx: 1\r\n\r\nhello",
    ],
    ids=["1.1", "said", "1.0"],
)
async def test_a_body_may_end_with_its_connection(
    lane: Lane, torture: TortureServer, data: bytes
) -> None:
    """A cut looks like the end; the response says that it does."""
    transport = lane()
    for cut in (len(data), data.index(b"hello") + 2):
        torture.then(data[:cut], 0.002, Do.CLOSE)
        got = await outcome(transport, call(torture.url))
        body = data[:cut].partition(b"\r\n\r\n")[2]
        assert got == replace(got, status=200, body=body, error=None, ends_by_close=True)
    await check_healthy(transport, torture)
    assert len(torture.visits) == 3


async def test_a_body_that_ends_with_its_connection_may_be_empty_or_large(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane()
    for body in (b"", b"x" * 3_000_000):
        torture.then(PLAIN + b"\r\n" + body, Do.CLOSE)
        got = await outcome(transport, call(torture.url))
        assert (got.body, got.error, got.ends_by_close) == (body, None, True)
    await check_healthy(transport, torture)


@pytest.mark.parametrize(
    ("data", "is_kept"),
    [
        (answer(b"hello", b"connection: close"), False),
        (answer(b"hello", b"connection: CLOSE, x"), False),
        (answer(b"hello").replace(b"1.1", b"1.0"), False),
        (answer(b"hello", b"connection: keep-alive"), True),
    ],
    ids=["close", "close, in a list", "1.0", "keep-alive"],
)
async def test_a_connection_is_kept_only_if_the_server_keeps_it(
    lane: Lane, torture: TortureServer, data: bytes, is_kept: bool
) -> None:
    transport = lane()
    # The server says so, but leaves it to the client to close.
    torture.then(data)
    assert (await outcome(transport, call(torture.url))).body == b"hello"
    await check_healthy(transport, torture)
    assert len(torture.visits) == (1 if is_kept else 2)
    await torture.until(lambda: torture.open == 1)


async def test_header_names_are_lower_case_and_repeated_headers_joined(
    lane: Lane, torture: TortureServer
) -> None:
    torture.then(answer(b"", b"X-Many: a", b"x-one: \t b c  \t", b"x-MANY: c", b"x-empty:"))
    async with lane().open(call(torture.url), within=5) as response:
        expected = {"content-length": "0", "x-many": "a, c", "x-one": "b c", "x-empty": ""}
        assert dict(response.headers) == expected
        assert not await response.read(5)


async def test_the_request_is_sent_as_it_is(lane: Lane, torture: TortureServer) -> None:
    request = call(torture.url + "/a/b?c=d&e", x_own="1")
    await outcome(lane(), replace(request, url=request.url.removesuffix("/chat")))
    [seen] = torture.requests
    assert seen.head.startswith(b"POST /a/b?c=d&e HTTP/1.1\r\n")
    assert seen.body == request.body
    assert sorted((name.lower(), value) for name, value in seen.headers) == [
        ("accept-encoding", "identity"),
        ("authorization", f"Bearer {KEY}"),
        ("content-length", str(len(request.body))),
        ("host", torture.url.removeprefix("http://")),
        ("x_own", "1"),
    ]


async def test_each_request_has_its_own_headers(lane: Lane, torture: TortureServer) -> None:
    """A head may be kept for the next request only if that has the same headers."""
    transport = lane()
    for number in range(3):
        await outcome(transport, call(torture.url, x=str(number)))
    assert [dict(seen.headers)["x"] for seen in torture.requests] == ["0", "1", "2"]


async def test_a_request_may_have_no_body(lane: Lane, torture: TortureServer) -> None:
    request = replace(call(torture.url), method="GET", body=b"")
    assert (await outcome(lane(), request)).body == b"ok"
    assert torture.requests[0].head.startswith(b"GET /chat HTTP/1.1\r\n")


@pytest.mark.parametrize("pause", [0.0, 0.002], ids=["fast", "slow"])
async def test_a_large_request_reaches_a_server(
    lane: Lane, torture: TortureServer, pause: float
) -> None:
    transport = lane()
    size = 20 * 1024 * 1024
    torture.then(Do.EARLY, ReadBody(pause), answer(b"read"))
    got = await outcome(transport, call(torture.url, size=size), head=20)
    assert (got.status, got.body, got.error) == (200, b"read", None)
    assert torture.visits[0].read > size
    await check_healthy(transport, torture)
    assert len(torture.visits) == 1


async def test_an_early_answer_is_read_and_its_connection_not_used_again(
    lane: Lane, torture: TortureServer
) -> None:
    """The server refuses a large body without reading it; then it closes, or waits."""
    transport = lane()
    refusal = answer(b"too large", status=b"413 Content Too Large")
    for end in (Do.CLOSE, Do.RESET, 0.3):
        torture.then(Do.EARLY, refusal, 0.03, end, Do.CLOSE)
        got = await outcome(transport, call(torture.url, size=20_000_000))
        if lane.is_direct:
            assert (got.status, got.body, got.error) == (413, b"too large", None)
        else:
            # httpcore sends all of a request before it reads; what came before the end is lost.
            assert got.error is UpstreamTruncated
        await check_healthy(transport, torture)
    # The large request is the last one on each connection.
    assert [visit.requests for visit in torture.visits] == [1, 3, 3, 2]


async def test_an_early_answer_before_a_small_body_was_read(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane()
    torture.then(Do.EARLY, answer(b"early"), ReadBody())
    assert (await outcome(transport, call(torture.url))).body == b"early"
    await check_healthy(transport, torture)


async def test_redirects_are_not_followed_and_cookies_not_sent_back(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane()
    location = f"location: {torture.url}/elsewhere".encode()
    torture.then(answer(b"", location, b"set-cookie: a=b; Path=/", status=b"302 Found"))
    got = await outcome(transport, call(torture.url))
    assert got.status == 302
    await check_healthy(transport, torture)
    assert len(torture.requests) == 3
    assert not [name for seen in torture.requests for name, _ in seen.headers if name == "cookie"]
