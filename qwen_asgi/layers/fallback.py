"""Chooses among the upstreams of one model, and goes on to the next where one fails."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Literal

from qwen_asgi.chat import Batches, ChatRequest, Upstream
from qwen_asgi.errors import (
    QwenASGIError,
    UpstreamError,
    UpstreamRateLimited,
)
from qwen_asgi.layers.failures import class_of

logger = logging.getLogger(__name__)

Choice = Literal["order", "weight", "least-busy"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the upstreams."""

    name: str
    upstream: Upstream
    weight: float
    busy: Callable[[], int]
    """How many chats are under way there."""


class Fallback:
    """An `Upstream` of several: the first that begins to answer gives the answer."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        *,
        choose: Choice = "order",
        on: Collection[str],
        total: float | None = None,
    ) -> None:
        """`on` are the classes of failure upon which the next one is asked (`failures.class_of`);
        `total` is the seconds that all of it may take."""
        self._candidates = candidates
        self._choose = choose
        self._on = frozenset(on)
        self._total = total

    @asynccontextmanager
    async def __call__(self, request: ChatRequest) -> AsyncIterator[Batches]:
        if self._total is not None:
            deadline = time.monotonic() + self._total
            request = replace(request, deadline=deadline, time_limit=self._total)
        async with AsyncExitStack() as stack:
            yield await self._entered(stack, request)

    async def _entered(self, stack: AsyncExitStack, request: ChatRequest) -> Batches:
        errors: list[QwenASGIError] = []
        for candidate in self._in_order():
            if errors and request.deadline is not None and time.monotonic() >= request.deadline:
                break
            try:
                return await stack.enter_async_context(candidate.upstream(request))
            except QwenASGIError as error:
                kind = class_of(error)
                if kind not in self._on:
                    raise
                errors.append(error)
                logger.warning("upstream %s: %s (%s)", candidate.name, error, error.code or kind)
        raise _the_most_telling(errors)

    def _in_order(self) -> Sequence[Candidate]:
        candidates = self._candidates
        if len(candidates) == 1 or self._choose == "order":
            return candidates
        if self._choose == "weight":
            # The smallest of exponential times: each is the first in proportion to its weight, and
            # so is each of the rest among the rest.
            return sorted(candidates, key=lambda c: random.expovariate(c.weight))
        return sorted(candidates, key=lambda c: (c.busy() + 1) / c.weight)


def _the_most_telling(errors: Sequence[QwenASGIError]) -> QwenASGIError:
    """Return a limit, which says when to come again, else an upstream's failure, else the first."""

    def rank(error: QwenASGIError) -> tuple[int, int]:
        if isinstance(error, UpstreamRateLimited):
            return 0, 1 << 30 if error.retry_after is None else error.retry_after
        return (1 if isinstance(error, UpstreamError) else 2), 0

    return min(errors, key=rank)
