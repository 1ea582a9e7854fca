"""Each example, started by the command in its docstring and asked with the request in it."""

from __future__ import annotations

import ast
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from qwen_asgi.testing import SimulatedQwen
from tests.conftest import UPSTREAM_KEY, answer_of, ask, error_of, streamed
from tests.programs import ROOT, CurlRequest, parse_curl, run, running

EXAMPLES = {path.stem: path for path in (ROOT / "examples").glob("*.py")}


@dataclass(frozen=True)
class Served:
    """An example that serves."""

    path: str
    """Where the gateway's own paths begin."""
    own_route: str | None
    """A route of the host's own, and what it says."""
    says: str = ""
    is_open: bool = False


SERVED = {
    "alone": Served("", None, is_open=True),
    "as_middleware": Served("/qwen", "/", "Hello"),
    "mounted_in_fastapi": Served("/qwen", "/health", '{"status":"ok"}'),
    "mounted_in_starlette": Served("/qwen", "/", "Hello stranger"),
}
NOT_SERVED = {"openai_client_in_process", "testing_your_app"}


def docstring(name: str) -> str:
    text = ast.get_docstring(ast.parse(EXAMPLES[name].read_text(encoding="utf-8")))
    assert text is not None
    return text


def line_of(name: str, start: str) -> str:
    lines = [line.strip() for line in docstring(name).splitlines()]
    (line,) = [line for line in lines if line.startswith(start)]
    return line


def curl_of(name: str) -> CurlRequest:
    return parse_curl(line_of(name, "curl "))


def command_of(name: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command in the docstring, its port a free one, and the variables before it."""
    words = shlex.split(line_of(name, "QWEN_API_KEY=... "))
    variables = {}
    while "=" in words[0]:
        variable, _, variables[variable] = words.pop(0).partition("=")
    if words[0] == "python":
        copy = folder / f"{name}.py"
        text = EXAMPLES[name].read_text(encoding="utf-8").replace("port=8008", "port=0")
        copy.write_text(text, encoding="utf-8")
        return [sys.executable, str(copy), *words[2:]], variables
    assert words[0] == "uvicorn"
    assert words[-2:] == ["--port", "8000"]
    return [sys.executable, "-m", *words[:-1], "0"], variables


def test_every_example_is_run() -> None:
    assert set(EXAMPLES) == set(SERVED) | NOT_SERVED


@pytest.mark.parametrize("name", SERVED)
def test_an_example_that_serves_answers_its_own_request(
    name: str, qwen: SimulatedQwen, qwen_url: str, http: httpx.Client, tmp_path: Path
) -> None:
    served, curl = SERVED[name], curl_of(name)
    command, variables = command_of(name, tmp_path)
    assert curl.url.path == f"{served.path}/v1/chat/completions"
    assert str(curl.url.port) in (docstring(name) + EXAMPLES[name].read_text(encoding="utf-8"))
    variables |= {"QWEN_API_KEY": UPSTREAM_KEY, "QWEN_BASE_URL": qwen_url}
    with running(command, tmp_path, **variables) as program:
        url = f"{program.url}{curl.url.path}"
        answer = answer_of(http.post(url, headers=curl.headers, json=curl.body))
        assert "你好" in answer["choices"][0]["message"]["content"]
        assert qwen.requests[-1].headers["authorization"] == f"Bearer {UPSTREAM_KEY}"

        read = streamed(http.post(url, headers=curl.headers, json=curl.body | {"stream": True}))
        assert read.is_whole
        assert "你好" in read.text

        if not served.is_open:
            strange = {"authorization": "Bearer eva-token"}
            error_of(http.post(url, headers=strange, json=ask()), 401)
            error_of(http.post(url, json=ask()), 401)
        if served.own_route is not None:
            assert http.get(f"{program.url}{served.own_route}").text == served.says
        assert "lets everybody in" not in program.output
        assert "lifespan, so" not in program.output
        assert "Traceback" not in program.output


@pytest.mark.usefixtures("qwen")
def test_the_client_in_the_same_process_prints_the_answer(qwen_url: str, tmp_path: Path) -> None:
    command, variables = command_of("openai_client_in_process", tmp_path)
    variables |= {"QWEN_API_KEY": UPSTREAM_KEY, "QWEN_BASE_URL": qwen_url}
    ended = run(command, tmp_path, **variables)
    assert ended.returncode == 0, ended.stderr
    assert "你好" in ended.stdout


def test_the_example_of_tests_passes() -> None:
    assert "`pytest examples/testing_your_app.py`" in docstring("testing_your_app")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    ended = run([*command, str(EXAMPLES["testing_your_app"])], ROOT)
    assert ended.returncode == 0, ended.stdout
    assert "2 passed" in ended.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_and_imports_what_a_user_would(name: str) -> None:
    text = EXAMPLES[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    imported = {
        node.module
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qwen_asgi")
    }
    assert imported <= {"qwen_asgi", "qwen_asgi.testing"}
