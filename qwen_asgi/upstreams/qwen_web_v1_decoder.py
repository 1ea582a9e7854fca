"""The answers of the first generation of the Qwen web chat, from bytes to events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from qwen_asgi.chat import Extra, Finish, FinishReason, ReasoningDelta, TextDelta
from qwen_asgi.errors import UpstreamError, UpstreamInvalidResponse
from qwen_asgi.upstreams import _web_errors
from qwen_asgi.upstreams._answer_decoder import AnswerDecoder
from qwen_asgi.upstreams._snapshots import Contradiction, TextReader
from qwen_asgi.upstreams._think_tags import ThinkTags
from qwen_asgi.upstreams._words import NONE, Secrets

MOST_PHASES = 16
"""Phases of one answer that hold text; two or three are usual."""


class QwenWebV1Decoder(AnswerDecoder):
    """The bytes of one answer to events; see `upstreams.Decoder` for the order of calls.

    The end is `[DONE]`, or the body's proper end with or without a frame of status `finished`. A
    body that only the connection's end delimits must have shown one of them if its frames carry
    phases, for then a cut looks like an end.
    """

    __slots__ = (
        "_ends_by_close",
        "_finished",
        "_has_phases",
        "_has_reasoning",
        "_has_text",
        "_incremental",
        "_phase",
        "_reason",
        "_secrets",
        "_texts",
        "_think_tags",
    )

    def __init__(
        self, *, incremental: bool, ends_by_close: bool = False, secrets: Secrets = NONE
    ) -> None:
        super().__init__()
        self._incremental = incremental
        self._ends_by_close = ends_by_close
        self._secrets = secrets
        self._begin_answer()

    def _begin_answer(self) -> None:
        """Know nothing of the answer yet."""
        self._phase = ""
        self._has_phases = False
        self._texts: dict[str, TextReader] = {}
        self._think_tags = ThinkTags()
        self._reason: FinishReason = "stop"
        self._has_text = False
        self._has_reasoning = False
        self._finished = False

    def _only_content(self, chunk: Mapping[str, Any]) -> str | None:
        """Return the text of a frame that holds that and its usage, and nothing to look into."""
        choices = chunk.get("choices")
        choice = choices[0] if type(choices) is list and choices else None
        delta = choice.get("delta") if type(choice) is dict else None
        if type(choice) is not dict or type(delta) is not dict:
            return None
        content = delta.get("content")
        is_usual = (
            type(content) is str
            and delta.get("phase", "") == self._phase
            and delta.get("status", "typing") == "typing"
            and delta.get("role") != "function"
            and choice.get("finish_reason") is None
            and _MORE.isdisjoint(delta)
            and _web_errors.SIGNS.isdisjoint(chunk)
        )
        return content or None if is_usual else None

    def _chunk(self, chunk: Mapping[str, Any], field: Literal["delta", "message"]) -> None:
        self._count(chunk)
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return
        delta = choice.get(field)
        if isinstance(delta, dict):
            self._delta(delta)
        reason = choice.get("finish_reason")
        if reason in ("length", "content_filter"):
            self._reason = reason

    def _delta(self, delta: Mapping[str, Any]) -> None:
        phase = delta.get("phase") or ""
        content = delta.get("content")
        if delta.get("role") == "function":
            # What a server's tool found, or how it failed, is never answer text (W1-25).
            self._events.append(Extra(_kind(delta), delta))
            return
        error = delta.get("error")
        if error:
            self._raise_failure({"error": error})
        if not _is_of_the_answer(phase):
            self._events.append(Extra(_kind(delta), delta))
            return
        reasoning = delta.get("reasoning_content")
        if isinstance(reasoning, str) and reasoning:
            self._add(ReasoningDelta(reasoning))
        if phase != self._phase and (phase or content):
            self._give_up_held()
            self._phase = phase
            self._piece = None
            self._shapes.forget()
        self._has_phases = self._has_phases or bool(phase)
        if isinstance(content, str) and content:
            self._content(phase, content)
        if delta.get("status") == "finished" and phase in ("answer", ""):
            self._finished = self.ending = True

    def _content(self, phase: str, content: str) -> None:
        if self._document is not None:
            # There is one text, and it is all.
            self._text(phase, content)
            return
        reader = self._texts.get(phase)
        if reader is None:
            if len(self._texts) >= MOST_PHASES:
                raise UpstreamInvalidResponse("the upstream's answer has too many phases")
            reader = self._texts[phase] = TextReader(self._is_incremental())
        try:
            self._text(phase, reader.feed(content))
        except Contradiction:
            raise UpstreamInvalidResponse(
                "the upstream took back text that it had sent, as if it sent pieces; "
                "QWEN_INCREMENTAL=true reads them"
            ) from None
        if reader.gives_all and (phase or self._think_tags.gives_all):
            # Not before one was made here, which notes that there is some.
            if phase.startswith("think"):
                self._piece = ReasoningDelta if self._has_reasoning else None
            else:
                self._piece = TextDelta if self._has_text else None

    def _is_incremental(self) -> bool:
        """What was found out in one phase holds for the next one."""
        for reader in self._texts.values():
            if reader.proven_incremental is not None:
                return reader.proven_incremental
        return self._incremental

    def _text(self, phase: str, text: str) -> None:
        if not text:
            return
        if phase.startswith("think"):
            self._add(ReasoningDelta(text))
        elif phase:
            self._add(TextDelta(text))
        else:
            for event in self._think_tags.feed(text):
                self._add(event)

    def _add(self, event: TextDelta | ReasoningDelta) -> None:
        if isinstance(event, TextDelta):
            self._has_text = True
        else:
            self._has_reasoning = True
        self._events.append(event)

    def _failure(self, document: Mapping[str, Any]) -> UpstreamError | None:
        if _web_errors.SIGNS.isdisjoint(document):
            return None
        return _web_errors.failure(document, secrets=self._secrets)

    def _page(self) -> UpstreamError:
        return _web_errors.block_page()

    def _is_cut(self) -> bool:
        return self._ends_by_close and self._has_phases and not self._finished

    def _give_up_held(self) -> None:
        for phase, reader in self._texts.items():
            self._text(phase, reader.close())
        for event in self._think_tags.close():
            self._add(event)

    def _end(self) -> None:
        self._give_up_held()
        self._count_last()
        if not self._has_text and self._reason != "length":
            raise self._nothing(self._has_reasoning)
        usage = self._usage.total()
        if usage is not None:
            self._events.append(usage)
        self._events.append(Finish(self._reason))
        self.complete = True
        self.ending = False
        self._piece = None


_MORE = frozenset({"error", "reasoning_content"})
"""Fields of a delta that say something beside its content."""


def _is_of_the_answer(phase: Any) -> bool:
    return not phase or phase == "answer" or (isinstance(phase, str) and phase.startswith("think"))


def _kind(delta: Mapping[str, Any]) -> str:
    name = delta.get("name") or delta.get("phase")
    return name if isinstance(name, str) else "unknown"
