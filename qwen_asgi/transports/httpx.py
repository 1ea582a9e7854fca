"""The httpx lane: any `httpx.AsyncClient`, the gateway's own or one that the host gave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from weakref import WeakKeyDictionary

import anyio
import httpx

from qwen_asgi.errors import (
    Overloaded,
    UpstreamError,
    UpstreamInvalidResponse,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from qwen_asgi.transports import UpstreamRequest, UpstreamResponse

HTTPX_DEFAULT_LIMIT = 100
"""Connections of a client whose pool cannot be asked; httpx's own default."""


@dataclass(frozen=True, slots=True)
class _Pool:
    """What one event loop has open."""

    client: httpx.AsyncClient
    slots: asyncio.Semaphore
    """As many as the client has connections.

    The pool of httpx 0.28 loses connections for good when requests are cancelled while they wait
    inside it (encode/httpcore#1093); so they wait here, before it, and with a deadline.
    """
    closer: AsyncGenerator[None]
    """Closes the client when the event loop ends in an orderly way and nobody else did."""
    closing: set[asyncio.Task[None]] = field(default_factory=set)

    async def give_back(self, response: httpx.Response) -> None:
        """Close a response, then free its slot.

        In a task of its own: a cancellation in the middle of it would lose the connection for good
        (again encode/httpcore#1093).
        """
        if response.is_closed:
            self.slots.release()
            return
        task = asyncio.create_task(_close(response), name="qwen_asgi upstream close")
        self.closing.add(task)
        task.add_done_callback(self._closed)
        await asyncio.shield(task)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self.closing.discard(task)
        self.slots.release()


class HttpxTransport:
    """Sends requests through httpx: HTTP/1.1, no redirects, no cookies, nothing read from outside.

    Without `client` it makes one for each event loop, and closes what it made. With `client` it
    uses that one, never closes it, and it works in that client's loop only.
    """

    def __init__(
        self,
        client: httpx.AsyncClient | None = None,
        *,
        max_connections: int = 1000,
        connect_timeout: float = 10.0,
    ) -> None:
        self._given = client
        self._max_connections = max_connections
        self._connect_timeout = connect_timeout
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool] = WeakKeyDictionary()

    @asynccontextmanager
    async def open(
        self, request: UpstreamRequest, *, within: float
    ) -> AsyncIterator[UpstreamResponse]:
        until = asyncio.get_running_loop().time() + within
        pool = await self._pool()
        await self._take_slot(pool.slots, within)
        try:
            response = await self._send(pool.client, request, until)
        except BaseException:
            pool.slots.release()
            raise
        try:
            yield _Response(response)
        finally:
            await pool.give_back(response)

    async def aclose(self) -> None:
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.closer.aclose()

    async def _pool(self) -> _Pool:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            self._forget_closed_loops()
            client = self._given or self._new_client()
            slots = min(self._max_connections, _connection_limit(client))
            closer = _closer(None if self._given else client)
            pool = self._pools[loop] = _Pool(client, asyncio.Semaphore(slots), closer)
            await anext(closer)
        return pool

    def _forget_closed_loops(self) -> None:
        for loop in [loop for loop in self._pools if loop.is_closed()]:
            del self._pools[loop]

    def _new_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            limits=httpx.Limits(
                max_connections=self._max_connections,
                max_keepalive_connections=self._max_connections,
                keepalive_expiry=30.0,
            ),
            # An upstream's cookies are nobody's: calls of different clients share this one.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            trust_env=False,
        )

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

    async def _send(
        self, client: httpx.AsyncClient, request: UpstreamRequest, until: float
    ) -> httpx.Response:
        # The wait for a slot is part of the time that the caller gives.
        within = max(until - asyncio.get_running_loop().time(), 0.0)
        connect = min(self._connect_timeout, within)
        timeout = httpx.Timeout(None, connect=connect, pool=connect)
        # Built here and not by the client, so that no default header and no cookie of it is added.
        outgoing = httpx.Request(
            request.method,
            request.url,
            headers=request.headers,
            content=request.body,
            extensions={"timeout": timeout.as_dict()},
        )
        if client.is_closed:
            raise UpstreamUnreachable("the http_client that this gateway was given is closed")
        # Our credential stands, whatever a given client would put in its place.
        auth = None if "authorization" in request.headers else httpx.USE_CLIENT_DEFAULT
        with _translated(connect):
            try:
                async with asyncio.timeout(within):
                    return await client.send(
                        outgoing, stream=True, auth=auth, follow_redirects=False
                    )
            except TimeoutError:
                raise UpstreamTimeout(
                    f"the upstream did not begin to answer within {within:.3g} seconds"
                ) from None


class _Response:
    """An httpx response as an `UpstreamResponse`."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        encoded = response.headers.get("content-encoding", "identity") != "identity"
        # A response that was made whole, as mocks are, can be read in the one way only.
        whole = response.is_stream_consumed
        self._chunks = response.aiter_bytes() if encoded or whole else response.aiter_raw()

    @property
    def ends_by_close(self) -> bool:
        framed = "content-length" in self.headers or "transfer-encoding" in self.headers
        return not framed and self._response.http_version.startswith("HTTP/1")

    async def read(self, within: float) -> bytes:
        with _translated(within):
            try:
                async with asyncio.timeout(within):
                    async for chunk in self._chunks:
                        if chunk:
                            return chunk
                    return b""
            except TimeoutError:
                raise UpstreamTimeout(f"the upstream was silent for {within:.3g} seconds") from None


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
    except httpx.InvalidURL:
        raise UpstreamUnreachable("the upstream's address (QWEN_BASE_URL) is not valid") from None


def _translation(exc: httpx.HTTPError, seconds: float) -> UpstreamError:
    match exc:
        case httpx.ConnectTimeout() | httpx.PoolTimeout():
            return UpstreamTimeout(f"no connection to the upstream within {seconds:g} seconds")
        case httpx.TimeoutException():
            return UpstreamTimeout("the upstream took too long")
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


async def _close(response: httpx.Response) -> None:
    # It is given up anyway; how its connection takes it is of no more interest.
    with suppress(httpx.HTTPError, httpx.StreamError, OSError, anyio.BrokenResourceError):
        await response.aclose()


async def _closer(client: httpx.AsyncClient | None) -> AsyncGenerator[None]:
    """Event loops close their async generators at their end: `asyncio.run` and servers do."""
    try:
        yield
    finally:
        if client is not None:
            await client.aclose()
