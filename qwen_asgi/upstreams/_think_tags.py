"""Thinking that a model writes into its text, between `<think>` and `</think>`.

Only a tag that opens the answer counts: further on, the tags are words like any other, for an
answer may be about them. A closing tag without its opener stays text too, since what stood before
it has been given out by then.
Source: fact W1-23 and quirk Q-06 of the wire notes.
"""

from __future__ import annotations

from typing import Literal

from qwen_asgi.chat import ReasoningDelta, TextDelta

Pieces = list[TextDelta | ReasoningDelta]

OPEN = "<think>"
CLOSE = "</think>"

LONGEST_INDENT = 64
"""White space before the opening tag that is waited through, in characters."""


class ThinkTags:
    """Splits an answer's text, piece by piece, into reasoning and text. `close` once at the end."""

    __slots__ = ("_held", "_place", "gives_all")

    def __init__(self) -> None:
        self.gives_all = False
        """Whether from now on `feed` returns each text as it is, as text."""
        self._held = ""
        self._place: Literal["start", "thinking", "answer"] = "start"

    def feed(self, text: str) -> Pieces:
        """Return what `text` settles; a piece that may be part of a tag is held back."""
        if not text:
            return []
        if self._place == "answer":
            return [TextDelta(text)]
        text = self._held + text
        return self._in_thinking(text) if self._place == "thinking" else self._at_start(text)

    def close(self) -> Pieces:
        """Return what was held back to the end."""
        held, self._held = self._held, ""
        if not held:
            return []
        return [ReasoningDelta(held) if self._place == "thinking" else TextDelta(held)]

    def _at_start(self, text: str) -> Pieces:
        begun = text.lstrip()
        if len(text) - len(begun) > LONGEST_INDENT:
            return self._in_answer(text)
        if begun.startswith(OPEN):
            self._held = ""
            self._place = "thinking"
            rest = begun[len(OPEN) :]
            return self._in_thinking(rest) if rest else []
        if OPEN.startswith(begun):
            self._held = text
            return []
        return self._in_answer(text)

    def _in_thinking(self, text: str) -> Pieces:
        thought, closed, answer = text.partition(CLOSE)
        if not closed:
            self._held = text[len(text) - _overlap(text, CLOSE) :]
            thought = text[: len(text) - len(self._held)]
            return [ReasoningDelta(thought)] if thought else []
        events: Pieces = [ReasoningDelta(thought)] if thought else []
        return events + self._in_answer(answer)

    def _in_answer(self, text: str) -> Pieces:
        self._held = ""
        self._place = "answer"
        self.gives_all = True
        return [TextDelta(text)] if text else []


def _overlap(text: str, tag: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `tag`."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
