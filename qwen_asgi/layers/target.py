"""An upstream as one model sees it: the model's name there, and fields that are set for it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from qwen_asgi.chat import Batches, ChatRequest, Upstream

_LIMITS = ("max_completion_tokens", "max_tokens")


class Target:
    """An `Upstream` that is asked for `model`."""

    def __init__(
        self,
        upstream: Upstream,
        *,
        model: str,
        defaults: Mapping[str, Any] | None = None,
        forced: Mapping[str, Any] | None = None,
    ) -> None:
        """`defaults` are set where the client sets nothing, `forced` whatever it says."""
        self._upstream = upstream
        self._model = model
        self._defaults = defaults or {}
        self._forced = forced or {}

    def __call__(self, request: ChatRequest) -> AbstractAsyncContextManager[Batches]:
        if self._defaults or self._forced:
            request = self._with_fields(request)
        if request.model != self._model:
            request = replace(request, model=self._model)
        return self._upstream(request)

    def _with_fields(self, request: ChatRequest) -> ChatRequest:
        given = {**request.options}
        if request.temperature is not None:
            given["temperature"] = request.temperature
        if request.max_tokens is not None:
            given["max_tokens"] = request.max_tokens
        options = {**_limited_once(self._defaults), **given, **_limited_once(self._forced)}
        temperature, limit = options.pop("temperature", None), options.pop("max_tokens", None)
        return replace(request, options=options, temperature=temperature, max_tokens=limit)


def _limited_once(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with the limit on tokens under one of its two names."""
    rest = {name: value for name, value in fields.items() if name not in _LIMITS}
    limit = next((fields[name] for name in _LIMITS if name in fields), None)
    return rest if limit is None else {**rest, "max_tokens": limit}
