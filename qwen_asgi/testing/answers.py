"""What the simulated Qwen sends: one answer as steps, and how it is played to a client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, AnyStr, Literal

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Send

JSON: Literal["application/json"] = "application/json"
EVENT_STREAM: Literal["text/event-stream"] = "text/event-stream"
DONE = b"data: [DONE]\n\n"

Form = Literal["web", "openai"]
"""Whose way of saying no an answer's faults have: the web chat's, or that of OpenAI's kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What goes out for one request."""

    status: int = 200
    headers: Mapping[str, str]
    steps: Iterable[bytes | float]
    """Frames, or the whole body of what is no stream; a number is a silence, in seconds."""
    pace: float = 0.0
    """Seconds between two frames."""
    delay: float = 0.0
    """Seconds before the headers."""
    complete: bool = True
    """Whether the end of the body is said; otherwise the connection is cut."""
    form: Form = "web"

    @property
    def is_stream(self) -> bool:
        return self.headers["content-type"] == EVENT_STREAM

    @property
    def frames(self) -> Iterator[bytes]:
        return (step for step in self.steps if isinstance(step, bytes))


def whole_answer(
    body: bytes,
    content_type: str = JSON,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    form: Form = "web",
) -> Answer:
    """Return an answer whose length its headers tell."""
    usual = {"content-type": content_type, "content-length": str(len(body))}
    return Answer(status=status, headers=usual | dict(headers or {}), steps=(body,), form=form)


def dump(document: Any) -> bytes:
    # The upstream writes a blank behind each comma and colon, as `json` does.
    return json.dumps(document, ensure_ascii=False).encode()


def compact(document: Any) -> bytes:
    """Return JSON as Model Studio writes it: without blanks."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def sse_of(document: Any) -> bytes:
    return b"data: %b\n\n" % compact(document)


def frame(chunk: Mapping[str, Any]) -> bytes:
    return b"data: %b\n\n" % dump(chunk)


def slices(whole: AnyStr, size: int) -> Iterator[AnyStr]:
    return (whole[start : start + size] for start in range(0, len(whole), size))


async def play(answer: Answer, receive: Receive, send: Send) -> None:
    """Send an answer. Raises ClientDisconnect as soon as the client leaves.

    One pending `receive()` watches for that, in silences too.
    """
    leaving = asyncio.ensure_future(_departure(receive))

    async def silence(seconds: float) -> None:
        # With no seconds this still is a turn of the loop, in which a departure is seen.
        await asyncio.wait({leaving}, timeout=seconds)
        if leaving.done():
            raise ClientDisconnect

    try:
        await silence(answer.delay)
        headers = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        for number, step in enumerate(answer.steps):
            if not isinstance(step, bytes):
                await silence(step)
                continue
            if number:
                await silence(answer.pace)
            await send({"type": "http.response.body", "body": step, "more_body": True})
        if answer.complete:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        leaving.cancel()


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
