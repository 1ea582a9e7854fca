"""Leaves an upstream alone that fails again and again, and tries it anew after a while."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from qwen_asgi.chat import Batches, ChatRequest, Upstream
from qwen_asgi.errors import QwenASGIError, UpstreamError, UpstreamSuspended, UpstreamTotalTimeout
from qwen_asgi.layers.failures import is_outage

logger = logging.getLogger(__name__)


class Breaker:
    """An `Upstream` that is not asked for `seconds` after `failures` outages in a row.

    Then one chat tries it; the others are refused until that one has its first event. An answer
    that ends well, or is refused with good reason (a limit, a quota), ends the row.
    """

    def __init__(self, upstream: Upstream, *, failures: int, seconds: float, name: str) -> None:
        self._upstream = upstream
        self._most = failures
        self._seconds = seconds
        self._name = name
        self._failures = 0
        self._closed_until: float | None = None
        """When it may be tried; None while nothing is wrong."""
        self._is_tried = False
        self._openings = 0
        """How often it was left alone; the end of a chat that is older says nothing of now."""

    @asynccontextmanager
    async def __call__(self, request: ChatRequest) -> AsyncIterator[Batches]:
        tries = self._admit()
        openings = self._openings
        has_begun = False
        try:
            async with self._upstream(request) as batches:
                has_begun = True
                if tries:
                    self._reopen()
                    tries = False
                yield batches
        except QwenASGIError as error:
            # That a long answer came to the end of its time is nobody's failure.
            is_cut_off = has_begun and isinstance(error, UpstreamTotalTimeout)
            if openings == self._openings and not is_cut_off:
                self._heard(error)
            raise
        else:
            if openings == self._openings:
                self._worked()
        finally:
            if tries:
                self._is_tried = False

    def _admit(self) -> bool:
        """Return whether this chat is the one that tries. Raises UpstreamSuspended."""
        if self._closed_until is None:
            return False
        left = self._closed_until - time.monotonic()
        if left > 0 or self._is_tried:
            raise UpstreamSuspended(
                f"the upstream {self._name} failed {self._most} times in a row and is left alone "
                "for a while",
                retry_after=max(1, math.ceil(left)),
            )
        self._is_tried = True
        return True

    def _reopen(self) -> None:
        # It works again, but the next failure is one too many.
        self._closed_until, self._is_tried = None, False
        self._failures = self._most - 1

    def _heard(self, error: QwenASGIError) -> None:
        if is_outage(error):
            self._failed()
        elif isinstance(error, UpstreamError):
            self._worked()

    def _failed(self) -> None:
        self._failures += 1
        if self._failures >= self._most:
            self._closed_until = time.monotonic() + self._seconds
            self._openings += 1
            logger.warning(
                "upstream %s failed %d times in a row and is left alone for %g seconds",
                self._name,
                self._failures,
                self._seconds,
            )

    def _worked(self) -> None:
        self._failures = 0
        self._closed_until = None
