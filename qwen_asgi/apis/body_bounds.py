"""What a request's body may hold: bounds that are looked at before it is parsed.

While a body is parsed nobody else in the process is served, in whatever thread that is: Python's
lock is held. Texts cost next to nothing, values and long numbers do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from qwen_asgi.chat import Message
from qwen_asgi.errors import RequestTooLarge

LONG_BODY = 256 * 1024
"""Bytes from which on a body is looked at: a shorter one cannot hold too much."""

MOST_VALUES = 100_000
"""Values that a body may hold, in all its lists and objects: 31 MiB of empty lists took 4.8 s."""

MOST_OUTSIDE = 8 * 1024 * 1024
"""Bytes that may stand outside of all texts: values as many as may be, on lines of their own."""

MOST_DIGITS = 399
"""Digits of a number. To read and write one takes time by the square of its length: 31 MiB of such
of 4,000 digits took 2.4 s. No number that counts something is as long as this."""

_DIGITS_ALIKE = bytes.maketrans(b"123456789", b"0" * 9)


def check_bounds(body: bytes) -> None:
    """Raise RequestTooLarge for a body that would take too long to parse."""
    if len(body) > LONG_BODY:
        _check([body], "request's body holds")


def check_arguments(messages: Iterable[Message]) -> None:
    """Raise RequestTooLarge where the arguments of calls would take too long to parse: each is a
    JSON text of its own, and to the body only a text."""
    arguments = [text for message in messages if message.extra for text in _arguments(message)]
    if sum(map(len, arguments)) > LONG_BODY:
        data = [text.encode("utf-8", "surrogatepass") for text in arguments]
        _check(data, "arguments of its calls hold")


def _arguments(message: Message) -> Iterator[str]:
    calls = message.extra.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        text = function.get("arguments") if isinstance(function, Mapping) else None
        if isinstance(text, str):
            yield text


def _check(documents: Sequence[bytes], subject: str) -> None:
    """Raise RequestTooLarge for JSON documents that would take too long to parse, all in all."""
    outside = _outside_of_texts(documents)
    if outside is None or _values(outside) > MOST_VALUES:
        raise _too_much(subject, f"more than {MOST_VALUES} values", "too_many_values")
    if len(outside) > MOST_OUTSIDE:
        raise _too_much(subject, f"more than {MOST_OUTSIDE} bytes beside texts", "too_many_values")
    # Time by the length alone. A regular expression begins anew at each digit: 8 MB of numbers of
    # 399 digits took it 3.2 s.
    if b"0" * (MOST_DIGITS + 1) in outside.translate(_DIGITS_ALIKE):
        raise _too_much(subject, f"a number of {MOST_DIGITS + 1} digits or more", "number_too_long")


def _values(outside: bytes) -> int:
    return outside.count(b",") + outside.count(b"[") + outside.count(b"{")


def _outside_of_texts(documents: Sequence[bytes]) -> bytes | None:
    """Return JSON documents without the texts in them; None for too many texts.

    Of what is not JSON, it is right up to where a parser stops.
    """
    plain = [_without_escapes(document) for document in documents]
    # A text is a value, or the name of one.
    if sum(document.count(b'"') for document in plain) > 4 * MOST_VALUES:
        return None
    # Each has quotes of its own: one that is not closed does not reach into the next.
    return b" ".join([part for document in plain for part in document.split(b'"')[::2]])


def _without_escapes(document: bytes) -> bytes:
    if b"\\" not in document:
        return document
    return document.replace(b"\\\\", b"").replace(b'\\"', b"")


def _too_much(subject: str, what: str, code: str) -> RequestTooLarge:
    return RequestTooLarge(f"the {subject} {what}; send less", code=code)
