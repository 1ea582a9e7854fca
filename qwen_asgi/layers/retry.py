"""Asks the same upstream again when nothing of its answer has come."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from qwen_asgi.chat import Batches, ChatRequest, Upstream
from qwen_asgi.errors import QwenASGIError, UpstreamError, UpstreamRateLimited, UpstreamSuspended
from qwen_asgi.layers.failures import is_outage

logger = logging.getLogger(__name__)

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 8.0
"""Seconds before the first retry, which doubles with each, and where that ends. Each pause is a
chance part of it, half at least, so that many who failed together do not come back together."""

LONGEST_WAIT = 15.0
"""Seconds of a `Retry-After` that are waited; one that is longer is the client's to wait."""

RESERVE = 10.0
"""Retries that an upstream has at the beginning, before its chats have earned any."""

MOST_SAVED = 100.0


class RetryBudget:
    """One upstream's retries: each chat adds a share of one, each retry takes one."""

    def __init__(self, share: float) -> None:
        self.share = share
        self._left = RESERVE

    def earn(self) -> None:
        self._left = min(MOST_SAVED, self._left + self.share)

    def spend(self) -> bool:
        """Take a retry, if there is one left."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Retry:
    """An `Upstream` that is asked up to `times` times more, within its budget and the deadline."""

    def __init__(self, upstream: Upstream, *, times: int, budget: RetryBudget, name: str) -> None:
        self._upstream = upstream
        self._times = times
        self._budget = budget
        self._name = name

    @asynccontextmanager
    async def __call__(self, request: ChatRequest) -> AsyncIterator[Batches]:
        self._budget.earn()
        async with AsyncExitStack() as stack:
            yield await self._entered(stack, request)

    async def _entered(self, stack: AsyncExitStack, request: ChatRequest) -> Batches:
        for attempt in range(self._times):
            try:
                return await stack.enter_async_context(self._upstream(request))
            except QwenASGIError as error:
                pause = self._pause(error, attempt, request)
                if pause is None:
                    raise
                logger.warning(
                    "upstream %s: %s (%s); it is asked again in %.1f seconds",
                    self._name,
                    error,
                    error.code,
                    pause,
                )
            await asyncio.sleep(pause)
        return await stack.enter_async_context(self._upstream(request))

    def _pause(self, error: QwenASGIError, attempt: int, request: ChatRequest) -> float | None:
        """Return the seconds until it is asked again, or None if it is not."""
        if not isinstance(error, UpstreamError) or isinstance(error, UpstreamSuspended):
            return None
        if not is_outage(error) and not isinstance(error, UpstreamRateLimited):
            return None
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1.0)
        if error.retry_after is not None:
            if error.retry_after > LONGEST_WAIT:
                return None
            pause = max(pause, error.retry_after)
        if request.deadline is not None and time.monotonic() + pause >= request.deadline:
            return None
        return pause if self._budget.spend() else None
