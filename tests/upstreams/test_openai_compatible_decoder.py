"""The answers of OpenAI-compatible servers: Model Studio's recorded ones, and what others send."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_asgi.chat import Answer, Extra, Finish, ReasoningDelta, TextDelta, fold
from qwen_asgi.errors import (
    UpstreamAuthenticationFailed,
    UpstreamError,
    UpstreamForbidden,
    UpstreamInvalidResponse,
    UpstreamQuotaExhausted,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTruncated,
)
from qwen_asgi.upstreams._openai_errors import refusal
from qwen_asgi.upstreams.openai_compatible_decoder import OpenAIDecoder
from tests.wire import SPLITS, Reading, Sample, answers, at, pieces, read, streams

ERRORS = {
    "auth": UpstreamAuthenticationFailed,
    "bad_request": UpstreamRefused,
    "forbidden": UpstreamForbidden,
    "moderation": UpstreamRefused,
    "not_found": UpstreamRefused,
    "quota_exhausted": UpstreamQuotaExhausted,
    "rate_limited": UpstreamRateLimited,
    "upstream": UpstreamError,
}
"""The classes of `expected.json`."""

CHATS = [sample for sample in answers("dashscope") if sample.is_chat]
ANSWERS = [sample for sample in CHATS if sample.status == 200]
REFUSALS = [sample for sample in CHATS if sample.status != 200]
SPLIT = pytest.mark.parametrize("size", SPLITS, ids=lambda size: f"pieces of {size or 'all'}")
DONE = b"data: [DONE]\n\n"


def decode(body: bytes, size: int | None = None) -> Reading:
    return read(OpenAIDecoder(), pieces(body, size))


def chunk(finish_reason: str | None = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: %b\n\n" % json.dumps({"choices": [choice]}, ensure_ascii=False).encode()


def calls_of(answer: Answer) -> list[dict[str, Any]]:
    return [
        {"id": call.id, "name": call.name, "arguments": json.loads(call.arguments)}
        for call in answer.tool_calls
    ]


@SPLIT
@pytest.mark.parametrize("sample", ANSWERS, ids=str)
def test_each_recorded_answer_means_what_the_wire_notes_say(
    sample: Sample, size: int | None
) -> None:
    reading, expect = decode(sample.data, size), sample.expect
    assert reading.text == expect["content"]
    assert reading.reasoning == expect.get("reasoning", "")
    error = expect.get("error")
    if error is not None:
        assert type(reading.error) is ERRORS[error["class"]]
        assert reading.error.code == error["code"]
        assert not reading.finishes
        return
    assert reading.error is None
    answer = fold(reading.events)
    assert calls_of(answer) == expect["tool_calls"]
    assert reading.finishes == [Finish(expect["finish_reason"])]
    if "usage" not in expect:
        assert reading.usages == []
        return
    [usage] = reading.usages
    assert {name: getattr(usage, name) for name in expect["usage"]} == expect["usage"]


@pytest.mark.parametrize("sample", REFUSALS, ids=str)
def test_each_recorded_refusal_is_the_error_that_it_means(sample: Sample) -> None:
    error = refusal(sample.status, sample.headers, sample.data)
    assert type(error) is ERRORS[sample.expect["error"]["class"]]
    known = {"auth": "upstream_authentication", "upstream": "upstream_failed"}
    expected = sample.expect["error"]
    assert error.code == known.get(expected["class"], expected["code"])


@pytest.mark.parametrize("sample", streams("dashscope"), ids=str)
def test_a_recorded_stream_cut_at_any_byte_is_an_error_until_its_reason_has_come(
    sample: Sample,
) -> None:
    if sample.status != 200 or "error" in sample.expect:
        return
    body = sample.data
    # From the blank line on, of which the first line end alone will do.
    reason = body.index(b"\n\n", body.index(sample.expect["finish_reason"].encode() + b'"'))
    for cut in range(len(body)):
        reading = decode(body[:cut])
        if cut < reason:
            assert isinstance(reading.error, UpstreamTruncated | UpstreamInvalidResponse)
            assert sample.expect["content"].startswith(reading.text)
        elif reading.error is not None:
            # Cut inside the frame of the usage, or of the end.
            assert type(reading.error) is UpstreamTruncated
        else:
            assert reading.finishes == [Finish(sample.expect["finish_reason"])]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thinking_has_either_name(name: str) -> None:
    reading = decode(chunk(**{name: "hm"}, content=None) + chunk(content="a") + chunk("stop"))
    assert (reading.reasoning, reading.text) == ("hm", "a")


@SPLIT
def test_thinking_within_the_text_is_told_from_it(size: int | None) -> None:
    body = chunk(content="<thi") + chunk(content="nk>hm</think>\n\na") + chunk("stop") + DONE
    reading = decode(body, size)
    assert (reading.reasoning, reading.text.strip()) == ("hm", "a")


def test_tags_after_thinking_of_its_own_are_text() -> None:
    body = chunk(reasoning_content="hm") + chunk(content="<think>") + chunk("stop")
    assert decode(body).text == "<think>"


@pytest.mark.parametrize(
    ("said", "meant"),
    [("stop", "stop"), ("length", "length"), ("eos_token", "stop"), ("content_filter",) * 2],
)
def test_the_reason_is_one_that_openai_knows(said: str, meant: str) -> None:
    reading = decode(chunk(content="a") + chunk(said) + DONE)
    assert [finish.reason for finish in reading.finishes] == [meant]


def test_an_answer_that_says_it_ended_may_be_empty() -> None:
    assert decode(chunk("stop", content="")).finishes == [Finish("stop")]
    assert isinstance(decode(DONE).error, UpstreamInvalidResponse)
    assert isinstance(decode(b"").error, UpstreamInvalidResponse)


@SPLIT
def test_other_choices_are_not_read_for_being_of_the_same_shape(size: int | None) -> None:
    """Model Studio writes the index behind the text."""

    def late(index: int, **delta: str) -> bytes:
        choice = {"delta": delta, "index": index}
        return b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode()

    for field in "content", "reasoning_content":
        frames = [late(n % 2, **{field: text}) for n, text in enumerate("aXbYcZ")]
        reading = decode(b"".join([*frames, chunk("stop"), DONE]), size)
        assert (reading.text or reading.reasoning) == "abc"


def test_a_done_without_a_reason_ends_an_answer() -> None:
    assert decode(chunk(content="a") + DONE).finishes == [Finish("stop")]


def test_other_choices_than_the_first_are_not_read() -> None:
    other = chunk(content="b").replace(b'"index": 0', b'"index": 1')
    body = chunk(content="a") * 4 + other + chunk(content="a") + chunk("stop")
    assert decode(body).text == "aaaaa"


def test_what_openai_does_not_have_goes_on() -> None:
    body = chunk(content="a", audio={"data": "x"}) + chunk("stop")
    assert decode(body).extras == [Extra("delta", {"audio": {"data": "x"}})]


def test_probabilities_go_on() -> None:
    probabilities: dict[str, Any] = {"content": [{"token": "a", "logprob": -0.1}]}
    choice = {"index": 0, "delta": {"content": "a"}, "logprobs": probabilities}
    frame = b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode()
    reading = decode(frame * 5 + chunk("stop"))
    assert reading.extras == [Extra("logprobs", probabilities)] * 5


@pytest.mark.parametrize(
    "body",
    [
        b'{"object": "error", "message": "no such thing", "type": "NotFoundError", "code": 404}',
        b'data: {"object": "error", "message": "no such thing", "code": 404}\n\n',
        b'{"error": {"message": "no such thing", "code": "model_not_found"}}',
    ],
)
def test_a_failure_is_known_in_whatever_dress_it_comes(body: bytes) -> None:
    reading = decode(body)
    assert type(reading.error) is UpstreamRefused
    assert reading.error.code == "model_not_found"


def test_a_failure_in_a_sentence_is_one() -> None:
    assert "no room" in str(decode(chunk(content="a") + b'data: {"error": "no room"}\n\n').error)


def test_a_web_page_is_no_answer() -> None:
    assert "QWEN_BASE_URL" in str(decode(b"<!doctype html>").error)


@pytest.mark.parametrize("body", [b"", b"null", b"\xff\x00\n\n", b": still here\n\n"])
def test_what_holds_no_frame_is_no_answer_that_broke_off(body: bytes) -> None:
    assert type(decode(body).error) is UpstreamInvalidResponse


def test_pings_and_comments_are_skipped() -> None:
    ping = b": ping\n\nevent: ping\n\n"
    body = ping + chunk(content="a") + ping + chunk("stop") + ping + DONE
    assert decode(body).text == "a"


texts = st.lists(st.text(max_size=6) | st.sampled_from(["<think>", "</think>", '"', "\n"]))


@settings(max_examples=200, deadline=None, database=None)
@given(texts, st.lists(st.integers(0), max_size=8), st.booleans())
def test_the_text_comes_out_whole_in_any_split(
    said: list[str], cuts: list[int], thought: bool
) -> None:
    frames = [chunk(reasoning_content="hm")] * thought + [chunk(content=text) for text in said]
    body = b"".join([*frames, chunk("stop"), DONE])
    whole, cut = decode(body), read(OpenAIDecoder(), at(body, cuts))
    assert whole.outcome == cut.outcome
    if thought:
        assert (whole.text, whole.reasoning) == ("".join(said), "hm")


def test_events_come_as_soon_as_they_are_certain() -> None:
    decoder = OpenAIDecoder()
    assert decoder.feed(chunk(content="a")) == [TextDelta("a")]
    assert decoder.feed(chunk(content="b")) == [TextDelta("b")]
    assert decoder.feed(chunk(reasoning_content="c")) == [ReasoningDelta("c")]
