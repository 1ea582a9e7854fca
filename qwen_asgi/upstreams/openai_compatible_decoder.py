"""The answers of OpenAI-compatible servers, from bytes to events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from qwen_asgi.chat import Extra, Finish, FinishReason, ReasoningDelta, TextDelta
from qwen_asgi.errors import UpstreamError
from qwen_asgi.upstreams import _openai_errors
from qwen_asgi.upstreams._answer_decoder import AnswerDecoder
from qwen_asgi.upstreams._think_tags import ThinkTags
from qwen_asgi.upstreams._tool_calls import ToolCallPieces
from qwen_asgi.upstreams._words import NONE, Secrets

_REASONS: Mapping[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}
"""Every other reason that an upstream may name (`stop`, `eos_token`, ...) is an ordinary end."""

_REASONING = ("reasoning_content", "reasoning")
_READ = frozenset({"role", "content", "tool_calls", "refusal", *_REASONING})


def _says_nothing(name: str, value: Any) -> bool:
    """Whether nothing is done with a field of a delta."""
    return name == "role" or value is None or (name in _READ and not value)


class OpenAIDecoder(AnswerDecoder):
    """The bytes of one answer to events; see `upstreams.Decoder` for the order of calls.

    The end is `[DONE]`, or the body's proper end after a `finish_reason`. Of several choices only
    the first is read: more are never asked for. Fields that OpenAI does not have go on as `Extra`,
    `delta` or `logprobs`.
    """

    __slots__ = ("_has_reasoning", "_has_text", "_reason", "_secrets", "_think_tags", "_tool_calls")

    def __init__(self, *, secrets: Secrets = NONE) -> None:
        super().__init__()
        self._secrets = secrets
        self._think_tags = ThinkTags()
        self._tool_calls = ToolCallPieces()
        self._reason: FinishReason | None = None
        self._has_text = False
        self._has_reasoning = False
        self._shapes.identify(b"index", b"0")

    def _failure(self, document: Mapping[str, Any]) -> UpstreamError | None:
        return _openai_errors.failure(document, secrets=self._secrets)

    def _page(self) -> UpstreamError:
        return _openai_errors.web_page()

    def _only_content(self, chunk: Mapping[str, Any]) -> str | None:
        choices = chunk.get("choices")
        if type(choices) is not list or len(choices) != 1 or type(choices[0]) is not dict:
            return None
        choice = choices[0]
        delta = choice.get("delta")
        if type(delta) is not dict:
            return None
        field = self._field.decode()
        text = delta.get(field)
        is_usual = (
            type(text) is str
            and choice.get("finish_reason") is None
            and choice.get("logprobs") is None
            and not choice.get("index")
            and all(_says_nothing(key, delta[key]) for key in delta if key != field)
            and "error" not in chunk
        )
        return text or None if is_usual else None

    def _chunk(self, chunk: Mapping[str, Any], field: Literal["delta", "message"]) -> None:
        self._count(chunk)
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, Mapping) and not choice.get("index"):
                self._choice(choice, field)

    def _choice(self, choice: Mapping[str, Any], field: Literal["delta", "message"]) -> None:
        # A stream's last frame holds a whole message at some servers; a document holds no delta.
        delta = choice.get(field)
        if isinstance(delta, Mapping):
            self._delta(delta)
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, Mapping):
            self._events.append(Extra("logprobs", logprobs))
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason != "null":
            self._reason = _REASONS.get(reason, "stop")
            self.ending = True

    def _delta(self, delta: Mapping[str, Any]) -> None:
        for name in _REASONING:
            text = delta.get(name)
            if isinstance(text, str) and text:
                self._has_reasoning = True
                self._events.append(ReasoningDelta(text))
                self._go_on_with(ReasoningDelta, name)
                break
        content = delta.get("content")
        if isinstance(content, str) and content:
            self._text(content)
        calls = delta.get("tool_calls")
        if calls:
            self._events += self._tool_calls.add(calls)
        if not _READ.issuperset(delta):
            more = {k: v for k, v in delta.items() if k not in _READ and v is not None}
            if more:
                self._events.append(Extra("delta", more))

    def _text(self, text: str) -> None:
        if self._has_reasoning and not self._think_tags.gives_all:
            # Thinking came in a field of its own, or ended before: this is the answer.
            self._events += self._think_tags.close()
            self._think_tags.gives_all = True
        if self._think_tags.gives_all:
            self._has_text = True
            self._go_on_with(TextDelta, "content")
            self._events.append(TextDelta(text))
            return
        for event in self._think_tags.feed(text):
            self._has_text = self._has_text or isinstance(event, TextDelta)
            self._events.append(event)

    def _go_on_with(self, piece: type[TextDelta] | type[ReasoningDelta], field: str) -> None:
        """Expect more of the same: further frames may be read the short way."""
        if piece is not self._piece or field.encode() != self._field:
            self._shapes.forget()
            self._piece, self._field = piece, field.encode()

    def _give_up_held(self) -> None:
        for event in self._think_tags.close():
            self._has_text = self._has_text or isinstance(event, TextDelta)
            self._events.append(event)

    def _is_cut(self) -> bool:
        # Of what held no frame, nothing can be said to be missing.
        return self._has_frames and self._reason is None

    def _end(self) -> None:
        self._give_up_held()
        self._count_last()
        self._events += self._tool_calls.close()
        reason = self._reason
        if reason is None and not self._has_text and not self._tool_calls:
            raise self._nothing(self._has_reasoning)
        if self._tool_calls and reason in (None, "stop"):
            # Some servers say `stop` although there are calls (DS-75).
            reason = "tool_calls"
        usage = self._usage.total()
        if usage is not None:
            self._events.append(usage)
        self._events.append(Finish(reason or "stop"))
        self.complete = True
        self.ending = False
        self._piece = None
