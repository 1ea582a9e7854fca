"""One connection of a client, byte by byte: what it sends, and all that comes back."""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import address_of, checked_error, connect

NOTHING = "nothing"
"""The outcome of a request that gets no answer: the connection is closed, or waits for the rest."""

OWN_HEADERS = {
    *("content-type", "content-length", "cache-control", "x-accel-buffering", "x-request-id"),
    *("retry-after", "allow", "www-authenticate", "connection", "transfer-encoding"),
    *("date", "server", "x-qwen-asgi-ignored", "x-qwen-asgi-upstream", "x-qwen-asgi-attempts"),
}
"""All that an answer may have: those of the gateway and those of its server."""

_PLAIN_VALUE = re.compile(r"[\x20-\x7e]{0,4096}")
_SERVER_SIDE = {"01", "08"}
"""Of the kernel's table: connections that are open, and those that a client has closed and the
server has not."""


@dataclass(frozen=True)
class RawAnswer:
    """One response as it came over the socket."""

    status: int
    headers: tuple[tuple[str, str], ...]
    """Names in lower case."""
    body: bytes

    @property
    def outcome(self) -> str:
        """Its status and, if it is no success, who refused: an error's code or type, or `server`
        where it is not of the API's form."""
        if self.status < 400:
            return str(self.status)
        fields = dict(self.headers)
        if fields.get("content-type") != "application/json" or "x-request-id" not in fields:
            return f"{self.status} server"
        error = checked_error(json.loads(self.body))
        return f"{self.status} {error['code'] or error['type']}"

    @property
    def has_own_headers_only(self) -> bool:
        """Whether no header was added to it, split, or sent twice."""
        names = [name for name, _ in self.headers]
        return (
            OWN_HEADERS.issuperset(names)
            and len(set(names)) == len(names)
            and all(_PLAIN_VALUE.fullmatch(value) for _, value in self.headers)
        )


def answers_in(data: bytes) -> Iterator[RawAnswer]:
    """Yield the whole responses that `data` begins with. Raises ValueError for what is none."""
    while data:
        head, blank, rest = data.partition(b"\r\n\r\n")
        if not blank:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        found = re.fullmatch(r"HTTP/1\.[01] (\d{3})(?: .*)?", first)
        if found is None:
            raise ValueError(f"no status line: {first[:200]!r}")
        pairs = [line.partition(":") for line in lines]
        headers = tuple((name.lower(), value.strip()) for name, _, value in pairs)
        status, fields = int(found[1]), dict(headers)
        if status < 200 or status in (204, 304):
            body: tuple[bytes, bytes] | None = (b"", rest)
        elif fields.get("transfer-encoding") == "chunked":
            body = _chunks(rest)
        elif "content-length" in fields:
            length = int(fields["content-length"])
            body = (rest[:length], rest[length:]) if len(rest) >= length else None
        else:
            # It goes to the end of the connection.
            body = (rest, b"")
        if body is None:
            return
        if status >= 200:
            yield RawAnswer(status, headers, body[0])
        data = body[1]


def _chunks(data: bytes) -> tuple[bytes, bytes] | None:
    """Return a chunked body and what follows it; None if it is not whole."""
    body = b""
    while True:
        size, end, rest = data.partition(b"\r\n")
        if not end:
            return None
        length = int(size, 16)
        if len(rest) < length + 2:
            return None
        body, data = body + rest[:length], rest[length + 2 :]
        if not length:
            return body, data


def talk(url: str, data: bytes, *, answers: int = 1, within: float = 10.0) -> list[RawAnswer]:
    """Send `data`, and return what is answered until there are so many, the connection ends, or
    nothing came in time; and what comes unasked right behind them."""
    with connect(url) as connection:
        with suppress(OSError):
            connection.sendall(data)
        return hear(connection, answers=answers, within=within)


def hear(connection: socket.socket, *, answers: int = 1, within: float = 10.0) -> list[RawAnswer]:
    """As `talk`, of a connection over which all was sent."""
    received, deadline = b"", time.monotonic() + within
    while (left := deadline - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            data = connection.recv(1024 * 1024)
        except OSError:
            break
        if not data:
            break
        received += data
        if len(list(answers_in(received))) >= answers:
            # One too many would come at once.
            deadline = min(deadline, time.monotonic() + 0.01)
    return list(answers_in(received))


def outcome_of(answers: list[RawAnswer]) -> str:
    return ", ".join(answer.outcome for answer in answers) or NOTHING


def reset(connection: socket.socket) -> None:
    """Leave without a goodbye, by RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def open_connections(url: str) -> int:
    """Return how many connections a server on this machine has open; Linux only."""
    port = f"{address_of(url)[1]:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return sum(row[1].endswith(f":{port}") and row[3] in _SERVER_SIDE for row in rows)


def open_files() -> int:
    """Return how many file descriptors this process has; Linux only."""
    return len(list(Path("/proc/self/fd").iterdir()))
