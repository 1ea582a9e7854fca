from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_asgi.request_log import LONGEST, printable


def test_a_body_is_shown_as_it_is() -> None:
    body = '{"model": "m", "messages": [{"role": "user", "content": "你好 🙂"}]}'
    assert printable(body.encode()) == body
    assert printable(body) == body


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (b"a\r\n2025-01-01 - INFO - forged", "a\\r\\n2025-01-01 - INFO - forged"),
        (b"\x1b[2J\x00\x7f\t", "\\x1b[2J\\x00\\x7f\\t"),
        ("\u2028\x85\u202e\ufeff".encode(), "\\u2028\\x85\\u202e\\ufeff"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_what_could_forge_or_hide_a_line_is_escaped(given: bytes | str, shown: str) -> None:
    assert printable(given) == shown


def test_a_picture_within_a_body_is_shortened() -> None:
    picture = b"data:image/png;base64," + b"iVBORw0KGgo" * 10_000
    shown = printable(b'{"url": "%b", "after": "%b"}' % (picture, b"data:text/plain,short"))
    assert shown == '{"url": "data:image/png;base64,…", "after": "data:text/plain,short"}'


@pytest.mark.parametrize("slash", ["/", "\\/"])
def test_bytes_of_a_file_are_shortened_however_they_are_written(slash: str) -> None:
    file = "iVBORw0K/GgoAAAANSUhEUgAA/".replace("/", slash) * 1000
    url = "data:image/png;base64,".replace("/", slash)
    assert printable(f'{{"url": "{url}{file}", "a": 1}}') == f'{{"url": "{url}…", "a": 1}}'
    shown = printable(f'{{"file_data": "{file}==", "a": 1}}')
    assert re.fullmatch(r'\{"file_data": "[\w\\/]{8,40}…", "a": 1\}', shown)
    words = "a/path/of_some-length " * 100
    assert printable(words) == words


@pytest.mark.parametrize("part", ["A" * 15 + " ", "data:x,", "A" * 250 + " ", "A\\/", "data:" * 20])
def test_no_text_takes_long(part: str) -> None:
    begun = time.process_time()
    printable(part * (600_000 // len(part)))
    assert time.process_time() - begun < 1


def test_what_is_long_is_cut_and_says_how_long_it_is() -> None:
    assert printable("x" * 20, longest=10) == "x" * 10 + "… (20 in all)"
    assert printable("x" * 10, longest=10) == "x" * 10
    shown = printable(b"x " * 20_000_000)
    assert len(shown) < LONGEST + 100
    assert shown.endswith("… (40000000 in all)")


@settings(max_examples=300, deadline=None, database=None)
@given(st.binary(max_size=100) | st.text(max_size=100))
def test_whatever_is_given_it_is_one_printable_line(given: bytes | str) -> None:
    shown = printable(given)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
