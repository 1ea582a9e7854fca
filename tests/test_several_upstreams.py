"""Several upstreams behind one address, over real sockets: who is asked, and what clients see."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import httpx
import pytest

from qwen_asgi import Gateway, Settings, anonymous
from qwen_asgi.testing import Fault, SimulatedQwen, serve
from qwen_asgi.testing.answers import Answer
from tests.conftest import (
    CHAT,
    DIALECTS,
    MODEL,
    UPSTREAM_KEY,
    GatewayURL,
    answer_of,
    ask,
    error_of,
    eventually,
    stream_of,
    streamed,
)

Up = tuple[SimulatedQwen, str]


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[Up, Up]]:
    """Two simulated upstreams, on servers of their own."""
    with ExitStack() as stack:
        made = [SimulatedQwen(api_key=UPSTREAM_KEY) for _ in range(2)]
        a, b = ((qwen, stack.enter_context(serve(qwen))) for qwen in made)
        yield a, b


@pytest.fixture
def first(two: tuple[Up, Up]) -> SimulatedQwen:
    return fresh(two[0][0])


@pytest.fixture
def second(two: tuple[Up, Up]) -> SimulatedQwen:
    return fresh(two[1][0])


def fresh(qwen: SimulatedQwen) -> SimulatedQwen:
    """Let a simulated upstream be as it was made, once the test before is over there too."""
    qwen.wait_for(lambda qwen: qwen.open == 0)
    qwen.__init__(api_key=UPSTREAM_KEY)  # type: ignore[misc]
    return qwen


@pytest.fixture
def upstreams(two: tuple[Up, Up]) -> Callable[..., dict[str, Any]]:
    """Makes the settings of both, `first` and `second`; dialects and further fields for each."""

    def upstreams(*dialects: str, **fields: Any) -> dict[str, Any]:
        names = dialects or ("qwen-web-v1", "qwen-web-v1")
        return {
            name: {
                "dialect": dialect,
                "base_url": url + DIALECTS[dialect],
                "api_key": UPSTREAM_KEY,
                "models": [MODEL],
                **fields,
            }
            for name, dialect, (_, url) in zip(("first", "second"), names, two, strict=False)
        }

    return upstreams


@pytest.fixture
def url(gateway_url: GatewayURL) -> Callable[..., str]:
    def url(**settings: Any) -> str:
        return gateway_url(Gateway(Settings(**settings), authenticate=anonymous))

    return url


URL = Callable[..., str]
Upstreams = Callable[..., dict[str, Any]]
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])


def chats(qwen: SimulatedQwen) -> int:
    return sum(request.is_chat for request in qwen.requests)


def served_by(response: Any) -> tuple[str, str]:
    headers = response.headers
    return headers["x-qwen-asgi-upstream"], headers["x-qwen-asgi-attempts"]


@BOTH
def test_the_first_serves_and_the_answer_says_so(
    url: URL,
    upstreams: Upstreams,
    http: httpx.Client,
    first: SimulatedQwen,
    second: SimulatedQwen,
    stream: bool,
) -> None:
    response = http.post(url(upstreams=upstreams()) + CHAT, json=ask(stream=stream))
    assert response.status_code == 200
    assert served_by(response) == ("first", "1")
    assert (chats(first), chats(second)) == (1, 0)


@BOTH
@pytest.mark.parametrize("dialect", DIALECTS)
def test_where_the_first_fails_the_second_serves(
    url: URL,
    upstreams: Upstreams,
    http: httpx.Client,
    first: SimulatedQwen,
    second: SimulatedQwen,
    dialect: str,
    stream: bool,
) -> None:
    first.fail(Fault.status(500))
    second.reply = "from the second"
    response = http.post(url(upstreams=upstreams(dialect, dialect)) + CHAT, json=ask(stream=stream))
    text = (
        streamed(response).text
        if stream
        else answer_of(response)["choices"][0]["message"]["content"]
    )
    assert text == "from the second"
    assert served_by(response) == ("second", "2")


def test_what_was_ignored_is_what_the_one_that_served_ignored(
    url: URL, upstreams: Upstreams, http: httpx.Client, first: SimulatedQwen
) -> None:
    first.fail(Fault.status(500))
    at = url(upstreams=upstreams("qwen-web-v1", "openai"))
    response = http.post(at + CHAT, json=ask(seed=1))
    assert served_by(response) == ("second", "2")
    assert "x-qwen-asgi-ignored" not in response.headers


def test_what_one_dialect_cannot_the_next_one_may(
    url: URL,
    upstreams: Upstreams,
    http: httpx.Client,
    first: SimulatedQwen,
    second: SimulatedQwen,
) -> None:
    at = url(upstreams=upstreams("qwen-web-v2", "model-studio"))
    response = http.post(at + CHAT, json=ask(logprobs=True))
    assert served_by(response) == ("second", "1")
    assert next(r for r in second.requests if r.is_chat).body["logprobs"] is True
    assert not first.requests


# Failure at every event index of a stream.

TEXT = "abcdef"


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("is_alone", [True, False], ids=["alone", "with a second"])
@pytest.mark.parametrize("kind", ["error", "cut"])
def test_a_failure_at_any_event_repeats_nothing_and_never_looks_complete(
    url: URL,
    upstreams: Upstreams,
    http: httpx.Client,
    first: SimulatedQwen,
    second: SimulatedQwen,
    dialect: str,
    is_alone: bool,
    kind: str,
) -> None:
    both = upstreams(dialect, dialect, breaker_failures=0)
    at = url(upstreams={"first": both["first"]} if is_alone else both)
    first.reply, first.pieces, second.reply = TEXT, 1, "ABC"
    body = ask(stream=True, stream_options={"include_usage": True})
    outcomes = set()
    frames = frames_of(first, http, at, body)
    for index in range(len(frames)):
        if kind == "cut":
            # In the middle of a frame.
            fault = Fault.truncate(sum(map(len, frames[:index])) + len(frames[index]) // 2)
        else:
            fault = Fault.error_frame(index, "Internal_Server_Error", "x")
        first.fail(fault)
        response = http.post(at + CHAT, json=body)
        if response.status_code != 200:
            assert is_alone
            assert error_of(response, 500)["type"] == "upstream_error"
            outcomes.add("refused")
            continue
        stream = streamed(response)
        roles = [c["delta"].get("role") for chunk in stream.chunks for c in chunk["choices"]]
        assert sum(role is not None for role in roles) == 1
        if stream.text == "ABC":
            assert not is_alone
            assert stream.is_whole
            assert served_by(response) == ("second", "2")
            outcomes.add("second")
        elif stream.is_whole:
            # Only what follows the answer's own end was lost.
            assert stream.text == TEXT
            outcomes.add("whole")
        else:
            assert stream.is_broken_off
            assert TEXT.startswith(stream.text)
            assert served_by(response) == ("first", "1")
            outcomes.add("broken off")
    assert outcomes >= {"broken off", "refused" if is_alone else "second"}


def frames_of(
    qwen: SimulatedQwen, http: httpx.Client, url: str, body: dict[str, Any]
) -> list[bytes]:
    """Return the frames of an upstream's answer to a chat, as it sent them."""
    seen: list[bytes] = []

    def note(answer: Answer) -> Answer:
        frames = list(answer.frames)
        seen.extend(frames)
        return replace(answer, steps=frames)

    qwen.fail(Fault("none", note))
    assert streamed(http.post(url + CHAT, json=body)).text == TEXT
    return seen


# Retries, limits, the breaker.


def test_a_retry_stays_with_the_same_upstream(
    url: URL, upstreams: Upstreams, http: httpx.Client, first: SimulatedQwen, second: SimulatedQwen
) -> None:
    first.fail(Fault.status(500))
    response = http.post(url(upstreams=upstreams(retries=1)) + CHAT, json=ask())
    assert served_by(response) == ("first", "2")
    assert (chats(first), chats(second)) == (2, 0)


def test_a_busy_upstream_sends_the_next_chat_on(
    url: URL, upstreams: Upstreams, http: httpx.Client, first: SimulatedQwen, second: SimulatedQwen
) -> None:
    first.reply, first.pieces, first.pace = "abcdefghij" * 100, 1, 0.01
    at = url(upstreams=upstreams(max_concurrent=1, queue=0))
    with http.stream("POST", at + CHAT, json=ask(stream=True)) as slow:
        body = slow.iter_raw()
        next(body)
        response = http.post(at + CHAT, json=ask())
        assert served_by(response) == ("second", "1")
    first.wait_for(lambda qwen: qwen.hung_up == 1)


def test_a_chat_that_waits_for_its_turn_leaves_the_queue_with_its_client(
    url: URL, upstreams: Upstreams, http: httpx.Client, first: SimulatedQwen
) -> None:
    first.reply, first.pieces, first.pace = "abcdefghij" * 100, 1, 0.01
    both = upstreams(max_concurrent=1, queue=1, queue_timeout=60)
    at = url(upstreams={"first": both["first"]})
    with http.stream("POST", at + CHAT, json=ask(stream=True)) as slow:
        body = slow.iter_raw()
        next(body)
        with pytest.raises(httpx.ReadTimeout):
            http.post(at + CHAT, json=ask(), timeout=0.3)
        # The place in the queue is free again, as soon as it was seen that the client left.
        time.sleep(0.2)
        with pytest.raises(httpx.ReadTimeout):
            http.post(at + CHAT, json=ask(), timeout=0.3)
    first.reply, first.pieces, first.pace = "y", None, 0.0
    eventually(lambda: http.post(at + CHAT, json=ask()).status_code == 200)
    assert chats(first) == 2


def test_an_upstream_that_fails_again_and_again_is_not_asked_any_more(
    url: URL, upstreams: Upstreams, http: httpx.Client, first: SimulatedQwen
) -> None:
    first.fail(Fault.status(500), times=10)
    at = url(upstreams=upstreams(breaker_failures=3))
    served = [served_by(http.post(at + CHAT, json=ask())) for _ in range(6)]
    assert {upstream for upstream, _ in served} == {"second"}
    assert chats(first) == 3


def test_a_quota_is_no_outage(
    url: URL, upstreams: Upstreams, http: httpx.Client, first: SimulatedQwen
) -> None:
    first.fail(Fault.failure("RateLimited", "enough", num=4), times=10)
    at = url(upstreams=upstreams(breaker_failures=3))
    for _ in range(6):
        assert served_by(http.post(at + CHAT, json=ask()))[0] == "second"
    assert chats(first) == 6


def test_where_all_fail_the_client_is_told_when_to_come_again(
    url: URL, upstreams: Upstreams, http: httpx.Client, first: SimulatedQwen, second: SimulatedQwen
) -> None:
    first.fail(Fault.failure("RateLimited", "enough", num=4))
    second.fail(Fault.status(500))
    response = http.post(url(upstreams=upstreams()) + CHAT, json=ask())
    assert error_of(response, 429)["code"] == "RateLimited"
    assert response.headers["retry-after"] == "14400"


# Names.


def test_a_public_name_leads_to_another_name_at_each_upstream(
    url: URL, upstreams: Upstreams, http: httpx.Client, first: SimulatedQwen, second: SimulatedQwen
) -> None:
    first.models, second.models = ("theirs",), ("others",)
    first.fail(Fault.status(500))
    to = [{"upstream": "first", "model": "theirs"}, {"upstream": "second", "model": "others"}]
    route = {"to": to, "forced": {"temperature": 0.25}, "context": 1024}
    at = url(upstreams=upstreams(), routes={"ours": route})
    response = http.post(at + CHAT, json=ask(model="ours", temperature=1))
    assert answer_of(response)["model"] == "ours"
    sent = [next(r for r in qwen.requests if r.is_chat).body for qwen in (first, second)]
    assert [body["model"] for body in sent] == ["theirs", "others"]
    assert {body["temperature"] for body in sent} == {0.25}
    models = {m["id"]: m for m in http.get(at + "/v1/models").json()["data"]}
    assert models["ours"]["context_length"] == 1024
    assert models.keys() == {MODEL, "ours"}


def test_the_timeouts_are_each_upstream_s_own(
    url: URL, upstreams: Upstreams, http: httpx.Client, first: SimulatedQwen, second: SimulatedQwen
) -> None:
    first.fail(Fault.stall(None))
    both = upstreams()
    both["first"]["first_timeout"] = 0.2
    response = http.post(url(upstreams=both) + CHAT, json=ask())
    assert served_by(response) == ("second", "2")
    first.wait_for(lambda qwen: qwen.open == 0)


def test_one_deadline_holds_for_all_attempts_together(
    url: URL, upstreams: Upstreams, http: httpx.Client, first: SimulatedQwen, second: SimulatedQwen
) -> None:
    first.fail(Fault.stall(None, 0.3), Fault.stall(None, 0.3))
    second.fail(Fault.stall(None))
    both = upstreams(first_timeout=0.3)
    both["second"]["first_timeout"] = 60
    response = http.post(url(upstreams=both, total_timeout=0.6) + CHAT, json=ask())
    assert error_of(response, 500)["code"] in ("upstream_first_timeout", "upstream_total_timeout")
    assert response.elapsed.total_seconds() < 1.5
    second.wait_for(lambda qwen: qwen.open == 0)


# Reload.


def test_settings_are_swapped_at_once_and_chats_under_way_keep_the_old(
    gateway_url: GatewayURL,
    gateway_loop: Callable[[Any], Any],
    upstreams: Upstreams,
    http: httpx.Client,
    first: SimulatedQwen,
    second: SimulatedQwen,
) -> None:
    both = upstreams()
    first.reply, first.pieces, first.pace = "abcdefghij" * 5, 1, 0.01
    old = Settings(upstreams={"first": both["first"]})
    gateway = Gateway(old, authenticate=anonymous)
    at = gateway_url(gateway)

    async def reload(settings: Settings) -> None:
        gateway.reload(settings)

    with http.stream("POST", at + CHAT, json=ask(stream=True)) as under_way:
        body = under_way.iter_raw()
        begun = next(body)
        gateway_loop(reload(Settings(upstreams={"second": both["second"]})))
        assert served_by(http.post(at + CHAT, json=ask()))[0] == "second"
        whole = begun + b"".join(body)
    assert stream_of(whole).text == first.reply
    assert [*gateway.settings.upstreams] == ["second"]


def test_settings_that_contradict_what_was_given_change_nothing() -> None:
    gateway = Gateway(Settings(), authenticate=anonymous)
    before = gateway.settings
    with pytest.raises(ValueError, match="either authenticate or client_keys"):
        gateway.reload(Settings(client_keys=("k",)))
    assert gateway.settings is before


@pytest.mark.parametrize("in_thread", [False, True], ids=["in its loop", "from another thread"])
def test_the_connections_of_old_settings_are_closed_when_nobody_uses_them(
    in_thread: bool,
    gateway_url: GatewayURL,
    gateway_loop: Callable[[Any], Any],
    upstreams: Upstreams,
    http: httpx.Client,
    first: SimulatedQwen,
) -> None:
    closed: list[str] = []
    gateway = Gateway(Settings(upstreams=upstreams()), authenticate=anonymous)
    at = gateway_url(gateway)
    answer_of(http.post(at + CHAT, json=ask()))
    old = gateway._wired
    close = old.aclose

    async def noted(within: float) -> None:
        assert old._loop is asyncio.get_running_loop()
        closed.append("old")
        await close(within)

    old.aclose = noted  # type: ignore[method-assign, assignment]

    async def reload() -> None:
        gateway.reload(Settings(upstreams=upstreams()))

    if in_thread:
        gateway.reload(Settings(upstreams=upstreams()))
    else:
        gateway_loop(reload())
    eventually(lambda: closed == ["old"] and old.is_closed)
    answer_of(http.post(at + CHAT, json=ask()))


def test_a_reload_changes_how_answers_are_written(
    gateway_url: GatewayURL, upstreams: Upstreams, http: httpx.Client, first: SimulatedQwen
) -> None:
    both = upstreams("openai", "openai")
    first.thinking = "hm"
    gateway = Gateway(Settings(upstreams=both), authenticate=anonymous)
    at = gateway_url(gateway)
    for field in "reasoning_content", "reasoning":
        gateway.reload(Settings(upstreams=both, reasoning_field=field))
        answer = answer_of(http.post(at + CHAT, json=ask(enable_thinking=True)))
        message = answer["choices"][0]["message"]
        assert [name for name in message if name.startswith("reasoning")] == [field]


def test_a_reload_counts_the_chats_that_are_under_way(
    gateway_url: GatewayURL, upstreams: Upstreams, http: httpx.Client, first: SimulatedQwen
) -> None:
    def settings(most: int) -> Settings:
        one = upstreams(max_concurrent=most, queue=0, headers={"x-version": str(most)})["first"]
        return Settings(upstreams={"first": one})

    first.reply, first.pieces, first.pace = "abcdefghij" * 100, 1, 0.01
    gateway = Gateway(settings(1), authenticate=anonymous)
    at = gateway_url(gateway)
    with http.stream("POST", at + CHAT, json=ask(stream=True)) as under_way:
        # To forget the iterator is to leave.
        body = under_way.iter_raw()
        next(body)
        gateway.reload(settings(1))
        assert error_of(http.post(at + CHAT, json=ask()), 503)["code"] == "overloaded"
        gateway.reload(settings(2))
        with http.stream("POST", at + CHAT, json=ask(stream=True)) as another:
            assert another.status_code == 200
            assert error_of(http.post(at + CHAT, json=ask()), 503)["code"] == "overloaded"
    first.wait_for(lambda qwen: qwen.open == 0)


@pytest.mark.parametrize("way", ["renamed", "away and back", "single and back"])
def test_a_reload_finds_the_chats_at_an_address_again(
    way: str,
    gateway_url: GatewayURL,
    upstreams: Upstreams,
    http: httpx.Client,
    first: SimulatedQwen,
) -> None:
    both = upstreams(max_concurrent=1, queue=0)
    one = Settings(upstreams={"first": both["first"]})
    first.reply, first.pieces, first.pace = "abcdefghij" * 100, 1, 0.01
    gateway = Gateway(one, authenticate=anonymous)
    at = gateway_url(gateway)
    with http.stream("POST", at + CHAT, json=ask(stream=True)) as under_way:
        body = under_way.iter_raw()
        next(body)
        if way == "renamed":
            gateway.reload(Settings(upstreams={"other": both["first"]}))
        elif way == "away and back":
            gateway.reload(Settings(upstreams={"second": both["second"]}))
            gateway.reload(one)
        else:
            gateway.reload(Settings())
            gateway.reload(one)
        assert error_of(http.post(at + CHAT, json=ask()), 503)["code"] == "overloaded"
    first.wait_for(lambda qwen: qwen.open == 0)
    first.pace = 0.0
    eventually(lambda: http.post(at + CHAT, json=ask(stream=True)).status_code == 200)


@pytest.mark.parametrize("by", ["its own", "the gateway's"])
def test_a_reload_forgets_an_upstreams_failures_only_if_it_is_reached_otherwise(
    by: str, gateway_url: GatewayURL, upstreams: Upstreams, http: httpx.Client, first: SimulatedQwen
) -> None:
    def settings(**fields: Any) -> Settings:
        one = upstreams(breaker_failures=2, **fields)["first"]
        return Settings(upstreams={"first": one}, heartbeat=7)

    gateway = Gateway(settings(), authenticate=anonymous)
    at = gateway_url(gateway)
    first.fail(*[Fault.refusal(503)] * 2)
    for _ in range(2):
        error_of(http.post(at + CHAT, json=ask()), 500)
    for same in {}, {"max_concurrent": 7}:
        gateway.reload(settings(**same))
        assert error_of(http.post(at + CHAT, json=ask()), 503)["code"] == "upstream_suspended"
    others = settings()
    if by == "its own":
        gateway.reload(settings(first_timeout=20))
    else:
        gateway.reload(others.model_copy(update={"idle_timeout": 7.0}))
    answer_of(http.post(at + CHAT, json=ask()))


def test_a_reload_keeps_what_an_upstream_told_of_its_models(
    gateway_url: GatewayURL,
    gateway_loop: Callable[[Any], Any],
    upstreams: Upstreams,
    http: httpx.Client,
    first: SimulatedQwen,
) -> None:
    named = {"first": upstreams(models="upstream")["first"]}
    gateway = Gateway(Settings(upstreams=named), authenticate=anonymous)
    at = gateway_url(gateway)

    async def reload(**fields: Any) -> None:
        gateway.reload(Settings(upstreams={"first": named["first"] | fields}))

    answer_of(http.post(at + CHAT, json=ask()))
    gateway_loop(reload(retries=0))
    answer_of(http.post(at + CHAT, json=ask()))
    assert [r.method for r in first.requests] == ["GET", "POST", "POST"]
    # Who is asked in another way may see other models.
    gateway_loop(reload(headers={"x-team": "b"}))
    answer_of(http.post(at + CHAT, json=ask()))
    assert [r.method for r in first.requests].count("GET") == 2


def test_a_reload_that_lets_everybody_in_says_so(caplog: pytest.LogCaptureFixture) -> None:
    gateway = Gateway(Settings(client_keys=("k",)))
    gateway.reload(Settings(client_keys=("l",)))
    assert not caplog.text
    gateway.reload(Settings())
    assert "everybody is let in now" in caplog.text
