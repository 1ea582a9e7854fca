"""The httpx lane by itself: its slots, its loops, its errors, and a storm of cancellations."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from qwen_asgi.errors import (
    Overloaded,
    UpstreamError,
    UpstreamInvalidResponse,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from qwen_asgi.testing import Fault, SimulatedQwen, serve
from qwen_asgi.transports import UpstreamRequest
from qwen_asgi.transports.httpx import HttpxTransport
from tests.conftest import UPSTREAM_KEY, ask

pytestmark = pytest.mark.anyio


def call(url: str, *, path: str = "/api/chat/completions", **headers: str) -> UpstreamRequest:
    body = json.dumps({**ask(stream=True), "incremental_output": True}).encode()
    given = {"content-type": "application/json", "authorization": f"Bearer {UPSTREAM_KEY}"}
    return UpstreamRequest(method="POST", url=url + path, headers={**given, **headers}, body=body)


async def read_all(transport: HttpxTransport, request: UpstreamRequest) -> bytes:
    async with transport.open(request, within=10) as response:
        assert response.status == 200
        body = b""
        while data := await response.read(within=10):
            body += data
        return body


# What is sent.


class Recorder:
    """An upstream that shows what reached it."""

    def __init__(self) -> None:
        self.headers: list[list[tuple[bytes, bytes]]] = []
        self.ports: set[int] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.headers.append(scope["headers"])
        self.ports.add(scope["client"][1])
        await receive()
        headers = [(b"set-cookie", b"session=1; Path=/"), (b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def recorder() -> Iterator[tuple[Recorder, str]]:
    recorder = Recorder()
    with serve(recorder, lifespan="off") as url:
        yield recorder, url


async def test_the_headers_are_those_of_the_request_and_no_others(
    recorder: tuple[Recorder, str],
) -> None:
    transport = HttpxTransport()
    request = UpstreamRequest(method="POST", url=recorder[1], headers={"x": "1"}, body=b"{}")
    assert await read_all(transport, request) == b"ok"
    [headers] = recorder[0].headers
    assert {name for name, _ in headers} == {b"host", b"content-length", b"x"}
    await transport.aclose()


@pytest.mark.parametrize("is_given", [False, True], ids=["its own", "given"])
async def test_a_cookie_of_the_upstream_s_is_not_sent_to_it_again(
    recorder: tuple[Recorder, str], is_given: bool
) -> None:
    async with httpx.AsyncClient(cookies={"mine": "1"}, headers={"x-mine": "1"}) as given:
        transport = HttpxTransport(given if is_given else None)
        for _ in range(3):
            await read_all(transport, call(recorder[1]))
        names = {name for headers in recorder[0].headers for name, _ in headers}
        assert not names & {b"cookie", b"x-mine"}
        await transport.aclose()


async def test_the_environment_s_proxies_and_secrets_are_not_used(
    recorder: tuple[Recorder, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    transport = HttpxTransport()
    assert await read_all(transport, call(recorder[1])) == b"ok"
    await transport.aclose()


async def test_a_given_client_s_credential_does_not_replace_the_request_s(
    recorder: tuple[Recorder, str],
) -> None:
    async with httpx.AsyncClient(auth=("user", "password")) as given:
        await read_all(HttpxTransport(given), call(recorder[1]))
    [headers] = recorder[0].headers
    assert dict(headers)[b"authorization"] == f"Bearer {UPSTREAM_KEY}".encode()


# Connections.


async def test_one_connection_serves_one_call_after_the_other(
    recorder: tuple[Recorder, str],
) -> None:
    transport = HttpxTransport()
    for _ in range(5):
        await read_all(transport, call(recorder[1]))
    assert len(recorder[0].ports) == 1
    await transport.aclose()
    await read_all(transport, call(recorder[1]))
    assert len(recorder[0].ports) == 2
    await transport.aclose()


async def test_a_given_client_is_used_and_not_closed(qwen: SimulatedQwen, qwen_url: str) -> None:
    async with httpx.AsyncClient() as given:
        transport = HttpxTransport(given)
        assert await read_all(transport, call(qwen_url))
        await transport.aclose()
        assert not given.is_closed
        assert await read_all(transport, call(qwen_url))
    with pytest.raises(UpstreamUnreachable, match="closed"):
        await read_all(transport, call(qwen_url))


async def test_each_event_loop_has_connections_of_its_own(
    qwen: SimulatedQwen, qwen_url: str
) -> None:
    transport = HttpxTransport()
    assert await read_all(transport, call(qwen_url))
    for _ in range(3):
        # Nobody closes what these open: the end of their loop does.
        body = await asyncio.to_thread(asyncio.run, read_all(transport, call(qwen_url)))
        assert body
    assert await read_all(transport, call(qwen_url))
    await transport.aclose()
    assert qwen.hung_up == 0


async def test_to_close_what_was_never_opened_is_no_error() -> None:
    transport = HttpxTransport()
    await transport.aclose()
    await transport.aclose()


# Slots.


async def test_a_call_beyond_the_limit_waits_its_turn(qwen: SimulatedQwen, qwen_url: str) -> None:
    transport = HttpxTransport(max_connections=2)
    qwen.pace = 0.005
    most = 0

    async def one() -> None:
        nonlocal most
        async with transport.open(call(qwen_url), within=10) as response:
            most = max(most, qwen.open)
            while await response.read(within=10):
                pass

    await asyncio.gather(*(one() for _ in range(10)))
    assert len(qwen.requests) == 10
    assert most <= 2
    await transport.aclose()


async def test_a_given_client_s_own_limit_is_kept(qwen: SimulatedQwen, qwen_url: str) -> None:
    """Who waits inside httpx's pool may break it, so nobody waits there."""
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=1)) as given:
        transport = HttpxTransport(given, connect_timeout=0.1)
        async with transport.open(call(qwen_url), within=10):
            with pytest.raises(Overloaded):
                await read_all(transport, call(qwen_url))
        assert await read_all(transport, call(qwen_url))


@pytest.mark.parametrize(
    ("connect_timeout", "within"), [(0.1, 10.0), (10.0, 0.1)], ids=["connect", "within"]
)
async def test_the_wait_for_a_slot_has_an_end_that_says_what_to_do(
    qwen: SimulatedQwen, qwen_url: str, connect_timeout: float, within: float
) -> None:
    transport = HttpxTransport(max_connections=1, connect_timeout=connect_timeout)
    async with transport.open(call(qwen_url), within=10):
        start = time.monotonic()
        with pytest.raises(Overloaded, match="QWEN_MAX_CONNECTIONS") as caught:
            async with transport.open(call(qwen_url), within=within):
                pass
        assert 0.09 < time.monotonic() - start < 1
        assert (caught.value.status, caught.value.retry_after) == (503, 1)
    assert len(qwen.requests) == 1
    await transport.aclose()


async def test_the_wait_for_a_slot_is_part_of_the_time_there_is(
    qwen: SimulatedQwen, qwen_url: str
) -> None:
    transport = HttpxTransport(max_connections=1, connect_timeout=10)
    held = transport.open(call(qwen_url), within=10)
    await held.__aenter__()
    qwen.fail(Fault.stall(None))
    asyncio.get_running_loop().call_later(
        0.25, lambda: asyncio.ensure_future(held.__aexit__(None, None, None))
    )
    start = time.monotonic()
    with pytest.raises(UpstreamTimeout):
        await read_all_within(transport, call(qwen_url), 0.4)
    assert 0.39 < time.monotonic() - start < 0.6
    await transport.aclose()


async def read_all_within(
    transport: HttpxTransport, request: UpstreamRequest, within: float
) -> None:
    async with transport.open(request, within=within):
        raise AssertionError("it was not to begin")


@pytest.mark.parametrize("moment", ["waiting", "before the head", "reading", "closing"])
async def test_a_cancelled_call_gives_its_slot_back(
    qwen: SimulatedQwen, qwen_url: str, moment: str
) -> None:
    transport = HttpxTransport(max_connections=1, connect_timeout=5)
    for _ in range(3):
        qwen.fail(Fault.stall(None if moment == "before the head" else 2))
        task = asyncio.create_task(read_all(transport, call(qwen_url)))
        await qwen.wait_until(lambda qwen: qwen.open == 1)
        if moment == "waiting":
            waiting = asyncio.create_task(read_all(transport, call(qwen_url)))
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.wait([waiting])
        if moment in ("reading", "closing"):
            await asyncio.sleep(0.02)
        task.cancel()
        if moment == "closing":
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await qwen.wait_until(lambda qwen: qwen.open == 0)
    assert await read_all(transport, call(qwen_url))
    assert len(qwen.requests) == 4
    await transport.aclose()


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
async def test_a_storm_of_cancellations_leaves_connections_that_work(
    qwen: SimulatedQwen, qwen_url: str, twice: bool
) -> None:
    """Twenty workers on ten connections, each cancelled at any moment of its call, over and over.

    One pool of httpx 0.28 for all of them does not stand this, with or without slots before it: it
    ends with ten connections that belong to no request, and each further request times out.
    """
    transport = HttpxTransport(max_connections=10, connect_timeout=5)
    qwen.reply = "short"

    async def worker(dice: random.Random) -> None:
        for _ in range(30):
            task = asyncio.create_task(read_all(transport, call(qwen_url)))
            await asyncio.sleep(dice.uniform(0, 0.03))
            task.cancel()
            if twice:
                # So a host may do, while the first is still being obeyed.
                for _ in range(dice.randrange(4)):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait([task])

    await asyncio.gather(*(worker(random.Random(number)) for number in range(20)))
    await qwen.wait_until(lambda qwen: qwen.open == 0)
    for _ in range(3):
        assert await read_all(transport, call(qwen_url))
    bodies = await asyncio.gather(*(read_all(transport, call(qwen_url)) for _ in range(10)))
    assert all(bodies)
    await transport.aclose()


async def test_a_call_that_outlives_aclose_is_not_cut_and_leaves_nothing_open(
    qwen: SimulatedQwen, qwen_url: str
) -> None:
    transport = HttpxTransport()
    async with transport.open(call(qwen_url), within=10) as response:
        await transport.aclose()
        body = b""
        while data := await response.read(within=10):
            body += data
    assert body.endswith(b"[DONE]\n\n")
    # An open connection would be reported when it is collected; warnings are errors here.
    gc.collect()


# Errors.


@contextmanager
def refusing() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


async def test_what_cannot_be_reached_is_unreachable() -> None:
    transport = HttpxTransport(connect_timeout=5)
    with refusing() as url, pytest.raises(UpstreamUnreachable):
        await read_all(transport, call(url))
    with pytest.raises(UpstreamUnreachable):
        await read_all(transport, call("http://[::1"))
    await transport.aclose()


ERRORS: list[tuple[Exception, type[UpstreamError]]] = [
    (httpx.ConnectTimeout("x"), UpstreamTimeout),
    (httpx.PoolTimeout("x"), UpstreamTimeout),
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
    assert UPSTREAM_KEY not in caught.value.message


async def test_a_bug_is_not_taken_for_an_upstream_s_failure() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        with pytest.raises(ZeroDivisionError):
            await read_all(HttpxTransport(client), call("http://upstream"))


async def test_a_mocked_answer_is_read_like_a_real_one() -> None:
    async with httpx.AsyncClient(
        transport=httpx.MockTransport(lambda request: httpx.Response(200, content=b"whole"))
    ) as client:
        assert await read_all(HttpxTransport(client), call("http://upstream")) == b"whole"


async def test_silence_while_reading_is_waited_for_so_long(
    qwen: SimulatedQwen, qwen_url: str
) -> None:
    transport = HttpxTransport()
    qwen.fail(Fault.stall(1))
    async with transport.open(call(qwen_url), within=10) as response:
        assert await response.read(within=10)
        start = time.monotonic()
        with pytest.raises(UpstreamTimeout, match=r"silent for 0\.1 seconds"):
            await response.read(within=0.1)
        assert 0.09 < time.monotonic() - start < 1
    await qwen.wait_until(lambda qwen: qwen.hung_up == 1)
    await transport.aclose()


async def test_the_head_is_waited_for_so_long(qwen: SimulatedQwen, qwen_url: str) -> None:
    transport = HttpxTransport()
    qwen.fail(Fault.stall(None))
    start = time.monotonic()
    with pytest.raises(UpstreamTimeout):
        await read_all_within(transport, call(qwen_url), 0.1)
    assert 0.09 < time.monotonic() - start < 1
    await qwen.wait_until(lambda qwen: qwen.hung_up == 1)
    await transport.aclose()
