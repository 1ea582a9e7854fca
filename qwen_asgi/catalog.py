"""Public model names: which there are, who serves them, and the documents that list them."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from pydantic_core import to_json

from qwen_asgi.chat import Upstream
from qwen_asgi.errors import ModelNotFound, NoSuchModel, UpstreamError

logger = logging.getLogger(__name__)

FRESH_SECONDS = 300.0
"""How long a list that came from the upstream is used before it is asked for again."""

RETRY_SECONDS = 30.0
"""How long the last list is used after the upstream could not tell a new one."""

CREATED = 0
"""When a model was made is not known; OpenAI's schema asks for a number."""


class Catalog:
    """The models of one upstream: a fixed list, or one that is read from the upstream."""

    def __init__(
        self,
        upstream: Upstream,
        names: Sequence[str] = (),
        read: Callable[[], Awaitable[Sequence[str]]] | None = None,
    ) -> None:
        """`read` asks the upstream; with it, `names` is not used."""
        self._upstream = upstream
        self._read = read
        self._names: dict[str, None] = {}
        self._document = b""
        self._fresh_until = 0.0
        if read is None:
            self._take(names)

    async def resolve(self, model: str) -> Upstream:
        """Return who serves `model`. Raises ModelNotFound; UpstreamError if there is no list."""
        await self._refresh()
        if model not in self._names:
            raise ModelNotFound(_unknown(model), param="model")
        return self._upstream

    async def document(self) -> bytes:
        """Return the body of `GET /v1/models`."""
        await self._refresh()
        return self._document

    async def model_document(self, model: str) -> bytes:
        """Return the body of `GET /v1/models/{model}`. Raises NoSuchModel."""
        await self._refresh()
        if model not in self._names:
            raise NoSuchModel(_unknown(model), param="model")
        return to_json(_entry(model))

    def _take(self, names: Sequence[str]) -> None:
        self._names = dict.fromkeys(names)
        self._document = to_json({"object": "list", "data": [_entry(n) for n in self._names]})

    async def _refresh(self) -> None:
        if self._read is None or time.monotonic() < self._fresh_until:
            return
        if self._names:
            # While one request asks, the others use the old list; so they do for a while if the
            # upstream cannot tell: an old list serves better than none.
            self._fresh_until = time.monotonic() + RETRY_SECONDS
        try:
            self._take(await self._read())
        except UpstreamError as error:
            if not self._names:
                raise
            logger.warning("the list of models could not be read, the last one stays: %s", error)
        else:
            self._fresh_until = time.monotonic() + FRESH_SECONDS


def _entry(model: str) -> dict[str, object]:
    return {"id": model, "object": "model", "created": CREATED, "owned_by": "qwen"}


def _unknown(model: str) -> str:
    shown = model if len(model) <= 100 else f"{model[:100]}…"
    return f"the model {shown!r} does not exist here; GET /v1/models lists those that do"
