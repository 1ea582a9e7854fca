from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from qwen_asgi.chat import Event, Finish, TextDelta
from qwen_asgi.errors import (
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    QwenASGIError,
    UpstreamAuthenticationFailed,
    UpstreamBlocked,
    UpstreamError,
    UpstreamFirstTimeout,
    UpstreamQuotaExhausted,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamSuspended,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from qwen_asgi.layers.failures import class_of
from qwen_asgi.layers.fallback import Candidate, Fallback
from qwen_asgi.upstream_settings import FailureClass, RouteSettings
from tests.layers.scripted import CHAT, Outcome, Scripted, answer

pytestmark = pytest.mark.anyio

USUAL = RouteSettings().fallback_on


def says(text: str) -> tuple[Event, ...]:
    return TextDelta(text), Finish("stop")


def fallback(*upstreams: Scripted, **options: Any) -> Fallback:
    weights = options.pop("weights", [1.0] * len(upstreams))
    candidates = [
        Candidate(f"up{n}", upstream, weight, lambda upstream=upstream: upstream.open)  # type: ignore[misc]
        for n, (upstream, weight) in enumerate(zip(upstreams, weights, strict=True))
    ]
    return Fallback(candidates, **{"on": USUAL, **options})


FAILURES: dict[str, QwenASGIError] = {
    "limit": UpstreamRateLimited("later", retry_after=9),
    "outage": UpstreamUnreachable("gone"),
    "outage: suspended": UpstreamSuspended("resting"),
    "outage: slow": UpstreamFirstTimeout("slow"),
    "outage: 500": UpstreamError("500"),
    "busy": Overloaded("full"),
    "quota": UpstreamQuotaExhausted("pay"),
    "credential": UpstreamAuthenticationFailed("who"),
    "blocked": UpstreamBlocked("human?"),
    "model": UpstreamRefused("which", code="model_not_found"),
    "unsupported": InvalidRequest("tools", code="unsupported_parameter"),
    "refused": UpstreamRefused("no", code="data_inspection_failed"),
}


def test_the_table_has_each_class() -> None:
    assert {name.partition(":")[0] for name in FAILURES} == set(FailureClass.__args__)  # type: ignore[attr-defined]
    for name, error in FAILURES.items():
        assert class_of(error) == name.partition(":")[0]
    assert class_of(InvalidRequest("wrong")) == class_of(ModelNotFound("none")) == ""


@pytest.mark.parametrize("name", FAILURES)
async def test_the_next_one_is_asked_by_the_class_of_the_failure(name: str) -> None:
    kind = name.partition(":")[0]
    for on, goes_on in ((USUAL, kind != "refused"), ((kind,), True), ((), False)):
        first, second = Scripted(FAILURES[name]), Scripted(says("second"))
        layer = fallback(first, second, on=on)
        if goes_on:
            assert await answer(layer) == list(says("second"))
        else:
            with pytest.raises(type(FAILURES[name])):
                await answer(layer)
        assert (len(first.asked), len(second.asked)) == (1, int(goes_on))


async def test_why_the_next_one_was_asked_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    await answer(fallback(Scripted(FAILURES["limit"]), Scripted()))
    assert [record.getMessage() for record in caplog.records] == [
        "upstream up0: later (upstream_rate_limited)"
    ]


async def test_what_the_client_did_wrong_is_told_at_once() -> None:
    second = Scripted()
    with pytest.raises(InvalidRequest):
        await answer(fallback(Scripted(InvalidRequest("wrong")), second))
    assert not second.asked


async def test_an_answer_that_has_begun_is_not_begun_again() -> None:
    second = Scripted()
    broken: Outcome = [TextDelta("a"), UpstreamTruncated("cut")]
    with pytest.raises(UpstreamTruncated):
        await answer(fallback(Scripted(broken), second))
    assert not second.asked


async def test_those_that_failed_are_left_before_the_next_is_asked() -> None:
    first, second = Scripted(UpstreamUnreachable("gone")), Scripted(says("b"))
    async with fallback(first, second)(CHAT):
        assert (first.open, second.open) == (0, 1)
    assert second.open == 0


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        (["outage", "limit"], "limit"),
        (["unsupported", "outage"], "outage"),
        (["unsupported", "busy"], "unsupported"),
        (["credential", "blocked"], "credential"),
    ],
)
async def test_where_all_fail_the_most_telling_is_told(errors: list[str], told: str) -> None:
    with pytest.raises(QwenASGIError) as caught:
        await answer(fallback(*(Scripted(FAILURES[name]) for name in errors)))
    assert caught.value is FAILURES[told]


async def test_of_two_limits_the_one_that_ends_first_is_told() -> None:
    limits = [UpstreamRateLimited("x", retry_after=after) for after in (None, 90, 0)]
    with pytest.raises(UpstreamRateLimited) as caught:
        await answer(fallback(*map(Scripted, limits)))
    assert caught.value.retry_after == 0


async def test_one_deadline_goes_down_with_the_request_and_ends_the_row() -> None:
    first, second = Scripted(UpstreamUnreachable("gone")), Scripted(says("b"))
    begun = time.monotonic()
    await answer(fallback(first, second, total=5.0))
    deadlines = {request.deadline for request in [*first.asked, *second.asked]}
    assert len(deadlines) == 1
    [deadline] = deadlines
    assert deadline == pytest.approx(begun + 5, abs=0.5)
    assert {request.time_limit for request in [*first.asked, *second.asked]} == {5.0}
    third = Scripted()
    with pytest.raises(UpstreamUnreachable):
        await answer(fallback(Scripted(UpstreamUnreachable("gone")), third, total=-1.0))
    assert not third.asked


async def test_order_is_order() -> None:
    first, second = Scripted(), Scripted()
    layer = fallback(first, second)
    for _ in range(5):
        await answer(layer)
    assert (len(first.asked), len(second.asked)) == (5, 0)


async def test_weights_are_proportions() -> None:
    upstreams = [Scripted(says(name)) for name in "abc"]
    layer = fallback(*upstreams, choose="weight", weights=[6, 3, 1])
    chats = 3000
    for _ in range(chats):
        await answer(layer)
    shares = [len(upstream.asked) / chats for upstream in upstreams]
    assert shares == [
        pytest.approx(0.6, abs=0.05),
        pytest.approx(0.3, abs=0.05),
        pytest.approx(0.1, abs=0.05),
    ]


async def test_where_the_one_chosen_by_weight_fails_the_others_are_asked() -> None:
    gone = Scripted(UpstreamUnreachable("gone"))
    layer = fallback(gone, Scripted(says("b")), choose="weight", weights=[1000, 1])
    assert await answer(layer) == list(says("b"))


async def test_the_least_busy_is_asked_first() -> None:
    upstreams = [Scripted(says(name)) for name in "ab"]
    layer = fallback(*upstreams, choose="least-busy", weights=[2, 1])
    seen: Counter[str] = Counter()
    stack = []
    for _ in range(6):
        call = layer(CHAT)
        await call.__aenter__()
        stack.append(call)
    seen.update(a=upstreams[0].open, b=upstreams[1].open)
    for call in stack:
        await call.__aexit__(None, None, None)
    assert seen == {"a": 4, "b": 2}
