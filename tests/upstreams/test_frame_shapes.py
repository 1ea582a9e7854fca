from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_asgi.chat import Event, TextDelta, Usage
from qwen_asgi.upstreams._answer_decoder import MOST_AT_ONCE
from qwen_asgi.upstreams._frame_shapes import MOST_SHAPES, FrameShapes
from qwen_asgi.upstreams.openai_compatible_decoder import OpenAIDecoder
from qwen_asgi.upstreams.qwen_web_v1_decoder import QwenWebV1Decoder
from tests.wire import at
from tests.wire import read as read_answer


def frame(text: str, tokens: int = 1, *, ascii: bool = False, **fields: Any) -> bytes:
    delta = {"role": "assistant", "content": text, **fields}
    document = {"choices": [{"delta": delta}], "usage": {"output_tokens": tokens}}
    return b"data: %b\n\n" % json.dumps(document, ensure_ascii=ascii).encode()


class Forgetful(FrameShapes):
    def learn(self, frame: bytes, field: bytes = b"content") -> None:
        pass


def learnt(*frames: bytes) -> FrameShapes:
    shapes = FrameShapes()
    for one in frames:
        shapes.learn(one)
    return shapes


def read(shapes: FrameShapes, data: bytes) -> tuple[list[str], bytes]:
    events: list[Event] = []
    rest = shapes.read(data, TextDelta, events)
    return [event.text for event in events if isinstance(event, TextDelta)], rest


def test_frames_like_a_learnt_one_are_read() -> None:
    shapes = learnt(frame("a"))
    assert read(shapes, frame("你好", 2) + frame(" 3", 3)) == (["你好", " 3"], b"")
    last = shapes.take_last()
    assert json.loads(last[6:])["usage"] == {"output_tokens": 3}
    assert shapes.take_last() == b""


@pytest.mark.parametrize("spaced", [True, False])
def test_blanks_are_a_part_of_the_shape(spaced: bool) -> None:
    def other(data: bytes) -> bytes:
        return data.replace(b": ", b":").replace(b"data:", b"data: ")

    one, two = frame("a"), frame("b")
    assert read(learnt(one if spaced else other(one)), two if spaced else other(two)) == (
        ["b"],
        b"",
    )
    unlike = other(two) if spaced else two
    assert read(learnt(one if spaced else other(one)), unlike) == ([], unlike)


@pytest.mark.parametrize(
    "unlike",
    [
        frame("b", phase="think"),
        frame("b", status="finished"),
        frame("b", 10),
        frame(""),
        frame('say "b"'),
        frame("\ud800", ascii=True),
        frame("b").replace(b"b", b"\xff"),
        frame("b").replace(b'"b', b'"\x01b'),
        frame("b").replace(b"\n\n", b"\r\n\r\n"),
        frame("b").replace(b"\n\n", b"\n"),
        frame("b").replace(b"data: ", b"data:"),
        b"event: error\n" + frame("b"),
        b": ping\n\n",
        b"data: [DONE]\n\n",
    ],
)
def test_it_stops_at_whatever_is_not_like_it(unlike: bytes) -> None:
    shapes = learnt(frame("a"))
    texts, rest = read(shapes, frame("a") + unlike + frame("c"))
    # What follows a frame without a gap may keep that one from being recognised, too.
    assert texts in (["a"], [])
    assert rest == frame("a") * (not texts) + unlike + frame("c")


@pytest.mark.parametrize(
    "text", ["b\nc", "\t", "b\\c", "b\\", "\u2028", "\u3000", "\x7f", "/", "{}", "'"]
)
@pytest.mark.parametrize("ascii", [True, False])
def test_a_text_is_what_json_says_it_is(text: str, ascii: bool) -> None:
    assert read(learnt(frame("a")), frame(text, ascii=ascii)) == ([text], b"")


@pytest.mark.parametrize(
    "twice", [frame("a", kind="content"), frame("a", content2={"content": "b"}), b"data: {}\n\n"]
)
def test_a_frame_with_two_contents_or_none_is_not_learnt(twice: bytes) -> None:
    assert read(learnt(twice), twice) == ([], twice)


def test_a_frame_whose_text_holds_a_quote_is_not_learnt_amiss() -> None:
    assert read(learnt(frame('a"b')), frame("c")) == ([], frame("c"))


def test_shapes_that_are_known_together_have_the_same_fields() -> None:
    shapes = learnt(frame("a", 9), frame("a", 10))
    assert read(shapes, frame("b", 9) + frame("b", 99)) == (["b", "b"], b"")
    shapes.learn(frame("a", more=1))
    assert read(shapes, frame("b", 9)) == ([], frame("b", 9))


def test_what_was_forgotten_is_not_known() -> None:
    shapes = learnt(frame("a"))
    shapes.forget()
    assert read(shapes, frame("b")) == ([], frame("b"))


def test_it_does_not_learn_for_ever() -> None:
    shapes = learnt(*[frame("a", id=f"{number:x}") for number in range(MOST_SHAPES + 1)])
    last = frame("b", id=f"{MOST_SHAPES:x}")
    assert read(shapes, last) == ([], last)


frames = st.builds(
    frame,
    st.text(max_size=8) | st.sampled_from(['"', "\\", "\n", "data: {"]),
    st.integers(0, 1000),
    ascii=st.booleans(),
)


@given(st.lists(frames, max_size=12))
def test_what_is_read_is_what_was_meant(sent: list[bytes]) -> None:
    shapes = FrameShapes()
    for data in sent:
        texts, rest = read(shapes, data)
        assert (texts, rest) in (
            ([], data),
            ([json.loads(data[6:])["choices"][0]["delta"]["content"]], b""),
        )
        shapes.learn(data)


odd = st.sampled_from(
    [
        frame("x", phase="answer"),
        frame("y", phase="think"),
        frame("z\r\n"),
        b": ping\n\n",
        frame("w").replace(b"\n", b"\r\n"),
        b'data: {"choices": [{"delta": {"content": "v"}}], "usage": {"input_tokens": 7}}\n\n',
    ]
)


@given(st.lists(frames | odd, min_size=1, max_size=20), st.lists(st.integers(1, 400), max_size=20))
def test_a_decoder_says_the_same_with_and_without_them(sent: list[bytes], cuts: list[int]) -> None:
    def decode(data: list[bytes], shapes: bool) -> tuple[str, str, Usage | None]:
        decoder = QwenWebV1Decoder(incremental=True)
        if not shapes:
            decoder._shapes = Forgetful()
        events = [event for piece in data for event in decoder.feed(piece)]
        events += decoder.flush()
        text = "".join(event.text for event in events if isinstance(event, TextDelta))
        rest = "".join(repr(event) for event in events if not isinstance(event, TextDelta))
        return text, rest, decoder._usage.total()

    whole = b"".join(sent)
    pieces = []
    for cut in cuts:
        pieces.append(whole[:cut])
        whole = whole[cut:]
    assert decode([*pieces, whole], True) == decode([*pieces, whole], False)


def test_much_at_once_is_read_like_little() -> None:
    text = "0123456789 " * 100
    sent = [frame(text, number) for number in range(3 * MOST_AT_ONCE // 1000)]
    decoder = QwenWebV1Decoder(incremental=True)
    events = decoder.feed(b"".join(sent) + b"data: [DONE]\n\n")
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == text * len(sent)
    assert decoder.complete


def openai_frame(**delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": delta.pop("finish_reason", None)}
    return b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode()


OPENAI_FRAMES = [
    openai_frame(role="assistant", content=""),
    *(openai_frame(content=text) for text in ("a", "b 1", "", "\\", '"')),
    *(openai_frame(content=None, reasoning_content=text) for text in ("r", "s 2", "", "\\")),
    *(openai_frame(reasoning_content=text, content="") for text in ("t", "u")),
    *(openai_frame(reasoning=text) for text in ("v", "w")),
    openai_frame(content="x", reasoning_content="y"),
    openai_frame(content="x", novelty=""),
    openai_frame(content=None, reasoning_content="z", novelty=1),
    openai_frame(content="", tool_calls=[{"index": 0, "id": "c", "function": {"name": "f"}}]),
    openai_frame(content="", finish_reason="stop"),
    b": ping\n\n",
]


@settings(max_examples=500, deadline=None, database=None)
@given(
    frames=st.lists(st.sampled_from(OPENAI_FRAMES), max_size=20),
    places=st.lists(st.integers(0, 1 << 30), max_size=12),
)
def test_thinking_and_text_of_openai_s_kind_are_read_as_without_shapes(
    frames: list[bytes], places: list[int]
) -> None:
    body = b"".join(frames)
    forgetful = OpenAIDecoder()
    forgetful._shapes = Forgetful()
    expected = read_answer(forgetful, [body]).outcome
    assert read_answer(OpenAIDecoder(), [body]).outcome == expected
    assert read_answer(OpenAIDecoder(), at(body, places)).outcome == expected


def test_thinking_is_read_the_short_way_too() -> None:
    decoder = OpenAIDecoder()
    for text in ("a", "b"):
        decoder.feed(openai_frame(content=None, reasoning_content=text))
    rest = decoder._shapes.read(openai_frame(content=None, reasoning_content="c"), TextDelta, [])
    assert rest == b""
