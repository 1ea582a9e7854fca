"""What a right answer is, byte for byte.

A target's first answer to a scenario, its reference, is read field by field and must say exactly
what the scenario says. From it a template is made, and every later answer must equal that in every
byte but three: the answer's id and its time, which are read once from where the template has them
and must then be the same throughout, and the upstream's stamps. A target that only relays has no
freedom even in id and time: its reference must be the bytes that the upstream sent.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.benchmarks.scenarios import (
    MODEL,
    NO_STAMP,
    PLAIN_TEXT,
    STAMP_WIDTH,
    frame_mark,
    frame_text,
    plain_body,
    stream_body,
)

_ID = b"\0id\0"
_CREATED = b"\0created\0"


class WrongAnswer(Exception):
    """An answer is not what it must be: the run is worth nothing."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are in a stream's body, in bytes from its beginning."""

    stamps: tuple[int, ...]
    ends: tuple[int, ...]
    """The first byte behind each text frame."""


class Template:
    """The right answer to one scenario from one target; `learn` makes it."""

    def __init__(self, frames: int, reference: bytes, id: bytes, created: bytes) -> None:
        self._frames = frames
        self._reference = reference
        self._id = id
        self._id_at = reference.find(id) if id else 0
        self._created_at = reference.find(created) if created else 0
        self._created = created
        self._text = reference
        if id:
            self._text = reference.replace(id, _ID).replace(created, _CREATED)
        self._last: tuple[bytes, bytes, bytes] = (id, created, reference)

    @cached_property
    def layout(self) -> Layout:
        """Raises WrongAnswer where a frame is missing, which `learn` has ruled out."""
        return _layout(self._frames, self._reference)

    def check(self, body: bytes, *, whole: bool = True) -> None:
        """Compare a body without stamps. Raises WrongAnswer.

        Not `whole` is an answer that its client left: it must be right as far as it came.
        """
        expected = self._expected(body)
        if body != (expected if whole else expected[: len(body)]):
            raise WrongAnswer(_difference(expected, body))

    def check_stamped(self, body: bytes, *, whole: bool = True) -> list[int]:
        """Compare a body with stamps and return those of its whole frames. Raises WrongAnswer."""
        expected = bytearray(self._expected(body))
        stamps = []
        for start, end in zip(self.layout.stamps, self.layout.ends, strict=True):
            stamp = body[start : start + STAMP_WIDTH]
            expected[start : start + len(stamp)] = stamp
            if end <= len(body):
                stamps.append(_nanoseconds(stamp))
        if body != (expected if whole else expected[: len(body)]):
            raise WrongAnswer(_difference(bytes(expected), body))
        if stamps != sorted(set(stamps)):
            raise WrongAnswer("the frames are not in the order in which they were sent")
        return stamps

    def _expected(self, body: bytes) -> bytes:
        if not self._id:
            return self._reference
        id = body[self._id_at : self._id_at + len(self._id)]
        created = body[self._created_at : self._created_at + len(self._created)]
        # Too short to hold both: what is there is compared with the reference.
        id = id if len(id) == len(self._id) else self._id
        created = created if len(created) == len(self._created) else self._created
        if (id, created) != self._last[:2]:
            expected = self._text.replace(_ID, id).replace(_CREATED, created)
            self._last = (id, created, expected)
        return self._last[2]


def learn(frames: int, reference: bytes, *, relayed: bool) -> Template:
    """Make the template of a scenario with this many frames; 0 is one JSON document.

    Raises WrongAnswer when the reference does not say what the scenario says.
    """
    sent = stream_body(frames, "openai") if frames else plain_body("openai")
    if relayed:
        if reference != sent:
            raise WrongAnswer(_difference(sent, reference))
        return Template(frames, reference, b"", b"")
    documents = _read_stream(reference) if frames else [_read(reference)]
    if frames:
        _check_stream(documents, frames)
    else:
        _check_plain(documents[0])
    ids = {str(document["id"]) for document in documents}
    times = {str(document["created"]) for document in documents}
    _require(len(ids) == 1 and len(times) == 1, "an answer has one id and one time")
    id, created = ids.pop().encode(), times.pop().encode()
    _require(len(id) >= 8 and len(created) == 10, f"no id and time: {id!r}, {created!r}")
    found = reference.count(id), len(re.findall(rb'"created": ?%b\b' % created, reference))
    _require(found == (len(documents),) * 2, "id and time stand once in each document")
    return Template(frames, reference, id, created)


def _check_plain(document: dict[str, Any]) -> None:
    choice = document["choices"][0]
    _require(document["object"] == "chat.completion", "the object is not named chat.completion")
    _require(document["model"] == MODEL, f"the model is {document['model']!r}, not {MODEL!r}")
    _require(choice["message"]["content"] == PLAIN_TEXT, "the text is not what was sent")
    _require(choice["finish_reason"] == "stop", "the answer does not end with stop")


def _check_stream(documents: list[dict[str, Any]], frames: int) -> None:
    texts, reasons = [], []
    for document in documents:
        _require(document["object"] == "chat.completion.chunk", "a chunk's object has another name")
        _require(document["model"] == MODEL, f"a chunk's model is {document['model']!r}")
        for choice in document["choices"]:
            if choice["delta"].get("content"):
                texts.append(choice["delta"]["content"])
            if choice.get("finish_reason"):
                reasons.append(choice["finish_reason"])
    _require(len(texts) == frames, f"{len(texts)} text chunks for {frames} frames")
    _require(texts == [frame_text(n) for n in range(frames)], "a chunk's text is not what was sent")
    _require(reasons == ["stop"], f"the stream ends with {reasons}")


def _read_stream(body: bytes) -> list[dict[str, Any]]:
    *events, rest = body.split(b"\n\n")
    _require(not rest and len(events) > 1, f"the stream ends with {rest[-80:]!r}")
    _require(events.pop() == b"data: [DONE]", "the stream does not end with [DONE]")
    _require(all(event.startswith(b"data: ") for event in events), "an event is not all data")
    return [_read(event.removeprefix(b"data: ")) for event in events]


def _read(document: bytes) -> dict[str, Any]:
    try:
        read = json.loads(document)
    except ValueError:
        raise WrongAnswer(f"not JSON: {document[:200]!r}") from None
    _require(isinstance(read, dict) and "choices" in read, f"no answer: {document[:200]!r}")
    return dict(read)


def _layout(frames: int, body: bytes) -> Layout:
    stamps, ends, at = [], [], 0
    for number in range(frames):
        at = body.index(frame_mark(number), at)
        stamps.append(at)
        at = body.index(b"\n\n", at) + 2
        ends.append(at)
    return Layout(tuple(stamps), tuple(ends))


def _nanoseconds(stamp: bytes) -> int:
    if not stamp.isdigit() or stamp == NO_STAMP:
        raise WrongAnswer(f"where a stamp should be there is {stamp!r}")
    return int(stamp)


def _require(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise WrongAnswer(otherwise)


def _difference(expected: bytes, body: bytes) -> str:
    pairs = zip(expected, body, strict=False)
    at = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
    if at is None:
        at = min(len(expected), len(body))
    around = slice(max(at - 60, 0), at + 60)
    return (
        f"{len(body)} bytes where {len(expected)} were expected; they differ from byte {at} on:\n"
        f"  expected ...{expected[around]!r}\n  received ...{body[around]!r}"
    )
