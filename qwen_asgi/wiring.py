"""From settings to the parts of a gateway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwen_asgi.catalog import Catalog
from qwen_asgi.settings import Settings, revealed
from qwen_asgi.transports import Transport
from qwen_asgi.transports.lanes import lane_to
from qwen_asgi.upstreams.call import HTTPUpstream, Reached, Timeouts
from qwen_asgi.upstreams.model_studio import ModelStudio
from qwen_asgi.upstreams.openai_compatible import OpenAICompatible
from qwen_asgi.upstreams.qwen_web_v1 import QwenWebV1
from qwen_asgi.upstreams.qwen_web_v2 import QwenWebV2
from qwen_asgi.upstreams.stored_chats import StoredChats

if TYPE_CHECKING:
    import httpx


class Wired:
    """What chats go through, made of one set of settings."""

    def __init__(
        self, catalog: Catalog, upstreams: Sequence[Reached], transports: Sequence[Transport]
    ) -> None:
        """`transports` are those that are to be closed with it."""
        self.catalog = catalog
        self._upstreams = upstreams
        self._transports = transports

    async def aclose(self) -> None:
        """Close what is open in the running loop. What is asked for later opens anew."""
        for upstream in self._upstreams:
            await upstream.aclose()
        for transport in self._transports:
            await transport.aclose()


def wire(
    settings: Settings,
    *,
    transport: Transport | None = None,
    http_client: httpx.AsyncClient | None = None,
) -> Wired:
    """Put the parts together; nothing is opened yet. `transport` is used and never closed."""
    timeouts = Timeouts(
        first=settings.first_timeout, idle=settings.idle_timeout, total=settings.total_timeout
    )
    lane = transport or _make_transport(settings, http_client)
    upstream = _upstream(settings, lane, timeouts)
    if settings.models == "upstream":
        catalog = Catalog(upstream, read=upstream.models)
    else:
        catalog = Catalog(upstream, settings.models)
    return Wired(catalog, [upstream], [lane] if transport is None else [])


def _make_transport(settings: Settings, http_client: httpx.AsyncClient | None) -> Transport:
    """Return the lane to the upstream, which opens nothing yet."""
    return lane_to(
        settings.base_url,
        http_client=http_client,
        http_proxy=revealed(settings.http_proxy),
        https_proxy=revealed(settings.https_proxy),
        no_proxy=settings.no_proxy,
        max_connections=settings.max_connections,
        connect_timeout=settings.connect_timeout,
    )


def _upstream(
    settings: Settings, transport: Transport, timeouts: Timeouts
) -> HTTPUpstream | StoredChats:
    url, key, headers = settings.base_url, revealed(settings.api_key) or "", settings.headers
    match settings.upstream:
        case "qwen-web-v1":
            v1 = QwenWebV1(url, key, incremental=settings.incremental, headers=headers)
            return HTTPUpstream(v1, transport, timeouts)
        case "qwen-web-v2":
            v2 = QwenWebV2(url, key, headers=headers)
            return StoredChats(v2, transport, timeouts, keep=settings.keep_chats)
        case "model-studio":
            return HTTPUpstream(ModelStudio(url, key, headers=headers), transport, timeouts)
        case "openai":
            return HTTPUpstream(OpenAICompatible(url, key, headers=headers), transport, timeouts)
