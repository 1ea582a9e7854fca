from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from qwen_asgi.chat import (
    Event,
    Finish,
    Message,
    Notes,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
    fold,
)
from qwen_asgi.errors import InvalidRequest, UpstreamInvalidResponse, UpstreamTruncated
from qwen_asgi.layers import json_answer
from qwen_asgi.layers.json_answer import (
    LONGEST_PREFACE,
    LONGEST_SCHEMA,
    LONGEST_SENT_BACK,
    JSONAnswers,
    make_check,
)
from tests.layers.scripted import ANSWER, CHAT, Scripted, answer

pytestmark = pytest.mark.anyio

OBJECT = {"type": "json_object"}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 1}},
    },
    "required": ["name"],
    "additionalProperties": False,
}


def wish(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


def says(*texts: str, reason: Any = "stop") -> list[Event]:
    return [*map(TextDelta, texts), Usage(1, 2, 3), Finish(reason)]


async def structured(upstream: Scripted, response_format: Any) -> list[Event]:
    request = replace(CHAT, options={"response_format": response_format, "seed": 1})
    return await answer(JSONAnswers(upstream), request)


@pytest.mark.parametrize("response_format", [None, {"type": "text"}])
async def test_a_chat_for_text_passes_as_it_is(response_format: Any) -> None:
    upstream = Scripted(ANSWER)
    options = {} if response_format is None else {"response_format": response_format}
    request = replace(CHAT, options=options)
    assert await answer(JSONAnswers(upstream), request) == [*ANSWER]
    assert upstream.asked[0] is request


async def test_it_is_asked_for_in_words() -> None:
    upstream = Scripted(says("{}"))
    await structured(upstream, OBJECT)
    [asked] = upstream.asked
    assert asked.options == {"seed": 1}
    assert "one JSON object and nothing else" in asked.messages[0].text
    upstream = Scripted(says('{"name": "a"}'))
    request = replace(
        CHAT,
        messages=(Message("system", "Be terse."), *CHAT.messages),
        options={"response_format": wish(SCHEMA)},
    )
    await answer(JSONAnswers(upstream), request)
    text = upstream.asked[0].messages[0].text
    assert text.startswith("Be terse.\n\n")
    assert json.loads(text.rpartition("\n")[2]) == SCHEMA


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize(
    "text",
    [
        '{"name": "a", "sizes": [1, 2]}',
        '  \n{"name": "a", "sizes": [1, 2]}\n\n',
        '```json\n{"name": "a", "sizes": [1, 2]}\n```',
        'Here it is:\n```\n{"name": "a", "sizes": [1, 2]}\n```\nI hope it helps.',
        '{"name": "a", "sizes": [1, 2,],}',
    ],
)
async def test_the_object_alone_is_the_answer(text: str, size: int | None) -> None:
    step = size or len(text)
    parts = [text[n : n + step] for n in range(0, len(text), step)]
    events = await structured(Scripted(says(*parts)), wish(SCHEMA))
    assert json.loads(fold(events).text) == {"name": "a", "sizes": [1, 2]}
    assert events[-1] == Finish("stop")


async def test_it_streams() -> None:
    events = await structured(Scripted(says('{"name": "a', "b", 'c"}')), OBJECT)
    texts = [event.text for event in events if isinstance(event, TextDelta)]
    assert texts == ['{"name": "a', "b", 'c"}']


WRONG = {
    "no object": ("I would rather not.", "there is no object in it"),
    "no end": ('{"name": "a"', "its object has no end"),
    "no json": ('{"name": a}', "stops being JSON"),
    "a long preface": ("x" * (LONGEST_PREFACE + 1) + "{}", "does not begin with an object"),
    "a missing field": ("{}", "'name' is a required property"),
    "a wrong type": ('{"name": "a", "sizes": [1, "b"]}', "$.sizes[1]"),
    "half a character": ('{"name": "\\ud800"}', "cannot be read"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_an_answer_that_is_not_what_was_asked_for_is_an_error(name: str) -> None:
    text, message = WRONG[name]
    seen: list[Event] = []

    async def read() -> None:
        request = replace(CHAT, options={"response_format": wish(SCHEMA)})
        async with JSONAnswers(Scripted(says(text)))(request) as batches:
            async for batch in batches:
                seen.extend(batch)

    with pytest.raises(UpstreamInvalidResponse) as caught:
        await read()
    assert caught.value.code == "upstream_invalid_json"
    assert message in str(caught.value)
    assert not any(isinstance(event, Finish) for event in seen)


@pytest.mark.parametrize("name", WRONG)
async def test_one_that_is_not_streamed_is_sent_back_once_where_that_is_allowed(name: str) -> None:
    text, message = WRONG[name]
    upstream = Scripted([ReasoningDelta("hm"), *says(text)], says('{"name": "a"}'))
    request = replace(CHAT, stream=False, options={"response_format": wish(SCHEMA)})
    whole = fold(await answer(JSONAnswers(upstream, repairs=True), request))
    assert (whole.text, whole.reasoning, whole.finish_reason) == ('{"name": "a"}', "", "stop")
    # One that is given up is left before its usage is told.
    assert whole.usage in (Usage(2, 4, 6), Usage(1, 2, 3))
    first, second = upstream.asked
    assert second.messages[:-2] == first.messages
    said, asked = second.messages[-2:]
    assert said.role == "assistant"
    assert text.startswith(said.text.removesuffix("…"))
    assert asked.role == "user"
    assert message in asked.text
    assert upstream.open == 0


async def test_a_second_one_that_is_wrong_too_is_the_error() -> None:
    upstream = Scripted(says("{}"))
    request = replace(CHAT, stream=False, options={"response_format": wish(SCHEMA)})
    with pytest.raises(UpstreamInvalidResponse, match="'name' is a required property"):
        await answer(JSONAnswers(upstream, repairs=True), request)
    assert len(upstream.asked) == 2


async def test_of_a_stream_only_what_did_not_go_out_is_asked_again() -> None:
    right = says('{"name": "a"}')
    nothing = Scripted([ReasoningDelta("hm"), *says("I would rather not.")], right)
    request = replace(CHAT, options={"response_format": wish(SCHEMA)})
    whole = fold(await answer(JSONAnswers(nothing, repairs=True), request))
    assert (whole.reasoning, whole.text) == ("hm", '{"name": "a"}')
    partly = Scripted(says("{}"), right)
    with pytest.raises(UpstreamInvalidResponse):
        await answer(JSONAnswers(partly, repairs=True), request)
    assert len(partly.asked) == 1


async def test_what_is_right_is_as_ever_and_so_is_another_error() -> None:
    request = replace(CHAT, stream=False, options={"response_format": wish(SCHEMA)})
    upstream = Scripted(says('{"name": "a"}'))
    assert fold(await answer(JSONAnswers(upstream, repairs=True), request)).text == '{"name": "a"}'
    cut = Scripted([TextDelta('{"na'), UpstreamTruncated("cut")])
    with pytest.raises(UpstreamTruncated):
        await answer(JSONAnswers(cut, repairs=True), request)
    assert (len(upstream.asked), len(cut.asked)) == (1, 1)


async def test_a_long_answer_is_sent_back_in_part() -> None:
    upstream = Scripted(says('{"name": 5, "x": "' + "y" * 2 * LONGEST_SENT_BACK + '"}'))
    request = replace(CHAT, stream=False, options={"response_format": wish(SCHEMA)})
    with pytest.raises(UpstreamInvalidResponse):
        await answer(JSONAnswers(upstream, repairs=True), request)
    assert len(upstream.asked[1].messages[-2].text) == LONGEST_SENT_BACK + 1


async def test_what_a_wrong_answer_has_cost_is_noted_where_the_second_call_fails() -> None:
    upstream = Scripted(says("{}"), UpstreamTruncated("cut"))
    options = {"response_format": wish(SCHEMA)}
    request = replace(CHAT, stream=False, options=options, notes=Notes())
    with pytest.raises(UpstreamTruncated):
        await answer(JSONAnswers(upstream, repairs=True), request)
    assert request.notes.left == Usage(1, 2, 3, certainty="partial")


async def test_a_schema_is_made_a_check_of_once_for_all_who_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[object] = []

    def noted(schema: Mapping[str, Any]) -> Any:
        made.append(schema)
        return make_check(schema)

    monkeypatch.setattr(json_answer, "make_check", noted)
    large = {**SCHEMA, "description": "x" * json_answer.SMALL_SCHEMA}
    for schema in SCHEMA, large:
        layer = JSONAnswers(Scripted(says('{"name": "a"}')))
        request = replace(CHAT, options={"response_format": wish(schema)})
        await asyncio.gather(*(answer(layer, request) for _ in range(5)))
        await answer(layer, request)
    assert made == [SCHEMA, large]
    for number in range(json_answer.MOST_SCHEMAS + 1):
        other = replace(CHAT, options={"response_format": wish({**SCHEMA, "title": str(number)})})
        await answer(layer, other)
    assert len(layer._checks) <= json_answer.MOST_SCHEMAS


async def test_a_very_large_schema_holds_nobody_up() -> None:
    schema: dict[str, Any] = {"anyOf": [{}] * 20_000}
    layer = JSONAnswers(Scripted(says("{}")))
    request = replace(CHAT, options={"response_format": wish(schema)})
    task = asyncio.create_task(answer(layer, request))
    longest, last = 0.0, time.perf_counter()
    while not task.done():
        await asyncio.sleep(0.001)
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
    assert await task
    assert longest < 1.0


async def test_an_answer_that_was_too_long_ends_as_one() -> None:
    events = await structured(Scripted(says('{"name": "a', reason="length")), wish(SCHEMA))
    assert events[-1] == Finish("length")


async def test_a_call_of_a_tool_is_an_answer_too() -> None:
    call = ToolCallDelta(0, "{}", id="a", name="f")
    events = await structured(Scripted([call, Finish("tool_calls")]), OBJECT)
    assert events == [call, Finish("tool_calls")]


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "xml"},
        "json",
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"schema": 5}},
        wish({"type": "nonsense"}),
        wish({"type": "object", "description": "x" * LONGEST_SCHEMA}),
    ],
)
async def test_a_format_that_is_none_is_refused(response_format: Any) -> None:
    upstream = Scripted()
    with pytest.raises(InvalidRequest) as caught:
        await structured(upstream, response_format)
    assert str(caught.value.param).startswith("response_format")
    assert not upstream.asked


async def test_without_the_library_a_schema_is_refused_and_an_object_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(json_answer, "find_spec", lambda name: None)
    with pytest.raises(InvalidRequest, match=r"qwen-asgi\[structured\]"):
        await structured(Scripted(), wish(SCHEMA))
    assert await structured(Scripted(says("{}")), OBJECT)


def test_no_address_in_a_schema_is_fetched() -> None:
    check = make_check({"$ref": "http://127.0.0.1:9/schema.json"})
    assert "cannot be followed" in check({})
    loop = make_check({"$ref": "#"})
    assert "cannot be followed" in loop({}) or loop({}) == ""


def test_a_pattern_that_would_take_for_ever_takes_no_time() -> None:
    check = make_check({"type": "object", "properties": {"a": {"pattern": "(x+x+)+y"}}})
    assert check({"a": "x" * 40}) == ""


def test_references_that_double_at_each_step_take_no_time() -> None:
    definitions: dict[str, Any] = {
        f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)
    }
    check = make_check({"$ref": "#/$defs/a0", "$defs": definitions | {"a40": {}}})
    assert "steps" in check({})
    # The next answer has all of them again.
    assert "steps" in check({})


@pytest.mark.parametrize(
    "schema",
    [{"$ref": "#/type", "type": "object"}, {"foo": [1], "$ref": "#/foo"}, {"multipleOf": 0.1}],
)
def test_a_schema_that_leads_nowhere_is_told(schema: dict[str, Any]) -> None:
    assert "cannot be followed" in make_check(schema)(10**400 if "multipleOf" in schema else {})


def test_no_name_that_a_model_gave_can_forge_a_line_of_the_log() -> None:
    check = make_check({"additionalProperties": {"type": "integer"}})
    problem = check({"a\n2026-01-01 - INFO - chat forged\x1b[2J": "x"})
    assert problem.isprintable()
    assert "a\\n2026-01-01" in problem
    assert len(check({"a\n" * 1000: "x"})) < 1000  # 300 characters, and what escapes them
