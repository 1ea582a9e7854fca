"""The gateway's own HTTP: its routes and headers, what it says of a bug, and how long it lives."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from qwen_asgi import Gateway, Settings, anonymous, model_list
from qwen_asgi.settings import SEED_MODELS
from qwen_asgi.testing import DONE, Fault, SimulatedQwen, serve
from qwen_asgi.transports import UpstreamRequest
from tests.conftest import (
    CHAT,
    MODEL,
    UPSTREAM_KEY,
    GatewayURL,
    MakeGateway,
    ScriptedTransport,
    answer_of,
    ask,
    connect,
    error_of,
    eventually,
    frame,
    http_bytes,
    read_request,
    streamed,
)
from tests.schemas import check_model, check_models

BOTH = pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])


# Routes.


@pytest.mark.parametrize("slash", ["", "/"])
def test_every_route_is_served_with_and_without_a_slash(
    gateway_url: GatewayURL, http: httpx.Client, slash: str
) -> None:
    url = gateway_url()
    answer_of(http.post(url + CHAT + slash, json=ask()))
    assert streamed(http.post(url + CHAT + slash, json=ask(stream=True))).is_whole
    models = http.get(f"{url}/v1/models{slash}").json()
    check_models(models)
    assert [model["id"] for model in models["data"]] == list(SEED_MODELS)
    model = http.get(f"{url}/v1/models/{MODEL}{slash}").json()
    check_model(model)
    assert model == models["data"][0]


def test_the_models_are_those_of_the_settings(gateway_url: GatewayURL, http: httpx.Client) -> None:
    url = gateway_url(models=("qwen/deep:1", "字 \u2028"))
    models = http.get(f"{url}/v1/models").json()
    check_models(models)
    assert [model["id"] for model in models["data"]] == ["qwen/deep:1", "字 \u2028"]
    for path in "qwen/deep:1", "qwen%2Fdeep%3A1", "%E5%AD%97%20%E2%80%A8":
        assert http.get(f"{url}/v1/models/{path}").status_code == 200
    assert error_of(http.post(url + CHAT, json=ask()), 400)["code"] == "model_not_found"


def test_the_models_can_be_the_upstream_s(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client
) -> None:
    qwen.models = ("qwen3-max", "qwen3-coder")
    url = gateway_url(models="upstream")
    assert [m["id"] for m in http.get(f"{url}/v1/models").json()["data"]] == list(qwen.models)
    answer_of(http.post(url + CHAT, json=ask(model="qwen3-max")))
    assert error_of(http.post(url + CHAT, json=ask()), 400)["param"] == "model"


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("POST", CHAT)])
def test_models_that_the_upstream_does_not_tell_are_an_error(
    gateway_url: GatewayURL,
    qwen: SimulatedQwen,
    http: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
) -> None:
    monkeypatch.setattr(model_list, "FAILED_SECONDS", -1.0)
    url = gateway_url(models="upstream")
    qwen.fail(Fault.status(401), Fault.status(500), Fault.truncate())
    answers = [http.request(method, url + path, json=ask()) for _ in range(4)]
    assert [error_of(answer, 500)["code"] for answer in answers[:3]] == [
        "upstream_authentication",
        "upstream_failed",
        "upstream_truncated",
    ]
    assert answers[3].status_code == 200


# HEAD and OPTIONS.


@pytest.mark.parametrize("path", ["/v1/models", f"/v1/models/{MODEL}"])
def test_head_gets_what_get_gets_but_for_the_body(
    gateway_url: GatewayURL, http: httpx.Client, path: str
) -> None:
    url = gateway_url()
    head, get = http.head(url + path), http.get(url + path)
    assert (head.status_code, head.content) == (200, b"")
    for name in "content-length", "content-type":
        assert head.headers[name] == get.headers[name]


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/models/none", 404), ("/none", 404), (CHAT, 405)]
)
def test_head_of_what_is_refused_has_the_status_and_no_body(
    gateway_url: GatewayURL, path: str, status: int
) -> None:
    with connect(gateway_url()) as client:
        client.sendall(http_bytes(method="HEAD", path=path, connection="close"))
        answer = b""
        while data := client.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        (CHAT, {"POST", "OPTIONS"}),
        ("/v1/models", {"GET", "HEAD", "OPTIONS"}),
        ("/v1/models/", {"GET", "HEAD", "OPTIONS"}),
        ("/v1/models/any", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_options_and_a_wrong_method_tell_the_right_ones(
    gateway_url: GatewayURL, http: httpx.Client, path: str, allow: set[str]
) -> None:
    url = gateway_url()
    options = http.options(url + path)
    assert (options.status_code, options.content) == (204, b"")
    assert "content-length" not in options.headers
    assert set(options.headers["allow"].split(", ")) == allow
    wrong = http.delete(url + path)
    assert error_of(wrong, 405)["code"] == "method_not_allowed"
    assert set(wrong.headers["allow"].split(", ")) == allow


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/v1/models/x", "/v1/none", "/"])
def test_a_preflight_is_never_a_401(gateway_url: GatewayURL, http: httpx.Client, path: str) -> None:
    url = gateway_url(client_keys=("key",))
    preflight = {"origin": "https://example.org", "access-control-request-method": "POST"}
    assert http.options(url + path, headers=preflight).status_code in (204, 404)
    assert http.get(url + path).status_code == 401


# Headers.


def test_a_sane_request_id_is_echoed_on_every_answer(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client
) -> None:
    url = gateway_url()
    given = {"x-request-id": "Trace_1.a-b" + "c" * 100}
    qwen.fail(Fault.status(500))
    answers = [
        http.post(url + CHAT, json=ask(), headers=given),
        http.post(url + CHAT, json=ask(), headers=given),
        http.post(url + CHAT, json=ask(stream=True), headers=given),
        http.post(url + CHAT, content=b"{", headers=given),
        http.get(url + "/v1/models", headers=given),
        http.head(url + "/v1/models", headers=given),
        http.options(url + "/v1/models", headers=given),
        http.get(url + "/none", headers=given),
        http.put(url + CHAT, headers=given),
    ]
    assert {answer.headers.get("x-request-id") for answer in answers} == {given["x-request-id"]}


@pytest.mark.parametrize(
    "given",
    ["", " ", "a b", "a" * 129, "a,b", "a;b", "<script>", '"x"', "\xe4", "a\tb", "%0d%0a", "../x"],
)
def test_a_hostile_request_id_is_replaced(gateway_url: GatewayURL, given: str) -> None:
    with connect(gateway_url()) as client:
        request = http_bytes(
            method="GET", path="/v1/models", x_request_id=given, connection="close"
        )
        client.sendall(request)
        answer = b""
        while data := client.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert len(re.findall(rb"\nx-request-id: req-[0-9a-f]{24}\r\n", answer)) == 1


def test_without_a_request_id_each_answer_has_its_own(
    gateway_url: GatewayURL, http: httpx.Client
) -> None:
    url = gateway_url()
    ids = {http.get(url + "/v1/models").headers["x-request-id"] for _ in range(20)}
    assert len(ids) == 20


def test_a_stream_has_the_headers_that_keep_it_one(
    gateway_url: GatewayURL, http: httpx.Client
) -> None:
    with http.stream("POST", gateway_url() + CHAT, json=ask(stream=True)) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        assert "content-length" not in response.headers
        assert "content-encoding" not in response.headers


@BOTH
def test_what_was_ignored_is_named_and_what_was_not_is_not(
    gateway_url: GatewayURL, http: httpx.Client, stream: bool
) -> None:
    url = gateway_url()
    answer = http.post(url + CHAT, json=ask(stream=stream, seed=1, top_p=0.5, my_own=1))
    assert set(answer.headers["x-qwen-asgi-ignored"].split(", ")) == {"seed", "top_p", "my_own"}
    plain = http.post(url + CHAT, json=ask(stream=stream, temperature=1, max_tokens=5))
    assert "x-qwen-asgi-ignored" not in plain.headers


def test_the_body_may_come_without_a_content_type_or_as_another_json(
    gateway_url: GatewayURL, http: httpx.Client
) -> None:
    url = gateway_url()
    body = json.dumps(ask()).encode()
    kinds = ["application/json; charset=utf-8", "Application/JSON", "application/vnd.x+json"]
    for headers in [{}, *({"content-type": kind} for kind in kinds)]:
        answer_of(http.post(url + CHAT, content=body, headers=headers))


# Bugs.


class Broken:
    """A transport with a bug in it."""

    def open(self, request: UpstreamRequest, *, within: float) -> Any:
        return 1 / 0

    async def aclose(self) -> None: ...


def bugs(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.exc_info]


@BOTH
def test_a_bug_is_a_500_with_the_request_id_and_nothing_else(
    gateway_url: GatewayURL, http: httpx.Client, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    url = gateway_url(transport=Broken())
    headers = {"x-request-id": "seen-1"}
    response = http.post(url + CHAT, json=ask(stream=stream), headers=headers)
    error = error_of(response, 500)
    assert (error["type"], error["code"], error["param"]) == (
        "internal_error",
        "internal_error",
        None,
    )
    assert error["message"] == "an internal error ended request seen-1"
    [record] = bugs(caplog)
    assert "seen-1" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    assert http.get(url + "/v1/models").status_code == 200


def test_a_bug_in_mid_stream_is_the_last_event(
    gateway_url: GatewayURL, http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    transport = ScriptedTransport([frame("one "), frame("two "), ZeroDivisionError("canary")])
    url = gateway_url(transport=transport)
    headers = {"x-request-id": "seen-2"}
    with caplog.at_level(logging.INFO, "qwen_asgi"):
        stream = streamed(http.post(url + CHAT, json=ask(stream=True), headers=headers))
        eventually(lambda: "end=internal_error" in caplog.text)
    assert stream.is_broken_off
    assert stream.text.startswith("one")
    assert stream.error == {
        "message": "an internal error ended request seen-2",
        "type": "internal_error",
        "param": None,
        "code": "internal_error",
    }
    assert len(bugs(caplog)) == 1
    assert transport.open_now == 0


def test_a_bug_behind_the_end_of_a_stream_adds_nothing_to_it(
    gateway_url: GatewayURL, http: httpx.Client
) -> None:
    transport = ScriptedTransport([frame("whole "), DONE, ZeroDivisionError()])
    stream = streamed(http.post(gateway_url(transport=transport) + CHAT, json=ask(stream=True)))
    assert stream.is_whole


# The log.


def test_each_chat_is_one_line_without_its_words(
    gateway_url: GatewayURL,
    qwen: SimulatedQwen,
    http: httpx.Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = gateway_url()
    qwen.reply = "canary-answer " * 20
    with caplog.at_level(logging.DEBUG, "qwen_asgi"):
        http.post(url + CHAT, json=ask("canary-prompt"), headers={"x-request-id": "one"})
        qwen.fail(Fault.status(429), Fault.truncate(400))
        http.post(url + CHAT, json=ask("canary-prompt"), headers={"x-request-id": "two"})
        http.post(url + CHAT, json=ask("x", stream=True), headers={"x-request-id": "three"})
        http.post(url + CHAT, json=ask(model="canary-model"), headers={"x-request-id": "four"})
        eventually(lambda: caplog.text.count("chat four") == 1)
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("chat ")]
    assert len(lines) == 4
    assert "canary" not in caplog.text
    assert re.fullmatch(
        r"chat one: client=- model=qwen-max-latest stream=False status=200 end=done "
        r"first=\d+\.\d{3}s total=\d+\.\d{3}s prompt_tokens=\d+ completion_tokens=\d+",
        lines[0],
    )
    assert "status=429 end=upstream_rate_limited" in lines[1]
    assert "stream=True status=200 end=upstream_truncated" in lines[2]
    assert "status=400 end=model_not_found" in lines[3]
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    for name in "two", "three":
        assert len([text for text in warned if text.startswith(f"request {name}: upstream: ")]) == 1


def test_bodies_are_logged_only_where_that_was_asked_for_and_forge_no_line(
    gateway_url: GatewayURL, http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "qwen_asgi"):
        body = json.dumps(ask("hey\nchat forged: status=200"), indent=1).encode()
        http.post(gateway_url(log_bodies=True) + CHAT, content=body)
        eventually(lambda: "end=done" in caplog.text)
    [line] = [r.getMessage() for r in caplog.records if "forged" in r.getMessage()]
    assert "\n" not in line
    assert line.startswith("request req-")


# Life.


def test_making_a_gateway_opens_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    before = len(caplog.records)
    Gateway()
    Gateway(Settings(api_key="key"))
    assert len(caplog.records) == before


def test_contradictions_are_refused_when_a_gateway_is_made() -> None:
    keys = Settings(client_keys=("key",))
    with pytest.raises(ValueError, match="authenticate or client_keys"):
        Gateway(keys, authenticate=anonymous)
    with pytest.raises(ValueError, match="transport or http_client"):
        Gateway(transport=ScriptedTransport([]), http_client=httpx.AsyncClient())


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    names = {"lets everybody in": "open", "lifespan": "lifespan"}
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    return [name for text in said for words, name in names.items() if words in text]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"authenticate": None}, ["open", "lifespan"]),
        ({"authenticate": anonymous}, ["lifespan"]),
        ({"client_keys": ("key",)}, ["lifespan"]),
        ({"transport": ScriptedTransport([])}, []),
    ],
)
def test_what_a_host_may_have_forgotten_is_said_once(
    gateway_url: GatewayURL,
    http: httpx.Client,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, Any],
    expected: list[str],
) -> None:
    url = gateway_url(**options)
    for _ in range(3):
        http.get(url + "/v1/models")
    assert warnings_of(caplog) == expected
    if "open" in expected:
        [text] = [r.getMessage() for r in caplog.records if "everybody" in r.getMessage()]
        assert "dependencies=" in text
        assert "authenticate=anonymous" in text


def test_alone_its_server_s_lifespan_is_its_own(
    make_gateway: MakeGateway,
    serve_app: Callable[..., str],
    http: httpx.Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer_of(http.post(serve_app(make_gateway()) + CHAT, json=ask()))
    assert warnings_of(caplog) == []


def test_connections_are_closed_with_the_lifespan(
    make_gateway: MakeGateway, http: httpx.Client
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        gateway = make_gateway(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        with serve(gateway) as url, connect(url) as client:
            client.sendall(http_bytes(json.dumps(ask()).encode(), connection="close"))
            upstream, _ = listener.accept()
            with upstream:
                upstream.settimeout(5)
                read_request(upstream)
                body = b'{"choices": [{"message": {"content": "Hi"}}]}'
                upstream.sendall(
                    b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
                )
                while client.recv(65536):
                    pass
                upstream.setblocking(False)
                with pytest.raises(BlockingIOError):
                    upstream.recv(1)  # It is kept for the next request...
                upstream.settimeout(5)
                serve_ended = upstream.dup()
        with serve_ended:
            assert serve_ended.recv(1) == b""  # ... and closed with the gateway.


@pytest.mark.anyio
async def test_after_aclose_a_request_opens_anew(make_gateway: MakeGateway) -> None:
    qwen = SimulatedQwen()
    ports = []

    async def upstream(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            ports.append(scope["client"][1])
        await qwen(scope, receive, send)

    with serve(upstream) as url:
        gateway = make_gateway(base_url=url)
        await gateway.aclose()
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=gateway), base_url="http://gateway"
        ) as client:
            for _ in range(2):
                answer_of(await client.post(CHAT, json=ask()))
                answer_of(await client.post(CHAT, json=ask()))
                await gateway.aclose()
                await gateway.aclose()
    assert ports[0] == ports[1] != ports[2] == ports[3]


def test_one_gateway_serves_several_event_loops(
    make_gateway: MakeGateway, qwen: SimulatedQwen
) -> None:
    gateway = make_gateway()
    for _ in range(2):
        with TestClient(gateway) as client:
            answer_of(client.post(CHAT, json=ask()))
            assert streamed(client.post(CHAT, json=ask(stream=True))).is_whole
    # Without a lifespan, each request even has a loop of its own.
    client = TestClient(gateway)
    for _ in range(3):
        answer_of(client.post(CHAT, json=ask()))
    assert len(qwen.requests) == 7
    assert qwen.hung_up == 0


@pytest.mark.anyio
async def test_what_was_given_is_used_and_not_closed(
    make_gateway: MakeGateway, qwen_url: str
) -> None:
    transport = ScriptedTransport([frame("Hi"), DONE])
    async with httpx.AsyncClient(headers={"x-mine": "1"}, cookies={"mine": "1"}) as given:
        for gateway in make_gateway(transport=transport), make_gateway(http_client=given):
            async with (
                gateway.lifespan(),
                httpx.AsyncClient(
                    transport=httpx.ASGITransport(app=gateway), base_url="http://gateway"
                ) as client,
            ):
                answer_of(await client.post(CHAT, json=ask()))
            await gateway.aclose()
        assert transport.closed == 0
        assert not given.is_closed
        assert len(transport.requests) == 1


@pytest.mark.anyio
async def test_a_websocket_is_refused_without_an_exception(make_gateway: MakeGateway) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/models", "headers": []}
    await make_gateway()(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.anyio
async def test_a_server_that_cancels_a_request_ends_the_upstream_call(
    make_gateway: MakeGateway, qwen: SimulatedQwen, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = make_gateway()
    qwen.fail(Fault.stall(None))
    messages: asyncio.Queue[Message] = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": json.dumps(ask()).encode()})
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
    with caplog.at_level(logging.INFO, "qwen_asgi"):
        task = asyncio.ensure_future(gateway(scope, messages.get, send))
        await asyncio.to_thread(qwen.wait_for, lambda qwen: qwen.open == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.to_thread(qwen.wait_for, lambda qwen: qwen.open == 0)
    assert "end=cancelled" in caplog.text
    assert sent == []
    await gateway.aclose()


def test_a_stream_that_the_host_cancels_is_cut_and_not_ended(
    make_gateway: MakeGateway, qwen: SimulatedQwen
) -> None:
    """A client must not take half an answer for a whole one."""
    qwen.fail(Fault.stall(3))
    body = b""
    with serve(make_gateway()) as url:
        client = connect(url)
        client.sendall(http_bytes(json.dumps(ask(stream=True)).encode()))
        while body.count(b'"delta":{"content":') < 2:
            body += client.recv(65536)
        qwen.wait_for(lambda qwen: qwen.open == 1)
    with client:
        while data := _received(client):
            body += data
    assert b"[DONE]" not in body
    assert not body.endswith(b"0\r\n\r\n")
    qwen.wait_for(lambda qwen: qwen.open == 0)


def _received(client: socket.socket) -> bytes:
    try:
        return client.recv(65536)
    except ConnectionError:
        return b""


# Two in one process.


def test_two_gateways_keep_their_settings_apart(
    make_gateway: MakeGateway, serve_app: Callable[..., str], http: httpx.Client
) -> None:
    first = SimulatedQwen(reply="first", models=("one",))
    second = SimulatedQwen(reply="second", models=("two",))
    with serve(first) as first_url, serve(second) as second_url:
        one = make_gateway(base_url=first_url, models=("one",), client_keys=("key-1",))
        two = make_gateway(base_url=second_url, models=("two",), api_key="other")

        async def host(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await (one if scope["path"].startswith("/1") else two)(
                    {**scope, "root_path": scope["path"][:2]}, receive, send
                )

        url = serve_app(host, lifespan="off")
        key = {"authorization": "Bearer key-1"}
        for _ in range(2):
            answer = answer_of(http.post(f"{url}/1{CHAT}", json=ask(model="one"), headers=key))
            assert answer["choices"][0]["message"]["content"] == "first"
            answer = answer_of(http.post(f"{url}/2{CHAT}", json=ask(model="two")))
            assert answer["choices"][0]["message"]["content"] == "second"
            error_of(http.post(f"{url}/1{CHAT}", json=ask(model="one")), 401)
            error_of(http.post(f"{url}/2{CHAT}", json=ask(model="one"), headers=key), 400)
        assert {r.headers["authorization"] for r in first.requests} == {f"Bearer {UPSTREAM_KEY}"}
        assert {r.headers["authorization"] for r in second.requests} == {"Bearer other"}
