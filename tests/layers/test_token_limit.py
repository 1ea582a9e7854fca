from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from qwen_asgi.chat import (
    Batches,
    ChatRequest,
    Event,
    Finish,
    Notes,
    ReasoningDelta,
    TextDelta,
    Usage,
    fold,
)
from qwen_asgi.layers.token_limit import TokenLimit
from tests.layers.scripted import ANSWER, CHAT, Scripted, answer

pytestmark = pytest.mark.anyio

LONG: list[Event] = [ReasoningDelta("123"), *map(TextDelta, ["45", "6789", "0"])]
USAGE = Usage(1, 10, 11)


async def cut(most: int, *events: Event) -> list[Event]:
    upstream = Scripted([*events, USAGE, Finish("stop")])
    events_ = await answer(TokenLimit(upstream), replace(CHAT, max_tokens=most))
    assert upstream.open == 0
    assert upstream.asked[0].max_tokens == most
    return events_


@pytest.mark.parametrize("most", range(1, 10))
async def test_an_answer_ends_at_the_limit_thinking_counted(most: int) -> None:
    events = await cut(most, *LONG)
    whole = fold(events)
    assert whole.reasoning + whole.text == "1234567890"[:most]
    assert events[-1] == Finish("length")
    assert whole.usage is None


@pytest.mark.parametrize("most", [10, 11, 1000])
async def test_an_answer_within_the_limit_is_as_it_was(most: int) -> None:
    assert await cut(most, *LONG) == [*LONG, USAGE, Finish("stop")]


async def test_without_a_limit_there_is_none() -> None:
    upstream = Scripted()
    assert await answer(TokenLimit(upstream)) == [*ANSWER]


async def test_usage_in_the_batch_that_is_cut_is_noted() -> None:
    request = replace(CHAT, max_tokens=1, notes=Notes())

    @asynccontextmanager
    async def upstream(request: ChatRequest) -> AsyncIterator[Batches]:
        async def batches() -> Batches:
            yield [TextDelta("12"), USAGE, Finish("stop")]

        yield batches()

    assert await answer(TokenLimit(upstream), request) == [TextDelta("1"), Finish("length")]
    assert request.notes.left == replace(USAGE, certainty="partial")
