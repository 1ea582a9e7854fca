"""The simulated web chat of generation 2: stored chats, and one turn in each.

W2 and WE numbers are those of the wire notes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any
from uuid import uuid4

from qwen_asgi.testing.answers import DONE, EVENT_STREAM, Answer, frame
from qwen_asgi.testing.replies import Reply, object_of
from qwen_asgi.testing.web import failed, succeeded, usage

SUMMARY_TITLE = "Thinking it over"


class Chats:
    """The chats that are stored: made, answered in one at a time, removed."""

    def __init__(self) -> None:
        self.stored: set[str] = set()
        self.answering: set[str] = set()

    def new(self, body: Any, models: Sequence[str]) -> Answer:
        match body:
            case {"models": [str(model)], "chat_type": str(), "timestamp": int()}:
                if model not in models:
                    return failed("Not_Found", "Model not found")
            case _:
                return failed("Bad_Request", "Invalid input: models are required.")
        id = str(uuid4())
        self.stored.add(id)
        return succeeded({"id": id})

    def remove(self, id: str) -> Answer:
        if id not in self.stored:
            return failed("Not_Found", "The chat does not exist.")
        if id in self.answering:
            return failed("Bad_Request", "The chat is in progress!")
        self.stored.discard(id)
        return succeeded({"status": True})

    def stop(self, body: Any) -> Answer:
        self.answering.discard(str(object_of({"body": body}, "body").get("chat_id")))
        return succeeded({"status": True})

    def busy(self, id: str, steps: Iterable[bytes | float]) -> Iterator[bytes | float]:
        """Yield the steps of an answer, while which its chat takes no other turn (W2-37)."""
        self.answering.add(id)
        try:
            for step in steps:
                if id not in self.answering:
                    # It was stopped (W2-03).
                    return
                yield step
        finally:
            self.answering.discard(id)

    def refusal(self, id: str, body: Any, models: Sequence[str]) -> Answer | None:
        """Return why a turn is not answered; None if it is."""
        match body:
            case {"chat_id": str(named), "model": str(model), "messages": [{"content": str()}]}:
                if named != id or id not in self.stored:
                    return failed("Not_Found", "The chat does not exist.")
                if model not in models:
                    return failed("Not_Found", "Model not found")
                if id in self.answering:
                    return failed("Bad_Request", "The chat is in progress!")
                return None
            case {"messages": [_, _, *_]}:
                return failed("Bad_Request", "Invalid input too many messages.")
        return failed("Bad_Request", "Invalid input.")


def completion(chat_id: str, body: Mapping[str, Any], reply: Reply) -> Answer:
    steps = (
        _candidates(chat_id, body, reply) if reply.candidates > 1 else _stream(chat_id, body, reply)
    )
    return Answer(headers={"content-type": EVENT_STREAM}, steps=steps, pace=reply.pace)


def _candidates(chat_id: str, body: Mapping[str, Any], reply: Reply) -> Iterator[bytes]:
    """Yield the frames of several wordings in turns (W2-55)."""
    streams = [list(_stream(chat_id, body, reply, n)) for n in range(reply.candidates)]
    # A frame of another than the first comes first.
    for group in zip_longest(*reversed(streams), fillvalue=b""):
        yield from filter(None, group)


def _stream(chat_id: str, body: Mapping[str, Any], reply: Reply, index: int = 0) -> Iterator[bytes]:
    id = str(uuid4())
    names = {"chat_id": chat_id, "parent_id": str(uuid4()), "response_id": id}
    head = frame({"response.created": {**names, "response_index": str(index)}})
    # A blank stands before the end of this line (W2-40).
    yield head.replace(b"\n\n", b" \n\n")
    features = object_of(body["messages"][0], "feature_config")
    tokens = 0
    for delta, count in _deltas(features, reply):
        tokens += count
        top = usage(reply, tokens)
        yield frame({"choices": [{"delta": delta}], "response_id": id, **top, **_now()})
    last = {"content": "", "role": "assistant", "status": "finished", "phase": "answer"}
    if features.get("output_schema") != "phase":
        del last["phase"]
    yield frame({"choices": [{"delta": last}], "response_id": id})
    if reply.says_done:
        yield DONE


def _now() -> dict[str, int]:
    return {"timestamp": int(time.time())}


def _deltas(features: Mapping[str, Any], reply: Reply) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the deltas, each with how many pieces are new in it."""
    phased = features.get("output_schema") == "phase"
    thinks = features.get("thinking_enabled") is True and features.get("auto_thinking") is not True
    if thinks and reply.thinking and phased:
        is_summary = features.get("thinking_format") == "summary"
        yield from _summary(reply) if is_summary else _thoughts(reply)
    for piece in [*reply.text, ""]:
        delta = {"role": "assistant", "content": piece, "phase": "answer", "status": "typing"}
        if not phased:
            del delta["phase"]
        yield delta, bool(piece)


def _summary(reply: Reply) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield thinking as lists of all that was said so far (W2-43)."""
    phase = {"role": "assistant", "content": "", "phase": "thinking_summary"}
    said = ""
    for piece in reply.thinking:
        said += piece
        lists = {
            "summary_title": {"content": [SUMMARY_TITLE]},
            "summary_thought": {"content": [said]},
        }
        yield {**phase, "extra": lists, "status": "typing"}, 1
    yield {**phase, "status": "finished"}, 0


def _thoughts(reply: Reply) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield thinking in pieces (W2-44)."""
    for piece in reply.thinking:
        delta = {"role": "assistant", "content": piece, "phase": "think", "status": "typing"}
        yield delta, 1
    yield {"role": "assistant", "content": "", "phase": "think", "status": "finished"}, 0
