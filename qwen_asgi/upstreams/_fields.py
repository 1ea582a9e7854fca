"""What becomes of a request's fields at a dialect that knows only some of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from qwen_asgi.chat import Message
from qwen_asgi.errors import InvalidRequest

MOST_NAMED = 20
"""Ignored fields that are named in an answer's header; more would only make the header long."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


@dataclass(frozen=True, slots=True)
class Refused:
    """A field that would change the answer's shape or promise, by its value."""

    asks: Callable[[Any], bool]
    """Whether a value asks for what cannot be had."""
    advice: str
    """What to do instead."""


def refuse(options: Mapping[str, Any], refused: Mapping[str, Refused], upstream: str) -> None:
    """Raise InvalidRequest for the first of `options` that cannot be honoured."""
    for field, value in options.items():
        rule = refused.get(field)
        if rule is not None and rule.asks(value):
            raise InvalidRequest(
                f"the upstream {upstream!r} cannot honour {field!r}: {rule.advice}",
                code="unsupported_parameter",
                param=field,
            )


def ignored(
    options: Mapping[str, Any],
    messages: tuple[Message, ...],
    known: Set[str],
    known_in_messages: Set[str],
) -> tuple[str, ...]:
    """Return the names of the fields that nothing is done with, as a header can carry them."""
    # A client may send any name; one that is not plain could write into the header.
    names = [name for name in options if name not in known and _PLAIN_NAME.fullmatch(name)]
    for message in messages:
        if not message.extra:
            continue
        extra = [name for name in message.extra if name not in known_in_messages]
        names += [f"messages.{name}" for name in extra if _PLAIN_NAME.fullmatch(name)]
    return tuple(dict.fromkeys(names))[:MOST_NAMED]
