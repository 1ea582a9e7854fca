from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from qwen_asgi.errors import (
    InvalidRequest,
    Overloaded,
    QwenASGIError,
    UpstreamAuthenticationFailed,
    UpstreamBlocked,
    UpstreamEmptyAnswer,
    UpstreamError,
    UpstreamFirstTimeout,
    UpstreamInvalidResponse,
    UpstreamQuotaExhausted,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamSuspended,
    UpstreamTotalTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from qwen_asgi.layers import breaker as module
from qwen_asgi.layers.breaker import Breaker
from qwen_asgi.layers.limit import Limit
from tests.layers.scripted import ANSWER, CHAT, Scripted, answer

pytestmark = pytest.mark.anyio

GONE = UpstreamUnreachable("gone")


class Now:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Now:
    now = Now()
    monkeypatch.setattr(module, "time", now)
    return now


def breaker(upstream: Scripted, **options: Any) -> Breaker:
    return Breaker(upstream, **{"failures": 3, "seconds": 30.0, "name": "studio", **options})


async def fails(layer: Breaker, kind: type[QwenASGIError] = UpstreamError) -> QwenASGIError:
    with pytest.raises(kind) as caught:
        await answer(layer)
    return caught.value


async def test_after_so_many_outages_in_a_row_it_is_left_alone(
    now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = Scripted(GONE)
    layer = breaker(upstream)
    for _ in range(3):
        assert type(await fails(layer)) is UpstreamUnreachable
    error = await fails(layer, UpstreamSuspended)
    assert (error.status, error.retry_after) == (503, 30)
    assert "studio failed 3 times" in str(error)
    now.seconds += 29.5
    assert (await fails(layer, UpstreamSuspended)).retry_after == 1
    assert len(upstream.asked) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "upstream studio failed 3 times in a row and is left alone for 30 seconds"
    ]


OUTAGES = [
    UpstreamError("500"),
    UpstreamFirstTimeout("slow"),
    UpstreamTruncated("cut"),
    UpstreamInvalidResponse("what"),
]
GOOD_REASONS = [
    UpstreamRateLimited("later"),
    UpstreamEmptyAnswer("not a word"),
    UpstreamInvalidResponse("no object", code="upstream_invalid_json"),
    UpstreamInvalidResponse("no call", code="upstream_no_tool_call"),
    UpstreamInvalidResponse("no end", code="upstream_answer_too_long"),
    UpstreamError("no storage", code="upstream_upload_failed"),
    UpstreamQuotaExhausted("pay"),
    UpstreamRefused("no"),
    UpstreamAuthenticationFailed("who"),
    UpstreamBlocked("human?"),
]


@pytest.mark.parametrize("error", OUTAGES, ids=lambda error: type(error).__name__)
async def test_an_outage_counts(error: QwenASGIError, now: Now) -> None:
    layer = breaker(Scripted(error), failures=1)
    await fails(layer, type(error))
    await fails(layer, UpstreamSuspended)


@pytest.mark.parametrize("error", GOOD_REASONS, ids=lambda error: type(error).__name__)
async def test_a_refusal_with_good_reason_does_not_count_and_ends_the_row(
    error: QwenASGIError, now: Now
) -> None:
    layer = breaker(Scripted(GONE, GONE, error, GONE, GONE, ANSWER))
    for _ in range(5):
        await fails(layer, QwenASGIError)
    assert await answer(layer)


@pytest.mark.parametrize("error", [InvalidRequest("n"), Overloaded("full"), ZeroDivisionError()])
async def test_what_says_nothing_of_the_upstream_changes_nothing(
    error: Exception, now: Now
) -> None:
    layer = breaker(Scripted(GONE, GONE, error, GONE, ANSWER))
    for kind in UpstreamError, UpstreamError, type(error), UpstreamError:
        with pytest.raises(kind):
            await answer(layer)
    await fails(layer, UpstreamSuspended)


async def test_an_answer_that_breaks_off_counts_too(now: Now) -> None:
    layer = breaker(Scripted([*ANSWER[:1], UpstreamTruncated("cut")]))
    for _ in range(3):
        await fails(layer, UpstreamTruncated)
    await fails(layer, UpstreamSuspended)


async def test_an_answer_that_ends_well_ends_the_row(now: Now) -> None:
    layer = breaker(Scripted(GONE, GONE, ANSWER, GONE, GONE, ANSWER))
    for _ in range(2):
        await fails(layer)
        await fails(layer)
        assert await answer(layer)


async def test_one_chat_tries_it_and_the_others_wait_for_how_that_goes(now: Now) -> None:
    upstream = Scripted(GONE, GONE, GONE, [0.05, *ANSWER], ANSWER)
    layer = breaker(upstream)
    for _ in range(3):
        await fails(layer)
    now.seconds += 30
    async with layer(upstream.asked[0]):
        # It has begun to answer: that is proof enough.
        assert await answer(layer)
    assert await answer(layer)
    assert len(upstream.asked) == 6


async def test_while_it_is_tried_the_others_are_refused(now: Now) -> None:
    upstream = Scripted(GONE, GONE, GONE, ANSWER)
    layer = breaker(upstream)
    for _ in range(3):
        await fails(layer)
    now.seconds += 30
    trying = asyncio.create_task(answer(layer))
    await asyncio.sleep(0)
    assert (await fails(layer, UpstreamSuspended)).retry_after == 1
    assert await trying


async def test_a_try_that_fails_leaves_it_alone_for_as_long_again(now: Now) -> None:
    layer = breaker(Scripted(GONE))
    for _ in range(3):
        await fails(layer)
    for _ in range(2):
        now.seconds += 30
        assert type(await fails(layer)) is UpstreamUnreachable
        assert (await fails(layer, UpstreamSuspended)).retry_after == 30


async def test_a_try_whose_client_leaves_lets_the_next_one_try(now: Now) -> None:
    layer = breaker(Scripted(GONE, GONE, GONE, ANSWER))
    for _ in range(3):
        await fails(layer)
    now.seconds += 30
    trying = asyncio.create_task(answer(layer))
    await asyncio.sleep(0)
    trying.cancel()
    await asyncio.wait([trying])
    assert await answer(layer)


async def test_after_a_try_that_began_well_one_more_outage_is_enough(now: Now) -> None:
    broken = [*ANSWER[:1], UpstreamTruncated("cut")]
    layer = breaker(Scripted(GONE, GONE, GONE, broken))
    for _ in range(3):
        await fails(layer)
    now.seconds += 30
    await fails(layer, UpstreamTruncated)
    await fails(layer, UpstreamSuspended)


async def test_the_end_of_an_older_chat_opens_and_closes_nothing(
    now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    layer = breaker(Scripted(ANSWER, ANSWER, GONE, ANSWER), failures=1)

    async def fail_behind_others() -> None:
        async with layer(CHAT):
            async with layer(CHAT):
                await fails(layer, UpstreamUnreachable)
            # One that had begun before ended well.
            await fails(layer, UpstreamSuspended)
            raise UpstreamUnreachable("gone")

    with pytest.raises(UpstreamUnreachable):
        await fail_behind_others()
    assert caplog.text.count("is left alone") == 1


async def test_an_answer_that_was_cut_off_at_the_end_of_its_time_counts_for_nothing() -> None:
    layer = breaker(Scripted(ANSWER, ANSWER), failures=1)

    async def run_out() -> None:
        async with layer(CHAT):
            raise UpstreamTotalTimeout("over")

    with pytest.raises(UpstreamTotalTimeout):
        await run_out()
    assert await answer(layer)


@pytest.mark.parametrize(("left", "counts"), [(59.0, True), (31.0, True), (29.0, False)])
async def test_who_had_too_little_time_left_has_not_failed(
    left: float, counts: bool, now: Now
) -> None:
    """Another one had used it up."""
    layer = breaker(Scripted(UpstreamTotalTimeout("over"), ANSWER), failures=1)
    chat = replace(CHAT, deadline=now.seconds + left, time_limit=60.0)
    with pytest.raises(UpstreamTotalTimeout):
        await answer(layer, chat)
    if counts:
        await fails(layer, UpstreamSuspended)
    else:
        assert await answer(layer)


async def test_a_total_timeout_of_its_own_counts(now: Now) -> None:
    layer = breaker(Scripted(UpstreamTotalTimeout("over")), failures=1)
    await fails(layer, UpstreamTotalTimeout)
    await fails(layer, UpstreamSuspended)


async def test_who_waits_for_a_turn_is_not_sent_when_it_was_found_broken_meanwhile() -> None:
    upstream = Scripted([0.05, GONE])
    layer = breaker(upstream, failures=1)
    limited = Limit(layer, 1, queue=10, patience=5.0, name="studio")
    ahead = layer.ahead_of(limited)
    errors = await asyncio.gather(*(answer(ahead) for _ in range(4)), return_exceptions=True)
    assert [type(error) for error in errors] == [UpstreamUnreachable, *[UpstreamSuspended] * 3]
    assert len(upstream.asked) == 1


def test_a_try_whose_loop_was_closed_under_it_lets_the_next_one_try() -> None:
    layer = breaker(Scripted(GONE, ANSWER), failures=1, seconds=0.01)

    async def leave_a_try() -> None:
        await fails(layer)
        await asyncio.sleep(0.02)
        layer.health.begin_to_try()
        await fails(layer, UpstreamSuspended)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave_a_try())
    loop.close()
    assert asyncio.run(answer(layer))


async def test_ahead_of_a_queue_it_refuses_at_once(now: Now) -> None:
    upstream = Scripted(GONE, [60.0, *ANSWER])
    layer = breaker(upstream, failures=1)
    limited = Limit(layer, 1, queue=10, patience=5.0, name="studio")
    ahead = layer.ahead_of(limited)
    with pytest.raises(UpstreamUnreachable):
        await answer(ahead)
    assert limited.busy == 0
    with pytest.raises(UpstreamSuspended):
        await answer(ahead)
    # Then one may try again, and nobody waits behind it.
    now.seconds += 30
    async with ahead(CHAT):
        assert limited.busy == 1
