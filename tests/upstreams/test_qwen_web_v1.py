from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest

from qwen_asgi.apis.openai_chat import OpenAIChat
from qwen_asgi.chat import ChatRequest
from qwen_asgi.errors import (
    InvalidRequest,
    UpstreamBlocked,
    UpstreamError,
    UpstreamInvalidResponse,
    UpstreamRateLimited,
    UpstreamTruncated,
)
from qwen_asgi.transports import UpstreamRequest
from qwen_asgi.upstreams.qwen_web_v1 import QwenWebV1
from tests.wire import pieces, read, sample

IDS = ("session_id", "chat_id", "id")


def chat(text: str = "你好", **fields: Any) -> dict[str, Any]:
    return {
        "model": "qwen-max-latest",
        "messages": [{"role": "user", "content": text}],
        **fields,
    }


def encoded(
    body: Mapping[str, Any], dialect: QwenWebV1 | None = None
) -> tuple[dict[str, Any], ChatRequest]:
    """Return the document that goes up for a client's body, and the request between."""
    request = OpenAIChat().read(json.dumps(body).encode())
    sent = (dialect or QwenWebV1()).encode(request)
    return json.loads(sent.body), request


def call(**options: Any) -> UpstreamRequest:
    return QwenWebV1(**options).encode(OpenAIChat().read(json.dumps(chat()).encode()))


def refused(body: Mapping[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        encoded(body)
    return raised.value


# The recorded requests.


def test_the_seeds_request_comes_out_as_it_was_recorded() -> None:
    recorded = json.loads(sample("web1-request-seed-shape.json").data)
    document, request = encoded(
        chat(stream=True, temperature=0.7, max_tokens=2048), QwenWebV1(incremental=False)
    )
    for name in IDS:
        del recorded[name], document[name]
    assert document == recorded
    assert request.notes.ignored == ()


def test_a_text_request_with_a_picture_comes_out_as_it_was_recorded() -> None:
    recorded = json.loads(sample("web1-request-t2t.json").data)
    document, request = encoded(
        {
            "model": "qwen-max-latest",
            "messages": [
                {"role": "developer", "content": "You are terse."},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is in this picture?"},
                        {"type": "image", "image": "88888888-8888-4888-8888-888888888888"},
                    ],
                },
            ],
            "stream": True,
            "chat_type": "t2t",
            "sub_chat_type": "t2t",
            "chat_mode": "normal",
            "enable_thinking": False,
        }
    )
    for name in IDS:
        del recorded[name], document[name]
    assert document == recorded
    assert request.notes.ignored == ()


def test_ids_are_valid_and_different_each_time() -> None:
    documents = [encoded(chat())[0] for _ in range(50)]
    ids = [document[name] for document in documents for name in IDS]
    assert len(set(ids)) == 150
    assert all(str(UUID(id)) == id and UUID(id).version == 4 for id in ids)


# The call.


def test_headers_are_the_seeds() -> None:
    sent = call(api_key="sk-canary-1")
    agent = sent.headers["user-agent"]
    assert agent.startswith("Mozilla/5.0 (Windows NT 10.0; Win64; x64)")
    assert {**sent.headers, "user-agent": ""} == {
        "accept": "*/*",
        "accept-encoding": "identity",
        "authorization": "Bearer sk-canary-1",
        "content-type": "application/json",
        "origin": "https://chat.qwenlm.ai",
        "referer": "https://chat.qwenlm.ai/c/b01c2449-9e27-47d2-a1d6-4e792a22030c",
        "user-agent": "",
    }
    assert sent.method == "POST"
    assert sent.url == "https://chat.qwenlm.ai/api/chat/completions"
    assert "canary" not in repr(sent)
    assert "你好" not in repr(sent)


def test_each_header_can_be_replaced_and_others_added() -> None:
    own = {"user-agent": "mine", "authorization": "Basic x", "x-trace": "1"}
    headers = call(api_key="sk-canary-1", headers=own).headers
    assert {name: headers[name] for name in own} == own
    assert headers["accept"] == "*/*"


def test_without_a_key_no_credential_is_sent() -> None:
    assert "authorization" not in call().headers


def test_the_address_is_a_setting() -> None:
    dialect = QwenWebV1("http://127.0.0.1:9/x")
    request = OpenAIChat().read(json.dumps(chat()).encode())
    assert dialect.encode(request).url == "http://127.0.0.1:9/x/api/chat/completions"
    assert dialect.encode_models().url == "http://127.0.0.1:9/x/api/models"


def test_the_body_is_compact_and_not_escaped() -> None:
    body = call().body
    assert "你好".encode() in body
    assert b'":"' in body
    assert b": " not in body


# Fields.


def test_temperature_and_max_tokens_are_as_the_client_gave_them_or_absent() -> None:
    document, _ = encoded(chat())
    assert "temperature" not in document
    assert "max_tokens" not in document
    document, _ = encoded(chat(temperature=0, max_tokens=1))
    assert (document["temperature"], document["max_tokens"]) == (0, 1)
    document, _ = encoded(chat(max_completion_tokens=7))
    assert document["max_tokens"] == 7


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("incremental", [True, False])
def test_pieces_are_asked_for_where_the_setting_says_so(stream: bool, incremental: bool) -> None:
    document, request = encoded(chat(stream=stream), QwenWebV1(incremental=incremental))
    assert document["stream"] is stream
    assert document.get("incremental_output") is (True if incremental else None)
    decoder = QwenWebV1(incremental=incremental).decoder(request, Head())
    name = "web1-incremental.sse" if incremental else "web1-cumulative.sse"
    assert read(decoder, pieces(sample(name).data, 7)).text == "你好，世界！"


@dataclass
class Head:
    """The head of an answer, with no body behind it."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    ends_by_close: bool = False

    async def read(self, within: float) -> bytes:
        raise AssertionError("a dialect reads nothing by itself")


def test_an_answer_that_only_the_connections_end_delimits_is_read_with_care() -> None:
    body = b'data: {"choices": [{"delta": {"content": "x", "phase": "answer"}}]}\n\n'
    _, request = encoded(chat())
    assert read(QwenWebV1().decoder(request, Head()), [body]).error is None
    cut = read(QwenWebV1().decoder(request, Head(ends_by_close=True)), [body])
    assert type(cut.error) is UpstreamTruncated


def test_the_key_is_struck_out_of_what_the_upstream_repeats() -> None:
    dialect = QwenWebV1(api_key="sk-canary-1")
    _, request = encoded(chat())
    echo = b'{"success": false, "data": {"code": "sk-canary-1", "details": "key sk-canary-1 bad"}}'
    found = [
        read(dialect.decoder(request, Head()), [echo]).error,
        read(dialect.decoder(request, Head()), [b"data: %b\n\n" % echo]).error,
        dialect.refusal(500, {}, echo),
    ]
    with pytest.raises(UpstreamError) as raised:
        dialect.decode_models(echo)
    for error in [*found, raised.value]:
        assert error is not None
        assert "bad" in str(error)
        assert "canary" not in f"{error} {error.code}"


def test_the_chat_type_is_the_messages_own_or_the_requests_or_the_seeds() -> None:
    def types(**fields: Any) -> tuple[list[str], str]:
        document, _ = encoded(chat(**fields))
        return [message["chat_type"] for message in document["messages"]], document["chat_type"]

    two = [
        {"role": "user", "content": "a", "chat_type": "search"},
        {"role": "user", "content": "b"},
    ]
    assert types() == (["artifacts"], "artifacts")
    assert types(chat_type="t2t") == (["t2t"], "t2t")
    assert types(messages=two) == (["search", "artifacts"], "artifacts")
    assert types(messages=two[::-1], chat_type="t2t") == (["t2t", "search"], "search")


def test_the_size_goes_with_the_seeds_chat_type_or_as_it_is_asked_for() -> None:
    assert encoded(chat())[0]["size"] == "960*960"
    assert "size" not in encoded(chat(chat_type="t2t"))[0]
    assert encoded(chat(chat_type="t2t", size="1024*1024"))[0]["size"] == "1024*1024"


def test_extra_reaches_the_upstream_as_it_is_and_is_empty_otherwise() -> None:
    extra = {"meta": {"subChatType": "t2t", "list": [1, None, "二"]}}
    messages = [{"role": "user", "content": "a", "extra": extra}, {"role": "user", "content": "b"}]
    document, _ = encoded(chat(messages=messages))
    assert [message["extra"] for message in document["messages"]] == [extra, {}]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"enable_thinking": True}, {"thinking_enabled": True, "output_schema": "phase"}),
        ({"enable_thinking": False}, {"thinking_enabled": False, "output_schema": "phase"}),
        ({"reasoning_effort": "high"}, {"thinking_enabled": True, "output_schema": "phase"}),
        ({"reasoning_effort": "none"}, {"thinking_enabled": False, "output_schema": "phase"}),
        (
            {"enable_thinking": False, "reasoning_effort": "high"},
            {"thinking_enabled": False, "output_schema": "phase"},
        ),
        (
            {"enable_thinking": True, "thinking_budget": 100},
            {"thinking_enabled": True, "output_schema": "phase", "thinking_budget": 100},
        ),
        (
            {"reasoning_effort": "low"},
            {"thinking_enabled": True, "output_schema": "phase", "thinking_budget": 1024},
        ),
        (
            {"reasoning_effort": "low", "thinking_budget": 7},
            {"thinking_enabled": True, "output_schema": "phase", "thinking_budget": 7},
        ),
        (
            {"enable_thinking": False, "thinking_budget": 7},
            {"thinking_enabled": False, "output_schema": "phase"},
        ),
        ({"thinking_budget": 100}, None),
    ],
)
def test_the_wish_to_think_stands_in_the_last_message(
    fields: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    first, last = {"role": "system", "content": "a"}, {"role": "user", "content": "b"}
    document, request = encoded(chat(messages=[first, last], **fields))
    assert "feature_config" not in document["messages"][0]
    assert document["messages"][1].get("feature_config") == expected
    unused = "thinking_budget" in fields and expected is None
    assert request.notes.ignored == (("thinking_budget",) if unused else ())


def test_what_the_last_message_says_of_its_features_goes_before() -> None:
    own = {"thinking_enabled": True, "research_mode": "normal"}
    messages = [{"role": "user", "content": "a", "feature_config": own}]
    document, _ = encoded(chat(messages=messages, enable_thinking=False))
    assert document["messages"][0]["feature_config"] == {
        "thinking_enabled": True,
        "output_schema": "phase",
        "research_mode": "normal",
    }
    assert encoded(chat(messages=messages))[0]["messages"][0]["feature_config"] == own


# Content.

CONTENTS: dict[str, tuple[Any, Any]] = {
    "text": ("a", "a"),
    "one part": ({"type": "text", "text": "a"}, "a"),
    "one part without a type": ({"text": "a"}, "a"),
    "parts": ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"),
    "a picture by its address": (
        [
            {"type": "text", "text": "a"},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        ],
        [
            {"type": "text", "text": "a", "chat_type": "artifacts"},
            {"type": "image", "image": "https://example.org/a.png", "chat_type": "artifacts"},
        ],
    ),
    "a picture in the short form": (
        [{"type": "image_url", "image_url": "http://example.org/a.png"}],
        [{"type": "image", "image": "http://example.org/a.png", "chat_type": "artifacts"}],
    ),
    "a picture of the upstream's own": (
        {"type": "image", "image": "88888888-8888-4888-8888-888888888888"},
        [
            {
                "type": "image",
                "image": "88888888-8888-4888-8888-888888888888",
                "chat_type": "artifacts",
            }
        ],
    ),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_content_becomes_text_or_the_upstreams_parts(name: str) -> None:
    content, expected = CONTENTS[name]
    document, _ = encoded(chat(messages=[{"role": "user", "content": content}]))
    assert document["messages"][0]["content"] == expected


def test_roles_are_the_upstreams() -> None:
    messages = [
        {"role": role, "content": "a"} for role in ("system", "developer", "user", "assistant")
    ]
    messages.append({"role": "assistant"})
    document, _ = encoded(chat(messages=messages))
    roles = [message["role"] for message in document["messages"]]
    assert roles == ["system", "system", "user", "assistant", "assistant"]
    assert document["messages"][-1]["content"] == ""


# What cannot be honoured.

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}

REFUSED: list[tuple[str, Any]] = [
    ("audio", {"voice": "x", "format": "wav"}),
    ("audio", {}),
    ("logprobs", True),
    ("modalities", ["text", "audio"]),
    ("modalities", ["audio"]),
    ("n", 2),
    ("n", 128),
    ("response_format", {"type": "json_object"}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}),
    ("tool_choice", "required"),
    ("tool_choice", {"type": "function", "function": {"name": "f"}}),
    ("tools", [TOOL]),
    ("web_search_options", {}),
]


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=[f"{n}={v}" for n, v in REFUSED])
def test_a_field_that_would_change_the_answers_promise_is_refused_by_name(
    name: str, value: Any
) -> None:
    error = refused(chat(**{name: value}))
    assert error.status == 400
    assert error.type == "invalid_request_error"
    assert error.code == "unsupported_parameter"
    assert error.param == name
    assert repr(name) in str(error)
    assert "qwen-web-v1" in str(error)
    assert str(error).partition(": ")[2], "there is no advice"


HARMLESS_VALUES: list[tuple[str, Any]] = [
    ("audio", None),
    ("function_call", "auto"),
    ("function_call", "none"),
    ("functions", []),
    ("logprobs", False),
    ("logprobs", None),
    ("modalities", ["text"]),
    ("n", 1),
    ("n", None),
    ("response_format", {"type": "text"}),
    ("tool_choice", "auto"),
    ("tool_choice", "none"),
    ("tools", []),
    ("tools", None),
]


@pytest.mark.parametrize(("name", "value"), HARMLESS_VALUES)
def test_a_harmless_value_of_such_a_field_passes_unnamed_and_is_not_sent(
    name: str, value: Any
) -> None:
    document, request = encoded(chat(**{name: value}))
    assert request.notes.ignored == ()
    assert name not in document


HARMLESS: dict[str, Any] = {
    "frequency_penalty": 0.5,
    "logit_bias": {"50256": -100},
    "metadata": {"a": "b"},
    "parallel_tool_calls": True,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": 0.5,
    "prompt_cache_key": "x",
    "safety_identifier": "x",
    "seed": 7,
    "service_tier": "auto",
    "stop": ["\n"],
    "store": False,
    "top_logprobs": 3,
    "top_p": 0.9,
    "user": "me",
    "verbosity": "low",
    "a_field_of_next_year": {"deep": [1]},
}


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_field_is_dropped_and_named(name: str) -> None:
    document, request = encoded(chat(**{name: HARMLESS[name]}))
    assert request.notes.ignored == (name,)
    assert set(document) == set(encoded(chat())[0])


def test_fields_of_messages_that_are_dropped_are_named_too() -> None:
    messages = [{"role": "user", "content": "a", "name": "me"}]
    document, request = encoded(chat(messages=messages, user="me"))
    assert request.notes.ignored == ("user", "messages.name")
    assert set(document["messages"][0]) == {"role", "content", "chat_type", "extra"}


def test_hostile_names_are_neither_sent_nor_named() -> None:
    names = ["a\r\nset-cookie: x", "a,b", "字段", "", "x" * 65, "model_config\n", "__class__\x00"]
    hostile: dict[str, Any] = dict.fromkeys(names, 1)
    messages = [{"role": "user", "content": "a", **hostile}]
    document, request = encoded(chat(messages=messages, **hostile))
    assert request.notes.ignored == ()
    assert set(document) == set(encoded(chat())[0])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"chat_type": 5}, "chat_type"),
    ({"sub_chat_type": ["x"]}, "sub_chat_type"),
    ({"chat_mode": {}}, "chat_mode"),
    ({"size": 960}, "size"),
    ({"enable_thinking": "yes"}, "enable_thinking"),
    ({"enable_thinking": True, "thinking_budget": -1}, "thinking_budget"),
    ({"enable_thinking": True, "thinking_budget": True}, "thinking_budget"),
    ({"enable_thinking": True, "thinking_budget": "5"}, "thinking_budget"),
    ({"chat_type": "t2i"}, "messages[0].chat_type"),
]
WRONG_MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({"role": "user", "content": "a", "chat_type": 5}, ".chat_type"),
    ({"role": "user", "content": "a", "chat_type": "t2v"}, ".chat_type"),
    ({"role": "user", "content": "a", "extra": "x"}, ".extra"),
    ({"role": "user", "content": "a", "feature_config": [1]}, ".feature_config"),
    ({"role": "tool", "content": "a", "tool_call_id": "1"}, ""),
    ({"role": "function", "content": "a", "name": "f"}, ""),
    ({"role": "assistant", "content": None, "tool_calls": [CALL]}, ""),
    ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, ".content[0].type"),
    ({"role": "user", "content": [{"type": "file", "file": {}}]}, ".content[0].type"),
    ({"role": "user", "content": [{"type": "image", "image": 5}]}, ".content[0].type"),
    ({"role": "user", "content": [{"type": "image"}]}, ".content[0].type"),
    (
        {"role": "user", "content": [{"type": "image", "image": "data:image/png;base64,AAAA"}]},
        ".content[0].type",
    ),
    *(
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, part]},
            ".content[1].image_url",
        )
        for part in (
            {"type": "image_url"},
            {"type": "image_url", "image_url": None},
            {"type": "image_url", "image_url": {"url": 5}},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        )
    ),
]


@pytest.mark.parametrize(("fields", "param"), WRONG)
def test_a_wrong_field_of_the_dialects_own_is_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    error = refused(chat(**fields))
    assert error.status == 400
    assert error.param == param


@pytest.mark.parametrize(("message", "param"), WRONG_MESSAGES)
def test_a_message_that_the_upstream_cannot_take_is_refused_by_its_place(
    message: dict[str, Any], param: str
) -> None:
    error = refused(chat(messages=[{"role": "user", "content": "a"}, message]))
    assert error.status == 400
    assert error.param == f"messages[1]{param}"
    assert "AAAA" not in str(error)


# The list of models.


def test_the_recorded_list_of_models_is_read() -> None:
    recorded = sample("web1-models.json")
    found_models = QwenWebV1().decode_models(recorded.data)
    assert [model.name for model in found_models] == recorded.expect["models"]
    sent = QwenWebV1(api_key="k").encode_models()
    assert (sent.method, sent.body) == ("GET", b"")
    assert sent.headers["authorization"] == "Bearer k"


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b'{"data": null}',
        b'{"data": {}}',
        b'{"data": []}',
        b'{"data": [5, null, {}, {"id": 5}, {"id": ""}]}',
        b"",
        b'{"data": [',
    ],
)
def test_a_list_that_holds_no_model_is_an_error(body: bytes) -> None:
    with pytest.raises((UpstreamInvalidResponse, UpstreamTruncated)):
        QwenWebV1().decode_models(body)


@pytest.mark.parametrize(
    "page", [b"<html>", b"\xef\xbb\xbf\r\n<html>", sample("web-waf.html").data]
)
def test_a_page_in_place_of_the_list_is_a_block(page: bytes) -> None:
    with pytest.raises(UpstreamBlocked):
        QwenWebV1().decode_models(page)


def test_a_failure_in_place_of_the_list_is_what_it_says() -> None:
    with pytest.raises(UpstreamRateLimited):
        QwenWebV1().decode_models(sample("web2-ratelimited-200.json").data)
