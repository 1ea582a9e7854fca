"""Frames that are like one that was parsed before, read without parsing them again.

The frames of an answer differ in their text and in what they count, and in nothing else: the JSON
around the text is the same, byte for byte, frame after frame. To parse one takes longer than all
else that is done with it. So of a frame that was parsed, and found to do nothing but go on with the
text, the shape is remembered: its bytes without the text, every digit a zero. Another frame of that
shape, digit for digit, does nothing else either. In one thing this is no parser: a number that
begins with a zero, which JSON forbids and no writer of JSON sends, passes for one.
"""

from __future__ import annotations

import re
from functools import lru_cache

from pydantic_core import from_json

from qwen_asgi.chat import Event, ReasoningDelta, TextDelta

MOST_SHAPES = 64
"""Shapes that are learnt in all; an upstream whose frames are all different is parsed as ever."""

_FIELD = {
    name: re.compile(rb'"%b": ?"' % name)
    for name in (b"content", b"reasoning_content", b"reasoning")
}
_ZEROS = bytes(0x30 if 0x30 <= byte <= 0x39 else byte for byte in range(256))


class FrameShapes:
    """The shapes of one answer's frames: `learn` those that were parsed, `read` those to come.

    All that are known at one time begin alike and have the same fields; they differ in how many
    digits a number has.
    """

    __slots__ = ("_fields", "_head", "_identity", "_last", "_learnt", "_mark", "_name", "_tails")

    def __init__(self) -> None:
        self._head = b""
        """What stands before the text, to the quote that begins it."""
        self._tails: set[bytes] = set()
        """What may stand behind the quote that ends it, to the blank line."""
        self._fields = b""
        self._last = b""
        self._learnt = 0
        self._name = b""
        self._identity: re.Pattern[bytes] | None = None
        self._mark = b""
        """The identity, if it stands behind the text; in front of it all is compared as it is."""

    def identify(self, field: bytes, value: bytes) -> None:
        """Take only frames in which this field has this value, in JSON, digits and all: others are
        not of the answer. Frames without the field are told from those with it by their shape."""
        self._name = b'"%b"' % field
        self._identity = _identity(self._name, value)

    def forget(self) -> None:
        """Know none any more: what a frame of a shape does is no longer the same."""
        self._tails.clear()

    def learn(self, frame: bytes, field: bytes = b"content") -> None:
        """Remember the shape of `frame`, blank line and all, whose only text is in `field`."""
        # In a valid frame no string holds a bare quote, so this is a field's name wherever it is.
        found = _FIELD[field].search(frame)
        if found is None or frame.count(b'"%b"' % field) != 1 or self._learnt >= MOST_SHAPES:
            return
        self._learnt += 1
        head = frame[: found.end()]
        text, _, tail = frame[found.end() :].partition(b'"')
        if text.endswith(b"\\"):
            return
        mark = b""
        if self._identity is not None and self._name in frame:
            marks = self._identity.findall(frame)
            if len(marks) != 1 or frame.count(self._name) != 1:
                return
            mark = b"" if marks[0] in head else marks[0]
        fields = re.sub(rb"\d+", b"0", tail)
        if head != self._head or fields != self._fields:
            self.forget()
            self._head, self._fields = head, fields
        self._mark = mark
        self._tails.add(tail.translate(_ZEROS))

    def read(
        self, data: bytes, piece: type[TextDelta] | type[ReasoningDelta], events: list[Event]
    ) -> bytes:
        """Take the frames at the start of `data` whose shape is known; return the rest.

        Their texts are added to `events`, each as a `piece`. All of them count the same things, so
        that the last one tells all: see `take_last`.
        """
        head, tails, mark = self._head, self._tails, self._mark
        if not tails or not data.startswith(head):
            return data
        number = 0
        parts = data.split(head)
        for part in parts[1:]:
            raw, _, tail = part.partition(b'"')
            if tail.translate(_ZEROS) not in tails or (mark and mark not in tail):
                break
            try:
                text = from_json(b'"%b"' % raw)
            except ValueError:
                # Mostly an escaped quote: the text goes on behind it.
                break
            if not text:
                break
            events.append(piece(text))
            self._last = tail
            number += 1
        if number == len(parts) - 1:
            return b""
        parts[: number + 1] = [b""]
        return head.join(parts)

    def take_last(self) -> bytes:
        """Return the last frame that was read, without its text; nothing if that was done."""
        last, self._last = self._last, b""
        return b'%b"%b' % (self._head, last) if last else b""


@lru_cache(maxsize=64)
def _identity(name: bytes, value: bytes) -> re.Pattern[bytes]:
    """Return what finds a field of this value; mostly it is the same in each answer."""
    return re.compile(rb"%b: ?%b(?![\d.])" % (re.escape(name), re.escape(value)))
