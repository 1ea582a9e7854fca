"""Every field is sent to every dialect: what the table says of it is what happens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from qwen_asgi.apis import openai_chat
from qwen_asgi.apis.openai_chat import OpenAIChat
from qwen_asgi.chat import Batches, ChatRequest, Event
from qwen_asgi.errors import InvalidRequest
from qwen_asgi.layers.choices import Choices
from qwen_asgi.layers.json_answer import JSONAnswers
from qwen_asgi.layers.stop import StopSequences
from qwen_asgi.layers.token_limit import TokenLimit
from qwen_asgi.layers.tools import EmulatedTools
from qwen_asgi.upstreams._fields import Refused
from qwen_asgi.upstreams.field_policy import (
    DIALECTS,
    EMULATED,
    FIELDS,
    FORWARDED,
    IGNORED,
    MESSAGE_FIELDS,
    OTHERS,
    TRANSLATED,
    Cell,
    column,
)
from qwen_asgi.upstreams.model_studio import ModelStudio
from qwen_asgi.upstreams.openai_compatible import OpenAICompatible
from qwen_asgi.upstreams.qwen_web_v1 import QwenWebV1
from qwen_asgi.upstreams.qwen_web_v2 import QwenWebV2

PROBES: dict[str, Any] = {
    "model": "qwen-plus",
    "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 0.25,
    "max_tokens": 77,
    "max_completion_tokens": 77,
    "audio": {"voice": "alloy"},
    "chat_mode": "guest",
    "chat_type": "search",
    "enable_search": True,
    "enable_thinking": True,
    "frequency_penalty": 0.5,
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "logit_bias": {"1": 2},
    "logprobs": True,
    "metadata": {"a": "b"},
    "modalities": ["text", "audio"],
    "n": 2,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": 0.5,
    "prompt_cache_key": "k",
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
    "safety_identifier": "s",
    "seed": 7,
    "service_tier": "auto",
    "size": "16:9",
    "stop": ["x"],
    "store": True,
    "sub_chat_type": "search",
    "thinking_budget": 99,
    "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "top_logprobs": 2,
    "top_p": 0.5,
    "user": "u",
    "verbosity": "low",
    "web_search_options": {"search_context_size": "low"},
}
"""A value of each field that asks for something."""

HARMLESS: dict[str, Any] = {
    "logprobs": False,
    "modalities": ["text"],
    "n": 1,
    "response_format": {"type": "text"},
    "tool_choice": "none",
    "tools": [],
}
"""A value of a refused field that asks for nothing."""

TOOLS = PROBES["tools"]
BESIDE: dict[str, dict[str, Any]] = {
    "thinking_budget": {"enable_thinking": True},
    "tool_choice": {"tools": TOOLS},
    "parallel_tool_calls": {"tools": TOOLS},
    "function_call": {"functions": [{"name": "f"}]},
}
"""What a field says something together with."""

MESSAGE_PROBES: dict[str, Any] = {
    "chat_type": "search",
    "extra": {"a": 1},
    "feature_config": {"thinking_enabled": True, "thinking_budget": 5},
    "name": "anna",
    "refusal": "I would rather not.",
    "tool_call_id": "c1",
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
ROLES = {"refusal": "assistant", "tool_call_id": "tool", "tool_calls": "assistant"}

FRESH_EACH_TIME = {"session_id", "chat_id", "id", "fid", "childrenIds", "timestamp"}


def ask(**fields: Any) -> ChatRequest:
    body = {"model": "qwen-max", "messages": [{"role": "user", "content": "hi"}], **fields}
    return OpenAIChat().read(json.dumps(body).encode())


def sent(dialect: str, request: ChatRequest) -> dict[str, Any]:
    """Return the document that goes up, without what is new in each."""
    match dialect:
        case "qwen-web-v1":
            body = QwenWebV1("http://up").encode(request).body
        case "qwen-web-v2":
            body = QwenWebV2("http://up").encode_opening(request).ask("chat").body
        case "model-studio":
            body = ModelStudio("http://up").encode(request).body
        case _:
            body = OpenAICompatible("http://up").encode(request).body
    document: dict[str, Any] = json.loads(body, object_hook=_without_what_is_fresh)
    return document


def _without_what_is_fresh(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in FRESH_EACH_TIME}


CELLS = [
    pytest.param(field, dialect, cell, id=f"{field}-{dialect}")
    for field, row in FIELDS.items()
    for dialect, cell in zip(DIALECTS, row, strict=True)
]


@pytest.mark.parametrize(("field", "dialect", "cell"), CELLS)
def test_what_the_table_says_of_a_field_is_what_happens(
    field: str, dialect: str, cell: Cell
) -> None:
    value, beside = PROBES[field], BESIDE.get(field, {})
    request = ask(**beside, **{field: value})
    if cell == EMULATED:
        check_emulated(dialect, field, request, ask(**beside))
        return
    if isinstance(cell, Refused):
        check_refused(field, dialect, request)
        return
    document, without = sent(dialect, request), sent(dialect, ask(**beside))
    is_named = field in request.notes.ignored
    match cell:
        case "forwarded":
            assert document[field] == value
            assert not is_named
        case "ignored":
            assert document == without
            assert is_named or (field, "max_tokens") == (
                "max_completion_tokens",
                request.notes.ignored[0],
            )
        case "translated":
            check_translated(field, dialect, request, document, without)
            assert not is_named


class Noted:
    """An upstream that notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[ChatRequest] = []

    @asynccontextmanager
    async def __call__(self, request: ChatRequest) -> AsyncIterator[Batches]:
        self.asked.append(request)
        yield _nothing()


async def _nothing() -> AsyncIterator[Sequence[Event]]:
    yield []


def emulated(request: ChatRequest) -> ChatRequest:
    """Return what the dialect is asked for in the place of a request with tools."""
    noted = Noted()

    async def ask_once() -> None:
        layers = StopSequences(EmulatedTools(TokenLimit(noted)))
        async with Choices(JSONAnswers(layers))(request):
            pass

    asyncio.run(ask_once())
    assert len(noted.asked) == request.options.get("n", 1)
    return noted.asked[0]


def check_emulated(dialect: str, field: str, request: ChatRequest, without: ChatRequest) -> None:
    plain = emulated(request)
    assert field not in plain.options
    # The others are asked for in words; what bounds an answer of nobody, choices by asking again.
    is_asked_for = sent(dialect, plain) != sent(dialect, emulated(without))
    assert is_asked_for is (field not in ("stop", "n", "max_tokens", "max_completion_tokens"))
    assert plain.notes.ignored == ()


def check_refused(field: str, dialect: str, request: ChatRequest) -> None:
    with pytest.raises(InvalidRequest) as caught:
        sent(dialect, request)
    assert (caught.value.param, caught.value.code) == (field, "unsupported_parameter")
    if field in HARMLESS:
        harmless = ask(**{field: HARMLESS[field]})
        sent(dialect, harmless)
        assert field not in harmless.notes.ignored


def check_translated(
    field: str,
    dialect: str,
    request: ChatRequest,
    document: dict[str, Any],
    without: dict[str, Any],
) -> None:
    match field:
        case "stream_options":
            # The gateway itself tells usage, or leaves it out.
            assert request.include_usage
        case "function_call" | "functions":
            assert document != without
            assert field not in document
        case "max_completion_tokens":
            assert document["max_tokens"] == 77
        case "stream":
            # It may be asked for a stream although the client is not.
            plain = ask(model="qwq-plus", enable_thinking=True)
            assert (plain.stream, sent(dialect, plain)["stream"]) == (False, True)
        case _:
            assert document != without


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("field", [*MESSAGE_FIELDS, "novelty"])
def test_what_the_table_says_of_a_message_s_field_is_what_happens(field: str, dialect: str) -> None:
    cell = MESSAGE_FIELDS.get(field, OTHERS)[DIALECTS.index(dialect)]
    value = MESSAGE_PROBES.get(field, "x")
    role = ROLES.get(field, "user")
    content = None if field == "refusal" else "hi"
    request = ask(messages=[{"role": role, "content": content, field: value}])
    if cell == EMULATED:
        plain = emulated(request)
        assert sent(dialect, plain) != sent(dialect, ask())
        assert plain.notes.ignored == ()
        return
    document, without = sent(dialect, request), sent(dialect, ask())
    assert (f"messages.{field}" in request.notes.ignored) is (cell == IGNORED)
    if cell == IGNORED:
        assert document == without
    elif cell == FORWARDED:
        assert document["messages"][-1][field] == json.loads(
            json.dumps(value), object_hook=_without_what_is_fresh
        )
    else:
        assert cell == TRANSLATED
        assert document != without


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_field_that_nobody_knows(dialect: str) -> None:
    request = ask(novelty={"a": [1]})
    document = sent(dialect, request)
    cell = OTHERS[DIALECTS.index(dialect)]
    assert (request.notes.ignored == ("novelty",)) is (cell == IGNORED)
    assert document.get("novelty") == (None if cell == IGNORED else {"a": [1]})


def test_the_table_has_every_field_of_openai_s() -> None:
    assert openai_chat._Body.__annotations__.keys() <= FIELDS.keys()
    assert FIELDS.keys() == PROBES.keys()
    assert MESSAGE_FIELDS.keys() == MESSAGE_PROBES.keys()


def test_a_column_is_what_a_dialect_asks_for() -> None:
    studio, web = column("model-studio"), column("qwen-web-v1")
    assert studio.refused.keys() == {"n"}
    assert {"tools", "n"} <= web.refused.keys() <= web.known
    assert not {"seed", "parallel_tool_calls"} & web.known
    assert web.known_in_messages == {"chat_type", "extra", "feature_config", "refusal"}
