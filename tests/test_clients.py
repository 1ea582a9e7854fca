"""The gateway through clients and frameworks that nobody here wrote, as their users use them.

`tests/clients/` has a program for each. It runs once over each dialect and prints what its user
got. Their packages live in environments of their own: QWEN_TEST_CLIENTS names the Python that has
those of Python, QWEN_TEST_NODE_CLIENTS the folder whose `node_modules` has those of Node. `.ci/run`
installs them, in the versions of `requirements.txt` and `package.json` there; by hand:

    python3 -m venv /tmp/qwen-clients/python
    /tmp/qwen-clients/python/bin/pip install -r tests/clients/requirements.txt
    export QWEN_TEST_CLIENTS=/tmp/qwen-clients/python/bin/python
    mkdir /tmp/qwen-clients/node && cp tests/clients/package.json /tmp/qwen-clients/node
    npm install --prefix /tmp/qwen-clients/node
    export QWEN_TEST_NODE_CLIENTS=/tmp/qwen-clients/node
    .venv/bin/python -m pytest tests/test_clients.py
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from shutil import copy
from typing import Any

import pytest

from qwen_asgi import Gateway, Settings
from qwen_asgi.settings import SEED_MODELS
from qwen_asgi.testing import THINKING, Fault, SimulatedQwen, serve
from qwen_asgi.testing.replies import text_of
from qwen_asgi.testing.web_v2 import SUMMARY_TITLE
from tests.conftest import DIALECTS, UPSTREAM_KEY
from tests.programs import ROOT, run

PYTHON = os.environ.get("QWEN_TEST_CLIENTS", "")
NODE = os.environ.get("QWEN_TEST_NODE_CLIENTS", "")
if not (PYTHON or NODE):
    reason = "neither QWEN_TEST_CLIENTS nor QWEN_TEST_NODE_CLIENTS names an environment"
    pytest.skip(reason, allow_module_level=True)

PROGRAMS = ROOT / "tests" / "clients"
KEY = "client-key"

REPLY = "Hello, 世界! It is 👩‍👩‍👧 here."
SIZE = 3
"""Characters in a piece of an answer."""
TOKENS = 1 + ceil(len(REPLY) / SIZE)
"""Those of the question, which is one word, and one for each piece."""
CALLS = [
    ["get_weather", {"city": "Paris", "unit": "c"}],
    ["get_weather", {"city": "Rome", "unit": "f"}],
]
RESULTS = ("Paris: 21 degrees c", "Rome: 70 degrees f")
WARM = "It is warm in both of them."
CITY = {"name": "Paris", "people": 2_100_000}


class Model(SimulatedQwen):
    """A model that calls tools where they help, gives JSON where it is asked for, or talks."""

    def __init__(self) -> None:
        super().__init__(api_key=UPSTREAM_KEY, reply=self.say, pieces=SIZE)

    def say(self, body: Mapping[str, Any]) -> str:
        """Return the text of the answer, and let `tool_calls` be those of a native one."""
        text = "\n".join(text_of(message) for message in body["messages"])
        if "Break off" in text:
            self.fail(Fault.truncate())
        calls = wanted_calls(text, body.get("tools") or tools_in(text))
        self.tool_calls = [(name, json.dumps(arguments)) for name, arguments in calls]
        if calls:
            blocks = [json.dumps({"name": name, "arguments": given}) for name, given in calls]
            return "\n".join(f"<tool_call>\n{block}\n</tool_call>" for block in blocks)
        if "Which city" in text:
            # A model that is only asked for it in words says more than that.
            return (
                json.dumps(CITY)
                if "response_format" in body
                else f"Sure:\n```json\n{json.dumps(CITY)}\n```"
            )
        return WARM if "Weather" in text else REPLY


def tools_in(text: str) -> list[Any]:
    """Return the tools that a prompt tells of."""
    found = re.search(r"^<tools>\n(.*?)\n</tools>$", text, re.DOTALL | re.MULTILINE)
    return [json.loads(line) for line in found[1].splitlines()] if found else []


def wanted_calls(text: str, tools: Sequence[Any]) -> list[list[Any]]:
    names = [tool["function"]["name"] for tool in tools]
    if "Weather" in text and "get_weather" in names:
        return [] if all(result in text for result in RESULTS) else CALLS
    # Some clients have a structured answer given as the arguments of a tool.
    return [[name, CITY] for name in names if name != "get_weather"]


@dataclass(frozen=True, kw_only=True)
class Client:
    """A program, and the classes of the errors that its user meets."""

    program: str
    unknown_model: str
    wrong_key: str
    broken_off: str

    @property
    def is_for_node(self) -> bool:
        return self.program.endswith(".mjs")


CLIENTS = {
    "langchain": Client(
        program="use_langchain.py",
        unknown_model="langchain_openai.OpenAIInvalidRequestError",
        wrong_key="langchain_openai.OpenAIAuthenticationError",
        broken_off="openai.APIError",
    ),
    "pydantic-ai": Client(
        program="use_pydantic_ai.py",
        unknown_model="pydantic_ai.ModelHTTPError",
        wrong_key="pydantic_ai.ModelHTTPError",
        broken_off="openai.APIError",
    ),
    "instructor": Client(
        program="use_instructor.py",
        unknown_model="instructor.InstructorRetryException",
        wrong_key="instructor.InstructorRetryException",
        broken_off="instructor.InstructorRetryException",
    ),
    "litellm": Client(
        program="use_litellm.py",
        # It goes by the code in the error, and by the status of the others.
        unknown_model="litellm.NotFoundError",
        wrong_key="litellm.AuthenticationError",
        broken_off="litellm.MidStreamFallbackError",
    ),
    "openai-node": Client(
        program="use_openai.mjs",
        unknown_model="BadRequestError",
        wrong_key="AuthenticationError",
        broken_off="APIError",
    ),
    "ai-sdk": Client(
        program="use_ai_sdk.mjs",
        unknown_model="APICallError",
        wrong_key="APICallError",
        # A part of the stream that holds the gateway's error object.
        broken_off="Object",
    ),
}


def param(name: str) -> Any:
    """Return a parameter of `client`, skipped where its packages are not there."""
    if CLIENTS[name].is_for_node:
        missing = "" if NODE else "QWEN_TEST_NODE_CLIENTS names no folder"
    else:
        missing = "" if PYTHON else "QWEN_TEST_CLIENTS names no Python"
    return pytest.param(name, marks=[pytest.mark.skip(missing)] if missing else [])


def of(*names: str) -> pytest.MarkDecorator:
    """Let a test be about these clients only."""
    return pytest.mark.parametrize("client", [*map(param, names)], indirect=True)


talking = of(*(name for name in CLIENTS if name != "instructor"))
"""instructor only gives objects."""


@pytest.fixture(scope="module")
def gateways() -> Iterator[Mapping[str, str]]:
    """The addresses of gateways to one model, by dialect."""
    with ExitStack() as stack:
        upstream = stack.enter_context(serve(Model()))

        def gateway(dialect: str, path: str) -> Gateway:
            given = {"upstream": dialect, "base_url": upstream + path, "models": SEED_MODELS}
            return Gateway(Settings(api_key=UPSTREAM_KEY, client_keys=(KEY,), **given))

        yield {
            dialect: stack.enter_context(serve(gateway(dialect, path)))
            for dialect, path in DIALECTS.items()
        }


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs for Node, beside the packages that they import."""
    folder = tmp_path_factory.mktemp("node")
    for program in PROGRAMS.glob("*.mjs"):
        copy(program, folder)
    (folder / "node_modules").symlink_to(Path(NODE).absolute() / "node_modules")
    return folder


@pytest.fixture(scope="module", params=[*map(param, CLIENTS)])
def client(request: pytest.FixtureRequest) -> Client:
    return CLIENTS[request.param]


@pytest.fixture(scope="module")
def documents(
    client: Client,
    gateways: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> dict[str, Any]:
    """What the client's user got, by dialect."""
    urls = [f"{url}/v1" for url in gateways.values()]
    if client.is_for_node:
        folder: Path = request.getfixturevalue("node_folder")
        commands = [["node", client.program, url, KEY] for url in urls]
    else:
        folder = tmp_path_factory.mktemp("client")
        program = [str(PROGRAMS / "over_each.py"), str(PROGRAMS / client.program)]
        commands = [[str(Path(PYTHON).absolute()), *program, KEY, *urls]]
    lines: list[str] = []
    for command in commands:
        ended = run(command, folder, PYTHONPATH="")
        assert ended.returncode == 0, ended.stderr
        lines += ended.stdout.splitlines()
    return dict(zip(gateways, map(json.loads, lines), strict=True))


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def got(documents: Mapping[str, Any], dialect: str) -> Any:
    """What the client's user got over this dialect, by scenario."""
    return documents[dialect]


Got = Mapping[str, Any]


@talking
def test_a_plain_answer_with_its_usage(got: Got) -> None:
    assert got["plain"] == {"text": REPLY, "reason": "stop", "usage": TOKENS}


@talking
def test_a_streamed_answer_comes_in_pieces(got: Got) -> None:
    outcome = got["streamed"]
    assert "".join(outcome["pieces"]) == REPLY
    assert len(outcome["pieces"]) > 5
    assert (outcome["reason"], outcome["usage"]) == ("stop", TOKENS)


@talking
def test_an_agent_calls_tools_and_answers(got: Got) -> None:
    assert got["tools"] == {"calls": CALLS, "text": WARM}


@talking
def test_an_agent_s_stream_calls_tools_piece_by_piece_and_answers(got: Got) -> None:
    outcome = got["streamed_tools"]
    assert outcome["calls"] == CALLS
    assert outcome["fragments"] > 2 * len(CALLS), "the arguments stream"
    assert "".join(outcome["pieces"]) == WARM
    assert len(outcome["pieces"]) > 3


def test_an_answer_is_parsed(got: Got) -> None:
    assert got["structured"] == CITY


@of("langchain", "pydantic-ai", "instructor", "openai-node")
def test_an_answer_is_parsed_out_of_a_tool_s_arguments(got: Got) -> None:
    assert got["structured_by_a_tool"] == CITY


def test_a_streamed_answer_is_parsed_while_it_grows(got: Got) -> None:
    assert got["structured_and_streamed"]["object"] == CITY
    assert got["structured_and_streamed"]["parts"] > 3


@of("instructor")
def test_an_object_in_instructor_s_other_ways(got: Got) -> None:
    assert got["structured_by_words"] == [CITY, CITY]
    assert got["structured_by_a_streamed_tool"]["object"] == CITY
    assert got["structured_by_a_streamed_tool"]["parts"] > 3
    assert got["several_objects"] == CALLS
    assert got["usage"]["object"] == CITY
    assert got["usage"]["usage"] > 0


@of("ai-sdk")
def test_an_object_as_the_output_of_a_text(got: Got) -> None:
    assert got["structured_with_text"] == CITY


@of("pydantic-ai", "ai-sdk")
def test_the_thinking_before_a_plain_answer(got: Got, dialect: str) -> None:
    assert got["thinking"] == {"thoughts": thoughts(dialect), "text": REPLY}


@of("litellm", "ai-sdk")
def test_the_thinking_before_a_streamed_answer(got: Got, dialect: str) -> None:
    assert got["streamed_thinking"] == {"thoughts": thoughts(dialect), "text": REPLY}


def thoughts(dialect: str) -> str:
    return f"{SUMMARY_TITLE}\n{THINKING}" if dialect == "qwen-web-v2" else THINKING


def check_raised(outcome: Any, kind: str, words: str) -> None:
    assert isinstance(outcome, dict), "it did not raise"
    assert outcome.get("raised") == kind, outcome
    assert words in outcome["message"]


def test_an_unknown_model_is_the_client_s_own_error(got: Got, client: Client) -> None:
    words = "the model 'gpt-4o' does not exist here"
    check_raised(got["unknown_model"], client.unknown_model, words)


def test_a_wrong_key_is_the_client_s_own_error(got: Got, client: Client) -> None:
    check_raised(got["wrong_key"], client.wrong_key, "the API key is missing or not known")


def test_an_answer_that_breaks_off_is_the_client_s_own_error(got: Got, client: Client) -> None:
    words = "the upstream closed the connection before its answer's end"
    check_raised(got["broken_off"], client.broken_off, words)


@talking
def test_what_came_before_an_answer_broke_off_is_there(got: Got) -> None:
    read = "".join(got["broken_off"]["pieces"])
    assert read
    assert REPLY.startswith(read)
