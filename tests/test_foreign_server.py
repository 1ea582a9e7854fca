"""The dialect `openai` in front of a server that nobody here wrote: the LiteLLM proxy.

It runs with mock models, in an environment of its own, whose command QWEN_TEST_LITELLM names.
`.ci/run` installs it; by hand:

    python3 -m venv .venv-litellm
    .venv-litellm/bin/pip install 'litellm[proxy]==1.108.7'
    export QWEN_TEST_LITELLM=.venv-litellm/bin/litellm
    .venv/bin/python -m pytest tests/test_foreign_server.py
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from qwen_asgi import Gateway, Settings, anonymous
from qwen_asgi.check import check
from tests.conftest import CHAT, answer_of, ask, error_of, streamed
from tests.programs import running

COMMAND = os.environ.get("QWEN_TEST_LITELLM", "")
KEY = "sk-foreign-master-key"
REPLY = '你好，世界! This is a mock of a Qwen model, with "quotes" and a snowman ☃.'
FAILURES = {"limited": "RateLimitError", "broken": "InternalServerError"}

VARIABLES = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "NO_COLOR": "1",
    "PYTHONPATH": "",
}
"""It asks nobody on the network."""

pytestmark = pytest.mark.skipif(not COMMAND, reason="QWEN_TEST_LITELLM names no LiteLLM")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running LiteLLM proxy."""
    folder = tmp_path_factory.mktemp("litellm")
    models = {"qwen-mock": REPLY} | {name: f"litellm.{kind}" for name, kind in FAILURES.items()}
    config = {
        "model_list": [
            {
                "model_name": name,
                "litellm_params": {"model": "openai/mock", "api_key": "x", "mock_response": reply},
            }
            for name, reply in models.items()
        ],
        "general_settings": {"master_key": KEY},
        "litellm_settings": {"num_retries": 0, "telemetry": False},
        "router_settings": {"disable_cooldowns": True, "num_retries": 0},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(COMMAND).absolute()), "--config", "config.yaml", "--telemetry", "False"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with running(command, folder, "Uvicorn running on", **VARIABLES):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def url(foreign: str, serve_app: Callable[..., str]) -> Callable[..., str]:
    def url(**settings: Any) -> str:
        given = {"upstream": "openai", "base_url": f"{foreign}/v1", "api_key": KEY, **settings}
        return serve_app(Gateway(Settings(**given), authenticate=anonymous))

    return url


def test_its_models_are_listed(url: Callable[..., str]) -> None:
    with openai.OpenAI(base_url=f"{url()}/v1", api_key="any") as client:
        assert {model.id for model in client.models.list()} == {"qwen-mock", *FAILURES}


def test_a_plain_answer(url: Callable[..., str], http: httpx.Client) -> None:
    document = answer_of(http.post(url() + CHAT, json=ask(model="qwen-mock")))
    assert document["choices"][0]["message"]["content"] == REPLY
    assert document["model"] == "qwen-mock"
    assert document["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("usage", [True, False])
def test_a_streamed_answer(url: Callable[..., str], http: httpx.Client, usage: bool) -> None:
    body = ask(model="qwen-mock", stream=True, stream_options={"include_usage": usage})
    stream = streamed(http.post(url() + CHAT, json=body))
    assert stream.is_whole
    assert stream.text == REPLY
    assert len(stream.chunks) > 3
    assert bool(stream.chunks[-1].get("usage")) is usage


def test_the_official_client_streams_through_both(url: Callable[..., str]) -> None:
    with openai.OpenAI(base_url=f"{url()}/v1", api_key="any") as client:
        stream = client.chat.completions.create(
            model="qwen-mock", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
    assert text == REPLY


def test_an_unknown_model_is_said_to_be_one(url: Callable[..., str], http: httpx.Client) -> None:
    at = url(models=("nope",))
    error = error_of(http.post(at + CHAT, json=ask(model="nope")), 400)
    assert error["type"] == "invalid_request_error"


def test_a_wrong_credential_is_an_error_that_does_not_show_it(
    url: Callable[..., str], http: httpx.Client
) -> None:
    at = url(api_key="sk-wrong", models=("qwen-mock",))
    # LiteLLM says no more than this without a database to look the key up in.
    error = error_of(http.post(at + CHAT, json=ask(model="qwen-mock")), 400)
    assert "No connected db" in error["message"]
    assert "sk-wrong" not in json.dumps(error)


@pytest.mark.parametrize(("model", "status"), [("limited", 429), ("broken", 500)])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_its_failures_are_what_they_are(
    url: Callable[..., str], http: httpx.Client, model: str, status: int, stream: bool
) -> None:
    response = http.post(url() + CHAT, json=ask(model=model, stream=stream))
    assert error_of(response, status)["type"] in ("rate_limit_error", "upstream_error")


def test_a_route_goes_on_from_one_of_its_models_to_the_other(
    foreign: str, serve_app: Callable[..., str], http: httpx.Client
) -> None:
    upstream = {"dialect": "openai", "base_url": f"{foreign}/v1", "api_key": KEY}
    to = [{"upstream": "a", "model": "limited"}, {"upstream": "b", "model": "qwen-mock"}]
    settings = Settings(upstreams={"a": upstream, "b": upstream}, routes={"ours": {"to": to}})
    at = serve_app(Gateway(settings, authenticate=anonymous))
    response = http.post(at + CHAT, json=ask(model="ours", stream=True))
    assert streamed(response).text == REPLY
    assert response.headers["x-qwen-asgi-upstream"] == "b"


@pytest.mark.anyio
async def test_the_check_finds_it_well(foreign: str) -> None:
    upstream = {"dialect": "openai", "base_url": f"{foreign}/v1", "api_key": KEY}
    report = await check(Settings(upstreams={"litellm": upstream}))
    assert report.is_well, report.lines
