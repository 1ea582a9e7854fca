"""Public model names: which there are, who serves them, and the documents that list them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from pydantic_core import to_json

from qwen_asgi.chat import Upstream
from qwen_asgi.errors import ModelNotFound, NoSuchModel, QwenASGIError

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
        self._reading: asyncio.Task[None] | None = None
        if read is None:
            self._take(names)

    async def resolve(self, model: str) -> Upstream:
        """Return who serves `model`. Raises ModelNotFound; UpstreamError if there is no list."""
        if self._read is not None:
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
        """Read the list anew when it is due; wait for that only where there is none to use."""
        if self._read is None or time.monotonic() < self._fresh_until:
            return
        reading = self._reading
        loop = asyncio.get_running_loop()
        if reading is None or reading.done() or reading.get_loop() is not loop:
            reading = self._reading = loop.create_task(self._reload(), name="qwen_asgi models")
            reading.add_done_callback(_retrieve)
        if not self._names:
            # Others may wait for it too: a client that leaves does not end it.
            await asyncio.shield(reading)

    async def _reload(self) -> None:
        assert self._read is not None
        try:
            self._take(await self._read())
        except QwenASGIError as error:
            if not self._names:
                raise
            # An old list serves better than none.
            logger.warning("the list of models could not be read, the last one stays: %s", error)
            self._fresh_until = time.monotonic() + RETRY_SECONDS
        else:
            self._fresh_until = time.monotonic() + FRESH_SECONDS


def _retrieve(reading: asyncio.Task[None]) -> None:
    """Those who waited were told of an error; where nobody did, there is nobody to tell."""
    if not reading.cancelled():
        reading.exception()


def _entry(model: str) -> dict[str, object]:
    return {"id": model, "object": "model", "created": CREATED, "owned_by": "qwen"}


def _unknown(model: str) -> str:
    shown = model if len(model) <= 100 else f"{model[:100]}…"
    return f"the model {shown!r} does not exist here; GET /v1/models lists those that do"
