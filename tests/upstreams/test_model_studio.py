"""What goes out to Model Studio, and where it is not what the client sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_asgi.apis.openai_chat import OpenAIChat
from qwen_asgi.chat import ChatRequest, ModelInfo
from qwen_asgi.errors import InvalidRequest
from qwen_asgi.upstreams._thinking import THINKING_BUDGETS
from qwen_asgi.upstreams.model_studio import ModelStudio
from tests.wire import sample

DIALECT = ModelStudio("https://region/compatible-mode/v1", "canary-key")
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
NAMED = {"type": "function", "function": {"name": "f"}}


def ask(**fields: Any) -> ChatRequest:
    body = {"model": "qwen-plus", "messages": [{"role": "user", "content": "hi"}], **fields}
    return OpenAIChat().read(json.dumps(body).encode())


def sent(**fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(DIALECT.encode(ask(**fields)).body)
    return body


def test_a_plain_chat_is_openais() -> None:
    call = DIALECT.encode(ask())
    assert call.url == "https://region/compatible-mode/v1/chat/completions"
    assert json.loads(call.body) == {
        "model": "qwen-plus",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": False,
    }


def test_the_recorded_request_goes_out_as_it_is() -> None:
    recorded = json.loads(sample("ds-request-extras.json").data)
    assert json.loads(DIALECT.encode(OpenAIChat().read(json.dumps(recorded).encode())).body) == (
        recorded
    )


@pytest.mark.parametrize(
    ("fields", "thinks", "budget"),
    [
        ({}, None, None),
        ({"enable_thinking": True}, True, None),
        ({"enable_thinking": True, "thinking_budget": 7}, True, 7),
        ({"enable_thinking": False, "thinking_budget": 7}, False, None),
        ({"reasoning_effort": "none", "thinking_budget": 7}, False, None),
        ({"reasoning_effort": "low"}, True, THINKING_BUDGETS["low"]),
        ({"reasoning_effort": "low", "thinking_budget": 7}, True, 7),
        ({"reasoning_effort": "high"}, True, None),
        ({"reasoning_effort": "high", "enable_thinking": False}, False, None),
    ],
)
def test_the_wish_to_think_is_said_in_its_words_and_off_is_off(
    fields: dict[str, Any], thinks: bool | None, budget: int | None
) -> None:
    body = sent(**fields)
    assert body.get("enable_thinking") is thinks
    assert body.get("thinking_budget") == budget
    assert not {"reasoning_effort", "chat_template_kwargs"} & body.keys()


@pytest.mark.parametrize(
    ("model", "fields", "streams"),
    [
        ("qwen-plus", {}, False),
        ("qwen-plus", {"enable_thinking": True}, True),
        ("qwen-plus", {"enable_thinking": False}, False),
        ("qwq-plus", {}, True),
        ("QVQ-72B-preview", {}, True),
        ("qwen3-omni-flash", {"enable_thinking": False}, True),
        ("qwen3-235b-a22b", {}, True),
        ("qwen3-8b", {}, True),
        ("qwen3-8b", {"enable_thinking": False}, False),
        ("qwen3-235b-a22b-thinking-2507", {}, True),
        ("qwen3-235b-a22b-instruct-2507", {}, False),
        ("qwen3-max", {}, False),
    ],
)
def test_a_model_that_answers_a_stream_only_is_asked_for_one(
    model: str, fields: dict[str, Any], streams: bool
) -> None:
    body = sent(model=model, **fields)
    assert body["stream"] is streams
    assert body.get("stream_options") == ({"include_usage": True} if streams else None)
    assert sent(model=model, stream=True, **fields)["stream"] is True


def test_calls_may_be_parallel_as_openai_has_it() -> None:
    assert sent(tools=TOOLS)["parallel_tool_calls"] is True
    assert sent(tools=TOOLS, parallel_tool_calls=False)["parallel_tool_calls"] is False
    assert "parallel_tool_calls" not in sent()


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_tool_is_demanded_without_thinking(choice: Any) -> None:
    assert sent(tools=TOOLS, tool_choice=choice)["enable_thinking"] is False
    assert "enable_thinking" not in sent(tools=TOOLS, tool_choice="auto")
    # It cannot be told not to; the upstream's own words say so.
    assert "enable_thinking" not in sent(model="qwq-plus", tools=TOOLS, tool_choice=choice)
    with pytest.raises(InvalidRequest) as raised:
        sent(tools=TOOLS, tool_choice=choice, enable_thinking=True)
    assert raised.value.param == "tool_choice"


def test_the_client_s_request_is_left_as_it_is() -> None:
    request = ask(tools=TOOLS, reasoning_effort="low", tool_choice="auto")
    before = json.dumps(dict(request.options))
    DIALECT.encode(request)
    assert json.dumps(dict(request.options)) == before


def test_what_is_known_of_a_model_by_its_name() -> None:
    assert DIALECT.describe("qwq-plus") == ModelInfo("qwq-plus", thinking=True, stream_only=True)
    assert DIALECT.describe("qwen3-8b") == ModelInfo("qwen3-8b", thinking=True, stream_only=False)
    assert DIALECT.describe("qwen-vl-max").vision is True
    assert DIALECT.describe("qwen-plus") == ModelInfo("qwen-plus", stream_only=False)


def test_the_length_of_context_is_read_as_servers_tell_it() -> None:
    body = b'{"data": [{"id": "a", "max_model_len": 9}, {"id": "b", "context_length": 8, "x": 1}]}'
    assert [model.context for model in DIALECT.decode_models(body)] == [9, 8]
