"""Usage where the upstream tells none: by what the prompt and the answer weigh, and marked so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

from pydantic_core import to_json

from qwen_asgi.chat import (
    Batches,
    ChatRequest,
    Event,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Upstream,
    Usage,
)
from qwen_asgi.layers.tokens import UNIT, tokens_in, weight_of

TOKENS_OF_A_TURN = 5
"""What stands around each message in Qwen's chat form: `<|im_start|>`, a role, two line ends and
`<|im_end|>`."""


class EstimatedUsage:
    """An `Upstream` whose whole answers all have a usage."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    @asynccontextmanager
    async def __call__(self, request: ChatRequest) -> AsyncIterator[Batches]:
        async with self._upstream(request) as batches:
            yield _with_usage(batches, request)


async def _with_usage(batches: Batches, request: ChatRequest) -> AsyncIterator[Sequence[Event]]:
    text = thoughts = 0
    is_told = False
    async for batch in batches:
        for event in batch:
            if type(event) is TextDelta:
                text += weight_of(event.text)
            elif type(event) is ReasoningDelta:
                thoughts += weight_of(event.text)
            elif type(event) is ToolCallDelta:
                text += weight_of(event.arguments) + weight_of(event.name or "")
            elif type(event) is Usage:
                is_told = True
        yield batch
    if not is_told:
        yield [_estimate(request, -(-text // UNIT), -(-thoughts // UNIT))]


def _estimate(request: ChatRequest, text: int, thoughts: int) -> Usage:
    prompt = tokens_in(*_texts(request)) + TOKENS_OF_A_TURN * len(request.messages)
    completion = text + thoughts
    return Usage(
        prompt,
        completion,
        prompt + completion,
        reasoning_tokens=thoughts or None,
        certainty="estimated",
    )


def _texts(request: ChatRequest) -> Iterator[str]:
    """Yield all words of a prompt. What a picture counts is not known."""
    for message in request.messages:
        yield message.text
        calls = message.extra.get("tool_calls") if message.extra else None
        if calls:
            yield to_json(calls).decode()
    tools = request.options.get("tools")
    if tools:
        yield to_json(tools).decode()
