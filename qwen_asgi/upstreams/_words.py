"""What of an upstream's own words about a failure may be shown to a client."""

from __future__ import annotations

import re


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


def struck(text: str, secret: str) -> str:
    """Return `text` without the secret. Of a part of it, nothing would tell that it is one."""
    return text.replace(secret, "(removed)") if secret else text
