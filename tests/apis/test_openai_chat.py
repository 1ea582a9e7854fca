from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_asgi.apis.openai_chat import (
    MOST_MESSAGES,
    MOST_PARTS,
    REASONING_FIELDS,
    OpenAIChat,
    _Body,
)
from qwen_asgi.chat import (
    Answer,
    ChatRequest,
    Choice,
    Event,
    Extra,
    Finish,
    FinishReason,
    Fold,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
    fold,
)
from qwen_asgi.errors import (
    InternalError,
    InvalidRequest,
    ModelNotFound,
    UpstreamRateLimited,
    UpstreamTruncated,
)
from qwen_asgi.upstreams.qwen_web_v1 import QwenWebV1
from tests.schemas import check_answer, check_chunk, check_error, check_request

BASE: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def read(**fields: Any) -> ChatRequest:
    return OpenAIChat().read(json.dumps({**BASE, **fields}).encode())


def refused(body: bytes | dict[str, Any]) -> InvalidRequest:
    data = body if isinstance(body, bytes) else json.dumps({**BASE, **body}).encode()
    with pytest.raises(InvalidRequest) as raised:
        OpenAIChat().read(data)
    error = raised.value
    assert (error.status, error.type) == (400, "invalid_request_error")
    assert len(str(error)) < 600
    check_error(json.loads(OpenAIChat().error(error)))
    return error


def raw(field: bytes) -> bytes:
    """Return a body with one more field, written by hand."""
    return json.dumps(BASE).encode()[:-1] + b", " + field + b"}"


# What is read.


def test_the_seeds_request_is_read() -> None:
    body = {
        "model": "qwen-max-latest",
        "messages": [{"role": "user", "content": "你好"}],
        "stream": False,
    }
    check_request(body)
    chat = OpenAIChat().read(json.dumps(body, ensure_ascii=False).encode())
    assert chat.model == "qwen-max-latest"
    assert [(message.role, message.text) for message in chat.messages] == [("user", "你好")]
    assert not chat.stream
    assert not chat.include_usage
    assert chat.temperature is None
    assert chat.max_tokens is None
    assert chat.options == {}


def test_what_the_chat_models_is_in_its_fields_and_the_rest_in_options() -> None:
    rest = {"top_p": 0.5, "stop": ["a"], "user": "me", "unknown": {"a": [1, None]}}
    chat = read(
        stream=True,
        stream_options={"include_usage": True, "unknown": 1},
        temperature=1,
        max_tokens=5,
        **rest,
    )
    assert chat.stream
    assert chat.include_usage
    assert chat.temperature == 1
    assert chat.max_tokens == 5
    assert chat.options == rest


def test_the_newer_name_of_the_token_limit_goes_before_the_older() -> None:
    assert read(max_completion_tokens=7).max_tokens == 7
    assert read(max_completion_tokens=7, max_tokens=5).max_tokens == 7
    assert read(max_completion_tokens=None, max_tokens=5).max_tokens == 5


CONTENTS: dict[str, tuple[Any, str, list[str]]] = {
    "text": ("a\nb", "a\nb", []),
    "empty text": ("", "", []),
    "a list of parts": (
        [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        "a\nb",
        ["text", "text"],
    ),
    "one part": ({"type": "text", "text": "a"}, "a", ["text"]),
    "a part without a type": ([{"text": "a", "more": 1}], "a", ["text"]),
    "one part without a type": ({"text": "a"}, "a", ["text"]),
    "parts of other kinds": (
        [
            {"type": "text", "text": "a"},
            {"type": "image_url", "image_url": {"url": "https://example.org"}},
            {"type": "input_audio", "input_audio": {}, "text": "not text"},
            {"type": "text", "text": "b"},
        ],
        "a\nb",
        ["text", "image_url", "input_audio", "text"],
    ),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_content_is_read_in_each_of_its_forms(name: str) -> None:
    content, text, kinds = CONTENTS[name]
    (message,) = read(messages=[{"role": "user", "content": content}]).messages
    assert message.text == text
    if kinds:
        parts = content if isinstance(content, list) else [content]
        assert not isinstance(message.content, str)
        assert [part.kind for part in message.content] == kinds
        assert [part.data for part in message.content] == parts


def test_roles_are_openais_and_developer_is_read_as_system() -> None:
    roles = ["system", "developer", "user", "assistant", "tool", "function"]
    chat = read(messages=[{"role": role, "content": "a"} for role in roles])
    assert [message.role for message in chat.messages] == [
        "system",
        "system",
        "user",
        "assistant",
        "tool",
        "function",
    ]


def test_other_fields_of_a_message_are_kept_unless_they_say_nothing() -> None:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None,
        "name": "x",
        "tool_calls": [{"id": "1"}],
        "refusal": None,
        "audio": None,
        "annotations": [],
        "extra": {},
        "zero": 0,
        "no": False,
        "copy": "a name that pydantic has too",
    }
    (found,) = read(messages=[message]).messages
    assert found.text == ""
    assert found.extra == {
        name: message[name] for name in ("name", "tool_calls", "zero", "no", "copy")
    }


@pytest.mark.parametrize("name", ["tool_calls", "function_call", "name", "anything"])
@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": "a"}])
def test_a_message_keeps_its_other_fields_with_and_without_content(
    name: str, content: dict[str, Any]
) -> None:
    (found,) = read(messages=[{"role": "assistant", **content, name: [{"id": "1"}]}]).messages
    assert found.extra == {name: [{"id": "1"}]}


def test_null_counts_as_absent() -> None:
    optional = [name for name in _Body.__annotations__ if name not in BASE]
    assert read(**dict.fromkeys(optional), unknown=None) == read()
    assert not read(stream_options={"include_usage": None}).include_usage


@pytest.mark.parametrize(
    "name",
    ["copy", "json", "dict", "model_dump", "model_config", "model_extra", "__class__", "__dict__"],
)
def test_an_unknown_field_is_kept_whatever_its_name(name: str) -> None:
    assert read(**{name: 5}).options == {name: 5}


def test_the_last_of_two_equal_names_counts() -> None:
    body = raw(b'"n": 2, "n": 1, "zz": 1, "zz": {"a": 1, "a": 2}, "model": "last", "stream": 1')
    body = body.replace(b'"stream": 1', b'"stream": false, "stream": true')
    chat = OpenAIChat().read(body)
    assert chat.model == "last"
    assert chat.stream is True
    assert chat.options == {"n": 1, "zz": {"a": 2}}


@pytest.mark.parametrize("seed", [-(2**63), 2**63 - 1])
def test_bounds_that_are_met_are_no_error(seed: int) -> None:
    at_bounds = {
        "temperature": 2,
        "top_p": 1,
        "presence_penalty": -2.0,
        "n": 128,
        "top_logprobs": 20,
        "max_tokens": 2**31 - 1,
        "seed": seed,
        "model": "x" * 256,
    }
    read(**at_bounds)


def test_a_whole_number_may_be_written_with_a_point() -> None:
    chat = OpenAIChat().read(raw(b'"max_tokens": 10.0, "n": 1e0, "seed": -0.0'))
    assert chat.max_tokens == 10
    assert chat.options == {"n": 1, "seed": 0}
    assert type(chat.max_tokens) is int


def test_an_assistants_refusal_in_a_history_is_its_text() -> None:
    parts = [{"type": "refusal", "refusal": "No."}]
    (message,) = read(messages=[{"role": "assistant", "content": parts}]).messages
    assert message.text == "No."


# What is refused.

ACCEPTED: dict[str, str] = {
    "model": "string",
    "messages": "",
    "stream": "bool",
    "stream_options": "object",
    "temperature": "integer fraction",
    "max_tokens": "integer",
    "max_completion_tokens": "integer",
    "audio": "object",
    "frequency_penalty": "integer fraction",
    "function_call": "object",
    "functions": "",
    "logit_bias": "object",
    "logprobs": "bool",
    "metadata": "object",
    "modalities": "",
    "n": "integer",
    "parallel_tool_calls": "bool",
    "prediction": "object",
    "presence_penalty": "integer fraction",
    "prompt_cache_key": "string",
    "reasoning_effort": "string",
    "response_format": "",
    "safety_identifier": "string",
    "seed": "integer",
    "service_tier": "string",
    "stop": "string",
    "store": "bool",
    "tool_choice": "string object",
    "tools": "",
    "top_logprobs": "integer",
    "top_p": "integer",
    "user": "string",
    "verbosity": "string",
    "web_search_options": "object",
}
"""Which of the values below each field takes; the list and the object suit no list, and no object
that must hold something."""

VALUES: dict[str, Any] = {
    "string": "1",
    "integer": 1,
    "fraction": 1.5,
    "bool": True,
    "list": [[1]],
    "object": {"x": 1},
}


def test_the_table_of_types_knows_each_field() -> None:
    assert list(ACCEPTED) == list(_Body.__annotations__)


@pytest.mark.parametrize("name", _Body.__annotations__)
def test_a_wrong_type_of_any_field_is_refused_by_its_name(name: str) -> None:
    for kind, value in VALUES.items():
        if kind in ACCEPTED[name].split():
            beside = {"functions": [{"name": "x"}]} if name == "function_call" else {}
            read(**{name: value}, **beside)
            continue
        error = refused({name: value})
        assert error.param is not None
        assert error.param.split(".")[0].split("[")[0] == name
        assert name in str(error)


PART = {"type": "text", "text": "a"}
INVALID: list[tuple[dict[str, Any], str]] = [
    ({"messages": BASE["messages"] * (MOST_MESSAGES + 1)}, "messages"),
    (
        {"messages": [{"role": "user", "content": [PART] * (MOST_PARTS + 1)}]},
        "messages[0].content",
    ),
    ({"model": ""}, "model"),
    ({"model": "x" * 257}, "model"),
    ({"model": None}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": True}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [None]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": {}}]}, "messages[0].content.type"),
    ({"messages": [{"role": "user", "content": [{"type": 5}]}]}, "messages[0].content[0].type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
    ),
    (
        {"messages": [{"role": "user", "content": {"type": "text", "text": 5}}]},
        "messages[0].content.text",
    ),
    ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": 5, "content": "hi"}]}, "messages[0].role"),
    (
        {"messages": [*BASE["messages"], {"role": "user", "content": [{"text": 5}]}]},
        "messages[1].content[0].type",
    ),
    ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"n": 0}, "n"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"functions": [{"name": "f"}], "tools": [{"type": "function"}]}, "functions"),
    ({"n": 129}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 2**31}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"seed": 2**63}, "seed"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": {"type": 5}}, "response_format.type"),
    ({"logit_bias": {"5": "x"}}, "logit_bias"),
    ({"logit_bias": {"5": True}}, "logit_bias"),
    ({"stop": [5]}, "stop"),
    ({"tools": ["x"]}, "tools"),
    ({"functions": [None]}, "functions"),
    ({"modalities": [5]}, "modalities"),
]


@pytest.mark.parametrize(("fields", "param"), INVALID, ids=[str(i)[:60] for i in INVALID])
def test_a_wrong_value_is_refused_by_the_name_of_its_field(
    fields: dict[str, Any], param: str
) -> None:
    error = refused(fields)
    assert error.param == param
    assert param in str(error)


@pytest.mark.parametrize("name", ["model", "messages"])
def test_a_missing_field_is_refused_by_its_name(name: str) -> None:
    body = {key: value for key, value in BASE.items() if key != name}
    error = refused(json.dumps(body).encode())
    assert (error.param, str(error)) == (name, f"{name} is required")


HUGE = b"9" * 5000

MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "blanks": b" \n ",
    "words": b"hello",
    "a form": b"model=m&messages=hi",
    "cut": b'{"model": "m", "messages": [{"role": "us',
    "two documents": json.dumps(BASE).encode() * 2,
    "a trailing comma": raw(b'"n": 1,'),
    "single quotes": b"{'model': 'm'}",
    "a list": b"[]",
    "a number": b"5",
    "null": b"null",
    "a string": b'"hi"',
    "UTF-16": json.dumps(BASE).encode("utf-16"),
    "invalid UTF-8 in text": raw(b'"user": "\xff\xfe"'),
    "invalid UTF-8 in a name": raw(b'"\xff": 1'),
    "overlong UTF-8": raw(b'"user": "\xc0\x80"'),
    "a surrogate as UTF-8": raw(b'"user": "\xed\xa0\x80"'),
    "NUL": raw(b'"user": "a\x00b"'),
    "NUL between": raw(b'\x00"n": 1'),
    "a line end in text": raw(b'"user": "a\nb"'),
    "half a surrogate": raw(b'"user": "\\ud800"'),
    "the other half": raw(b'"user": "\\udc00"'),
    "half a surrogate in content": raw(b'"messages":[{"role":"user","content":"\\ud83d"}]'),
    "halves the wrong way": raw(b'"user": "\\udc00\\ud800"'),
    "nested lists": raw(b'"x": ' + b"[" * 100_000 + b"]" * 100_000),
    "nested lists, open": b"[" * 190_000,
    "nested objects": raw(b'"x": ' + b'{"a":' * 90_000 + b"1" + b"}" * 90_000),
    "nested content": b'{"model":"m","messages":[{"role":"user","content":' + b"[" * 100_000,
    "a huge number": raw(b'"x": ' + HUGE),
    "a huge temperature": raw(b'"temperature": ' + HUGE),
    "a huge limit": raw(b'"max_tokens": ' + HUGE),
    "a huge seed": raw(b'"seed": -' + HUGE),
    "a temperature beyond floats": raw(b'"temperature": 1e999'),
    "NaN": raw(b'"temperature": NaN'),
    "Infinity": raw(b'"top_p": Infinity'),
    "-Infinity": raw(b'"presence_penalty": -Infinity'),
    "NaN as an integer": raw(b'"n": NaN'),
    "NaN in a bias": raw(b'"logit_bias": {"5": NaN}'),
    "leading zeros": raw(b'"n": 01'),
    "hexadecimal": raw(b'"n": 0x1'),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_body_is_refused_in_plain_words(name: str) -> None:
    error = refused(MALFORMED[name])
    assert "Traceback" not in str(error)
    assert "pydantic" not in str(error).lower()


HARMLESS: dict[str, bytes] = {
    "NaN where nobody looks": raw(b'"unknown": NaN'),
    "Infinity where nobody looks": raw(b'"unknown": [-Infinity, 1e999]'),
    "a long number where nobody looks": raw(b'"unknown": ' + b"9" * 300),
    "a byte order mark": b"\xef\xbb\xbf" + json.dumps(BASE).encode(),
    "an escaped NUL": raw(b'"user": "a\\u0000b"'),
    "a whole surrogate pair": raw(b'"user": "\\ud83d\\ude42"'),
    "blanks around": b" \r\n" + json.dumps(BASE).encode() + b"\n\t ",
    "deep, within reason": raw(b'"x": ' + b"[" * 150 + b"]" * 150),
    "many fields": raw(b", ".join(b'"f%d": %d' % (i, i) for i in range(10_000))),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_odd_and_harmless_is_read_and_can_be_sent_on(name: str) -> None:
    sent = QwenWebV1().encode(OpenAIChat().read(HARMLESS[name]))
    assert json.loads(sent.body)["messages"][0]["content"] == "hi"


def test_what_a_message_carries_on_is_sent_as_json_whatever_it_holds() -> None:
    for extra in (
        b"NaN",
        b"[1e999, -Infinity]",
        b'"\\u0000\\u2028"',
        b"9" * 300,
        *(b"[" * depth + b"]" * depth for depth in range(185, 200)),
    ):
        body = b'{"model":"m","messages":[{"role":"user","content":"hi","extra":{"a":%b}}]}' % extra
        try:
            chat = OpenAIChat().read(body)
        except InvalidRequest:
            continue
        sent = QwenWebV1().encode(chat).body
        json.loads(sent, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    "field",
    [
        b'"messages": [' + b"1," * 90_000 + b"1]",
        b'"messages": [' + b"{}," * 45_000 + b"{}]",
        b'"tools": [' + b"1," * 90_000 + b"1]",
        b'"stop": [' + b"1," * 90_000 + b"1]",
        b'"logit_bias": {' + b",".join(b'"%d":"x"' % i for i in range(90_000)) + b"}",
    ],
    ids=["messages", "empty messages", "tools", "stop", "logit_bias"],
)
def test_as_many_mistakes_as_a_body_may_hold_cost_no_more_than_one(field: bytes) -> None:
    """A finding for each would hold the event loop for seconds."""
    began = time.process_time()
    refused(raw(field))
    assert time.process_time() - began < 1.5


def test_a_refusal_shows_no_text_of_the_request() -> None:
    for fields in (
        {"temperature": "CANARY"},
        {"messages": "CANARY"},
        {"messages": [{"role": "CANARY", "content": "CANARY"}]},
        {"messages": [{"role": "user", "content": {"type": "text", "text": ["CANARY"]}}]},
        {"stop": {"CANARY": 1}},
        {"tools": ["CANARY"]},
    ):
        assert "CANARY" not in str(refused(fields))
    assert "CANARY" not in str(refused(b'{"model": "CANARY'))


names = st.sampled_from([*_Body.__annotations__, "role", "content", "type", "text", "extra", "x"])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["user", "assistant", "text", "m", "image_url"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5),
    max_leaves=12,
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "x"]), "content": values},
    optional={"extra": values, "name": values, "tool_calls": values, "chat_type": values},
)


@settings(
    max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(
    fields=st.dictionaries(names, values, max_size=5),
    messages=st.lists(messages, max_size=3) | values,
    cut=st.none() | st.tuples(st.integers(0, 500), st.integers(0, 5), st.binary(max_size=5)),
)
def test_any_body_is_a_chat_or_an_invalid_request(
    fields: dict[str, Any], messages: Any, cut: tuple[int, int, bytes] | None
) -> None:
    body = json.dumps({"model": "m", "messages": messages, **fields}).encode()
    if cut is not None:
        place, length, instead = cut
        body = body[:place] + instead + body[place + length :]
    try:
        chat = OpenAIChat().read(body)
        sent = QwenWebV1().encode(chat)
    except InvalidRequest as error:
        check_error(json.loads(OpenAIChat().error(error)))
    else:
        assert isinstance(chat, ChatRequest)
        json.loads(sent.body, parse_constant=pytest.fail)
        assert all(name.isascii() and name.isprintable() for name in chat.notes.ignored)


@settings(max_examples=200, deadline=None, database=None)
@given(st.binary(max_size=100))
def test_any_bytes_are_a_chat_or_an_invalid_request(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        OpenAIChat().read(body)


# What is written.

USAGE = Usage(24, 15, 39, reasoning_tokens=9, cached_tokens=3)
USAGE_DOCUMENT = {
    "prompt_tokens": 24,
    "completion_tokens": 15,
    "total_tokens": 39,
    "completion_tokens_details": {"reasoning_tokens": 9},
    "prompt_tokens_details": {"cached_tokens": 3},
}
AWKWARD = 'a"b\\c\n\r\x00\x1f\u2028\u2029\x85🙂 %b data: [DONE]\n\n</think>'


def ask(**fields: Any) -> ChatRequest:
    return read(stream=True, **fields)


def streamed(request: ChatRequest, *batches: Sequence[Event]) -> list[Any]:
    """Return the chunks of a stream, and `[DONE]`, each checked for its form."""
    writer = OpenAIChat().stream(request)
    body = b"".join(writer.write(batch) for batch in batches) + writer.finish()
    return events_of(body)


def events_of(body: bytes) -> list[Any]:
    found: list[Any] = []
    assert body.endswith(b"\n\n")
    for event in body.removesuffix(b"\n\n").split(b"\n\n"):
        assert event.startswith(b"data: ")
        assert b"\n" not in event
        assert b"\r" not in event
        if event == b"data: [DONE]":
            found.append("[DONE]")
            continue
        document = json.loads(event.removeprefix(b"data: "))
        if "error" in document:
            check_error(document)
        else:
            check_chunk(document)
        found.append(document)
    return found


def deltas(chunks: list[Any]) -> list[dict[str, Any]]:
    choices = [choice for chunk in chunks if chunk != "[DONE]" for choice in chunk["choices"]]
    return [choice["delta"] for choice in choices]


ROLE = {"role": "assistant", "content": "", "refusal": None}


@pytest.mark.parametrize("fields", [*REASONING_FIELDS.values()])
def test_thinking_is_told_in_the_fields_that_the_client_reads(fields: tuple[str, ...]) -> None:
    api = OpenAIChat(fields)
    events: list[Event] = [ReasoningDelta(AWKWARD), TextDelta("a"), Finish("stop")]
    message = json.loads(api.answer(ask(), fold(events)))["choices"][0]["message"]
    thought = {name for name in message if name.startswith("reasoning")}
    assert thought == {*fields}
    assert all(message[name] == AWKWARD for name in fields)
    writer = api.stream(ask())
    told = deltas(events_of(writer.write(events) + writer.finish()))
    assert told == [ROLE, dict.fromkeys(fields, AWKWARD), {"content": "a"}, {}]


def test_of_several_choices_each_has_its_own_role_pieces_and_finish() -> None:
    *chunks, last, done = streamed(
        ask(stream_options={"include_usage": True}),
        [Choice(1), TextDelta("b")],
        [Choice(0), TextDelta("a"), ReasoningDelta("%d")],
        [Choice(1), ToolCallDelta(0, "{}", "call_1", "f"), Finish("tool_calls")],
        [Choice(0), Extra("logprobs", LOGPROBS), Finish("stop")],
        [USAGE],
    )
    assert (done, last["choices"], last["usage"]) == ("[DONE]", [], USAGE_DOCUMENT)
    told = [
        (c["index"], c["delta"], c["finish_reason"]) for chunk in chunks for c in chunk["choices"]
    ]
    call = {"index": 0, "id": "call_1", "type": "function"}
    assert told == [
        (1, ROLE, None),
        (1, {"content": "b"}, None),
        (0, ROLE, None),
        (0, {"content": "a"}, None),
        (0, {"reasoning_content": "%d"}, None),
        (1, {"tool_calls": [{**call, "function": {"arguments": "{}", "name": "f"}}]}, None),
        (1, {}, "tool_calls"),
        (0, {}, None),
        (0, {}, "stop"),
    ]


def test_a_choice_whose_first_events_say_nothing_gets_its_role_later() -> None:
    *chunks, _ = streamed(
        ask(),
        [Choice(1), Extra("web_search", {"a": 1})],
        [Choice(0), TextDelta("a")],
        [Choice(1), TextDelta("b")],
    )
    told = [(c["index"], c["delta"]) for chunk in chunks for c in chunk["choices"]]
    assert told == [(0, ROLE), (0, {"content": "a"}), (1, ROLE), (1, {"content": "b"})]


def test_several_choices_stand_in_one_answer() -> None:
    batches: list[list[Event]] = [
        [Choice(1), TextDelta("b")],
        [Choice(0), TextDelta("a")],
        [Choice(1), TextDelta("c"), Finish("length")],
        [Choice(0), Finish("stop")],
        [USAGE],
    ]
    whole = Fold()
    for batch in batches:
        whole.add(batch)
    assert whole.size == 3
    document = json.loads(OpenAIChat().answer(ask(), whole.answer()))
    check_answer(document)
    told = [(c["index"], c["message"]["content"], c["finish_reason"]) for c in document["choices"]]
    assert told == [(0, "a", "stop"), (1, "bc", "length")]
    assert document["usage"] == USAGE_DOCUMENT


def test_a_stream_is_role_then_pieces_then_finish_then_done() -> None:
    *chunks, done = streamed(
        ask(),
        [ReasoningDelta("thi"), ReasoningDelta("nk")],
        [Extra("web_search", {"a": 1})],
        [],
        [TextDelta(AWKWARD)],
        [TextDelta("!"), USAGE, Finish("length")],
    )
    assert done == "[DONE]"
    assert deltas(chunks) == [
        ROLE,
        {"reasoning_content": "thi"},
        {"reasoning_content": "nk"},
        {"content": AWKWARD},
        {"content": "!"},
        {},
    ]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * 5 + ["length"]
    for name in "id", "created", "model", "object":
        assert len({chunk[name] for chunk in chunks}) == 1
    first = chunks[0]
    assert first["id"].startswith("chatcmpl-")
    assert first["object"] == "chat.completion.chunk"
    assert first["model"] == "m"
    assert abs(first["created"] - time.time()) < 5
    assert all("usage" not in chunk for chunk in chunks)
    assert all(chunk["choices"][0]["index"] == 0 for chunk in chunks)
    assert all(chunk["choices"][0]["logprobs"] is None for chunk in chunks)
    assert all("system_fingerprint" not in chunk for chunk in chunks)


def test_usage_comes_in_a_chunk_of_its_own_where_it_was_asked_for_and_is_known() -> None:
    *chunks, last, done = streamed(
        ask(stream_options={"include_usage": True}), [TextDelta("a"), USAGE, Finish("stop")]
    )
    assert done == "[DONE]"
    assert [chunk["usage"] for chunk in chunks] == [None] * 3
    assert last["choices"] == []
    assert last["usage"] == USAGE_DOCUMENT
    assert {last[name] == chunks[0][name] for name in ("id", "created", "model")} == {True}


def test_usage_that_is_not_known_is_not_invented() -> None:
    *chunks, done = streamed(
        ask(stream_options={"include_usage": True}), [TextDelta("a"), Finish("stop")]
    )
    assert done == "[DONE]"
    assert [chunk["usage"] for chunk in chunks] == [None] * 3
    assert all(chunk["choices"] for chunk in chunks)


def test_usage_without_details_has_none() -> None:
    *_, last, _ = streamed(
        ask(stream_options={"include_usage": True}), [Usage(1, 2, 3), Finish("stop")]
    )
    assert last["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def test_the_writer_tells_the_usage_that_it_saw() -> None:
    writer = OpenAIChat().stream(ask())
    assert writer.usage is None
    writer.write([USAGE])
    assert writer.usage == USAGE


@pytest.mark.parametrize("events", [[], [Extra("web_search", {})], [USAGE]])
def test_events_that_have_no_place_write_nothing(events: list[Event]) -> None:
    assert OpenAIChat().stream(ask()).write(events) == b""


LOGPROBS: dict[str, Any] = {
    "content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}],
    "refusal": None,
}


def test_probabilities_have_their_place() -> None:
    events: list[Event] = [TextDelta("a"), *[Extra("logprobs", LOGPROBS)] * 2]
    *chunks, _ = streamed(ask(), [*events, Finish("stop")])
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert told == [None, None, LOGPROBS, LOGPROBS, None]
    document = json.loads(OpenAIChat().answer(read(), fold([*events, Finish("stop")])))
    check_answer(document)
    whole = document["choices"][0]["logprobs"]
    assert whole == {"content": LOGPROBS["content"] * 2, "refusal": None}


def test_fields_that_openai_does_not_have_go_on_where_they_stood() -> None:
    more = Extra("delta", {"annotations": [{"type": "x"}]})
    events: list[Event] = [TextDelta("a"), more, Finish("stop")]
    *chunks, _ = streamed(ask(), events)
    assert {"annotations": [{"type": "x"}]} in deltas(chunks)
    document = json.loads(OpenAIChat().answer(read(), fold(events)))
    assert document["choices"][0]["message"]["annotations"] == [{"type": "x"}]


def test_a_finish_alone_still_has_a_role_before_it() -> None:
    *chunks, _ = streamed(ask(), [Finish("content_filter")])
    assert deltas(chunks) == [ROLE, {}]
    assert chunks[-1]["choices"][0]["finish_reason"] == "content_filter"


def test_the_first_piece_of_a_tool_call_names_it_and_later_ones_do_not() -> None:
    *chunks, _ = streamed(
        ask(),
        [ToolCallDelta(0, "", id="call_1", name="f"), ToolCallDelta(0, '{"a":')],
        [ToolCallDelta(0, "1}"), ToolCallDelta(1, "{}", id="call_2", name="g")],
        [Finish("tool_calls")],
    )
    calls = [delta["tool_calls"] for delta in deltas(chunks) if "tool_calls" in delta]
    assert calls == [
        [
            {
                "index": 0,
                "id": "call_1",
                "type": "function",
                "function": {"name": "f", "arguments": ""},
            }
        ],
        [{"index": 0, "function": {"arguments": '{"a":'}}],
        [{"index": 0, "function": {"arguments": "1}"}}],
        [
            {
                "index": 1,
                "id": "call_2",
                "type": "function",
                "function": {"name": "g", "arguments": "{}"},
            }
        ],
    ]


@pytest.mark.parametrize("before", [[], [TextDelta("a")]])
def test_a_failure_is_the_last_event_and_looks_like_no_success(before: list[Event]) -> None:
    writer = OpenAIChat().stream(ask(stream_options={"include_usage": True}))
    body = writer.write(before) + writer.fail(UpstreamTruncated("the upstream's answer broke off"))
    *chunks, error = events_of(body)
    assert error == {
        "error": {
            "message": "the upstream's answer broke off",
            "type": "upstream_error",
            "param": None,
            "code": "upstream_truncated",
        }
    }
    assert all(choice["finish_reason"] is None for chunk in chunks for choice in chunk["choices"])
    assert b"[DONE]" not in body


@settings(max_examples=200, deadline=None, database=None)
@given(
    model=st.text(min_size=1, max_size=20),
    events=st.lists(
        st.builds(TextDelta, st.text(max_size=10))
        | st.builds(ReasoningDelta, st.text(max_size=10)),
        max_size=8,
    ),
    usage=st.none() | st.just(USAGE),
    include_usage=st.booleans(),
    cut=st.integers(0, 8),
)
def test_a_stream_and_a_whole_answer_say_the_same(
    model: str, events: list[Event], usage: Usage | None, include_usage: bool, cut: int
) -> None:
    request = ask(model=model, stream_options={"include_usage": include_usage})
    all_events = [*events, *([usage] if usage else []), Finish("stop")]
    chunks = streamed(request, all_events[:cut], all_events[cut:])
    whole = json.loads(OpenAIChat().answer(request, fold(all_events)))
    check_answer(whole)
    message = whole["choices"][0]["message"]
    pieces = deltas(chunks)
    assert "".join(delta.get("content", "") for delta in pieces) == message["content"]
    reasoning = "".join(delta.get("reasoning_content", "") for delta in pieces)
    assert reasoning == message.get("reasoning_content", "")
    assert ("usage" in whole) is (usage is not None)
    assert any(c != "[DONE]" and not c["choices"] for c in chunks) is bool(usage and include_usage)
    assert whole["model"] == model


def test_a_whole_answer_is_openais() -> None:
    answer = Answer(AWKWARD, "thought", [], "length", USAGE, [Extra("web_search", {})])
    document = json.loads(OpenAIChat().answer(read(), answer))
    check_answer(document)
    assert document.pop("id").startswith("chatcmpl-")
    assert abs(document.pop("created") - time.time()) < 5
    assert document == {
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": AWKWARD,
                    "refusal": None,
                    "reasoning_content": "thought",
                },
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": USAGE_DOCUMENT,
    }


def test_an_answer_of_tool_calls_alone_has_null_for_its_content() -> None:
    answer = Answer("", "", [ToolCall("call_1", "f", "{}")], "tool_calls", None, [])
    document = json.loads(OpenAIChat().answer(read(), answer))
    check_answer(document)
    assert document["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ],
    }
    assert "usage" not in document


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "content_filter"])
def test_each_reason_is_one_that_openai_knows(reason: FinishReason) -> None:
    streamed(ask(), [Finish(reason)])
    check_answer(json.loads(OpenAIChat().answer(read(), fold([Finish(reason)]))))


def test_ids_are_never_twice_the_same() -> None:
    api, answer = OpenAIChat(), fold([TextDelta("a"), Finish("stop")])
    ids = {json.loads(api.answer(read(), answer))["id"] for _ in range(100)}
    ids |= {events_of(api.stream(ask()).write([TextDelta("a")]))[0]["id"] for _ in range(100)}
    assert len(ids) == 200


def test_json_is_compact_and_not_escaped() -> None:
    body = OpenAIChat().answer(read(), fold([TextDelta("你好")]))
    assert "你好".encode() in body
    assert b'": ' not in body


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("n: wrong\n\u2028", param="n"),
        ModelNotFound("no such model", param="model"),
        UpstreamRateLimited("limit", code="RateLimited", retry_after=60),
        InternalError(""),
    ],
)
def test_an_error_is_openais(error: InvalidRequest) -> None:
    document = json.loads(OpenAIChat().error(error))
    check_error(document)
    assert document["error"] == {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
