"""Token counts that an upstream repeats and raises from frame to frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_asgi.chat import Usage

PROMPT = ("input_tokens", "prompt_tokens")
COMPLETION = ("output_tokens", "completion_tokens")
TOTAL = ("total_tokens",)
REASONING = ("reasoning_tokens",)
CACHED = ("cached_tokens",)


class RunningUsage:
    """Keeps the last count of each kind; `total` gives the answer's usage.

    Each frame holds the total so far, so counts are replaced and never added; an empty object
    changes nothing (facts W1-26, quirks Q-50 to Q-52 of the wire notes).
    """

    __slots__ = (
        "_cached",
        "_completion",
        "_prompt",
        "_reasoning",
        "_total",
    )

    def __init__(self) -> None:
        self._prompt: int | None = None
        self._completion: int | None = None
        self._total: int | None = None
        self._reasoning: int | None = None
        self._cached: int | None = None

    def update(self, usage: Mapping[str, Any]) -> None:
        """Take over what `usage` holds; what is missing, null or no count stays as it was."""
        # The first names are the usual ones, and this is done for each frame.
        prompt, completion = usage.get(PROMPT[0]), usage.get(COMPLETION[0])
        if type(prompt) is not int or prompt < 0:
            prompt = _count(usage, PROMPT)
        if type(completion) is not int or completion < 0:
            completion = _count(usage, COMPLETION)
        total = _count(usage, TOTAL)
        if prompt is None and completion is None and total is None:
            return
        if prompt is not None:
            self._prompt = prompt
        if completion is not None:
            self._completion = completion
        # A total belongs to the counts beside it: one of an earlier frame would contradict them.
        self._total = total
        output = usage.get("output_tokens_details") or usage.get("completion_tokens_details")
        if output and (reasoning := _count(output, REASONING)) is not None:
            self._reasoning = reasoning
        prompted = usage.get("input_tokens_details") or usage.get("prompt_tokens_details")
        if prompted and (cached := _count(prompted, CACHED)) is not None:
            self._cached = cached

    def total(self) -> Usage | None:
        """Return the whole answer's usage, or None where it was not told or not told in full.

        Of prompt, completion and total, one may be missing: it follows from the other two.
        """
        prompt, completion, total = self._prompt, self._completion, self._total
        if prompt is None and completion is not None and total is not None:
            prompt = total - completion
        if completion is None and prompt is not None and total is not None:
            completion = total - prompt
        if prompt is None or completion is None or prompt < 0 or completion < 0:
            return None
        if total is None:
            total = prompt + completion
        return Usage(prompt, completion, total, self._reasoning, self._cached)


def _count(usage: Any, names: tuple[str, ...]) -> int | None:
    if type(usage) is not dict:
        return None
    for name in names:
        value = usage.get(name)
        # By its type, for a bool is an int too.
        if type(value) is int and value >= 0:
            return value
    return None
