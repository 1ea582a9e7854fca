"""The simulated web chat of generation 1. W1 numbers are those of the wire notes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qwen_asgi.testing.answers import DONE, EVENT_STREAM, Answer, dump, frame, whole_answer
from qwen_asgi.testing.replies import Reply, object_of
from qwen_asgi.testing.web import usage

SEARCH_FRAME = (
    b'data: {"choices": [{"delta": {"role": "function", "content": "", "name": "web_search", '
    b'"extra": {"web_search_info": [{"url": "https://example.org/a", "title": "Result A", '
    b'"snippet": "First snippet", "hostname": "example.org", '
    b'"hostlogo": "https://example.org/favicon.ico", "date": " (2025-02-20)"}, '
    b'{"url": "https://example.com/b", "title": "Result B", "snippet": "Second snippet", '
    b'"hostname": null, "hostlogo": null, "date": ""}]}}}]}\n\n'
)

_Part = tuple[str | None, list[str]]
"""One phase of an answer, None where phases were not asked for, and the pieces of its text."""


def completion(body: Mapping[str, Any], reply: Reply) -> Answer:
    parts = _phases(body, reply)
    if body.get("stream") is True:
        steps = _stream(body, reply, parts)
        return Answer(headers={"content-type": EVENT_STREAM}, steps=steps, pace=reply.pace)
    message = {"role": "assistant", "content": "".join(parts[-1][1])}
    tokens = sum(len(pieces) for _, pieces in parts)
    return whole_answer(dump({"choices": [{"message": message}], **usage(reply, tokens)}))


def _phases(body: Mapping[str, Any], reply: Reply) -> list[_Part]:
    """Return the texts of an answer by phase (W1-24); without phases one text (W1-23)."""
    features = object_of(body["messages"][-1], "feature_config")
    thinking = reply.thinking if features.get("thinking_enabled") is True else []
    if features.get("output_schema") == "phase":
        return (
            [("think", thinking), ("answer", reply.text)] if thinking else [("answer", reply.text)]
        )
    return [(None, ["<think>", *thinking, "</think>", *reply.text] if thinking else reply.text)]


def _stream(body: Mapping[str, Any], reply: Reply, parts: list[_Part]) -> Iterator[bytes]:
    # Programs that search say so on the body and on the last message.
    if body.get("chat_type") == body["messages"][-1].get("chat_type") == "search":
        yield SEARCH_FRAME
    cumulative = reply.is_cumulative or body.get("incremental_output") is not True
    for delta, tokens in _deltas(parts, cumulative):
        yield frame({"choices": [{"delta": delta}], **usage(reply, tokens)})
    if reply.says_done:
        yield DONE


def _deltas(parts: list[_Part], cumulative: bool) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the deltas of an answer, each with the number of pieces so far.

    A part's last delta adds nothing: it is empty, or, in a cumulative stream without phases, the
    whole text once more.
    """
    count = 0
    for phase, pieces in parts:
        so_far = ""
        for piece in pieces:
            count += 1
            so_far += piece
            yield _delta(so_far if cumulative and piece else piece, phase, "typing"), count
        yield _delta(so_far if cumulative and phase is None else "", phase, "finished"), count


def _delta(content: str, phase: str | None, status: str) -> dict[str, Any]:
    delta = {"role": "assistant", "content": content}
    return delta if phase is None else {**delta, "phase": phase, "status": status}
