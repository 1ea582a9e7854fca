"""What mutated and fuzzed inputs begin as: recorded answers, requests, and words that matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SAMPLES = Path(__file__).parents[1] / "data" / "wire"

WORDS = (
    *(b"\n\n", b"\r\n", b"data: ", b"[DONE]", b"{", b"}", b"[", b"]", b'"', b"\\", b":", b","),
    *(b"null", b"-1", b"1e999", b"\xef\xbb\xbf", b"\xff", b"\x00", b"\\ud800", b"event: error\n"),
    *(b'"phase": "answer"', b'"status": "finished"', b'"response_index": "1"', b"<think>"),
    *(b'"tool_calls": [{}]', b'"finish_reason": "stop"', b'"usage": {}', b'"error": {"code": 1}'),
)


def recorded(*patterns: str) -> list[bytes]:
    """Return the samples whose names are like one of these."""
    paths = sorted({path for pattern in patterns for path in SAMPLES.rglob(pattern)})
    assert paths, patterns
    return [path.read_bytes() for path in paths]


def requests() -> list[bytes]:
    """Return bodies of chat requests."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    turns = [
        {"role": "system", "content": "b"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "c"},
    ]
    return [
        _body(),
        _body(messages=turns, tools=[tool], n=2, stop=["x"]),
        _body(functions=[{"name": "f"}], function_call={"name": "f"}),
        _body(stream=True, stream_options={"include_usage": True}, seed=1),
    ]


def _body(**fields: Any) -> bytes:
    chat = {"model": "qwen-max-latest", "messages": [{"role": "user", "content": "Hello"}]}
    return json.dumps({**chat, **fields}).encode()
