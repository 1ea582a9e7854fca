"""From settings to the parts of a gateway.

One upstream stands alone: nothing is between a chat and it. Of several, each has the layers that
`qwen_asgi.layers` names, and each model the upstreams that serve it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen_asgi.catalog import ABILITIES, Catalog, Route
from qwen_asgi.chat import Upstream
from qwen_asgi.layers.breaker import Breaker
from qwen_asgi.layers.fallback import Candidate, Fallback
from qwen_asgi.layers.json_answer import JSONAnswers
from qwen_asgi.layers.limit import Limit
from qwen_asgi.layers.named import Named
from qwen_asgi.layers.retry import Retry, RetryBudget
from qwen_asgi.layers.stop import StopSequences
from qwen_asgi.layers.target import Target
from qwen_asgi.layers.tools import EmulatedTools
from qwen_asgi.model_list import ModelList
from qwen_asgi.setting_types import revealed
from qwen_asgi.settings import Settings
from qwen_asgi.transports import Transport
from qwen_asgi.transports.lanes import lane_to
from qwen_asgi.upstream_settings import RouteSettings, Step, UpstreamSettings
from qwen_asgi.upstreams.call import HTTPUpstream, Reached, Timeouts
from qwen_asgi.upstreams.model_studio import ModelStudio
from qwen_asgi.upstreams.openai_compatible import OpenAICompatible
from qwen_asgi.upstreams.qwen_web_v1 import QwenWebV1
from qwen_asgi.upstreams.qwen_web_v2 import QwenWebV2
from qwen_asgi.upstreams.stored_chats import StoredChats

if TYPE_CHECKING:
    import httpx

ALONE = "upstream"
"""The name of an upstream that is the only one."""


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
    ) -> None:
        """`transports` are those that are to be closed with it."""
        self.settings = settings
        self.several = several
        """The settings of each of `upstreams`."""
        self.catalog = catalog
        self.upstreams = upstreams
        self.lists = lists
        """What each of `upstreams` told of its models."""
        self._transports = transports
        self._chats = 0
        self._is_retired = False
        self._closing: list[asyncio.Task[None]] = []

    def __enter__(self) -> Wired:
        """Begin to use it: it stays open meanwhile, though it be replaced."""
        self._chats += 1
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

    @property
    def is_closed(self) -> bool:
        """Whether it was replaced, and nobody uses it any more."""
        return self._is_retired and not self._chats and all(c.done() for c in self._closing)

    async def aclose(self) -> None:
        """Close what is open in the running loop. What is asked for later opens anew."""
        for upstream in self.upstreams.values():
            await upstream.aclose()
        for transport in self._transports:
            await transport.aclose()

    def _close_soon(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # Its connections ended with the loop that they were of.
            return
        closing = loop.create_task(self.aclose(), name="qwen_asgi close")
        self._closing.append(closing)


def wire(
    settings: Settings,
    *,
    transport: Transport | None = None,
    http_client: httpx.AsyncClient | None = None,
    before: Wired | None = None,
) -> Wired:
    """Put the parts together; nothing is opened yet. `transport` is used and never closed.

    What upstreams told of their models `before` is still known, where it is the same that is asked.
    """
    several = settings.upstreams or {ALONE: _the_one(settings)}
    upstreams: dict[str, HTTPUpstream | StoredChats] = {}
    transports = []
    for name, its in several.items():
        lane = transport or _lane(its, settings, http_client)
        if transport is None:
            transports.append(lane)
        upstreams[name] = _upstream(its, lane, _timeouts(its, settings))
    lists = {name: _model_list(several[name], upstream) for name, upstream in upstreams.items()}
    for name, models in lists.items():
        if before and name in before.lists and _whom(before.several[name]) == _whom(several[name]):
            models.take_over(before.lists[name])
    asked = {name: _asked(several[name], upstream) for name, upstream in upstreams.items()}
    if not settings.upstreams:
        only = asked[ALONE]
        catalog = Catalog(lists, lambda model, names: only)
    else:
        routing = _Routing(settings, asked)
        catalog = Catalog(lists, routing.serve, routing.routes())
    return Wired(settings, several, catalog, upstreams, transports, lists)


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


def _timeouts(its: UpstreamSettings, settings: Settings) -> Timeouts:
    return Timeouts(
        first=its.first_timeout or settings.first_timeout,
        idle=its.idle_timeout or settings.idle_timeout,
        total=its.total_timeout,
    )


def _upstream(
    its: UpstreamSettings, transport: Transport, timeouts: Timeouts
) -> HTTPUpstream | StoredChats:
    url, key = its.base_url, revealed(its.api_key) or ""
    headers = {name: value.get_secret_value() for name, value in its.headers.items()}
    match its.dialect:
        case "qwen-web-v1":
            v1 = QwenWebV1(url, key, incremental=its.incremental, headers=headers)
            return HTTPUpstream(v1, transport, timeouts)
        case "qwen-web-v2":
            v2 = QwenWebV2(url, key, headers=headers)
            return StoredChats(v2, transport, timeouts, keep=its.keep_chats)
        case "model-studio":
            return HTTPUpstream(ModelStudio(url, key, headers=headers), transport, timeouts)
        case "openai":
            return HTTPUpstream(OpenAICompatible(url, key, headers=headers), transport, timeouts)


def _asked(its: UpstreamSettings, upstream: Upstream) -> Upstream:
    """Return the upstream with what its dialect lacks put around it."""
    if its.dialect in ("qwen-web-v1", "qwen-web-v2"):
        return JSONAnswers(StopSequences(EmulatedTools(upstream, form=its.tool_form)))
    return upstream


def _model_list(its: UpstreamSettings, upstream: Reached) -> ModelList:
    models = ("*",) if its.models == "upstream" else its.models
    return ModelList(models, upstream.models, upstream.reader.describe)


@dataclass(frozen=True, slots=True)
class _Guarded:
    """An upstream with the layers that all its models share."""

    name: str
    upstream: Upstream
    limit: Limit
    budget: RetryBudget
    retries: int

    def as_target(self, model: str, route: RouteSettings) -> Upstream:
        target: Upstream = Target(
            self.upstream, model=model, defaults=route.defaults, forced=route.forced
        )
        if not self.retries:
            return target
        return Retry(target, times=self.retries, budget=self.budget, name=self.name)


class _Routing:
    """Makes what answers for a model out of several upstreams."""

    def __init__(self, settings: Settings, upstreams: Mapping[str, Upstream]) -> None:
        self._settings = settings
        self._guarded = {
            name: _guarded(name, upstreams[name], its) for name, its in settings.upstreams.items()
        }

    def routes(self) -> dict[str, Route]:
        return {
            model: Route(
                to=tuple(dict.fromkeys(step.upstream for step in route.to)),
                info={
                    name: value
                    for name in ("context", *ABILITIES)
                    if (value := getattr(route, name)) is not None
                },
            )
            for model, route in self._settings.routes.items()
        }

    def serve(self, model: str, names: tuple[str, ...]) -> Upstream:
        route = self._settings.routes.get(model) or RouteSettings()
        steps = route.to or tuple(Step(upstream=name) for name in names)
        candidates = [self._candidate(model, step, route) for step in steps]
        return Fallback(
            candidates,
            choose=route.choose,
            on=route.fallback_on,
            total=self._settings.total_timeout,
        )

    def _candidate(self, model: str, step: Step, route: RouteSettings) -> Candidate:
        guarded = self._guarded[step.upstream]
        its_name = step.model or (route.model if route.to else None) or model
        target = guarded.as_target(its_name, route)
        return Candidate(step.upstream, target, step.weight, lambda: guarded.limit.busy)


def _guarded(name: str, upstream: Upstream, its: UpstreamSettings) -> _Guarded:
    limit = Limit(
        Named(upstream, name),
        its.max_concurrent,
        queue=its.queue,
        patience=its.queue_timeout,
        name=name,
    )
    guarded: Upstream = limit
    if its.breaker_failures:
        guarded = Breaker(
            limit, failures=its.breaker_failures, seconds=its.breaker_seconds, name=name
        )
    return _Guarded(name, guarded, limit, RetryBudget(its.retry_share), its.retries)
