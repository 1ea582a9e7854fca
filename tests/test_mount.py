"""The gateway below every kind of host, behind every kind of prefix of the host's own."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from qwen_asgi import Gateway, GatewayMiddleware, combine_lifespans
from qwen_asgi.settings import SEED_MODELS
from qwen_asgi.testing import SimulatedQwen
from tests.conftest import (
    CHAT,
    DIALECTS,
    MODEL,
    GatewayURL,
    MakeGateway,
    answer_of,
    ask,
    error_of,
    streamed,
)

Host = Callable[[Gateway, bool], ASGIApp]
"""Makes a host of a gateway, with the gateway's lifespan wired into its own or not."""


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


async def own(request: Request) -> Response:
    return PlainTextResponse("the host's own")


def own_lifespan(gateway: Gateway, wired: bool) -> Any:
    return gateway.lifespan if wired else None


def starlette(*routes: Mount, gateway: Gateway, wired: bool) -> Starlette:
    return Starlette(routes=[Route("/own", own), *routes], lifespan=own_lifespan(gateway, wired))


def mounted_in_starlette(gateway: Gateway, wired: bool) -> ASGIApp:
    return starlette(Mount("/qwen", gateway), gateway=gateway, wired=wired)


def mounted_twice_deep(gateway: Gateway, wired: bool) -> ASGIApp:
    middle = Starlette(routes=[Route("/own", own), Mount("/qwen", gateway)])
    return starlette(Mount("/deep", middle), gateway=gateway, wired=wired)


def mounted_in_fastapi(gateway: Gateway, wired: bool) -> ASGIApp:
    host = FastAPI(lifespan=own_lifespan(gateway, wired))
    host.add_api_route("/own", own)
    host.mount("/qwen", gateway)
    return host


def fastapi_that_knows_its_prefix(gateway: Gateway, wired: bool) -> FastAPI:
    with warnings.catch_warnings():
        # It still is what many a host is made with.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        return FastAPI(root_path="/edge", lifespan=own_lifespan(gateway, wired))


def mounted_in_fastapi_that_knows_its_prefix(gateway: Gateway, wired: bool) -> ASGIApp:
    host = fastapi_that_knows_its_prefix(gateway, wired)
    host.add_api_route("/own", own)
    host.mount("/qwen", gateway)
    return host


def mounted_below_fastapi_in_fastapi(gateway: Gateway, wired: bool) -> ASGIApp:
    middle = FastAPI()
    middle.mount("/qwen", gateway)
    host = FastAPI(lifespan=own_lifespan(gateway, wired))
    host.add_api_route("/deep/own", own)
    host.mount("/deep", middle)
    return host


def added_to_starlette(gateway: Gateway, wired: bool) -> ASGIApp:
    host = Starlette(routes=[Route("/own", own)], lifespan=own_lifespan(gateway, wired))
    host.add_middleware(GatewayMiddleware, gateway=gateway, path="/qwen")
    return host


def added_to_fastapi_that_knows_its_prefix(gateway: Gateway, wired: bool) -> ASGIApp:
    host = fastapi_that_knows_its_prefix(gateway, wired)
    host.add_api_route("/own", own)
    host.add_middleware(GatewayMiddleware, gateway=gateway, path="/qwen")
    return host


def wrapped(gateway: Gateway, wired: bool) -> ASGIApp:
    host = Starlette(routes=[Route("/own", own)])
    return GatewayMiddleware(host, gateway, path="/qwen")


def alone(gateway: Gateway, wired: bool) -> ASGIApp:
    return gateway


HOSTS: dict[str, tuple[Host, str]] = {
    "Starlette": (mounted_in_starlette, "/qwen"),
    "Starlette, twice deep": (mounted_twice_deep, "/deep/qwen"),
    "FastAPI": (mounted_in_fastapi, "/qwen"),
    "FastAPI with root_path": (mounted_in_fastapi_that_knows_its_prefix, "/qwen"),
    "FastAPI in FastAPI": (mounted_below_fastapi_in_fastapi, "/deep/qwen"),
    "middleware of Starlette": (added_to_starlette, "/qwen"),
    "middleware of FastAPI with root_path": (added_to_fastapi_that_knows_its_prefix, "/qwen"),
    "middleware around": (wrapped, "/qwen"),
    "alone": (alone, ""),
}


def behind(app: ASGIApp, root_path: str, *, kept: bool) -> ASGIApp:
    """Put a proxy before `app` that has the prefix `root_path`, and keeps it in the path or not."""

    async def proxied(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            path = scope["path"] if kept else scope["path"].removeprefix(root_path)
            scope = {**scope, "path": path, "raw_path": path.encode(), "root_path": root_path}
        await app(scope, receive, send)

    return proxied


PREFIXES: dict[str, tuple[str, bool]] = {
    "no root_path": ("", True),
    "root_path kept": ("/edge", True),
    "root_path stripped": ("/edge", False),
}


# Below a stripped prefix Starlette finds no route in a mount within a mount, whoever's it is.
MATRIX = [
    (host, prefix)
    for host in HOSTS
    for prefix in PREFIXES
    if not (prefix == "root_path stripped" and HOSTS[host][1].startswith("/deep"))
]


@pytest.mark.parametrize("wired", [True, False], ids=["lifespan wired", "not wired"])
@pytest.mark.parametrize(("host", "prefix"), MATRIX)
def test_the_gateway_answers_below_its_mount_and_the_host_beside_it(
    make_gateway: MakeGateway, caplog: pytest.LogCaptureFixture, host: str, prefix: str, wired: bool
) -> None:
    make_host, mount = HOSTS[host]
    root_path, kept = PREFIXES[prefix]
    if not root_path and "with root_path" in host:
        root_path = "/edge"  # Its proxy strips what FastAPI is told: the case of FastAPI's manual.
    app = make_host(make_gateway(), wired)
    if prefix != "no root_path":
        app = behind(app, root_path, kept=kept)
    outside = root_path if prefix != "no root_path" else ""
    with caplog.at_level(logging.WARNING, "qwen_asgi"), TestClient(app) as client:
        assert_all_works(client, outside + mount)
        if host != "alone":
            beside = "/deep/own" if "deep" in mount else "/own"
            assert client.get(outside + beside).text == "the host's own"
            assert client.get(outside + beside + "x").status_code == 404
    expected = 0 if wired or host == "alone" or "middleware" in host else 1
    assert caplog.text.count("lifespan=gateway.lifespan") == expected
    assert len(caplog.records) == expected


def assert_all_works(client: TestClient, base: str) -> None:
    for slash in "", "/":
        answer_of(client.post(f"{base}{CHAT}{slash}", json=ask()))
        assert streamed(client.post(f"{base}{CHAT}{slash}", json=ask(stream=True))).is_whole
        models = client.get(f"{base}/v1/models{slash}").json()["data"]
        assert [model["id"] for model in models] == list(SEED_MODELS)
        assert client.get(f"{base}/v1/models/{MODEL}{slash}").json()["id"] == MODEL
        assert client.head(f"{base}/v1/models{slash}").status_code == 200
        assert client.options(f"{base}{CHAT}{slash}").status_code == 204
        # What is unknown below the mount is the gateway's too.
        for path in "/v1", "/v1/none", "/none", "/v1/chat", "/v1/chat/completions/x", "/own":
            for method in "GET", "POST", "DELETE":
                missing = client.request(method, f"{base}{path}{slash}", follow_redirects=False)
                if base or path != "/own":
                    assert error_of(missing, 404)["code"] == "not_found"
        error_of(client.post(f"{base}/v1/models{slash}", json={}), 405)
        error_of(client.get(f"{base}{CHAT}{slash}"), 405)
        error_of(client.get(f"{base}/v1/models/none{slash}"), 404)
    if base:
        for path in "", "/":
            root = client.get(base + path, follow_redirects=False)
            assert root.status_code in (404, 307)
            if root.status_code == 404 and path:
                error_of(root, 404)


@pytest.mark.parametrize(
    "host", ["Starlette", "FastAPI", "middleware of Starlette", "middleware around"]
)
def test_nothing_below_the_mount_is_ever_a_redirect(make_gateway: MakeGateway, host: str) -> None:
    """But for the bare mount without its slash, which is the host's own to answer."""
    make_host, mount = HOSTS[host]
    with TestClient(make_host(make_gateway(), True)) as client:
        for path in (
            "/v1",
            CHAT,
            "/v1/models",
            f"/v1/models/{MODEL}",
            "/none",
            "//",
            "//v1/models",
        ):
            for slash in "", "/", "//":
                for method in "GET", "POST", "HEAD", "OPTIONS", "PUT":
                    response = client.request(method, mount + path + slash, follow_redirects=False)
                    assert not 300 <= response.status_code < 400
                    assert "location" not in response.headers


def test_a_real_server_s_root_path(
    make_gateway: MakeGateway, serve_app: Callable[..., str], http: httpx.Client
) -> None:
    """uvicorn adds it to every path, so that a proxy must have stripped it."""
    for host in "Starlette", "FastAPI", "middleware around", "alone":
        make_host, mount = HOSTS[host]
        url = serve_app(make_host(make_gateway(), True), root_path="/edge") + mount
        answer_of(http.post(url + CHAT, json=ask()))
        assert http.get(f"{url}/v1/models/").status_code == 200
        error_of(http.get(f"{url}/none"), 404)


def test_a_middleware_leaves_the_host_its_routes_behind_a_prefix_of_the_same_name(
    make_gateway: MakeGateway,
) -> None:
    app = behind(wrapped(make_gateway(), True), "/qwen", kept=True)
    with TestClient(app) as client:
        assert client.get("/qwen/own").text == "the host's own"
        answer_of(client.post(f"/qwen/qwen{CHAT}", json=ask()))


def test_a_middleware_in_a_mount_of_the_same_name_leaves_the_host_its_routes(
    make_gateway: MakeGateway,
) -> None:
    app = Starlette(routes=[Mount("/qwen", wrapped(make_gateway(), True))])
    with TestClient(app) as client:
        assert client.get("/qwen/own").text == "the host's own"
        answer_of(client.post(f"/qwen/qwen{CHAT}", json=ask()))


def test_a_path_that_only_begins_like_the_middleware_s_is_the_host_s(
    make_gateway: MakeGateway,
) -> None:
    with TestClient(wrapped(make_gateway(), True)) as client:
        assert client.get("/qwenish/v1/models").text == "Not Found"
        assert client.get("/QWEN/v1/models").text == "Not Found"
        error_of(client.get("/qwen"), 404)


@pytest.mark.parametrize("path", ["", "/", "qwen", "/qwen/", "qwen/"])
def test_a_middleware_s_path_is_checked_when_it_is_made(
    make_gateway: MakeGateway, path: str
) -> None:
    with pytest.raises(ValueError, match="slash"):
        GatewayMiddleware(Starlette(), make_gateway(), path=path)


def test_a_mount_may_end_as_the_gateway_s_paths_begin(make_gateway: MakeGateway) -> None:
    with TestClient(Starlette(routes=[Mount("/v1", make_gateway())])) as client:
        assert client.get("/v1/v1/models").status_code == 200
        assert client.get("/v1/models").status_code == 200


# Middleware of the host's.


def test_cors_is_the_host_s_and_its_preflight_needs_no_key(
    make_gateway: MakeGateway,
) -> None:
    origins = Middleware(CORSMiddleware, allow_origins=["https://a.example"], allow_methods=["*"])
    app = Starlette(
        routes=[Mount("/qwen", make_gateway(client_keys=("key",)))], middleware=[origins]
    )
    origin = {"origin": "https://a.example"}
    with TestClient(app) as client:
        preflight = client.options(
            f"/qwen{CHAT}", headers={**origin, "access-control-request-method": "POST"}
        )
        assert preflight.status_code == 200
        refused = client.post(f"/qwen{CHAT}", json=ask(), headers=origin)
        error_of(refused, 401)
        assert refused.headers["access-control-allow-origin"] == "https://a.example"
        answer = client.post(
            f"/qwen{CHAT}", json=ask(), headers={**origin, "authorization": "Bearer key"}
        )
        assert answer_of(answer)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"


def test_compression_by_the_host_leaves_the_stream_alone(make_gateway: MakeGateway) -> None:
    app = Starlette(
        routes=[Mount("/qwen", make_gateway())],
        middleware=[Middleware(GZipMiddleware, minimum_size=1)],
    )
    with TestClient(app) as client:
        stream = client.post(f"/qwen{CHAT}", json=ask(stream=True))
        assert streamed(stream).is_whole
        assert "content-encoding" not in stream.headers
        answer = client.post(f"/qwen{CHAT}", json=ask())
        assert answer.headers["content-encoding"] == "gzip"
        answer_of(answer)


def test_a_host_that_has_read_the_body_first_hands_it_on(make_gateway: MakeGateway) -> None:
    async def reads(request: Request, call_next: RequestResponseEndpoint) -> Response:
        assert json.loads(await request.body())["model"] == MODEL
        return await call_next(request)

    app = Starlette(
        routes=[Mount("/qwen", make_gateway())],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=reads)],
    )
    with TestClient(app) as client:
        answer_of(client.post(f"/qwen{CHAT}", json=ask()))
        assert streamed(client.post(f"/qwen{CHAT}", json=ask(stream=True))).is_whole


def test_a_host_sees_the_errors_as_answers_and_not_as_exceptions(
    make_gateway: MakeGateway,
) -> None:
    host = FastAPI()

    @host.exception_handler(Exception)
    async def surprised(request: Request, exc: Exception) -> Response:
        raise AssertionError

    host.mount("/qwen", make_gateway())
    with TestClient(host) as client:
        error_of(client.post(f"/qwen{CHAT}", content=b"{"), 400)
        error_of(client.get("/qwen/none"), 404)


# Lifespans.


@asynccontextmanager
async def noted(events: list[str], name: str, **state: Any) -> AsyncIterator[dict[str, Any]]:
    events.append(f"{name} in")
    try:
        yield state
    finally:
        events.append(f"{name} out")


def test_lifespans_are_entered_in_order_and_left_in_reverse_and_their_state_is_merged(
    make_gateway: MakeGateway,
) -> None:
    events: list[str] = []
    gateway = make_gateway()

    async def states(request: Request) -> Response:
        return Response(json.dumps([request.state.a, request.state.b]))

    lifespan = combine_lifespans(
        lambda app: noted(events, "first", a=1, b=1),
        gateway.lifespan,
        lambda app: noted(events, "last", b=2),
    )
    host = FastAPI(lifespan=lifespan)
    host.add_route("/states", states)
    host.mount("/qwen", gateway)
    with TestClient(host) as client:
        assert events == ["first in", "last in"]
        assert client.get("/states").json() == [1, 2]
        answer_of(client.post(f"/qwen{CHAT}", json=ask()))
    assert events == ["first in", "last in", "last out", "first out"]


def test_what_was_entered_is_left_when_a_later_lifespan_fails() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def fails(app: Any) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    lifespan = combine_lifespans(lambda app: noted(events, "first"), fails)
    client = TestClient(Starlette(lifespan=lifespan))
    with pytest.raises(RuntimeError, match="no database"):
        client.__enter__()
    assert events == ["first in", "first out"]


def test_two_gateways_in_one_host(make_gateway: MakeGateway) -> None:
    one, two = make_gateway(models=(MODEL,)), make_gateway(client_keys=("key",))
    host = Starlette(
        routes=[Mount("/one", one), Mount("/two", two)],
        lifespan=combine_lifespans(one.lifespan, two.lifespan),
    )
    with TestClient(host) as client:
        for _ in range(2):
            assert len(client.get("/one/v1/models").json()["data"]) == 1
            error_of(client.get("/two/v1/models"), 401)
            key = {"authorization": "Bearer key"}
            assert len(client.get("/two/v1/models", headers=key).json()["data"]) == 5


# Other protocols.


@pytest.mark.parametrize("host", ["Starlette", "FastAPI", "middleware around"])
def test_a_websocket_below_the_mount_is_refused(make_gateway: MakeGateway, host: str) -> None:
    make_host, mount = HOSTS[host]
    client = TestClient(make_host(make_gateway(), True))
    socket = client.websocket_connect(f"{mount}/v1/models")
    with pytest.raises(WebSocketDisconnect):
        socket.__enter__()


def test_the_host_s_documents_do_not_change(
    make_gateway: MakeGateway, qwen: SimulatedQwen, gateway_url: GatewayURL
) -> None:
    host = FastAPI()
    before = host.openapi()
    host.mount("/qwen", make_gateway())
    host.openapi_schema = None
    assert host.openapi() == before
