"""The load client's side of one connection: cheap, and exact about when bytes came."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic_ns
from typing import cast

import httptools


class Answer:
    """One response as it came."""

    __slots__ = ("broken", "marks", "pieces", "sent", "size", "status")

    def __init__(self) -> None:
        self.sent = monotonic_ns()
        """When the request was written; all times are nanoseconds of CLOCK_MONOTONIC."""
        self.status = 0
        self.pieces: list[bytes] = []
        self.size = 0
        self.marks: list[tuple[int, int]] = []
        """Bytes of the body so far, and when they were there: one for each read."""
        self.broken = False
        """Whether the connection ended before the answer did."""

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def arrivals(self, ends: tuple[int, ...]) -> list[int]:
        """Return when the frames that end at these bytes had come, as far as they came."""
        times: list[int] = []
        marks = iter(self.marks)
        size, now = next(marks, (0, 0))
        for end in ends:
            while size < end:
                following = next(marks, None)
                if following is None:
                    return times
                size, now = following
            times.append(now)
        return times


class Connection(asyncio.Protocol):
    """`ask`, and `ended` is called with the answer when it is whole or broken; then ask again.

    `begun` is called at an answer's first bytes.
    """

    def __init__(
        self,
        ended: Callable[[Connection, Answer], None],
        begun: Callable[[], None] | None = None,
    ) -> None:
        self._ended = ended
        self._begun = begun
        self._parser = httptools.HttpResponseParser(self)
        self._now = 0
        self.answer: Answer | None = None
        """The one under way."""
        self.is_open = False

    def ask(self, request: bytes) -> Answer:
        answer = self.answer = Answer()
        self._transport.write(request)
        return answer

    def leave(self) -> None:
        """Close at once, whatever is under way; `ended` is not called."""
        self.answer = None
        self.is_open = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one by its ways, not by its class.
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self.answer is not None:
            self.answer.broken = True
            self._end(self.answer)

    def data_received(self, data: bytes) -> None:
        self._now = monotonic_ns()
        answer = self.answer
        if answer is None:
            return
        before = answer.size
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()
            return
        if answer is self.answer and answer.size > before:
            answer.marks.append((answer.size, self._now))
            if not before and self._begun is not None:
                self._begun()

    # What httptools calls.

    def on_headers_complete(self) -> None:
        assert self.answer is not None
        self.answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        assert self.answer is not None
        self.answer.pieces.append(body)
        self.answer.size += len(body)

    def on_message_complete(self) -> None:
        assert self.answer is not None
        self.answer.marks.append((self.answer.size, self._now))
        self._end(self.answer)

    def _end(self, answer: Answer) -> None:
        self.answer = None
        self._ended(self, answer)


async def connect(
    port: int,
    ended: Callable[[Connection, Answer], None],
    begun: Callable[[], None] | None = None,
) -> Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        lambda: Connection(ended, begun), "127.0.0.1", port
    )
    return connection


def request_bytes(port: int, body: bytes) -> bytes:
    """Return a chat request as it goes over the wire."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
        "authorization: Bearer sk-benchmark\r\nuser-agent: benchmark\r\naccept: */*\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
