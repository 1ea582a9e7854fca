from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_asgi.apis.openai_chat import OpenAIChat
from qwen_asgi.chat import ChatRequest, Event, Finish, TextDelta, ToolCallDelta, fold
from qwen_asgi.errors import UpstreamInvalidResponse
from tests.schemas import check_answer, check_chunk

FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
CALL = {"name": "weather", "arguments": '{"city":"Paris"}'}
EVENTS: list[Event] = [
    TextDelta("Let me see."),
    ToolCallDelta(0, "", "call_1", "weather"),
    ToolCallDelta(0, '{"city":'),
    ToolCallDelta(0, '"Paris"}'),
    Finish("tool_calls"),
]
ANOTHER = ToolCallDelta(1, "{}", "call_2", "weather")


def read(*messages: dict[str, Any], **fields: Any) -> ChatRequest:
    turns = messages or ({"role": "user", "content": "hi"},)
    return OpenAIChat().read(json.dumps({"model": "m", "messages": turns, **fields}).encode())


def ask(**fields: Any) -> ChatRequest:
    return read(functions=[FUNCTION], **fields)


@pytest.mark.parametrize(
    ("choice", "read_as"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ({"name": "weather"}, {"type": "function", "function": {"name": "weather"}}),
    ],
)
def test_functions_are_read_as_tools_of_which_one_is_called_at_a_time(
    choice: Any, read_as: Any
) -> None:
    request = ask(function_call=choice)
    assert request.calls_as_functions
    assert request.options == {
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": read_as,
        "parallel_tool_calls": False,
    }


@pytest.mark.parametrize("fields", [{}, {"functions": []}, {"function_call": "auto"}])
def test_a_chat_without_functions_has_no_tools(fields: dict[str, Any]) -> None:
    request = read(**fields)
    assert not request.calls_as_functions
    assert request.options == {}


def test_a_history_of_functions_is_one_of_tools() -> None:
    request = read(
        {"role": "user", "content": "Paris?"},
        {"role": "assistant", "content": None, "function_call": CALL},
        {"role": "function", "name": "weather", "content": "sunny"},
        {"role": "assistant", "content": "Rome too", "function_call": CALL},
        {"role": "function", "name": "weather", "content": "rain"},
        {"role": "function", "name": "unasked", "content": "?"},
    )
    _, call, result, again, another, unasked = request.messages
    assert call.extra == {"tool_calls": [{"id": "call_1", "type": "function", "function": CALL}]}
    assert (result.role, result.text) == ("tool", "sunny")
    assert result.extra == {"tool_call_id": "call_1"}
    assert (again.text, again.extra["tool_calls"][0]["id"]) == ("Rome too", "call_3")
    assert another.extra == {"tool_call_id": "call_3"}
    assert (unasked.role, unasked.extra) == ("tool", {"tool_call_id": "call_unasked"})


def test_a_function_may_have_returned_nothing() -> None:
    """OpenAI's schema lets this role alone, beside the assistant, have no content."""
    called = {"role": "assistant", "content": None, "function_call": CALL}
    request = read(called, {"role": "function", "name": "weather", "content": None})
    assert [(message.role, message.content) for message in request.messages] == [
        ("assistant", ""),
        ("tool", ""),
    ]


def test_a_call_is_told_as_a_function_call() -> None:
    document = json.loads(OpenAIChat().answer(ask(), fold(EVENTS)))
    check_answer(document)
    [choice] = document["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == CALL
    assert "tool_calls" not in choice["message"]


def test_a_call_is_streamed_as_a_function_call() -> None:
    writer = OpenAIChat().stream(ask(stream=True))
    body = writer.write(EVENTS) + writer.finish()
    chunks = [json.loads(e.removeprefix(b"data: ")) for e in body.split(b"\n\n")[:-2]]
    for chunk in chunks:
        check_chunk(chunk)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [choice["delta"].get("function_call") for choice in choices] == [
        None,
        None,
        {"name": "weather", "arguments": ""},
        {"arguments": '{"city":'},
        {"arguments": '"Paris"}'},
        None,
    ]
    assert choices[-1]["finish_reason"] == "function_call"
    assert not any("tool_calls" in choice["delta"] for choice in choices)


def test_an_answer_without_a_call_is_an_ordinary_one() -> None:
    document = json.loads(OpenAIChat().answer(ask(), fold([TextDelta("hi"), Finish("stop")])))
    assert document["choices"][0]["finish_reason"] == "stop"
    assert "function_call" not in document["choices"][0]["message"]


def test_a_second_call_has_no_room_and_is_an_error() -> None:
    several = [*EVENTS[:-1], ANOTHER, EVENTS[-1]]
    with pytest.raises(UpstreamInvalidResponse, match="send `tools`"):
        OpenAIChat().answer(ask(), fold(several))
    writer = OpenAIChat().stream(ask(stream=True))
    with pytest.raises(UpstreamInvalidResponse, match="several functions at once"):
        writer.write(several)
