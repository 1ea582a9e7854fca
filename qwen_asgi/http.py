"""The HTTP of ASGI: a request's body in, whole and streamed responses out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Never

from starlette.types import Receive, Scope, Send

from qwen_asgi import sse
from qwen_asgi.begun import Begun, guarded
from qwen_asgi.cutoff import TimeLimit
from qwen_asgi.disconnect import ClientLeft
from qwen_asgi.errors import HeadersTooLarge, RequestTimeout, RequestTooLarge

RawHeaders = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
EVENT_STREAM: RawHeaders = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx and its kin hold a response back unless they are told not to.
    (b"x-accel-buffering", b"no"),
]

MOST_AT_ONCE = 64 * 1024
"""Bytes of events that are sent at once: of more, a slow client would not be told from one that
reads nothing, and the server holds what was sent."""

MOST_HEADERS = 200
MOST_HEADER_BYTES = 64 * 1024
"""What a request's headers may be, names and values together."""

LEAST_BODY = 256 * 1024
"""Bytes of a body, or its end, that must come within each `body_timeout`."""

LINGER_BYTES = 64 * 1024 * 1024
LINGER_SECONDS = 5.0
"""How much of a body that is too long is still taken, so that its client can read the refusal: a
client that is cut off while it sends sees a broken connection and no answer."""


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """Return the request's headers by lower-case name; of several with one name the first."""
    return dict(reversed(list(scope["headers"])))


def check_headers(scope: Scope) -> None:
    """Raise HeadersTooLarge for more than any client needs. Some servers have no such bound."""
    headers = scope["headers"]
    size = sum([len(name) + len(value) for name, value in headers])
    if len(headers) > MOST_HEADERS or size > MOST_HEADER_BYTES:
        raise HeadersTooLarge(
            f"a request may have {MOST_HEADERS} headers, of {MOST_HEADER_BYTES} bytes together"
        )


def announced(headers: Mapping[bytes, bytes]) -> int:
    """Return the length of the body, in bytes, that a request's headers tell; 0 for none."""
    length = headers.get(b"content-length", b"")
    return int(length[:20]) if length.isdigit() else 0


async def refuse_length(headers: Mapping[bytes, bytes], receive: Receive, limit: int) -> Never:
    """Raise RequestTooLarge for a body that is announced with more than `limit` bytes."""
    # A client that waits for "100 Continue" has sent nothing yet, and need not.
    if announced(headers) <= LINGER_BYTES and b"expect" not in headers:
        await _linger(receive)
    raise _too_large(limit)


async def read_body(receive: Receive, limit: int, seconds: float) -> bytes:
    """Return the request's body.

    Raises RequestTooLarge over `limit` bytes, RequestTimeout where neither its end nor `LEAST_BODY`
    bytes more come within so many seconds, and ClientLeft.
    """
    begun = Begun(_receive_part(receive))
    if begun.is_over:
        # Mostly all of it is there at once.
        first, more = begun.value
        if not more:
            return _within(limit, first)
    pace = _Pace(seconds)
    with pace:
        first, more = begun.value if begun.is_over else await begun
        body, more = await _read_on(receive, limit, first, more, pace.begin_anew)
    if more:
        await _linger(receive)
    return _within(limit, bytes(body))


class _Pace(TimeLimit):
    """How slowly a body may come: a client that sends a byte now and then holds a place that others
    wait for."""

    __slots__ = ()

    def error(self) -> Exception:
        return RequestTimeout(
            f"the request's body came too slowly: each {LEAST_BODY} bytes of it, and its end, "
            f"should come within {self._seconds:g} seconds (QWEN_BODY_TIMEOUT)"
        )


async def _read_on(
    receive: Receive, limit: int, first: bytes, more: bool, go_on: Callable[[], None]
) -> tuple[bytearray, bool]:
    """Return all of a body that begins with `first`; of a longer one than `limit` what shows it,
    and whether more of it is to come."""
    body = bytearray(first)
    counted = 0
    while more and len(body) <= limit:
        part, more = await _receive_part(receive)
        body += part
        if len(body) - counted >= LEAST_BODY:
            counted = len(body)
            go_on()
    return body, more


def _within(limit: int, body: bytes) -> bytes:
    if len(body) > limit:
        raise _too_large(limit)
    return body


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"the request's body is longer than {limit} bytes (QWEN_MAX_BODY); send less"
    )


async def _receive_part(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientLeft
    return message.get("body", b""), message.get("more_body", False)


async def _linger(receive: Receive) -> None:
    taken = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            more = True
            while more and taken < LINGER_BYTES:
                part, more = await _receive_part(receive)
                taken += len(part)


class Response:
    """One response to one request: sent whole, or streamed with `start`, `write` and `end`.

    Each raises ClientLeft where the server says that the client is gone.
    """

    __slots__ = ("ended", "headers", "patience", "send", "started")

    def __init__(
        self, send: Send, headers: Iterable[tuple[bytes, bytes]] = (), *, patience: float = 60.0
    ) -> None:
        """`patience` is how long a client may read nothing of what is sent, in seconds: then it
        counts as gone."""
        self.send = send
        self.patience = patience
        self.headers: RawHeaders = list(headers)
        """Sent with whatever response comes; add to it until then."""
        self.started = False
        self.ended = False

    async def whole(
        self,
        status: int,
        body: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        *,
        head: bool = False,
    ) -> None:
        """Send a response that is known in full; to a HEAD request all of it but the body."""
        length = (b"content-length", str(len(body)).encode())
        sending = self._whole(status, b"" if head else body, [*headers, length])
        await guarded(sending, _Unread(self.patience))

    async def _whole(self, status: int, body: bytes, headers: RawHeaders) -> None:
        await self.start(status, headers)
        await self.end(body)

    async def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.started = True
        message = {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, *self.headers],
        }
        try:
            await self.send(message)
        except OSError as exc:
            raise ClientLeft from exc

    async def write(self, data: bytes) -> None:
        try:
            await self.send({"type": "http.response.body", "body": data, "more_body": True})
        except OSError as exc:
            # So servers of ASGI 2.4 and later say that the client is gone.
            raise ClientLeft from exc

    async def end(self, data: bytes) -> None:
        self.ended = True
        try:
            await self.send({"type": "http.response.body", "body": data})
        except OSError as exc:
            raise ClientLeft from exc


class _Unread(TimeLimit):
    """How long a client may read nothing of an answer that is there."""

    __slots__ = ()

    def error(self) -> Exception:
        return ClientLeft()


class EventStream:
    """A streamed response of server-sent events, kept open through silence.

    The response starts with the first event, so that an error before it still has a status of its
    own; or with the first heartbeat, because the connection would not survive a longer silence.
    Comments go out between events only, from a timer that never touches a pending read. The same
    timer sees a client that reads nothing any more: `unread` is called, which ends the request.
    """

    __slots__ = (
        "_headers",
        "_heartbeat",
        "_last",
        "_loop",
        "_ping",
        "_response",
        "_send",
        "_stuck",
        "_stuck_since",
        "_timer",
        "_unread",
        "_wait",
        "_writing",
    )

    def __init__(
        self,
        response: Response,
        heartbeat: float,
        headers: Callable[[], RawHeaders],
        unread: Callable[[], None],
    ) -> None:
        """`heartbeat` is the silence, in seconds, that a comment breaks; 0 for never. `headers` are
        asked for when the response starts."""
        self._response = response
        self._send = response.send
        self._headers = headers
        self._heartbeat = heartbeat
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._writing = False
        self._ping: asyncio.Task[None] | None = None
        self._unread = unread
        self._stuck = 0.0
        """When the last write had ended behind which one was under way, and since when it is."""
        self._stuck_since = 0.0
        self._wait = min(heartbeat or response.patience, response.patience)
        self._timer = self._loop.call_later(self._wait, self._tick)

    @property
    def started(self) -> bool:
        return self._response.started

    @property
    def ended(self) -> bool:
        return self._response.ended

    async def write(self, events: bytes) -> None:
        """Send whole events at once."""
        self._writing = True
        if self._ping is not None or not self._response.started:
            await self._begin()
        try:
            if len(events) > MOST_AT_ONCE:
                events = await self._write_but_the_last(events)
            # As `Response.write` does; this is done for every chunk.
            await self._send({"type": "http.response.body", "body": events, "more_body": True})
        except OSError as exc:
            raise ClientLeft from exc
        self._last = self._loop.time()
        self._writing = False

    async def _write_but_the_last(self, events: bytes) -> bytes:
        """Send what comes before the last `MOST_AT_ONCE` bytes or so, and return these."""
        start = 0
        while len(events) - start > MOST_AT_ONCE:
            end = events.rfind(b"\n\n", start, start + MOST_AT_ONCE)
            if end < 0:
                # One event that is longer: what breaks the stream off must not break an event.
                end = events.find(b"\n\n", start)
            if end < 0:
                break
            end += 2
            piece = events[start:end]
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            self._last = self._loop.time()
            start = end
        return events[start:]

    async def end(self, events: bytes) -> None:
        """Send the last events."""
        self._writing = True
        if self._ping is not None or not self._response.started:
            await self._begin()
        await self._response.end(events)

    def close(self) -> None:
        """Stop the heartbeat; for every way out."""
        self._timer.cancel()
        if self._ping is not None:
            self._ping.cancel()

    async def _begin(self) -> None:
        if self._ping is not None:
            # What ends this wait does not end the comment: half of one would break the stream.
            await asyncio.wait([self._ping])
            self._ping.result()
            self._ping = None
        if not self._response.started:
            await self._start()

    async def _start(self) -> None:
        await self._response.start(200, [*EVENT_STREAM, *self._headers()])

    def _tick(self) -> None:
        now = self._loop.time()
        silence = now - self._last
        is_pinging = self._ping is not None and not self._ping.done()
        wait = self._wait
        if self._writing or is_pinging:
            # The client is slow and not the upstream: it has enough to read.
            if self._stuck != self._last:
                self._stuck, self._stuck_since = self._last, now
            elif now - self._stuck_since >= self._response.patience:
                self._unread()
                return
        elif self._heartbeat and silence >= self._heartbeat:
            self._ping = self._loop.create_task(self._beat(), name="qwen_asgi heartbeat")
        elif self._heartbeat:
            # One timer serves the whole stream: it is moved only when it goes off.
            wait = min(wait, self._heartbeat - silence)
        self._timer = self._loop.call_later(wait, self._tick)

    async def _beat(self) -> None:
        # Should the client have left, the watch on it ends the request.
        with suppress(ClientLeft):
            if not self._response.started:
                await self._start()
            await self._response.write(sse.COMMENT)
        self._last = self._loop.time()
