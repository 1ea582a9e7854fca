"""Which lane leads to an upstream: ours, or httpx where a proxy or a given client asks for it.

httpx is imported when it is needed: it takes as long to import as all the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from qwen_asgi.transports import Transport, UpstreamRequest, UpstreamResponse
from qwen_asgi.transports.direct import DirectTransport

if TYPE_CHECKING:
    import httpx


def lane_to(
    url: str,
    *,
    http_client: httpx.AsyncClient | None = None,
    http_proxy: str | None = None,
    https_proxy: str | None = None,
    no_proxy: Sequence[str] = (),
    max_connections: int,
    connect_timeout: float,
) -> Transport:
    """Return a transport for requests to the origin of `url`. It opens nothing yet."""
    proxy = _proxy_to(url, http_proxy, https_proxy, no_proxy)
    if http_client is None and proxy is None:
        return DirectTransport(max_connections=max_connections, connect_timeout=connect_timeout)
    from qwen_asgi.transports.httpx import HttpxTransport

    return HttpxTransport(
        http_client,
        proxy=proxy,
        max_connections=max_connections,
        connect_timeout=connect_timeout,
    )


class LaneByAddress:
    """A transport to addresses that are known only when they are asked for: each request takes the
    lane that `lane_to` has for its own."""

    def __init__(
        self,
        *,
        http_proxy: str | None = None,
        https_proxy: str | None = None,
        no_proxy: Sequence[str] = (),
        max_connections: int,
        connect_timeout: float,
    ) -> None:
        self._proxy_to = partial(
            _proxy_to, http_proxy=http_proxy, https_proxy=https_proxy, no_proxy=no_proxy
        )
        self._new_lane = partial(
            lane_to, max_connections=max_connections, connect_timeout=connect_timeout
        )
        self._by_proxy: dict[str | None, Transport] = {}

    def open(
        self, request: UpstreamRequest, *, within: float
    ) -> AbstractAsyncContextManager[UpstreamResponse]:
        proxy = self._proxy_to(request.url)
        lane = self._by_proxy.get(proxy)
        if lane is None:
            lane = self._new_lane(request.url, http_proxy=proxy, https_proxy=proxy)
            self._by_proxy[proxy] = lane
        return lane.open(request, within=within)

    async def aclose(self) -> None:
        for lane in self._by_proxy.values():
            await lane.aclose()


def _proxy_to(
    url: str, http_proxy: str | None, https_proxy: str | None, no_proxy: Sequence[str]
) -> str | None:
    """Return the proxy on the way to an address; None where none is."""
    proxy = https_proxy if urlsplit(url).scheme == "https" else http_proxy
    return None if proxy is None or _goes_without_proxy(url, no_proxy) else proxy


def _goes_without_proxy(url: str, no_proxy: Sequence[str]) -> bool:
    """NO_PROXY as Python's own library reads it: hosts and domains, with or without port; `*`."""
    if not no_proxy:
        return False
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

    return bool(proxy_bypass_environment(urlsplit(url).netloc, {"no": ",".join(no_proxy)}))
