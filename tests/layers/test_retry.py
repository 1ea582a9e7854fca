from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from qwen_asgi.errors import (
    InvalidRequest,
    Overloaded,
    QwenASGIError,
    UpstreamAuthenticationFailed,
    UpstreamBlocked,
    UpstreamError,
    UpstreamForbidden,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamSuspended,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from qwen_asgi.layers import retry as module
from qwen_asgi.layers.retry import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    LONGEST_WAIT,
    MOST_SAVED,
    RESERVE,
    Retry,
    RetryBudget,
)
from tests.layers.scripted import ANSWER, CHAT, Scripted, answer

pytestmark = pytest.mark.anyio

GONE = UpstreamUnreachable("gone")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, which take no time here."""
    made: list[float] = []

    class Asyncio:
        @staticmethod
        async def sleep(seconds: float) -> None:
            made.append(seconds)

    monkeypatch.setattr(module, "asyncio", Asyncio)
    return made


def retry(upstream: Scripted, times: int = 3, share: float = 1.0) -> Retry:
    return Retry(upstream, times=times, budget=RetryBudget(share), name="studio")


async def test_it_is_asked_again_until_it_answers(
    pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    upstream = Scripted(GONE, GONE, ANSWER)
    assert await answer(retry(upstream)) == list(ANSWER)
    assert len(upstream.asked) == 3
    assert upstream.open == 0
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("upstream studio: gone (upstream_unreachable); it is asked")


async def test_it_is_asked_so_often_and_its_last_error_is_told(pauses: list[float]) -> None:
    upstream = Scripted(GONE, GONE, UpstreamError("500"))
    with pytest.raises(UpstreamError) as caught:
        await answer(retry(upstream, times=2))
    assert str(caught.value) == "500"
    assert len(upstream.asked) == 3


async def test_pauses_grow_are_never_the_same_and_have_an_end(pauses: list[float]) -> None:
    for _ in range(20):
        with pytest.raises(UpstreamError):
            await answer(retry(Scripted(GONE), times=8))
    rows = [pauses[start : start + 8] for start in range(0, len(pauses), 8)]
    assert len(rows) == 20
    for row in rows:
        for n, pause in enumerate(row):
            most = min(LONGEST_PAUSE, FIRST_PAUSE * 2**n)
            assert most / 2 <= pause <= most
    assert len({row[0] for row in rows}) == 20


async def test_an_answer_that_has_begun_is_never_asked_for_again(pauses: list[float]) -> None:
    upstream = Scripted([*ANSWER[:1], UpstreamTruncated("cut")])
    with pytest.raises(UpstreamTruncated):
        await answer(retry(upstream))
    assert (len(upstream.asked), pauses) == (1, [])


@pytest.mark.parametrize(
    "error",
    [
        UpstreamRefused("no"),
        UpstreamAuthenticationFailed("who"),
        UpstreamBlocked("human?"),
        UpstreamForbidden("not yours"),
        UpstreamSuspended("resting", retry_after=1),
        InvalidRequest("n"),
        Overloaded("full", retry_after=1),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_asking_again_does_not_mend_is_told_at_once(
    error: QwenASGIError, pauses: list[float]
) -> None:
    upstream = Scripted(error)
    with pytest.raises(type(error)):
        await answer(retry(upstream))
    assert len(upstream.asked) == 1


async def test_a_limit_is_waited_for_as_long_as_it_says(pauses: list[float]) -> None:
    upstream = Scripted(UpstreamRateLimited("later", retry_after=3), ANSWER)
    assert await answer(retry(upstream))
    assert pauses == [3]


async def test_a_limit_of_hours_is_the_client_s_to_wait(pauses: list[float]) -> None:
    later = UpstreamRateLimited("later", retry_after=int(LONGEST_WAIT) + 1)
    with pytest.raises(UpstreamRateLimited):
        await answer(retry(Scripted(later)))
    assert pauses == []


async def test_nothing_is_asked_again_behind_the_deadline(pauses: list[float]) -> None:
    upstream = Scripted(GONE)
    request = replace(CHAT, deadline=time.monotonic() + 0.1)
    with pytest.raises(UpstreamError):
        await answer(retry(upstream), request)
    assert (len(upstream.asked), pauses) == (1, [])


async def test_retries_are_a_share_of_the_chats(pauses: list[float]) -> None:
    upstream = Scripted(GONE)
    layer = retry(upstream, times=3, share=0.1)
    chats = 200
    for _ in range(chats):
        with pytest.raises(UpstreamError):
            await answer(layer)
    assert len(pauses) == pytest.approx(RESERVE + 0.1 * chats, abs=1)
    assert len(upstream.asked) == chats + len(pauses)


def test_what_a_quiet_time_saves_has_an_end() -> None:
    budget = RetryBudget(1.0)
    for _ in range(1000):
        budget.earn()
    assert sum(budget.spend() for _ in range(1000)) == MOST_SAVED


async def test_a_client_that_leaves_in_a_pause_ends_it() -> None:
    upstream = Scripted(GONE)
    asking = asyncio.create_task(answer(retry(upstream)))
    await asyncio.sleep(0.05)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (len(upstream.asked), upstream.open) == (1, 0)
