"""Opening a connection: the name looked up, its addresses raced, TLS, all of it safe to cancel.

asyncio can race addresses by itself, but loses the socket that comes through in the turn in which
it is cancelled (seen with Python 3.11 to 3.13), and uvloop cannot. So here each address is tried by
a task of its own, and what a loser opens is closed when it comes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

from qwen_asgi.transports._connection import Connection

NEXT_ADDRESS_SECONDS = 1.0
"""How long an address is tried alone before the next one is tried beside it (RFC 8305: 0.25, but
here it is the TLS handshake that is waited for, too)."""


class Origin(NamedTuple):
    """Where connections lead."""

    host: str
    port: int
    tls: bool


async def connect(
    loop: asyncio.AbstractEventLoop, origin: Origin, tls: ssl.SSLContext | None
) -> Connection:
    """Return an open connection. Raises OSError, of which ssl.SSLError is one."""
    addresses = await _addresses(loop, origin)
    if len(addresses) == 1:
        return await _connect_to(addresses[0], loop, origin, tls)
    attempts: list[asyncio.Task[Connection]] = []
    winner = None
    try:
        for address in addresses:
            attempts.append(loop.create_task(_connect_to(address, loop, origin, tls)))
            winner = await _first_of(attempts, NEXT_ADDRESS_SECONDS)
            if winner is not None:
                break
        while winner is None and not all(attempt.done() for attempt in attempts):
            winner = await _first_of(attempts, None)
        if winner is not None:
            attempts.remove(winner)
            return winner.result()
        # The last one to be tried says why.
        return attempts[-1].result()
    finally:
        for attempt in attempts:
            attempt.cancel()
            attempt.add_done_callback(_close_late)


async def _addresses(loop: asyncio.AbstractEventLoop, origin: Origin) -> Sequence[str]:
    """Return the addresses of a host, in the resolver's order but families in turns."""
    try:
        return [str(ipaddress.ip_address(origin.host))]
    except ValueError:
        pass
    found = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
    by_family: dict[int, list[str]] = {}
    for family, _, _, _, address in found:
        by_family.setdefault(family, []).append(str(address[0]))
    turns = zip_longest(*by_family.values())
    return list(dict.fromkeys(address for turn in turns for address in turn if address))


async def _connect_to(
    address: str, loop: asyncio.AbstractEventLoop, origin: Origin, tls: ssl.SSLContext | None
) -> Connection:
    connection = Connection(loop)
    try:
        await loop.create_connection(
            lambda: connection,
            address,
            origin.port,
            ssl=tls,
            server_hostname=origin.host if tls else None,
        )
    except BaseException:
        connection.close()
        raise
    return connection


async def _first_of(
    attempts: Sequence[asyncio.Task[Connection]], seconds: float | None
) -> asyncio.Task[Connection] | None:
    """Wait until one more attempt has ended; return one that succeeded, if there is one."""
    pending = [attempt for attempt in attempts if not attempt.done()]
    if pending:
        await asyncio.wait(pending, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    return next((attempt for attempt in attempts if _has_succeeded(attempt)), None)


def _has_succeeded(attempt: asyncio.Task[Connection]) -> bool:
    return attempt.done() and not attempt.cancelled() and attempt.exception() is None


def _close_late(attempt: asyncio.Task[Connection]) -> None:
    if _has_succeeded(attempt):
        attempt.result().close()
