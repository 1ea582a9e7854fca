"""The httpx lane by itself: the client that a host gives it, and each error that httpx has."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from qwen_asgi.errors import (
    Overloaded,
    UpstreamConnectTimeout,
    UpstreamError,
    UpstreamInvalidResponse,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from qwen_asgi.transports import UpstreamRequest
from qwen_asgi.transports.httpx import HttpxTransport
from tests.transports.exchanges import (
    KEY,
    call,
    check_healthy,
    check_no_secret,
    outcome,
    read,
)
from tests.transports.torture import Do, TortureServer, answer

pytestmark = pytest.mark.anyio


async def read_all(transport: HttpxTransport, request: UpstreamRequest) -> bytes:
    async with transport.open(request, within=10) as response:
        assert response.status == 200
        return await read(response)


# A given client.


async def test_a_given_client_adds_no_cookie_and_no_header_and_keeps_none(
    torture: TortureServer,
) -> None:
    torture.default = (answer(b"", b"set-cookie: session=1; Path=/"),)
    async with httpx.AsyncClient(cookies={"mine": "1"}, headers={"x-mine": "1"}) as given:
        for _ in range(3):
            await read_all(HttpxTransport(given), call(torture.url))
    names = {name.lower() for seen in torture.requests for name, _ in seen.headers}
    assert names == {"accept-encoding", "authorization", "content-length", "host"}


async def test_a_given_client_s_credential_does_not_replace_the_request_s(
    torture: TortureServer,
) -> None:
    async with httpx.AsyncClient(auth=("user", "password")) as given:
        await read_all(HttpxTransport(given), call(torture.url))
    [seen] = torture.requests
    assert dict(seen.headers)["authorization"] == f"Bearer {KEY}"


async def test_a_given_client_is_used_and_not_closed(torture: TortureServer) -> None:
    async with httpx.AsyncClient() as given:
        transport = HttpxTransport(given)
        await check_healthy(transport, torture)
        await transport.aclose()
        assert not given.is_closed
        await check_healthy(transport, torture)
        assert len(torture.visits) == 1
    with pytest.raises(UpstreamUnreachable, match="closed"):
        await read_all(transport, call(torture.url))


async def test_a_given_client_s_own_limit_is_kept(torture: TortureServer) -> None:
    """Who waits inside httpx's pool may break it, so nobody waits there."""
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=1)) as given:
        transport = HttpxTransport(given, connect_timeout=0.1)
        async with transport.open(call(torture.url), within=10):
            with pytest.raises(Overloaded):
                await read_all(transport, call(torture.url))
        await check_healthy(transport, torture)


# Errors.


ERRORS: list[tuple[Exception, type[UpstreamError]]] = [
    (httpx.ConnectTimeout("x"), UpstreamConnectTimeout),
    (httpx.PoolTimeout("x"), UpstreamConnectTimeout),
    (httpx.ReadTimeout("x"), UpstreamTimeout),
    (httpx.WriteTimeout("x"), UpstreamTimeout),
    (httpx.ConnectError("x"), UpstreamUnreachable),
    (httpx.ProxyError("x"), UpstreamUnreachable),
    (httpx.UnsupportedProtocol("x"), UpstreamUnreachable),
    (httpx.InvalidURL("x"), UpstreamUnreachable),
    (httpx.ReadError("x"), UpstreamTruncated),
    (httpx.WriteError("x"), UpstreamTruncated),
    (httpx.CloseError("x"), UpstreamTruncated),
    (httpx.RemoteProtocolError("x"), UpstreamTruncated),
    (ConnectionResetError("x"), UpstreamTruncated),
    (AttributeError("x", name="getpeername", obj=None), UpstreamUnreachable),
    (httpx.DecodingError("x"), UpstreamInvalidResponse),
    (httpx.LocalProtocolError("x"), UpstreamInvalidResponse),
    (httpx.TooManyRedirects("x"), UpstreamInvalidResponse),
]


@pytest.mark.parametrize(("raised", "expected"), ERRORS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("reading", [False, True], ids=["opened", "read"])
async def test_each_error_of_httpx_is_one_of_ours_and_holds_no_secret(
    raised: Exception, expected: type[UpstreamError], reading: bool
) -> None:
    class Body(httpx.AsyncByteStream):
        async def __aiter__(self):  # type: ignore[no-untyped-def]
            yield b"some"
            raise raised

    def answer(request: httpx.Request) -> httpx.Response:
        if reading:
            return httpx.Response(200, stream=Body())
        if isinstance(raised, httpx.RequestError):
            raised.request = request
        raise raised

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        with pytest.raises(expected) as caught:
            await read_all(HttpxTransport(client), call("http://upstream"))
    assert type(caught.value) is expected
    assert caught.value.__cause__ is None
    check_no_secret(caught.value)


@pytest.mark.parametrize("bug", [ZeroDivisionError(), AttributeError("x", name="x", obj=None)])
async def test_a_bug_is_not_taken_for_an_upstream_s_failure(bug: Exception) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise bug

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        with pytest.raises(type(bug)):
            await read_all(HttpxTransport(client), call("http://upstream"))


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})])
async def test_a_connection_that_is_reset_as_soon_as_it_is_open_is_no_bug(
    torture: TortureServer,
) -> None:
    """anyio asks a socket of uvloop's for its other end that may be gone, about once in a hundred
    such connections: with many of them, some are met."""
    torture.greeting = (Do.RESET,)
    transport = HttpxTransport()
    for _ in range(40):
        asked = [outcome(transport, call(torture.url)) for _ in range(20)]
        for got in await asyncio.gather(*asked):
            assert got.error in (UpstreamTruncated, UpstreamUnreachable)
    torture.greeting = ()
    await check_healthy(transport, torture)
    await transport.aclose()


async def test_a_mocked_answer_is_read_like_a_real_one() -> None:
    async with httpx.AsyncClient(
        transport=httpx.MockTransport(lambda request: httpx.Response(200, content=b"whole"))
    ) as client:
        assert await read_all(HttpxTransport(client), call("http://upstream")) == b"whole"
