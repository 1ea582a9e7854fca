"""What of an upstream's own words about a failure may be shown to a client."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping


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
    A word as short as `web` is in any sentence, and stays, unless it is what a credential is.
    """

    __slots__ = ("_texts",)

    def __init__(self, key: str = "", headers: Mapping[str, str] | None = None) -> None:
        texts = {key} if key else set()
        for name, value in (headers or {}).items():
            texts.update(_secret_in(name, value))
        self._texts = sorted(texts, key=len, reverse=True)
        """The longest first: one may be a part of another."""

    def struck(self, text: str) -> str:
        """Return `text` without them. Of a part of one, nothing would tell that it is one."""
        for secret in self._texts:
            text = text.replace(secret, "(removed)")
        return text


NONE = Secrets()

_CREDENTIAL_NAME = re.compile(r"auth|key|token|secret|cookie|session|password", re.IGNORECASE)
_SHORTEST = 8
"""Characters of a text that is struck out wherever it comes from."""


def _secret_in(name: str, value: str) -> Iterator[str]:
    is_credential = _CREDENTIAL_NAME.search(name) is not None
    if is_credential or len(value) >= _SHORTEST:
        yield value
    scheme, _, credential = value.partition(" ")
    if is_credential and scheme.isalpha() and credential:
        yield credential.strip()
    for piece in re.split(r"[\s;,]+", value):
        for text in (piece, piece.partition("=")[2]):
            if len(text) >= _SHORTEST:
                yield text
