"""A server that does to its clients, byte for byte, what a test tells it to.

It answers each request by a script: bytes are sent, a number is a pause in seconds, and the rest is
in `Do`, `Flood` and `ReadBody`. After a script's last step it waits for the next request. It runs
in a thread with a loop of its own, so that a client whose loop stands still does not stop it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto


class Do(Enum):
    EARLY = auto()
    """A script's first step: answer before the request's body was read."""
    WAIT = auto()
    """Wait until the client leaves."""
    CLOSE = auto()
    RESET = auto()
    HALF_CLOSE = auto()
    """Send no more, but go on to receive."""


@dataclass(frozen=True)
class Flood:
    """Send one piece over and over."""

    piece: bytes
    times: int


@dataclass(frozen=True)
class ReadBody:
    """Read the request's body after all, pausing so many seconds at each piece."""

    pause: float = 0.0


Step = bytes | float | Do | Flood | ReadBody
Script = Sequence[Step]


def answer(body: bytes = b"ok", *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """Return a response with a content-length."""
    lines = [b"HTTP/1.1 " + status, b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def chunked(*pieces: bytes, trailers: bytes = b"") -> bytes:
    """Return a whole chunked response."""
    return CHUNKED_HEAD + b"".join(map(chunk, pieces)) + b"0\r\n" + trailers + b"\r\n"


@dataclass(frozen=True)
class Received:
    """One request, as far as it was read when it counts as received."""

    head: bytes
    body: bytes

    @property
    def headers(self) -> list[tuple[str, str]]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]


@dataclass(eq=False)
class Visit:
    """One connection, from the server's side."""

    opened: float = field(default_factory=time.monotonic)
    closed: float | None = None
    left: bool = False
    """Whether the client ended it."""
    requests: int = 0
    read: int = 0
    """Bytes."""
    written: int = 0
    """Bytes that the system took from the server."""


class TortureServer:
    """Set `default`, or tell it what comes `then`; afterwards look at what it recorded."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.default: Script = (answer(),)
        self.choose: Callable[[Received], Script] | None = None
        """What finds the script for a request that was read whole; it goes before all others."""
        self.greeting: Script = ()
        """Played when a connection opens, before anything was asked."""
        self.visits: list[Visit] = []
        self.requests: list[Received] = []
        self.open = 0
        self.most_open = 0
        self.url = ""
        self._scripts: deque[Script] = deque()
        self._tls = tls
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    def then(self, *steps: Step) -> None:
        """Answer the next request for which nothing is planned by these steps."""
        self._scripts.append(steps)

    def clear(self) -> None:
        """Forget the steps that were to come."""
        self._scripts.clear()

    def forget(self) -> None:
        """Forget what came so far, but for the connections that are open."""
        self.requests.clear()
        self.visits = [visit for visit in self.visits if visit.closed is None]

    def reset_all(self) -> None:
        """Reset every connection now, from any thread."""

        def reset() -> None:
            for writer in self._writers:
                _reset(writer)

        assert self._loop is not None
        self._loop.call_soon_threadsafe(reset)

    async def until(self, condition: Callable[[], object], within: float = 5.0) -> None:
        """Wait, in the client's loop, until `condition` holds."""
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, "it did not come to be in time"
            await asyncio.sleep(0.002)

    @contextmanager
    def running(self) -> Iterator[TortureServer]:
        loop = self._loop = asyncio.new_event_loop()
        stop = asyncio.Event()
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            scheme = "https" if self._tls else "http"
            self.url = f"{scheme}://localhost:{listener.getsockname()[1]}"
            thread = threading.Thread(
                target=lambda: asyncio.Runner(loop_factory=lambda: loop).run(
                    self._run(listener, stop)
                ),
                name="torture server",
            )
            thread.start()
            try:
                yield self
            finally:
                loop.call_soon_threadsafe(stop.set)
                thread.join()
                loop.close()

    async def _run(self, listener: socket.socket, stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self._serve, sock=listener, ssl=self._tls)
        await stop.wait()
        server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        while self._writers:  # noqa: ASYNC110 They go one by one.
            await asyncio.sleep(0.001)
        # A handshake that its client broke off may still be under way on a busy machine.
        handshakes = asyncio.all_tasks() - {asyncio.current_task()}
        for handshake in handshakes:
            handshake.cancel()
        await asyncio.gather(*handshakes, return_exceptions=True)
        # What is closed goes in the loop's next turns.
        for _ in range(3):
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visit = Visit()
        self.visits.append(visit)
        self._writers.add(writer)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        writer.transport.set_write_buffer_limits(high=1, low=0)
        talk = _Talk(self, visit, reader, writer)
        try:
            for step in self.greeting:
                await talk.play(step)
            while True:
                await talk.exchange()
        except _Over:
            pass
        except (OSError, EOFError):
            visit.left = True
        finally:
            writer.close()
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(0.05):
                    await writer.wait_closed()
            # Over TLS a client that is idle does not answer the end.
            writer.transport.abort()
            await asyncio.sleep(0)
            # Not before its end is on its way: who waits for this counts on it.
            visit.closed = time.monotonic()
            self.open -= 1
            self._writers.discard(writer)

    def next_script(self) -> Script:
        return self._scripts.popleft() if self._scripts else self.default


class _Over(Exception):
    """The server ended the connection."""


class _Talk:
    """One connection, and the scripts played on it."""

    def __init__(
        self,
        server: TortureServer,
        visit: Visit,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.server = server
        self.visit = visit
        self.reader = reader
        self.writer = writer
        self.received = b""
        self.unread = 0
        """Bytes of the request's body that are still to come."""
        self.is_deaf = False
        """Whether nothing is read, not even to see the client leave."""

    async def exchange(self) -> None:
        while b"\r\n\r\n" not in self.received:
            await self.receive()
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if b"content-length:" in line]
        self.unread = int(lengths[0].partition(b":")[2]) if lengths else 0
        self.visit.requests += 1
        for step in await self.script(head):
            await self.play(step)

    async def script(self, head: bytes) -> Script:
        """Receive the rest of a request, and return what it is answered by."""
        server = self.server
        script: Script = () if server.choose is not None else server.next_script()
        self.is_deaf = bool(script) and script[0] is Do.EARLY
        body = b"" if self.is_deaf else await self.body(0.0)
        received = Received(head, body)
        server.requests.append(received)
        return script if server.choose is None else server.choose(received)

    async def receive(self) -> None:
        data = await self.reader.read(64 * 1024)
        if not data:
            raise EOFError
        self.visit.read += len(data)
        self.received += data

    async def body(self, pause: float) -> bytes:
        pieces = [self.received[: self.unread]]
        self.unread -= len(pieces[0])
        self.received = self.received[len(pieces[0]) :]
        while self.unread:
            await asyncio.sleep(pause)
            piece = await self.reader.read(min(self.unread, 1024 * 1024))
            if not piece:
                raise EOFError
            pieces.append(piece)
            self.unread -= len(piece)
            self.visit.read += len(piece)
        return b"".join(pieces)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()
        if self.writer.transport.is_closing():
            raise EOFError
        self.visit.written += len(data)

    async def pause(self, seconds: float) -> None:
        if self.is_deaf:
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    await self.receive()

    async def play(self, step: Step) -> None:
        match step:
            case bytes():
                await self.send(step)
            case float() | int():
                await self.pause(step)
            case Flood(piece, times):
                for _ in range(times):
                    await self.send(piece)
            case ReadBody(pause):
                self.is_deaf = False
                await self.body(pause)
            case Do.EARLY:
                pass
            case Do.WAIT:
                while True:
                    await self.receive()
            case Do.HALF_CLOSE:
                self.writer.write_eof()
            case Do.CLOSE:
                raise _Over
            case Do.RESET:
                _reset(self.writer)
                raise _Over


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
