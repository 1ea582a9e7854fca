"""Public model names: which there are, who serves them, and the documents that list them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic_core import to_json

from qwen_asgi.chat import ModelInfo, Upstream
from qwen_asgi.errors import ModelNotFound, NoSuchModel, QwenASGIError, UpstreamTimeout
from qwen_asgi.model_list import ModelList, hear

logger = logging.getLogger(__name__)

CREATED = 0
"""When a model was made is not known; OpenAI's schema asks for a number."""

ABILITIES = ("thinking", "tools", "vision", "stream_only")

PATIENCE_SECONDS = 1.0
"""How long a list may take to come, where another one is there that will do."""

MOST_ROUTES = 10_000
"""Routes that are kept made; there are more only where lists of models change all the time."""


@dataclass(frozen=True, slots=True)
class Route:
    """A public name that the settings speak of."""

    to: tuple[str, ...] = ()
    """Upstreams by name; empty for all whose lists hold the name."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """What is set of the model, by the names of `ModelInfo`."""


class Catalog:
    """The models of all upstreams, by public name."""

    def __init__(
        self,
        lists: Mapping[str, ModelList],
        serve: Callable[[str, tuple[str, ...]], Upstream],
        routes: Mapping[str, Route] | None = None,
    ) -> None:
        """`lists` are by the names of the upstreams, in their order. `serve` makes what answers for
        a model out of the upstreams that have it."""
        self._lists = lists
        self._serve = serve
        self._routes = routes or {}
        self._made: dict[tuple[str, tuple[str, ...]], Upstream] = {}
        self._certain: dict[str, Upstream] = {}
        """Of the models that no list need be read for."""
        for model in self._names_that_are_set():
            names = self._certain_upstreams(model)
            if names:
                self._certain[model] = self._upstream(model, names)

    def certain(self, model: str) -> Upstream | None:
        """Return who serves `model`, if no list need be read to tell."""
        return self._certain.get(model)

    async def resolve(self, model: str) -> Upstream:
        """Return who serves `model`. Raises ModelNotFound; UpstreamError if there is no list."""
        certain = self._certain.get(model)
        if certain is not None:
            return certain
        names, _ = await self._served(model)
        if not names:
            raise ModelNotFound(_unknown(model), param="model")
        return self._upstream(model, names)

    async def document(self) -> bytes:
        """Return the body of `GET /v1/models`. Raises UpstreamError where no list is known."""
        found: dict[str, ModelInfo] = {}
        told, errors = await _told(self._lists)
        if errors and not told:
            raise next(iter(errors.values()))
        for name, error in errors.items():
            logger.warning("the list of models lacks those of %s: %s", name, error)
        for models in told.values():
            for name, info in models.items():
                found.setdefault(name, info)
        for name, route in self._routes.items():
            if route.to or name in found:
                found[name] = _with(found.get(name) or ModelInfo(name), route)
        return to_json({"object": "list", "data": [_entry(info) for info in found.values()]})

    async def model_document(self, model: str) -> bytes:
        """Return the body of `GET /v1/models/{model}`. Raises NoSuchModel."""
        route = self._routes.get(model)
        names, info = await self._served(model)
        if not names:
            raise NoSuchModel(_unknown(model), param="model")
        return to_json(_entry(_with(info, route) if route else info))

    def _names_that_are_set(self) -> list[str]:
        fixed = [name for models in self._lists.values() for name in models.fixed]
        return list(dict.fromkeys([*self._routes, *fixed]))

    def _certain_upstreams(self, model: str) -> tuple[str, ...]:
        """Return the upstreams of `model` if no list need be read to tell."""
        route = self._routes.get(model)
        if route and route.to:
            return route.to
        may = [name for name, models in self._lists.items() if models.may_have(model)]
        is_certain = all(model in self._lists[name].fixed for name in may)
        return tuple(may) if is_certain else ()

    def _upstream(self, model: str, names: tuple[str, ...]) -> Upstream:
        upstream = self._made.get((model, names))
        if upstream is None:
            if len(self._made) >= MOST_ROUTES:
                self._made.clear()
            upstream = self._made[model, names] = self._serve(model, names)
        return upstream

    async def _served(self, model: str) -> tuple[tuple[str, ...], ModelInfo]:
        """Return the upstreams that serve `model`, and what is known of it.

        Raises UpstreamError if there is none, but one that may serve it could not tell.
        """
        route = self._routes.get(model)
        if route and route.to:
            known = (models.known.get(model) for models in self._lists.values())
            return route.to, next(filter(None, known), ModelInfo(model))
        may = {name: models for name, models in self._lists.items() if models.may_have(model)}
        told, errors = await _told(may, lambda told: model in told)
        names = tuple(name for name, models in told.items() if model in models)
        if not names and errors:
            raise next(iter(errors.values()))
        if not names:
            return (), ModelInfo(model)
        return names, told[names[0]][model]


async def _told(
    lists: Mapping[str, ModelList],
    is_enough: Callable[[Mapping[str, ModelInfo]], bool] = bool,
) -> tuple[dict[str, Mapping[str, ModelInfo]], dict[str, QwenASGIError]]:
    """Return the lists that could be read, and why others could not, each by upstream.

    Once one of them is enough the others have PATIENCE_SECONDS, since they began to be read: no
    upstream that hangs keeps those that work from their clients. It goes on being read.
    """
    loop = asyncio.get_running_loop()
    readings = {name: loop.create_task(models.models()) for name, models in lists.items()}
    for reading in readings.values():
        # A client that leaves meanwhile asks for none of their outcomes.
        reading.add_done_callback(hear)
    pending, left = set(readings.values()), None
    try:
        while pending and (left is None or left > 0):
            done, pending = await asyncio.wait(
                pending, timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
            if left is not None or any(_is_told(r) and is_enough(r.result()) for r in done):
                late = [lists[name] for name, reading in readings.items() if reading in pending]
                left = PATIENCE_SECONDS - min((m.reading_for for m in late), default=0)
    finally:
        for reading in pending:
            reading.cancel()
    told: dict[str, Mapping[str, ModelInfo]] = {}
    errors: dict[str, QwenASGIError] = {}
    for name, reading in readings.items():
        if reading in pending:
            errors[name] = UpstreamTimeout("the upstream has not told its models yet")
        elif isinstance(error := reading.exception(), QwenASGIError):
            errors[name] = error
        else:
            told[name] = reading.result()
    return told, errors


def _is_told(reading: asyncio.Task[Mapping[str, ModelInfo]]) -> bool:
    return not reading.cancelled() and reading.exception() is None


def _with(info: ModelInfo, route: Route) -> ModelInfo:
    return replace(info, **route.info) if route.info else info


def _entry(info: ModelInfo) -> dict[str, object]:
    entry: dict[str, object] = {
        "id": info.name,
        "object": "model",
        "created": CREATED,
        "owned_by": "qwen",
    }
    if info.context is not None:
        entry["context_length"] = info.context
    abilities = {name: getattr(info, name) for name in ABILITIES}
    known = {name: value for name, value in abilities.items() if value is not None}
    if known:
        entry["capabilities"] = known
    return entry


def _unknown(model: str) -> str:
    shown = model if len(model) <= 100 else f"{model[:100]}…"
    return f"the model {shown!r} does not exist here; GET /v1/models lists those that do"
