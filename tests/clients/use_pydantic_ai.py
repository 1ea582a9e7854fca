"""Pydantic AI over a gateway: `python use_pydantic_ai.py BASE_URL KEY` prints what a user gets."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Literal

from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.messages import ModelResponse, PartDeltaEvent, ToolCallPart, ToolCallPartDelta
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIChatModelSettings
from pydantic_ai.providers.openai import OpenAIProvider
from report import raised, report
from typing_extensions import TypedDict

URL, KEY = sys.argv[1:]
DEGREES = {"c": 21, "f": 70}


class City(BaseModel):
    name: str
    people: int


class PartialCity(TypedDict, total=False):
    """What is known of a city so far."""

    name: str
    people: int


def get_weather(city: str, unit: Literal["c", "f"]) -> str:
    """Tells the weather of a city."""
    return f"{city}: {DEGREES[unit]} degrees {unit}"


def agent(name: str = "qwen-max-latest", key: str = KEY, **options: Any) -> Agent[None, Any]:
    client = AsyncOpenAI(base_url=URL, api_key=key, max_retries=0)
    return Agent(OpenAIChatModel(name, provider=OpenAIProvider(openai_client=client)), **options)


def calls_in(messages: Any) -> Any:
    parts = [part for m in messages if isinstance(m, ModelResponse) for part in m.parts]
    return [[p.tool_name, p.args_as_dict()] for p in parts if isinstance(p, ToolCallPart)]


def plain() -> Any:
    result = agent().run_sync("Hello")
    reason = result.response.finish_reason
    return {"text": result.output, "reason": reason, "usage": result.usage.total_tokens}


def streamed() -> Any:
    async def read() -> Any:
        async with agent().run_stream("Hello") as result:
            pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
            reason = result.response.finish_reason
            return {"pieces": pieces, "reason": reason, "usage": result.usage.total_tokens}

    return asyncio.run(read())


def tools() -> Any:
    result = agent(tools=[get_weather]).run_sync("Weather in Paris and Rome?")
    return {"calls": calls_in(result.all_messages()), "text": result.output}


def streamed_tools() -> Any:
    fragments = 0

    async def count(_: Any, events: Any) -> None:
        nonlocal fragments
        async for event in events:
            is_delta = isinstance(event, PartDeltaEvent)
            fragments += is_delta and isinstance(event.delta, ToolCallPartDelta)

    async def read() -> Any:
        asking = agent(tools=[get_weather])
        question = "Weather in Paris and Rome?"
        async with asking.run_stream(question, event_stream_handler=count) as result:
            pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
            calls = calls_in(result.all_messages())
            return {"calls": calls, "fragments": fragments, "pieces": pieces}

    return asyncio.run(read())


def structured() -> Any:
    asking = agent(output_type=NativeOutput(City))
    return asking.run_sync("Which city is it?").output.model_dump()


def structured_by_a_tool() -> Any:
    return agent(output_type=City).run_sync("Which city is it?").output.model_dump()


def structured_and_streamed() -> Any:
    async def read() -> Any:
        asking = agent(output_type=NativeOutput(PartialCity))
        async with asking.run_stream("Which city is it?") as result:
            parts = [part async for part in result.stream_output(debounce_by=None)]
            return {"parts": len(parts), "object": parts[-1]}

    return asyncio.run(read())


def thinking() -> Any:
    settings = OpenAIChatModelSettings(extra_body={"enable_thinking": True})
    response = agent().run_sync("Hello", model_settings=settings).response
    return {"thoughts": response.thinking, "text": response.text}


def unknown_model() -> None:
    agent("gpt-4o").run_sync("Hello")


def wrong_key() -> None:
    agent(key="wrong").run_sync("Hello")


def broken_off() -> Any:
    pieces: list[str] = []

    async def read() -> None:
        async with agent().run_stream("simulate: truncate") as result:
            async for piece in result.stream_text(delta=True, debounce_by=None):
                pieces.append(piece)

    try:
        asyncio.run(read())
    except Exception as error:
        return {"pieces": pieces, **raised(error)}
    return {"pieces": pieces}


report(
    plain,
    streamed,
    tools,
    streamed_tools,
    structured,
    structured_by_a_tool,
    structured_and_streamed,
    thinking,
    unknown_model,
    wrong_key,
    broken_off,
)
