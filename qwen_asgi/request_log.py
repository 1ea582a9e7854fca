"""A client's words as one line of a log: short, and with nothing in it that could forge a line."""

from __future__ import annotations

import re

LONGEST = 8192
"""Characters of a body that are shown."""

_DATA_URL = re.compile(r"(data:[\w/+.;=-]{1,100},)[A-Za-z0-9+/=%_-]{64,}")


def printable(text: bytes | str, longest: int = LONGEST) -> str:
    """Return `text` with data URLs shortened, control characters escaped, and cut to `longest`."""
    length = len(text)
    if isinstance(text, bytes):
        # A picture may stand in the way of what matters, so more is read than shown.
        text = text[: 64 * longest].decode("utf-8", "backslashreplace")
    text = _DATA_URL.sub(r"\1…", text)
    if len(text) > longest:
        text = f"{text[:longest]}… ({length} in all)"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


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
