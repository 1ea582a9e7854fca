from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from qwen_asgi.chat import (
    ChatRequest,
    Event,
    Finish,
    Message,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
    fold,
)
from qwen_asgi.errors import InvalidRequest, UpstreamInvalidResponse, UpstreamTruncated
from qwen_asgi.layers.token_limit import TokenLimit
from qwen_asgi.layers.tools import EmulatedTools
from qwen_asgi.tool_text.prompt import EMPTY_RESULT, Form
from tests.layers.scripted import CHAT, Scripted, answer
from tests.wire import sample

pytestmark = pytest.mark.anyio


def tool(name: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TWO = [tool("get_weather"), tool("get_time")]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def ask(*messages: Message, **options: Any) -> ChatRequest:
    return replace(CHAT, messages=messages or CHAT.messages, options={"tools": TWO, **options})


def says(*texts: str, reason: Any = "stop") -> list[Event]:
    return [*map(TextDelta, texts), Usage(1, 2, 3), Finish(reason)]


async def asked(request: ChatRequest, form: Form = "hermes") -> ChatRequest:
    upstream = Scripted(says(CALL))
    await answer(EmulatedTools(upstream, form=form), request)
    [plain] = upstream.asked
    return plain


async def test_a_chat_without_tools_passes_as_it_is() -> None:
    upstream = Scripted(says(CALL))
    assert text_of(await answer(EmulatedTools(upstream), CHAT)) == CALL
    assert upstream.asked[0] is CHAT


def text_of(events: list[Event]) -> str:
    return fold(events).text


async def test_tools_are_written_into_the_instructions() -> None:
    request = ask(Message("system", "Be terse."), Message("user", "Weather?"), seed=1)
    plain = await asked(request)
    system, user = plain.messages
    assert system.role == "system"
    text = system.text
    assert text.startswith("Be terse.\n\n# Tools\n")
    listed = text.partition("<tools>\n")[2].partition("\n</tools>")[0]
    assert [json.loads(line) for line in listed.split("\n")] == TWO
    assert "<tool_call>" in text
    assert user == request.messages[1]
    assert plain.options == {"seed": 1}
    assert (await asked(ask())).messages[0].text.startswith("# Tools")


async def test_the_block_of_tools_has_the_recorded_shape() -> None:
    recorded = sample("tool-system-block.txt").data.decode()
    listed = recorded.partition("<tools>\n")[2].partition("\n</tools>")[0]
    tools = [json.loads(line) for line in listed.split("\n")]
    text = (await asked(replace(CHAT, options={"tools": tools}))).messages[0].text
    written = text.partition("<tools>\n")[2].partition("\n</tools>")[0]
    assert [json.loads(line) for line in written.split("\n")] == tools


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tool_choice": "required"}, "call at least one tool"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "get_time"}}},
            "call the tool get_time",
        ),
        ({"parallel_tool_calls": False}, "one tool at a time"),
    ],
)
async def test_what_is_demanded_is_asked_for_in_words(options: Any, words: str) -> None:
    assert words in (await asked(ask(**options))).messages[0].text
    assert words not in (await asked(ask())).messages[0].text


async def test_none_leaves_the_tools_out() -> None:
    upstream = Scripted(says(CALL))
    events = await answer(EmulatedTools(upstream), ask(tool_choice="none"))
    assert text_of(events) == CALL
    assert upstream.asked[0].messages == CHAT.messages
    assert upstream.asked[0].options == {}


HISTORY = (
    Message("user", "Weather in Paris and the time?"),
    Message(
        "assistant",
        "",
        {
            "tool_calls": [
                {
                    "id": "a",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
                },
                {"id": "b", "type": "function", "function": {"name": "get_time", "arguments": ""}},
            ]
        },
    ),
    Message("tool", '{"temp": 21}', {"tool_call_id": "a"}),
    Message("tool", "12:00", {"tool_call_id": "b"}),
    Message("user", "Thanks."),
)


async def test_a_history_is_written_as_the_models_know_it() -> None:
    _, user, calls, results, thanks = (await asked(ask(*HISTORY))).messages
    assert (user, thanks) == (HISTORY[0], HISTORY[-1])
    assert calls.role == "assistant"
    assert calls.text == (
        '<tool_call>\n{"name":"get_weather","arguments":{"city":"Paris"}}\n</tool_call>\n'
        '<tool_call>\n{"name":"get_time","arguments":{}}\n</tool_call>'
    )
    assert results.role == "user"
    assert results.text == sample("tool-response-turn.txt").data.decode().rstrip("\n")


async def test_a_history_stays_readable_where_no_tools_are_offered() -> None:
    upstream = Scripted(says("21 degrees."))
    request = replace(CHAT, messages=HISTORY)
    assert text_of(await answer(EmulatedTools(upstream), request)) == "21 degrees."
    assert [message.role for message in upstream.asked[0].messages] == [
        "user",
        "assistant",
        "user",
        "user",
    ]


async def test_an_empty_result_is_said_to_be_one() -> None:
    plain = await asked(ask(*HISTORY[:2], Message("tool", "", {"tool_call_id": "a"})))
    assert EMPTY_RESULT in plain.messages[-1].text


@pytest.mark.parametrize(
    ("form", "head"), [("coder", "<function=get_weather>"), ("brackets", "[TOOL_CALL]\n{")]
)
async def test_each_form_is_written_in_its_own_way(form: Form, head: str) -> None:
    plain = await asked(ask(*HISTORY), form)
    assert head in plain.messages[2].text
    example = plain.messages[0].text
    assert ("<function=TOOL>" in example) is (form == "coder")
    assert ("[TOOL_CALL]" in example) is (form == "brackets")


async def test_calls_come_out_and_everything_else_stays() -> None:
    events = await answer(
        EmulatedTools(Scripted([ReasoningDelta("hm <tool_call>"), *says("On it. ", CALL)])), ask()
    )
    whole = fold(events)
    [call] = whole.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    assert call.id.startswith("call_")
    assert (whole.text, whole.reasoning) == ("On it. ", "hm <tool_call>")
    assert whole.usage == Usage(1, 2, 3)
    assert events[-1] == Finish("tool_calls")


async def test_ids_are_never_the_same_twice() -> None:
    layer = EmulatedTools(Scripted(says(CALL, CALL)))
    found = [call.id for _ in range(3) for call in fold(await answer(layer, ask())).tool_calls]
    assert len(set(found)) == 6


async def test_an_answer_without_a_call_ends_as_it_did() -> None:
    events = await answer(EmulatedTools(Scripted(says("no need", reason="length"))), ask())
    assert events[-1] == Finish("length")
    assert text_of(events) == "no need"


async def test_one_at_a_time_is_one() -> None:
    layer = EmulatedTools(Scripted(says(CALL, CALL)))
    whole = fold(await answer(layer, ask(parallel_tool_calls=False)))
    assert len(whole.tool_calls) == 1


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_time"}}]
)
async def test_a_demand_that_the_model_does_not_meet_is_an_error(choice: Any) -> None:
    layer = EmulatedTools(Scripted(says("I would rather not.")))
    with pytest.raises(UpstreamInvalidResponse) as caught:
        await answer(layer, ask(tool_choice=choice))
    assert caught.value.code == "upstream_no_tool_call"
    assert await answer(EmulatedTools(Scripted(says(CALL))), ask(tool_choice="required"))


async def test_a_call_that_breaks_off_is_no_call() -> None:
    cut = '<tool_call>{"name": "get_weather", "arguments": {"city": "Pa'
    upstream = Scripted(says("On it. ", cut))
    seen: list[Event] = []

    async def read() -> None:
        async with EmulatedTools(upstream)(ask()) as batches:
            async for batch in batches:
                seen.extend(batch)

    with pytest.raises(UpstreamTruncated):
        await read()
    assert text_of(seen) == "On it. "
    assert not any(isinstance(event, Finish) for event in seen)
    assert isinstance(seen[-1], ToolCallDelta | Usage)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("f")] * 129}, "tools"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
    ],
)
async def test_tools_that_are_none_are_refused_by_name(options: Any, param: str) -> None:
    upstream = Scripted()
    with pytest.raises(InvalidRequest) as caught:
        await answer(EmulatedTools(upstream), ask(**options))
    assert caught.value.param == param
    assert not upstream.asked


@pytest.mark.parametrize(
    ("calls", "param"),
    [
        ("x", "messages[0].tool_calls"),
        ([5], "messages[0].tool_calls[0]"),
        ([{"function": {"arguments": "{}"}}], "messages[0].tool_calls[0]"),
    ],
)
async def test_a_history_that_is_none_is_refused_by_name(calls: Any, param: str) -> None:
    message = Message("assistant", "", {"tool_calls": calls})
    with pytest.raises(InvalidRequest) as caught:
        await answer(EmulatedTools(Scripted()), ask(message))
    assert caught.value.param == param


TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CUT = '<tool_call>{"name": "f", "arguments": {"city": "Berlin and more"}}</tool_call>'


@pytest.mark.parametrize("most", range(1, 60))
async def test_a_call_that_is_cut_at_a_limit_is_no_other_and_no_failure(most: int) -> None:
    """Whatever is missing of it: nothing is put in its place, and the answer ends by its length."""
    request = replace(CHAT, options={"tools": [TOOL]}, max_tokens=most)
    for size in 1, 1000:
        pieces = [TextDelta(CUT[at : at + size]) for at in range(0, len(CUT), size)]
        upstream = TokenLimit(Scripted([*pieces, Finish("stop")]))
        whole = fold(await answer(EmulatedTools(upstream), request))
        assert "tool_call" not in whole.text
        arguments = "".join(call.arguments for call in whole.tool_calls)
        assert '{"city":"Berlin and more"}'.startswith(arguments.replace(": ", ":"))
        if whole.finish_reason == "length":
            assert not whole.text
        else:
            assert json.loads(arguments) == {"city": "Berlin and more"}


async def test_a_whole_call_before_the_cut_stays() -> None:
    text = CUT + CUT[:40]
    upstream = Scripted([TextDelta(text), Finish("length")])
    whole = fold(await answer(EmulatedTools(upstream), replace(CHAT, options={"tools": [TOOL]})))
    assert whole.finish_reason == "length"
    assert [json.loads(call.arguments) for call in whole.tool_calls[:1]] == [
        {"city": "Berlin and more"}
    ]
