"""Bodies that come compressed although nobody asked."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_asgi.errors import UpstreamInvalidResponse, UpstreamTruncated
from qwen_asgi.transports._decompress import LARGEST_PIECE, Decompressor
from tests.transports.exchanges import Lane, call, check_healthy, outcome
from tests.transports.torture import TortureServer, answer, chunked

TEXT = b"data: {}\n\n" * 300


def unpack(decompressor: Decompressor, *pieces: bytes) -> bytes:
    unpacked = b""
    for data in pieces:
        decompressor.feed(data)
        while piece := decompressor.take():
            assert len(piece) <= LARGEST_PIECE
            unpacked += piece
    return unpacked


@given(st.binary(max_size=500), st.sampled_from(["gzip", "x-gzip", "deflate", " GZIP "]), st.data())
@settings(max_examples=100, deadline=None)
def test_any_cut_gives_the_same_bytes(body: bytes, encoding: str, data: st.DataObject) -> None:
    packed = zlib.compress(body) if encoding == "deflate" else gzip.compress(body)
    cuts = data.draw(st.lists(st.integers(1, len(packed) - 1), max_size=8, unique=True))
    bounds = [0, *sorted(cuts), len(packed)]
    decompressor = Decompressor(encoding)
    pieces = [packed[start:end] for start, end in pairwise(bounds)]
    assert unpack(decompressor, *pieces) == body
    assert not decompressor.is_cut


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_comes_behind_the_end_is_dropped_however_it_arrives(encoding: str) -> None:
    packed = zlib.compress(TEXT) if encoding == "deflate" else gzip.compress(TEXT)
    for more in b"dat", b"\x1fx":
        assert unpack(Decompressor(encoding), packed + more + packed) == TEXT
        assert unpack(Decompressor(encoding), packed, more, packed) == TEXT
        assert unpack(Decompressor(encoding), packed, more[:1], more[1:] + packed) == TEXT


def test_a_cut_anywhere_is_not_taken_for_the_end() -> None:
    packed = gzip.compress(TEXT)
    for cut in range(1, len(packed)):
        decompressor = Decompressor("gzip")
        unpack(decompressor, packed[:cut])
        assert decompressor.is_cut


def test_a_bomb_comes_in_pieces_that_fit() -> None:
    bomb = gzip.compress(bytes(100_000_000), 9)
    assert len(bomb) < 200_000
    decompressor = Decompressor("gzip")
    decompressor.feed(bomb)
    total = 0
    while piece := decompressor.take():
        assert len(piece) <= LARGEST_PIECE
        total += len(piece)
    assert total == 100_000_000
    assert not decompressor.is_cut


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "x"])
def test_an_unknown_encoding_is_an_invalid_answer(encoding: str) -> None:
    with pytest.raises(UpstreamInvalidResponse):
        Decompressor(encoding)


# Both lanes.


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        (b"gzip", gzip.compress(TEXT)),
        (b"GZIP", gzip.compress(TEXT)),
        (b"deflate", zlib.compress(TEXT)),
        (b"deflate", raw_deflate(TEXT)),
        (b"identity", TEXT),
        (b"Identity", TEXT),
    ],
    ids=["gzip", "GZIP", "deflate", "deflate without zlib's frame", "identity", "Identity"],
)
async def test_what_came_compressed_unasked_is_unpacked(
    lane: Lane, torture: TortureServer, encoding: bytes, packed: bytes
) -> None:
    transport = lane()
    torture.then(answer(packed, b"content-encoding: " + encoding))
    got = await outcome(transport, call(torture.url))
    assert (got.status, got.body, got.error) == (200, TEXT, None)
    # In pieces, some of which unpack to nothing.
    whole = chunked(*[packed[at : at + 3] for at in range(0, len(packed), 3)])
    torture.then(whole.replace(b"\r\n", b"\r\ncontent-encoding: %b\r\n" % encoding, 1))
    got = await outcome(transport, call(torture.url))
    assert (got.status, got.body, got.error) == (200, TEXT, None)
    await check_healthy(transport, torture)
    assert len(torture.visits) == 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    "data",
    [
        answer(b"", b"content-encoding: gzip"),
        b"HTTP/1.1 204 No Content\r\ncontent-encoding: gzip\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\ncontent-encoding: gzip\r\n\r\n",
    ],
    ids=["length 0", "204", "304"],
)
async def test_an_empty_body_is_empty_whatever_its_encoding_is_said_to_be(
    lane: Lane, torture: TortureServer, data: bytes
) -> None:
    transport = lane()
    torture.then(data)
    got = await outcome(transport, call(torture.url))
    assert got == replace(got, body=b"", error=None)
    await check_healthy(transport, torture)


@pytest.mark.anyio
async def test_a_compressed_body_that_cannot_be_unpacked_is_an_error(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane()
    broken = bytearray(gzip.compress(TEXT))
    broken[15] ^= 0xFF
    for packed in (bytes(broken), b"not gzip at all"):
        torture.then(answer(packed, b"content-encoding: gzip"))
        got = await outcome(transport, call(torture.url))
        assert got.error is UpstreamInvalidResponse
        await check_healthy(transport, torture)


@pytest.mark.anyio
async def test_a_compressed_body_that_was_cut_before_it_was_framed_is_truncated(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane()
    torture.then(answer(gzip.compress(TEXT)[:-9], b"content-encoding: gzip"))
    got = await outcome(transport, call(torture.url))
    # httpx does not ask whether the packed data came to its own end.
    assert got.error is (UpstreamTruncated if lane.is_direct else None)
    await check_healthy(transport, torture)


@pytest.mark.anyio
async def test_an_unknown_encoding_is_not_unpacked(lane: Lane, torture: TortureServer) -> None:
    transport = lane()
    torture.then(answer(b"\x00\x01", b"content-encoding: x-none"))
    got = await outcome(transport, call(torture.url))
    if lane.is_direct:
        assert (got.error, got.body) == (UpstreamInvalidResponse, b"")
    else:
        # httpx passes what it does not know on as it is.
        assert (got.error, got.body) == (None, b"\x00\x01")
    await check_healthy(transport, torture)


@pytest.mark.anyio
async def test_a_bomb_reaches_who_reads_in_pieces(lane: Lane, torture: TortureServer) -> None:
    transport = lane()
    bomb = gzip.compress(bytes(100_000_000), 9)
    torture.then(answer(bomb, b"content-encoding: gzip"))
    total, largest = 0, 0
    async with transport.open(call(torture.url), within=5) as response:
        while piece := await response.read(5):
            total += len(piece)
            largest = max(largest, len(piece))
            del piece
    assert total == 100_000_000
    if lane.is_direct:
        assert largest <= LARGEST_PIECE
    await check_healthy(transport, torture)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_gzip_file_of_several_members_is_read_to_its_end(size: int) -> None:
    packed = gzip.compress(b"one ") + gzip.compress(b"") + gzip.compress(b"two")
    decompressor = Decompressor("gzip")
    pieces = [packed[start : start + size] for start in range(0, len(packed), size)]
    assert unpack(decompressor, *pieces) == b"one two"
    assert not decompressor.is_cut


def test_a_second_member_that_is_cut_is_a_cut() -> None:
    first, second = gzip.compress(b"one "), gzip.compress(b"two")
    for cut in range(2, len(second)):
        decompressor = Decompressor("gzip")
        unpack(decompressor, first + second[:cut])
        assert decompressor.is_cut


@pytest.mark.parametrize("rest", [b"\0", bytes(600), b"\x1fx", b"garbage"])
def test_what_follows_a_gzip_file_and_is_none_is_dropped(rest: bytes) -> None:
    decompressor = Decompressor("gzip")
    assert unpack(decompressor, gzip.compress(b"one") + rest, rest) == b"one"
    assert not decompressor.is_cut
