"""Leaves an upstream alone that fails again and again, and tries it anew after a while."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from qwen_asgi.chat import Batches, ChatRequest, Upstream
from qwen_asgi.errors import QwenASGIError, UpstreamError, UpstreamSuspended, UpstreamTotalTimeout
from qwen_asgi.layers.failures import is_outage

logger = logging.getLogger(__name__)


class Health:
    """What is known of how an upstream works. It outlives the layer that watches it, as long as
    nothing of the upstream is set otherwise."""

    def __init__(self) -> None:
        self.failures = 0
        """Outages in a row."""
        self.closed_until: float | None = None
        """When it may be tried; None while nothing is wrong."""
        self._tried_in: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self.openings = 0
        """How often it was left alone; the end of a chat that is older says nothing of now."""

    @property
    def is_tried(self) -> bool:
        """Whether a chat tries it just now. One whose loop is closed never comes to an end."""
        loop = self._tried_in() if self._tried_in else None
        return loop is not None and not loop.is_closed()

    def begin_to_try(self) -> None:
        self._tried_in = weakref.ref(asyncio.get_running_loop())

    def end_trying(self) -> None:
        self._tried_in = None


class Breaker:
    """An `Upstream` that is not asked for `seconds` after `failures` outages in a row.

    Then one chat tries it; the others are refused until that one has its first event. An answer
    that ends well, or is refused with good reason (a limit, a quota), ends the row.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        failures: int,
        seconds: float,
        name: str,
        health: Health | None = None,
    ) -> None:
        self.health = health or Health()
        self._upstream = upstream
        self._most = failures
        self._seconds = seconds
        self._name = name

    def ahead_of(self, upstream: Upstream) -> Upstream:
        """Return an `Upstream` that refuses already there what would be refused here.

        `upstream` has this breaker within, behind a queue: whoever comes need not wait in it, and
        whoever waits meets the breaker once more.
        """

        @asynccontextmanager
        async def refused_early(request: ChatRequest) -> AsyncIterator[Batches]:
            self._check()
            async with upstream(request) as batches:
                yield batches

        return refused_early

    @asynccontextmanager
    async def __call__(self, request: ChatRequest) -> AsyncIterator[Batches]:
        self._check()
        health = self.health
        tries = health.closed_until is not None
        if tries:
            health.begin_to_try()
        openings = health.openings
        has_time = _has_time(request)
        has_begun = False
        try:
            async with self._upstream(request) as batches:
                has_begun = True
                if tries:
                    self._reopen()
                    tries = False
                yield batches
        except QwenASGIError as error:
            # That a long answer came to the end of its time is nobody's failure; nor is it this
            # upstream's if others had used that time up.
            is_cut_off = isinstance(error, UpstreamTotalTimeout) and (has_begun or not has_time)
            if openings == health.openings and not is_cut_off:
                self._heard(error)
            raise
        else:
            if openings == health.openings:
                self._worked()
        finally:
            if tries:
                health.end_trying()

    def _check(self) -> None:
        """Raise UpstreamSuspended unless the upstream may be asked."""
        health = self.health
        if health.closed_until is None:
            return
        left = health.closed_until - time.monotonic()
        if left > 0 or health.is_tried:
            raise UpstreamSuspended(
                f"the upstream {self._name} failed {self._most} times in a row and is left alone "
                "for a while",
                retry_after=max(1, math.ceil(left)),
            )

    def _reopen(self) -> None:
        # It works again, but the next failure is one too many.
        health = self.health
        health.closed_until = None
        health.end_trying()
        health.failures = self._most - 1

    def _heard(self, error: QwenASGIError) -> None:
        if is_outage(error):
            self._failed()
        elif isinstance(error, UpstreamError):
            self._worked()

    def _failed(self) -> None:
        health = self.health
        health.failures += 1
        if health.failures >= self._most:
            health.closed_until = time.monotonic() + self._seconds
            health.openings += 1
            logger.warning(
                "upstream %s failed %d times in a row and is left alone for %g seconds",
                self._name,
                health.failures,
                self._seconds,
            )

    def _worked(self) -> None:
        self.health.failures = 0
        self.health.closed_until = None


def _has_time(request: ChatRequest) -> bool:
    """Whether most of what the answer may take is left for this upstream."""
    if request.deadline is None or request.time_limit is None:
        return True
    return request.deadline - time.monotonic() > 0.5 * request.time_limit
