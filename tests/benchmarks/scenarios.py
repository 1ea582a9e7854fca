"""What a benchmark asks for, and what both kinds of upstream answer to it.

A scenario names itself in the text of the request's message, `bench/FRAMES/PACE/APART;`, and that
reaches the upstream through every gateway. The same frames are rendered twice: as the first
generation of the Qwen web chat sends them (facts W1-20 to W1-30 of the wire notes), and as OpenAI
sends them, for rivals that relay or expect that. Each text begins with room for a stamp, the
upstream's time of sending; the room is as wide as any stamp, so all positions stay the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

Dialect = Literal["qwen", "openai"]

MODEL = "qwen-max-latest"
TOKEN = b"bench/"
"""Begins the scenario's name; `;` ends it."""

STAMP_WIDTH = 19
NO_STAMP = b"0" * STAMP_WIDTH
"""Nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share; this where none is."""

PLAIN_TEXT = (
    "Hello! This is a plain answer of about three hundred characters, long enough to be an answer "
    "and short enough that the cost of it is the cost of a request. 你好，世界！It says so in two "
    'languages, with a line end,\nwith “quotes” of both "kinds", and with nothing else worth '
    "reading in it at all."
)
_OPENAI_HEAD = {
    "id": "chatcmpl-BenchmarkBenchmarkBenchmark",
    "created": 1_700_000_000,
    "model": MODEL,
    "system_fingerprint": "fp_benchmark00",
}


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of answer."""

    frames: int
    """Text frames of the stream; 0 is one JSON document."""
    pace_ms: int = 0
    """Milliseconds between two frames, counted from the request; 0 sends all of them at once."""
    apart: bool = False
    """Whether frames that are sent at once are each written on its own, as most servers do it;
    otherwise they are one write, as when a network has held them up."""

    @property
    def life(self) -> float:
        """Seconds from the first frame to the last."""
        return max(self.frames - 1, 0) * self.pace_ms / 1000

    def request(self) -> bytes:
        """Return the body of a client's request."""
        name = f"{TOKEN.decode()}{self.frames}/{self.pace_ms}/{self.apart:d}"
        text = f"{name}; Say something friendly, please."
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": text}],
            "stream": self.frames > 0,
        }
        return json.dumps(body).encode()


def frame_text(number: int) -> str:
    """Return a frame's text; no two of a stream are equal, so that none can be lost unseen."""
    return f"{NO_STAMP.decode()}{number:05d} 你好 "


def frame_mark(number: int) -> bytes:
    """Return what begins that frame's text on the wire, in every rendering."""
    return b"%b%05d" % (NO_STAMP, number)


class Frame(NamedTuple):
    """What is sent at one moment; a stamp may stand in the room between head and tail."""

    head: bytes
    tail: bytes

    def stamped(self, nanoseconds: int) -> bytes:
        return b"%b%019d%b" % (self.head, nanoseconds, self.tail)

    def unstamped(self) -> bytes:
        return self.head + NO_STAMP + self.tail


def plain_answer(dialect: Dialect) -> bytes:
    """Return a whole response, headers and JSON body."""
    body = plain_body(dialect)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


def plain_body(dialect: Dialect) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": PLAIN_TEXT}
    if dialect == "qwen":
        return _dump({"choices": [{"message": message}], "usage": _usage(120)})
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 12, "completion_tokens": 120, "total_tokens": 132}
    document = {**_OPENAI_HEAD, "object": "chat.completion", "choices": [choice], "usage": usage}
    return _compact(document)


@cache
def stream_frames(frames: int, dialect: Dialect) -> list[Frame]:
    """Return a stream as it goes over the wire: HTTP headers, chunked body, its end."""
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
        b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    moments = [b"".join(map(_http_chunk, events)) for events in _moments(frames, dialect)]
    moments[0] = head + moments[0]
    moments[-1] += b"0\r\n\r\n"
    return [Frame(*moment.split(NO_STAMP)) for moment in moments]


def stream_body(frames: int, dialect: Dialect) -> bytes:
    """Return the same stream's events without the HTTP around them."""
    return b"".join(b"".join(events) for events in _moments(frames, dialect))


def _moments(frames: int, dialect: Dialect) -> list[list[bytes]]:
    """Return the events that are sent together; each moment holds one text frame."""
    make = _qwen_chunk if dialect == "qwen" else _openai_text
    moments = [[_event(make(number))] for number in range(frames)]
    if dialect == "openai":
        moments[0].insert(0, _event(_openai_chunk({"role": "assistant", "content": ""})))
        moments[-1].append(_event(_openai_chunk({}, "stop")))
    moments[-1].append(b"data: [DONE]\n\n")
    return moments


def _qwen_chunk(number: int) -> bytes:
    delta = {"role": "assistant", "content": frame_text(number)}
    return _dump({"choices": [{"delta": delta}], "usage": _usage(number + 1)})


def _usage(tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": 12,
        "output_tokens": tokens,
        "total_tokens": 12 + tokens,
        "output_tokens_details": {"text_tokens": tokens},
    }


def _openai_text(number: int) -> bytes:
    return _openai_chunk({"content": frame_text(number)})


def _openai_chunk(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _compact({**_OPENAI_HEAD, "object": "chat.completion.chunk", "choices": [choice]})


def _event(data: bytes) -> bytes:
    return b"data: %b\n\n" % data


def _http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _dump(document: Any) -> bytes:
    # The Qwen web chat writes a blank behind each comma and colon.
    return json.dumps(document, ensure_ascii=False).encode()


def _compact(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
