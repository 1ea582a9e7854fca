"""The two lanes as the tests of both see them, and one exchange put into a value."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from qwen_asgi.errors import QwenASGIError
from qwen_asgi.transports import Transport, UpstreamRequest, UpstreamResponse
from qwen_asgi.transports.direct import DirectTransport
from qwen_asgi.transports.httpx import HttpxTransport
from tests.transports.torture import TortureServer

KEY = "torture-secret-key"
PROMPT = b"torture-secret-prompt"

_numbers = itertools.count(1)

_HEADERS = {"authorization": f"Bearer {KEY}", "accept-encoding": "identity"}


def call(url: str, *, size: int = 0, **headers: str) -> UpstreamRequest:
    """Return a request unlike all others, of `size` bytes at least."""
    body = b"%d %b" % (next(_numbers), PROMPT)
    return UpstreamRequest(
        method="POST",
        url=url + "/chat",
        headers={**_HEADERS, **headers} if headers else _HEADERS,
        body=body.ljust(size, b"."),
    )


@dataclass
class Lane:
    """Makes transports of one kind."""

    name: str
    """`direct` or `httpx`."""
    made: list[Transport] = field(default_factory=list)

    @property
    def is_direct(self) -> bool:
        return self.name == "direct"

    def __call__(self, **options: Any) -> Transport:
        kind = DirectTransport if self.is_direct else HttpxTransport
        self.made.append(kind(**options))
        return self.made[-1]


@dataclass(frozen=True)
class Outcome:
    """What became of a request."""

    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    error: type[QwenASGIError] | None = None
    message: str = ""
    ends_by_close: bool = False


async def read(response: UpstreamResponse, within: float = 5.0) -> bytes:
    pieces = []
    while piece := await response.read(within):
        pieces.append(piece)
    return b"".join(pieces)


async def outcome(
    transport: Transport, request: UpstreamRequest, *, head: float = 5.0, within: float = 5.0
) -> Outcome:
    """Send a request and read the answer; an error must hold no secret."""
    status, ends_by_close = 0, False
    headers: tuple[tuple[str, str], ...] = ()
    pieces: list[bytes] = []
    try:
        async with transport.open(request, within=head) as response:
            status, ends_by_close = response.status, response.ends_by_close
            headers = tuple(sorted(response.headers.items()))
            while piece := await response.read(within):
                pieces.append(piece)
    except QwenASGIError as exc:
        check_no_secret(exc)
        error, message = type(exc), exc.message
        return Outcome(status, headers, b"".join(pieces), error, message, ends_by_close)
    return Outcome(status, headers, b"".join(pieces), ends_by_close=ends_by_close)


def check_no_secret(exc: BaseException) -> None:
    """Look for key and prompt wherever an error may be shown."""
    shown = [*traceback.format_exception(exc), *_chain(exc)]
    for text in shown:
        assert KEY not in text
        assert PROMPT.decode() not in text


def _chain(exc: BaseException | None) -> Iterator[str]:
    while exc is not None:
        yield from (repr(exc), str(exc), repr(exc.args), repr(vars(exc)))
        exc = exc.__cause__ or exc.__context__


async def check_healthy(transport: Transport, server: TortureServer) -> None:
    """Two requests, one after the other, are answered as they should be."""
    server.default = (OK,)
    for _ in range(2):
        got = await outcome(transport, call(server.url))
        assert (got.status, got.body, got.error) == (200, b"fine", None), got
        assert dict(got.headers) == {"content-length": "4", "x-sample": "healthy"}


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nx-sample: healthy\r\n\r\nfine"
