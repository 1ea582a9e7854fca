"""uvicorn's HTTP/1.1, with bounds on a request's head that has not ended.

The gateway bounds the head that it is shown. Until a head has ended nobody is shown it, and over
httptools uvicorn keeps all that comes of one, for as long as it comes: a single connection could
take the memory, and, in one header without an end, the time by the square of its length.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from qwen_asgi.apis.openai_chat import OpenAIChat
from qwen_asgi.errors import HeadersTooLarge

LONGEST_HEAD = 96 * 1024
"""Bytes that may come without a head's end, a body's byte or a message's end. It is more than the
gateway takes, so that a client whose head does end is told so by the gateway."""

HEAD_SECONDS = 30.0
"""How long a head may take, from the connection on for its first request. Later ones count from the
first byte that comes when all is answered: the rest of a body that was answered early counts too.
Where nothing comes between two requests, uvicorn's own `timeout_keep_alive` counts."""


class BoundedHTTP(HttpToolsProtocol):
    """For uvicorn's option `http`."""

    _loose = 0
    """Bytes since the last head's end, body's byte or message's end."""
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(  # type: ignore[override]
        self, transport: asyncio.Transport
    ) -> None:
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._loose += len(data)
        super().data_received(data)
        if self._loose > LONGEST_HEAD and not self.transport.is_closing():
            self._refuse()
        elif self._head_timer is None and self._owes_nothing():
            # With this byte uvicorn's own timer has ended. Mostly a head comes in one piece, and
            # is owed an answer by now: a timer is for what does not.
            self._begin_head()

    def on_headers_complete(self) -> None:
        self._loose = 0
        self._end_head()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._loose = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._loose = 0
        super().on_message_complete()

    def _owes_nothing(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _begin_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self) -> None:
        if self._owes_nothing():
            error = HeadersTooLarge(
                f"a request's head may have {LONGEST_HEAD} bytes, and so may what ends its body"
            )
            body = OpenAIChat().error(error)
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
                b"content-type: application/json\r\nconnection: close\r\n"
                b"content-length: %d\r\n\r\n%b" % (len(body), body)
            )
        # An answer that is under way to this client breaks off: it is not to be written into.
        self.transport.close()
