"""What the simulated Qwen says, whatever it says it in, and what it reads of a request for that."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer as texts, cut into what each frame holds of them."""

    thinking: list[str]
    """What comes before the answer where a request asks for it."""
    text: list[str]
    tool_calls: Sequence[tuple[str, str]] = ()
    """Name and arguments of the tools that are called where a request offers some."""
    prompt_tokens: int
    counts: bool
    """Whether the answer tells its usage; each piece counts as a token."""
    says_done: bool
    """Whether a stream ends with `data: [DONE]`."""
    is_cumulative: bool
    """Whether the web chat's first generation ignores that new pieces only were asked for."""
    candidates: int
    """Wordings of the answer in one stream of the web chat's second generation."""
    pace: float
    """Seconds between two frames."""


def words(text: str) -> list[str]:
    """Cut a text into words of up to twelve characters, or pairs of Chinese characters."""
    return re.findall(r"\s*[\u4e00-\u9fff]{1,2}|\s*[^\s\u4e00-\u9fff]{1,12}|\s+", text)


def input_tokens(messages: Sequence[Any]) -> int:
    return sum(len(words(text_of(message))) for message in messages)


def last_user_text(messages: Sequence[Any]) -> str:
    for message in reversed(messages):
        match message:
            case {"role": "user"}:
                return text_of(message)
    return ""


def text_of(message: Any) -> str:
    """Return the text of a message, of parts each one's text (W1-04)."""
    match message:
        case {"content": str(text)}:
            return text
        case {"content": [*parts]}:
            return "\n".join(part["text"] for part in parts if _is_text(part))
    return ""


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def friendly_reply(text: str) -> str:
    quoted = text if len(text) <= 80 else f"{text[:79]}…"
    if re.search(r"[\u4e00-\u9fff]", text):
        return f"你好！我是模拟的通义千问。你说的是：“{quoted}”"
    return f"Hello! This is the simulated Qwen. You said: “{quoted}”"


def object_of(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}
