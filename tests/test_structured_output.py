"""Structured output over each dialect, as the official client asks for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from qwen_asgi.testing import SimulatedQwen
from tests.conftest import DIALECTS, MODEL, GatewayURL

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Which city is it?"}]


class City(BaseModel):
    name: str
    people: int


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def client(gateway_url: GatewayURL) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway_url()}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_a_plain_answer_is_parsed(client: OpenAI, qwen: SimulatedQwen, dialect: str) -> None:
    text = '{"name": "Paris", "people": 2100000}'
    # A model that is only asked for it in words says more than that.
    qwen.reply = f"Sure:\n```json\n{text}\n```" if dialect.startswith("qwen-web") else text
    answer = client.chat.completions.parse(model=MODEL, messages=ASK, response_format=City)
    assert answer.choices[0].message.parsed == City(name="Paris", people=2_100_000)


def test_a_streamed_answer_is_parsed(client: OpenAI, qwen: SimulatedQwen) -> None:
    qwen.reply, qwen.pieces = '{"name": "Paris", "people": 2100000}', 4
    with client.chat.completions.stream(model=MODEL, messages=ASK, response_format=City) as stream:
        deltas = [event for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert len(deltas) > 3, "it streams"
    assert final.choices[0].message.parsed == City(name="Paris", people=2_100_000)


def test_what_does_not_follow_the_schema_is_an_error(
    client: OpenAI, qwen: SimulatedQwen, dialect: str
) -> None:
    if not dialect.startswith("qwen-web"):
        pytest.skip("the server does that")
    qwen.reply = '{"name": "Paris", "people": "many"}'
    with pytest.raises(openai.InternalServerError, match=r"\$.people") as caught:
        client.chat.completions.parse(model=MODEL, messages=ASK, response_format=City)
    assert caught.value.code == "upstream_invalid_json"


@pytest.mark.parametrize("stream", [False, True])
def test_where_that_is_set_a_wrong_answer_is_sent_back_once(
    gateway_url: GatewayURL, qwen: SimulatedQwen, dialect: str, stream: bool
) -> None:
    if not dialect.startswith("qwen-web"):
        pytest.skip("the server does that")

    def reply(body: Mapping[str, Any]) -> str:
        is_sent_back = "put right" in json.dumps(body["messages"])
        return '{"name": "Paris", "people": 2100000}' if is_sent_back else "Paris, 2.1 million"

    qwen.reply = reply
    url = gateway_url(json_repair=True)
    with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        if stream:
            ask = client.chat.completions.stream
            with ask(model=MODEL, messages=ASK, response_format=City) as answer:
                final = answer.get_final_completion()
        else:
            final = client.chat.completions.parse(model=MODEL, messages=ASK, response_format=City)
    assert final.choices[0].message.parsed == City(name="Paris", people=2_100_000)
    assert sum(request.is_chat for request in qwen.requests) == 2
