"""An answer that ends too soon: after every byte of it, however its end is told, and in two ways.

What is to come of each is worked out here from the bytes that came.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from qwen_asgi.testing.answers import Answer
from tests.hardening.faulty_upstream import Framing, Play, framing_of, segments
from tests.hardening.outcomes import EMPTY, INVALID, TRUNCATED, WHOLE, Asking, Outcome, broke
from tests.transports.torture import Do, Script

FRAMINGS: tuple[Framing, ...] = ("chunked", "length", "close")
ENDS = {"closed": Do.CLOSE, "reset": Do.RESET}


@dataclass(frozen=True, slots=True)
class Cut:
    """An answer's connection ends after so many bytes."""

    framing: Framing
    end: str
    """`closed` or `reset`."""
    at: int
    """Bytes of all of it, the head included."""

    def __str__(self) -> str:
        return f"{self.end} after byte {self.at}, body by {self.framing}"

    def play(self, answer: Answer) -> Script:
        data = b"".join(part for part, _ in segments(answer, self.framing))[: self.at]
        return [data, ENDS[self.end]] if data else [ENDS[self.end]]


def cuts(answer: Answer, step: int) -> Iterator[Cut]:
    """Yield a cut at every `step` bytes by a closed connection, the body's end told as usual; for
    the other framings and the reset at every 7 times as many; and for all of them at all places of
    some meaning."""
    usual = framing_of(answer)
    for framing in FRAMINGS:
        size = sum(len(part) for part, _ in segments(answer, framing))
        for end in ENDS:
            stride = step if (framing, end) == (usual, "closed") else 7 * step
            for at in sorted({*range(0, size, stride), *_places(answer, framing)}):
                if at < size:
                    yield Cut(framing, end, at)


def _places(answer: Answer, framing: Framing) -> set[int]:
    """Return where the parts of an answer end, and where each is half there."""
    sizes = [len(part) for part, _ in segments(answer, framing)]
    ends = list(accumulate(sizes, initial=0))
    middles = [begin + size // 2 for begin, size in zip(ends, sizes, strict=False)]
    # In the status, in the first header, and before the last line end of the head.
    return {*ends, *middles, 5, 11, 25, sizes[0] - 2}


def expected(cut: Cut, answer: Answer, asking: Asking) -> Outcome:
    """Return what is to come of a cut, by what of the answer was there."""
    body, head, left = b"", 0, cut.at
    for number, (part, is_body) in enumerate(segments(answer, cut.framing)):
        came = part[:left]
        left -= len(came)
        body += came if is_body else b""
        head = head if number else len(part)
    if cut.at < head:
        return TRUNCATED
    # The end of the connection is the proper end of such a body.
    is_clean = cut.framing == "close" and cut.end == "closed"
    if not answer.is_stream:
        return _of_document(body, is_clean, b"".join(answer.frames))
    return asking.of(_of_events(body, is_clean, asking.dialect))


def _of_document(body: bytes, is_clean: bool, whole: bytes) -> Outcome:
    if is_clean and not body:
        return INVALID
    return WHOLE if is_clean and body == whole else TRUNCATED


def _of_events(body: bytes, is_clean: bool, dialect: str) -> Outcome:
    *frames, rest = body.split(b"\n\n")
    has_ended = any(map(_is_last, frames))
    if (is_clean or has_ended) and _is_whole(rest):
        # Only its blank line is missing, and nothing need follow.
        frames, rest = [*frames, rest], b""
    text = "".join(map(_text, frames))
    if b"data: [DONE]" in frames:
        return WHOLE
    if rest.strip():
        return broke(TRUNCATED, text)
    if has_ended or any(map(_is_last, frames)):
        return WHOLE
    if not is_clean or dialect == "qwen-web-v2" or (frames and dialect != "qwen-web-v1"):
        return broke(TRUNCATED, text)
    # Nothing in its frames tells that this is not the end (W1-27), or there are none.
    if text:
        return Outcome(text=text)
    return EMPTY if frames else INVALID


def _is_whole(frame: bytes) -> bool:
    data = frame.removeprefix(b"data: ").strip()
    try:
        return data == b"[DONE]" or isinstance(json.loads(data), dict)
    except ValueError:
        return False


def _text(frame: bytes) -> str:
    choices = _choices(frame)
    return str(choices[0]["delta"].get("content") or "") if choices else ""


def _is_last(frame: bytes) -> bool:
    return any(
        choice.get("finish_reason") is not None or choice["delta"].get("status") == "finished"
        for choice in _choices(frame)
    )


def _choices(frame: bytes) -> Sequence[dict[str, dict[str, str]]]:
    data = frame.removeprefix(b"data: ")
    if not data.startswith(b"{"):
        return ()
    found: Sequence[dict[str, dict[str, str]]] = json.loads(data).get("choices", ())
    return found


__all__ = ["Cut", "Play", "cuts", "expected"]
