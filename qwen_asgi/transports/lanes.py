"""Which lane leads to an upstream: ours, or httpx where a proxy or a given client asks for it.

httpx is imported when it is needed: it takes as long to import as all the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from qwen_asgi.transports import Transport
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
    proxy = https_proxy if urlsplit(url).scheme == "https" else http_proxy
    if http_client is None and (proxy is None or _goes_without_proxy(url, no_proxy)):
        return DirectTransport(max_connections=max_connections, connect_timeout=connect_timeout)
    from qwen_asgi.transports.httpx import HttpxTransport

    return HttpxTransport(
        http_client,
        proxy=proxy,
        max_connections=max_connections,
        connect_timeout=connect_timeout,
    )


def _goes_without_proxy(url: str, no_proxy: Sequence[str]) -> bool:
    """NO_PROXY as Python's own library reads it: hosts and domains, with or without port; `*`."""
    if not no_proxy:
        return False
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

    return bool(proxy_bypass_environment(urlsplit(url).netloc, {"no": ",".join(no_proxy)}))
