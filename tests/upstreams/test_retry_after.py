from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_asgi.upstreams._retry_after import LONGEST, retry_after, seconds


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0),
        ("7", 7),
        (" 120 ", 120),
        ("604800", 604800),
        ("604801", LONGEST),
        ("9" * 5000, LONGEST),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 9999 07:28:00 GMT", LONGEST),
        ("Wednesday, 21-Oct-15 07:28:00 GMT", 0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("٣", None),  # A digit, but none of HTTP's.
        ("21 Oct 2035", None),
        ("Wed, 99 Oct 2035 07:28:00 GMT", None),
        ("Wed, 21 Oct 9999999999 07:28:00 GMT", None),
    ],
)
def test_both_forms_of_the_header_are_read_and_bounded(value: str, expected: int | None) -> None:
    assert retry_after({"retry-after": value}) == expected


def test_without_the_header_nothing_is_known() -> None:
    assert retry_after({}) is None


@pytest.mark.parametrize("zone", ["GMT", "+0000", "-0000"])
def test_a_date_is_counted_from_now(zone: str) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    found = retry_after({"retry-after": date.replace("GMT", zone)})
    assert found is not None
    assert 85 <= found <= 90


@settings(max_examples=150, deadline=None, database=None)
@given(
    st.text(max_size=40)
    | st.from_regex(
        r"[A-Z][a-z]{2}, \d{1,3} [JFM][a-z]{2} \d{1,12} \d{1,3}:\d\d:\d\d ([+-]\d{1,12}|GMT)"
    )
)
def test_no_header_is_worse_than_none(value: str) -> None:
    found = retry_after({"retry-after": value})
    assert found is None or 0 <= found <= LONGEST


@pytest.mark.parametrize(
    ("value", "expected"), [(-1, 0), (0.9, 0), (5, 5), (1e300, LONGEST), (float("inf"), LONGEST)]
)
def test_seconds_are_whole_and_bounded(value: float, expected: int) -> None:
    assert seconds(value) == expected
