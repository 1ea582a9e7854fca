"""From settings to the parts of a gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen_asgi.catalog import Catalog
from qwen_asgi.settings import Settings, revealed
from qwen_asgi.transports import Transport
from qwen_asgi.transports.lanes import lane_to
from qwen_asgi.upstreams import Dialect
from qwen_asgi.upstreams.call import HTTPUpstream, Timeouts
from qwen_asgi.upstreams.model_studio import ModelStudio
from qwen_asgi.upstreams.openai_compatible import OpenAICompatible
from qwen_asgi.upstreams.qwen_web_v1 import QwenWebV1

if TYPE_CHECKING:
    import httpx


def make_transport(settings: Settings, http_client: httpx.AsyncClient | None) -> Transport:
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


def make_catalog(settings: Settings, transport: Transport) -> Catalog:
    """Return the models, each with the upstream that serves it."""
    timeouts = Timeouts(
        first=settings.first_timeout, idle=settings.idle_timeout, total=settings.total_timeout
    )
    upstream = HTTPUpstream(_dialect(settings), transport, timeouts)
    if settings.models == "upstream":
        return Catalog(upstream, read=upstream.models)
    return Catalog(upstream, settings.models)


def _dialect(settings: Settings) -> Dialect:
    key = revealed(settings.api_key) or ""
    match settings.upstream:
        case "qwen-web-v1":
            return QwenWebV1(
                settings.base_url,
                key,
                incremental=settings.incremental,
                headers=settings.headers,
            )
        case "model-studio":
            return ModelStudio(settings.base_url, key, headers=settings.headers)
        case "openai":
            return OpenAICompatible(settings.base_url, key, headers=settings.headers)
