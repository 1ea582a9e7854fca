"""The connections to one origin, in one event loop."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections import deque
from contextlib import suppress

from qwen_asgi.errors import Overloaded, UpstreamConnectTimeout, UpstreamUnreachable
from qwen_asgi.transports._connect import Origin, connect
from qwen_asgi.transports._connection import Connection

KEEP_SECONDS = 30.0
"""How long an unused connection is kept; servers commonly close theirs after a minute."""


_MISMATCHES = {62, 63, 64}
"""X509_V_ERR_HOSTNAME_MISMATCH, and the same for an e-mail and an IP address."""


class Pool:
    """A bounded number of connections: the last one used is the first to be used again.

    `acquire` and `release` go in pairs. Who finds all connections in use waits in line; nobody
    overtakes. A connection that is released, or the place of one that is gone, is handed to the
    first in line at once, and passed on if that one's wait ended in the same moment.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        origin: Origin,
        tls: ssl.SSLContext | None,
        *,
        limit: int,
        patience: float,
    ) -> None:
        """`patience` is the longest wait for a connection, in seconds."""
        self._loop = loop
        self._origin = origin
        self._tls = tls
        self._limit = limit
        self._patience = patience
        self._open = 0
        """Connections that are open or being opened, idle ones among them."""
        self._idle: list[Connection] = []
        """In the order of their last use."""
        self._line: deque[asyncio.Future[Connection | None]] = deque()
        """Who waits; is handed a connection, or None for the place to open one."""
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    async def acquire(self, until: float) -> Connection:
        """Return a connection to use alone, before the loop's time is `until`.

        Raises Overloaded, UpstreamUnreachable, UpstreamTimeout.
        """
        idle = self.take_idle()
        if idle is not None:
            return idle
        until = min(until, self._loop.time() + self._patience)
        if self._open < self._limit:
            self._open += 1
        else:
            handed = await self._wait(until)
            if handed is not None:
                return handed
        return await self._connect(until)

    def take_idle(self) -> Connection | None:
        """Return a connection as `acquire` does, if one lies ready."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
            self._discard(connection)
        return None

    def release(self, connection: Connection) -> None:
        """Take a connection back, or close it if its exchange did not come to its proper end."""
        if self._closed or not connection.is_reusable:
            self._discard(connection)
            return
        connection.rest()
        self._offer(connection)

    def _offer(self, connection: Connection) -> None:
        """Hand a resting connection to the first in line, or keep it."""
        if self._closed or (self._line and not connection.is_usable):
            # Who is handed one does not look at it again.
            self._discard(connection)
            return
        waiting = self._next_in_line()
        if waiting is not None:
            waiting.set_result(connection)
            return
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = self._loop.call_later(KEEP_SECONDS, self._close_old)

    def close(self) -> None:
        """Close what is idle now, and what is in use when it is released."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        while self._idle:
            self._discard(self._idle.pop())

    def _discard(self, connection: Connection) -> None:
        connection.close()
        self._give_place()

    def _give_place(self) -> None:
        """Let the first in line open a connection in the place of one that is gone."""
        waiting = self._next_in_line()
        if waiting is None:
            self._open -= 1
        else:
            waiting.set_result(None)

    def _next_in_line(self) -> asyncio.Future[Connection | None] | None:
        while self._line:
            waiting = self._line.popleft()
            if not waiting.done():
                return waiting
        return None

    async def _wait(self, until: float) -> Connection | None:
        turn: asyncio.Future[Connection | None] = self._loop.create_future()
        self._line.append(turn)
        begun = self._loop.time()
        try:
            async with asyncio.timeout_at(until):
                return await turn
        except TimeoutError:
            self._pass_on(turn)
            raise Overloaded(
                f"no upstream connection became free within {until - begun:.3g} seconds; "
                "try again, or raise QWEN_MAX_CONNECTIONS",
                retry_after=1,
            ) from None
        except BaseException:
            self._pass_on(turn)
            raise

    def _pass_on(self, turn: asyncio.Future[Connection | None]) -> None:
        """Give on what was handed over in the same moment in which the wait ended."""
        if turn.cancelled() or not turn.done():
            turn.cancel()
            with suppress(ValueError):
                self._line.remove(turn)
            return
        connection = turn.result()
        if connection is None:
            self._give_place()
        else:
            self._offer(connection)

    async def _connect(self, until: float) -> Connection:
        """Open a connection in a place that is already counted."""
        begun = self._loop.time()
        try:
            async with asyncio.timeout_at(until):
                return await connect(self._loop, self._origin, self._tls)
        except BaseException as exc:
            self._give_place()
            match exc:
                case TimeoutError() if exc.errno is None:
                    raise UpstreamConnectTimeout(
                        f"no connection to the upstream within {until - begun:.3g} seconds"
                    ) from None
                case ssl.SSLError():
                    raise UpstreamUnreachable(
                        f"no safe connection to the upstream: {_reason(exc)}"
                    ) from None
                case OSError():
                    raise UpstreamUnreachable(
                        f"the upstream cannot be reached: {_reason(exc)}"
                    ) from None
            raise

    def _close_old(self) -> None:
        """Close what was idle too long, or was closed by the other side meanwhile."""
        self._sweep = None
        oldest = self._loop.time() - KEEP_SECONDS
        idle, self._idle = self._idle, []
        for connection in idle:
            if connection.resting_since > oldest and connection.is_usable:
                self._idle.append(connection)
            else:
                self._discard(connection)
        if self._idle:
            due = self._idle[0].resting_since + KEEP_SECONDS
            # A little later than due, so that one sweep takes all that rested at about one time.
            self._sweep = self._loop.call_at(due + 1.0, self._close_old)


def _reason(exc: OSError) -> str:
    """Return why, in words that name no address: they stand in a client's answer."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        # OpenSSL's own words for a mismatch hold the name that was asked for.
        is_mismatch = exc.verify_code in _MISMATCHES
        reason = "it is for another host" if is_mismatch else exc.verify_message
        return f"its certificate is not valid: {reason}"
    if isinstance(exc, ssl.SSLError):
        return (exc.reason or "TLS failed").replace("_", " ").lower()
    if isinstance(exc, socket.gaierror):
        return "its name is not known"
    # asyncio puts the address into the words that come with the exception.
    return os.strerror(exc.errno) if exc.errno else type(exc).__name__
