from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from qwen_asgi.chat import (
    ChatRequest,
    Event,
    Finish,
    Message,
    Notes,
    ReasoningDelta,
    Rest,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from qwen_asgi.errors import UpstreamRateLimited, UpstreamTruncated
from qwen_asgi.layers import drain
from qwen_asgi.layers.drain import Draining, Drains
from qwen_asgi.layers.limit import Limit
from tests.layers.scripted import ANSWER, Outcome, Scripted, answer

pytestmark = pytest.mark.anyio

USAGE = Usage(3, 5, 8)
SLOW: Sequence[Event | float] = [TextDelta("a"), 0.05, TextDelta("b"), USAGE, Finish("stop")]


def chat() -> ChatRequest:
    return ChatRequest(model="m", messages=(Message("user", "Hi"),), notes=Notes())


def draining(
    upstream: Scripted,
    *,
    seconds: float = 5.0,
    tokens: int | None = None,
    drains: Drains | None = None,
) -> Draining:
    return Draining(upstream, drains or Drains(), seconds=seconds, tokens=tokens)


async def left_at_the_first(layer: Draining) -> Rest:
    """Ask, leave behind the first batch, and return what goes on."""
    request = chat()

    async def listen() -> None:
        async with layer(request) as batches:
            await anext(batches)
            await asyncio.sleep(60)

    task = asyncio.create_task(listen())
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert request.notes.rest is not None
    return request.notes.rest


async def over(rest: Rest) -> str:
    ended = asyncio.Event()
    rest.when_over(ended.set)
    async with asyncio.timeout(2):
        await ended.wait()
    return rest.end


async def test_a_client_that_stays_hears_what_there_is() -> None:
    request = chat()
    for outcome in ANSWER, SLOW:
        upstream = Scripted(outcome)
        said = await answer(draining(upstream), request)
        assert said == [step for step in outcome if not isinstance(step, float)]
        assert upstream.open == 0
    assert request.notes.rest is None


async def test_an_answer_is_read_on_to_its_usage_when_its_client_leaves() -> None:
    upstream = Scripted(SLOW)
    rest = await left_at_the_first(draining(upstream))
    assert upstream.open == 1
    assert await over(rest) == "done"
    assert rest.usage == USAGE
    assert upstream.open == 0


async def test_usage_that_waits_for_a_slow_client_is_not_lost() -> None:
    upstream = Scripted([TextDelta("a"), TextDelta("b"), USAGE, Finish("stop")])
    rest = await left_at_the_first(draining(upstream))
    assert (await over(rest), rest.usage) == ("done", USAGE)


async def test_nothing_is_asked_for_a_client_that_left_before_the_answer_began() -> None:
    upstream = Scripted([60.0, TextDelta("a")])
    limited = Limit(upstream, 1, queue=5, patience=5.0, name="studio")
    layer = Draining(limited, Drains(), seconds=5.0, tokens=None)
    first = asyncio.create_task(answer(layer, chat()))
    await asyncio.sleep(0.01)
    request = chat()
    waiting = asyncio.create_task(answer(layer, request))
    await asyncio.sleep(0.01)
    assert limited.busy == 2
    waiting.cancel()
    await asyncio.wait([waiting])
    assert (limited.busy, len(upstream.asked), request.notes.rest) == (1, 1, None)
    first.cancel()
    await asyncio.wait([first])


@pytest.mark.parametrize("texts", range(10, 20))
async def test_usage_that_waits_for_room_when_the_client_leaves_is_not_lost(texts: int) -> None:
    upstream = Scripted([*[TextDelta("x")] * texts, USAGE, Finish("stop")])
    rest = await left_at_the_first(draining(upstream))
    assert (await over(rest), rest.usage) == ("done", USAGE)


async def test_once_the_gateway_is_to_end_nothing_is_read_on() -> None:
    drains = Drains()
    upstream = Scripted([TextDelta("a"), 60.0])
    request = chat()
    task = asyncio.create_task(answer(draining(upstream, drains=drains), request))
    await asyncio.sleep(0.01)
    drains.is_closed = True
    task.cancel()
    await asyncio.wait([task])
    assert (upstream.open, request.notes.rest) == (0, None)


async def test_it_is_read_on_for_so_many_seconds() -> None:
    upstream = Scripted([TextDelta("a"), 60.0, *ANSWER])
    rest = await left_at_the_first(draining(upstream, seconds=0.05))
    assert (await over(rest), rest.usage) == ("seconds", None)
    assert upstream.open == 0


@pytest.mark.parametrize(
    "last", [TextDelta("1234"), ReasoningDelta("1234"), ToolCallDelta(0, "1234")]
)
async def test_it_is_read_on_for_so_many_tokens(last: Event) -> None:
    events: list[Event | float] = [TextDelta("a"), 0.05, last, TextDelta("5"), USAGE]
    for tokens, end in (5, "done"), (4, "tokens"), (3, "tokens"):
        upstream = Scripted([*events, Finish("stop")])
        rest = await left_at_the_first(draining(upstream, tokens=tokens))
        assert await over(rest) == end
        assert rest.usage == (USAGE if end == "done" else None)
        assert upstream.open == 0


async def test_a_call_that_waits_for_its_client_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "MOST_HELD", 2)
    upstream = Scripted([*[TextDelta("x")] * 50, USAGE, Finish("stop")])
    rest = await left_at_the_first(draining(upstream))
    assert (await over(rest), rest.usage) == ("done", USAGE)


async def test_an_error_that_nobody_hears_is_the_end() -> None:
    for error, end in (
        (UpstreamTruncated("cut"), "upstream_truncated"),
        (ZeroDivisionError(), "internal_error"),
    ):
        rest = await left_at_the_first(draining(Scripted([TextDelta("a"), 0.05, error])))
        assert await over(rest) == end


@pytest.mark.parametrize(
    "outcome", [UpstreamRateLimited("later"), [TextDelta("a"), UpstreamTruncated("cut")]]
)
async def test_an_error_that_is_heard_is_raised_as_ever(outcome: Outcome) -> None:
    upstream = Scripted(outcome)
    request = chat()
    with pytest.raises((UpstreamRateLimited, UpstreamTruncated)):
        await answer(draining(upstream), request)
    assert request.notes.rest is None
    assert upstream.open == 0


async def test_of_too_many_the_calls_are_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(drain, "MOST_AT_ONCE", 1)
    monkeypatch.setattr(drain, "MOST_HELD", 2)
    drains = Drains()
    first = Scripted([TextDelta("a"), 0.2, USAGE, Finish("stop")])
    rest = await left_at_the_first(draining(first, drains=drains))
    second = Scripted([*[TextDelta("x")] * 50, 60.0])
    task = asyncio.create_task(answer_slowly(draining(second, drains=drains)))
    await asyncio.sleep(0.02)
    task.cancel()
    async with asyncio.timeout(1):
        await asyncio.wait([task])
    assert second.open == 0
    assert "too many others are" in caplog.text
    assert (await over(rest), rest.usage) == ("done", USAGE)
    await asyncio.sleep(0.01)
    assert drains.has_room()


async def answer_slowly(layer: Draining) -> None:
    async with layer(chat()):
        await asyncio.sleep(60)


async def test_the_end_of_the_gateway_ends_what_is_read_on() -> None:
    drains = Drains()
    soon = Scripted(SLOW)
    late = Scripted([TextDelta("a"), 60.0])
    rests = [await left_at_the_first(draining(one, drains=drains)) for one in (soon, late)]
    await drains.aclose(0.1)
    assert [rest.end for rest in rests] == ["done", "shutdown"]
    assert (soon.open, late.open) == (0, 0)
