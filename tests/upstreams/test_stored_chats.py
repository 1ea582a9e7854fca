"""Chats that are made for a request and removed again, over real sockets."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from qwen_asgi import wiring
from qwen_asgi.testing import Fault, SimulatedQwen, serve
from qwen_asgi.upstreams import _web_errors, removals
from tests.conftest import (
    CHAT,
    GatewayURL,
    MakeGateway,
    answer_of,
    ask,
    error_of,
    eventually,
    streamed,
)

NEW, STOP = "/api/v2/chats/new", "/api/v2/chat/completions/stop"


@pytest.fixture
def dialect() -> str:
    return "qwen-web-v2"


def is_removed(qwen: SimulatedQwen) -> bool:
    return not qwen.chats.stored and qwen.open == 0


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_chat_is_made_asked_in_and_removed(
    gateway_url: GatewayURL, http: httpx.Client, qwen: SimulatedQwen, stream: bool
) -> None:
    response = http.post(f"{gateway_url()}{CHAT}", json=ask(stream=stream))
    assert streamed(response).is_whole if stream else answer_of(response)
    eventually(lambda: qwen.requests[-1].method == "DELETE")
    qwen.wait_for(is_removed)
    assert [r.path for r in qwen.requests][:2] == [NEW, "/api/v2/chat/completions"]
    assert STOP not in [r.path for r in qwen.requests]


def test_a_chat_may_be_kept(
    gateway_url: GatewayURL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    answer_of(http.post(f"{gateway_url(keep_chats=True)}{CHAT}", json=ask()))
    assert len(qwen.chats.stored) == 1
    assert {r.method for r in qwen.requests} == {"POST"}


@pytest.mark.parametrize("keep", [False, True])
def test_a_client_that_leaves_stops_the_answer(
    gateway_url: GatewayURL, http: httpx.Client, qwen: SimulatedQwen, keep: bool
) -> None:
    qwen.reply, qwen.pieces, qwen.pace = "x" * 10_000, 1, 0.001
    url = gateway_url(keep_chats=keep)
    with http.stream("POST", f"{url}{CHAT}", json=ask(stream=True)) as response:
        next(response.iter_raw())
    eventually(lambda: STOP in [r.path for r in qwen.requests])
    qwen.wait_for(lambda qwen: qwen.hung_up == 1 and bool(qwen.chats.stored) is keep)


def test_an_answer_that_ends_at_a_stop_sequence_is_stopped(
    gateway_url: GatewayURL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    qwen.reply, qwen.pieces, qwen.pace = "abcdefghij" * 100, 1, 0.001
    answer = answer_of(http.post(f"{gateway_url()}{CHAT}", json=ask(stop="d")))
    assert answer["choices"][0]["message"]["content"] == "abc"
    eventually(lambda: qwen.requests[-1].method == "DELETE")
    qwen.wait_for(is_removed)
    assert STOP in [r.path for r in qwen.requests]


@pytest.mark.parametrize(
    ("fault", "stops"),
    [
        (Fault.failure("RateLimited", "enough", num=2), False),
        (Fault.block_page(), False),
        (Fault.truncate(), True),
        (Fault.error_frame(3, "Internal_Server_Error", "x"), True),
    ],
    ids=["refused", "blocked", "cut", "failed"],
)
def test_a_chat_whose_answer_failed_is_removed_too(
    gateway_url: GatewayURL, http: httpx.Client, qwen: SimulatedQwen, fault: Fault, stops: bool
) -> None:
    qwen.fail(fault)
    response = http.post(f"{gateway_url()}{CHAT}", json=ask(stream=True))
    assert response.status_code >= 400 or streamed(response).is_broken_off
    eventually(lambda: qwen.requests[-1].method == "DELETE")
    qwen.wait_for(is_removed)
    assert (STOP in [r.path for r in qwen.requests]) is stops


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault.failure("Unauthorized", "x"), 500, "upstream_authentication"),
        (Fault.failure("RateLimited", "x", num=3), 429, "RateLimited"),
        (Fault.block_page(), 500, "upstream_blocked"),
        (Fault.block_page(503), 500, "upstream_blocked"),
        (Fault.empty(), 500, "upstream_invalid_response"),
        (Fault.status(500), 500, "upstream_failed"),
        (Fault.garbage(), 500, "upstream_invalid_response"),
        (Fault.truncate(9), 500, "upstream_truncated"),
    ],
)
def test_a_chat_that_cannot_be_made_is_the_request_s_error(
    gateway_url: GatewayURL,
    http: httpx.Client,
    qwen: SimulatedQwen,
    fault: Fault,
    status: int,
    code: str,
) -> None:
    qwen.fail(fault, around=True)
    error = error_of(http.post(f"{gateway_url()}{CHAT}", json=ask()), status)
    assert error["code"] == code
    assert [r.path for r in qwen.requests] == [NEW]


def test_what_is_refused_makes_no_chat(
    gateway_url: GatewayURL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    error_of(http.post(f"{gateway_url()}{CHAT}", json=ask(logprobs=True)), 400)
    assert not qwen.requests


def test_the_first_timeout_holds_for_both_calls_together(
    gateway_url: GatewayURL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    qwen.fail(Fault.stall(None, 0.3), around=True)
    qwen.fail(Fault.stall(None, 0.3))
    response = http.post(f"{gateway_url(first_timeout=0.5)}{CHAT}", json=ask())
    assert error_of(response, 500)["code"].startswith("upstream_")
    qwen.wait_for(is_removed)


def break_the_removal(qwen: SimulatedQwen, fault: Fault) -> None:
    """Let the next call around a chat that is answered in meet a fault."""

    def reply(body: Any) -> str:
        qwen.fail(fault, around=True)
        return "x"

    qwen.reply = reply


def test_a_removal_that_fails_is_nobody_s_error(
    gateway_url: GatewayURL,
    http: httpx.Client,
    qwen: SimulatedQwen,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "qwen_asgi")
    break_the_removal(qwen, Fault.status(500))
    answer_of(http.post(f"{gateway_url()}{CHAT}", json=ask()))
    eventually(lambda: "a chat may stay in the upstream's account" in caplog.text)


def test_many_removals_at_once_are_bounded(
    gateway_url: GatewayURL,
    http: httpx.Client,
    qwen: SimulatedQwen,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(removals, "MOST_WAITING", 0)
    answer_of(http.post(f"{gateway_url()}{CHAT}", json=ask()))
    assert len(qwen.chats.stored) == 1
    assert "a chat stays" in caplog.text


def test_the_end_of_a_gateway_waits_a_moment_for_removals(
    make_gateway: MakeGateway, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    break_the_removal(qwen, Fault.stall(None, 0.3))
    with serve(make_gateway()) as url:
        answer_of(http.post(f"{url}{CHAT}", json=ask()))
    # The server has ended, and with it the loop that the removal ran in.
    qwen.wait_for(lambda qwen: qwen.open == 0)
    assert qwen.requests[-1].method == "DELETE"
    assert qwen.hung_up == 0


def test_removals_that_the_end_of_a_gateway_cuts_off_are_told(
    make_gateway: MakeGateway,
    http: httpx.Client,
    qwen: SimulatedQwen,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(wiring.Wired.aclose, "__defaults__", (0.1,))
    break_the_removal(qwen, Fault.stall(None, 60))
    with serve(make_gateway()) as url:
        answer_of(http.post(f"{url}{CHAT}", json=ask()))
        eventually(lambda: qwen.requests[-1].method == "DELETE")
    assert "1 chats may stay in the upstream's account" in caplog.text


def test_more_removals_than_run_at_once_wait_for_their_turn(
    gateway_url: GatewayURL,
    http: httpx.Client,
    qwen: SimulatedQwen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(removals, "MOST_AT_ONCE", 1)
    url = gateway_url()
    break_the_removal(qwen, Fault.stall(None, 0.1))
    for _ in range(4):
        answer_of(http.post(f"{url}{CHAT}", json=ask()))
    assert qwen.chats.stored
    eventually(lambda: [r.method for r in qwen.requests].count("DELETE") == 4)
    qwen.wait_for(is_removed)


@pytest.mark.parametrize(
    "fault",
    [Fault.failure("Internal_Server_Error", "no"), Fault.block_page(), Fault.human_check()],
)
def test_a_removal_that_is_refused_with_http_200_is_told(
    gateway_url: GatewayURL,
    http: httpx.Client,
    qwen: SimulatedQwen,
    caplog: pytest.LogCaptureFixture,
    fault: Fault,
) -> None:
    caplog.set_level("INFO", "qwen_asgi")
    break_the_removal(qwen, fault)
    answer_of(http.post(f"{gateway_url()}{CHAT}", json=ask()))
    eventually(lambda: "a chat may stay in the upstream's account" in caplog.text)


def test_a_chat_that_is_still_answering_is_removed_a_moment_later(
    gateway_url: GatewayURL,
    http: httpx.Client,
    qwen: SimulatedQwen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_web_errors, "BUSY_SECONDS", 0)
    break_the_removal(qwen, Fault.failure("Bad_Request", "The chat is in progress!"))
    answer_of(http.post(f"{gateway_url()}{CHAT}", json=ask()))
    eventually(lambda: [r.method for r in qwen.requests].count("DELETE") == 2)
    qwen.wait_for(is_removed)


def test_a_chat_is_removed_whose_client_left_while_it_was_made(
    gateway_url: GatewayURL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    qwen.fail(Fault.stall(0, 0.5), around=True)
    with pytest.raises(httpx.ReadTimeout):
        http.post(f"{gateway_url()}{CHAT}", json=ask(), timeout=0.2)
    qwen.wait_for(lambda qwen: len(qwen.chats.stored) == 1)
    eventually(lambda: qwen.requests[-1].method == "DELETE")
    qwen.wait_for(is_removed)
    assert [r.method for r in qwen.requests] == ["POST", "DELETE"]


def test_a_chat_is_removed_that_was_made_too_late(
    gateway_url: GatewayURL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    qwen.fail(Fault.stall(0, 0.5), around=True)
    response = http.post(f"{gateway_url(first_timeout=0.2)}{CHAT}", json=ask())
    assert error_of(response, 500)["code"] == "upstream_first_timeout"
    eventually(lambda: qwen.requests[-1].method == "DELETE")
    qwen.wait_for(is_removed)


def test_one_of_two_wordings_is_given(
    gateway_url: GatewayURL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    qwen.candidates, qwen.reply = 2, "one two three"
    response = http.post(f"{gateway_url()}{CHAT}", json=ask(stream=True))
    assert streamed(response).text == "one two three"
