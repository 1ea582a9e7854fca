"""Tools over each dialect, as the official client uses them: native, or read out of the text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from qwen_asgi.testing import SimulatedQwen
from tests.conftest import DIALECTS, MODEL, GatewayURL

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Weather in Paris and Rome?"}]
ARGUMENTS = ({"city": "Paris", "unit": "c"}, {"city": "Rome", "unit": "f"})


class get_weather(BaseModel):
    """Tells the weather of a city."""

    city: str
    unit: Literal["c", "f"]


TOOLS: list[ChatCompletionToolParam] = [openai.pydantic_function_tool(get_weather)]


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def client(gateway_url: GatewayURL) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway_url()}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(autouse=True)
def model_with_tools(qwen: SimulatedQwen, dialect: str) -> None:
    """Let the simulated model call the tool twice, in the way of its dialect."""
    qwen.tool_calls = [("get_weather", json.dumps(arguments)) for arguments in ARGUMENTS]
    if not dialect.startswith("qwen-web"):
        return

    def reply(body: Mapping[str, Any]) -> str:
        text = json.dumps(body["messages"], ensure_ascii=False)
        if "21 degrees" in text:
            return "It is warm."
        assert "get_weather" in text
        calls = [
            f"<tool_call>\n{json.dumps({'name': 'get_weather', 'arguments': given})}\n</tool_call>"
            for given in ARGUMENTS
        ]
        return "\n".join(calls)

    qwen.reply, qwen.pieces = reply, 3


def test_a_plain_answer_calls_tools(client: OpenAI) -> None:
    choice = client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls
    assert calls is not None
    assert [json.loads(c.function.arguments) for c in calls if c.type == "function"] == [*ARGUMENTS]
    assert len({call.id for call in calls}) == 2


def test_a_stream_calls_tools_piece_by_piece(client: OpenAI) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS, stream=True)
    pieces, reasons = [], []
    for chunk in stream:
        for choice in chunk.choices:
            pieces += choice.delta.tool_calls or []
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert reasons == ["tool_calls"]
    assert [piece.index for piece in pieces] == sorted(piece.index for piece in pieces)
    named = [p for p in pieces if p.function and p.function.name]
    assert [piece.index for piece in named] == [0, 1]
    assert all(piece.id for piece in named)
    for index, arguments in enumerate(ARGUMENTS):
        texts = [p.function.arguments or "" for p in pieces if p.index == index and p.function]
        assert json.loads("".join(texts)) == arguments
        assert len(texts) > 3, "they stream"


def test_the_client_s_helpers_read_them(client: OpenAI) -> None:
    parsed = client.chat.completions.parse(model=MODEL, messages=ASK, tools=TOOLS)
    calls = parsed.choices[0].message.tool_calls
    assert calls is not None
    assert [call.function.parsed_arguments for call in calls] == [
        get_weather(city="Paris", unit="c"),
        get_weather(city="Rome", unit="f"),
    ]
    with client.chat.completions.stream(model=MODEL, messages=ASK, tools=TOOLS) as stream:
        done = [e for e in stream if e.type == "tool_calls.function.arguments.done"]
    assert [event.parsed_arguments for event in done] == [
        get_weather(city="Paris", unit="c"),
        get_weather(city="Rome", unit="f"),
    ]


def test_results_go_back(client: OpenAI, qwen: SimulatedQwen, dialect: str) -> None:
    first = client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS)
    message = first.choices[0].message
    assert message.tool_calls is not None
    results: list[ChatCompletionMessageParam] = [
        {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}
        for call in message.tool_calls
    ]
    history: list[Any] = [*ASK, message.model_dump(exclude_none=True), *results]
    if not dialect.startswith("qwen-web"):
        qwen.tool_calls, qwen.reply = [], "It is warm."
    last = client.chat.completions.create(model=MODEL, messages=history, tools=TOOLS)
    assert last.choices[0].message.content == "It is warm."
    assert last.choices[0].finish_reason == "stop"


def test_none_is_none(client: OpenAI, qwen: SimulatedQwen) -> None:
    qwen.reply = "No tool."
    answer = client.chat.completions.create(
        model=MODEL, messages=ASK, tools=TOOLS, tool_choice="none"
    )
    assert answer.choices[0].message.content == "No tool."
    assert not answer.choices[0].message.tool_calls


def test_the_older_functions_are_called_one_at_a_time(
    client: OpenAI, qwen: SimulatedQwen, dialect: str
) -> None:
    qwen.tool_calls = qwen.tool_calls[:1]
    function: Any = TOOLS[0]["function"]
    create = client.chat.completions.create
    [choice] = create(model=MODEL, messages=ASK, functions=[function]).choices
    assert choice.finish_reason == "function_call"
    call = choice.message.function_call
    assert call is not None
    assert (call.name, json.loads(call.arguments)) == ("get_weather", ARGUMENTS[0])
    name, arguments = "", ""
    for chunk in create(model=MODEL, messages=ASK, functions=[function], stream=True):
        piece = chunk.choices[0].delta.function_call if chunk.choices else None
        if piece is not None:
            name += piece.name or ""
            arguments += piece.arguments or ""
    assert (name, json.loads(arguments)) == ("get_weather", ARGUMENTS[0])
    history: list[Any] = [
        *ASK,
        choice.message.model_dump(exclude_none=True),
        {"role": "function", "name": "get_weather", "content": "21 degrees"},
    ]
    if not dialect.startswith("qwen-web"):
        qwen.tool_calls, qwen.reply = [], "It is warm."
    last = create(model=MODEL, messages=history, functions=[function])
    assert last.choices[0].message.content == "It is warm."
