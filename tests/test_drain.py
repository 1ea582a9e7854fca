"""What becomes of an answer whose client leaves, over real sockets."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from qwen_asgi import Gateway, Settings, anonymous
from qwen_asgi.testing import SimulatedQwen, serve
from tests.conftest import CHAT, MODEL, UPSTREAM_KEY, MakeGateway, ask, eventually

Leave = Callable[[str], None]


@pytest.fixture
def leave(http: httpx.Client) -> Leave:
    """Asks, and leaves in the middle of the answer."""

    def leave(url: str) -> None:
        with http.stream("POST", url + CHAT, json=ask(stream=True)) as answer:
            # To forget the iterator is to leave.
            body = answer.iter_raw()
            next(body)

    return leave


def line_of(caplog: pytest.LogCaptureFixture) -> str:
    """Return the one line of the one chat."""

    def lines() -> list[str]:
        messages = [record.getMessage() for record in caplog.records]
        return [message for message in messages if message.startswith("chat ")]

    eventually(lambda: bool(lines()))
    (line,) = lines()
    return line


@pytest.fixture(autouse=True)
def slow(qwen: SimulatedQwen, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "qwen_asgi")
    qwen.reply, qwen.pieces, qwen.pace = "abcdefghij" * 4, 1, 0.01


def test_by_itself_the_call_is_ended_and_what_was_told_is_partial(
    make_gateway: MakeGateway,
    leave: Leave,
    qwen: SimulatedQwen,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serve(make_gateway()) as url:
        leave(url)
        qwen.wait_for(lambda qwen: qwen.hung_up == 1)
        line = line_of(caplog)
    assert "end=client_left" in line
    assert "read_on" not in line
    assert line.endswith("usage=partial")
    told = re.search(r"completion_tokens=(\d+)", line)
    assert told is not None
    assert int(told[1]) < 40


def test_drained_it_is_read_on_and_its_usage_is_in_the_log(
    make_gateway: MakeGateway,
    leave: Leave,
    qwen: SimulatedQwen,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serve(make_gateway(on_disconnect="drain")) as url:
        leave(url)
        line = line_of(caplog)
        assert qwen.hung_up == 0
    assert "end=client_left" in line
    assert "completion_tokens=40" in line
    assert line.endswith("read_on=done")


@pytest.mark.parametrize("dialect", ["qwen-web-v2"])
def test_so_is_one_that_is_not_streamed(
    make_gateway: MakeGateway,
    http: httpx.Client,
    qwen: SimulatedQwen,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of this dialect, as it always streams: another one may have answered in one piece by then."""
    with serve(make_gateway(on_disconnect="drain")) as url:
        with pytest.raises(httpx.ReadTimeout):
            http.post(url + CHAT, json=ask(), timeout=0.2)
        line = line_of(caplog)
        assert qwen.hung_up == 0
    assert "stream=False status=499 end=client_left" in line
    assert "completion_tokens=40" in line
    assert line.endswith("read_on=done")


def test_no_longer_than_is_set(
    make_gateway: MakeGateway,
    leave: Leave,
    qwen: SimulatedQwen,
    caplog: pytest.LogCaptureFixture,
) -> None:
    qwen.pace = 0.2
    with serve(make_gateway(on_disconnect="drain", drain_seconds=0.1)) as url:
        leave(url)
        qwen.wait_for(lambda qwen: qwen.hung_up == 1)
        assert "read_on=seconds" in line_of(caplog)


def test_the_end_of_the_gateway_is_its_end(
    make_gateway: MakeGateway,
    leave: Leave,
    qwen: SimulatedQwen,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    qwen.pace = 1.0
    gateway = make_gateway(on_disconnect="drain")
    monkeypatch.setattr(type(gateway._wired).aclose, "__defaults__", (0.1,))
    with serve(gateway) as url:
        leave(url)
        begun = time.monotonic()
    assert time.monotonic() - begun < 3
    assert "read_on=shutdown" in line_of(caplog)
    qwen.wait_for(lambda qwen: qwen.hung_up == 1)


def test_each_route_may_have_its_own(
    qwen: SimulatedQwen, qwen_url: str, leave: Leave, caplog: pytest.LogCaptureFixture
) -> None:
    one = {"dialect": "qwen-web-v1", "base_url": qwen_url, "api_key": UPSTREAM_KEY}
    for route, ended in (
        ({"on_disconnect": "drain"}, "read_on=done"),
        ({"on_disconnect": "drain", "drain_tokens": 1}, "read_on=tokens"),
        ({}, ""),
    ):
        caplog.clear()
        routes: dict[str, Any] = {MODEL: {"to": "one", **route}}
        settings = Settings(upstreams={"one": one}, routes=routes)
        with serve(Gateway(settings, authenticate=anonymous)) as url:
            leave(url)
            line = line_of(caplog)
        assert ended in line
        assert ("read_on" in line) is bool(route)
        assert line.endswith("upstream=one attempts=1")
