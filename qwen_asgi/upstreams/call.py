"""One call of an upstream: dialect and transport put together, with their four deadlines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, TypeVar

from qwen_asgi.chat import Batches, ChatRequest, Event, Message, ModelInfo, Usage
from qwen_asgi.errors import (
    UpstreamError,
    UpstreamFirstTimeout,
    UpstreamIdleTimeout,
    UpstreamInvalidResponse,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamTotalTimeout,
)
from qwen_asgi.transports import Transport, UpstreamRequest, UpstreamResponse
from qwen_asgi.upstreams import AnswerReader, Decoder, Dialect

ERROR_BODY_LIMIT = 64 * 1024
"""Bytes of an error's body that are read; what matters in it comes first."""

DOCUMENT_LIMIT = 4 * 1024 * 1024
"""Bytes of a document beside the chats, such as a list of models, that are read."""

MODELS_SECONDS = 20.0
"""Longest wait for a list of models, for which clients wait that may want another upstream's."""

GRACE = 1.0
"""Seconds that an answer known to be whole may take to say so with its stream's end."""

FOOTER_GRACE = 0.05
"""Seconds that a stream whose end was seen may take to end its body, so that the connection can be
used again; a client that waits for a whole answer waits for this too."""

CLOSING_SECONDS = 2.0
"""How long the end of a gateway may wait for what goes on beside the chats."""

REFUSAL_SECONDS = 2.0
"""Longest wait for the body of a refusal: its status alone says what is needed most."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long to wait for an upstream, in seconds; the transport has the fourth, `connect`."""

    first: float = 120.0
    """Until the answer's first event."""
    idle: float = 60.0
    """Longest silence after it."""
    total: float | None = None
    """Longest life of the whole answer; None for no end."""


class Files(Protocol):
    """How the files in requests come to an upstream before the chats that speak of them."""

    def are_in(self, messages: Sequence[Message]) -> bool:
        """Whether there are any; asked of every chat."""

    async def brought(
        self, request: ChatRequest, check: Callable[[ChatRequest], object], clock: Clock
    ) -> ChatRequest:
        """Return the request with the upstream's files in the place of its own.

        `check` is first given it with stand-ins for them, and raises what is refused anyway. Raises
        InvalidRequest for a file that is not taken, and UpstreamError.
        """

    def forget(self, request: ChatRequest) -> None:
        """Bring the files of such a request anew the next time."""


class Reached:
    """What is reached by HTTP: whose answers a dialect reads, over a transport."""

    def __init__(
        self,
        reader: AnswerReader,
        transport: Transport,
        timeouts: Timeouts,
        *,
        files: Files | None = None,
    ) -> None:
        self.reader = reader
        self.transport = transport
        self.timeouts = timeouts
        self.files = files
        """None where files in a request are the dialect's own matter."""

    async def models(self) -> list[ModelInfo]:
        """Return the models that the upstream has. Raises UpstreamError."""
        timeouts = Timeouts(first=min(self.timeouts.first, MODELS_SECONDS))
        body = await self.document(self.reader.encode_models(), Clock(timeouts))
        return self.reader.decode_models(body)

    async def document(self, call: UpstreamRequest, clock: Clock) -> bytes:
        """Return the body of the answer to a call that is no chat. Raises UpstreamError."""
        try:
            async with self.transport.open(call, within=clock.left()) as response:
                if response.status != 200:
                    raise await self.refusal(response, clock)
                return await read_up_to(DOCUMENT_LIMIT, response, clock)
        except UpstreamTimeout as error:
            raise clock.named(error) from None

    async def aclose(self, within: float = CLOSING_SECONDS) -> None:
        """End what goes on in the running loop beside the chats, which has that many seconds; the
        transport stays open."""

    async def refusal(self, response: UpstreamResponse, clock: Clock) -> UpstreamError:
        """Return the error that an answer of another status than 200 means."""
        body = await self.error_body(response, clock)
        return self.reader.refusal(response.status, response.headers, body)

    async def error_body(self, response: UpstreamResponse, clock: Clock) -> bytes:
        """Return as much as is soon there of what is said beside such a status."""
        body = bytearray()
        until = time.monotonic() + min(REFUSAL_SECONDS, clock.left())
        # The status is known; a body that stalls or breaks off does not change what it means.
        with suppress(UpstreamError):
            while len(body) < ERROR_BODY_LIMIT and (left := until - time.monotonic()) > 0:
                data = await response.read(within=left)
                if not data:
                    break
                body += data
        return bytes(body)


class HTTPUpstream(Reached):
    """An `Upstream` that is asked in one call."""

    def __init__(
        self,
        dialect: Dialect,
        transport: Transport,
        timeouts: Timeouts,
        *,
        files: Files | None = None,
    ) -> None:
        super().__init__(dialect, transport, timeouts, files=files)
        self.dialect = dialect

    def __call__(self, request: ChatRequest) -> _OneCall:
        return _OneCall(self, request)


class Call:
    """One chat: entered with its first events at hand, left when it is over."""

    __slots__ = ("_answer", "_brought", "_opening", "_reached", "_request")

    def __init__(self, reached: Reached, request: ChatRequest) -> None:
        self._reached = reached
        self._request = request
        self._brought: ChatRequest | None = None
        """The request whose files the upstream has, if it has some."""

    async def _encoded(self, encode: Callable[[ChatRequest], _T], clock: Clock) -> _T:
        """Return what `encode` makes of the request once the upstream has the files in it."""
        request, files = self._request, self._reached.files
        try:
            if files is not None and files.are_in(request.messages):
                self._brought = request = await files.brought(request, encode, clock)
            encoded = encode(request)
        except UpstreamError:
            request.notes.attempts += 1
            raise
        request.notes.attempts += 1
        return encoded

    async def _enter(self, call: UpstreamRequest, clock: Clock) -> Batches:
        reached = self._reached
        self._opening = opening = reached.transport.open(call, within=clock.left())
        try:
            response = await opening.__aenter__()
        except UpstreamTimeout as error:
            raise clock.named(error) from None
        try:
            if response.status != 200:
                raise await reached.refusal(response, clock)
            decoder = reached.reader.decoder(self._request, response)
            self._answer = answer = _Answer(response, decoder, clock)
            await answer.begin()
        except BaseException as exc:
            if isinstance(exc, UpstreamRefused) and self._brought is not None and reached.files:
                # It may be for a file that the upstream does not have any more.
                reached.files.forget(self._brought)
            await opening.__aexit__(type(exc), exc, exc.__traceback__)
            raise
        return answer

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if not self._answer.is_whole:
                self._request.notes.leave(self._answer.counted)
            if exc_type is None:
                await self._answer.release()
        finally:
            await self._opening.__aexit__(exc_type, exc, traceback)


class _OneCall(Call):
    __slots__ = ("_upstream",)

    def __init__(self, upstream: HTTPUpstream, request: ChatRequest) -> None:
        super().__init__(upstream, request)
        self._upstream = upstream

    async def __aenter__(self) -> Batches:
        clock = Clock(self._upstream.timeouts, self._request.deadline)
        return await self._enter(await self._encoded(self._upstream.dialect.encode, clock), clock)


async def read_up_to(limit: int, response: UpstreamResponse, clock: Clock) -> bytes:
    """Return a body, of a longer one its first bytes. Raises UpstreamError."""
    body = bytearray()
    while len(body) < limit:
        data = await response.read(within=clock.left())
        if not data:
            break
        body += data
    return bytes(body[:limit])


class Clock:
    """How long the next wait may be, and which of the timeouts it was that ran out."""

    __slots__ = ("_first_until", "_timeouts", "_total_until", "steady")

    def __init__(self, timeouts: Timeouts, deadline: float | None = None) -> None:
        """`deadline` is the request's own, in seconds of the monotonic clock."""
        now = time.monotonic()
        self._timeouts = timeouts
        self.steady = 0.0
        """How long any wait may be from now on; 0 while that changes."""
        self._first_until: float | None = now + timeouts.first
        self._total_until = deadline
        if timeouts.total is not None:
            until = now + timeouts.total
            self._total_until = until if deadline is None else min(until, deadline)

    def begun(self) -> None:
        """The first event is there: from now on it is the silence that counts."""
        self._first_until = None
        if self._total_until is None:
            self.steady = self._timeouts.idle

    def left(self) -> float:
        """Return seconds, more than 0. Raises UpstreamTimeout when there are none left."""
        now = time.monotonic()
        left = self._timeouts.idle if self._first_until is None else self._first_until - now
        if self._total_until is not None:
            left = min(left, self._total_until - now)
        if left <= 0:
            raise self._ran_out()
        return left

    def named(self, error: UpstreamError) -> UpstreamError:
        """Return the error, or the timeout that a transport, which knows only one wait, met."""
        return self._ran_out() if type(error) is UpstreamTimeout else error

    def _ran_out(self) -> UpstreamTimeout:
        timeouts, total = self._timeouts, self._total_until
        # A timer may go off a little early.
        if total is not None and total - time.monotonic() < 0.01:
            return UpstreamTotalTimeout("the answer took longer than it may in all")
        if self._first_until is not None:
            return UpstreamFirstTimeout(
                f"the upstream's first event did not come within {timeouts.first:g} seconds"
            )
        return UpstreamIdleTimeout(f"the upstream was silent for {timeouts.idle:g} seconds")


class _Answer:
    """The batches of one answer: `begin`, iterate, then `release` if all went well."""

    __slots__ = (
        "_at_end",
        "_clock",
        "_decoder",
        "_error",
        "_first",
        "_footer_until",
        "_response",
    )

    def __init__(self, response: UpstreamResponse, decoder: Decoder, clock: Clock) -> None:
        self._response = response
        self._decoder = decoder
        self._clock = clock
        self._first: Sequence[Event] = ()
        self._at_end = False
        self._footer_until = 0.0
        """When the wait for a footer is over; 0 before it has begun."""
        self._error: UpstreamError | None = None

    async def begin(self) -> None:
        """Wait for the first events; raise here, while nothing was sent, if there are none."""
        try:
            self._first = await self.__anext__()
        except StopAsyncIteration:
            raise UpstreamInvalidResponse("the upstream's answer is empty") from None
        self._clock.begun()

    @property
    def is_whole(self) -> bool:
        """Whether its end was seen."""
        return self._decoder.complete

    @property
    def counted(self) -> Usage | None:
        """What was counted so far."""
        return self._decoder.counted

    def __aiter__(self) -> _Answer:
        return self

    async def __anext__(self) -> Sequence[Event]:
        if self._first:
            events, self._first = self._first, ()
            return events
        decoder = self._decoder
        while not decoder.complete and self._error is None:
            try:
                if decoder.ending:
                    data = await self._read_footer()
                else:
                    self._footer_until = 0.0
                    data = await self._response.read(self._clock.steady or self._clock.left())
                if data:
                    events = decoder.feed(data)
                else:
                    self._at_end = True
                    events = decoder.close()
            except UpstreamError as error:
                # What came before it goes out first.
                self._error = self._clock.named(error)
                events = decoder.flush()
            if events:
                return events
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    async def release(self) -> None:
        """Read to the body's end if it is due, so that the connection can be used again."""
        if not self._at_end:
            with suppress(UpstreamError):
                await self._response.read(within=FOOTER_GRACE)

    async def _read_footer(self) -> bytes:
        now = time.monotonic()
        # One wait for all that may still follow: what is no footer does not begin it anew.
        self._footer_until = self._footer_until or now + GRACE
        if now >= self._footer_until:
            return b""
        try:
            return await self._response.read(min(self._footer_until - now, self._clock.left()))
        except UpstreamError:
            # How the connection ends is no longer the answer's matter.
            return b""
