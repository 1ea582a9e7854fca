"""The models of one upstream: names that are set, and names that it tells, read anew at times."""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from qwen_asgi.chat import ModelInfo
from qwen_asgi.errors import QwenASGIError

logger = logging.getLogger(__name__)

FRESH_SECONDS = 300.0
"""How long a list that came from the upstream is used before it is asked for again."""

RETRY_SECONDS = 30.0
"""How long the last list is used after the upstream could not tell a new one."""

FAILED_SECONDS = 1.0
"""How long a failure to tell the first one is told to others who ask for it."""

_WILD = re.compile(r"[*?\[]")


class ModelList:
    """The models that one upstream is asked for.

    `models` are names, and patterns such as `qwen3-*` that stand for what the upstream tells:
    `read` asks it. Without patterns it is never asked.
    """

    def __init__(
        self,
        models: Sequence[str],
        read: Callable[[], Awaitable[Sequence[ModelInfo]]] | None = None,
        describe: Callable[[str], ModelInfo] = ModelInfo,
    ) -> None:
        patterns = [model for model in models if read is not None and _WILD.search(model)]
        self._read = read if patterns else None
        self._pattern = re.compile("|".join(map(fnmatch.translate, patterns)))
        self._fixed = {name: describe(name) for name in models if name not in patterns}
        self._told: dict[str, ModelInfo] | None = None
        self._failure: QwenASGIError | None = None
        self._fresh_until = 0.0
        self._reading: asyncio.Task[None] | None = None
        self._began = 0.0

    @property
    def is_fixed(self) -> bool:
        """Whether it is known without asking."""
        return self._read is None

    @property
    def fixed(self) -> Mapping[str, ModelInfo]:
        """The names that are set, in their order."""
        return self._fixed

    @property
    def known(self) -> Mapping[str, ModelInfo]:
        """All that can be said without asking."""
        return self._fixed if self._told is None else self._fixed | self._told

    def may_have(self, model: str) -> bool:
        """Whether it holds `model`, or may do so once the upstream was asked."""
        return model in self._fixed or (
            self._read is not None and self._pattern.fullmatch(model) is not None
        )

    @property
    def reading_for(self) -> float:
        """How long it is being read for by now, in seconds; 0 if it is not."""
        is_read = self._reading is not None and not self._reading.done()
        return time.monotonic() - self._began if is_read else 0.0

    def take_over(self, other: ModelList) -> None:
        """Know what another list of the same upstream and the same names was told."""
        self._told = other._told
        self._fresh_until = other._fresh_until if other._told is not None else 0.0

    async def models(self) -> Mapping[str, ModelInfo]:
        """Return all by name. Raises UpstreamError if the upstream never told them."""
        await self._refresh()
        return self.known

    async def _refresh(self) -> None:
        """Read the list anew when it is due; wait for that only where there is none to use."""
        if self._read is None:
            return
        if time.monotonic() < self._fresh_until:
            if self._failure is not None:
                raise self._failure.with_traceback(None)
            return
        reading = self._reading
        loop = asyncio.get_running_loop()
        if reading is None or reading.done() or reading.get_loop() is not loop:
            reading = self._reading = loop.create_task(self._reload(), name="qwen_asgi models")
            reading.add_done_callback(hear)
            self._began = time.monotonic()
        if self._told is None:
            # Others may wait for it too: a client that leaves does not end it.
            await asyncio.shield(reading)

    async def _reload(self) -> None:
        assert self._read is not None
        try:
            told = await self._read()
        except QwenASGIError as error:
            if self._told is None:
                self._failure = error
                self._fresh_until = time.monotonic() + FAILED_SECONDS
                raise
            # An old list serves better than none.
            logger.warning("the list of models could not be read, the last one stays: %s", error)
            self._fresh_until = time.monotonic() + RETRY_SECONDS
        else:
            self._failure = None
            self._told = {m.name: m for m in told if self._pattern.fullmatch(m.name)}
            self._fresh_until = time.monotonic() + FRESH_SECONDS


def hear(reading: asyncio.Task[Any]) -> None:
    """Take the error of a reading: those who waited were told of it, and if nobody did, there is
    nobody to tell."""
    if not reading.cancelled():
        reading.exception()
