from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_asgi import sse
from qwen_asgi.chat import Event, Finish, ReasoningDelta, TextDelta, Usage
from qwen_asgi.errors import (
    UpstreamAuthenticationFailed,
    UpstreamBlocked,
    UpstreamError,
    UpstreamInvalidResponse,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTruncated,
)
from qwen_asgi.upstreams.qwen_web_v1 import QwenWebV1
from qwen_asgi.upstreams.qwen_web_v1_decoder import QwenWebV1Decoder
from tests.wire import SPLITS, Reading, Sample, answers, at, pieces, read, sample, streams

ERRORS = {
    "auth": UpstreamAuthenticationFailed,
    "bad_request": UpstreamRefused,
    "blocked": UpstreamBlocked,
    "busy": UpstreamRateLimited,
    "empty": UpstreamInvalidResponse,
    "not_found": UpstreamRefused,
    "rate_limited": UpstreamRateLimited,
}
"""The classes of `expected.json`."""

SPLIT = pytest.mark.parametrize("size", SPLITS, ids=lambda size: f"pieces of {size or 'all'}")
MODE = pytest.mark.parametrize("incremental", [True, False], ids=["pieces", "snapshots"])
END = pytest.mark.parametrize("ends_by_close", [False, True], ids=["framed", "ended by close"])
thorough = settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)

ADVICE = "QWEN_INCREMENTAL"
"""What only our own messages say."""


def decoder(incremental: bool = True, ends_by_close: bool = False) -> QwenWebV1Decoder:
    return QwenWebV1Decoder(incremental=incremental, ends_by_close=ends_by_close)


def frame(content: Any = None, *, phase: str | None = None, **delta: Any) -> bytes:
    if content is not None:
        delta["content"] = content
    if phase is not None:
        delta["phase"] = phase
    document = {"choices": [{"delta": {"role": "assistant", **delta}}]}
    return b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


# The recorded answers.


@SPLIT
@pytest.mark.parametrize("sample", answers(), ids=str)
def test_each_recorded_answer_means_what_the_wire_notes_say(
    sample: Sample, size: int | None
) -> None:
    if sample.status != 200:
        error: UpstreamError | None = QwenWebV1().refusal(
            sample.status, sample.headers, sample.data
        )
        reading = Reading([], error)
    else:
        reading = read(decoder(sample.mode != "cumulative"), pieces(sample.data, size))
    expect = sample.expect
    assert reading.text == expect.get("content", "")
    assert reading.reasoning == expect.get("reasoning", "")
    if not sample.is_chat:
        # A picture task, a list of models, an upload ticket: there is no text in it to give.
        assert isinstance(reading.error, UpstreamInvalidResponse)
    elif "error" in expect:
        check_error(reading, expect["error"])
    else:
        assert reading.error is None
        assert reading.finishes == [Finish(expect["finish_reason"])]
        assert reading.events[-1] == reading.finishes[0]
        check_usage(reading, expect.get("usage"))
        assert citations(reading) == expect.get("citations", [])


def check_error(reading: Reading, expect: dict[str, Any]) -> None:
    error = reading.error
    assert type(error) is ERRORS[expect["class"]] or (
        expect["class"] == "empty" and isinstance(error, UpstreamInvalidResponse)
    )
    assert error is not None
    assert not reading.finishes
    if "retry_after_s" in expect:
        assert error.retry_after == expect["retry_after_s"]
    if expect["class"] in ("rate_limited", "busy", "bad_request"):
        assert error.code == expect["code"]


def check_usage(reading: Reading, expect: dict[str, int] | None) -> None:
    if expect is None:
        assert reading.usages == []
    else:
        (usage,) = reading.usages
        assert usage == Usage(
            expect["prompt_tokens"], expect["completion_tokens"], expect["total_tokens"]
        )


def citations(reading: Reading) -> list[str]:
    found = [extra.data["extra"]["web_search_info"] for extra in reading.extras]
    return [source["url"] for sources in found for source in sources]


def test_the_search_result_is_extra_and_comes_before_the_text() -> None:
    reading = read(decoder(False), [sample("web1-search-cumulative.sse").data])
    assert [extra.kind for extra in reading.extras] == ["web_search"]
    assert reading.events[0] is reading.extras[0]


@SPLIT
def test_a_cumulative_answer_is_read_once_although_pieces_were_asked_for(size: int | None) -> None:
    reading = read(decoder(True), pieces(sample("web1-cumulative.sse").data, size))
    assert reading.text == "你好，世界！"
    assert reading.finishes == [Finish("stop")]


@SPLIT
@MODE
def test_a_whole_document_is_an_answer_in_either_mode(size: int | None, incremental: bool) -> None:
    document = {
        "data": {
            "choices": [
                {
                    "message": {
                        "role": "assistant",
                        "content": "<think>2</think>haha",
                        "reasoning_content": "1+",
                    },
                    "finish_reason": "length",
                }
            ],
            "usage": {"input_tokens": 3, "output_tokens": 4},
        },
        "success": True,
    }
    for indent in None, 2:
        body = json.dumps(document, indent=indent).encode()
        reading = read(decoder(incremental), pieces(body, size))
        assert reading.text == "haha"
        assert reading.reasoning == "1+2"
        assert reading.events[-2:] == [Usage(3, 4, 7), Finish("length")]


# What a frame may hold.


def test_null_and_missing_fields_count_as_absent() -> None:
    frames = [
        b"data: {}\n\n",
        b'data: {"choices": null}\n\n',
        b'data: {"choices": []}\n\n',
        b'data: {"choices": [null]}\n\n',
        b'data: {"choices": [{}]}\n\n',
        b'data: {"choices": [{"delta": null, "finish_reason": null}]}\n\n',
        b'data: {"choices": [{"delta": {"content": null, "phase": null, "status": null}}]}\n\n',
        b'data: {"choices": [{"delta": {"content": 5}}], "usage": null}\n\n',
        b'data: {"error": null, "success": true, "code": null, "choices": [{"delta": {}}]}\n\n',
        b"data: null\n\n",
        b"data: 5\n\n",
        b'data: ["x"]\n\n',
        b'data: "x"\n\n',
        b"data:\n\n",
        b"data: ping\n\n",
    ]
    body = frame("a") + b"".join(frames) + frame("b") + DONE
    assert read(decoder(), [body]).outcome == ("ab", "", [Finish("stop")], None)


def test_what_a_tool_says_is_never_text() -> None:
    body = (
        frame("Tool does not exist.", role="function", name="web_search")
        + frame("raw", phase="web_search")
        + frame("raw", phase=["odd"])  # type: ignore[arg-type]
        + frame("The answer.", phase="answer", status="finished")
    )
    reading = read(decoder(), [body])
    assert reading.text == "The answer."
    assert [extra.kind for extra in reading.extras] == ["web_search", "web_search", "unknown"]


@pytest.mark.parametrize("reason", ["length", "content_filter", "stop", "tool_calls", None, 5])
def test_the_reason_is_kept_where_the_answer_was_cut_short(reason: object) -> None:
    body = b'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": %b}]}\n\n'
    reading = read(decoder(), [body % json.dumps(reason).encode() + frame("", status="finished")])
    kept = reason if reason in ("length", "content_filter") else "stop"
    assert [finish.reason for finish in reading.finishes] == [kept]


def test_the_text_in_the_last_frame_is_not_lost() -> None:
    body = frame("a", phase="answer") + frame("b", phase="answer", status="finished")
    assert read(decoder(), [body]).text == "ab"


def test_usage_is_the_last_total_and_an_empty_one_changes_nothing() -> None:
    body = b"".join(
        b'data: {"choices": [{"delta": {"content": "x"}}], "usage": %b}\n\n' % usage
        for usage in (
            b'{"input_tokens": 9, "output_tokens": 1, "total_tokens": 10}',
            b'{"input_tokens": 9, "output_tokens": 2, "total_tokens": 11}',
            b"{}",
            b"null",
        )
    )
    assert read(decoder(), [body]).usages == [Usage(9, 2, 11)]


@pytest.mark.parametrize(
    "usage", [b"{}", b"null", b"[]", b'{"input_tokens": 1}', b'{"input_tokens": -1}', b'"12"']
)
def test_usage_that_was_not_told_is_not_invented(usage: bytes) -> None:
    body = b'data: {"choices": [{"delta": {"content": "x"}}], "usage": %b}\n\n' % usage
    assert read(decoder(), [body]).usages == []


def test_the_answer_is_ending_once_it_is_finished_and_complete_once_it_is_done() -> None:
    reader = decoder()
    reader.feed(frame("thought", phase="think") + frame("", phase="think", status="finished"))
    assert not reader.ending
    reader.feed(frame("text", phase="answer") + frame("", phase="answer", status="finished"))
    assert reader.ending
    assert not reader.complete
    assert reader.feed(DONE) == [Finish("stop")]
    assert reader.complete
    assert not reader.ending
    assert reader.feed(frame("more") + DONE) == []
    assert reader.close() == []
    assert reader.flush() == []


def test_text_that_was_held_back_keeps_its_place_before_another_phase() -> None:
    frames = [
        frame("ha", phase="think"),
        frame("haha", phase="think"),
        frame("-", phase="answer"),
        frame("--", phase="answer"),
        frame("ha"),
        frame("haha"),
        frame("!", phase="answer"),
    ]
    reading = read(decoder(), frames)
    assert reading.reasoning == "hahaha"
    assert reading.text == "---hahaha!"
    first_text = next(i for i, e in enumerate(reading.events) if isinstance(e, TextDelta))
    assert not any(isinstance(event, ReasoningDelta) for event in reading.events[first_text:])


@MODE
def test_what_one_phase_proved_holds_for_the_next(incremental: bool) -> None:
    """Two short frames prove nothing; but this upstream was found out while it thought."""
    thought, answer = "The user says hello.", ["Hello", "Hello!"]
    if incremental:
        thoughts = [thought[:end] for end in range(1, len(thought) + 1)]
        expected = "Hello!"
    else:
        thoughts = list(thought)
        expected = "HelloHello!"
    frames = [frame(content, phase="think") for content in thoughts]
    frames += [frame(content, phase="answer") for content in answer]
    reading = read(decoder(incremental), [*frames, DONE])
    assert (reading.reasoning, reading.text) == (thought, expected)


# A stream that is cut.


def transport_ends(body: bytes) -> Iterator[bytes]:
    for end in range(len(body) + 1):
        yield body[:end]


def lines_of(prefix: bytes) -> bytes:
    return prefix.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def frames_of(prefix: bytes) -> tuple[list[Any], bool]:
    """Read what is left of a recorded stream by eye: its whole frames, and whether one is cut."""
    *whole, tail = [part.strip() for part in lines_of(prefix).split(b"\n\n")]
    found: list[Any] = [document(part) for part in whole if part]
    if not tail:
        return found, False
    last = document(tail)
    return (found, True) if last is None else ([*found, last], False)


def document(part: bytes) -> Any:
    data = part.removeprefix(b"data:").strip()
    if data == b"[DONE]":
        return "[DONE]"
    try:
        return json.loads(data)
    except ValueError:
        return None


def text_of(frames: Sequence[Any], mode: str) -> tuple[str, str, bool, bool]:
    """Return text, reasoning, whether there are phases, and whether the end was seen."""
    texts: dict[str, list[str]] = {"think": [], "answer": []}
    phases = ended = False
    for found in frames:
        if found == "[DONE]":
            ended = True
            continue
        delta = found["choices"][0]["delta"]
        if delta["role"] == "function":
            continue
        phase = delta.get("phase")
        phases = phases or phase is not None
        texts[phase or "answer"].append(delta["content"])
        ended = ended or (phase == "answer" and delta.get("status") == "finished")
    if mode == "cumulative":
        joined = {phase: max(parts, key=len, default="") for phase, parts in texts.items()}
    else:
        joined = {phase: "".join(parts) for phase, parts in texts.items()}
    return joined["answer"], joined["think"], phases, ended


@END
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("sample", streams(), ids=str)
def test_a_stream_cut_at_any_byte_is_an_error_unless_all_its_frames_are_whole(
    sample: Sample, line_end: bytes, ends_by_close: bool
) -> None:
    body = sample.data.replace(b"\n", line_end)
    whole = read(decoder(sample.mode == "incremental"), [body])
    assert whole.finishes
    for prefix in transport_ends(body):
        reading = read(decoder(sample.mode == "incremental", ends_by_close), [prefix])
        frames, is_cut = frames_of(prefix)
        text, reasoning, phases, ended = text_of(frames, sample.mode)
        assert (reading.text, reading.reasoning) == (text, reasoning), prefix
        assert whole.text.startswith(text)
        assert whole.reasoning.startswith(reasoning)
        assert reading.extras == whole.extras[: len(reading.extras)]
        if ended and frames[-1:] == ["[DONE]"]:
            assert reading.error is None
        elif is_cut or (ends_by_close and phases and not ended):
            assert type(reading.error) is UpstreamTruncated, prefix
        elif not text:
            assert isinstance(reading.error, UpstreamInvalidResponse), prefix
        else:
            assert reading.error is None, prefix
        assert len(reading.finishes) == (reading.error is None)
        assert len(reading.usages) <= len(reading.finishes)
        if reading.finishes:
            assert reading.events[-1] == Finish("stop")


@MODE
@pytest.mark.parametrize("sample", streams(), ids=str)
def test_what_was_held_back_comes_out_when_the_transport_fails(
    sample: Sample, incremental: bool
) -> None:
    """`flush` is what a caller has when it is the connection that breaks, and not the answer."""
    for prefix in transport_ends(sample.data):
        reader = decoder(incremental)
        reading = read(reader, pieces(prefix, 64), close=False)
        reading.events += reader.flush()
        assert reader.flush() == []
        if incremental == (sample.mode == "incremental"):
            arrived = [document(part) for part in prefix.split(b"\n\n")[:-1]]
            assert (reading.text, reading.reasoning) == text_of(arrived, sample.mode)[:2]


@pytest.mark.parametrize("name", ["web1-nonstream.json", "web-waf-punish.json", "web-429.json"])
def test_a_document_cut_at_any_byte_is_no_answer(name: str) -> None:
    body = sample(name).data.rstrip()
    for end in range(1, len(body)):
        reading = read(decoder(), [body[:end]])
        assert type(reading.error) is UpstreamTruncated, body[:end]
        assert reading.events == []


@pytest.mark.parametrize(
    "tail",
    [
        *[b"d", b"data", b"data:", b"data: ", b"data: [DO", b'data: {"choices"', b"data: ping"],
        *[b"id: 7\n", b"id: 7", b"event: message\n", b"event: mess", b"retry: 5\n", b'{"success":'],
    ],
)
def test_an_event_that_has_begun_and_not_ended_is_a_cut(tail: bytes) -> None:
    for size in SPLITS:
        reading = read(decoder(), pieces(frame("All of it.") + tail, size))
        assert type(reading.error) is UpstreamTruncated
        assert reading.text == "All of it."


@pytest.mark.parametrize("tail", [b"", b"\n", b"\r\n\r\n", b"  ", b": keep-alive", b": keep\n"])
def test_blanks_and_comments_at_the_end_are_no_cut(tail: bytes) -> None:
    for size in SPLITS:
        reading = read(decoder(), pieces(frame("All of it.") + tail, size))
        assert reading.outcome == ("All of it.", "", [Finish("stop")], None)


def test_the_last_frame_counts_without_its_blank_line_whatever_the_line_ends() -> None:
    body = frame("All ") + frame("of it.")
    for end in b"", b"\n":
        for line_end in b"\n", b"\r\n", b"\r":
            cut = (body.rstrip() + end).replace(b"\n", line_end)
            for size in SPLITS:
                reading = read(decoder(), pieces(cut, size))
                assert reading.outcome == ("All of it.", "", [Finish("stop")], None)


# Failures that come with HTTP 200.

LIMIT = {"code": "RateLimited", "details": "You've reached the upper limit.", "num": 6}


def dump(document: object, **options: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, **options).encode()


def failed(**data: object) -> dict[str, object]:
    return {"success": False, "request_id": "r", "data": data}


FAILURES: dict[str, tuple[bytes, type[UpstreamError], str, int | None]] = {
    "WE-01": (dump(failed(code="Oops", details="x")), UpstreamError, "upstream_failed", None),
    "WE-01 without data": (dump({"success": False}), UpstreamError, "upstream_failed", None),
    "WE-02": (dump(failed(**LIMIT)), UpstreamRateLimited, "RateLimited", 21600),
    "WE-02 of half an hour": (
        dump(failed(code="RateLimited", num=0.5)),
        UpstreamRateLimited,
        "RateLimited",
        1800,
    ),
    "WE-02 without a number": (
        dump(failed(code="RateLimited", num="soon")),
        UpstreamRateLimited,
        "RateLimited",
        None,
    ),
    "WE-02 of a million years": (
        dump(failed(code="RateLimited", num=10**10)),
        UpstreamRateLimited,
        "RateLimited",
        7 * 24 * 3600,
    ),
    "WE-03 parallel": (
        dump(failed(code="ParallelLimited")),
        UpstreamRateLimited,
        "ParallelLimited",
        None,
    ),
    "WE-03 quota": (
        dump(failed(code="Whatever", details="Allocated quota exceeded, sorry.")),
        UpstreamRateLimited,
        "Whatever",
        None,
    ),
    "WE-03 quotaLimited": (
        dump(failed(code="quotaLimited")),
        UpstreamRateLimited,
        "quotaLimited",
        None,
    ),
    "WE-04": (
        dump(failed(code="Bad_Request", details="The chat is in progress!")),
        UpstreamRateLimited,
        "Bad_Request",
        5,
    ),
    "WE-04 as an error": (
        dump({"error": {"message": "The chat is in progress!"}}),
        UpstreamRateLimited,
        "upstream_rate_limited",
        5,
    ),
    "WE-05": (
        dump(failed(code="Bad_Request", details="Invalid input too many messages.")),
        UpstreamRefused,
        "Bad_Request",
        None,
    ),
    "WE-06": (
        dump(failed(code="Bad_Request", details="Internal error, try later")),
        UpstreamError,
        "upstream_failed",
        None,
    ),
    "WE-07": (
        dump(failed(code="unauthorized")),
        UpstreamAuthenticationFailed,
        "upstream_authentication",
        None,
    ),
    "WE-07 in words": (
        dump({"error": "Token has expired, please log in again."}),
        UpstreamAuthenticationFailed,
        "upstream_authentication",
        None,
    ),
    "WE-07 invalid_token": (
        dump({"error": {"code": "invalid_token"}}),
        UpstreamAuthenticationFailed,
        "upstream_authentication",
        None,
    ),
    "WE-08": (
        dump(failed(code="Not_Found", details="Model not found")),
        UpstreamRefused,
        "model_not_found",
        None,
    ),
    "WE-09": (
        dump(failed(code="Internal_Server_Error", details="x")),
        UpstreamError,
        "upstream_failed",
        None,
    ),
    "WE-10": (
        dump({"code": "RateLimited", "detail": "x", "template": "t", "num": 4}),
        UpstreamRateLimited,
        "RateLimited",
        14400,
    ),
    "WE-11": (
        dump({"error": {"code": "Internal_Server_Error", "details": "x"}}),
        UpstreamError,
        "upstream_failed",
        None,
    ),
    "WE-12": (dump({"error": "out of order"}), UpstreamError, "upstream_failed", None),
    "WE-14": (
        dump({"ret": ["FAIL_SYS_USER_VALIDATE", "RGV587_ERROR::SM::x"], "data": {"url": "u"}}),
        UpstreamBlocked,
        "upstream_blocked",
        None,
    ),
    "WE-14 second sign": (
        dump({"ret": ["RGV587_ERROR::SM::x"]}),
        UpstreamBlocked,
        "upstream_blocked",
        None,
    ),
    "WE-14 without sense": (
        dump({"ret": 5}),
        UpstreamInvalidResponse,
        "upstream_invalid_response",
        None,
    ),
}


def check_failure(reading: Reading, name: str) -> None:
    _, kind, code, retry_after = FAILURES[name]
    error = reading.error
    assert error is not None
    assert (type(error), error.code, error.retry_after) == (kind, code, retry_after)
    assert not reading.finishes


@MODE
@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_known_in_whatever_dress_it_comes(name: str, incremental: bool) -> None:
    body = FAILURES[name][0]
    indented = dump(json.loads(body), indent=2)
    dresses = {
        "bare": body,
        "bare, with blanks before": b"\n \r\n" + body + b"\n",
        "bare, with a byte order mark": b"\xef\xbb\xbf" + body,
        "over several lines": indented,
        "over several lines, with a byte order mark": b"\xef\xbb\xbf" + indented,
        "frame": b"data: " + body + b"\n\n",
        "frame that goes on": b"data: " + body + b"\n\n" + frame("a") + DONE,
        "frame of several lines": b"data: " + indented.replace(b"\n", b"\ndata: ") + b"\n\n",
        "frame without a blank": b"data:" + body + b"\r\n\r\n",
        "frame without an end": b"data: " + body,
        "event: error": b"event: error\ndata: " + body + b"\n\n",
        "bare line in a stream": b": hello\n\n" + body + b"\n\n",
        "bare line, then frames": body + b"\n\n" + frame("a") + DONE,
    }
    for (dress, data), size in product(dresses.items(), SPLITS):
        reading = read(decoder(incremental), pieces(data, size))
        check_failure(reading, name)
        assert reading.events == [], dress


@MODE
@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_after_text_comes_after_all_of_the_text(name: str, incremental: bool) -> None:
    text = [frame("<think>hm</think>-"), frame("<think>hm</think>--")]
    if incremental:
        text = [frame("<think>hm</think>-"), frame("-"), frame(" <thi")]
    failure = FAILURES[name][0]
    forms = [b"data: " + failure + b"\n\n", failure + b"\n\n"]
    error = json.loads(failure).get("error")
    if error:
        forms.append(frame("x", error=error))
    for form, size in product(forms, SPLITS):
        reading = read(decoder(incremental), pieces(b"".join(text) + form, size))
        check_failure(reading, name)
        assert reading.reasoning == "hm"
        assert reading.text == ("-- <thi" if incremental else "--")


def test_a_frame_named_error_is_one_whatever_it_says() -> None:
    for data in b"data: boom", b"data:", b"data: {}", b"data: 5", b'data: {"message": "x"}', b"":
        body = frame("ha") + frame("haha") + b"event: error\n" + data + b"\n\n" + DONE
        for size in SPLITS:
            reading = read(decoder(), pieces(body, size))
            assert type(reading.error) is UpstreamError
            assert reading.text == "hahaha"


@SPLIT
@pytest.mark.parametrize(
    "start", [b"", b"\n\n", b"\xef\xbb\xbf", b" \xef\xbb\xbf\n"], ids=["", "blanks", "BOM", "both"]
)
@pytest.mark.parametrize("page", [sample("web-waf.html").data, b"<html>", b"<", b"<?xml?>"])
def test_a_web_page_is_a_block(page: bytes, start: bytes, size: int | None) -> None:
    reading = read(decoder(), pieces(start + page, size))
    assert type(reading.error) is UpstreamBlocked
    assert "html" not in str(reading.error)
    assert reading.events == []


@SPLIT
@pytest.mark.parametrize("between", [b"", b"\n", b" \r\n"])
def test_a_second_byte_order_mark_is_none(between: bytes, size: int | None) -> None:
    body = between.join([b"", sse.BOM, sse.BOM, b"<html>"])
    assert type(read(decoder(), pieces(body, size)).error) is UpstreamInvalidResponse


NO_ANSWERS = {
    "nothing": b"",
    "blanks": b" \r\n\n \t",
    "half a byte order mark": b"\xef\xbb",
    "comments": b": a\n\n: b\n\n",
    "[DONE] alone": DONE,
    "empty frames": frame("") + frame(None) + DONE,
    "an empty answer": frame("", phase="answer") + frame("", phase="answer", status="finished"),
    "thinking alone": frame("Let me see", phase="think") + frame("", phase="answer") + DONE,
    "thinking in tags alone": frame("<think>Let me see</think>"),
    "a search result alone": frame("", role="function", name="web_search"),
    "an empty object": b"{}",
    "an object without sense": b'{"hello": "world"}',
    "a list": b"[1, 2]",
    "no choices": b'{"choices": []}',
    "odd choices": b'{"choices": 5}',
    "choices without a message": b'{"choices": [{"delta": {"content": "x"}}]}',
    "no content": b'{"choices": [{"message": {"role": "assistant", "content": null}}]}',
    "a detail": b'{"detail": "401 Unauthorized"}',
    "broken JSON": b'{"choices": [}',
    "a broken frame": b'data: {"choices": [}\n\n',
    "a broken frame of a stream": b": x\n\ndata: {'a': 5}\n\n",
    "plain words": b"Service Unavailable",
    "plain lines": b"Service\nUnavailable\n",
    "compressed": b"\x1f\x8b\x08\x00\xff\xfe\x00\xc3\x28\n\x80\x81 not an event\n\n\xf0\x9f",
    "not UTF-8": b'data: {"choices": [{"delta": {"content": "\xff\xfe"}}]}\n\n',
    "half a surrogate": b'data: {"choices": [{"delta": {"content": "\\ud800"}}]}\n\n',
    "nested beyond all measure": b'data: {"a":' + b"[" * 10_000 + b"\n\n",
    "nested document": b'{"a":' + b"[" * 10_000,
    "a number beyond all measure": b'data: {"usage": ' + b"9" * 5000 + b"}\n\n",
}


@END
@MODE
@pytest.mark.parametrize("name", NO_ANSWERS)
def test_what_holds_no_answer_is_an_error(
    name: str, incremental: bool, ends_by_close: bool
) -> None:
    body = NO_ANSWERS[name]
    for size in SPLITS:
        reading = read(decoder(incremental, ends_by_close), pieces(body, size))
        assert isinstance(reading.error, UpstreamInvalidResponse)
        assert reading.text == ""
        assert not reading.finishes


def test_an_answer_cut_short_while_it_still_thought_is_whole() -> None:
    """`length` says that the upstream ended it so; a client that set the limit is told that."""
    body = frame("Let me see", phase="think") + (
        b'data: {"choices": [{"delta": {"content": ""}, "finish_reason": "length"}]}\n\n'
    )
    assert read(decoder(), [body]).events[-1] == Finish("length")


def test_an_answer_longer_than_its_limits_is_an_error_after_all_its_text() -> None:
    megabyte = b"x" * 2**20
    for start in b'data: {"a": "', b"data: 5\n", b"data: 5\r":
        body = [frame("ha"), frame("haha"), start, *[megabyte] * 17]
        if not start.endswith(b'"'):
            body = [frame("ha"), frame("haha"), start, *[b"data: %b\n" % megabyte] * 17]
        reading = read(decoder(), body)
        assert isinstance(reading.error, UpstreamInvalidResponse)
        assert "too long" in str(reading.error)
        assert reading.text == "hahaha"
    reading = read(decoder(), [b'{"a": "', *[megabyte] * 17])
    assert isinstance(reading.error, UpstreamInvalidResponse)
    assert "too long" in str(reading.error)


def test_a_stream_that_contradicts_its_own_snapshots_is_an_error_and_takes_nothing_back() -> None:
    body = [frame("The answer"), frame("The answer is"), frame("No: it"), DONE]
    reading = read(decoder(incremental=False), body)
    assert isinstance(reading.error, UpstreamInvalidResponse)
    assert ADVICE in str(reading.error)
    assert reading.text == "The answer is"


# Any text, cut anyhow.

AWKWARD = [
    *["ha", "haha", "aaaa", "-", "--", "----", "1", "11", "\n", "\n\n", "\r", "\r\n", " ", "  "],
    *["\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\x00", "\x7f", "\ufeff"],
    *[
        "🙂",
        "👨‍👩‍👧",
        "é",
        "e\u0301",
        "你好",
        "，",
        "世界",
        "data: x",
        "data:",
        "[DONE]",
        ": c",
        "{",
        "}",
    ],
    *['"', "\\", "\\n", "event: error", "<", "<think", "<think>", "</think>", "</", "think>"],
]
"""Repetitions, every line end of `str.splitlines`, what takes several bytes, and what looks like
the wire."""

assert {c for part in AWKWARD for c in part} >= {
    c for c in map(chr, range(0x110000)) if len(f"a{c}b".splitlines()) > 1
}

texts = st.one_of(
    st.lists(st.sampled_from(AWKWARD), max_size=12).map("".join),
    st.text(max_size=40),
    st.builds(
        lambda unit, n: unit * n, st.sampled_from(["ha", "aaaa", "-", "ab "]), st.integers(1, 15)
    ),
)
places = st.lists(st.integers(0, 10_000), max_size=15)


@st.composite
def encoded(draw: st.DrawFn, deltas: list[dict[str, Any]], done: bool) -> list[bytes]:
    """Return a stream that holds these deltas, in one of the ways that an upstream may write it."""
    line_end = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    noise = st.sampled_from(
        [b": keep-alive", b"id: 7", b"event: message", b"event:", b"retry: 9", b"what: ever", b":"]
    )
    lines: list[bytes] = []
    for delta in deltas:
        document = {"choices": [{"delta": {"role": "assistant", **delta}}]}
        indent = draw(st.sampled_from([None, None, None, 1]))
        text = json.dumps(document, ensure_ascii=draw(st.booleans()), indent=indent)
        start = draw(st.sampled_from([b"data: ", b"data:"]))
        lines += draw(st.lists(noise, max_size=1))
        lines += [start + line.encode() for line in text.split("\n")]
        lines += [b""] * draw(st.sampled_from([1, 1, 1, 2]))
    if done:
        lines += [b"data: [DONE]", b""]
    body = line_end.join([*lines, b""])
    if draw(st.booleans()) and lines and not done:
        body = body.rstrip()
    if draw(st.booleans()):
        body = b"\xef\xbb\xbf" + body
    if draw(st.booleans()):
        return pieces(body, draw(st.sampled_from(SPLITS)))
    return at(body, draw(places))


def think_split(text: str) -> tuple[str, str]:
    """Return text and reasoning, as the whole text tells them."""
    begun = text.lstrip()
    if len(text) - len(begun) > 64 or not begun.startswith("<think>"):
        return text, ""
    thought, _, answer = begun.removeprefix("<think>").partition("</think>")
    return answer, thought


def check(body: Sequence[bytes], text: str, reasoning: str, incremental: bool, end: bool) -> None:
    """Read `body`, and look at what is out after every piece."""
    reader = decoder(incremental, ends_by_close=end)
    reading = Reading()
    try:
        for piece in body:
            reading.events += reader.feed(piece)
            assert text.startswith(reading.text)
            assert reasoning.startswith(reading.reasoning)
        reading.events += reader.close()
    except UpstreamError as error:
        reading.error = error
        reading.events += reader.flush()
    assert (reading.text, reading.reasoning) == (text, reasoning)
    if text:
        assert reading.error is None
        assert reading.events[-1] == Finish("stop")
    else:
        assert isinstance(reading.error, UpstreamInvalidResponse)
    assert all(event.text for event in reading.events if isinstance(event, TextDelta))


def snapshots_of(data: st.DataObject, text: str) -> list[str]:
    """Return frames that each hold the text so far, with all that W1-28 knows between them."""
    so_far = [text[: len(text) - len(rest)] for rest in cut(data, text)]
    frames: list[str] = []
    for snapshot in [*so_far, text]:
        frames += [snapshot] * data.draw(st.sampled_from([1, 1, 1, 2]))
        if data.draw(st.integers(0, 3)) == 0:
            frames.append("")
        if data.draw(st.integers(0, 3)) == 0:
            frames.append(snapshot[: data.draw(st.integers(0, len(snapshot)))])
    return frames


def cut(data: st.DataObject, text: str) -> list[str]:
    """Return the rests of `text` behind some places in it."""
    some = sorted(place % (len(text) + 1) for place in data.draw(places))
    return [text[place:] for place in some]


def pieces_of(data: st.DataObject, text: str) -> list[str]:
    starts = [len(text) - len(rest) for rest in cut(data, text)]
    return [text[a:b] for a, b in zip([0, *starts], [*starts, len(text)], strict=True)]


def could_be_snapshots(frames: Sequence[str]) -> bool:
    """Whether frame after frame, from the very first, repeats the frame before and adds to it.

    That is necessary for taking pieces for snapshots, and not sufficient: see the tests of
    `TextReader` for the streams that must not be taken so although they are like that.
    """
    said = [frame for frame in frames if frame]
    steps = list(itertools.pairwise(said))
    grown = [b for a, b in steps if len(b) > len(a)]
    return all(b.startswith(a) for a, b in steps) and len(grown) >= 3


@thorough
@given(data=st.data(), text=texts, done=st.booleans(), phase=st.sampled_from(["answer", None]))
def test_snapshots_come_out_as_the_text_in_any_cut_and_split(
    data: st.DataObject, text: str, done: bool, phase: str | None
) -> None:
    deltas = [delta_of(content, phase) for content in snapshots_of(data, text)]
    answer, reasoning = (text, "") if phase else think_split(text)
    end = done or phase is None
    check(data.draw(encoded(deltas, done)), answer, reasoning, False, end)


@thorough
@given(data=st.data(), text=texts, done=st.booleans(), phase=st.sampled_from(["answer", None]))
def test_pieces_come_out_as_the_text_in_any_cut_and_split(
    data: st.DataObject, text: str, done: bool, phase: str | None
) -> None:
    contents = pieces_of(data, text)
    if could_be_snapshots(contents):
        # With another letter before it, it is no longer what it seemed.
        other = "x" if text[0] != "x" else "y"
        contents = [other, *contents]
        text = other + text
    deltas = [delta_of(content, phase) for content in contents]
    answer, reasoning = (text, "") if phase else think_split(text)
    check(data.draw(encoded(deltas, done)), answer, reasoning, True, done or phase is None)


@thorough
@given(data=st.data(), thought=texts, text=texts, done=st.booleans(), incremental=st.booleans())
def test_phases_come_out_as_reasoning_and_text(
    data: st.DataObject, thought: str, text: str, done: bool, incremental: bool
) -> None:
    make = pieces_of if incremental else snapshots_of
    contents = {"think": make(data, thought), "answer": make(data, text)}
    if incremental and any(could_be_snapshots(frames) for frames in contents.values()):
        contents = {"think": list(thought), "answer": list(text)}
    deltas: list[dict[str, Any]] = []
    for phase, frames in contents.items():
        deltas += [delta_of(content, phase) for content in frames]
        deltas.append({"content": "", "phase": phase, "status": "finished"})
    check(data.draw(encoded(deltas, done)), text, thought, incremental, True)


SCRAPS: list[dict[str, Any]] = [
    {"content": "<think>"},
    {"content": "a"},
    {"content": "</think>"},
    {"content": "b", "phase": "answer"},
    {"content": "c", "phase": "think"},
    {"content": "", "phase": "answer", "status": "finished"},
    {"content": "d", "reasoning_content": "e"},
    {"content": "f", "role": "function"},
    {"content": "g", "phase": "web_search"},
]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_frames_that_come_one_by_one_mean_what_they_mean_together(number: int) -> None:
    """The usual frames are read in a quick way of their own; what is usual depends on the frames
    before, and so on where a read ends."""
    for deltas in product(SCRAPS, repeat=number):
        frames = [frame(**delta) for delta in deltas]
        for body in [*frames, b"data: [DONE]\n\n"], [*frames, frame("h"), frame("i")]:
            one_by_one, together = read(decoder(), body), read(decoder(), [b"".join(body)])
            for reading in one_by_one, together:
                reading.events = joined(reading.events)
            assert one_by_one.events == together.events, body
            assert type(one_by_one.error) is type(together.error), body
            assert str(one_by_one.error) == str(together.error), body


def joined(events: list[Event]) -> list[Event]:
    """Put neighbouring pieces together: how they are cut is free."""
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta):
            found[-1] = TextDelta(last.text + event.text)
        elif isinstance(event, ReasoningDelta) and isinstance(last, ReasoningDelta):
            found[-1] = ReasoningDelta(last.text + event.text)
        else:
            found.append(event)
    return found


def test_text_after_an_empty_thought_is_an_answer() -> None:
    for thought in ["<think></think>"], ["<think>", "</think>"], ["<think>", "a", "</think>"]:
        body = [frame(text) for text in [*thought, "hello", " world"]]
        reading = read(decoder(), [*body, b"data: [DONE]\n\n"])
        assert reading.error is None
        assert [e.text for e in reading.events if isinstance(e, TextDelta)] == ["hello", " world"]


def delta_of(content: str, phase: str | None) -> dict[str, Any]:
    return {"content": content} if phase is None else {"content": content, "phase": phase}


@thorough
@given(
    data=st.data(),
    words=st.lists(st.sampled_from(["the ", "the ", "haha ", "你好世", "\u2028\n\n"]), min_size=4),
    phase=st.sampled_from(["answer", None]),
)
def test_an_upstream_that_ignores_the_flag_is_recognised_and_its_text_comes_once(
    data: st.DataObject, words: list[str], phase: str | None
) -> None:
    """The first word is not said again: such a text cannot be pieces that repeat themselves."""
    frames = ["Q" + "".join(words[:end]) for end in range(len(words) + 1)]
    deltas = [delta_of(content, phase) for content in frames]
    check(data.draw(encoded(deltas, True)), frames[-1], "", True, True)


@thorough
@given(data=st.data(), text=texts)
def test_pieces_where_snapshots_were_asked_for_are_read_whole_or_are_an_error(
    data: st.DataObject, text: str
) -> None:
    contents = pieces_of(data, text)
    deltas = [delta_of(content, "answer") for content in contents]
    reading = read(decoder(incremental=False), data.draw(encoded(deltas, True)))
    longest = max(contents, key=len)
    if reading.error is None:
        assert reading.text in (text, longest)
        if reading.text != text:
            assert all(longest.startswith(content) for content in contents)
    else:
        assert isinstance(reading.error, UpstreamInvalidResponse)


@thorough
@given(body=st.binary(max_size=200), cuts=places, incremental=st.booleans(), data=st.data())
def test_any_bytes_are_read_without_any_other_error_and_alike_in_any_split(
    body: bytes, cuts: list[int], incremental: bool, data: st.DataObject
) -> None:
    lines = st.sampled_from(
        [frame("ha"), frame("haha"), DONE, b"event: error\n", b"{", b"\r", b"\n"]
    )
    body = b"".join(data.draw(st.lists(lines | st.just(body), max_size=6)))
    whole = read(decoder(incremental), [body])
    assert read(decoder(incremental), at(body, cuts)).outcome == whole.outcome
    assert read(decoder(incremental), pieces(body, 1)).outcome == whole.outcome
    assert (whole.error is None) == bool(whole.finishes)


def test_events_are_given_out_as_soon_as_they_are_certain() -> None:
    """A stream of ordinary pieces is not held back beyond its second frame."""
    reader = decoder()
    out: list[list[Event]] = [reader.feed(frame(word)) for word in ("The ", "answer ", "is ", "2")]
    assert out == [
        [TextDelta("The ")],
        [TextDelta("answer ")],
        [TextDelta("is ")],
        [TextDelta("2")],
    ]
