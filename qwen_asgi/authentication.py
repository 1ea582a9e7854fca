"""Who may use the gateway."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from qwen_asgi.errors import AuthenticationFailed, PermissionDenied
from qwen_asgi.request_log import printable


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


class NoForeignPages:
    """Lets everybody in but web pages that are neither this machine's nor of these origins.

    For a program that is open to whoever reaches it: a browser reaches it for any page that is open
    in it, also under a name of the page's own.
    """

    def __init__(self, origins: Sequence[str] = ()) -> None:
        self._origins = frozenset(origins)

    async def __call__(self, request: Request) -> Principal:
        origin = request.headers.get("origin")
        if origin is not None and not self._is_known(origin):
            raise PermissionDenied(
                f"a web page of {printable(origin, 200)} may not ask here: name it in "
                "QWEN_CORS_ORIGINS, or give those who may ask keys (QWEN_CLIENT_KEYS)"
            )
        return ANYBODY

    def _is_known(self, origin: str) -> bool:
        if "*" in self._origins or origin in self._origins:
            return True
        try:
            return urlsplit(origin).hostname in THIS_MACHINE
        except ValueError:
            return False


THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


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
