"""LangChain over a gateway: `python use_langchain.py BASE_URL KEY` prints what a user gets."""

from __future__ import annotations

import sys
from typing import Any, Literal

from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from report import report, until_it_breaks

URL, KEY = sys.argv[1:]
DEGREES = {"c": 21, "f": 70}
WEATHER = HumanMessage("Weather in Paris and Rome?")


class City(BaseModel):
    name: str
    people: int


@tool
def get_weather(city: str, unit: Literal["c", "f"]) -> str:
    """Tells the weather of a city."""
    return f"{city}: {DEGREES[unit]} degrees {unit}"


def model(name: str = "qwen-max-latest", key: str = KEY) -> ChatOpenAI:
    return ChatOpenAI(model=name, base_url=URL, api_key=key, max_retries=0, stream_usage=True)


def plain() -> Any:
    answer = model().invoke("Hello")
    reason = answer.response_metadata["finish_reason"]
    return {"text": answer.text, "reason": reason, "usage": answer.usage_metadata["total_tokens"]}


def streamed() -> Any:
    chunks = list(model().stream("Hello"))
    whole = sum(chunks[1:], chunks[0])
    usage = whole.usage_metadata["total_tokens"]
    reason = whole.response_metadata["finish_reason"]
    return {"pieces": [c.text for c in chunks if c.text], "reason": reason, "usage": usage}


def tools() -> Any:
    bound = model().bind_tools([get_weather])
    asked = bound.invoke([WEATHER])
    results = [get_weather.invoke(call) for call in asked.tool_calls]
    assert all(isinstance(result, ToolMessage) for result in results)
    calls = [[call["name"], call["args"]] for call in asked.tool_calls]
    return {"calls": calls, "text": bound.invoke([WEATHER, asked, *results]).text}


def streamed_tools() -> Any:
    bound = model().bind_tools([get_weather])
    chunks: list[AIMessageChunk] = list(bound.stream([WEATHER]))
    asked = sum(chunks[1:], chunks[0])
    results = [get_weather.invoke(call) for call in asked.tool_calls]
    pieces = [c.text for c in bound.stream([WEATHER, asked, *results]) if c.text]
    return {
        "calls": [[call["name"], call["args"]] for call in asked.tool_calls],
        "fragments": sum(len(chunk.tool_call_chunks) for chunk in chunks),
        "pieces": pieces,
    }


def structured() -> Any:
    return model().with_structured_output(City).invoke("Which city is it?").model_dump()


def structured_by_a_tool() -> Any:
    asking = model().with_structured_output(City, method="function_calling")
    return asking.invoke("Which city is it?").model_dump()


def structured_and_streamed() -> Any:
    asking = model().with_structured_output(City.model_json_schema(), method="json_schema")
    parts = list(asking.stream("Which city is it?"))
    return {"parts": len(parts), "object": parts[-1]}


def unknown_model() -> None:
    model("gpt-4o").invoke("Hello")


def wrong_key() -> None:
    model(key="wrong").invoke("Hello")


def broken_off() -> Any:
    return until_it_breaks(chunk.text for chunk in model().stream("simulate: truncate"))


report(
    plain,
    streamed,
    tools,
    streamed_tools,
    structured,
    structured_by_a_tool,
    structured_and_streamed,
    unknown_model,
    wrong_key,
    broken_off,
)
