"""One response of the direct lane as it comes in: fed by its connection, read by who asked."""

from __future__ import annotations

import asyncio
from typing import Protocol

import httptools

from qwen_asgi.errors import (
    UpstreamError,
    UpstreamInvalidResponse,
    UpstreamTimeout,
    UpstreamTruncated,
)
from qwen_asgi.transports._decompress import Decompressor

HEAD_LIMIT = 64 * 1024
"""Bytes of a status line and headers; and of what comes later without being any body, such as
trailers or what a chunk says of itself."""

HEADER_COST = 32
"""Bytes that a header counts beside its letters, so that many short ones are bounded too."""

BUFFER_LIMIT = 256 * 1024
"""Bytes that may wait for their reader before the connection is paused."""


class Source(Protocol):
    """The connection that a response comes over."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def wake_at(self, when: float) -> None:
        """Call the response's `overdue` when the loop's time is `when`, or some time before."""


class _Unacceptable(Exception):
    """Raised inside the parser's call of us; it comes out as the parser's own error."""


class DirectResponse:
    """An `UpstreamResponse`. `begin` waits for its head; then `read` until it returns nothing.

    After `leave` the connection may be another exchange's, and this response waits for nothing.
    """

    __slots__ = (
        "_buffered",
        "_complete",
        "_decompressor",
        "_error",
        "_has_head",
        "_head_size",
        "_keeps_alive",
        "_loop",
        "_parser",
        "_pieces",
        "_source",
        "_stray",
        "_until",
        "_waiter",
        "ends_by_close",
        "headers",
        "status",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, source: Source) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        """Lower-case names; several values of one name are joined by commas."""
        self.ends_by_close = False
        self._loop = loop
        self._source = source
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._head_size = 0
        self._stray = 0
        """Bytes since the last of the body."""
        self._has_head = False
        self._keeps_alive = False
        self._complete = False
        self._error: UpstreamError | None = None
        self._pieces: list[bytes] = []
        self._buffered = 0
        self._decompressor: Decompressor | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._until = 0.0

    @property
    def ended_well(self) -> bool:
        """Whether all of it came and another may follow on its connection."""
        return self._complete and self._keeps_alive

    async def begin(self, within: float) -> None:
        """Wait `within` seconds for status and headers. Raises UpstreamError."""
        until = self._loop.time() + within
        while not self._has_head:
            if self._error is not None:
                raise self._error
            if not await self._arrival(until):
                raise UpstreamTimeout(
                    f"the upstream did not begin to answer within {within:.3g} seconds"
                )
        encoding = self.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            self._decompressor = Decompressor(encoding)

    async def read(self, within: float) -> bytes:
        # What does not bring the body on, such as an endless chunk extension, is silence too.
        until = 0.0
        while True:
            if self._decompressor is not None and (piece := self._decompressor.take()):
                return piece
            if self._pieces:
                pieces, self._pieces = self._pieces, []
                if self._buffered > BUFFER_LIMIT:
                    self._source.resume_reading()
                self._buffered = 0
                data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                if self._decompressor is None:
                    return data
                self._decompressor.feed(data)
            elif self._complete:
                if self._decompressor is not None and self._decompressor.is_cut:
                    raise UpstreamTruncated("the upstream's compressed answer broke off")
                return b""
            elif self._error is not None:
                raise self._error
            else:
                until = until or self._loop.time() + within
                if not await self._arrival(until):
                    raise UpstreamTimeout(f"the upstream was silent for {within:.3g} seconds")

    def leave(self) -> None:
        """Take nothing more, and wait for nothing."""
        # It holds on to this object: without it, what is left is freed at once.
        self._parser = None
        if not self._complete and self._error is None:
            self._error = UpstreamTruncated("the upstream's answer was left before its end")

    def _arrival(self, until: float) -> asyncio.Future[bool]:
        """Return what becomes true when something came, false when the loop's time is `until`."""
        self._until = until
        self._source.wake_at(until)
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def _fail(self, error: UpstreamError) -> None:
        self._keeps_alive = False
        if not self._complete and self._error is None:
            self._error = error

    # Called by the connection.

    def overdue(self, now: float) -> None:
        """End the wait under way if its time is up; else ask to be called again."""
        if self._waiter is None or self._waiter.done():
            return
        if now < self._until:
            self._source.wake_at(self._until)
        else:
            self._waiter.set_result(False)

    def feed(self, data: bytes) -> None:
        if self._parser is None:
            return
        self._stray += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(UpstreamInvalidResponse("the upstream changed the protocol unasked"))
        except httptools.HttpParserError:
            self._fail(
                UpstreamInvalidResponse("the upstream's answer is not HTTP/1.1 as it should be")
            )
        if self._stray > HEAD_LIMIT:
            self._fail(UpstreamInvalidResponse("the upstream's headers are too long"))
        if self._buffered > BUFFER_LIMIT or self._error is not None:
            # After an error nothing that comes is of use.
            self._source.pause_reading()
        if self._has_head or self._error is not None:
            waiter = self._waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(True)

    def lost(self, exc: Exception | None) -> None:
        if exc is None and self._has_head and self.ends_by_close and self._error is None:
            self._complete = True
        self._fail(UpstreamTruncated("the upstream closed the connection before its answer's end"))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self._complete:
            # A second answer to one request: nothing on this connection can be trusted.
            self._keeps_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value) + HEADER_COST
        if self._head_size > HEAD_LIMIT:
            raise _Unacceptable
        if self._has_head:
            # A trailer; they say nothing that is used here.
            return
        key = str(name, "latin-1").lower()
        # Blanks around a value are no part of it (RFC 9110, 5.5).
        text = str(value, "latin-1").strip(" \t")
        known = self.headers.get(key)
        self.headers[key] = text if known is None else f"{known}, {text}"

    def on_headers_complete(self) -> None:
        if self._has_head or self._parser is None:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self.headers.clear()
            return
        coding = self.headers.get("transfer-encoding")
        if coding is not None and coding.strip().lower() != "chunked":
            # chunked is the only transfer coding that anybody may use unasked.
            raise _Unacceptable
        self.status = status
        self._keeps_alive = self._parser.should_keep_alive()
        framed = coding is not None or "content-length" in self.headers
        self.ends_by_close = not framed and status not in (204, 304)
        self._has_head = True

    def on_body(self, data: bytes) -> None:
        if not self._complete:
            self._pieces.append(data)
            self._buffered += len(data)
            self._stray = 0

    def on_message_complete(self) -> None:
        if self._has_head:
            self._complete = True
