"""One connection to an upstream, over and over used for one exchange after the other."""

from __future__ import annotations

import asyncio
import select
from typing import cast

from qwen_asgi.transports._response import DirectResponse

LARGEST_JOINED = 64 * 1024
"""Bytes of a body that are copied to go out in one piece with the head."""


class Connection(asyncio.Protocol):
    """Feeds what arrives to the response that is due. `begin` an exchange, `rest` after it."""

    __slots__ = (
        "_loop",
        "_lost",
        "_paused",
        "_poll",
        "_response",
        "_timer",
        "_timer_at",
        "_transport",
        "resting_since",
        "served",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.served = 0
        """Exchanges that came to their proper end."""
        self.resting_since = 0.0
        """In the loop's time."""
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._poll: select.poll | None = None
        self._response: DirectResponse | None = None
        self._lost = False
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    @property
    def is_usable(self) -> bool:
        """Whether a resting connection can take another exchange.

        Its server may have closed it since the loop last looked, so the socket itself is asked.
        """
        return self._is_open and not (self._poll is not None and self._poll.poll(0))

    @property
    def is_reusable(self) -> bool:
        """Whether the exchange came to its proper end and the server keeps the connection."""
        return (
            self._is_open
            and self._response is not None
            and self._response.ended_well
            # An early answer may leave a part of the request unsent.
            and self._transport is not None
            and self._transport.get_write_buffer_size() == 0
        )

    @property
    def _is_open(self) -> bool:
        return not self._lost and self._transport is not None and not self._transport.is_closing()

    def begin(self, head: bytes, body: bytes) -> DirectResponse | None:
        """Send a request; return who receives its answer, or None if not a byte could be sent."""
        transport = self._transport
        assert transport is not None
        self._response = response = DirectResponse(self._loop, self)
        if len(body) <= LARGEST_JOINED:
            transport.write(head + body)
            return None if transport.is_closing() else response
        transport.write(head)
        if transport.is_closing():
            return None
        transport.write(body)
        return response

    def rest(self) -> None:
        """End an exchange that ended well."""
        assert self._response is not None
        self._response.leave()
        self._response = None
        self.served += 1
        self.resting_since = self._loop.time()
        self.resume_reading()

    def close(self) -> None:
        if self._response is not None:
            self._response.leave()
            self._response = None
        self._stop_timer()
        if self._transport is not None:
            # At once, whatever is still to be sent: the upstream is to see that nobody listens.
            self._transport.abort()

    def pause_reading(self) -> None:
        if not self._paused and self._is_open and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._paused and self._is_open and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def wake_at(self, when: float) -> None:
        # One timer serves all waits of all exchanges: it is moved on only when it goes off.
        if self._timer is None or self._timer_at > when:
            self._stop_timer()
            self._timer_at = when
            self._timer = self._loop.call_at(when, self._tick)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        if self._response is not None:
            self._response.overdue(self._loop.time())

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not all loops' transports are asyncio's by type; uvloop's are not.
        self._transport = cast("asyncio.Transport", transport)
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        if self._response is None:
            # Nothing was asked: whatever this is, it must not be taken for the next answer.
            self.close()
        else:
            self._response.feed(data)

    def eof_received(self) -> None:
        # Were it left to the loop, it would first wait until all of the request is sent.
        self.connection_lost(None)
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._stop_timer()
        if self._response is not None:
            self._response.lost(exc)
