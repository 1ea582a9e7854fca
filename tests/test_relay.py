"""What a client sees of an upstream that fails, stalls or misbehaves, over real sockets."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from qwen_asgi.testing import EVENT_STREAM, GARBAGE, JSON, Fault, SimulatedQwen, serve
from tests.conftest import (
    CHAT,
    GatewayURL,
    answer_of,
    ask,
    error_of,
    eventually,
    frame,
    read_request,
    stream_of,
    streamed,
)

BOTH = pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
REPLY = "ha haha 你好 "


# A failure that comes first is a status, whatever the upstream's own status was.


FIRST: dict[str, tuple[Fault, int, str, str]] = {
    "failure, unknown code": (Fault.failure("Odd", "?"), 500, "upstream_error", "upstream_failed"),
    "failure, bad request": (
        Fault.failure("Bad_Request", "Invalid input too many messages."),
        400,
        "invalid_request_error",
        "Bad_Request",
    ),
    "failure, internal error named as a bad request": (
        Fault.failure("Bad_Request", "Internal error..."),
        500,
        "upstream_error",
        "upstream_failed",
    ),
    "failure, limit": (
        Fault.failure("RateLimited", "limit", num=2),
        429,
        "rate_limit_error",
        "RateLimited",
    ),
    "failure, quota": (Fault.failure("quotaLimited", "quota"), 429, "rate_limit_error", "quotaL"),
    "failure, in progress": (
        Fault.failure("Bad_Request", "The chat is in progress!"),
        429,
        "rate_limit_error",
        "Bad_Request",
    ),
    "failure, credential": (
        Fault.failure("Unauthorized", "Token has expired, please log in again."),
        500,
        "upstream_error",
        "upstream_authentication",
    ),
    "block page with 200": (Fault.block_page(), 500, "upstream_error", "upstream_blocked"),
    "block page with 503": (Fault.block_page(503), 500, "upstream_error", "upstream_blocked"),
    "human check as JSON": (Fault.human_check(), 500, "upstream_error", "upstream_blocked"),
    "human check as events": (
        Fault.human_check(EVENT_STREAM),
        500,
        "upstream_error",
        "upstream_blocked",
    ),
    "bare JSON failure": (
        Fault.bare_json({"success": False, "data": {"code": "RateLimited", "details": "x"}}),
        429,
        "rate_limit_error",
        "RateLimited",
    ),
    "bare JSON without sense": (
        Fault.bare_json({"hello": "world"}),
        500,
        "upstream_error",
        "upstream_invalid_response",
    ),
    "bare JSON list": (
        Fault.bare_json([1, 2]),
        500,
        "upstream_error",
        "upstream_invalid_response",
    ),
    "an empty body": (Fault.empty(), 500, "upstream_error", "upstream_invalid_response"),
    "garbage": (Fault.garbage(), 500, "upstream_error", "upstream_invalid_response"),
    "a first frame with an error": (
        Fault.error_frame(0, "Internal_Server_Error", "out of order"),
        500,
        "upstream_error",
        "upstream_failed",
    ),
    "a cut before the first byte": (Fault.truncate(0), 500, "upstream_error", "upstream_truncated"),
    "a cut inside the first frame": (
        Fault.truncate(9),
        500,
        "upstream_error",
        "upstream_truncated",
    ),
    "HTTP 400": (Fault.status(400), 400, "invalid_request_error", "upstream_refused"),
    "HTTP 401": (Fault.status(401), 500, "upstream_error", "upstream_authentication"),
    "HTTP 403": (Fault.status(403), 500, "upstream_error", "upstream_authentication"),
    "HTTP 404": (Fault.status(404), 500, "upstream_error", "upstream_failed"),
    "HTTP 413": (Fault.status(413), 400, "invalid_request_error", "upstream_refused"),
    "HTTP 418": (Fault.status(418), 500, "upstream_error", "upstream_failed"),
    "HTTP 422": (Fault.status(422), 400, "invalid_request_error", "upstream_refused"),
    "HTTP 429": (Fault.status(429), 429, "rate_limit_error", "upstream_rate_limited"),
    "HTTP 500": (Fault.status(500, b"oops", "text/plain"), 500, "upstream_error", "upstream_f"),
    "HTTP 502": (Fault.status(502, b"<html>", "text/html"), 500, "upstream_error", "upstream_f"),
    "HTTP 201": (Fault.status(201, b"{}"), 500, "upstream_error", "upstream_failed"),
    "HTTP 204": (Fault.status(204), 500, "upstream_error", "upstream_failed"),
}


@BOTH
@pytest.mark.parametrize("name", FIRST)
def test_a_failure_that_comes_first_is_a_status(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client, name: str, stream: bool
) -> None:
    fault, status, type, code = FIRST[name]
    url = gateway_url()
    qwen.fail(fault)
    error = error_of(http.post(url + CHAT, json=ask(stream=stream)), status)
    assert error["type"] == type
    assert error["code"].startswith(code)
    qwen.wait_for(lambda qwen: qwen.open == 0)
    # The next request finds nothing spoilt.
    assert http.post(url + CHAT, json=ask()).status_code == 200


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        (Fault.failure("RateLimited", "limit", num=2), "7200"),
        (Fault.status(429, headers={"retry-after": "17"}), "17"),
        (Fault.failure("Bad_Request", "The chat is in progress!"), "5"),
        (Fault.failure("quotaLimited", "quota"), None),
    ],
)
def test_retry_after_is_told_where_it_is_known(
    gateway_url: GatewayURL,
    qwen: SimulatedQwen,
    http: httpx.Client,
    fault: Fault,
    seconds: str | None,
) -> None:
    qwen.fail(fault)
    response = http.post(gateway_url() + CHAT, json=ask())
    assert response.status_code == 429
    assert response.headers.get("retry-after") == seconds


def test_nothing_of_the_upstream_s_headers_or_page_is_shown(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client
) -> None:
    headers = {"set-cookie": "session=canary", "x-upstream": "canary"}
    qwen.fail(
        Fault.status(500, b"<html>canary</html>", "text/html", headers=headers),
        Fault.status(403, b'{"detail": {"cookie": "canary"}}', headers=headers),
    )
    url = gateway_url()
    for _ in range(2):
        response = http.post(url + CHAT, json=ask())
        assert response.status_code == 500
        assert "canary" not in response.text + str(response.headers)


# A failure after text is the last event of the stream.


AFTER_TEXT: dict[str, tuple[Fault, str, str]] = {
    "an error frame": (
        Fault.error_frame(3, "Internal_Server_Error", "out of order"),
        "upstream_error",
        "upstream_failed",
    ),
    "a limit": (Fault.error_frame(3, "RateLimited", "slow"), "rate_limit_error", "RateLimited"),
    "its moderation": (
        Fault.error_frame(3, "Bad_Request", "not this"),
        "invalid_request_error",
        "Bad_Request",
    ),
    "a cut": (Fault.truncate(400), "upstream_error", "upstream_truncated"),
    "silence": (Fault.stall(3), "upstream_error", "upstream_idle_timeout"),
}


@pytest.mark.parametrize("name", AFTER_TEXT)
def test_a_failure_after_text_is_the_last_event(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client, name: str
) -> None:
    fault, type, code = AFTER_TEXT[name]
    url = gateway_url(idle_timeout=0.2)
    qwen.reply, qwen.pieces = "abcdefghijklmnop", 1
    qwen.fail(fault)
    body = ask(stream=True, stream_options={"include_usage": True})
    stream = streamed(http.post(url + CHAT, json=body))
    assert stream.is_broken_off
    assert stream.error is not None
    assert (stream.error["type"], stream.error["code"]) == (type, code)
    if name != "a cut":
        assert stream.text == "abc"
    assert stream.text
    assert qwen.reply.startswith(stream.text)
    assert all(chunk["usage"] is None for chunk in stream.chunks)
    qwen.wait_for(lambda qwen: qwen.open == 0)


@pytest.mark.parametrize("name", AFTER_TEXT)
def test_a_failure_within_a_plain_answer_is_a_status(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client, name: str
) -> None:
    fault, type, _ = AFTER_TEXT[name]
    if name == "a cut":
        fault = Fault.truncate()
    status = {"rate_limit_error": 429, "invalid_request_error": 400}.get(type, 500)
    url = gateway_url(idle_timeout=0.2, first_timeout=0.2)
    qwen.fail(fault)
    assert error_of(http.post(url + CHAT, json=ask()), status)["type"] == type


@pytest.mark.parametrize("incremental", [True, False], ids=["incremental", "cumulative"])
@pytest.mark.parametrize("thinking", [True, False], ids=["phases", "no phases"])
def test_an_answer_cut_at_any_byte_is_never_a_success_with_less(
    gateway_url: GatewayURL,
    qwen: SimulatedQwen,
    qwen_url: str,
    http: httpx.Client,
    incremental: bool,
    thinking: bool,
) -> None:
    url = gateway_url(incremental=incremental)
    qwen.reply, qwen.thinking, qwen.pieces, qwen.usage = REPLY, "hm", 5, False
    body = ask(stream=True, enable_thinking=thinking or None)
    size = _size_of_the_upstream_s_answer(qwen, http, (url, qwen_url), body)
    broken, texts = 0, set()
    for cut in range(0, size, 3):
        qwen.fail(Fault.truncate(cut))
        response = http.post(url + CHAT, json=body)
        if response.status_code != 200:
            assert error_of(response, 500)["code"] == "upstream_truncated"
            continue
        stream = streamed(response)
        assert REPLY.startswith(stream.text)
        if stream.is_whole:
            assert stream.text == REPLY
            continue
        assert stream.is_broken_off
        assert stream.error is not None
        assert stream.error["code"] == "upstream_truncated"
        broken += 1
        texts.add(stream.text)
    assert broken > 20
    assert len(texts) > 2


def test_a_document_cut_at_any_byte_is_an_error(
    gateway_url: GatewayURL, qwen: SimulatedQwen, qwen_url: str, http: httpx.Client
) -> None:
    url = gateway_url()
    qwen.reply, qwen.usage = REPLY, False
    size = _size_of_the_upstream_s_answer(qwen, http, (url, qwen_url), ask())
    for cut in range(0, size, 2):
        qwen.fail(Fault.truncate(cut))
        error = error_of(http.post(url + CHAT, json=ask()), 500)
        assert error["code"] == "upstream_truncated"


def _size_of_the_upstream_s_answer(
    qwen: SimulatedQwen, http: httpx.Client, urls: tuple[str, str], body: Any
) -> int:
    """Ask the gateway, and then the upstream the same that the gateway asked it."""
    url, qwen_url = urls
    assert http.post(url + CHAT, json=body).status_code == 200
    request = qwen.requests[-1]
    headers = {"authorization": request.headers["authorization"]}
    return len(http.post(qwen_url + request.path, content=request.raw, headers=headers).content)


# An upstream that sends what the simulator does not: bytes of a test's own.


Script = Callable[[socket.socket], None]


@contextmanager
def raw_upstream(*scripts: Script) -> Iterator[str]:
    """Accept one connection a script, one after the other, read a request, and run the script."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:

        def run() -> None:
            for script in scripts:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(10)
                    read_request(connection)
                    script(connection)

        thread = threading.Thread(target=run)
        thread.start()
        stack.callback(thread.join, 10)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def sends(data: bytes) -> Script:
    return lambda connection: connection.sendall(data)


def head(status: str = "200 OK", **headers: str) -> bytes:
    fields = {"content_type": EVENT_STREAM, **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


DONE = b"data: [DONE]\n\n"


@BOTH
def test_an_upstream_that_refuses_the_connection(
    gateway_url: GatewayURL, http: httpx.Client, stream: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = gateway_url(base_url=f"http://127.0.0.1:{port}")
    error = error_of(http.post(url + CHAT, json=ask(stream=stream)), 500)
    assert (error["type"], error["code"]) == ("upstream_error", "upstream_unreachable")


def test_an_upstream_whose_name_is_unknown(gateway_url: GatewayURL, http: httpx.Client) -> None:
    url = gateway_url(base_url="http://no-such-host.invalid", connect_timeout=5)
    assert error_of(http.post(url + CHAT, json=ask()), 500)["code"] in (
        "upstream_unreachable",
        "upstream_connect_timeout",
    )


@BOTH
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200", head(), head(content_length="100") + b"{"])
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_an_upstream_that_drops_the_connection(
    gateway_url: GatewayURL, http: httpx.Client, sent: bytes, reset: bool, stream: bool
) -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(sent)
        if reset:
            # Closing then sends RST in the place of FIN.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with raw_upstream(script) as upstream:
        response = http.post(gateway_url(base_url=upstream) + CHAT, json=ask(stream=stream))
    expected = {"upstream_truncated"}
    if sent == head() and not reset:
        # A body that only the end of the connection ends, is empty and whole.
        expected = {"upstream_invalid_response"}
    assert error_of(response, 500)["code"] in expected


@BOTH
def test_an_upstream_that_is_no_http(
    gateway_url: GatewayURL, http: httpx.Client, stream: bool
) -> None:
    with raw_upstream(sends(b"SSH-2.0-OpenSSH_9.2p1\r\n")) as upstream:
        response = http.post(gateway_url(base_url=upstream) + CHAT, json=ask(stream=stream))
    assert error_of(response, 500)["type"] == "upstream_error"


def test_a_reset_after_text_is_the_last_event(gateway_url: GatewayURL, http: httpx.Client) -> None:
    got_text = threading.Event()

    def script(connection: socket.socket) -> None:
        chunk = frame("abc ") + frame("def ")
        connection.sendall(
            head(transfer_encoding="chunked") + b"%x\r\n%b\r\n" % (len(chunk), chunk)
        )
        got_text.wait(5)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with raw_upstream(script) as upstream:
        url = gateway_url(base_url=upstream)
        with http.stream("POST", url + CHAT, json=ask(stream=True)) as response:
            body = b""
            for piece in response.iter_raw():
                body += piece
                got_text.set()
    stream = stream_of(body)
    assert stream.is_broken_off
    assert "abc def ".startswith(stream.text)
    assert stream.text.startswith("abc")


@pytest.mark.parametrize("finished", [False, True], ids=["[DONE]", "finished"])
def test_an_upstream_that_stays_open_after_its_end_holds_nobody_up(
    gateway_url: GatewayURL, http: httpx.Client, finished: bool
) -> None:
    closed = threading.Event()
    ending = frame("", phase="answer", status="finished") if finished else DONE

    def script(connection: socket.socket) -> None:
        connection.sendall(head() + frame("Hello", phase="answer", status="typing") + ending)
        assert connection.recv(1) == b""
        closed.set()

    with raw_upstream(script) as upstream:
        start = time.monotonic()
        stream = streamed(http.post(gateway_url(base_url=upstream) + CHAT, json=ask(stream=True)))
        took = time.monotonic() - start
        assert closed.wait(3)
    assert stream.is_whole
    assert stream.text == "Hello"
    assert took < (2.0 if finished else 0.5)


@BOTH
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client, stream: bool, status: int
) -> None:
    """It would take the credential elsewhere."""
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(0)
        location = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/"
        qwen.fail(Fault.status(status, headers={"location": location}))
        response = http.post(gateway_url() + CHAT, json=ask(stream=stream))
        with pytest.raises(BlockingIOError):
            elsewhere.accept()
    assert error_of(response, 500)["type"] == "upstream_error"
    assert location not in response.text
    assert "location" not in response.headers


EVENTS = frame("Hel") + frame("lo") + DONE
DOCUMENT = json.dumps({"choices": [{"message": {"content": "Hello"}}]}).encode()


@pytest.mark.parametrize("label", ["gzip", "GZIP", "identity", "deflate", ""])
def test_a_compressed_answer_is_read_although_none_was_asked_for(
    gateway_url: GatewayURL, http: httpx.Client, label: str
) -> None:
    def pack(data: bytes) -> bytes:
        match label.lower():
            case "gzip":
                packed = gzip.compress(data)
            case "deflate":
                packed = zlib.compress(data)
            case _:
                packed = data
        encoding = {"content_encoding": label} if label else {}
        return head(content_length=str(len(packed)), **encoding) + packed

    with raw_upstream(sends(pack(EVENTS)), sends(pack(DOCUMENT))) as upstream:
        url = gateway_url(base_url=upstream)
        stream = streamed(http.post(url + CHAT, json=ask(stream=True)))
        answer = answer_of(http.post(url + CHAT, json=ask()))
    assert stream.is_whole
    assert stream.text == answer["choices"][0]["message"]["content"] == "Hello"


@BOTH
@pytest.mark.parametrize(
    ("label", "data"),
    [
        ("gzip", GARBAGE),
        ("gzip", EVENTS),
        ("br", GARBAGE),
        ("zstd", GARBAGE),
    ],
)
def test_an_answer_that_is_not_compressed_as_it_says_is_an_error(
    gateway_url: GatewayURL, http: httpx.Client, label: str, data: bytes, stream: bool
) -> None:
    packed = head(content_encoding=label, content_length=str(len(data))) + data
    with raw_upstream(sends(packed)) as upstream:
        response = http.post(gateway_url(base_url=upstream) + CHAT, json=ask(stream=stream))
    assert error_of(response, 500)["code"] == "upstream_invalid_response"


@BOTH
def test_compression_that_is_cut_is_no_success(
    gateway_url: GatewayURL, http: httpx.Client, stream: bool
) -> None:
    text = "".join(f"{number} " for number in range(2000))
    document = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
    events = b"".join(frame(f"{number} ") for number in range(2000)) + DONE
    data = gzip.compress(events if stream else document)
    data = data[: len(data) // 2]
    packed = head(content_encoding="gzip", content_length=str(len(data))) + data
    with raw_upstream(sends(packed)) as upstream:
        response = http.post(gateway_url(base_url=upstream) + CHAT, json=ask(stream=stream))
    if stream:
        read = streamed(response)
        assert read.is_broken_off
        assert text.startswith(read.text)
    else:
        error_of(response, 500)


# Deadlines.


def timed(http: httpx.Client, url: str, **fields: Any) -> tuple[httpx.Response, float]:
    start = time.monotonic()
    response = http.post(url + CHAT, json=ask(**fields))
    return response, time.monotonic() - start


@BOTH
@pytest.mark.parametrize("after", [None, 0], ids=["before the headers", "behind the headers"])
def test_the_first_event_is_waited_for_so_long(
    gateway_url: GatewayURL,
    qwen: SimulatedQwen,
    http: httpx.Client,
    after: int | None,
    stream: bool,
) -> None:
    url = gateway_url(first_timeout=0.3, idle_timeout=60)
    qwen.fail(Fault.stall(after))
    response, took = timed(http, url, stream=stream)
    assert error_of(response, 500)["code"] == "upstream_first_timeout"
    assert 0.29 <= took < 1.5
    qwen.wait_for(lambda qwen: qwen.hung_up == 1 and qwen.open == 0)


def test_silence_between_events_is_waited_for_so_long(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client
) -> None:
    url = gateway_url(first_timeout=60, idle_timeout=0.3)
    qwen.fail(Fault.stall(2))
    response, took = timed(http, url, stream=True)
    stream = streamed(response)
    assert stream.is_broken_off
    assert stream.error is not None
    assert stream.error["code"] == "upstream_idle_timeout"
    assert 0.29 <= took < 1.5
    qwen.wait_for(lambda qwen: qwen.hung_up == 1 and qwen.open == 0)


def test_a_slow_but_steady_answer_meets_no_idle_deadline(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client
) -> None:
    url = gateway_url(first_timeout=0.4, idle_timeout=0.4)
    qwen.reply, qwen.pieces, qwen.pace = "abcdefgh", 1, 0.1
    response, took = timed(http, url, stream=True)
    assert streamed(response).is_whole
    assert took > 0.8


@pytest.mark.parametrize("first", [True, False], ids=["before an event", "after text"])
def test_the_whole_answer_may_take_so_long(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client, first: bool
) -> None:
    url = gateway_url(total_timeout=0.4)
    if first:
        qwen.fail(Fault.stall(0))
    qwen.reply, qwen.pieces, qwen.pace = "x" * 1000, 1, 0.02
    response, took = timed(http, url, stream=True)
    if first:
        assert error_of(response, 500)["code"] == "upstream_total_timeout"
    else:
        stream = streamed(response)
        assert stream.is_broken_off
        assert stream.text.startswith("xx")
    assert 0.39 <= took < 1.5
    qwen.wait_for(lambda qwen: qwen.open == 0)


def test_a_plain_answer_that_takes_too_long_in_all(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client
) -> None:
    url = gateway_url(total_timeout=0.3)
    qwen.fail(Fault.drip(1, pause=0.02))
    response, took = timed(http, url)
    assert error_of(response, 500)["code"] == "upstream_total_timeout"
    assert 0.29 <= took < 1.5


@BOTH
def test_a_connection_is_waited_for_so_long(
    gateway_url: GatewayURL, http: httpx.Client, stream: bool
) -> None:
    with unreachable() as upstream:
        url = gateway_url(base_url=upstream, connect_timeout=0.3)
        response, took = timed(http, url, stream=stream)
    assert error_of(response, 500)["code"] == "upstream_connect_timeout"
    assert 0.29 <= took < 1.5


@contextmanager
def unreachable() -> Iterator[str]:
    """A port where connections are neither accepted nor refused: its backlog is full."""
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


# Connections to the upstream.


class Counted:
    """An ASGI app, with the number of connections that its requests came on."""

    def __init__(self, app: SimulatedQwen) -> None:
        self.app = app
        self.connections: set[tuple[str, int]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.connections.add(tuple(scope["client"]))
        await self.app(scope, receive, send)


def test_one_connection_serves_one_request_after_the_other(
    gateway_url: GatewayURL, http: httpx.Client
) -> None:
    qwen = SimulatedQwen()
    counted = Counted(qwen)
    with serve(counted) as upstream:
        url = gateway_url(base_url=upstream)
        for number in range(6):
            streamed(http.post(url + CHAT, json=ask(stream=True)))
            answer_of(http.post(url + CHAT, json=ask()))
            qwen.done = not qwen.done
            qwen.fail(Fault.status(429) if number % 2 else Fault.failure("Bad_Request", "no"))
            assert http.post(url + CHAT, json=ask(stream=True)).status_code in (400, 429)
        assert len(qwen.requests) == 18
        # One, but that a busy machine may be too slow for the short wait for a stream's end.
        assert len(counted.connections) <= 3


def test_a_connection_that_the_upstream_closed_meanwhile_is_not_used_again(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client
) -> None:
    body = head(content_type=JSON, content_length=str(len(DOCUMENT))) + DOCUMENT
    with raw_upstream(*[sends(body)] * 3) as upstream:
        url = gateway_url(base_url=upstream)
        for _ in range(3):
            answer_of(http.post(url + CHAT, json=ask()))
            # The upstream closes behind its answer; no one can know before that has come.
            time.sleep(0.1)


def test_nothing_is_open_when_all_is_answered(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client
) -> None:
    url = gateway_url()
    for _ in range(3):
        streamed(http.post(url + CHAT, json=ask(stream=True)))
    eventually(lambda: qwen.open == 0)
    assert qwen.hung_up == 0
