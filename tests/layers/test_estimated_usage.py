from __future__ import annotations

from dataclasses import replace

import pytest

from qwen_asgi.chat import (
    Event,
    Finish,
    Message,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from qwen_asgi.errors import UpstreamTruncated
from qwen_asgi.layers.estimated_usage import TOKENS_OF_A_TURN, EstimatedUsage
from tests.layers.scripted import CHAT, Scripted, answer

pytestmark = pytest.mark.anyio

EVENTS: list[Event] = [
    ReasoningDelta("12"),
    TextDelta("345"),
    ToolCallDelta(0, "", "call_1", "67"),
    ToolCallDelta(0, "89"),
    Finish("tool_calls"),
]


async def test_what_is_not_told_is_estimated_and_marked() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    turns = (Message("user", "1234"), Message("assistant", "", {"tool_calls": calls}))
    bare = await answer(EstimatedUsage(Scripted(EVENTS)), replace(CHAT, messages=turns[:1]))
    usage = bare.pop()
    assert bare == EVENTS
    prompt = 4 + TOKENS_OF_A_TURN
    assert usage == Usage(prompt, 9, prompt + 9, reasoning_tokens=2, certainty="estimated")
    for longer in (
        replace(CHAT, messages=turns),
        replace(CHAT, messages=turns[:1], options={"tools": [{"type": "function"}]}),
    ):
        more = (await answer(EstimatedUsage(Scripted(EVENTS)), longer)).pop()
        assert isinstance(more, Usage)
        assert more.prompt_tokens > prompt + 5


async def test_what_is_told_stays() -> None:
    told: list[Event] = [TextDelta("a"), Usage(1, 2, 3), Finish("stop")]
    assert await answer(EstimatedUsage(Scripted(told))) == told


async def test_an_answer_that_breaks_off_has_none() -> None:
    upstream = EstimatedUsage(Scripted([TextDelta("a"), UpstreamTruncated("cut")]))
    with pytest.raises(UpstreamTruncated):
        await answer(upstream)
