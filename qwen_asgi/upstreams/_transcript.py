"""A conversation as one text, for an upstream that takes one turn of one speaker.

What is there is written as it is, in its order. A user's turn alone stays as it came; instructions
in front of it stand in front of it; a conversation is written with the name of each speaker, and
ends with that of the one whose turn it is.
Source: facts W2-29 and W2-35 of the wire notes; every program for that upstream does some such
thing, and no two do the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwen_asgi.chat import Message

SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}


def transcript(messages: Sequence[Message]) -> str:
    """Return the conversation, of which each message holds text."""
    roles = [message.role for message in messages]
    if roles.count("user") == 1 and roles[-1] == "user" and "assistant" not in roles:
        return "\n\n".join(message.text for message in messages if message.text)
    turns = [f"{SPEAKERS.get(m.role, m.role)}: {m.text}" for m in messages]
    return "\n\n".join([*turns, "Assistant:"] if roles[-1] != "assistant" else turns)
