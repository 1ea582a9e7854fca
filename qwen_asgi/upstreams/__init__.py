"""What the gateway speaks to upstreams: one dialect a file, each pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from qwen_asgi.chat import ChatRequest, Event, ModelInfo, Usage
from qwen_asgi.errors import UpstreamError
from qwen_asgi.transports import UpstreamRequest, UpstreamResponse


class Decoder(Protocol):
    """The bytes of one answer to events, without I/O; one for each answer.

    `feed` any number of times, then `close` once. Whatever the split of the bytes, the events put
    together are the same. When either raises, `flush` returns the events that came before the
    fault and were not returned yet.
    """

    @property
    def complete(self) -> bool:
        """Whether the answer's end was seen and its `Finish` returned; nothing need be read on."""

    @property
    def ending(self) -> bool:
        """Whether the answer is whole although the stream goes on; only a footer may follow."""

    @property
    def counted(self) -> Usage | None:
        """What the upstream has counted so far."""

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that `data` completes. Raises UpstreamError."""

    def close(self) -> list[Event]:
        """Return what the body's proper end completes. Raises UpstreamTruncated, or
        UpstreamInvalidResponse when there was no answer in it."""

    def flush(self) -> list[Event]: ...


class AnswerReader(Protocol):
    """How to read what one kind of upstream answers."""

    name: str

    def decoder(self, request: ChatRequest, response: UpstreamResponse) -> Decoder:
        """Return the reader of a 200 answer's body."""

    def refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """Return the error that an answer of another status means."""

    def encode_models(self) -> UpstreamRequest:
        """Return the call that asks which models there are."""

    def decode_models(self, body: bytes) -> list[ModelInfo]:
        """Return the models in the answer to it. Raises UpstreamError."""

    def describe(self, model: str) -> ModelInfo:
        """Return what is known of a model by its name alone."""


class Dialect(AnswerReader, Protocol):
    """How to ask one kind of upstream, and how to read its answer."""

    def encode(self, request: ChatRequest) -> UpstreamRequest:
        """Return the call that asks for `request`, and note on it what had to be ignored.

        Raises InvalidRequest for what this dialect cannot honour.
        """
