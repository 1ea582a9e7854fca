"""The answers of the second web chat: the recorded ones in every split, and what is new in them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_asgi.chat import Finish, TextDelta, Usage
from qwen_asgi.errors import (
    UpstreamAuthenticationFailed,
    UpstreamBlocked,
    UpstreamError,
    UpstreamInvalidResponse,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTruncated,
)
from qwen_asgi.upstreams.qwen_web_v2_decoder import MOST_HELD, QwenWebV2Decoder
from tests.wire import SPLITS, Reading, Sample, answers, at, pieces, read, sample

ERRORS = {
    "auth": UpstreamAuthenticationFailed,
    "bad_request": UpstreamRefused,
    "blocked": UpstreamBlocked,
    "busy": UpstreamRateLimited,
    "empty": UpstreamInvalidResponse,
    "not_found": UpstreamRefused,
    "rate_limited": UpstreamRateLimited,
    "truncated": UpstreamTruncated,
    "upstream": UpstreamError,
}
"""The classes of `expected.json`."""

ANSWERS = [s for s in answers("web2") if s.is_chat or "images" in s.expect]
SPLIT = pytest.mark.parametrize("size", SPLITS, ids=lambda size: f"pieces of {size or 'all'}")

TOOL_TEXT = {"web2-hermes-toolcall-split.sse"}
"""Calls that the model writes as text; to this decoder they are text."""


def decode(body: bytes, size: int | None = None, **options: Any) -> Reading:
    return read(QwenWebV2Decoder(**options), pieces(body, size))


def frame(content: str | None = "", *, id: str | None = "r0", **fields: Any) -> bytes:
    top: dict[str, Any] = {
        name: fields.pop(name) for name in ("usage", "response_index") if name in fields
    }
    delta = {"role": "assistant", "content": content, "phase": "answer", "status": "typing"}
    document: dict[str, Any] = {"choices": [{"delta": delta | fields}], **top}
    if id is not None:
        document["response_id"] = id
    return sse(document)


def sse(document: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % json.dumps(document, ensure_ascii=False).encode()


def created(id: str, index: str | None = None) -> bytes:
    named: dict[str, str] = {} if index is None else {"response_index": index}
    return sse({"response.created": {"chat_id": "c", "response_id": id, **named}})


END = frame(status="finished")


@SPLIT
@pytest.mark.parametrize("sample", ANSWERS, ids=str)
def test_each_recorded_answer_means_what_the_wire_notes_say(
    sample: Sample, size: int | None
) -> None:
    reading, expect = decode(sample.data, size), sample.expect
    if sample.name in TOOL_TEXT:
        assert "<tool_call>" in reading.text
        assert reading.finishes == [Finish("stop")]
        return
    images = [] if "content" in expect else expect.get("images", [])
    assert reading.text == "\n".join(images or [expect.get("content", "")])
    rounds = expect.get("reasoning_parts", [])
    assert reading.reasoning == expect.get("reasoning", "\n\n".join(map("\n".join, rounds)))
    if "error" in expect:
        check_error(reading, expect["error"])
        return
    assert reading.error is None
    assert reading.events[-1] == Finish(expect["finish_reason"])
    check_usage(reading, expect.get("usage"))
    if "citations" in expect:
        found = [e.data["extra"]["web_search_info"] for e in reading.extras if "name" in e.data]
        assert [source["url"] for sources in found for source in sources] == expect["citations"]
    if "content" in expect and "images" in expect:
        [made] = [e.data for e in reading.extras if e.data.get("role") == "function"]
        assert [one["image"] for one in made["extra"]["image_list"]] == expect["images"]


def check_error(reading: Reading, expect: dict[str, Any]) -> None:
    assert type(reading.error) is ERRORS[expect["class"]] or (
        expect["class"] == "empty" and isinstance(reading.error, UpstreamInvalidResponse)
    )
    assert not reading.finishes
    if "retry_after_s" in expect:
        assert reading.error.retry_after == expect["retry_after_s"]
    if expect["class"] in ("rate_limited", "busy", "bad_request"):
        assert reading.error.code == expect["code"]


def check_usage(reading: Reading, expect: dict[str, int] | None) -> None:
    if expect is None:
        return
    [usage] = reading.usages
    assert {name: getattr(usage, name) for name in expect} == expect


@pytest.mark.parametrize("sample", ANSWERS, ids=str)
@settings(max_examples=40, deadline=None, database=None)
@given(places=st.lists(st.integers(0, 1 << 30), max_size=12))
def test_any_split_gives_the_same(sample: Sample, places: list[int]) -> None:
    whole = decode(sample.data)
    assert read(QwenWebV2Decoder(), at(sample.data, places)).outcome == whole.outcome


# A cut.


@pytest.mark.parametrize("name", ["web2-answer.sse", "web2-search-tool.sse", "web2-no-phase.sse"])
def test_an_answer_that_is_cut_anywhere_is_never_whole(name: str) -> None:
    data = sample(name).data
    whole = decode(data)
    said = data.rindex(b'"status": "finished"')
    for end in range(len(data)):
        reading = decode(data[:end], ends_by_close=True)
        assert whole.text.startswith(reading.text)
        if end < said:
            assert reading.error is not None
            assert not reading.finishes


# Two candidates in one stream (W2-55).

TWICE = [created("r0", "0"), created("r1", "1")]


@pytest.mark.parametrize(
    "frames",
    [
        [*TWICE, frame("a"), frame("A", id="r1"), frame("b"), frame("B", id="r1")],
        [*TWICE[::-1], frame("A", id="r1"), frame("a"), frame("B", id="r1"), frame("b")],
        [TWICE[1], frame("A", id="r1"), TWICE[0], frame("a"), frame("B", id="r1"), frame("b")],
        [created("r0"), created("r1"), frame("A", id="r1"), frame("a"), frame("b")],
        [frame("a"), frame("A", id="r1"), frame("b"), frame("B", id="r1")],
        [frame("A", id="r1", response_index=1), frame("a", response_index=0), frame("b")],
    ],
    ids=["in turns", "other first", "other alone at first", "unnumbered", "not named", "in frames"],
)
@SPLIT
def test_one_candidate_is_read_and_the_other_left(frames: list[bytes], size: int | None) -> None:
    other = frame(status="finished", id="r1")
    reading = decode(b"".join([*frames, other, END]), size)
    assert reading.text == "ab"
    assert reading.finishes == [Finish("stop")]
    # What the other candidate counts is not the answer's.
    usage = {"input_tokens": 1, "output_tokens": 2}
    counted = decode(b"".join([*frames, frame("Z", id="r1", usage=usage), END]), size)
    assert counted.usages == []


def test_candidates_whose_names_differ_in_digits_only_are_told_apart() -> None:
    """The quick way reads digits as counts."""
    mine, other = "11111111-1111", "22222222-2222"
    frames = [frame(f"{n} ", id=id) for n in range(40) for id in (mine, other)]
    body = b"".join([created(mine, "0"), *frames, frame(status="finished", id=mine)])
    assert decode(body).text == "".join(f"{n} " for n in range(40))


def test_the_candidate_never_changes_once_some_of_it_went_out() -> None:
    """Found by a fuzz: a first frame without a name, then the other's, then its announcement."""
    frames = [frame("a", id="r1"), created("r1", "1"), created("r0", "0"), frame("b")]
    body = b"".join([*frames, frame("c", id="r1"), frame(status="finished", id="r1")])
    for size in SPLITS:
        assert decode(body, size).text == "ac"
    # While nothing of it went out, it may.
    body = b"".join([frame("", id="r1"), *frames[1:], frame("c", id="r1"), END])
    for size in SPLITS:
        assert decode(body, size).text == "b"


def test_a_second_candidate_is_read_where_the_first_never_comes() -> None:
    frames = [frame(f"{n} ", id="r1") for n in range(3)]
    body = b"".join([created("r1", "1"), *frames, frame(status="finished", id="r1")])
    assert decode(body).text == "0 1 2 "
    many = [frame(f"{n} ", id="r1") for n in range(MOST_HELD)]
    reading = read(QwenWebV2Decoder(), [created("r1", "1"), *many], close=False)
    assert reading.text == "".join(f"{n} " for n in range(MOST_HELD))


FRAMES = [
    *(created(id, index) for id in ("11-1", "22-2") for index in (None, "0", "1")),
    *(frame(text, id=id) for id in ("11-1", "22-2", None) for text in ("a", "1", "", None)),
    frame("b", id="11-1", usage={"input_tokens": 9, "output_tokens": 10}),
    frame("b", id="22-2", usage={"input_tokens": 9, "output_tokens": 10}),
    frame("t", id="11-1", phase="think"),
    frame("", id="11-1", role="function", name="x"),
    frame("", id="22-2", status="finished"),
    frame("x", id="11-1", status="error"),
    frame("x", id="22-2", status="error"),
    frame("s", id="11-1", phase="thinking_summary"),
    frame("u", id="11-1", phase="image_gen"),
    frame("", id="11-1", role="function", name="x", status="error"),
    sse({"response.info": {"action": "keep_alive"}}),
    sse({"response.stopped": {"response_id": "22-2"}}),
    sse({"done": True, "response_id": "22-2"}),
    sse({"done": True}),
    sse({"choices": []}),
]


@settings(max_examples=400, deadline=None, database=None)
@given(
    frames=st.lists(st.sampled_from(FRAMES), max_size=25),
    places=st.lists(st.integers(0, 1 << 30), max_size=20),
    ends_by_close=st.booleans(),
)
def test_any_split_of_any_frames_gives_the_same(
    frames: list[bytes], places: list[int], ends_by_close: bool
) -> None:
    body = b"".join(frames)
    whole = decode(body, ends_by_close=ends_by_close)
    parts = read(QwenWebV2Decoder(ends_by_close=ends_by_close), at(body, places))
    assert parts.outcome == whole.outcome
    assert decode(body, 1, ends_by_close=ends_by_close).outcome == whole.outcome


# Thinking.


def summary(titles: Any, thoughts: Any, **fields: Any) -> bytes:
    lists = {"summary_title": {"content": titles}, "summary_thought": {"content": thoughts}}
    return frame("", phase="thinking_summary", extra=lists, **fields)


AB = "A\na\n\nB\nb"
SUMMARIES = {
    "repeated": ([summary(["A"], ["a"])] * 3, "A\na"),
    "growing": ([summary(["A"], ["abc"[: n + 1]]) for n in range(3)], "A\nabc"),
    "title by title": (
        [summary(["A"], []), summary(["A", "B"], ["a"]), summary(["A", "B"], ["a", "b"])],
        AB,
    ),
    "a new round": ([summary(["A"], ["a"]), summary(["B"], ["b"])], AB),
    "a longer round, then a new one": (
        [summary(["A"], ["a"]), summary(["A", "B"], ["a", "b"]), summary(["C"], ["c"])],
        f"{AB}\n\nC\nc",
    ),
    "an older frame again": (
        [summary(["A"], ["a"]), summary(["A", "B"], ["a", "b"]), summary(["A"], ["a"])],
        AB,
    ),
    "a last thought reworded": (
        [summary(["A", "B"], ["a", "b1"]), summary(["A", "B"], ["a", "b2"])],
        "A\na\n\nB\nb1\n\nb2",
    ),
    "a round that begins alike, behind a tool": (
        [
            summary(["A"], ["a b c"]),
            frame("", role="function", name="x"),
            *(summary(["A"], ["a b"[: n + 1]]) for n in range(3)),
        ],
        "A\na b c\n\nA\na b",
    ),
    "told again behind a tool": (
        [summary(["A"], ["a"]), frame("", role="function", name="x"), summary(["A"], ["a"])],
        "A\na",
    ),
    "a null among the titles": ([summary([None, "B"], ["a", "b"])], "a\n\nB\nb"),
    "odd lists": (
        [summary([None, 3], "a"), summary(None, {}), frame("", phase="thinking_summary")],
        "a",
    ),
}


@pytest.mark.parametrize("name", SUMMARIES)
def test_summaries_are_told_once_and_whole(name: str) -> None:
    frames, reasoning = SUMMARIES[name]
    reading = decode(b"".join([*frames, frame("x"), END]))
    assert (reading.reasoning, reading.text) == (reasoning, "x")


# Frames about the answer, and failures within it.


@pytest.mark.parametrize(
    "extra",
    [
        sse({"response.info": {"action": "keep_alive"}}),
        sse({"response.info": {"action": "skip_think"}}),
        sse({"choices": []}),
        sse({"choices": None, "novelty": 1}),
        sse({}),
        frame(None),
        frame(None, phase="KeepAlive"),
        b": comment\n\n",
    ],
)
def test_frames_that_say_nothing_change_nothing(extra: bytes) -> None:
    reading = decode(extra.join([created("r0", "0"), frame("a"), frame("b"), END]))
    assert reading.text == "ab"
    assert reading.events[-1] == Finish("stop")


@pytest.mark.parametrize(
    "fault",
    [
        sse({"error": {"code": "Internal_Server_Error", "details": "x"}}),
        sse({"error": "broken"}),
        sse({"success": False, "data": {"code": "Internal_Server_Error"}}),
        b"event: error\ndata: {}\n\n",
        frame(status="error", extra={"error": {"code": "x"}}),
        frame(status="error"),
        frame(error={"code": "x", "message": "y"}),
        sse({"response.stopped": {"response_id": "r0"}}),
    ],
)
def test_a_failure_in_the_middle_is_never_a_clean_end(fault: bytes) -> None:
    reading = decode(b"".join([created("r0", "0"), frame("a"), fault, frame("b"), END]))
    assert reading.text == "a"
    assert reading.error is not None
    assert not reading.finishes


def test_a_tool_of_the_server_that_fails_does_not_end_the_answer() -> None:
    failed = frame("", role="function", name="x", status="error", error={"code": "x"})
    reading = decode(frame("a") + failed + frame("b") + END)
    assert (reading.text, reading.finishes) == ("ab", [Finish("stop")])
    assert [extra.kind for extra in reading.extras] == ["x"]


@SPLIT
def test_a_failed_frame_is_no_text_whatever_its_text(size: int | None) -> None:
    frames = [frame(f"{n} ") for n in range(5)]
    body = b"".join([*frames, frame("oops", status="error"), END])
    reading = decode(body, size)
    assert reading.text == "0 1 2 3 4 "
    assert reading.error is not None
    assert not reading.finishes


@SPLIT
def test_a_picture_is_a_line_of_its_own(size: int | None) -> None:
    picture = frame("https://x/1.png", phase="image_gen")
    reading = decode(b"".join([frame("a"), frame("b"), picture, frame("c"), frame("d"), END]), size)
    assert reading.text == "ab\nhttps://x/1.png\ncd"


def test_a_picture_that_failed_is_an_error() -> None:
    failed = frame("", phase="image_gen", error={"code": "x"}, status="finished")
    reading = decode(failed)
    assert reading.error is not None
    assert not reading.finishes


@pytest.mark.parametrize(
    "fault",
    [
        sse({"response.stopped": {"response_id": "r1"}}),
        sse({"done": True, "response_id": "r1"}),
    ],
)
def test_the_end_of_another_candidate_is_not_the_answer_s(fault: bytes) -> None:
    begun = b"".join([*TWICE, frame("a"), fault, frame("b")])
    assert decode(begun + END).finishes == [Finish("stop")]
    cut = decode(begun, ends_by_close=True)
    assert cut.text == "ab"
    assert isinstance(cut.error, UpstreamTruncated)


def test_a_change_of_candidate_begins_anew() -> None:
    """The end, the phase and the counts of the one that was read at first are not the answer's."""
    first = frame("", id="r1", status="finished", usage={"input_tokens": 9, "output_tokens": 9})
    begun = b"".join([first, created("r1", "1"), created("r0", "0"), frame("a")])
    assert decode(begun + END, ends_by_close=True).events == [TextDelta("a"), Finish("stop")]
    assert isinstance(decode(begun, ends_by_close=True).error, UpstreamTruncated)


def test_the_end_of_a_lone_second_candidate_is_an_end() -> None:
    body = b"".join([created("r1", "1"), frame("a", id="r1"), frame(id="r1", status="finished")])
    assert decode(body, ends_by_close=True).events == [TextDelta("a"), Finish("stop")]


def test_an_error_in_what_is_held_loses_no_text() -> None:
    held = [created("r1", "1"), frame("a", id="r1"), frame("", id="r1", status="error")]
    reading = decode(b"".join(held))
    assert (reading.text, reading.finishes) == ("a", [])
    assert reading.error is not None


def test_what_is_held_is_bounded_in_bytes_and_candidates() -> None:
    long = [frame(f"{n}" + "x" * 100_000, id="r1") for n in range(12)]
    reading = read(QwenWebV2Decoder(), [created("r1", "1"), *long], close=False)
    assert len(reading.text) >= 1_100_000
    many = b"".join(created(f"r{n}", "1") for n in range(100))
    assert isinstance(decode(many).error, UpstreamInvalidResponse)
    phases = b"".join(frame("x", phase=f"think{n}") for n in range(100))
    assert isinstance(decode(phases).error, UpstreamInvalidResponse)


def test_done_ends_the_answer() -> None:
    reading = decode(frame("a") + sse({"done": True}), ends_by_close=True)
    assert reading.events == [TextDelta("a"), Finish("stop")]


def test_usage_of_the_last_round_is_told_and_nothing_wipes_it() -> None:
    first = frame("a", usage={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3})
    tool = frame("", role="function", name="web_search", usage={})
    second = frame("b", usage={"input_tokens": 10, "output_tokens": 4, "total_tokens": 14})
    assert decode(first + tool + second + END).usages == [Usage(10, 4, 14)]
    assert decode(first + tool + END).usages == [Usage(1, 2, 3)]


def test_what_a_server_tool_says_is_extra_and_never_text() -> None:
    call = frame("", phase="web_search", function_call={"name": "web_search", "arguments": "{"})
    as_object = frame("", phase="bio", function_call={"name": "bio", "arguments": {"a": 1}})
    result = frame("Tool x does not exists.", role="function", name="x")
    reading = decode(call + as_object + result + frame("a") + END)
    assert [extra.kind for extra in reading.extras] == ["web_search", "bio", "x"]
    assert reading.text == "a"
