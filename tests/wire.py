"""The recorded bytes of `data/wire`, with what `expected.json` says of each, and ways to read them.

The samples come with the wire notes; their README says what each is and how certain its shape is.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from qwen_asgi.chat import Event, Extra, Finish, ReasoningDelta, TextDelta, Usage
from qwen_asgi.errors import UpstreamError
from qwen_asgi.upstreams import Decoder

FOLDER = Path(__file__).parent / "data" / "wire"

SPLITS = (None, 1, 2, 3, 7, 64)
"""Bytes in a piece; None is all in one."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One recorded request or answer."""

    name: str
    dialect: str
    """As the wire notes name it: `web1`, `web2`, `dashscope`, ..."""
    kind: str
    """`stream`, `body` or `request`."""
    mode: str
    """Of a stream: `cumulative` or `incremental`."""
    status: int
    headers: Mapping[str, str]
    expect: Mapping[str, Any]

    @property
    def data(self) -> bytes:
        return (FOLDER / self.name).read_bytes()

    @property
    def is_chat(self) -> bool:
        """Whether it is an answer to a chat: its text, or why there is none."""
        return "content" in self.expect or "error" in self.expect

    def __str__(self) -> str:
        return self.name


@cache
def samples() -> tuple[Sample, ...]:
    """Return the samples that are there."""
    entries = json.loads((FOLDER / "expected.json").read_bytes())
    found = [entry for entry in entries if (FOLDER / Path(entry["file"]).name).is_file()]
    return tuple(_sample(entry) for entry in found)


def sample(name: str) -> Sample:
    return next(sample for sample in samples() if sample.name == name)


def answers(*dialects: str) -> list[Sample]:
    """Return what an upstream may answer to a chat, the streams and the bodies; of the first web
    chat unless dialects are named, which fails as the second does."""
    found = [s for s in samples() if s.kind in ("stream", "body")]
    if dialects:
        return [s for s in found if s.dialect in dialects]
    return [s for s in found if s.dialect == "web1" or (s.dialect == "web2" and s.kind == "body")]


def streams(*dialects: str) -> list[Sample]:
    return [sample for sample in answers(*dialects) if sample.kind == "stream"]


def _sample(entry: Mapping[str, Any]) -> Sample:
    http = entry.get("http", {})
    return Sample(
        name=Path(entry["file"]).name,
        dialect=entry["dialect"],
        kind=entry["kind"],
        mode=entry.get("mode", ""),
        status=http.get("status", 200),
        headers={"content-type": http.get("content_type", ""), **http.get("headers", {})},
        expect=entry.get("expect", {}),
    )


def pieces(data: bytes, size: int | None) -> list[bytes]:
    """Return `data` cut into pieces of `size` bytes."""
    if size is None:
        return [data]
    return [data[start : start + size] for start in range(0, len(data), size)]


def at(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Return `data` cut at these places, which may be anything."""
    cuts = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(cuts)]


@dataclass(slots=True)
class Reading:
    """What came out of a decoder, and the error that ended it."""

    events: list[Event] = field(default_factory=list)
    error: UpstreamError | None = None

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    @property
    def reasoning(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, ReasoningDelta))

    @property
    def extras(self) -> list[Extra]:
        return [event for event in self.events if isinstance(event, Extra)]

    @property
    def usages(self) -> list[Usage]:
        return [event for event in self.events if isinstance(event, Usage)]

    @property
    def finishes(self) -> list[Finish]:
        return [event for event in self.events if isinstance(event, Finish)]

    @property
    def outcome(self) -> tuple[object, ...]:
        """All that a client could tell two readings apart by; the cut into events is none of it."""
        error = self.error
        kind = None if error is None else (type(error), error.code, str(error), error.retry_after)
        rest = [e for e in self.events if not isinstance(e, TextDelta | ReasoningDelta)]
        return self.text, self.reasoning, rest, kind


def read(decoder: Decoder, body: Sequence[bytes], *, close: bool = True) -> Reading:
    """Feed `body` as a transport would: until the answer is complete or an error ends it."""
    reading = Reading()
    try:
        for piece in body:
            if decoder.complete:
                break
            reading.events += decoder.feed(piece)
        if close:
            reading.events += decoder.close()
    except UpstreamError as error:
        reading.error = error
        reading.events += decoder.flush()
    return reading
