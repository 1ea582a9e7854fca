"""What the layers of a web chat add to a chunk: `python -m tests.benchmarks.emulation`.

One answer of many one-word batches is read without a layer, through all three of them with nothing
to emulate, and through each with something to do, in turns in one process; the least of the turns
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
from qwen_asgi.layers.json_answer import JSONAnswers
from qwen_asgi.layers.stop import StopSequences
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
}


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
    request = ChatRequest(model="m", messages=(Message("user", "hi"),), options=options)
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
            layered = JSONAnswers(StopSequences(EmulatedTools(plain)))
            found = (await seconds(plain, {}), await seconds(layered, options))
            before = least.get(name, found)
            least[name] = (min(before[0], found[0]), min(before[1], found[1]))
    return {
        name: (plain / chunks * 1e6, layered / chunks * 1e6)
        for name, (plain, layered) in least.items()
    }


def main(chunks: int = 20_000, turns: int = 7) -> None:
    print("| us a chunk | without the layers | with them | more |\n| --- | --- | --- | --- |")
    for name, (plain, layered) in asyncio.run(measure(chunks, turns)).items():
        print(f"| {name} | {plain:.2f} | {layered:.2f} | {layered - plain:.2f} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
