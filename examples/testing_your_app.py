"""Tests of an app that embeds the gateway, against the simulated Qwen; they need no key.

Run them with `pytest examples/testing_your_app.py`.
"""

from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from qwen_asgi import Gateway, Settings, anonymous
from qwen_asgi.testing import Fault, SimulatedQwen, serve

BODY = {"model": "qwen-max-latest", "messages": [{"role": "user", "content": "1+1?"}]}
qwen = SimulatedQwen(reply="2")


@pytest.fixture
def client() -> Iterator[TestClient]:
    with serve(qwen) as url:
        gateway = Gateway(Settings(api_key="test", base_url=url), authenticate=anonymous)
        app = Starlette(routes=[Mount("/qwen", app=gateway)], lifespan=gateway.lifespan)
        with TestClient(app) as client:
            yield client


def test_the_answer_comes_from_qwen(client: TestClient) -> None:
    answer = client.post("/qwen/v1/chat/completions", json=BODY).json()
    assert answer["choices"][0]["message"]["content"] == "2"
    assert qwen.requests[-1].body["model"] == "qwen-max-latest"


def test_a_limit_of_qwen_is_told_to_the_client(client: TestClient) -> None:
    qwen.fail(Fault.status(429, headers={"retry-after": "7"}))
    response = client.post("/qwen/v1/chat/completions", json=BODY)
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")
