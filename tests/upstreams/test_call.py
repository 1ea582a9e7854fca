"""One call of an upstream: when it counts as begun, how it ends, and what each deadline stops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from qwen_asgi.chat import ChatRequest, Event, Finish, Message, ModelInfo, TextDelta
from qwen_asgi.errors import (
    InvalidRequest,
    UpstreamAuthenticationFailed,
    UpstreamBlocked,
    UpstreamError,
    UpstreamFirstTimeout,
    UpstreamIdleTimeout,
    UpstreamInvalidResponse,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamTotalTimeout,
    UpstreamTruncated,
)
from qwen_asgi.testing import DONE
from qwen_asgi.upstreams.call import (
    DOCUMENT_LIMIT,
    ERROR_BODY_LIMIT,
    FOOTER_GRACE,
    GRACE,
    REFUSAL_SECONDS,
    HTTPUpstream,
    Timeouts,
)
from qwen_asgi.upstreams.qwen_web_v1 import QwenWebV1
from tests.conftest import ScriptedTransport, frame

pytestmark = pytest.mark.anyio

CHAT = ChatRequest(model="m", messages=(Message("user", "Hi"),), stream=True)
ONE, TWO = frame("one ", phase="answer"), frame("two ", phase="answer")
LAST = frame("", phase="answer", status="finished")


def upstream(transport: ScriptedTransport, **timeouts: Any) -> HTTPUpstream:
    return HTTPUpstream(QwenWebV1("http://upstream", "key"), transport, Timeouts(**timeouts))


async def batches_of(transport: ScriptedTransport, **timeouts: Any) -> list[Sequence[Event]]:
    async with upstream(transport, **timeouts)(CHAT) as batches:
        return [batch async for batch in batches]


def text_of(batches: Sequence[Sequence[Event]]) -> str:
    events = [event for batch in batches for event in batch]
    return "".join(event.text for event in events if isinstance(event, TextDelta))


# The plain way.


async def test_what_one_read_held_is_one_batch() -> None:
    transport = ScriptedTransport([ONE + TWO, frame("three", phase="answer"), DONE])
    batches = await batches_of(transport)
    assert [text_of([batch]) for batch in batches] == ["one two ", "three", ""]
    assert batches[-1] == [Finish("stop")]
    assert transport.open_now == 0


async def test_reads_that_hold_no_event_make_no_batch() -> None:
    script: list[Any] = [b": hello\n\n", ONE[:9], ONE[9:], b"\n\n", b"data: {}\n\n", DONE]
    batches = await batches_of(ScriptedTransport(script))
    assert [text_of([batch]) for batch in batches] == ["one ", ""]


async def test_entering_waits_for_the_first_event() -> None:
    transport = ScriptedTransport([b": hello\n\n", 0.05, ONE, DONE])
    async with upstream(transport)(CHAT) as batches:
        assert len(transport.waits) >= 2
        assert text_of([await anext(batches)]) == "one "


async def test_what_cannot_be_encoded_is_never_sent() -> None:
    transport = ScriptedTransport([])
    chat = ChatRequest(model="m", messages=CHAT.messages, options={"n": 2})
    with pytest.raises(InvalidRequest):
        await upstream(transport)(chat).__aenter__()
    assert transport.requests == []


async def fail_behind_the_first_batch(transport: ScriptedTransport, raised: BaseException) -> None:
    async with upstream(transport)(CHAT) as batches:
        await anext(batches)
        assert transport.open_now == 1
        raise raised


@pytest.mark.parametrize(
    "raised", [ZeroDivisionError(), UpstreamTruncated("x"), asyncio.CancelledError()], ids=repr
)
async def test_leaving_closes_the_call_whatever_happened(raised: BaseException) -> None:
    transport = ScriptedTransport([ONE, TWO, DONE])
    with pytest.raises(type(raised)):
        await fail_behind_the_first_batch(transport, raised)
    assert transport.open_now == 0


# Failures, before and after the first event.


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ([], UpstreamInvalidResponse),
        ([b" \n"], UpstreamInvalidResponse),
        ([DONE], UpstreamInvalidResponse),
        ([b"<html></html>"], UpstreamBlocked),
        ([b'{"success": false, "data": {"code": "RateLimited"}}'], UpstreamRateLimited),
        ([UpstreamTruncated("cut")], UpstreamTruncated),
        ([ONE[:20], UpstreamTruncated("cut")], UpstreamTruncated),
        ([ONE[:20]], UpstreamTruncated),
        ([b'{"choices": ['], UpstreamTruncated),
    ],
)
async def test_a_failure_before_the_first_event_comes_out_of_entering(
    script: list[Any], error: type[UpstreamError]
) -> None:
    transport = ScriptedTransport(script)
    context = upstream(transport)(CHAT)
    with pytest.raises(error):
        await context.__aenter__()
    assert transport.open_now == 0


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ([ONE, UpstreamTruncated("cut")], UpstreamTruncated),
        ([ONE + TWO[:9], UpstreamTruncated("cut")], UpstreamTruncated),
        ([ONE + TWO[:9]], UpstreamTruncated),
        ([ONE + b'data: {"error": {"code": "RateLimited"}}\n\n'], UpstreamRateLimited),
        ([ONE, b"data: {broken\n\n"], UpstreamInvalidResponse),
    ],
)
async def test_a_failure_after_it_comes_out_of_iterating_behind_the_text(
    script: list[Any], error: type[UpstreamError]
) -> None:
    transport = ScriptedTransport(script)
    seen: list[Sequence[Event]] = []

    async def read() -> None:
        async with upstream(transport)(CHAT) as batches:
            async for batch in batches:
                seen.append(batch)

    with pytest.raises(error):
        await read()
    assert text_of(seen).startswith("one")
    assert not any(isinstance(event, Finish) for batch in seen for event in batch)
    assert transport.open_now == 0


async def test_after_the_error_there_is_nothing_but_the_error() -> None:
    transport = ScriptedTransport([ONE, UpstreamTruncated("cut"), TWO, DONE])
    async with upstream(transport)(CHAT) as batches:
        assert text_of([await anext(batches)]) == "one "
        for _ in range(3):
            with pytest.raises(UpstreamTruncated):
                await anext(batches)


async def test_a_bug_in_the_transport_is_not_an_upstream_s_error() -> None:
    with pytest.raises(ZeroDivisionError):
        await batches_of(ScriptedTransport([ONE, ZeroDivisionError()]))


# The end.


async def test_nothing_is_awaited_behind_the_end_but_for_the_connection_s_sake() -> None:
    transport = ScriptedTransport([ONE + DONE, 60.0])
    start = time.monotonic()
    batches = await batches_of(transport)
    assert text_of(batches) == "one "
    assert time.monotonic() - start < FOOTER_GRACE + 0.5
    assert transport.waits[-1] == FOOTER_GRACE


async def test_an_answer_that_is_whole_waits_a_short_while_for_its_stream_s_end() -> None:
    transport = ScriptedTransport([ONE + LAST, 60.0])
    start = time.monotonic()
    batches = await batches_of(transport)
    assert [type(event) for event in batches[-1]] == [Finish]
    assert time.monotonic() - start < GRACE + 1
    assert max(transport.waits[1:]) <= GRACE


async def test_what_goes_on_behind_a_whole_answer_does_not_put_its_end_off() -> None:
    pings: list[Any] = [b": ping\n\n", 0.2] * 50
    start = time.monotonic()
    batches = await batches_of(ScriptedTransport([ONE + LAST, *pings, DONE]))
    assert batches[-1] == [Finish("stop")]
    assert time.monotonic() - start < GRACE + 1


@pytest.mark.parametrize("ending", [UpstreamTruncated("cut"), UpstreamTimeout("slow"), b""])
async def test_how_the_connection_of_a_whole_answer_ends_does_not_matter(ending: Any) -> None:
    batches = await batches_of(ScriptedTransport([ONE + LAST, ending]))
    assert text_of(batches) == "one "
    assert batches[-1] == [Finish("stop")]


async def test_a_client_that_stops_early_does_not_wait_for_the_end() -> None:
    transport = ScriptedTransport([ONE, 60.0])
    with pytest.raises(ZeroDivisionError):
        await fail_behind_the_first_batch(transport, ZeroDivisionError())
    assert len(transport.waits) == 1


# Deadlines.


async def took(
    meets: type[UpstreamTimeout], transport: ScriptedTransport, **timeouts: Any
) -> tuple[float, str]:
    """Return the seconds until the call ran into that timeout, and what was read until then."""
    seen: list[Sequence[Event]] = []
    start = time.monotonic()

    async def read() -> None:
        async with upstream(transport, **timeouts)(CHAT) as batches:
            async for batch in batches:
                seen.append(batch)

    with pytest.raises(UpstreamTimeout) as caught:
        await read()
    assert type(caught.value) is meets
    assert transport.open_now == 0
    return time.monotonic() - start, text_of(seen)


async def test_the_first_event_has_a_deadline_that_no_comment_moves() -> None:
    script: list[Any] = [0.06, b": still there\n\n"] * 100
    seconds, text = await took(UpstreamFirstTimeout, ScriptedTransport(script), first=0.2, idle=60)
    assert (0.19 < seconds < 0.4, text) == (True, "")


async def test_the_idle_deadline_begins_with_the_first_event() -> None:
    script: list[Any] = [0.1, ONE, 60.0]
    seconds, text = await took(UpstreamIdleTimeout, ScriptedTransport(script), first=60, idle=0.2)
    assert (0.29 < seconds < 0.5, text) == (True, "one ")


async def test_a_keep_alive_moves_the_idle_deadline() -> None:
    script: list[Any] = [ONE, *[0.06, b": still there\n\n"] * 4, DONE]
    batches = await batches_of(ScriptedTransport(script), first=60, idle=0.2)
    assert batches[-1] == [Finish("stop")]


async def test_the_total_deadline_is_moved_by_nothing() -> None:
    script: list[Any] = [0.05, ONE] * 100
    timeouts = {"first": 60, "idle": 60, "total": 0.3}
    seconds, text = await took(UpstreamTotalTimeout, ScriptedTransport(script), **timeouts)
    assert 0.29 < seconds < 0.6
    assert text.startswith("one one ")


@pytest.mark.parametrize("first", [0.2, 60])
async def test_the_total_deadline_holds_before_the_first_event_too(first: float) -> None:
    meets = UpstreamFirstTimeout if first < 0.3 else UpstreamTotalTimeout
    await took(meets, ScriptedTransport([60.0]), first=first, total=0.3)


async def test_the_transport_is_told_the_time_that_is_left() -> None:
    transport = ScriptedTransport([0.1, b": hello\n\n", ONE, DONE])
    await batches_of(transport, first=5, idle=7, total=9)
    first, second, third = transport.waits[0], *transport.waits[2:4]
    assert 4.9 < first <= 5
    assert 4.7 < second <= 4.9
    assert 6.9 < third <= 7


# Refusals.


async def refusal(status: int, script: list[Any], **headers: str) -> UpstreamError:
    transport = ScriptedTransport(script, status, headers)
    with pytest.raises(UpstreamError) as caught:
        await upstream(transport)(CHAT).__aenter__()
    assert transport.open_now == 0
    return caught.value


async def test_another_status_is_a_refusal_with_its_body_and_headers() -> None:
    error = await refusal(429, [b'{"code": "RateLimited", ', b'"num": 2}'])
    assert (type(error), error.retry_after) == (UpstreamRateLimited, 7200)
    error = await refusal(429, [], **{"retry-after": "9"})
    assert error.retry_after == 9
    assert type(await refusal(401, [])) is UpstreamAuthenticationFailed


@pytest.mark.parametrize("broken", [UpstreamTruncated("cut"), UpstreamTimeout("slow")])
async def test_a_refusal_whose_body_breaks_off_is_still_that_refusal(broken: Any) -> None:
    assert type(await refusal(401, [b"{", broken])) is UpstreamAuthenticationFailed


async def test_a_refusal_s_body_is_not_waited_for_long() -> None:
    start = time.monotonic()
    assert type(await refusal(401, [b"{", 60.0])) is UpstreamAuthenticationFailed
    assert time.monotonic() - start < REFUSAL_SECONDS + 1


async def test_an_endless_refusal_is_not_read_to_its_end() -> None:
    block = b" " * 1024
    transport = ScriptedTransport([block] * 10_000, 500)
    with pytest.raises(UpstreamError):
        await upstream(transport)(CHAT).__aenter__()
    assert len(transport.waits) == ERROR_BODY_LIMIT // len(block)


# Models.


async def test_models_are_read() -> None:
    transport = ScriptedTransport([b'{"data": [{"id": "a"},', b' {"id": "b"}]}'])
    assert await upstream(transport).models() == [
        ModelInfo("a", tools=True, stream_only=False),
        ModelInfo("b", tools=True, stream_only=False),
    ]
    assert (transport.requests[0].method, transport.open_now) == ("GET", 0)


async def test_models_that_are_refused_or_break_off() -> None:
    with pytest.raises(UpstreamAuthenticationFailed):
        await upstream(ScriptedTransport([], 401)).models()
    with pytest.raises(UpstreamTruncated):
        await upstream(ScriptedTransport([b'{"data": [', UpstreamTruncated("x")])).models()
    with pytest.raises(UpstreamFirstTimeout):
        await upstream(ScriptedTransport([60.0]), first=0.1).models()


async def test_an_endless_list_of_models_is_not_read_to_its_end() -> None:
    block = b" " * (1024 * 1024)
    transport = ScriptedTransport([block] * 100)
    with pytest.raises(UpstreamError):
        await upstream(transport).models()
    assert len(transport.waits) == DOCUMENT_LIMIT // len(block)


# Any dialect.


class Lines:
    """A dialect of lines, to show that nothing here knows Qwen's."""

    name = "lines"

    def encode(self, request: ChatRequest) -> Any:
        return QwenWebV1("http://upstream").encode(request)

    def decoder(self, request: ChatRequest, response: Any) -> LineDecoder:
        return LineDecoder()

    def refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return UpstreamError(f"{status}")

    def encode_models(self) -> Any:
        return QwenWebV1("http://upstream").encode_models()

    def decode_models(self, body: bytes) -> list[ModelInfo]:
        return [ModelInfo(name) for name in body.decode().split()]

    def describe(self, model: str) -> ModelInfo:
        return ModelInfo(model)


class LineDecoder:
    complete = False
    ending = False
    counted = None

    def feed(self, data: bytes) -> list[Event]:
        return [TextDelta(line) for line in data.decode().splitlines()]

    def close(self) -> list[Event]:
        self.complete = True
        return [Finish("stop")]

    def flush(self) -> list[Event]:
        return []


async def test_any_dialect_is_called_the_same_way() -> None:
    @asynccontextmanager
    async def opened(script: list[Any]) -> AsyncIterator[list[Sequence[Event]]]:
        call = HTTPUpstream(Lines(), ScriptedTransport(script), Timeouts())
        async with call(CHAT) as batches:
            yield [batch async for batch in batches]

    async with opened([b"a\nb\n", b"c\n"]) as batches:
        assert batches == [[TextDelta("a"), TextDelta("b")], [TextDelta("c")], [Finish("stop")]]
