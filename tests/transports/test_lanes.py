"""Which lane leads to an upstream, with a real proxy in the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from qwen_asgi import Settings
from qwen_asgi.testing import SimulatedQwen, serve
from qwen_asgi.transports import UpstreamRequest
from qwen_asgi.transports.direct import DirectTransport
from qwen_asgi.transports.httpx import HttpxTransport
from qwen_asgi.transports.lanes import LaneByAddress, lane_to
from tests.conftest import UPSTREAM_KEY, GatewayURL, answer_of, ask

LIMITS: dict[str, Any] = {"max_connections": 10, "connect_timeout": 1.0}
PROXY = "http://127.0.0.1:3128"


@pytest.mark.parametrize(
    ("url", "options", "lane"),
    [
        ("https://qwen.example", {}, DirectTransport),
        ("https://qwen.example", {"https_proxy": PROXY}, HttpxTransport),
        ("https://qwen.example", {"http_proxy": PROXY}, DirectTransport),
        ("http://qwen.example", {"http_proxy": PROXY}, HttpxTransport),
        ("http://qwen.example", {"https_proxy": PROXY}, DirectTransport),
        ("https://qwen.example", {"https_proxy": PROXY, "no_proxy": ["*"]}, DirectTransport),
        ("https://a.qwen.example", {"https_proxy": PROXY, "no_proxy": ["x", "qwen.example"]},
         DirectTransport),
        ("https://a.qwen.example:444", {"https_proxy": PROXY, "no_proxy": [".qwen.example"]},
         DirectTransport),
        ("https://notqwen.example", {"https_proxy": PROXY, "no_proxy": ["qwen.example"]},
         HttpxTransport),
        ("http://127.0.0.1:8000", {"http_proxy": PROXY, "no_proxy": ["127.0.0.1"]},
         DirectTransport),
    ],
)  # fmt: skip
def test_the_direct_lane_is_taken_unless_there_is_a_proxy(
    url: str, options: dict[str, Any], lane: type
) -> None:
    assert type(lane_to(url, **LIMITS, **options)) is lane


def test_a_given_client_is_used_as_it_is() -> None:
    given = httpx.AsyncClient()
    lane = lane_to("https://qwen.example", http_client=given, https_proxy=PROXY, **LIMITS)
    assert isinstance(lane, HttpxTransport)


@pytest.mark.anyio
@pytest.mark.parametrize("no_proxy", [(), ("127.0.0.1",)])
async def test_each_address_takes_the_lane_that_is_its_own(
    qwen: SimulatedQwen,
    qwen_url: str,
    proxy: tuple[ForwardProxy, str],
    no_proxy: tuple[str, ...],
) -> None:
    lanes = LaneByAddress(http_proxy=proxy[1], no_proxy=no_proxy, **LIMITS)
    headers = {"authorization": f"Bearer {UPSTREAM_KEY}"}
    for _ in range(2):
        request = UpstreamRequest(
            method="POST", url=f"{qwen_url}/api/v2/files/parse", headers=headers
        )
        async with lanes.open(request, within=5) as response:
            assert response.status == 200
            while await response.read(within=5):
                pass
    assert len(qwen.requests) == 2
    assert len(proxy[0].asked) == (0 if no_proxy else 2)
    await lanes.aclose()


class ForwardProxy:
    """Answers in the place of the origin that it is asked for, and notes what it was asked."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.asked: list[str] = []
        self.credentials: list[str | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {str(k, "latin-1"): str(v, "latin-1") for k, v in scope["headers"]}
        self.asked.append(headers["host"])
        self.credentials.append(headers.pop("proxy-authorization", None))
        async with httpx.AsyncClient(trust_env=False, verify=False) as client:
            path = httpx.URL(scope["path"]).path
            answer = await client.post(self.upstream + path, content=body, headers=headers)
        kind = answer.headers["content-type"].encode()
        await send(
            {
                "type": "http.response.start",
                "status": answer.status_code,
                "headers": [(b"content-type", kind)],
            }
        )
        await send({"type": "http.response.body", "body": answer.content})


@pytest.fixture
def proxy(qwen_url: str) -> Iterator[tuple[ForwardProxy, str]]:
    proxy = ForwardProxy(qwen_url)
    with serve(proxy, lifespan="off") as url:
        yield proxy, url


def from_env(qwen_url: str, **variables: str) -> dict[str, Any]:
    settings = Settings.from_env({"QWEN_BASE_URL": qwen_url, **variables})
    return {name: getattr(settings, name) for name in ("http_proxy", "no_proxy")}


@pytest.mark.usefixtures("qwen")
def test_a_chat_goes_through_the_proxy_that_the_environment_names(
    gateway_url: GatewayURL, http: httpx.Client, proxy: tuple[ForwardProxy, str], qwen_url: str
) -> None:
    address = proxy[1].replace("http://", "http://user:secret@")
    url = gateway_url(api_key=UPSTREAM_KEY, **from_env(qwen_url, HTTP_PROXY=address))
    answer_of(http.post(f"{url}/v1/chat/completions", json=ask()))
    assert proxy[0].asked == [httpx.URL(qwen_url).netloc.decode()]
    assert proxy[0].credentials[0] is not None


@pytest.mark.usefixtures("qwen")
def test_a_chat_goes_by_the_proxy_where_the_environment_says_so(
    gateway_url: GatewayURL, http: httpx.Client, proxy: tuple[ForwardProxy, str], qwen_url: str
) -> None:
    url = gateway_url(**from_env(qwen_url, HTTP_PROXY=proxy[1], NO_PROXY="127.0.0.1"))
    answer_of(http.post(f"{url}/v1/chat/completions", json=ask()))
    assert proxy[0].asked == []


@pytest.mark.usefixtures("qwen")
def test_the_process_s_environment_is_not_read_by_a_gateway_by_itself(
    gateway_url: GatewayURL,
    http: httpx.Client,
    proxy: tuple[ForwardProxy, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy[1])
    answer_of(http.post(f"{gateway_url()}/v1/chat/completions", json=ask()))
    assert proxy[0].asked == []
