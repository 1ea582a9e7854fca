"""The httpx lane: any `httpx.AsyncClient`, the gateway's own or one that the host gave."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from weakref import WeakKeyDictionary

import anyio
import httpx

from qwen_asgi.errors import (
    Overloaded,
    UpstreamConnectTimeout,
    UpstreamError,
    UpstreamInvalidResponse,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from qwen_asgi.transports import UpstreamRequest, UpstreamResponse
from qwen_asgi.transports._tls import verifying_context

HTTPX_DEFAULT_LIMIT = 100
"""Connections of a client whose pool cannot be asked; httpx's own default."""

KEEP_SECONDS = 30.0
"""How long an unused connection is kept; an upstream that closes it sooner is noticed."""


_ASKED_OF_SOCKETS = frozenset({"family", "getpeername", "getsockname"})


class HttpxTransport:
    """Sends requests through httpx: HTTP/1.1, no redirects, no cookies, nothing read from outside.

    Without `client` it makes its own, for each event loop, and closes what it made; `proxy`, an
    address with or without a user and password, is what they go through. With `client` it uses
    that one as it is, never closes it, and it works in that client's loop only.

    The pool of httpx 0.28 loses connections for good when a request is cancelled at a bad moment,
    which is what a client that leaves does (encode/httpcore#1093 and others). So its own clients
    hold one connection each, and one that was broken off is thrown away; under a given client,
    requests at least never wait inside its pool, where that is most likely.
    """

    def __init__(
        self,
        client: httpx.AsyncClient | None = None,
        *,
        proxy: str | None = None,
        max_connections: int = 1000,
        connect_timeout: float = 10.0,
    ) -> None:
        self._given = client
        self._proxy = proxy
        self._max_connections = max_connections
        self._connect_timeout = connect_timeout
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool] = WeakKeyDictionary()

    @asynccontextmanager
    async def open(
        self, request: UpstreamRequest, *, within: float
    ) -> AsyncIterator[UpstreamResponse]:
        until = _now() + within
        pool = await self._pool()
        await self._take_slot(pool.slots, within)
        call = _Call(pool.take())
        try:
            await self._send(call, request, until)
            yield call
        finally:
            await pool.give_back(call)

    async def aclose(self) -> None:
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.closer.aclose()

    async def _pool(self) -> _Pool:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            self._forget_closed_loops()
            limit = self._max_connections
            if self._given is not None:
                limit = min(limit, _connection_limit(self._given))
            pool = self._pools[loop] = _Pool(self._given, self._proxy, limit)
            await anext(pool.closer)
        return pool

    def _forget_closed_loops(self) -> None:
        # Other threads may do so too at this moment.
        for known in self._pools.keyrefs():
            loop = known()
            if loop is not None and loop.is_closed():
                self._pools.pop(loop, None)

    async def _take_slot(self, slots: asyncio.Semaphore, within: float) -> None:
        patience = min(self._connect_timeout, within)
        try:
            async with asyncio.timeout(patience):
                await slots.acquire()
        except TimeoutError:
            raise Overloaded(
                f"no upstream connection became free within {patience:.3g} seconds; "
                "try again, or raise QWEN_MAX_CONNECTIONS",
                retry_after=1,
            ) from None

    async def _send(self, call: _Call, request: UpstreamRequest, until: float) -> None:
        # The wait for a slot is part of the time that the caller gives.
        within = max(until - _now(), 0.0)
        connect = min(self._connect_timeout, within)
        timeout = httpx.Timeout(None, connect=connect, pool=connect)
        if call.client.is_closed:
            raise UpstreamUnreachable("the http_client that this gateway was given is closed")
        # Our credential stands, whatever a given client would put in its place.
        auth = None if "authorization" in request.headers else httpx.USE_CLIENT_DEFAULT
        with _translated(connect):
            # Built here and not by the client, so that no default header or cookie of it is added.
            outgoing = httpx.Request(
                request.method,
                request.url,
                headers=request.headers,
                content=request.body,
                extensions={"timeout": timeout.as_dict()},
            )
            if (outgoing.url.port or 0) > 65_535:
                raise httpx.InvalidURL("no such port")
            try:
                async with asyncio.timeout(within):
                    call.begin(
                        await call.client.send(
                            outgoing, stream=True, auth=auth, follow_redirects=False
                        )
                    )
            except TimeoutError:
                raise UpstreamTimeout(
                    f"the upstream did not begin to answer within {within:.3g} seconds"
                ) from None


class _Call:
    """One request on its way and, once there is one, its answer as an `UpstreamResponse`."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.response: httpx.Response | None = None
        self.is_whole = False
        """Whether the answer was read to its proper end, so that the connection is as it was."""

    def begin(self, response: httpx.Response) -> None:
        self.response = response
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        encoded = response.headers.get("content-encoding", "identity") != "identity"
        # A response that was made whole, as mocks are, can be read in the one way only.
        decoded = encoded or response.is_stream_consumed
        self._chunks = response.aiter_bytes() if decoded else response.aiter_raw()
        framed = "content-length" in self.headers or "transfer-encoding" in self.headers
        bodiless = self.status in (204, 304)
        is_http1 = response.http_version.startswith("HTTP/1")
        self.ends_by_close = is_http1 and not framed and not bodiless

    async def read(self, within: float) -> bytes:
        with _translated(within):
            try:
                async with asyncio.timeout(within):
                    async for chunk in self._chunks:
                        if chunk:
                            return chunk
            except TimeoutError:
                raise UpstreamTimeout(f"the upstream was silent for {within:.3g} seconds") from None
        self.is_whole = True
        return b""


class _Pool:
    """What one event loop has open: a given client, or clients of one connection each."""

    def __init__(self, given: httpx.AsyncClient | None, proxy: str | None, limit: int) -> None:
        self.slots = asyncio.Semaphore(limit)
        """As many as there may be connections: who waits for one waits here, with a deadline."""
        self.closer = self._closer()
        """Closes what is idle when the event loop ends in an orderly way and nobody else did."""
        self._given = given
        self._proxy = proxy
        self._idle: deque[tuple[float, httpx.AsyncClient]] = deque()
        """Since when, in the loop's time, and who; the one that was used last is used next."""
        self._tls = _tls() if given is None else True
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def take(self) -> httpx.AsyncClient:
        if self._given is not None:
            return self._given
        self._close_old()
        return self._idle.pop()[1] if self._idle else self._new_client()

    async def give_back(self, call: _Call) -> None:
        """Keep the connection of a call, or close what was broken off; then free its slot."""
        if call.is_whole and not self._is_closed:
            if self._given is None:
                self._idle.append((_now(), call.client))
                self._close_old()
            self.slots.release()
            return
        # In a task of its own: who was cancelled once may be again, in the middle of it.
        closing = self._close_later(call)
        closing.add_done_callback(lambda _: self.slots.release())
        await asyncio.shield(closing)

    def _new_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            verify=self._tls,
            proxy=self._proxy,
            limits=httpx.Limits(max_connections=1, keepalive_expiry=KEEP_SECONDS),
            # An upstream's cookies are nobody's: calls of different clients share this one.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            trust_env=False,
        )

    def _close_old(self) -> None:
        while self._idle and self._idle[0][0] < _now() - KEEP_SECONDS:
            self._close_later(_Call(self._idle.popleft()[1]))

    def _close_later(self, call: _Call) -> asyncio.Task[None]:
        task = asyncio.create_task(self._close(call), name="qwen_asgi upstream close")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    async def _close(self, call: _Call) -> None:
        # It is given up anyway; how its connection takes it is of no more interest.
        ignored = suppress(httpx.HTTPError, httpx.StreamError, OSError, anyio.BrokenResourceError)
        if call.response is not None:
            with ignored:
                await call.response.aclose()
        if self._given is None:
            with ignored:
                await call.client.aclose()

    async def _closer(self) -> AsyncGenerator[None]:
        """Event loops close their async generators at their end: `asyncio.run` and servers do."""
        try:
            yield
        finally:
            self._is_closed = True
            while self._idle:
                await self._close(_Call(self._idle.pop()[1]))


@contextmanager
def _translated(seconds: float) -> Iterator[None]:
    """Turn httpx's errors into ours; entered both when a call is opened and at every read.

    The cause is not kept: httpx puts the request, and so the credential, on its exceptions.
    """
    try:
        yield
    except httpx.HTTPError as exc:
        raise _translation(exc, seconds) from None
    except (OSError, httpx.StreamError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        # From transports that translate nothing, under a client that was given.
        raise UpstreamTruncated("the connection to the upstream broke") from None
    except AttributeError as exc:
        if exc.obj is not None or exc.name not in _ASKED_OF_SOCKETS:
            raise
        # uvloop has no socket left of a connection that was reset at once, and anyio asks it.
        raise UpstreamUnreachable("the connection to the upstream broke at once") from None
    except (httpx.InvalidURL, UnicodeError, OverflowError):
        raise UpstreamUnreachable("the upstream's address is not valid") from None


def _translation(exc: httpx.HTTPError, seconds: float) -> UpstreamError:
    match exc:
        case httpx.ConnectTimeout() | httpx.PoolTimeout():
            return UpstreamConnectTimeout(
                f"no connection to the upstream within {seconds:g} seconds"
            )
        case httpx.TimeoutException():
            return UpstreamTimeout("the upstream took too long")
        case httpx.ConnectError() if "CERTIFICATE_VERIFY_FAILED" in str(exc):
            return UpstreamUnreachable(
                "no safe connection to the upstream: its certificate is not valid"
            )
        case httpx.ConnectError() | httpx.ProxyError() | httpx.UnsupportedProtocol():
            return UpstreamUnreachable("the upstream cannot be reached")
        case httpx.ReadError() | httpx.WriteError() | httpx.CloseError():
            return UpstreamTruncated("the connection to the upstream broke")
        case httpx.RemoteProtocolError():
            return UpstreamTruncated("the upstream closed the connection before its answer's end")
        case _:
            return UpstreamInvalidResponse(
                f"the upstream's answer could not be read ({type(exc).__name__})"
            )


def _connection_limit(client: httpx.AsyncClient) -> int:
    """The size of a client's pool, where it has one; httpx offers no public way to ask."""
    pool = getattr(getattr(client, "_transport", None), "_pool", None)
    limit = getattr(pool, "_max_connections", None)
    return limit if isinstance(limit, int) and limit > 0 else HTTPX_DEFAULT_LIMIT


@cache
def _tls() -> ssl.SSLContext:
    """Made once for all; httpx shares it between its clients."""
    return verifying_context()


def _now() -> float:
    return asyncio.get_running_loop().time()
