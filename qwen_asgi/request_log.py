"""A client's words as one line of a log: short, and with nothing in it that could forge a line."""

from __future__ import annotations

import re
from functools import partial

LONGEST = 8192
"""Characters of a body that are shown."""

_DATA_URL = re.compile(
    r"(data:[\w/+.;=\\-]{1,100},)(?=[\w+/=%\\-]{32})((?:[A-Za-z0-9+/=%_-]++|\\/)++)"
)
"""Some writers of JSON put a backslash before each slash."""

_BASE64 = re.compile(r"([A-Za-z0-9+/_-]{16})((?:[A-Za-z0-9+/_-]++|\\/)++=*)")
"""A file's bytes without a label, if it is long."""


def printable(text: bytes | str, longest: int = LONGEST) -> str:
    """Return `text` with data URLs shortened, control characters escaped, and cut to `longest`."""
    length = len(text)
    if isinstance(text, bytes):
        # A picture may stand in the way of what matters, so more is read than shown.
        text = text[: 64 * longest].decode("utf-8", "backslashreplace")
    text = _DATA_URL.sub(partial(_shortened, 64), text)
    text = _BASE64.sub(partial(_shortened, 256), text)
    if len(text) > longest:
        text = f"{text[:longest]}… ({length} in all)"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _shortened(least: int, found: re.Match[str]) -> str:
    return f"{found[1]}…" if len(found[2]) >= least else found[0]


class Printable:
    """`printable(text)`, worked out when a log line is made of it."""

    __slots__ = ("_text",)

    def __init__(self, text: bytes) -> None:
        # Of what is long only a part is shown: what is kept until then stays short.
        self._text = text if len(text) <= LONGEST else printable(text)

    def __str__(self) -> str:
        return self._text if isinstance(self._text, str) else printable(self._text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
