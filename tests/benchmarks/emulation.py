"""What the layers around an upstream add to a chunk: `python -m tests.benchmarks.emulation`.

One answer of many one-word batches is read without a layer, through all of them with nothing to
emulate, and through each with something to do, in turns in one process; the least of the turns
counts. What a network and a server add is in `python -m tests.benchmarks`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from qwen_asgi.chat import Batches, ChatRequest, Event, Finish, Message, TextDelta, Upstream
from qwen_asgi.layers.choices import Choices
from qwen_asgi.layers.drain import Draining, Drains
from qwen_asgi.layers.estimated_usage import EstimatedUsage
from qwen_asgi.layers.json_answer import JSONAnswers
from qwen_asgi.layers.stop import StopSequences
from qwen_asgi.layers.token_limit import TokenLimit
from qwen_asgi.layers.tools import EmulatedTools

WORDS = ("Hello", " world", ", this", " is", " an", " answer", ".\n", " It", " goes", " on")
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = ('<tool_call>{"name": "f", "arguments": {"a": "', '"}}</tool_call>')
OBJECT = ('{"a": "', '"}')

CASES: Mapping[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "nothing to emulate": ({}, ("", "")),
    "tools offered, none called": ({"tools": [TOOL]}, ("", "")),
    "a tool called, arguments streamed": ({"tools": [TOOL]}, CALL),
    "stop sequences": ({"stop": ["\n\n", "END"]}, ("", "")),
    "a JSON object": ({"response_format": {"type": "json_object"}}, OBJECT),
    "a limit on tokens": ({"max_tokens": 1_000_000}, ("", "")),
    "two choices": ({"n": 2}, ("", "")),
    "usage estimated": ({}, ("", "")),
    "read on when the client leaves": ({}, ("", "")),
}


def layered(name: str, plain: Upstream) -> Upstream:
    """Return an upstream in the layers of one case."""
    emulated = JSONAnswers(StopSequences(EmulatedTools(TokenLimit(plain))))
    match name:
        case "usage estimated":
            return Choices(EstimatedUsage(emulated))
        case "read on when the client leaves":
            return Draining(Choices(emulated), Drains(), seconds=1, tokens=None)
    return Choices(emulated)


def upstream_of(chunks: int, around: tuple[str, str]) -> Upstream:
    texts = [WORDS[n % len(WORDS)].replace("\n", " ") for n in range(chunks)]
    batches: list[Sequence[Event]] = [[TextDelta(text)] for text in (around[0], *texts, around[1])]
    batches.append([Finish("stop")])

    @asynccontextmanager
    async def upstream(request: ChatRequest) -> AsyncIterator[Batches]:
        async def answer() -> Batches:
            for batch in batches:
                yield batch

        yield answer()

    return upstream


async def seconds(upstream: Upstream, options: Mapping[str, Any]) -> float:
    fields = {k: v for k, v in options.items() if k != "max_tokens"}
    request = ChatRequest(
        model="m",
        messages=(Message("user", "hi"),),
        options=fields,
        max_tokens=options.get("max_tokens"),
    )
    begun = time.perf_counter()
    async with upstream(request) as batches:
        async for _ in batches:
            pass
    return time.perf_counter() - begun


async def measure(chunks: int, turns: int) -> dict[str, tuple[float, float]]:
    """Return for each case the microseconds a chunk without the layers, and with them."""
    least: dict[str, tuple[float, float]] = {}
    for _ in range(turns):
        for name, (options, around) in CASES.items():
            plain = upstream_of(chunks, around)
            both = (
                await seconds(plain, {}) * options.get("n", 1),
                await seconds(layered(name, plain), options),
            )
            before = least.get(name, both)
            least[name] = (min(before[0], both[0]), min(before[1], both[1]))
    found = {}
    for name, (plain_took, took) in least.items():
        pieces = chunks * CASES[name][0].get("n", 1) / 1e6
        found[name] = (plain_took / pieces, took / pieces)
    return found


def main(chunks: int = 20_000, turns: int = 7) -> None:
    print("| us a chunk | without the layers | with them | more |\n| --- | --- | --- | --- |")
    for name, (plain, more) in asyncio.run(measure(chunks, turns)).items():
        print(f"| {name} | {plain:.2f} | {more:.2f} | {more - plain:.2f} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
