"""How long an upstream wants to be left alone."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST = 7 * 24 * 3600
"""Seconds; what says more is not believed."""


def retry_after(headers: Mapping[str, str]) -> int | None:
    """Return the `Retry-After` header in whole seconds, whichever of its two forms it has.

    Source: RFC 9110, section 10.2.3.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return seconds(int(value[:12]))
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return seconds((when - datetime.now(UTC)).total_seconds())


def seconds(value: float) -> int:
    """Return `value` as a `Retry-After` that a client can use: whole, and within bounds."""
    return int(min(max(value, 0), LONGEST))
