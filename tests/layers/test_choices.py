from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import pytest

from qwen_asgi.chat import (
    Batches,
    ChatRequest,
    Choice,
    Event,
    Finish,
    Fold,
    Notes,
    TextDelta,
    Usage,
)
from qwen_asgi.errors import (
    InvalidRequest,
    UpstreamRateLimited,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from qwen_asgi.layers import choices
from qwen_asgi.layers.choices import MOST_CHOICES, Choices
from qwen_asgi.layers.limit import Limit
from tests.layers.scripted import ANSWER, CHAT, Outcome, Scripted, answer

pytestmark = pytest.mark.anyio


def says(text: str, *more: Event) -> list[Event]:
    return [TextDelta(text), *more, Finish("stop")]


async def batches_of(number: int, *outcomes: Outcome) -> list[Sequence[Event]]:
    request = replace(CHAT, options={"n": number})
    async with Choices(Scripted(*outcomes))(request) as batches:
        return [batch async for batch in batches]


async def test_one_is_asked_for_as_ever() -> None:
    for options in {}, {"n": 1}:
        upstream = Scripted()
        assert await answer(Choices(upstream), replace(CHAT, options=options)) == [*ANSWER]
        [asked] = upstream.asked
        assert asked.options == {}


async def test_several_are_asked_for_one_by_one_and_told_apart() -> None:
    upstream = Scripted(says("a"), says("b"), says("c"))
    request = replace(CHAT, options={"n": 3, "seed": 1})
    whole = Fold()
    async with Choices(upstream)(request) as batches:
        async for batch in batches:
            assert type(batch[0]) is Choice
            assert not any(type(event) is Choice for event in batch[1:])
            whole.add(batch)
    first = whole.answer()
    assert [one.text for one in (first, *first.others)] == ["a", "b", "c"]
    assert [one.finish_reason for one in (first, *first.others)] == ["stop"] * 3
    assert [asked.options for asked in upstream.asked] == [{"seed": 1}] * 3


async def test_they_are_asked_at_the_same_time_and_interleaved() -> None:
    slow: list[Event | float] = [TextDelta("1"), 0.05, TextDelta("2"), 0.05, Finish("stop")]
    upstream = Scripted(slow)
    request = replace(CHAT, options={"n": 4})
    async with asyncio.timeout(0.3):
        events = await answer(Choices(upstream), request)
    assert upstream.most_open == 4
    of = [event.index for event in events if type(event) is Choice]
    assert of != sorted(of)


async def test_usage_is_summed_and_told_once_at_the_end() -> None:
    one = Usage(3, 5, 8, reasoning_tokens=2, cached_tokens=1)
    batches = await batches_of(2, says("a", one), says("b", Usage(3, 6, 9, reasoning_tokens=4)))
    assert batches[-1] == [Usage(6, 11, 17, reasoning_tokens=6, cached_tokens=1)]
    assert sum(type(event) is Usage for batch in batches for event in batch) == 1


async def test_a_sum_that_lacks_one_is_not_told() -> None:
    batches = await batches_of(2, says("a", Usage(3, 5, 8)), says("b"))
    assert not any(type(event) is Usage for batch in batches for event in batch)


async def test_what_one_has_cost_is_noted_where_the_sum_cannot_be_told() -> None:
    request = replace(CHAT, options={"n": 2}, notes=Notes())
    await answer(Choices(Scripted(says("a", Usage(3, 5, 8)), says("b"))), request)
    assert request.notes.left == Usage(3, 5, 8, certainty="partial")


async def test_a_refusal_of_one_is_the_refusal_of_all() -> None:
    upstream = Scripted([60.0, *ANSWER], UpstreamRateLimited("later", retry_after=3))
    request = replace(CHAT, options={"n": 3})
    with pytest.raises(UpstreamRateLimited) as caught:
        await answer(Choices(upstream), request)
    assert caught.value.retry_after == 3
    assert upstream.open == 0


async def test_one_that_breaks_off_ends_all_behind_what_came() -> None:
    upstream = Scripted([TextDelta("a"), 0.02, UpstreamTruncated("cut")], [TextDelta("b"), 60.0])
    heard: list[Event] = []

    async def listen() -> None:
        async with Choices(upstream)(replace(CHAT, options={"n": 2})) as batches:
            async for batch in batches:
                heard.extend(batch)

    async with asyncio.timeout(2):
        with pytest.raises(UpstreamTruncated):
            await listen()
    assert heard == [Choice(0), TextDelta("a"), Choice(1), TextDelta("b")]
    assert upstream.open == 0


async def test_a_bug_in_one_is_raised_too() -> None:
    with pytest.raises(ZeroDivisionError):
        await batches_of(2, says("a"), ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await batches_of(2, says("a"), [TextDelta("b"), 0.01, ZeroDivisionError()])


@pytest.mark.parametrize("within", ["before", "after"])
async def test_whoever_leaves_ends_all_calls(within: str) -> None:
    upstream = Scripted([60.0 if within == "before" else 0.0, TextDelta("a"), 60.0])
    task = asyncio.create_task(answer(Choices(upstream), replace(CHAT, options={"n": 3})))
    await asyncio.sleep(0.02)
    assert upstream.open == 3
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert upstream.open == 0


async def test_of_a_slow_client_no_more_is_held_than_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choices, "MOST_HELD", 3)
    upstream = Scripted([*[TextDelta("x")] * 50, Finish("stop")])
    async with Choices(upstream)(replace(CHAT, options={"n": 2})) as batches:
        await asyncio.sleep(0.02)
        assert upstream.open == 2
        whole = Fold()
        async for batch in batches:
            whole.add(batch)
    first = whole.answer()
    assert [first.text, first.others[0].text] == ["x" * 50] * 2


async def test_they_come_to_their_turn_where_fewer_are_let_in() -> None:
    limit = Limit(Scripted([0.01, *ANSWER]), 1, queue=10, patience=5.0, name="studio")
    async with asyncio.timeout(3):
        events = await answer(Choices(limit), replace(CHAT, options={"n": 4}))
    assert sum(type(event) is Finish for event in events) == 4


async def test_where_fewer_are_let_in_long_answers_go_out_while_others_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choices, "MOST_HELD", 2)
    upstream = Scripted([*[TextDelta("x")] * 20, Finish("stop")])
    limit = Limit(upstream, 1, queue=10, patience=5.0, name="studio")
    async with asyncio.timeout(3):
        events = await answer(Choices(limit), replace(CHAT, options={"n": 3}))
    assert sum(type(event) is TextDelta for event in events) == 60


async def test_too_many_are_refused() -> None:
    upstream = Scripted(UpstreamUnreachable("gone"))
    with pytest.raises(InvalidRequest) as caught:
        await answer(Choices(upstream), replace(CHAT, options={"n": MOST_CHOICES + 1}))
    assert caught.value.param == "n"
    assert not upstream.asked


async def test_others_are_served_between_the_beginnings() -> None:
    """Each writes all of a long prompt anew, in one step."""
    passes, seen = 0, []

    async def others() -> None:
        nonlocal passes
        while True:
            passes += 1
            await asyncio.sleep(0)

    def upstream(request: ChatRequest) -> AbstractAsyncContextManager[Batches]:
        seen.append(passes)
        return scripted(request)

    scripted = Scripted(ANSWER)
    serving = asyncio.create_task(others())
    await answer(Choices(upstream), replace(CHAT, options={"n": 4}))
    serving.cancel()
    assert len(set(seen)) == 4
