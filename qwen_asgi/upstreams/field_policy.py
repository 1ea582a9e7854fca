"""What becomes of each field of a chat request at each dialect: the one table.

The dialects refuse and ignore by it, the README's table is made of it (`python -m tests.fields`),
and a test sends every field to every dialect to see that it is so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from qwen_asgi.upstreams._fields import Refused

Fate = Literal["forwarded", "translated", "emulated", "ignored"]
FORWARDED: Fate = "forwarded"
"""Sent on under its own name, as the client gave it."""
TRANSLATED: Fate = "translated"
"""Reaches the upstream in another form, or is done by the gateway in its place."""
EMULATED: Fate = "emulated"
"""Done by the gateway around the dialect, which does not know it (`qwen_asgi.layers`)."""
IGNORED: Fate = "ignored"
"""Has no effect, and is named in the header `x-qwen-asgi-ignored`."""

DIALECTS = ("qwen-web-v1", "qwen-web-v2", "model-studio", "openai")
"""The columns."""

Cell = Fate | Refused
Row = tuple[Cell, Cell, Cell, Cell]


def _everywhere(cell: Cell) -> Row:
    return (cell, cell, cell, cell)


def _native(web: Cell) -> Row:
    """What OpenAI-compatible servers take as it is."""
    return (web, web, FORWARDED, FORWARDED)


def _any(value: Any) -> bool:
    return True


_NO_TOOLS = "it only gives text; leave it out"
_CALLS = Refused(lambda value: value not in ("auto", "none"), _NO_TOOLS)
_TOOLS = Refused(bool, _NO_TOOLS)
_ONE_CHOICE = Refused(lambda value: value != 1, "it gives one choice; set it to 1 or leave it out")

FIELDS: Mapping[str, Row] = {
    "model": _everywhere(FORWARDED),
    "messages": (TRANSLATED, TRANSLATED, FORWARDED, FORWARDED),
    "stream": (TRANSLATED, TRANSLATED, TRANSLATED, FORWARDED),
    "stream_options": _everywhere(TRANSLATED),
    "temperature": (FORWARDED, IGNORED, FORWARDED, FORWARDED),
    "max_tokens": (FORWARDED, EMULATED, FORWARDED, FORWARDED),
    "max_completion_tokens": (TRANSLATED, EMULATED, TRANSLATED, TRANSLATED),
    "audio": _native(Refused(_any, "it only gives text; leave it out")),
    "chat_mode": (FORWARDED, IGNORED, FORWARDED, FORWARDED),
    "chat_type": (FORWARDED, TRANSLATED, FORWARDED, FORWARDED),
    "enable_search": (IGNORED, TRANSLATED, FORWARDED, FORWARDED),
    "enable_thinking": (TRANSLATED, TRANSLATED, FORWARDED, TRANSLATED),
    "frequency_penalty": _native(IGNORED),
    "function_call": (EMULATED, EMULATED, TRANSLATED, TRANSLATED),
    "functions": (EMULATED, EMULATED, TRANSLATED, TRANSLATED),
    "logit_bias": _native(IGNORED),
    "logprobs": _native(
        Refused(bool, "it tells no probabilities; set it to false or leave it out")
    ),
    "metadata": _native(IGNORED),
    "modalities": _native(
        Refused(lambda value: value != ["text"], 'it only gives text; set it to ["text"]')
    ),
    "n": _everywhere(EMULATED),
    "parallel_tool_calls": _native(EMULATED),
    "prediction": _native(IGNORED),
    "presence_penalty": _native(IGNORED),
    "prompt_cache_key": _native(IGNORED),
    "reasoning_effort": (TRANSLATED, TRANSLATED, TRANSLATED, FORWARDED),
    "response_format": _native(EMULATED),
    "safety_identifier": _native(IGNORED),
    "seed": _native(IGNORED),
    "service_tier": _native(IGNORED),
    "size": (FORWARDED, FORWARDED, FORWARDED, FORWARDED),
    "stop": _native(EMULATED),
    "store": _native(IGNORED),
    "sub_chat_type": (FORWARDED, IGNORED, FORWARDED, FORWARDED),
    "thinking_budget": (TRANSLATED, TRANSLATED, FORWARDED, FORWARDED),
    "tool_choice": _native(EMULATED),
    "tools": _native(EMULATED),
    "top_logprobs": _native(IGNORED),
    "top_p": _native(IGNORED),
    "user": _native(IGNORED),
    "verbosity": _native(IGNORED),
    "web_search_options": (
        Refused(_any, 'give the last message the chat_type "search" instead'),
        TRANSLATED,
        FORWARDED,
        FORWARDED,
    ),
}

MESSAGE_FIELDS: Mapping[str, Row] = {
    "chat_type": (FORWARDED, TRANSLATED, FORWARDED, FORWARDED),
    "extra": (FORWARDED, IGNORED, FORWARDED, FORWARDED),
    "feature_config": (FORWARDED, TRANSLATED, FORWARDED, FORWARDED),
    "name": _native(IGNORED),
    "refusal": _native(TRANSLATED),
    "tool_call_id": _native(EMULATED),
    "tool_calls": _native(EMULATED),
}
"""Of a message, beside its role and content."""

AT_THE_DIALECT: Mapping[str, Refused] = {
    "n": _ONE_CHOICE,
    "response_format": Refused(
        lambda value: value.get("type") != "text",
        'it only gives plain text; set it to {"type": "text"} or leave it out',
    ),
    "tool_choice": _CALLS,
    "tools": _TOOLS,
}
"""What becomes of what is emulated where it comes to the dialect itself: a choice without tools."""

OTHERS: Row = _native(IGNORED)
"""Any field that is not in these tables, of a request or of a message."""


@dataclass(frozen=True, slots=True)
class Column:
    """What one dialect asks of the table."""

    refused: Mapping[str, Refused]
    known: frozenset[str]
    """Fields that are not ignored: they reach the upstream, or are refused where they ask for
    something."""
    known_in_messages: frozenset[str]


@cache
def column(dialect: str) -> Column:
    """Return a dialect's column of the table."""
    number = DIALECTS.index(dialect)
    cells = {field: row[number] for field, row in FIELDS.items()}
    lost = (IGNORED, EMULATED)
    in_messages = {field for field, row in MESSAGE_FIELDS.items() if row[number] not in lost}
    # A choice without tools, and no tools at all, come to the dialect itself.
    cells |= {field: rule for field, rule in AT_THE_DIALECT.items() if cells[field] == EMULATED}
    return Column(
        refused={field: cell for field, cell in cells.items() if isinstance(cell, Refused)},
        known=frozenset(field for field, cell in cells.items() if cell not in lost),
        known_in_messages=frozenset(in_messages),
    )
