"""A client's wish to have the model think, or not, whichever of the names it uses for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_asgi.errors import InvalidRequest

THINKING_BUDGETS = {"minimal": 512, "low": 1024, "medium": 8192}
"""Tokens of thought that an OpenAI `reasoning_effort` stands for; of more there is no bound. Qwen
has no word for it, so these are ours."""


def wants_thinking(options: Mapping[str, Any]) -> bool | None:
    """Return whether the client asks the model to think, or not to; None where it says neither."""
    wish = options.get("enable_thinking")
    if wish is not None and not isinstance(wish, bool):
        raise InvalidRequest("enable_thinking should be true or false", param="enable_thinking")
    effort = options.get("reasoning_effort")
    if wish is None and effort is not None:
        return bool(effort != "none")
    return wish


def thinking_budget(options: Mapping[str, Any]) -> int | None:
    """Return how many tokens the model may think, if the client says so in either way."""
    budget = options.get("thinking_budget")
    if budget is None:
        effort = options.get("reasoning_effort")
        return THINKING_BUDGETS.get(effort) if isinstance(effort, str) else None
    if type(budget) is int and budget >= 0:
        return budget
    raise InvalidRequest(
        "thinking_budget should be a whole number of tokens", param="thinking_budget"
    )
