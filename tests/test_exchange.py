"""How chats end, as it is counted: over real sockets."""

from __future__ import annotations

import json

import httpx
import pytest

from qwen_asgi.chat import Notes, Usage
from qwen_asgi.errors import (
    InternalError,
    InvalidRequest,
    Overloaded,
    QwenASGIError,
    RateLimited,
    ShuttingDown,
    UpstreamAuthenticationFailed,
    UpstreamBlocked,
    UpstreamError,
    UpstreamFirstTimeout,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from qwen_asgi.exchange import Exchange
from qwen_asgi.testing import Fault, SimulatedQwen
from tests.conftest import (
    CHAT,
    GatewayURL,
    MakeGateway,
    ask,
    connect,
    eventually,
    http_bytes,
)

REASONS: list[tuple[QwenASGIError, str]] = [
    (UpstreamTruncated("x"), "upstream_cut"),
    (UpstreamFirstTimeout("x"), "timeout"),
    (ShuttingDown("x"), "shutdown"),
    (InvalidRequest("x"), "refused"),
    (RateLimited("x"), "refused"),
    (Overloaded("x"), "refused"),
    (UpstreamRateLimited("x"), "refused"),
    (UpstreamRefused("x", code="of_its_own"), "refused"),
    (UpstreamError("x"), "error"),
    (UpstreamUnreachable("x"), "error"),
    (UpstreamBlocked("x"), "error"),
    (UpstreamAuthenticationFailed("x"), "error"),
    (InternalError("x"), "error"),
]


@pytest.mark.parametrize(("error", "reason"), REASONS, ids=[type(e).__name__ for e, _ in REASONS])
def test_each_error_is_counted_by_its_reason(error: QwenASGIError, reason: str) -> None:
    exchange = Exchange(request_id="r", client="-")
    assert exchange.reason == "cancelled"
    exchange.failed(error)
    assert (exchange.reason, exchange.end) == (reason, error.code or error.type)


def test_a_model_that_an_upstream_lists_cannot_forge_a_line() -> None:
    exchange = Exchange(request_id="r", client="-", model="a\n2026-01-01 - INFO - chat forged")
    assert str(exchange).isprintable()
    assert " model=a\\n2026-01-01 " in str(exchange)


def test_what_is_estimated_holds_what_was_left_already() -> None:
    notes = Notes()
    notes.leave(Usage(1, 4, 5))
    exact = Exchange(request_id="r", client="-", notes=notes, usage=Usage(10, 20, 30))
    assert "prompt_tokens=11 completion_tokens=24 usage=partial" in str(exact)
    exact.usage = Usage(6, 3, 9, certainty="estimated")
    assert "prompt_tokens=6 completion_tokens=3 usage=estimated" in str(exact)


def test_every_end_is_counted_once_and_by_its_reason(
    gateway_url: GatewayURL, make_gateway: MakeGateway, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    gateway = make_gateway(first_timeout=0.2)
    url = gateway_url(gateway)
    qwen.reply, qwen.pieces = "abcdef", 1
    assert gateway.ends == {}
    for stream in False, True:
        http.post(url + CHAT, json=ask(stream=stream))
        http.post(url + CHAT, json=ask("simulate: truncate", stream=stream))
        http.post(url + CHAT, json=ask("simulate: 429", stream=stream))
        http.post(url + CHAT, json=ask("simulate: 500", stream=stream))
        http.post(url + CHAT, json=ask(model="nobody", stream=stream))
        qwen.fail(Fault.stall(None))
        http.post(url + CHAT, json=ask(stream=stream))
    qwen.fail(Fault.stall(2))
    with connect(url) as client:
        client.sendall(http_bytes(json.dumps(ask(stream=True)).encode()))
        assert client.recv(65536)
    expected = {
        "done": 2,
        "upstream_cut": 2,
        "refused": 4,
        "error": 2,
        "timeout": 2,
        "client_left": 1,
    }
    eventually(lambda: gateway.ends == expected)
    gateway.begin_drain(0.1)
    assert gateway.ends == expected
