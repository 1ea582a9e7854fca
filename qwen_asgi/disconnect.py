"""Noticing that a client has left, at once and under every server and host."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Self

from starlette.types import Receive

logger = logging.getLogger(__name__)


class ClientLeft(Exception):
    """The client closed its connection; there is nobody to answer."""


class ClientWatch:
    """Cancels what runs inside it when the client leaves, and raises ClientLeft in its place.

        async with ClientWatch(receive):
            ...

    From here on one task owns `receive()` and nobody else may call it. A pending `receive()` is the
    only way that works everywhere: polling `is_disconnected()` sees nothing under a
    `BaseHTTPMiddleware`, and `send` says nothing under most servers.

    It cancels its own task and takes that back by the counting that `asyncio.timeout` uses, so a
    cancellation by the host passes through untouched.
    """

    __slots__ = ("_cancelling", "_entered", "_left", "_receive", "_task", "_watcher")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._entered = False
        self._left = False

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._watcher = loop.create_task(self._watch(), name="qwen_asgi client watch")
        self._entered = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watcher.cancel()
        # A cancelled task holds on to what it ran in, and that to the task.
        del self._watcher
        if not self._left:
            return
        by_others = self._task.uncancel() > self._cancelling
        if exc_type is not None and not by_others:
            raise ClientLeft from exc

    def stop(self) -> None:
        """Watch no longer: the last piece is about to go out, and servers report a response that
        is complete as a client that has left."""
        self._watcher.cancel()

    def end(self) -> None:
        """End what runs inside as if the client had left: nobody reads what is sent."""
        if self._entered and not self._left:
            self._left = True
            self._task.cancel()

    async def _watch(self) -> None:
        if not self._entered:
            # A task factory that starts tasks at once: a running task that cancels itself could
            # not take it back.
            await asyncio.sleep(0)
        bodies = 0
        try:
            while (message := await self._receive())["type"] != "http.disconnect":
                bodies += not message.get("more_body", False)
                if bodies > 1:
                    # A host that replays the body, at once and for ever: nothing to learn here.
                    return
        except Exception:
            # A host that lets the body be read once only; its client may well be there.
            logger.debug(
                "the host's receive() failed: this client cannot be watched", exc_info=True
            )
            return
        self.end()
