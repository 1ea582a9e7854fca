"""The default lane: HTTP/1.1 over asyncio's sockets, parsed by httptools.

A connection serves one exchange at a time. It goes back to its pool only if its answer was read to
the end and the server keeps it open, and is closed in every other case, so that a request that is
cancelled, at whatever moment, never poisons it.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from qwen_asgi.errors import UpstreamUnreachable
from qwen_asgi.transports import UpstreamRequest
from qwen_asgi.transports._connect import Origin
from qwen_asgi.transports._connection import Connection
from qwen_asgi.transports._pool import Pool
from qwen_asgi.transports._response import DirectResponse
from qwen_asgi.transports._tls import verifying_context

_BREAKS = re.compile(r"[\r\n\0]")

MOST_HEADS = 64
"""Rendered request heads that are kept; a dialect needs two or three."""


class DirectTransport:
    """Sends requests over connections that it opens, keeps and bounds itself.

    `max_connections` holds for each origin and event loop; further requests wait their turn,
    `connect_timeout` seconds at most. Certificates and host names are always checked. Redirects are
    not followed, cookies not kept, and no proxy is used.
    """

    def __init__(self, *, max_connections: int = 1000, connect_timeout: float = 10.0) -> None:
        self._max_connections = max_connections
        self._connect_timeout = connect_timeout
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pools] = WeakKeyDictionary()
        self._heads: dict[tuple[str, str], _Head] = {}
        self._tls: ssl.SSLContext | None = None

    def open(self, request: UpstreamRequest, *, within: float) -> _Opening:
        return _Opening(self, request, within)

    async def aclose(self) -> None:
        pools = self._loops.pop(asyncio.get_running_loop(), None)
        if pools is not None:
            await pools.closer.aclose()

    def known_pool(self, loop: asyncio.AbstractEventLoop, origin: Origin) -> Pool | None:
        """Return what `pool` returns, if it was made before."""
        pools = self._loops.get(loop)
        return None if pools is None else pools.by_origin.get(origin)

    async def pool(self, loop: asyncio.AbstractEventLoop, origin: Origin) -> Pool:
        """Return the running loop's connections to `origin`."""
        pools = self._loops.get(loop)
        if pools is None:
            self._forget_closed_loops()
            pools = self._loops[loop] = _Pools()
            await anext(pools.closer)
        pool = pools.by_origin.get(origin)
        if pool is None:
            pool = pools.by_origin[origin] = Pool(
                loop,
                origin,
                self._tls_context() if origin.tls else None,
                limit=self._max_connections,
                patience=self._connect_timeout,
            )
        return pool

    def _forget_closed_loops(self) -> None:
        # Other threads may do so too at this moment.
        for known in self._loops.keyrefs():
            loop = known()
            if loop is not None and loop.is_closed():
                self._loops.pop(loop, None)

    def head(self, request: UpstreamRequest) -> _Head:
        """Return a request's head, all of it but the length of its body.

        A dialect sends the same headers to the same address every time: they are rendered once.
        """
        key = (request.method, request.url)
        known = self._heads.get(key)
        if known is not None and known.headers is request.headers:
            return known
        if len(self._heads) >= MOST_HEADS:
            self._heads.clear()
        head = self._heads[key] = _render(request)
        return head

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = verifying_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls


class _Pools:
    """What one event loop has open."""

    def __init__(self) -> None:
        self.by_origin: dict[Origin, Pool] = {}
        self.closer = self._closer()
        """Closes what is open when the event loop ends in an orderly way and nobody else did."""

    async def _closer(self) -> AsyncGenerator[None]:
        """Event loops close their async generators at their end: `asyncio.run` and servers do."""
        try:
            yield
        finally:
            for pool in self.by_origin.values():
                pool.close()


@dataclass(slots=True, repr=False)
class _Head:
    """A request's head as it goes out, but for the length of its body. It holds the credential:
    what shows a frame's locals, as some reports of errors do, is not to show that."""

    origin: Origin
    data: bytes
    headers: Mapping[str, str]
    """What it was rendered from."""

    def start(self, body: bytes) -> bytes:
        """Return all that goes out before a body."""
        return b"%b\r\ncontent-length: %d\r\n\r\n" % (self.data, len(body))


class _Opening:
    """One request on its way: entered when the head of its answer is there."""

    __slots__ = ("_connection", "_pool", "_request", "_transport", "_within")

    def __init__(self, transport: DirectTransport, request: UpstreamRequest, within: float) -> None:
        self._transport = transport
        self._request = request
        self._within = within
        self._pool: Pool | None = None
        self._connection: Connection | None = None

    async def __aenter__(self) -> DirectResponse:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._within
        transport, request = self._transport, self._request
        head = transport.head(request)
        self._pool = pool = transport.known_pool(loop, head.origin) or await transport.pool(
            loop, head.origin
        )
        try:
            # Mostly a connection lies ready.
            self._connection = pool.take_idle() or await pool.acquire(until)
            response = self._connection.begin(
                head.start(request.body), request.body
            ) or await self._again(head, until)
            await response.begin(until - loop.time())
        except BaseException:
            self._leave()
            raise
        return response

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()

    async def _again(self, head: _Head, until: float) -> DirectResponse:
        """Send the request by another connection: this one broke before it took a single byte, and
        what was not sent can be sent again. One that was idle may be so; a new one that is, is the
        upstream's failure.
        """
        assert self._pool is not None
        while self._connection is not None and self._connection.served > 0:
            self._leave()
            self._connection = await self._pool.acquire(until)
            response = self._connection.begin(head.start(self._request.body), self._request.body)
            if response is not None:
                return response
        raise UpstreamUnreachable("the connection to the upstream broke at once")

    def _leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._pool is not None:
            self._pool.release(connection)


def _render(request: UpstreamRequest) -> _Head:
    try:
        parts = urlsplit(request.url)
        port = parts.port
        # What the look-up of a name does first, and fails at for some.
        host = (parts.hostname or "").encode("idna").decode("ascii")
    except ValueError:
        raise UpstreamUnreachable("the upstream's address is not valid") from None
    tls = parts.scheme == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"{request.method} {path} HTTP/1.1"]
    if "host" not in request.headers:
        lines.append(f"host: {parts.netloc.rpartition('@')[2]}")
    lines.extend(f"{name}: {value}" for name, value in request.headers.items())
    try:
        data = "\r\n".join(lines).encode("latin-1")
    except UnicodeEncodeError:
        data = b""
    if not data or _BREAKS.search("".join(lines)):
        raise UpstreamUnreachable("a header for the upstream is not one line of latin-1")
    return _Head(Origin(host, port or (443 if tls else 80), tls), data, request.headers)
