"""The end of a gateway's service: by the host, and by a signal under each server."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen_asgi import Gateway, Settings
from qwen_asgi.errors import ShuttingDown
from qwen_asgi.shutdown import Shutdown, Work
from qwen_asgi.testing import Fault, SimulatedQwen, serve
from qwen_asgi.testing.answers import Answer
from tests.conftest import (
    CHAT,
    UPSTREAM_KEY,
    GatewayURL,
    MakeGateway,
    ask,
    error_of,
    eventually,
    http_bytes,
    stream_of,
)
from tests.programs import QWEN_ASGI, running
from tests.test_servers import free_port

# The parts.


@pytest.mark.anyio
async def test_work_is_ended_when_its_time_is_over_and_not_before() -> None:
    shutdown = Shutdown()
    begun = time.monotonic()

    async def work(seconds: float) -> str:
        with Work(shutdown):
            await asyncio.sleep(seconds)
        return "done"

    short, long = (asyncio.create_task(work(seconds)) for seconds in (0.05, 60))
    await asyncio.sleep(0.01)
    assert (shutdown.is_begun, shutdown.left()) == (False, None)
    shutdown.refuse()
    # From another thread, and more than once.
    await asyncio.to_thread(shutdown.begin, 0.2)
    shutdown.begin(60)
    with pytest.raises(ShuttingDown) as caught:
        shutdown.refuse()
    assert (caught.value.status, caught.value.retry_after) == (503, 1)
    late = asyncio.create_task(work(60))
    assert await short == "done"
    for task in long, late:
        with pytest.raises(ShuttingDown):
            await task
    assert 0.15 < time.monotonic() - begun < 2
    assert shutdown.left() == 0


@pytest.mark.anyio
async def test_a_cancellation_from_outside_stays_one() -> None:
    shutdown = Shutdown()

    async def work() -> None:
        with Work(shutdown):
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    shutdown.begin(0.0)


# By the host.


def test_new_requests_are_refused_and_what_asks_for_health_is_told(
    gateway_url: GatewayURL, make_gateway: MakeGateway, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    gateway = make_gateway(client_keys=("key",))
    url = gateway_url(gateway)
    for path, status in ("/healthz", "ok"), ("/readyz", "ready"):
        for slash in "", "/":
            response = http.get(url + path + slash)
            assert (response.status_code, response.json()) == (200, {"status": status})
        assert http.head(url + path).status_code == 200
        assert http.head(url + path).content == b""
    gateway.begin_drain()
    for response in (
        http.post(url + CHAT, json=ask(), headers={"authorization": "Bearer key"}),
        http.post(url + CHAT, json=ask()),
        http.get(f"{url}/v1/models"),
        http.get(f"{url}/readyz"),
    ):
        error = error_of(response, 503)
        assert (error["type"], error["code"]) == ("overloaded_error", "shutting_down")
        assert response.headers["connection"] == "close"
        assert response.headers["retry-after"] == "1"
    assert http.get(f"{url}/healthz").json() == {"status": "ok"}
    assert not qwen.requests


def test_an_open_stream_has_its_time(
    gateway_url: GatewayURL, make_gateway: MakeGateway, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    qwen.reply, qwen.pieces, qwen.pace = "abcdefghij" * 2, 1, 0.01
    gateway = make_gateway()
    with http.stream("POST", gateway_url(gateway) + CHAT, json=ask(stream=True)) as answer:
        body = answer.iter_raw()
        begun = next(body)
        gateway.begin_drain(10)
        read = stream_of(begun + b"".join(body))
    assert read.is_whole
    assert read.text == qwen.reply


def test_a_stream_that_is_not_over_by_then_ends_with_an_error(
    gateway_url: GatewayURL, make_gateway: MakeGateway, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    qwen.reply, qwen.pieces, qwen.pace = "abcdefghij" * 100, 1, 0.01
    gateway = make_gateway(shutdown_seconds=0.1)
    with http.stream("POST", gateway_url(gateway) + CHAT, json=ask(stream=True)) as answer:
        body = answer.iter_raw()
        begun = next(body)
        gateway.begin_drain()
        read = stream_of(begun + b"".join(body))
    assert read.is_broken_off
    assert (read.error or {})["code"] == "shutting_down"
    assert qwen.reply.startswith(read.text)
    qwen.wait_for(lambda qwen: qwen.hung_up == 1)


@pytest.mark.parametrize("dialect", ["openai"])
def test_an_answer_whose_end_went_out_is_done_though_its_upstream_stays_open(
    gateway_url: GatewayURL, make_gateway: MakeGateway, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    gateway = make_gateway()
    url = gateway_url(gateway)
    qwen.fail(Fault("stays open", lambda answer: replace(answer, steps=_staying(answer))))
    with http.stream("POST", url + CHAT, json=ask(stream=True)) as answer:
        read = b""
        for data in answer.iter_raw():
            read += data
            if b"[DONE]" in read:
                gateway.begin_drain(0)
    assert stream_of(read).is_whole
    eventually(lambda: gateway.ends == {"done": 1})


def _staying(answer: Answer) -> Iterator[bytes | float]:
    """Its frames, and then a connection that stays open."""
    yield from answer.steps
    yield 5.0


@pytest.mark.parametrize("dialect", ["qwen-web-v2"])
def test_an_answer_in_one_piece_that_is_not_over_by_then_is_an_error(
    gateway_url: GatewayURL, make_gateway: MakeGateway, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    qwen.reply, qwen.pieces, qwen.pace = "abcdefghij" * 100, 1, 0.01
    gateway = make_gateway()
    url = gateway_url(gateway)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(http.post, url + CHAT, json=ask())
        qwen.wait_for(lambda qwen: qwen.open == 1 and len(qwen.requests) == 2)
        gateway.begin_drain(0.1)
        error = error_of(asked.result(), 503)
    assert error["code"] == "shutting_down"
    qwen.wait_for(lambda qwen: qwen.open == 0)


def test_a_body_that_is_still_being_sent_is_not_waited_for(
    make_gateway: MakeGateway, qwen: SimulatedQwen, http: httpx.Client
) -> None:
    sends_on = threading.Event()

    def body() -> Any:
        yield b'{"model": "'
        sends_on.wait(5)

    gateway = make_gateway()
    with serve(gateway) as url, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(http.post, url + CHAT, content=body())
        time.sleep(0.1)
        gateway.begin_drain(0.1)
        time.sleep(0.3)
        sends_on.set()
        assert error_of(asked.result(), 503)["code"] == "shutting_down"


def test_a_gateway_that_was_told_so_before_its_loop_ran_refuses() -> None:
    gateway = Gateway(Settings(client_keys=("k",)))
    gateway.begin_drain()
    with serve(gateway) as url, httpx.Client(trust_env=False) as http:
        assert http.get(f"{url}/v1/models").status_code == 503


# By a signal.

SERVERS: dict[str, list[str]] = {
    "qwen-asgi": [*QWEN_ASGI, "--port", "{port}"],
    "two workers": [*QWEN_ASGI, "--port", "{port}", "--workers", "2"],
    "uvicorn": [
        *(sys.executable, "-m", "uvicorn", "qwen_asgi.standalone:app"),
        *("--port", "{port}"),
    ],
    "granian": [
        *(sys.executable, "-m", "granian", "qwen_asgi.standalone:app", "--interface", "asgi"),
        *("--port", "{port}"),
    ],
}
STREAMS = 20


@pytest.mark.parametrize("name", SERVERS)
def test_sigterm_gives_open_streams_their_time_and_then_a_last_event(
    name: str,
    tmp_path: Path,
    qwen: SimulatedQwen,
    qwen_url: str,
    http: httpx.Client,
) -> None:
    qwen.reply = lambda body: "word " * (300 if "long" in str(body["messages"]) else 20)
    qwen.pace = 0.03
    port = free_port()
    command = [word.format(port=port) for word in SERVERS[name]]
    url = f"http://127.0.0.1:{port}"
    variables = {
        "QWEN_API_KEY": UPSTREAM_KEY,
        "QWEN_BASE_URL": qwen_url,
        "QWEN_LOG_FILE": "-",
        "QWEN_SHUTDOWN_SECONDS": "2",
    }

    def stream(number: int) -> Any:
        # Half of them are over in time.
        text = "long" if number % 2 else "short"
        with http.stream("POST", url + CHAT, json=ask(text, stream=True)) as answer:
            return text, stream_of(b"".join(answer.iter_raw()))

    with (
        running(command, tmp_path, started="", **variables) as program,
        ThreadPoolExecutor(STREAMS) as pool,
    ):
        eventually(lambda: answers(http, url), 20)
        asked = [pool.submit(stream, number) for number in range(STREAMS)]
        qwen.wait_for(lambda qwen: qwen.open == STREAMS)
        begun = time.monotonic()
        status = program.end(within=15)
        took = time.monotonic() - begun
        for text, read in (one.result() for one in asked):
            if text == "short":
                assert read.is_whole
            else:
                assert read.is_broken_off
                assert (read.error or {})["code"] == "shutting_down"
    assert status in (0, -15)
    assert took < 8
    qwen.wait_for(lambda qwen: qwen.open == 0)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_client_that_does_not_read_holds_up_no_end(
    stream: bool, tmp_path: Path, qwen: SimulatedQwen, qwen_url: str, http: httpx.Client
) -> None:
    qwen.reply, qwen.pieces = "x" * 8_000_000, 100_000
    port = free_port()
    variables = {
        "QWEN_API_KEY": UPSTREAM_KEY,
        "QWEN_BASE_URL": qwen_url,
        "QWEN_LOG_FILE": "-",
        "QWEN_SHUTDOWN_SECONDS": "1",
    }
    command = [*QWEN_ASGI, "--port", str(port)]
    with (
        running(command, tmp_path, started="", **variables) as program,
        socket.socket() as client,
    ):
        eventually(lambda: answers(http, f"http://127.0.0.1:{port}"), 20)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(http_bytes(json.dumps(ask(stream=stream)).encode()))
        time.sleep(0.5)
        begun = time.monotonic()
        program.end(within=15)
        assert time.monotonic() - begun < 7


def answers(http: httpx.Client, url: str) -> bool:
    try:
        return http.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False
