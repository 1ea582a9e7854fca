"""Any ASGI app on a real socket, for the length of a `with` block."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send


@contextmanager
def serve(
    app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0, **uvicorn_options: Any
) -> Iterator[str]:
    """Run `app` in uvicorn, in a thread of its own, and yield its base URL; port 0 is a free one.

    Raises OSError when the port is taken, and what the app raised when it does not start. Leaving
    gives open answers half a second, then cancels them. uvicorn logs nothing meanwhile, and neither
    does another one in this process: its loggers, which they share, stand at `critical`; with
    `log_level=None` they stay as they are. `uvicorn_options` (that, `http`,
    `timeout_graceful_shutdown` in seconds...) are those of `uvicorn.Config`.
    """
    startup_errors: list[BaseException] = []

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except BaseException as exc:
            if scope["type"] == "lifespan":
                startup_errors.append(exc)
            raise

    quiet = {"log_config": None, "log_level": "critical", "timeout_graceful_shutdown": 0.5}
    with (
        _levels_put_back("uvicorn.access", "uvicorn.asgi", "uvicorn.error"),
        socket.create_server((host, port)) as listener,
        ThreadPoolExecutor(1, "serve") as pool,
    ):
        server = _Server(uvicorn.Config(watched, **(quiet | uvicorn_options)))
        running = pool.submit(server.run, [listener])
        try:
            wait([server.ready, running], return_when=FIRST_COMPLETED)
            if not server.ready.done():
                raise startup_errors[0] if startup_errors else RuntimeError("the app did not start")
            yield f"http://{host}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
    running.result()


@contextmanager
def _levels_put_back(*names: str) -> Iterator[None]:
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


class _Server(uvicorn.Server):
    """uvicorn that says when it is ready and drops the connections that outlive it."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready: Future[None] = Future()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready.set_result(None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        # A connection whose client does not read stays open, and a socket would be left behind.
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)
