"""What goes out to an OpenAI-compatible server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_asgi.apis.openai_chat import OpenAIChat
from qwen_asgi.chat import ChatRequest
from qwen_asgi.errors import (
    InvalidRequest,
    UpstreamAuthenticationFailed,
    UpstreamError,
    UpstreamInvalidResponse,
)
from qwen_asgi.upstreams.openai_compatible import OpenAICompatible
from tests.schemas import check_request
from tests.wire import sample

DIALECT = OpenAICompatible("http://upstream/v1", "canary-key", headers={"x-more": "1"})


def ask(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return OpenAIChat().read(json.dumps(body).encode())


def sent(**fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(DIALECT.encode(ask(**fields)).body)
    check_request(body)
    return body


def test_a_call_has_the_address_and_the_credential() -> None:
    call = DIALECT.encode(ask())
    assert (call.method, call.url) == ("POST", "http://upstream/v1/chat/completions")
    assert call.headers["authorization"] == "Bearer canary-key"
    assert call.headers["x-more"] == "1"
    assert "canary" not in repr(call)
    assert "authorization" not in OpenAICompatible("http://upstream/v1").encode(ask()).headers


def test_what_the_client_sent_goes_on_as_it_is() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    fields: dict[str, Any] = {
        "frequency_penalty": 0.5,
        "logit_bias": {"1": 2},
        "logprobs": True,
        "presence_penalty": 0.5,
        "response_format": {"type": "json_object"},
        "seed": 7,
        "stop": ["a"],
        "tools": tools,
        "tool_choice": "auto",
        "top_p": 0.5,
        "temperature": 0,
        "user": "u",
        "repetition_penalty": 1.1,
        "anything": {"else": None},
    }
    body = sent(**fields)
    assert {name: body[name] for name in fields} == fields
    assert body.keys() - fields.keys() == {"model", "messages", "stream"}


def test_a_stream_tells_its_usage_whether_or_not_the_client_asks() -> None:
    assert sent(stream=True)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in sent()


def test_both_names_of_the_longest_answer_are_the_one_that_servers_know() -> None:
    assert sent(max_completion_tokens=5)["max_tokens"] == 5
    assert sent(max_tokens=5)["max_tokens"] == 5


def test_a_conversation_keeps_its_turns() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u", "name": "n"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "call_1"},
    ]
    assert sent(messages=turns)["messages"] == turns
    assert sent(messages=[{"role": "developer", "content": "d"}])["messages"] == [
        {"role": "system", "content": "d"}
    ]


def test_parts_of_text_alone_are_one_text_and_others_stay_parts() -> None:
    text: dict[str, Any] = {"type": "text", "text": "a"}
    picture: dict[str, Any] = {"type": "image_url", "image_url": {"url": "https://host/a.png"}}

    def content(*parts: Any) -> Any:
        [message] = sent(messages=[{"role": "user", "content": parts}])["messages"]
        return message["content"]

    assert content(text, text) == "a\na"
    assert content(text, picture) == [text, picture]


@pytest.mark.parametrize(
    ("fields", "thinks"),
    [
        ({"enable_thinking": True}, True),
        ({"enable_thinking": False}, False),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "low"}, True),
        ({"reasoning_effort": "high", "enable_thinking": False}, False),
    ],
)
def test_the_wish_to_think_or_not_reaches_the_chat_template(
    fields: dict[str, Any], thinks: bool
) -> None:
    body = sent(**fields)
    assert body["chat_template_kwargs"] == {"enable_thinking": thinks}
    assert "enable_thinking" not in body
    own = sent(**fields, chat_template_kwargs={"enable_thinking": "own", "a": 1})
    assert own["chat_template_kwargs"] == {"enable_thinking": "own", "a": 1}
    assert "chat_template_kwargs" not in sent()


def test_what_cannot_be_honoured_is_refused() -> None:
    with pytest.raises(InvalidRequest) as raised:
        DIALECT.encode(ask(n=2))
    assert (raised.value.param, raised.value.code) == ("n", "unsupported_parameter")
    assert sent(n=1)["n"] == 1
    with pytest.raises(InvalidRequest):
        DIALECT.encode(ask(enable_thinking="yes"))


def test_the_list_of_models_is_read() -> None:
    call = DIALECT.encode_models()
    assert (call.method, call.url, call.body) == ("GET", "http://upstream/v1/models", b"")
    found = sample("ds-models.json")
    found_models = DIALECT.decode_models(found.data)
    assert [model.name for model in found_models] == found.expect["models"]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"data": []}', UpstreamInvalidResponse),
        (b'{"data": [{"id": 5}, null]}', UpstreamInvalidResponse),
        (b"<html>", UpstreamInvalidResponse),
        (b'{"error": {"code": "invalid_api_key"}}', UpstreamAuthenticationFailed),
    ],
)
def test_a_list_without_models_is_an_error(body: bytes, error: type[UpstreamError]) -> None:
    with pytest.raises(error):
        DIALECT.decode_models(body)


def test_a_key_that_an_error_repeats_is_struck_out() -> None:
    body = b'{"error": {"message": "key canary-key is odd", "code": "canary-key"}}'
    error = DIALECT.refusal(500, {}, body)
    assert "canary" not in str(error)
    assert "canary" not in str(error.code)
