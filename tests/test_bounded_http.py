"""What a client sends before its request's head has ended, on real sockets."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from qwen_asgi import bounded_http
from qwen_asgi.bounded_http import LONGEST_HEAD, BoundedHTTP
from qwen_asgi.http import MOST_HEADER_BYTES
from qwen_asgi.testing import SimulatedQwen, serve
from tests.conftest import (
    CHAT,
    MakeGateway,
    answer_of,
    ask,
    connect,
    error_of,
    eventually,
    http_bytes,
)
from tests.programs import QWEN_ASGI, running
from tests.test_servers import free_port

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
CHUNKED = HEAD + b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
BODY = json.dumps(ask()).encode()
WITHOUT_END = {
    "a target": (b"GET /", b"a" * 4096),
    "a header": (HEAD + b"x-one: ", b"y" * 4096),
    "headers": (HEAD, b"a: b\r\n" * 700),
    "empty lines": (b"", b"\r\n" * 2048),
    "trailers": (CHUNKED + b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY), b"a: b\r\n" * 700),
    "an extension of a chunk": (CHUNKED + b"1;", b"x" * 4096),
}


@pytest.fixture
def url(make_gateway: MakeGateway) -> Iterator[str]:
    with serve(make_gateway(), http=BoundedHTTP) as url:
        yield url


@pytest.mark.parametrize("name", WITHOUT_END)
def test_what_has_no_end_is_given_up_early(name: str, url: str, http: httpx.Client) -> None:
    begin, more = WITHOUT_END[name]
    sent, answer = 0, b""
    with connect(url) as client:
        client.settimeout(5)
        with suppress(ConnectionError):
            client.sendall(begin)
            while sent < 20 * LONGEST_HEAD:
                client.sendall(more)
                sent += len(more)
                time.sleep(0.0005)
        with suppress(ConnectionError):
            answer = client.recv(65536)
    assert sent < 20 * LONGEST_HEAD
    if answer and name != "trailers":
        assert answer.startswith(b"HTTP/1.1 4")
    answer_of(http.post(url + CHAT, json=ask()))


def test_it_says_so_to_a_client_that_reads(url: str) -> None:
    with connect(url) as client:
        client.sendall(HEAD + b"x: " + b"y" * LONGEST_HEAD)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert json.loads(body)["error"]["code"] == "headers_too_large"
    assert b"content-length: %d" % len(body) in head


def test_a_head_that_ends_is_the_gateway_s_to_judge(url: str, http: httpx.Client) -> None:
    response = http.post(url + CHAT, json=ask(), headers={"x": "y" * (MOST_HEADER_BYTES + 1)})
    assert error_of(response, 431)["code"] == "headers_too_large"
    assert "x-request-id" in response.headers
    answer_of(http.post(url + CHAT, json=ask(), headers={"x": "y" * (MOST_HEADER_BYTES - 2000)}))


@pytest.mark.parametrize("chunked", [False, True])
def test_a_long_body_is_none_of_its_business(chunked: bool, url: str, http: httpx.Client) -> None:
    body = json.dumps(ask("x" * 20 * LONGEST_HEAD)).encode()
    pieces = (body[start : start + 1] for start in range(3000))
    content = iter([*pieces, body[3000:]]) if chunked else body
    headers = {"content-type": "application/json"}
    answer_of(http.post(url + CHAT, content=content, headers=headers))


def test_many_requests_on_one_connection_are_counted_one_by_one(url: str) -> None:
    one = http_bytes(BODY, x_long="y" * (MOST_HEADER_BYTES // 2))
    with connect(url) as client, client.makefile("rb") as answers:
        for _ in range(6):
            client.sendall(one)
            assert answers.readline().startswith(b"HTTP/1.1 200 ")
            length = 0
            while (line := answers.readline()) != b"\r\n":
                name, _, value = line.partition(b":")
                length = int(value) if name == b"content-length" else length
            answers.read(length)


@pytest.mark.parametrize("sent", [b"", HEAD], ids=["nothing", "half a head"])
def test_a_head_must_come_in_time(
    sent: bytes, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_http, "HEAD_SECONDS", 0.4)
    with serve(make_gateway(), http=BoundedHTTP) as url, connect(url) as client:
        begun = time.monotonic()
        client.sendall(sent)
        _closed(client)
        assert 0.3 < time.monotonic() - begun < 3


@pytest.mark.parametrize(
    ("asked", "then"),
    [
        (http_bytes(BODY), HEAD),
        (http_bytes(BODY), b"\r\n"),
        (http_bytes(content_length="1000", content_type="text/plain"), b"x"),
        (CHUNKED.replace(b"application/json", b"text/plain"), b"1\r\nx\r\n"),
        (CHUNKED.replace(b"application/json", b"text/plain"), b"0\r\na: b\r\n"),
    ],
    ids=["half a head", "an empty line", "half a body", "a chunk", "half of the trailers"],
)
def test_what_begins_when_all_is_answered_must_come_in_time(
    asked: bytes, then: bytes, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its first byte uvicorn counts a connection as in use, and its own timer ends."""
    monkeypatch.setattr(bounded_http, "HEAD_SECONDS", 0.4)
    with (
        serve(make_gateway(), http=BoundedHTTP, timeout_keep_alive=60) as url,
        connect(url) as client,
    ):
        client.sendall(asked)
        assert client.recv(65536).startswith(b"HTTP/1.1 ")
        time.sleep(0.1)
        begun = time.monotonic()
        client.sendall(then)
        _closed(client)
        assert 0.3 < time.monotonic() - begun < 3


def test_an_answer_is_not_cut_off_by_half_a_head_behind_it(
    make_gateway: MakeGateway, qwen: SimulatedQwen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_http, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(qwen, "reply", "abcdefghij" * 10)
    monkeypatch.setattr(qwen, "pieces", 10)
    monkeypatch.setattr(qwen, "pace", 0.1)
    with (
        serve(make_gateway(), http=BoundedHTTP, timeout_keep_alive=0.4) as url,
        connect(url) as client,
    ):
        client.sendall(http_bytes(json.dumps(ask(stream=True)).encode()))
        client.sendall(HEAD)
        assert _closed(client).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_who_is_answered_slowly_or_asks_again_has_all_the_time(
    make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_http, "HEAD_SECONDS", 0.2)
    with serve(make_gateway(), http=BoundedHTTP) as url, connect(url) as client:
        for _ in range(3):
            client.sendall(http_bytes(BODY))
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
            time.sleep(0.5)
        client.sendall(http_bytes(content_length=str(len(BODY))))
        time.sleep(0.5)
        client.sendall(BODY)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_program_has_it(workers: str, tmp_path: Path) -> None:
    port = free_port()
    command = [*QWEN_ASGI, "--port", str(port), "--workers", workers]
    settings = {"QWEN_API_KEY": "k", "QWEN_LOG_FILE": "-"}
    with running(command, tmp_path, started="", **settings):
        eventually(lambda: _is_alive(port), 20)
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(HEAD + b"x: " + b"y" * LONGEST_HEAD)
            assert client.recv(65536).startswith(b"HTTP/1.1 431 ")


def _closed(client: socket.socket) -> bytes:
    """Return what comes until the server closes."""
    client.settimeout(5)
    return b"".join(iter(lambda: client.recv(65536), b""))


def _is_alive(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).is_success
    except httpx.TransportError:
        return False
