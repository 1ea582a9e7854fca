"""Bodies in, streams out: their bounds, their heartbeat, and a client that does not read."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message

from qwen_asgi import sse
from qwen_asgi.disconnect import ClientLeft
from qwen_asgi.errors import RequestTooLarge
from qwen_asgi.http import (
    LINGER_BYTES,
    MOST_AT_ONCE,
    EventStream,
    Response,
    announced,
    headers_of,
    read_body,
    refuse_length,
)
from qwen_asgi.testing import DONE, Fault, SimulatedQwen
from tests.conftest import (
    CHAT,
    GatewayURL,
    StreamRead,
    ask,
    error_of,
    eventually,
    frame,
    http_bytes,
    stream_of,
    streamed,
)
from tests.programs import UVICORN, running

MEBIBYTE = 1024 * 1024


# Bodies.


class Client:
    """A `receive` that gives a list of body parts, and then is gone or silent."""

    def __init__(self, *parts: bytes, gone: bool = False) -> None:
        last = len(parts) - 1
        self.messages: Iterator[Message] = iter(
            {"type": "http.request", "body": part, "more_body": gone or number < last}
            for number, part in enumerate(parts)
        )
        self.gone = gone
        self.taken = 0

    async def __call__(self) -> Message:
        for message in self.messages:
            self.taken += len(message["body"])
            return message
        if not self.gone:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}


def fields(**headers: str) -> dict[bytes, bytes]:
    return {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}


@pytest.mark.anyio
@pytest.mark.parametrize(
    "parts",
    [[b""], [b"abcdef"], [b"abc", b"def"], [b"", b"abc", b"", b"def", b""], [b"a"] * 6 + [b""]],
)
async def test_a_body_is_read_whole_whatever_its_parts(parts: list[bytes]) -> None:
    assert await read_body(Client(*parts), 6, 5.0) == b"".join(parts)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "parts", [[b"abcdefg"], [b"abcdef", b"g"], [b"abcdef", b"", b"g"], [b"abc", b"defghi"]]
)
async def test_a_body_over_the_limit_is_refused_at_any_split(parts: list[bytes]) -> None:
    begun = time.monotonic()
    with pytest.raises(RequestTooLarge, match="longer than 6 bytes"):
        await read_body(Client(*parts), 6, 5.0)
    # Of one that is all there nothing more is waited for.
    assert time.monotonic() - begun < 2


@pytest.mark.anyio
async def test_a_body_that_says_it_is_too_long_is_taken_but_not_kept() -> None:
    """So that its client, which mostly sends before it reads, gets to see the refusal."""
    client = Client(*[b"x" * 1000] * 50)
    with pytest.raises(RequestTooLarge):
        await refuse_length(fields(content_length="50000"), client, 1000)
    assert client.taken == 50_000


@pytest.mark.anyio
@pytest.mark.parametrize(
    "headers",
    [
        {"content_length": "50000", "expect": "100-continue"},
        {"content_length": str(LINGER_BYTES + 1)},
        {"content_length": "9" * 400},
    ],
    ids=["asks first", "longer than is taken", "beyond all bounds"],
)
async def test_a_body_that_need_not_or_cannot_be_taken_is_not_waited_for(
    headers: dict[str, str],
) -> None:
    client = Client(b"x" * 1000)
    with pytest.raises(RequestTooLarge):
        await refuse_length(fields(**headers), client, 1000)
    assert client.taken == 0


@pytest.mark.parametrize("length", ["", "x", "-5", "1.5", "٣", "+7"])
def test_a_length_that_is_none_is_not_believed(length: str) -> None:
    assert announced(fields(content_length=length)) == 0


@pytest.mark.anyio
@pytest.mark.parametrize("limit", [2, 100])
async def test_a_client_that_leaves_within_its_body_has_left(limit: int) -> None:
    with pytest.raises(ClientLeft):
        await read_body(Client(b"abc", b"def", gone=True), limit, 5.0)


def test_the_first_header_of_a_name_counts() -> None:
    scope = {"headers": [(b"a", b"1"), (b"b", b"\xe4"), (b"a", b"2")]}
    assert headers_of(scope) == {b"a": b"1", b"b": "ä".encode("latin-1")}


# The heartbeat, over a socket.


def test_silence_between_events_is_broken_by_comments(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client
) -> None:
    url = gateway_url(heartbeat=0.05)
    qwen.reply, qwen.pieces = "abcdef", 1
    qwen.fail(Fault.stall(3, seconds=0.4))
    stream = streamed(http.post(url + CHAT, json=ask(stream=True)))
    assert stream.is_whole
    assert stream.text == "abcdef"
    assert 3 <= stream.comments <= 8


def test_silence_before_the_first_event_starts_the_stream(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client
) -> None:
    url = gateway_url(heartbeat=0.05)
    qwen.fail(Fault.stall(None, seconds=0.3))
    body = ask(stream=True, seed=1)
    with http.stream("POST", url + CHAT, json=body) as response:
        assert response.headers["x-qwen-asgi-ignored"] == "seed"
        pieces = response.iter_raw()
        assert next(pieces) == sse.COMMENT
        stream = stream_of(sse.COMMENT + b"".join(pieces))
    assert stream.is_whole
    assert stream.comments >= 2


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault.stall(None), "upstream_first_timeout"),
        (Fault.stall(0), "upstream_first_timeout"),
    ],
)
def test_after_a_comment_an_error_is_the_last_event_and_no_status(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client, fault: Fault, code: str
) -> None:
    url = gateway_url(heartbeat=0.05, first_timeout=0.2)
    qwen.fail(fault)
    stream = streamed(http.post(url + CHAT, json=ask(stream=True)))
    assert stream.is_broken_off
    assert stream.error is not None
    assert stream.error["code"] == code
    assert stream.chunks == []
    assert stream.comments >= 1


@pytest.mark.parametrize("heartbeat", [0, 30])
def test_without_a_heartbeat_there_is_no_comment(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client, heartbeat: float
) -> None:
    url = gateway_url(heartbeat=heartbeat)
    qwen.fail(Fault.stall(2, seconds=0.3))
    stream = streamed(http.post(url + CHAT, json=ask(stream=True)))
    assert stream.is_whole
    assert stream.comments == 0


def test_a_steady_stream_has_no_comment(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client
) -> None:
    url = gateway_url(heartbeat=0.5)
    qwen.reply, qwen.pieces, qwen.pace = "abcdefghijklmnopqrstuvwxyz", 1, 0.03
    stream = streamed(http.post(url + CHAT, json=ask(stream=True)))
    assert stream.is_whole
    assert stream.comments == 0


def test_a_frame_that_drips_is_whole_between_the_comments(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client
) -> None:
    """The timer touches no pending read: no byte is lost, and no event is cut."""
    url = gateway_url(heartbeat=0.01)
    qwen.reply, qwen.pieces = "你好", 1
    qwen.fail(Fault.drip(7, pause=0.004))
    stream = streamed(http.post(url + CHAT, json=ask(stream=True)))
    assert stream.is_whole
    assert stream.text == "你好"
    assert stream.comments > 3


def test_a_plain_answer_gets_no_comment(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client
) -> None:
    url = gateway_url(heartbeat=0.02)
    qwen.fail(Fault.stall(0, seconds=0.2), Fault.block_page())
    assert http.post(url + CHAT, json=ask()).content.startswith(b"{")
    error_of(http.post(url + CHAT, json=ask()), 500)


# The heartbeat, with a `send` of the test's own.


class Slow:
    """A `send` that waits until the client reads."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.reads.set()
        self.messages: list[Message] = []
        self.waiting = 0

    async def __call__(self, message: Message) -> None:
        self.waiting += 1
        assert self.waiting == 1, "two sends at once"
        await self.reads.wait()
        self.waiting -= 1
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


def never() -> None:
    raise AssertionError("the client reads")


@pytest.mark.anyio
async def test_a_slow_reader_gets_no_pile_of_comments() -> None:
    send = Slow()
    stream = EventStream(Response(send), 0.01, lambda: [], never)
    await stream.write(b"data: 1\n\n")
    send.reads.clear()
    writing = asyncio.create_task(stream.write(b"data: 2\n\n"))
    await asyncio.sleep(0.1)
    send.reads.set()
    await writing
    await stream.end(b"data: 3\n\n")
    stream.close()
    assert send.body == b"data: 1\n\ndata: 2\n\ndata: 3\n\n"


@pytest.mark.anyio
async def test_a_comment_that_nobody_reads_is_the_only_one_and_comes_before_the_event() -> None:
    send = Slow()
    send.reads.clear()
    stream = EventStream(Response(send), 0.01, lambda: [], never)
    await asyncio.sleep(0.1)
    assert stream.started
    writing = asyncio.create_task(stream.write(b"data: 1\n\n"))
    await asyncio.sleep(0.05)
    send.reads.set()
    await writing
    stream.close()
    assert send.body == sse.COMMENT + b"data: 1\n\n"
    assert [m["type"] for m in send.messages].count("http.response.start") == 1


@pytest.mark.anyio
async def test_who_stops_to_wait_for_a_comment_does_not_stop_the_comment() -> None:
    """So at the end of the service: the last event goes out behind a comment that is whole."""
    send = Slow()
    stream = EventStream(Response(send), 0.01, lambda: [], never)
    await stream.write(b"data: 1\n\n")
    send.reads.clear()
    await asyncio.sleep(0.05)
    writing = asyncio.create_task(stream.write(b"data: 2\n\n"))
    await asyncio.sleep(0.05)
    writing.cancel()
    await asyncio.wait([writing])
    ending = asyncio.create_task(stream.end(b"data: error\n\n"))
    await asyncio.sleep(0.05)
    send.reads.set()
    await ending
    stream.close()
    assert send.body == b"data: 1\n\n" + sse.COMMENT + b"data: error\n\n"


@pytest.mark.anyio
@pytest.mark.parametrize("heartbeat", [0, 0.02, 30])
@pytest.mark.parametrize("waits", ["chunk", "comment", "end"])
async def test_a_client_that_reads_nothing_any_more_is_told_of_once(
    heartbeat: float, waits: str
) -> None:
    if waits == "comment" and heartbeat != 0.02:
        pytest.skip("there is no comment to wait for")
    told: list[float] = []
    send = Slow()
    response = Response(send, patience=0.2)
    stream = EventStream(response, heartbeat, lambda: [], lambda: told.append(loop.time()))
    loop = asyncio.get_running_loop()
    for _ in range(6):
        # A slow one is none that reads nothing.
        await stream.write(b"data: 1\n\n")
        send.reads.clear()
        writing = asyncio.create_task(stream.write(b"data: 2\n\n"))
        await asyncio.sleep(0.1)
        send.reads.set()
        await writing
    assert told == []
    send.reads.clear()
    begun = loop.time()
    stuck = None
    if waits != "comment":
        write = stream.write if waits == "chunk" else stream.end
        stuck = asyncio.create_task(write(b"data: 3\n\n"))
    await asyncio.sleep(0.8)
    assert len(told) == 1
    assert 0.19 < told[0] - begun < 0.7
    send.reads.set()
    if stuck is not None:
        await stuck
    stream.close()


@pytest.mark.anyio
async def test_much_is_sent_a_little_at_a_time_and_no_event_is_cut() -> None:
    send = Slow()
    stream = EventStream(Response(send), 0, lambda: [], never)
    long = b"data: %b\n\n" % (b"x" * 3 * MOST_AT_ONCE)
    short = b"".join(b"data: %d\n\n" % number for number in range(30_000))
    for events in short, long, short + long + short, long + long, long[:-2], short[:-2], b"":
        send.messages.clear()
        await stream.write(events)
        pieces = [message["body"] for message in send.messages if "body" in message]
        assert b"".join(pieces) == events
        assert all(piece.endswith(b"\n\n") for piece in pieces[:-1])
        assert all(len(piece) <= MOST_AT_ONCE or piece.count(b"\n") < 3 for piece in pieces)
    stream.close()


@pytest.mark.anyio
async def test_a_whole_answer_that_nobody_reads_ends_too() -> None:
    send = Slow()
    send.reads.clear()
    begun = time.monotonic()
    with pytest.raises(ClientLeft):
        await Response(send, patience=0.1).whole(200, b"{}", [])
    assert time.monotonic() - begun < 2


@pytest.mark.anyio
async def test_a_closed_stream_sends_nothing_more_and_leaves_no_task() -> None:
    send = Slow()
    stream = EventStream(Response(send), 0.01, lambda: [], never)
    await stream.write(b"data: 1\n\n")
    stream.close()
    await asyncio.sleep(0.05)
    assert send.body == b"data: 1\n\n"
    assert not [t for t in asyncio.all_tasks() if t.get_name().startswith("qwen_asgi")]


@pytest.mark.anyio
async def test_a_comment_to_a_client_that_has_gone_ends_nothing_by_itself() -> None:
    async def gone(message: Message) -> None:
        raise BrokenPipeError

    stream = EventStream(Response(gone), 0.01, lambda: [], never)
    await asyncio.sleep(0.05)
    with pytest.raises(ClientLeft):
        await stream.write(b"data: 1\n\n")
    stream.close()


# A client that does not read.


class EndlessUpstream:
    """A raw upstream that sends frames as fast as they are taken, up to a number of bytes."""

    def __init__(self, size: int) -> None:
        text = "".join(f"{number:05d} " for number in range(1000))
        self.block = frame(text) * 8
        self.size = size
        self.sent = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def run(self) -> None:
        with suppress(OSError):
            connection, _ = self.listener.accept()
            with connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
                for _ in repeat(None, self.size // len(self.block)):
                    connection.sendall(self.block)
                    self.sent += len(self.block)
                connection.sendall(DONE)

    def close(self) -> None:
        self.listener.close()
        self.thread.join(10)


@pytest.fixture
def endless_upstream() -> Iterator[EndlessUpstream]:
    upstream = EndlessUpstream(200 * MEBIBYTE)
    yield upstream
    upstream.close()


def settled(count: Callable[[], int]) -> int:
    """Wait until a count that grows has stood still for half a second, and return it."""
    last, since = count(), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.02)
        if count() != last:
            last, since = count(), time.monotonic()
    return last


def resident(pid: int) -> int:
    """Return the bytes of memory that a process holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system shows no memory")
def test_a_client_that_does_not_read_holds_the_upstream_back_and_no_memory(
    endless_upstream: EndlessUpstream, tmp_path: Path
) -> None:
    """Of 200 MiB, what is taken from the upstream and what the gateway grows by stays small.

    Measured: 5 to 15 MiB are taken, nearly all of it in the kernel's buffers of the two sockets;
    the process grows by 10 to 15, of which 9 are the first call's own: httpx and certificates.
    """
    command = [*UVICORN, "qwen_asgi.standalone:app", "--port", "0"]
    with running(
        command,
        tmp_path,
        QWEN_API_KEY="key",
        QWEN_BASE_URL=endless_upstream.url,
        QWEN_LOG_FILE="-",
    ) as gateway:
        found = re.search(r"server process \[(\d+)\]", gateway.output)
        assert found is not None
        pid = int(found[1])
        httpx.get(f"{gateway.url}/v1/models", trust_env=False)
        before = resident(pid)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            client.settimeout(10)
            client.connect(("127.0.0.1", gateway.port))
            client.sendall(http_bytes(json.dumps(ask(stream=True)).encode()))
            eventually(lambda: endless_upstream.sent > 0)
            taken = settled(lambda: endless_upstream.sent)
            grown = resident(pid) - before
            print(f"taken {taken / MEBIBYTE:.1f} MiB, grown by {grown / MEBIBYTE:.1f} MiB")
            assert taken < 24 * MEBIBYTE
            assert grown < 24 * MEBIBYTE
            # When it reads again, the stream goes on.
            read = 0
            while read < taken + 4 * MEBIBYTE:
                data = client.recv(MEBIBYTE)
                assert data
                read += len(data)
            assert resident(pid) - before < 24 * MEBIBYTE
        endless_upstream.thread.join(5)
        assert not endless_upstream.thread.is_alive()


def test_the_whole_of_a_long_stream_arrives(
    gateway_url: GatewayURL, qwen: SimulatedQwen, http: httpx.Client
) -> None:
    qwen.reply = "".join(f"{number} " for number in range(100_000))
    qwen.pieces = 10_000
    stream: StreamRead = streamed(http.post(gateway_url() + CHAT, json=ask(stream=True)))
    assert stream.is_whole
    assert stream.text == qwen.reply


@pytest.mark.anyio
async def test_a_response_to_head_is_all_but_the_body() -> None:
    sent: list[Any] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await Response(send, [(b"x", b"y")]).whole(200, b"abc", [(b"a", b"b")], head=True)
    assert sent == [
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"a", b"b"), (b"content-length", b"3"), (b"x", b"y")],
        },
        {"type": "http.response.body", "body": b""},
    ]
