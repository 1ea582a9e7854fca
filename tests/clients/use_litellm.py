"""LiteLLM's SDK over a gateway: `python use_litellm.py BASE_URL KEY` prints what a user gets."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from report import report, until_it_breaks

# It would ask for its list of prices on the network.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

# It prints an advertisement beside each error.
litellm.suppress_debug_info = True

URL, KEY = sys.argv[1:]
DEGREES = {"c": 21, "f": 70}
WEATHER = {"role": "user", "content": "Weather in Paris and Rome?"}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["c", "f"]}},
    "required": ["city", "unit"],
}
DESCRIPTION = "Tells the weather of a city."
FUNCTION = {"name": "get_weather", "description": DESCRIPTION, "parameters": PARAMETERS}


class City(BaseModel):
    name: str
    people: int


def get_weather(city: str, unit: str) -> str:
    return f"{city}: {DEGREES[unit]} degrees {unit}"


def complete(message: Any, *more: Any, model: str = "qwen-max-latest", **options: Any) -> Any:
    first = {"role": "user", "content": message} if isinstance(message, str) else message
    given = {"api_base": URL, "api_key": KEY, "max_retries": 0, **options}
    return litellm.completion(model=f"openai/{model}", messages=[first, *more], **given)


def calls_of(message: Any) -> Any:
    functions = [call.function for call in message.tool_calls]
    return [[function.name, json.loads(function.arguments)] for function in functions]


def results_of(message: Any) -> list[Any]:
    return [
        {
            "role": "tool",
            "tool_call_id": call.id,
            "content": get_weather(**json.loads(call.function.arguments)),
        }
        for call in message.tool_calls
    ]


def text_pieces(chunks: Any) -> Iterator[str]:
    texts = (chunk.choices[0].delta.content for chunk in chunks if chunk.choices)
    return (text for text in texts if text)


def plain() -> Any:
    answer = complete("Hello")
    choice = answer.choices[0]
    usage = answer.usage.total_tokens
    return {"text": choice.message.content, "reason": choice.finish_reason, "usage": usage}


def streamed() -> Any:
    chunks = list(complete("Hello", stream=True, stream_options={"include_usage": True}))
    whole = litellm.stream_chunk_builder(chunks)
    reason, usage = whole.choices[0].finish_reason, whole.usage.total_tokens
    return {"pieces": list(text_pieces(chunks)), "reason": reason, "usage": usage}


def tools() -> Any:
    offered = [{"type": "function", "function": FUNCTION}]
    asked = complete(WEATHER, tools=offered).choices[0].message
    answer = complete(WEATHER, asked, *results_of(asked), tools=offered)
    return {"calls": calls_of(asked), "text": answer.choices[0].message.content}


def streamed_tools() -> Any:
    offered = [{"type": "function", "function": FUNCTION}]
    chunks = list(complete(WEATHER, tools=offered, stream=True))
    asked = litellm.stream_chunk_builder(chunks).choices[0].message
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    answer = complete(WEATHER, asked, *results_of(asked), tools=offered, stream=True)
    return {
        "calls": calls_of(asked),
        "fragments": sum(len(delta.tool_calls or []) for delta in deltas),
        "pieces": list(text_pieces(answer)),
    }


def structured() -> Any:
    answer = complete("Which city is it?", response_format=City)
    return City.model_validate_json(answer.choices[0].message.content).model_dump()


def structured_and_streamed() -> Any:
    parts = [*text_pieces(complete("Which city is it?", response_format=City, stream=True))]
    return {"parts": len(parts), "object": json.loads("".join(parts))}


def streamed_thinking() -> Any:
    chunks = list(complete("Hello", stream=True, extra_body={"enable_thinking": True}))
    message = litellm.stream_chunk_builder(chunks).choices[0].message
    return {"thoughts": message.reasoning_content, "text": message.content}


def unknown_model() -> None:
    complete("Hello", model="gpt-4o")


def wrong_key() -> None:
    complete("Hello", api_key="wrong")


def broken_off() -> Any:
    return until_it_breaks(text_pieces(complete("simulate: truncate", stream=True)))


report(
    plain,
    streamed,
    tools,
    streamed_tools,
    structured,
    structured_and_streamed,
    streamed_thinking,
    unknown_model,
    wrong_key,
    broken_off,
)
