"""The gateway under each of the servers that people run ASGI apps with, as a program of its own."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from qwen_asgi.testing import Fault, SimulatedQwen
from tests.conftest import (
    CHAT,
    UPSTREAM_KEY,
    answer_of,
    ask,
    connect,
    error_of,
    eventually,
    http_bytes,
    streamed,
)
from tests.programs import STARTS_WITHIN, running

APP = "qwen_asgi.standalone:app"
FACTORY = "qwen_asgi.standalone:create_app"
SERVERS = {
    "uvicorn on h11": ["uvicorn", APP, "--http", "h11", "--loop", "asyncio", "--port", "{port}"],
    "uvicorn on httptools": ["uvicorn", APP, "--http", "httptools", "--port", "{port}"],
    "hypercorn": ["hypercorn", f"{FACTORY}()", "--bind", "127.0.0.1:{port}"],
    "granian": ["granian", APP, "--interface", "asgi", "--port", "{port}"],
}

FREED_WITHIN = 0.25
"""Seconds after which nobody pays for what nobody reads."""

MOMENTS = {
    "before the headers": (Fault.stall(after_frames=None), b""),
    "in a stall": (Fault.stall(after_frames=2), b'"content":"b"'),
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    _qwen_stage: tuple[object, str],
) -> Iterator[str]:
    """The address of the program under one server after the other."""
    port = free_port()
    name, *arguments = SERVERS[request.param]
    command = [sys.executable, "-m", name, *(a.format(port=port) for a in arguments)]
    folder: Path = tmp_path_factory.mktemp(name)
    with ExitStack() as stack:
        stack.enter_context(
            running(
                command,
                folder,
                started="",
                QWEN_API_KEY=UPSTREAM_KEY,
                QWEN_BASE_URL=_qwen_stage[1],
                QWEN_LOG_FILE="-",
            )
        )
        eventually(lambda: accepts(port), STARTS_WITHIN)
        yield f"http://127.0.0.1:{port}"


def test_a_plain_answer(server: str, qwen: SimulatedQwen, http: httpx.Client) -> None:
    qwen.reply = "你好"
    answer = answer_of(http.post(server + CHAT, json=ask()))
    assert answer["choices"][0]["message"]["content"] == "你好"


def test_a_streamed_answer(server: str, qwen: SimulatedQwen, http: httpx.Client) -> None:
    qwen.reply, qwen.pieces = "pieces of text", 1
    read = streamed(http.post(server + CHAT, json=ask(stream=True)))
    assert read.is_whole
    assert read.text == "pieces of text"


def test_the_models_and_their_head(server: str, qwen: SimulatedQwen, http: httpx.Client) -> None:
    assert len(http.get(f"{server}/v1/models").json()["data"]) == 5
    head = http.head(f"{server}/v1/models/")
    assert head.status_code == 200
    assert head.content == b""


def test_errors_before_and_in_a_stream(
    server: str, qwen: SimulatedQwen, http: httpx.Client
) -> None:
    qwen.fail(Fault.status(429, headers={"retry-after": "7"}))
    refused = http.post(server + CHAT, json=ask(stream=True))
    assert error_of(refused, 429)["type"] == "rate_limit_error"
    assert refused.headers["retry-after"] == "7"
    qwen.reply, qwen.pieces = "abcdef", 1
    qwen.fail(Fault.error_frame(3, "Internal_Server_Error", "out of order"))
    read = streamed(http.post(server + CHAT, json=ask(stream=True)))
    assert read.is_broken_off
    assert read.text == "abc"
    assert error_of(http.get(f"{server}/nothing"), 404)["code"] == "not_found"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_client_that_leaves_frees_the_upstream_at_once(
    server: str, qwen: SimulatedQwen, moment: str, stream: bool
) -> None:
    fault, seen = MOMENTS[moment]
    qwen.reply, qwen.pieces = "abcdef", 1
    qwen.fail(fault)
    with connect(server) as client:
        client.sendall(http_bytes(json.dumps(ask(stream=stream)).encode()))
        received = b""
        while stream and seen not in received:
            received += client.recv(65536)
        qwen.wait_for(lambda qwen: qwen.open == 1)
    left = time.monotonic()
    qwen.wait_for(lambda qwen: qwen.hung_up == 1)
    assert time.monotonic() - left < FREED_WITHIN


def test_a_body_over_the_limit_is_told_so(
    server: str, qwen: SimulatedQwen, http: httpx.Client
) -> None:
    body = b'{"model": "' + b"x" * (33 * 1024 * 1024) + b'"}'
    refused = http.post(server + CHAT, content=body, headers={"content-type": "application/json"})
    assert error_of(refused, 413)["code"] == "request_too_large"
    assert qwen.requests.maxlen is not None
    assert not qwen.requests
