from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_asgi.sse import COMMENT, Decoder, Frame, FrameTooLarge, encode
from tests.wire import SPLITS, at, pieces

thorough = settings(max_examples=300, deadline=None, database=None)


def read(body: list[bytes]) -> tuple[list[Frame], Frame | None]:
    """Return the frames, and what stood behind the last blank line."""
    decoder = Decoder()
    frames = [frame for piece in body for frame in decoder.feed(piece)]
    return frames, decoder.close()


def data(*values: bytes) -> list[Frame]:
    return [(b"", value) for value in values]


CASES: dict[str, tuple[bytes, list[Frame], Frame | None]] = {
    "one": (b"data: a\n\n", data(b"a"), None),
    "no blank after the colon": (b"data:a\n\n", data(b"a"), None),
    "one blank belongs to the field": (b"data:  a \n\n", data(b" a "), None),
    "several lines": (b"data: a\ndata:\ndata: b\n\n", data(b"a\n\nb"), None),
    "empty data": (b"data:\n\n", data(b""), None),
    "a field without a colon": (b"data\n\n", data(b""), None),
    "CRLF": (b"data: a\r\n\r\ndata: b\r\n\r\n", data(b"a", b"b"), None),
    "CR": (b"data: a\r\rdata: b\r\r", data(b"a", b"b"), None),
    "mixed": (b"data: a\r\ndata: b\ndata: c\r\r\ndata: d\n\r\n", data(b"a\nb\nc", b"d"), None),
    "blank lines between": (b"\n\n\r\ndata: a\n\n\n\n", data(b"a"), None),
    "a byte order mark": (b"\xef\xbb\xbfdata: a\n\n", data(b"a"), None),
    "a byte order mark before a blank line": (b"\xef\xbb\xbf\ndata: a\n\n", data(b"a"), None),
    "a byte order mark further on": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", [], None),
    "comments": (b": x\n\n:\ndata: a\n: y\ndata: b\n\n", data(b"a\nb"), None),
    "our own heartbeat": (COMMENT + encode(b"a") + COMMENT, data(b"a"), None),
    "id and retry": (b"id: 7\nretry: 5\ndata: a\nid\n\n", data(b"a"), None),
    "an unknown field": (b"datas: x\nDATA: x\n data: x\ndata: a\n\n", data(b"a"), None),
    "a name": (b"event: error\ndata: a\n\ndata: b\n\n", [(b"error", b"a"), *data(b"b")], None),
    "the last name counts": (b"event: a\nevent:b\ndata: x\n\n", [(b"b", b"x")], None),
    "a name without data": (
        b"event: error\n\ndata: a\n\n",
        [(b"error", b""), *data(b"a")],
        None,
    ),
    "no name and no data": (b"event:\n\nid: 1\n\n", [], None),
    "a bare object": (b'{"a": 1}\n\n', data(b'{"a": 1}'), None),
    "an open end": (b"data: a\n\ndata: b", data(b"a"), (b"", b"b")),
    "an open end of a line": (b"data: a\n\ndata: b\n", data(b"a"), (b"", b"b")),
    "an open end in CRLF": (b"data: a\r\n\r\ndata: b\r\n", data(b"a"), (b"", b"b")),
    "an open end in CR": (b"data: a\r\rdata: b\r", data(b"a"), (b"", b"b")),
    "an open bare object": (b'{"a": 1}', [], (b"", b'{"a": 1}')),
    "an open comment": (b"data: a\n\n: b", data(b"a"), None),
    "nothing": (b"", [], None),
    "line ends of other worlds": (
        "data: a\v\f\x1c\x1d\x1e\x85\u2028\u2029b\n\n".encode(),
        data("a\v\f\x1c\x1d\x1e\x85\u2028\u2029b".encode()),
        None,
    ),
    "no UTF-8": (b"data: \xff\x85\xe2\x80\n\n", data(b"\xff\x85\xe2\x80"), None),
}


@pytest.mark.parametrize("size", SPLITS)
@pytest.mark.parametrize("name", CASES)
def test_frames_are_read_as_the_specification_says(name: str, size: int | None) -> None:
    body, frames, rest = CASES[name]
    assert read(pieces(body, size)) == (frames, rest)


@thorough
@given(
    lines=st.lists(
        st.sampled_from(
            [
                b"data: a",
                b"data:b",
                b"data",
                b"event: x",
                b"event:",
                b": c",
                b"id: 1",
                b"{}",
                b"",
                b"",
            ]
        )
        | st.binary(max_size=6),
        max_size=12,
    ),
    ends=st.lists(st.sampled_from([b"\n", b"\r", b"\r\n"]), min_size=12, max_size=12),
    cuts=st.lists(st.integers(0, 200), max_size=10),
)
def test_the_split_makes_no_difference(
    lines: list[bytes], ends: list[bytes], cuts: list[int]
) -> None:
    body = b"".join(line + end for line, end in zip(lines, ends, strict=False))
    body += lines[-1] if lines else b""
    assert read(at(body, cuts)) == read([body])
    assert read(pieces(body, 1)) == read([body])
    assert read([piece for part in pieces(body, 2) for piece in (b"", part, b"")]) == read([body])


@thorough
@given(st.lists(st.text(max_size=10), max_size=5), st.sampled_from(SPLITS))
def test_what_is_encoded_is_decoded(texts: list[str], size: int | None) -> None:
    values = [text.replace("\r", "").replace("\n", "").encode() for text in texts]
    body = b"".join(encode(value) for value in values)
    assert read(pieces(body, size)) == (data(*values), None)


def test_a_frame_comes_out_with_the_byte_that_completes_it() -> None:
    decoder = Decoder()
    assert decoder.feed(b"data: a\r\n\r") == data(b"a")
    assert decoder.feed(b"\ndata: b\n") == []
    assert decoder.feed(b"\n") == data(b"b")


@pytest.mark.parametrize(
    ("body", "within"),
    [
        (b"", False),
        (b"data: a\n\n", False),
        (b"data: a\n\n\n", False),
        (b"data: a\n\n: comment", False),
        (b"data: a\n\n: comment\n", False),
        (b"data: a\n\nwords", False),
        (b"\xf0\x9f", False),
        (b"d", True),
        (b"data: a", True),
        (b"data: a\n", True),
        (b"data: a\n: comment\n", True),
        (b"event", True),
        (b"event: x\n", True),
        (b"id: 7\n", True),
        (b"re", True),
        (b"{", True),
    ],
)
def test_it_knows_whether_an_event_has_begun(body: bytes, within: bool) -> None:
    for size in SPLITS:
        decoder = Decoder()
        for piece in pieces(body, size):
            decoder.feed(piece)
        assert decoder.within_event is within


@pytest.mark.parametrize("size", [1, 7, 50])
def test_what_grows_is_bounded(size: int) -> None:
    for body in (
        b"data: " + b"x" * 200,
        b"data: x\n" * 100,
        b": " + b"x" * 200,
        b"x" * 200,
        b"{}\n" * 100,
        b"data\n" * 200,
    ):
        decoder = Decoder(limit=100)
        with pytest.raises(FrameTooLarge, match="100 bytes"):
            deque(map(decoder.feed, pieces(body, size)))


def test_a_long_stream_of_short_frames_is_within_bounds() -> None:
    decoder = Decoder(limit=100)
    body = encode(b"x" * 80) * 1000
    assert len([frame for piece in pieces(body, 7) for frame in decoder.feed(piece)]) == 1000


def test_a_line_that_comes_in_many_pieces_costs_no_more_than_its_length() -> None:
    """Quadratic, these 4 MB in 64-byte pieces would take minutes."""
    body = encode(b"x" * 4_000_000)
    frames, rest = read(pieces(body, 64))
    assert (len(frames), rest) == (1, None)
