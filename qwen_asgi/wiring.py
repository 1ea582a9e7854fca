"""From settings to the parts of a gateway.

One upstream stands alone: nothing is between a chat and it. Of several, each has the layers that
`qwen_asgi.layers` names, and each model the upstreams that serve it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from qwen_asgi.catalog import Catalog
from qwen_asgi.chat import Upstream
from qwen_asgi.layers.drain import Drains
from qwen_asgi.layers.estimated_usage import EstimatedUsage
from qwen_asgi.layers.json_answer import JSONAnswers
from qwen_asgi.layers.stop import StopSequences
from qwen_asgi.layers.token_limit import TokenLimit
from qwen_asgi.layers.tools import EmulatedTools
from qwen_asgi.model_list import ModelList
from qwen_asgi.routing import Guarded, Routing, as_asked
from qwen_asgi.setting_types import revealed
from qwen_asgi.settings import Settings
from qwen_asgi.transports import Transport
from qwen_asgi.transports.lanes import LaneByAddress, lane_to
from qwen_asgi.upstream_settings import RouteSettings, UpstreamSettings
from qwen_asgi.upstreams.call import CLOSING_SECONDS, HTTPUpstream, Reached, Timeouts
from qwen_asgi.upstreams.model_studio import ModelStudio
from qwen_asgi.upstreams.openai_compatible import OpenAICompatible
from qwen_asgi.upstreams.qwen_web_v1 import QwenWebV1
from qwen_asgi.upstreams.qwen_web_v2 import QwenWebV2
from qwen_asgi.upstreams.stored_chats import StoredChats
from qwen_asgi.upstreams.uploads import FileReader, Uploads

if TYPE_CHECKING:
    import httpx

ALONE = "upstream"
"""The name of an upstream that is the only one."""

RETIRING_SECONDS = 60.0
"""What removals of chats have when other settings are in use."""


class Wired:
    """What chats go through, made of one set of settings."""

    def __init__(
        self,
        settings: Settings,
        several: Mapping[str, UpstreamSettings],
        catalog: Catalog,
        upstreams: Mapping[str, HTTPUpstream | StoredChats],
        transports: Sequence[Transport],
        lists: Mapping[str, ModelList],
        guarded: Sequence[Guarded],
        drains: Drains,
    ) -> None:
        """`transports` are those that are to be closed with it."""
        self.settings = settings
        self.several = several
        """The settings of each of `upstreams`."""
        self.catalog = catalog
        self.upstreams = upstreams
        self.lists = lists
        """What each of `upstreams` told of its models."""
        self.guarded = guarded
        """The upstreams with their layers, of these settings and, where chats are under way there,
        of earlier ones."""
        self._drains = drains
        self._transports = transports
        self._chats = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        """Where it was used last."""
        self._is_retired = False
        self._closings = 0
        """How often it is being closed just now."""
        self._closing: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Wired:
        """Begin to use it: it stays open meanwhile, though it be replaced."""
        self._chats += 1
        self._loop = asyncio.get_running_loop()
        return self

    def __exit__(self, *raised: object) -> None:
        self._chats -= 1
        if self._is_retired and not self._chats:
            self._close_soon()

    def retire(self) -> None:
        """Close it when those who use it now are done."""
        self._is_retired = True
        if not self._chats:
            self._close_soon()

    def begin_to_end(self) -> None:
        """Read on no answer any more whose client leaves, or is left."""
        self._drains.is_closed = True

    @property
    def is_closed(self) -> bool:
        """Whether it was replaced, and nobody uses it any more."""
        is_over = self._loop is None or self._loop.is_closed()
        return self._is_retired and not self._chats and (is_over or not self._closings)

    async def aclose(self, within: float = CLOSING_SECONDS) -> None:
        """Close what is open in the running loop. What is asked for later opens anew.

        What upstreams still have to do has that many seconds.
        """
        ends = [upstream.aclose(within) for upstream in self.upstreams.values()]
        await asyncio.gather(self._drains.aclose(within), *ends)
        await asyncio.gather(*(transport.aclose() for transport in self._transports))

    def _close_soon(self) -> None:
        """Close it in its loop, from whatever thread this is."""
        if self._loop is not None:
            # A loop that has ended has ended its connections.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._begin_to_close)
                self._closings += 1

    def _begin_to_close(self) -> None:
        loop = asyncio.get_running_loop()
        closing = loop.create_task(self.aclose(RETIRING_SECONDS), name="qwen_asgi close")
        self._closing.add(closing)
        closing.add_done_callback(self._has_closed)

    def _has_closed(self, closing: asyncio.Task[None]) -> None:
        self._closing.discard(closing)
        self._closings -= 1


def wire(
    settings: Settings,
    *,
    transport: Transport | None = None,
    http_client: httpx.AsyncClient | None = None,
    before: Wired | None = None,
) -> Wired:
    """Put the parts together; nothing is opened yet. `transport` is used and never closed.

    What upstreams told of their models `before` is still known, where it is the same that is asked,
    and who is asking them now is still counted.
    """
    several = settings.upstreams or {ALONE: _the_one(settings)}
    upstreams: dict[str, HTTPUpstream | StoredChats] = {}
    transports: list[Transport] = []
    for name, its in several.items():
        lane = transport or _lane(its, settings, http_client)
        if transport is None:
            transports.append(lane)
        storage = transport or _storage_lane(its, settings, http_client)
        if transport is None:
            transports.append(storage)
        upstreams[name] = _upstream(its, lane, storage, settings)
    lists = _lists(several, upstreams, before)
    asked = {
        name: _asked(several[name], settings, upstream) for name, upstream in upstreams.items()
    }
    drains = Drains()
    if not settings.upstreams:
        only = as_asked(asked[ALONE], settings, RouteSettings(), drains)
        catalog = Catalog(lists, lambda model, names: only)
        busy = _still_busy(before, {})
        return Wired(settings, several, catalog, upstreams, transports, lists, busy, drains)
    guarded = _guarded(settings, asked, before)
    routing = Routing(settings, guarded, drains)
    catalog = Catalog(lists, routing.serve, routing.routes())
    known = [*guarded.values(), *_still_busy(before, guarded)]
    return Wired(settings, several, catalog, upstreams, transports, lists, known, drains)


def _lists(
    several: Mapping[str, UpstreamSettings],
    upstreams: Mapping[str, Reached],
    before: Wired | None,
) -> dict[str, ModelList]:
    lists = {name: _model_list(several[name], upstream) for name, upstream in upstreams.items()}
    for name, models in lists.items():
        if before and name in before.lists and _whom(before.several[name]) == _whom(several[name]):
            models.take_over(before.lists[name])
    return lists


def _guarded(
    settings: Settings, asked: Mapping[str, Upstream], before: Wired | None
) -> dict[str, Guarded]:
    known = before.guarded if before else ()
    return {
        name: Guarded(
            name, asked[name], its, how=_how(its, settings), before=_same(name, its, known)
        )
        for name, its in settings.upstreams.items()
    }


def _same(name: str, its: UpstreamSettings, known: Sequence[Guarded]) -> Guarded | None:
    """Return the one at the same address: of several there, the one of this name."""
    there = [one for one in known if _where(one.its) == _where(its)]
    named = [one for one in there if one.name == name]
    return next(iter(named or (there if len(there) == 1 else ())), None)


def _still_busy(before: Wired | None, guarded: Mapping[str, Guarded]) -> list[Guarded]:
    """Return those of earlier settings that nobody has taken over, and that may come back."""
    taken = {one.turns for one in guarded.values()}
    known = before.guarded if before else ()
    return [one for one in known if one.turns not in taken and one.turns.busy]


def _where(its: UpstreamSettings) -> tuple[object, ...]:
    """Return which upstream it is that is asked, whoever asks it for whatever."""
    return its.dialect, its.base_url


def _how(its: UpstreamSettings, settings: Settings) -> tuple[object, ...]:
    """Return all that a failure to reach an upstream may come from."""
    proxies = settings.http_proxy, settings.https_proxy, settings.no_proxy
    waits = _timeouts(its, settings), its.connect_timeout or settings.connect_timeout
    return *_whom(its), *proxies, *waits


def _whom(its: UpstreamSettings) -> tuple[object, ...]:
    """Return who is asked for models, as whom, and for which."""
    return its.dialect, its.base_url, its.api_key, its.headers, its.models


def _the_one(settings: Settings) -> UpstreamSettings:
    """Return the settings of the only upstream, as one of several would have them."""
    return UpstreamSettings(
        dialect=settings.upstream,
        base_url=settings.base_url,
        api_key=settings.api_key,
        models=settings.models,
        incremental=settings.incremental,
        keep_chats=settings.keep_chats,
        tool_form=settings.tool_form,
        json_repair=settings.json_repair,
        uploads=settings.uploads,
        headers=settings.headers,
        total_timeout=settings.total_timeout,
    )


def _lane(
    its: UpstreamSettings, settings: Settings, http_client: httpx.AsyncClient | None
) -> Transport:
    return lane_to(
        its.base_url,
        http_client=http_client,
        http_proxy=revealed(settings.http_proxy),
        https_proxy=revealed(settings.https_proxy),
        no_proxy=settings.no_proxy,
        max_connections=its.max_connections or settings.max_connections,
        connect_timeout=its.connect_timeout or settings.connect_timeout,
    )


def _storage_lane(
    its: UpstreamSettings, settings: Settings, http_client: httpx.AsyncClient | None
) -> Transport:
    """Return the lane to wherever an upstream keeps its files."""
    if http_client is not None:
        return _lane(its, settings, http_client)
    return LaneByAddress(
        http_proxy=revealed(settings.http_proxy),
        https_proxy=revealed(settings.https_proxy),
        no_proxy=settings.no_proxy,
        max_connections=its.max_connections or settings.max_connections,
        connect_timeout=its.connect_timeout or settings.connect_timeout,
    )


def _timeouts(its: UpstreamSettings, settings: Settings) -> Timeouts:
    return Timeouts(
        first=its.first_timeout or settings.first_timeout,
        idle=its.idle_timeout or settings.idle_timeout,
        total=its.total_timeout,
    )


def _upstream(
    its: UpstreamSettings, transport: Transport, storage: Transport, settings: Settings
) -> HTTPUpstream | StoredChats:
    url, key = its.base_url, revealed(its.api_key) or ""
    headers = {name: value.get_secret_value() for name, value in its.headers.items()}
    timeouts = _timeouts(its, settings)

    def files(dialect: FileReader) -> Uploads | None:
        if its.uploads == "off":
            return None
        hosts = its.upload_hosts or settings.upload_hosts
        return Uploads(dialect, transport, timeouts, way=its.uploads, storage=storage, hosts=hosts)

    match its.dialect:
        case "qwen-web-v1":
            v1 = QwenWebV1(url, key, incremental=its.incremental, headers=headers)
            return HTTPUpstream(v1, transport, timeouts, files=files(v1))
        case "qwen-web-v2":
            v2 = QwenWebV2(url, key, headers=headers)
            keep = its.keep_chats
            return StoredChats(v2, transport, timeouts, keep=keep, files=files(v2))
        case "model-studio":
            return HTTPUpstream(ModelStudio(url, key, headers=headers), transport, timeouts)
        case "openai":
            return HTTPUpstream(OpenAICompatible(url, key, headers=headers), transport, timeouts)


def _asked(its: UpstreamSettings, settings: Settings, upstream: Upstream) -> Upstream:
    """Return the upstream with what its dialect lacks put around it."""
    if its.dialect in ("qwen-web-v1", "qwen-web-v2"):
        tools = EmulatedTools(TokenLimit(upstream), form=its.tool_form)
        upstream = JSONAnswers(StopSequences(tools), repairs=its.json_repair)
    return EstimatedUsage(upstream) if settings.estimate_usage else upstream


def _model_list(its: UpstreamSettings, upstream: Reached) -> ModelList:
    models = ("*",) if its.models == "upstream" else its.models
    return ModelList(models, upstream.models, upstream.reader.describe)
