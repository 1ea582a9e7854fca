"""What clients speak to the gateway: one API a file, each pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from qwen_asgi.chat import Answer, ChatRequest, Event, Usage
from qwen_asgi.errors import QwenASGIError


class StreamWriter(Protocol):
    """Events to the bytes of one stream. `write` any number of times, then `finish` or `fail` once.

    It writes whole server-sent events only.
    """

    @property
    def usage(self) -> Usage | None:
        """What the upstream counted, once it came."""

    def write(self, events: Sequence[Event]) -> bytes:
        """Return what `events` add to the stream; nothing, for events that have no place in it."""

    def finish(self) -> bytes:
        """Return the end of a whole answer."""

    def fail(self, error: QwenASGIError) -> bytes:
        """Return the last event of an answer that broke off."""


class ClientAPI(Protocol):
    """How one kind of client asks, and what it reads."""

    def read(self, body: bytes) -> ChatRequest:
        """Return the chat that a request's body asks for. Raises InvalidRequest."""

    def answer(self, request: ChatRequest, answer: Answer) -> bytes:
        """Return the body of a whole answer."""

    def stream(self, request: ChatRequest) -> StreamWriter:
        """Return the writer of a streamed answer."""

    def error(self, error: QwenASGIError) -> bytes:
        """Return the body of an answer that is an error."""
