"""The direct lane by itself: its parser without a socket, and what only it promises."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_asgi.errors import UpstreamError, UpstreamInvalidResponse, UpstreamTruncated
from qwen_asgi.transports._response import BUFFER_LIMIT, HEAD_LIMIT, DirectResponse
from tests.transports.test_framing import WHOLE
from tests.transports.torture import CHUNKED_HEAD, answer, chunk, chunked


@dataclass
class Paused:
    """A connection that is none, and whether it is paused."""

    is_paused: bool = False

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def wake_at(self, when: float) -> None:
        """Nothing here waits."""


Result = tuple[int, tuple[tuple[str, str], ...], bytes, type[UpstreamError] | None, bool]
"""Status, headers, body, error, and whether the connection may be used again."""


def parse(*pieces: bytes, lost: bool = False, reset: bool = False) -> Result:
    """Feed pieces to a response, and say what it makes of them."""
    response = DirectResponse(loop(), Paused())
    for piece in pieces:
        response.feed(piece)
    if lost:
        response.lost(ConnectionResetError() if reset else None)
    return loop().run_until_complete(_result(response))


async def _result(response: DirectResponse) -> Result:
    body = b""
    error: type[UpstreamError] | None = None
    try:
        await response.begin(0)
        while piece := await response.read(0):
            body += piece
    except UpstreamError as exc:
        error = type(exc)
    response.leave()
    headers = tuple(sorted(response.headers.items()))
    return response.status, headers, body, error, response.ended_well


@cache
def loop() -> asyncio.AbstractEventLoop:
    """Return one loop for all of these tests; there are thousands of responses."""
    return asyncio.new_event_loop()


@pytest.fixture(scope="module", autouse=True)
def _loop_closed() -> Iterator[None]:
    yield
    loop().close()
    loop.cache_clear()


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    bounds = [0, *sorted(at for at in cuts if at < len(data)), len(data)]
    return [data[start:end] for start, end in pairwise(bounds)]


@pytest.mark.parametrize("name", WHOLE)
def test_the_parser_sees_the_same_in_any_two_pieces(name: str) -> None:
    data, body = WHOLE[name]
    expected = parse(data)
    assert expected[2:] == (body, None, True)
    assert {parse(*cut(data, [at])) for at in range(len(data))} == {expected}
    assert parse(*cut(data, list(range(len(data))))) == expected


TOKEN = st.text("abcxyz-", min_size=1, max_size=12).map(str.encode)
PIECES = st.lists(st.binary(min_size=1, max_size=300), max_size=8)
CUTS = st.lists(st.integers(1, 3000), max_size=20)


@given(PIECES, st.lists(st.tuples(TOKEN, TOKEN), max_size=3), TOKEN, CUTS)
@settings(max_examples=300, deadline=None)
def test_any_cut_of_any_chunked_body_gives_the_same_answer(
    pieces: list[bytes], trailers: list[tuple[bytes, bytes]], extension: bytes, cuts: list[int]
) -> None:
    lines = b"".join(b"x-%b: %b\r\n" % trailer for trailer in trailers)
    body = b"".join(chunk(piece, b";" + extension) for piece in pieces)
    data = CHUNKED_HEAD + body + b"0\r\n" + lines + b"\r\n"
    assert parse(*cut(data, cuts)) == (
        200,
        (("transfer-encoding", "chunked"),),
        b"".join(pieces),
        None,
        True,
    )


@given(PIECES, CUTS, st.integers(0, 3000), st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_chunked_body_that_breaks_off_is_never_whole(
    pieces: list[bytes], cuts: list[int], end: int, reset: bool
) -> None:
    whole = chunked(*pieces)
    data = whole[: min(end, len(whole) - 1)]
    _, _, body, error, ended_well = parse(*cut(data, cuts), lost=True, reset=reset)
    assert b"".join(pieces).startswith(body)
    assert (error, ended_well) == (UpstreamTruncated, False)


BROKEN: dict[str, bytes] = {
    "garbage": b"\x16\x03\x01\x02\x00\x01 what is this\r\n\r\n",
    "chunk size": CHUNKED_HEAD + b"2\r\nhe\r\nxyz\r\nllo\r\n0\r\n\r\n",
    "chunk too long": CHUNKED_HEAD + b"2\r\nhello\r\n0\r\n\r\n",
    "negative chunk": CHUNKED_HEAD + b"-2\r\nhe\r\n0\r\n\r\n",
    "endless number": CHUNKED_HEAD + b"f" * 20 + b"\r\nhe\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 5\r\n\r\nhello",
    "length and chunks": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n0\r\n\r\n"
    ),
    "other coding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "blank in a name": b"HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nok",
    "http/2": b"HTTP/2 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "not a number": b"HTTP/1.1 200 OK\r\ncontent-length: two\r\n\r\nok",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_http_is_an_error_however_it_is_cut(name: str) -> None:
    data = BROKEN[name]
    expected = parse(data)
    assert expected[3:] == (UpstreamInvalidResponse, False)
    for at in range(1, len(data)):
        status, headers, _, error, ended_well = parse(*cut(data, [at]))
        assert (status, headers, error, ended_well) == (*expected[:2], *expected[3:])


def headers_of(size: int, each: int) -> bytes:
    """Return a response with `size` bytes of headers, `each` to one."""
    lines = [b"x-%d: %b" % (number, b"v" * (each - 9)) for number in range(size // each)]
    return answer(b"hello", *lines)


@pytest.mark.parametrize("each", [40_000, 100], ids=["one", "many"])
def test_a_large_head_is_judged_by_its_size_and_not_by_how_it_comes(each: int) -> None:
    data = headers_of(40_000, each)
    expected = parse(data)
    assert expected[2:] == (b"hello", None, True)
    for step in (20_000, 1000, 7):
        assert parse(*cut(data, list(range(step, len(data), step)))) == expected


@pytest.mark.parametrize("each", [2 * HEAD_LIMIT, 1000, 12], ids=["one", "many", "short"])
def test_a_head_that_is_too_large_is_refused_however_it_comes(each: int) -> None:
    data = headers_of(2 * HEAD_LIMIT, each)
    for step in (len(data), 50_000, 1000):
        response = DirectResponse(loop(), Paused())
        for piece in cut(data, list(range(step, len(data), step))):
            response.feed(piece)
        assert loop().run_until_complete(_result(response))[3] is UpstreamInvalidResponse


@pytest.mark.parametrize(
    "piece",
    [b"a" * 1000, b"x: " + b"v" * 1000 + b"\r\n"],
    ids=["one", "many"],
)
def test_endless_trailers_are_refused_before_they_fill_the_memory(piece: bytes) -> None:
    response = DirectResponse(loop(), Paused())
    response.feed(CHUNKED_HEAD + chunk(b"hello") + b"0\r\n")
    for _ in range(4 * HEAD_LIMIT // len(piece)):
        response.feed(piece)
    assert loop().run_until_complete(_result(response))[3] is UpstreamInvalidResponse


AFTER = [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", b"H", b"\x00", b"0\r\n\r\n", b"evil"]


@pytest.mark.parametrize("more", AFTER, ids=["an answer", "its begin", "NUL", "a chunk", "text"])
@pytest.mark.parametrize("name", ["content-length", "chunked", "no content", "trailers"])
def test_what_follows_an_answer_is_not_read_and_ends_its_connection(name: str, more: bytes) -> None:
    data, body = WHOLE[name]
    for pieces in ([data + more], [data, more], *([data + more[:at], more[at:]] for at in (1, 2))):
        assert parse(*pieces)[2:] == (body, None, False)


def test_the_connection_is_paused_while_nobody_reads() -> None:
    source = Paused()
    response = DirectResponse(loop(), source)
    response.feed(answer(b"x" * 10_000_000)[: BUFFER_LIMIT + 1000])
    assert source.is_paused
    assert len(loop().run_until_complete(response.read(0))) > BUFFER_LIMIT
    assert not source.is_paused
    response.leave()
