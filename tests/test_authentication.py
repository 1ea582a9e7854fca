"""Who is let in: by client keys, by a function of the host's, or everybody."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from fastapi import HTTPException as FastAPIHTTPException
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.routing import Mount
from starlette.testclient import TestClient

from qwen_asgi import Principal, anonymous
from qwen_asgi.authentication import ANYBODY, ClientKeys, identify
from qwen_asgi.errors import AuthenticationFailed
from qwen_asgi.testing import SimulatedQwen, serve
from tests.conftest import (
    CHAT,
    GatewayURL,
    MakeGateway,
    answer_of,
    ask,
    connect,
    error_of,
    eventually,
    http_bytes,
)

ROUTES = [("POST", CHAT), ("GET", "/v1/models"), ("GET", "/v1/models/x"), ("GET", "/none")]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# Client keys.


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "right"},
        {"authorization": "Basic right"},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer righ"},
        {"authorization": "Bearer rightx"},
        {"authorization": "Bearer Right"},
        {"authorization": "Bearer right right"},
        {"authorization": "Bearer right,other"},
        {"x-api-key": "right"},
    ],
    ids=str,
)
def test_without_a_known_key_nothing_is_answered(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client, headers: dict[str, str]
) -> None:
    url = gateway_url(client_keys=("right", "other"))
    for method, path in ROUTES:
        response = http.request(method, url + path, json=ask(), headers=headers)
        error = error_of(response, 401)
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    assert not qwen.requests


@pytest.mark.parametrize(
    "value", ["Bearer right", "bearer right", "BEARER right", "Bearer  right", "Bearer other"]
)
def test_a_known_key_is_let_in_and_not_sent_on(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client, value: str
) -> None:
    url = gateway_url(client_keys=("right", "other"))
    answer_of(http.post(url + CHAT, json=ask(), headers={"authorization": value}))
    sent = qwen.requests[-1].headers["authorization"]
    assert "right" not in sent
    assert "other" not in sent


def test_a_key_may_hold_any_letter(gateway_url: GatewayURL) -> None:
    """The settings take plain ASCII only; a header's bytes are the client's, mostly UTF-8."""
    url = gateway_url(authenticate=ClientKeys(["ключ-à"]))
    for key, status in [("ключ-à", b"200"), ("ключ-á", b"401"), ("ключ-", b"401")]:
        request = http_bytes(method="GET", path="/v1/models", connection="close")
        line = b"\r\nauthorization: Bearer " + key.encode() + b"\r\n\r\n"
        with connect(url) as client:
            client.sendall(request.replace(b"\r\n\r\n", line))
            assert client.recv(65536).startswith(b"HTTP/1.1 " + status)


def test_the_log_names_a_key_s_client_and_not_the_key(
    gateway_url: GatewayURL, http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    url = gateway_url(client_keys=("first-key", "second-key"))
    with caplog.at_level(logging.INFO, "qwen_asgi"):
        for key in "first-key", "second-key", "first-key":
            http.post(url + CHAT, json=ask(), headers=bearer(key))
        eventually(lambda: caplog.text.count("end=done") == 3)
    names = re.findall("client=(key-[0-9a-f]{8}) ", caplog.text)
    assert names[0] == names[2] != names[1]
    assert "first-key" not in caplog.text


def test_only_hashes_of_the_keys_are_kept() -> None:
    keys = ClientKeys(["canary"])
    assert "canary" not in repr(vars(keys))


# A function of the host's.


def by_header(request: Request) -> Principal | None:
    name = request.headers.get("x-user")
    return Principal(name) if name else None


async def by_header_later(request: Request) -> Principal | None:
    await asyncio.sleep(0)
    return by_header(request)


class ByHeader:
    async def __call__(self, request: Request) -> Principal | None:
        return await by_header_later(request)


def by_a_coroutine_of_a_plain_function(request: Request) -> Any:
    return by_header_later(request)


@pytest.mark.parametrize(
    "authenticate",
    [by_header, by_header_later, ByHeader(), by_a_coroutine_of_a_plain_function],
    ids=["plain", "async", "object", "plain that returns a coroutine"],
)
def test_a_host_s_function_names_the_client_or_refuses_it(
    gateway_url: GatewayURL,
    qwen: SimulatedQwen,
    http: httpx.Client,
    caplog: pytest.LogCaptureFixture,
    authenticate: Any,
) -> None:
    url = gateway_url(authenticate=authenticate)
    for method, path in ROUTES:
        error_of(http.request(method, url + path, json=ask()), 401)
    assert not qwen.requests
    with caplog.at_level(logging.INFO, "qwen_asgi"):
        answer_of(http.post(url + CHAT, json=ask(), headers={"x-user": "ann"}))
        eventually(lambda: "client=ann" in caplog.text)


def test_a_plain_function_may_block(gateway_url: GatewayURL, http: httpx.Client) -> None:
    """It runs in a thread: the event loop goes on meanwhile."""
    entered, go_on = threading.Event(), threading.Event()

    def slow(request: Request) -> Principal:
        if request.headers.get("x-user"):
            return Principal("quick")
        entered.set()
        assert go_on.wait(5)
        return Principal("slow")

    url = gateway_url(authenticate=slow)
    with connect(url) as waiting:
        waiting.sendall(http_bytes(method="GET", path="/v1/models"))
        assert entered.wait(5)
        assert http.get(url + "/v1/models", headers={"x-user": "x"}).status_code == 200
        go_on.set()
        assert waiting.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("kind", [HTTPException, FastAPIHTTPException])
@pytest.mark.parametrize(
    ("status", "type"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (429, "rate_limit_error"),
        (503, "overloaded_error"),
    ],
)
def test_a_host_s_http_exception_keeps_its_status_words_and_headers(
    gateway_url: GatewayURL,
    qwen: SimulatedQwen,
    http: httpx.Client,
    kind: type[HTTPException],
    status: int,
    type: str,
) -> None:
    async def authenticate(request: Request) -> Principal:
        raise kind(status, "says the host", {"Retry-After": "7", "WWW-Authenticate": "Basic"})

    response = http.post(gateway_url(authenticate=authenticate) + CHAT, json=ask())
    error = error_of(response, status)
    assert (error["type"], error["message"]) == (type, "says the host")
    assert response.headers["retry-after"] == "7"
    assert response.headers.get_list("www-authenticate") == ["Basic"]
    assert not qwen.requests


def test_a_host_may_refuse_in_the_gateway_s_own_words(
    gateway_url: GatewayURL, http: httpx.Client
) -> None:
    async def authenticate(request: Request) -> Principal:
        raise AuthenticationFailed("the trial is over", code="trial_over")

    error = error_of(http.get(gateway_url(authenticate=authenticate) + "/v1/models"), 401)
    assert (error["message"], error["code"]) == ("the trial is over", "trial_over")


def broken(request: Request) -> Principal:
    raise LookupError("canary")


async def broken_later(request: Request) -> Principal:
    return broken(request)


def returns_true(request: Request) -> Any:
    return True


def returns_a_name(request: Request) -> Any:
    return "ann"


@pytest.mark.parametrize("authenticate", [broken, broken_later, returns_true, returns_a_name])
def test_a_bug_in_the_host_s_function_lets_nobody_in(
    gateway_url: GatewayURL,
    qwen: SimulatedQwen,
    http: httpx.Client,
    caplog: pytest.LogCaptureFixture,
    authenticate: Any,
) -> None:
    url = gateway_url(authenticate=authenticate)
    for method, path in ROUTES:
        error = error_of(http.request(method, url + path, json=ask()), 500)
        assert error["code"] == "internal_error"
        assert "canary" not in error["message"]
    assert not qwen.requests
    assert len([record for record in caplog.records if record.exc_info]) == len(ROUTES)


def test_a_preflight_asks_nobody(gateway_url: GatewayURL, http: httpx.Client) -> None:
    url = gateway_url(authenticate=broken)
    assert http.options(url + CHAT).status_code == 204
    error_of(http.options(url + "/none"), 404)


# What the host did before.


class Backend(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> Any:
        name = conn.headers.get("x-user")
        return (AuthCredentials(["chat"]), SimpleUser(name)) if name else None


def test_the_user_of_the_host_s_own_middleware_can_be_let_in(make_gateway: MakeGateway) -> None:
    def of_the_host(request: Request) -> Principal | None:
        user = request.user
        return Principal(user.display_name) if user.is_authenticated else None

    host = Starlette(
        routes=[Mount("/qwen", make_gateway(authenticate=of_the_host))],
        middleware=[Middleware(AuthenticationMiddleware, backend=Backend())],
    )
    with TestClient(host) as client:
        error_of(client.post(f"/qwen{CHAT}", json=ask()), 401)
        answer_of(client.post(f"/qwen{CHAT}", json=ask(), headers={"x-user": "ann"}))


def test_a_fastapi_host_s_dependencies_do_not_reach_the_mount_but_authenticate_does(
    make_gateway: MakeGateway,
) -> None:
    def nobody() -> None:
        raise FastAPIHTTPException(401, "not you")

    host = FastAPI(dependencies=[Depends(nobody)])
    host.add_api_route("/own", lambda: {})
    host.mount("/open", make_gateway())
    host.mount("/closed", make_gateway(authenticate=by_header))
    with TestClient(host) as client:
        assert client.get("/own").status_code == 401
        assert client.get("/open/v1/models").status_code == 200  # So the gateway warns of it.
        error_of(client.get("/closed/v1/models"), 401)


# Everybody.


@pytest.mark.parametrize("authenticate", [anonymous, None])
def test_an_open_gateway_lets_everybody_in(
    gateway_url: GatewayURL, http: httpx.Client, authenticate: Any
) -> None:
    url = gateway_url(authenticate=authenticate)
    for headers in {}, bearer("any"), {"authorization": "Basic x"}:
        answer_of(http.post(url + CHAT, json=ask(), headers=headers))


@pytest.mark.anyio
async def test_identify_by_itself() -> None:
    request = Request({"type": "http", "headers": [(b"x-user", b"ann")]})
    assert await identify(anonymous, request) is ANYBODY
    assert await identify(by_header, request) == Principal("ann")
    with pytest.raises(AuthenticationFailed):
        await identify(ClientKeys(["key"]), request)
    with pytest.raises(TypeError, match="Principal or None, not bool"):
        await identify(returns_true, request)


def test_a_request_that_is_refused_has_no_body_read(
    gateway_url: GatewayURL, gateway_loop: Callable[[Any], Any]
) -> None:
    """A stranger must not make the gateway wait, or hold megabytes."""
    with connect(gateway_url(client_keys=("key",))) as client:
        client.sendall(http_bytes(b"{", content_length=str(30 * 1024 * 1024)))
        assert client.recv(65536).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("by", ["its end", "the gateway's"])
def test_a_host_s_function_that_hangs_has_an_end(
    by: str, make_gateway: MakeGateway, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(request: Request) -> Principal:
        entered.set()
        await asyncio.sleep(60)
        return ANYBODY

    entered = threading.Event()
    if by == "its end":
        monkeypatch.setattr("qwen_asgi.app.AUTHENTICATE_SECONDS", 0.1)
    gateway = make_gateway(authenticate=hangs)
    with serve(gateway) as url, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(http.post, url + CHAT, json=ask())
        assert entered.wait(5)
        if by != "its end":
            gateway.begin_drain(0.1)
        error = error_of(asked.result(), 503)
    assert error["code"] == ("overloaded" if by == "its end" else "shutting_down")
