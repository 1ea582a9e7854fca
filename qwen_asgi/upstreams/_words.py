"""What of an upstream's own words about a failure may be shown to a client."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import suppress


def plain_code(code: str) -> str | None:
    """Return an upstream's code if it is one: a short plain word, and no sentence."""
    return code if re.fullmatch(r"[\w.\-]{1,64}", code, flags=re.ASCII) else None


def said(details: str) -> str:
    """Return the upstream's own sentence, without what may be an address, a key or a prompt."""
    plain = re.sub(r"\S*://\S*", "(address)", details[:2000])
    plain = re.sub(r"[A-Za-z0-9+/=_.\-]{20,}", "(removed)", plain)
    plain = " ".join("".join(c if c.isprintable() else " " for c in plain).split())
    if not plain:
        return ""
    return f": {plain[:200]}…" if len(plain) > 200 else f": {plain}"


class Secrets:
    """What an upstream is sent that nobody else may see: the key, and the operator's own headers.

    Of a header that is its value and, for `Bearer abc` or `session=abc; lang=en`, the pieces of it.
    A short one that may be a word is struck out only where it stands as one: `x` is in many words.
    """

    __slots__ = ("_pattern",)

    def __init__(self, key: str = "", headers: Mapping[str, str] | None = None) -> None:
        texts = {key}
        for name, value in (headers or {}).items():
            texts.update(_secret_in(name, value))
        # The longest first: one may be a part of another.
        patterns = [_pattern_of(text) for text in sorted(texts, key=len, reverse=True) if text]
        self._pattern = re.compile("|".join(patterns)) if patterns else None

    def struck(self, text: str) -> str:
        """Return `text` without them. Of a part of one, nothing would tell that it is one."""
        return text if self._pattern is None else self._pattern.sub("(removed)", text)


NONE = Secrets()

_CREDENTIAL_NAME = re.compile(r"auth|key|token|secret|cookie|session|password|login", re.IGNORECASE)
_SHORTEST = 8
"""Characters of a text that is struck out wherever it stands."""


def _pattern_of(text: str) -> str:
    is_word = len(text) < _SHORTEST and (text.isalpha() or len(text) < 3)
    return rf"(?<![\w-]){re.escape(text)}(?![\w-])" if is_word else re.escape(text)


def _secret_in(name: str, value: str) -> Iterator[str]:
    """Yield a header's value and its pieces; the short ones only of what is a credential."""
    least = 3 if _CREDENTIAL_NAME.search(name) else _SHORTEST
    scheme, _, credential = value.partition(" ")
    texts = [value, credential.strip()]
    if scheme.lower() == "basic":
        with suppress(ValueError):
            texts.append(b64decode(credential.strip(), validate=True).decode("utf-8", "replace"))
    for text in texts:
        for piece in (text, *re.split(r"[\s;,]+", text), *re.split(r"[\s;,:=]+", text)):
            bare = piece.strip("\"'")
            # The scheme, and what a piece is named, are no secrets.
            if len(bare) >= least and bare.lower() not in _SCHEMES:
                yield bare


_SCHEMES = {"basic", "bearer", "digest", "token", "session"}
