"""Who may use the gateway."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from qwen_asgi.errors import AuthenticationFailed


@dataclass(frozen=True, slots=True)
class Principal:
    """Whom a request is from."""

    name: str
    """Stands in the log line of each chat; not a key."""


Authenticate = Callable[[Request], "Principal | Awaitable[Principal | None] | None"]
"""Names whom a request is from, or None to refuse it with 401.

It may raise Starlette's HTTPException to refuse it otherwise. A plain function runs in a thread,
for it may block; it must not read the request's body.
"""


async def anonymous(request: Request) -> Principal:
    """Let everybody in: for `authenticate`, where an open gateway is meant."""
    return ANYBODY


ANYBODY = Principal("-")


class ClientKeys:
    """Lets in who sends one of these keys as a bearer token. Only the keys' hashes are kept."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._principals = {
            digest: Principal(f"key-{digest.hex()[:8]}")
            for digest in (_digest(key.encode("utf-8", "surrogateescape")) for key in keys)
        }

    async def __call__(self, request: Request) -> Principal | None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        # How long the look-up of a hash takes tells nothing about the key. Starlette reads headers
        # as latin-1, whatever the client's bytes were.
        return self._principals.get(_digest(key.strip(" \t").encode("latin-1")))


async def identify(authenticate: Authenticate, request: Request) -> Principal:
    """Return whom the request is from. Raises AuthenticationFailed."""
    if _is_async(authenticate):
        found: Any = authenticate(request)
    else:
        found = await run_in_threadpool(authenticate, request)
    principal = await found if inspect.isawaitable(found) else found
    if principal is None:
        raise AuthenticationFailed(
            "the API key is missing or not known; send it as 'Authorization: Bearer KEY'"
        )
    if not isinstance(principal, Principal):
        raise TypeError(
            f"authenticate should return a Principal or None, not {type(principal).__name__}"
        )
    return principal


def _is_async(function: Authenticate) -> bool:
    call = getattr(function, "__call__", None)  # noqa: B004 - its kind is asked, not whether
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()
