"""The simulated upstream, as a program: `python -m tests.benchmarks.upstream`.

It prints its port and serves until its standard input ends. It has to cost next to nothing beside a
gateway: all bytes are rendered before the first request, a request is looked at with `find` alone,
and a paced stream is one timer. It speaks as the Qwen web chat on `/api/...` and as OpenAI on
every other path.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import sys
from collections.abc import Sequence
from functools import cache
from time import monotonic_ns
from typing import cast

from tests.benchmarks.accounting import raise_file_limit
from tests.benchmarks.event_loop import run
from tests.benchmarks.scenarios import (
    TOKEN,
    Dialect,
    Frame,
    plain_answer,
    stream_frames,
)

NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}"

_ANY_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)


class UpstreamConnection(asyncio.Protocol):
    """One connection; its client waits for an answer's end before it asks again."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._frames: list[Frame] = []
        self._pace = 0.0
        self._begun = 0.0
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one by its ways, not by its class.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._received:
            data = self._received + data
        if not _is_whole(data):
            self._received = data
            return
        self._received = b""
        self._answer(data)

    def _answer(self, request: bytes) -> None:
        name = _scenario_name(request)
        if name is None:
            self._transport.write(NOT_FOUND)
            return
        dialect: Dialect = "qwen" if request.startswith(b"POST /api/") else "openai"
        at_once, frames, pace = _rendered(name, dialect)
        if not pace:
            self._write(at_once)
            return
        self._frames, self._pace, self._number = frames, pace, 0
        self._begun = self._loop.time()
        self._send_frame()

    def _write(self, pieces: Sequence[bytes]) -> None:
        """Send all pieces but the last to the socket at once: the transport would join them."""
        socket = self._transport.get_extra_info("socket")
        for number, piece in enumerate(pieces[:-1]):
            try:
                sent = os.write(socket.fileno(), piece)
            except BlockingIOError:
                sent = 0
            except OSError:
                return
            if sent < len(piece):
                self._transport.write(piece[sent:] + b"".join(pieces[number + 1 :]))
                return
        self._transport.write(pieces[-1])

    def _send_frame(self) -> None:
        """Send the frame that is due, by the request's schedule: a late one delays no other."""
        self._transport.write(self._frames[self._number].stamped(monotonic_ns()))
        self._number += 1
        if self._number < len(self._frames):
            due = self._begun + self._number * self._pace
            self._timer = self._loop.call_at(due, self._send_frame)


@cache
def _rendered(name: bytes, dialect: Dialect) -> tuple[list[bytes], list[Frame], float]:
    """Return the writes that answer a scenario at once, or else its frames and seconds between."""
    frames, pace_ms, apart = map(int, name.split(b"/"))
    if not frames:
        return [plain_answer(dialect)], [], 0.0
    stream = stream_frames(frames, dialect)
    pieces = [frame.unstamped() for frame in stream]
    return pieces if apart else [b"".join(pieces)], stream, pace_ms / 1000


def _scenario_name(request: bytes) -> bytes | None:
    start = request.find(TOKEN)
    if start < 0:
        return None
    return request[start + len(TOKEN) : request.index(b";", start)]


def _is_whole(data: bytes) -> bool:
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    # The two spellings that programs use, before the slow way for any other.
    at = data.find(b"ontent-length: ", 0, end)
    if at < 0:
        at = data.find(b"ontent-Length: ", 0, end)
    if at >= 0:
        return len(data) >= end + 4 + int(data[at + 15 : data.index(b"\r", at)])
    if found := _ANY_LENGTH.search(data, 0, end):
        return len(data) >= end + 4 + int(found[1])
    return not _CHUNKED.search(data, 0, end + 2) or data.endswith(b"\r\n0\r\n\r\n")


async def serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(UpstreamConnection, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    # What exists now stays; a collection would only make frames late.
    gc.freeze()
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    raise_file_limit()
    run(serve())
