"""instructor over a gateway: `python use_instructor.py BASE_URL KEY` prints what a user gets."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel
from report import report

URL, KEY = sys.argv[1:]
MODEL = "qwen-max-latest"


class City(BaseModel):
    name: str
    people: int


class get_weather(BaseModel):
    """Tells the weather of a city."""

    city: str
    unit: Literal["c", "f"]


def client(mode: instructor.Mode = instructor.Mode.TOOLS, key: str = KEY) -> instructor.Instructor:
    return instructor.from_openai(OpenAI(base_url=URL, api_key=key, max_retries=0), mode=mode)


def asking(text: str, model: str = MODEL) -> dict[str, Any]:
    message = {"role": "user", "content": text}
    return {"model": model, "messages": [message], "max_retries": 0}


def city_by(mode: instructor.Mode, **options: Any) -> Any:
    question = asking("Which city is it?")
    return client(mode).create(response_model=City, **question, **options).model_dump()


def structured() -> Any:
    return city_by(instructor.Mode.JSON_SCHEMA)


def structured_by_a_tool() -> Any:
    return city_by(instructor.Mode.TOOLS)


def structured_by_words() -> Any:
    return [city_by(instructor.Mode.JSON), city_by(instructor.Mode.MD_JSON)]


def structured_and_streamed() -> Any:
    question = asking("Which city is it?")
    asked = client(instructor.Mode.JSON_SCHEMA).create_partial(response_model=City, **question)
    parts = [part.model_dump() for part in asked]
    return {"parts": len(parts), "object": parts[-1]}


def structured_by_a_streamed_tool() -> Any:
    asked = client().create_partial(response_model=City, **asking("Which city is it?"))
    parts = [part.model_dump() for part in asked]
    return {"parts": len(parts), "object": parts[-1]}


def several_objects() -> Any:
    parallel = client(instructor.Mode.PARALLEL_TOOLS)
    question = asking("Weather in Paris and Rome?")
    calls = parallel.create(response_model=Iterable[get_weather], **question)
    return [[type(call).__name__, call.model_dump()] for call in calls]


def usage() -> Any:
    asked = client().create_with_completion(response_model=City, **asking("Which city is it?"))
    city, completion = asked
    return {"object": city.model_dump(), "usage": completion.usage.total_tokens}


def unknown_model() -> None:
    client().create(response_model=City, **asking("Which city is it?", "gpt-4o"))


def wrong_key() -> None:
    client(key="wrong").create(response_model=City, **asking("Which city is it?"))


def broken_off() -> Any:
    plain = OpenAI(base_url=URL, api_key=KEY)
    plain.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Break off your next answer."}]
    )
    return structured_and_streamed()


report(
    structured,
    structured_by_a_tool,
    structured_by_words,
    structured_and_streamed,
    structured_by_a_streamed_tool,
    several_objects,
    usage,
    unknown_model,
    wrong_key,
    broken_off,
)
