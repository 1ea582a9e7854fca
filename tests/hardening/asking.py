"""A client of the trials: one request on a connection of its own, and all that came of it."""

from __future__ import annotations

import asyncio
import re
from functools import lru_cache
from urllib.parse import urlsplit

import httptools
import httpx

from tests.conftest import StreamRead, stream_of
from tests.schemas import check_answer

_OWN = re.compile(rb'"id":"(chatcmpl-[^"]*)"|"created":(\d+)')
"""What differs in each answer."""


class Broken(Exception):
    """A connection ended before the answer on it did."""


async def exchange(url: str, request: bytes, *, within: float = 60.0) -> httpx.Response:
    """Send a request that asks for its connection's end; return the answer.

    Raises Broken, TimeoutError.
    """
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(request)
        async with asyncio.timeout(within):
            return _response(await reader.read())
    finally:
        writer.transport.abort()


class _Reading:
    """What httptools finds in an answer."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []
        self.is_whole = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        self.is_whole = True


def _response(data: bytes) -> httpx.Response:
    reading = _Reading()
    parser = httptools.HttpResponseParser(reading)
    try:
        parser.feed_data(data)
    except httptools.HttpParserError as exc:
        raise Broken(f"{exc}: {data[-200:]!r}") from None
    if not reading.is_whole:
        raise Broken(f"it ends with {data[-200:]!r}")
    return httpx.Response(
        parser.get_status_code(), headers=reading.headers, content=b"".join(reading.body)
    )


def read_stream(response: httpx.Response) -> StreamRead:
    """Read a streamed answer, having checked the form of all of it; `stream_of`, remembered."""
    assert response.headers["content-type"].startswith("text/event-stream")
    return _read_stream(_without_own(response.content))


def read_text(response: httpx.Response) -> str:
    """Return the text of an answer in one piece, having checked its form."""
    assert response.headers["content-type"] == "application/json"
    return _read_text(_without_own(response.content))


def _without_own(body: bytes) -> bytes:
    """Return an answer with a name and a time that all have, having seen that it has one of each.

    Thousands of answers are the same but for these, and to check one by its schema takes long.
    """
    found = _OWN.findall(body)
    assert len({id for id, _ in found if id}) <= 1
    assert len({created for _, created in found if created}) <= 1
    return _OWN.sub(lambda m: b'"id":"chatcmpl-1"' if m[1] else b'"created":1', body)


@lru_cache(1024)
def _read_stream(body: bytes) -> StreamRead:
    return stream_of(body)


@lru_cache(1024)
def _read_text(body: bytes) -> str:
    document = httpx.Response(200, content=body).json()
    check_answer(document)
    return str(document["choices"][0]["message"]["content"])


def forget() -> None:
    """Forget what was read."""
    _read_stream.cache_clear()
    _read_text.cache_clear()
