"""An upstream in every dialect, that does what it is told byte for byte, to many at a time.

A request names the fault that it is to meet: `fault-7` stands in its text, or as its model where
the fault is of the call that makes a chat. So faults meet who they are meant for, however many
are under way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count, cycle
from typing import Literal
from urllib.parse import SplitResult, urlsplit
from uuid import uuid4

from qwen_asgi.testing import openai_shaped, web, web_v1, web_v2
from qwen_asgi.testing.answers import Answer
from qwen_asgi.testing.replies import Reply
from tests.transports.torture import Do, Received, Script, Step, TortureServer, chunk

PIECES = ("Hello, ", "世界: it", " is 7.")
REPLY = "".join(PIECES)

Framing = Literal["chunked", "length", "close"]
"""How a body's end is told: by a last chunk, by its length, or by the connection's end."""

Play = Callable[[Answer], Script]
"""What is sent in the place of an answer."""

CALLED = ("f", {"a": 1})
"""The tool that is called where a request offers some, and with what."""

_CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'

OPENINGS = 200
"""How many models there are, `fault-0` and on, whose chats can be kept from being made."""

_NAMED = re.compile(rb"fault-(\d+)")


@dataclass(slots=True)
class Meeting:
    """A fault that somebody is to meet."""

    number: int
    play: Play
    is_opening: bool
    """Whether the call that makes a chat meets it, and not the chat."""
    met: int = 0
    """How often it was."""

    @property
    def name(self) -> str:
        """What a request says to meet it."""
        return f"fault-{self.number}"


class FaultyUpstream:
    """What `torture` serves: right answers, but to those who are to meet a fault."""

    def __init__(self) -> None:
        self.torture = TortureServer()
        self.torture.choose = self._script
        self._numbers = count(OPENINGS)
        self._openings = cycle(range(OPENINGS))
        self._meetings: dict[int, Meeting] = {}

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve, and yield the address."""
        with self.torture.running() as torture:
            yield torture.url.replace("localhost", "127.0.0.1")

    @contextmanager
    def meeting(self, play: Play, *, is_opening: bool = False) -> Iterator[Meeting]:
        """Let whoever names the meeting meet a fault."""
        number = next(self._openings if is_opening else self._numbers)
        meeting = self._meetings[number] = Meeting(number, play, is_opening)
        try:
            yield meeting
        finally:
            del self._meetings[number]

    def _script(self, received: Received) -> Script:
        # Kept, a hundred thousand of them would be taken for a leak.
        self.torture.forget()
        target = received.head.split(b" ", 2)[1].decode()
        answer = answer_to(target, received.body)
        named = _NAMED.search(received.body)
        meeting = self._meetings.get(int(named[1])) if named else None
        if meeting is None or meeting.is_opening != target.endswith("/chats/new"):
            return whole(answer)
        meeting.met += 1
        return meeting.play(answer)


def answer_to(target: str, body: bytes) -> Answer:
    """Return the right answer to a request, in the dialect that is spoken there; its steps can be
    read more than once."""
    answer = _answer_to(urlsplit(target), body)
    return replace(answer, steps=list(answer.steps))


def _answer_to(url: SplitResult, body: bytes) -> Answer:
    reply = Reply(
        thinking=[],
        # The web chats are asked for a call in words.
        text=[_CALL] if b"<tool_call>" in body else list(PIECES),
        tool_calls=[(CALLED[0], json.dumps(CALLED[1]))],
        prompt_tokens=7,
        counts=True,
        says_done=True,
        is_cumulative=False,
        candidates=1,
        pace=0.0,
    )
    match url.path:
        case "/api/chat/completions":
            return web_v1.completion(json.loads(body), reply)
        case "/api/v2/chat/completions":
            return web_v2.completion(url.query.partition("=")[2], json.loads(body), reply)
        case "/api/v2/chats/new":
            return web.succeeded({"id": str(uuid4())})
        case path if path.endswith("/v1/chat/completions"):
            return openai_shaped.completion(json.loads(body), reply)
    # A chat is stopped, or removed.
    return web.succeeded({"status": True})


# How an answer goes out.


def head(answer: Answer, framing: Framing | None = None, *more: bytes) -> bytes:
    """Return status line and headers; unless told, the body's end is told as the answer has it.

    `more` are header lines.
    """
    lines = [b"HTTP/1.1 %d x" % answer.status]
    lines += [
        f"{name}: {value}".encode()
        for name, value in answer.headers.items()
        if name != "content-length"
    ]
    match framing or framing_of(answer):
        case "chunked":
            lines.append(b"transfer-encoding: chunked")
        case "length":
            lines.append(b"content-length: %d" % len(b"".join(answer.frames)))
        case "close":
            lines.append(b"connection: close")
    return b"\r\n".join([*lines, *more, b"", b""])


def framing_of(answer: Answer) -> Framing:
    return "length" if "content-length" in answer.headers else "chunked"


def segments(answer: Answer, framing: Framing | None = None) -> Sequence[tuple[bytes, bool]]:
    """Return all that goes out, in parts, each with whether it is of the body."""
    framing = framing or framing_of(answer)
    frames = [frame for frame in answer.frames if frame]
    parts = [(head(replace(answer, steps=frames), framing), False)]
    for frame in frames:
        if framing == "chunked":
            parts += [(b"%x\r\n" % len(frame), False), (frame, True), (b"\r\n", False)]
        else:
            parts.append((frame, True))
    return [*parts, (b"0\r\n\r\n", False)] if framing == "chunked" else parts


def whole(answer: Answer) -> Script:
    """Send an answer as it is, with its silences, and cut off if it is."""
    answer = replace(answer, steps=list(answer.steps))
    framing = framing_of(answer)
    steps: list[Step] = [answer.delay] if answer.delay else []
    steps.append(head(answer))
    for step in answer.steps:
        if not isinstance(step, bytes):
            steps.append(step)
        elif step:
            steps.append(chunk(step) if framing == "chunked" else step)
            if answer.pace:
                steps.append(answer.pace)
    if not answer.complete:
        return [*steps, Do.CLOSE]
    return [*steps, b"0\r\n\r\n"] if framing == "chunked" else steps


def paced(answer: Answer) -> Script:
    """Send an answer with a silence of 3 ms before each part of it."""
    steps: list[Step] = []
    for step in whole(answer):
        steps += [0.003, step]
    return steps
