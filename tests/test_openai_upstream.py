"""The dialect `openai` over real sockets: a gateway whose upstream is another gateway.

The upstream is then an OpenAI-compatible server with everything that ours does right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from qwen_asgi import Gateway, Settings, anonymous
from qwen_asgi.testing import Fault, SimulatedQwen
from tests.conftest import UPSTREAM_KEY, MakeGateway, answer_of, ask, error_of

Serve = Callable[..., str]


@pytest.fixture
def url(make_gateway: MakeGateway, serve_app: Serve) -> str:
    upstream = serve_app(make_gateway())
    settings = Settings(upstream="openai", base_url=f"{upstream}/v1")
    return serve_app(Gateway(settings, authenticate=anonymous))


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)


def test_an_answer_comes_through(url: str, http: httpx.Client, qwen: SimulatedQwen) -> None:
    qwen.reply = "你好 <b>"
    document = answer_of(http.post(f"{url}/v1/chat/completions", json=ask()))
    assert document["choices"][0]["message"]["content"] == "你好 <b>"
    assert document["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("usage", [True, False])
def test_a_stream_comes_through(client: openai.OpenAI, qwen: SimulatedQwen, usage: bool) -> None:
    qwen.reply = "one two three"
    qwen.pieces = 1
    chunks = list(
        client.chat.completions.create(
            model="qwen-max-latest",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": usage},
            extra_body={"enable_thinking": True},
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "one two three"
    assert sum(delta.role is not None for delta in deltas) == 1
    assert any(chunk.usage for chunk in chunks) is usage


def test_its_models_are_the_upstream_s(client: openai.OpenAI) -> None:
    assert "qwen-max-latest" in [model.id for model in client.models.list()]


FAULTS: dict[str, tuple[Any, int, str]] = {
    "limit": (Fault.status(429), 429, "upstream_rate_limited"),
    "broken": (Fault.status(500), 500, "upstream_failed"),
    # The gateway that is the upstream has made it a 500.
    "cut": (Fault.truncate(), 500, "upstream_failed"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_failure_stays_one(url: str, http: httpx.Client, qwen: SimulatedQwen, name: str) -> None:
    fault, status, code = FAULTS[name]
    qwen.fail(fault)
    error = error_of(http.post(f"{url}/v1/chat/completions", json=ask()), status)
    assert error["code"] == code


def test_a_stream_that_breaks_off_upstream_has_no_end(
    client: openai.OpenAI, qwen: SimulatedQwen
) -> None:
    qwen.reply = "one two three four"
    qwen.pieces = 1
    qwen.fail(Fault.truncate())
    stream = client.chat.completions.create(
        model="qwen-max-latest", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    texts: list[str] = []

    def read() -> None:
        for chunk in stream:
            texts.append(chunk.choices[0].delta.content or "")
            assert chunk.choices[0].finish_reason is None

    with pytest.raises(openai.APIError):
        read()
    assert "one two three four".startswith("".join(texts))


def test_a_key_that_the_upstream_does_not_know_is_the_operator_s_matter(
    make_gateway: MakeGateway, serve_app: Serve, http: httpx.Client
) -> None:
    upstream = serve_app(Gateway(Settings(api_key=UPSTREAM_KEY, client_keys=("right",))))
    settings = Settings(
        upstream="openai", base_url=f"{upstream}/v1", api_key="wrong", models=("qwen-max-latest",)
    )
    url = serve_app(Gateway(settings, authenticate=anonymous))
    answer = http.post(f"{url}/v1/chat/completions", json=ask())
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "upstream_authentication")


def test_a_model_that_only_streams_answers_in_one_piece_too(
    make_gateway: MakeGateway, serve_app: Serve, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    upstream = serve_app(make_gateway())
    settings = Settings(
        upstream="model-studio", base_url=f"{upstream}/v1", api_key="k", models=("qvq-72b-preview",)
    )
    url = serve_app(Gateway(settings, authenticate=anonymous))
    qwen.reply = "one piece"
    document = answer_of(http.post(f"{url}/v1/chat/completions", json=ask(model="qvq-72b-preview")))
    assert document["choices"][0]["message"]["content"] == "one piece"
    assert document["usage"]["total_tokens"] > 0
    assert qwen.requests[-1].body["stream"] is True
