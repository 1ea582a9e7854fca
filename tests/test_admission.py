"""How many are let in at once, and who takes too long to ask."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest
from starlette.types import Message

from qwen_asgi import Gateway
from qwen_asgi.admission import Admission
from qwen_asgi.errors import Overloaded, RateLimited
from qwen_asgi.http import LEAST_BODY, MOST_HEADER_BYTES, MOST_HEADERS
from qwen_asgi.testing import Fault, SimulatedQwen, serve
from qwen_asgi.turns import Turns
from tests.conftest import (
    CHAT,
    GatewayURL,
    MakeGateway,
    answer_of,
    ask,
    connect,
    error_of,
    eventually,
    http_bytes,
)


def admission(**limits: Any) -> Admission:
    made = Admission()
    made.set(**{"most": 2, "of_client": None, "queue": 1, "patience": 0.2, **limits})
    return made


async def enter(door: Admission, client: str) -> Callable[[], None]:
    """Enter, wait for the turn, and return what leaves."""
    place = door.enter(client)
    try:
        if not place.has_turn:
            await place.turn()
    except BaseException:
        place.leave()
        raise
    return place.leave


@pytest.mark.anyio
async def test_so_many_are_let_in_some_wait_and_the_others_are_refused() -> None:
    door = admission()
    first, _ = await enter(door, "a"), await enter(door, "b")
    waiting = asyncio.create_task(enter(door, "c"))
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded, match="this gateway is busy, and 1 wait") as caught:
        await enter(door, "d")
    assert caught.value.retry_after == 1
    assert door.open == 3
    first()
    (await waiting)()
    assert door.open == 1


@pytest.mark.anyio
async def test_who_has_waited_goes_before_who_comes() -> None:
    door = admission(most=1, queue=2)
    leave = await enter(door, "a")
    waiting = asyncio.create_task(enter(door, "b"))
    await asyncio.sleep(0.01)
    leave()
    # It is the turn of who waits, though nobody is there at this moment.
    late = door.enter("a")
    assert not late.has_turn
    late.leave()
    (await waiting)()
    assert (door.open, door._of_client, door._queued) == (0, {}, 0)


@pytest.mark.anyio
async def test_a_wait_has_an_end_and_a_client_that_leaves_it_is_not_counted() -> None:
    door = admission(most=1, of_client=2)
    leave = await enter(door, "a")
    with pytest.raises(Overloaded, match=r"was busy for 0\.2 seconds"):
        await enter(door, "a")
    waiting = asyncio.create_task(enter(door, "a"))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait([waiting])
    leave()
    assert (door.open, door._of_client, door._queued) == (0, {}, 0)


@pytest.mark.anyio
async def test_of_each_client_so_many_are_let_in() -> None:
    door = admission(most=None, of_client=2)
    leave = [await enter(door, client) for client in ("a", "a", "b")]
    with pytest.raises(RateLimited, match="2 requests of yours are open") as caught:
        await enter(door, "a")
    assert (caught.value.status, caught.value.code) == (429, "too_many_requests")
    assert caught.value.retry_after == 1
    leave[0]()
    (await enter(door, "a"))()
    # Other settings count those who are there.
    door.set(most=None, of_client=1, queue=0, patience=1)
    with pytest.raises(RateLimited):
        await enter(door, "b")
    for one in leave[1:]:
        one()
    assert door._of_client == {}


def streams(url: str, number: int, **headers: str) -> list[socket.socket]:
    """Open so many streams and leave them open."""
    body = json.dumps(ask(stream=True)).encode()
    opened = []
    for _ in range(number):
        connection = connect(url)
        connection.sendall(http_bytes(body, **headers))
        assert b"200 OK" in connection.recv(65536)
        opened.append(connection)
    return opened


@pytest.fixture
def slow(qwen: SimulatedQwen) -> None:
    qwen.reply, qwen.pieces, qwen.pace = "abcdefghij" * 100, 1, 0.02


@pytest.mark.usefixtures("slow")
def test_a_gateway_that_is_full_says_so_and_is_free_when_clients_leave(
    gateway_url: GatewayURL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    url = gateway_url(max_requests=3, queue=0)
    opened = streams(url, 3)
    response = http.post(url + CHAT, json=ask())
    error = error_of(response, 503)
    assert (error["type"], error["code"]) == ("overloaded_error", "overloaded")
    assert response.headers["retry-after"] == "1"
    # What costs nothing is still told.
    assert http.get(f"{url}/v1/models").status_code == 200
    assert http.get(f"{url}/healthz").status_code == 200
    for connection in opened:
        connection.close()
    qwen.wait_for(lambda qwen: qwen.open == 0)
    eventually(lambda: http.post(url + CHAT, json=ask(stream=False)).status_code == 200)


@pytest.mark.usefixtures("slow")
def test_a_client_has_so_many_and_the_others_have_theirs(
    gateway_url: GatewayURL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    url = gateway_url(client_keys=("one", "two"), max_requests_of_client=2)
    opened = streams(url, 2, authorization="Bearer one")
    refused = http.post(url + CHAT, json=ask(), headers={"authorization": "Bearer one"})
    assert error_of(refused, 429)["code"] == "too_many_requests"
    assert refused.headers["retry-after"] == "1"
    answer_of(http.post(url + CHAT, json=ask(), headers={"authorization": "Bearer two"}))
    for connection in opened:
        connection.close()
    qwen.wait_for(lambda qwen: qwen.open == 0)


@pytest.mark.usefixtures("slow")
def test_where_anybody_is_let_in_a_client_is_an_address(
    gateway_url: GatewayURL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    url = gateway_url(max_requests_of_client=1)
    (opened,) = streams(url, 1)
    assert error_of(http.post(url + CHAT, json=ask()), 429)["code"] == "too_many_requests"
    opened.close()
    qwen.wait_for(lambda qwen: qwen.open == 0)


def test_every_way_out_gives_the_turn_back(
    gateway_url: GatewayURL, make_gateway: MakeGateway, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    gateway = make_gateway(max_requests=1, queue=0)
    url = gateway_url(gateway)
    qwen.fail(Fault.status(500), Fault.truncate(300), Fault.status(429))
    asked: list[dict[str, Any]] = [ask(), ask(stream=True), ask(), {"model": "x"}, ask(model="?")]
    statuses = [http.post(url + CHAT, json=body).status_code for body in asked]
    statuses.append(http.post(url + CHAT, content=b"{").status_code)
    assert statuses == [500, 200, 429, 400, 400, 400]
    eventually(lambda: gateway._admission.open == 0)
    answer_of(http.post(url + CHAT, json=ask()))


def test_a_body_that_does_not_come_ends_the_request(
    make_gateway: MakeGateway, http: httpx.Client
) -> None:
    with serve(make_gateway(body_timeout=0.3, max_requests=1, queue=0)) as url:
        slow = connect(url)
        slow.sendall(http_bytes(b'{"mo', content_length="50"))
        begun = time.monotonic()
        answer = slow.recv(65536)
        assert 0.2 < time.monotonic() - begun < 3
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in answer
        slow.close()
        answer_of(http.post(url + CHAT, json=ask()))


def test_a_body_that_comes_slowly_but_comes_is_waited_for(make_gateway: MakeGateway) -> None:
    with serve(make_gateway(body_timeout=0.5)) as url:
        body = json.dumps(ask("x" * 8 * LEAST_BODY)).encode()
        with connect(url) as slow:
            slow.sendall(http_bytes(content_length=str(len(body))))
            for start in range(0, len(body), LEAST_BODY):
                time.sleep(0.15)
                slow.sendall(body[start : start + LEAST_BODY])
            assert slow.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_byte_now_and_then_does_not_hold_a_turn(
    make_gateway: MakeGateway, http: httpx.Client
) -> None:
    with serve(make_gateway(body_timeout=0.5, max_requests=1, queue=0)) as url:
        with connect(url) as slow:
            slow.sendall(http_bytes(content_length="50"))
            slow.settimeout(0.1)
            answer, begun = b"", time.monotonic()
            while not answer and time.monotonic() - begun < 3:
                with suppress(TimeoutError):
                    answer = slow.recv(65536)
                if not answer:
                    slow.sendall(b" ")
            assert answer.startswith(b"HTTP/1.1 408 ")
        answer_of(http.post(url + CHAT, json=ask()))


def test_a_body_that_is_too_long_and_slow_is_too_long(make_gateway: MakeGateway) -> None:
    with serve(make_gateway(body_timeout=0.3, max_body=1024)) as url, connect(url) as slow:
        head = http_bytes(content_length="0").replace(
            b"content-length: 0", b"transfer-encoding: chunked"
        )
        slow.sendall(head + b"800\r\n" + b" " * 2048 + b"\r\n")
        for _ in range(5):
            time.sleep(0.15)
            slow.sendall(b"1\r\n \r\n")
        slow.sendall(b"0\r\n\r\n")
        assert slow.recv(65536).startswith(b"HTTP/1.1 413 ")


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_leaves_the_queue_is_gone_at_once(
    streamed: bool, make_gateway: MakeGateway, qwen: SimulatedQwen
) -> None:
    gateway = make_gateway(max_requests=1, queue=3)
    with serve(gateway) as url:
        (opened,) = streams(url, 1)
        body = http_bytes(json.dumps(ask(stream=streamed)).encode())
        waiting = [connect(url) for _ in range(3)]
        for one in waiting:
            one.sendall(body)
        eventually(lambda: gateway._admission.open == 4)
        for one in waiting:
            one.close()
        eventually(lambda: gateway._admission.open == 1, 2)
        assert gateway._admission._queued == 0
        eventually(lambda: gateway.ends.get("client_left") == 3, 2)
        assert qwen.open == 1
        opened.close()
        qwen.wait_for(lambda qwen: qwen.open == 0)


@pytest.mark.parametrize(
    "headers",
    [
        {f"x-{number}": "y" for number in range(MOST_HEADERS)},
        {f"x-{number}": "y" * 1500 for number in range(MOST_HEADER_BYTES // 1500 + 1)},
    ],
    ids=["many", "long"],
)
def test_headers_have_a_bound(
    headers: dict[str, str], make_gateway: MakeGateway, http: httpx.Client
) -> None:
    with serve(make_gateway(), http="httptools") as url:
        response = http.post(url + CHAT, json=ask(), headers=headers)
        assert error_of(response, 431)["code"] == "headers_too_large"
        answer_of(http.post(url + CHAT, json=ask(), headers={"x-one": "y" * 1000}))


def test_no_body_holds_up_the_others_for_long(
    make_gateway: MakeGateway, http: httpx.Client
) -> None:
    """Of all that may be sent; what can be told of a machine that others use too."""
    chat = json.dumps(ask()).encode()

    def with_field(data: bytes) -> bytes:
        return chat[:-1] + b',"x":' + data + b"}"

    bodies = {
        "empty lists": with_field(b"[" + b"[]," * 49_000 + b"1]"),
        "nested lists": with_field(b"[" + b"[[[[[[1]]]]]]," * 14_000 + b"1]"),
        "objects": with_field(b"[" + b'{"a":1},' * 49_000 + b"1]"),
        "a long text": json.dumps(ask("x" * 30_000_000)).encode(),
        "all of it refused": with_field(b"[" + b"[]," * 10_000_000 + b"1]"),
    }
    with serve(make_gateway()) as url, ThreadPoolExecutor(1) as pool:
        for body in bodies.values():
            asked = pool.submit(http.post, url + CHAT, content=body, timeout=60)
            longest = longest_wait(url, asked.done)
            assert asked.result().status_code in (200, 413)
            assert longest < 2.0


def longest_wait(url: str, is_over: Callable[[], bool]) -> float:
    """Ask for health over and over, and return the longest time that it took."""
    longest = 0.0
    with httpx.Client(trust_env=False) as http:
        while not is_over():
            begun = time.monotonic()
            http.get(f"{url}/healthz")
            longest = max(longest, time.monotonic() - begun)
    return longest


def test_admission_is_counted_over_threads() -> None:
    door = admission(most=None, of_client=1_000_000)

    def run() -> None:
        async def work() -> None:
            for _ in range(300):
                (await enter(door, "a"))()

        asyncio.run(work())

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert door._of_client == {}


def test_a_loop_that_comes_meanwhile_does_not_hinder_other_settings() -> None:
    turns, is_over = Turns(), threading.Event()

    def come() -> None:
        while not is_over.is_set():
            asyncio.run(_take(turns))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=come) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        for most in range(1, 1500):
            turns.allow(most)
            assert turns.busy >= 0
    finally:
        is_over.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()


async def _take(turns: Turns) -> None:
    (await turns.take(queue=1, patience=1))()


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("fe80::1%eth0", "fe80::1%eth0", True),
    ],
)
@pytest.mark.anyio
async def test_whoever_has_one_address_of_ipv6_has_its_network(
    one: str, other: str, are_one: bool, make_gateway: MakeGateway
) -> None:
    gateway = make_gateway(max_requests_of_client=1)
    bodies: asyncio.Queue[Message] = asyncio.Queue()
    asked = [_asked(gateway, address, bodies) for address in (one, other)]
    first, second = (asyncio.create_task(ask) for ask in asked)
    done, _ = await asyncio.wait([first, second], timeout=0.05)
    assert [task.result() for task in done] == ([429] if are_one else [])
    for task in first, second:
        task.cancel()
    await asyncio.wait([first, second])


async def _asked(gateway: Gateway, address: str, bodies: asyncio.Queue[Message]) -> int:
    """Ask with a body that does not come, and return the status."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "root_path": "",
        "headers": [],
        "client": (address, 1),
    }
    await gateway(scope, bodies.get, send)
    return int(sent[0]["status"])
