"""The README: its commands and code are run, its tables compared with the code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen_asgi import Settings, errors, log_file, relay, request_log, standalone
from qwen_asgi.settings import ENVIRONMENT
from qwen_asgi.testing import SIMULATIONS, Fault, SimulatedQwen
from qwen_asgi.upstream_settings import RouteSettings, UpstreamSettings
from qwen_asgi.upstreams import qwen_web_v1
from tests import conformance, fields
from tests.conftest import CHAT, UPSTREAM_KEY, answer_of, ask, error_of, eventually, streamed
from tests.programs import QWEN_ASGI, ROOT, Program, parse_curl, run, running

README = (ROOT / "README.md").read_text(encoding="utf-8")
UNSET: tuple[object, ...] = (None, (), {})


def blocks(language: str) -> list[str]:
    """Return the code blocks of that language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def table(*head: str) -> list[list[str]]:
    """Return the rows of the table with these column names."""
    _, _, rest = README.partition(f"\n| {' | '.join(head)} |\n".replace("|  |", "| |"))
    assert rest, head
    rows = re.match(r"(?:\|.*\n)+", rest)
    assert rows is not None
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows[0].splitlines()]
    return cells[1:]


def code_in(cell: str) -> list[str]:
    return re.findall("`([^`]*)`", cell)


CLIENT_BLOCKS = [block for block in blocks("python") if "client." in block]
APP_BLOCKS = [block for block in blocks("python") if "\napp = " in block]
TEST_BLOCKS = [block for block in blocks("python") if "\ndef test_" in block]


def test_every_block_of_code_is_run() -> None:
    run_here = [*CLIENT_BLOCKS, *APP_BLOCKS, *TEST_BLOCKS]
    assert sorted(run_here) == sorted(blocks("python"))
    languages = set(re.findall(r"^```(\w+)$", README, re.MULTILINE))
    assert languages == {"python", "sh", "text", "toml"}


# The first screen.


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The README's own command, but for its port, which may be in use."""
    assert blocks("sh")[0].splitlines()[-1].endswith(" && .venv/bin/qwen-asgi --demo")
    with running([*QWEN_ASGI, "--demo", "--port", "0"], tmp_path_factory.mktemp("demo")) as demo:
        yield demo


def test_the_five_lines_of_the_official_client_print_what_the_readme_shows(demo: Program) -> None:
    code = CLIENT_BLOCKS[0].replace(":8008/", f":{demo.port}/")
    assert len([line for line in code.splitlines() if line]) == 5
    ended = run([sys.executable, "-c", code], ROOT)
    assert ended.stderr == ""
    assert ended.stdout == blocks("text")[0]


def test_the_streamed_lines_print_the_thinking_and_the_answer(demo: Program) -> None:
    code = "".join(CLIENT_BLOCKS).replace(":8008/", f":{demo.port}/")
    ended = run([sys.executable, "-c", code], ROOT)
    assert ended.stderr == ""
    first, rest = ended.stdout.split("\n", 1)
    assert first == blocks("text")[0].rstrip()
    assert rest.endswith(first)
    assert len(rest) > len(first), "the thinking stands before the answer"


def test_the_curl_line_is_answered(demo: Program, http: httpx.Client) -> None:
    (line,) = [block for block in blocks("sh") if block.startswith("curl ")]
    curl = parse_curl(line)
    assert str(curl.url) == f"http://localhost:8008{CHAT}"
    response = http.post(f"{demo.url}{CHAT}", headers=curl.headers, json=curl.body)
    answer = answer_of(response)["choices"][0]["message"]["content"]
    assert answer == blocks("text")[0].rstrip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_itself_takes_the_line(demo: Program) -> None:
    (line,) = [block for block in blocks("sh") if block.startswith("curl ")]
    command = line.replace(":8008/", f":{demo.port}/")
    ended = subprocess.run(["sh", "-c", command], capture_output=True, timeout=30)
    content = json.loads(ended.stdout)["choices"][0]["message"]["content"]
    assert content == blocks("text")[0].rstrip()


def test_the_first_screen_has_the_setup_the_mount_and_a_request() -> None:
    first_screen = README.splitlines()[:50]
    for line in blocks("sh")[0], APP_BLOCKS[0], CLIENT_BLOCKS[0]:
        assert set(line.splitlines()) <= set(first_screen)
    assert len(APP_BLOCKS[0].splitlines()) < 15


# The ways in.


@pytest.mark.parametrize("code", APP_BLOCKS)
def test_an_app_of_the_readme_serves(
    code: str, qwen: SimulatedQwen, qwen_url: str, http: httpx.Client, tmp_path: Path
) -> None:
    given = f'api_key="{UPSTREAM_KEY}", base_url="{qwen_url}"'
    assert 'api_key="UPSTREAM-KEY"' in code
    (tmp_path / "app.py").write_text(code.replace('api_key="UPSTREAM-KEY"', given))
    command = [sys.executable, "-m", "uvicorn", "app:app", "--app-dir", ".", "--port", "0"]
    with running(command, tmp_path) as program:
        url = f"{program.url}/qwen"
        headers = {"authorization": "Bearer CLIENT-KEY"}
        answer_of(http.post(f"{url}{CHAT}", headers=headers, json=ask()))
        read = streamed(http.post(f"{url}{CHAT}", headers=headers, json=ask(stream=True)))
        assert read.is_whole
        assert http.get(f"{url}/v1/models", headers=headers).json()["data"]
        error_of(http.post(f"{url}{CHAT}", json=ask()), 401)
        assert qwen.requests
        assert "lets everybody in" not in program.output
        assert "lifespan, so" not in program.output


@pytest.mark.parametrize("code", TEST_BLOCKS)
def test_a_test_of_the_readme_passes(code: str) -> None:
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    tests = [names[name] for name in names if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_the_servers_lines_are_commands_that_exist() -> None:
    (lines,) = [block for block in blocks("sh") if block.startswith("uvicorn ")]
    seed, own = lines.splitlines()
    assert seed == "uvicorn qwen_asgi.standalone:app --host 0.0.0.0 --port 8008"
    options = standalone._parser().parse_args(own.split()[1:])
    assert (options.host, options.port) == ("0.0.0.0", 8008)
    defaults = standalone._parser().parse_args([])
    assert (
        f"`qwen-asgi [check] [--config FILE] [--host {defaults.host}] "
        f"[--port {defaults.port}] [--demo] [--workers {defaults.workers}]`"
    ) in README


# The tables.


def test_the_table_of_settings_is_what_the_code_has() -> None:
    rows = table("variable", "field", "default", "unit", "meaning")
    assert {code_in(row[0])[0]: code_in(row[1])[0] for row in rows} == ENVIRONMENT
    assert set(ENVIRONMENT.values()) | {"upstreams", "routes"} == set(Settings.model_fields)
    settings = Settings()
    for variable, field, default, unit, meaning in rows:
        value = getattr(settings, code_in(field)[0])
        if value in UNSET:
            assert default == "none", variable
        else:
            (shown,) = code_in(default)
            assert Settings.from_env({code_in(variable)[0]: shown}) == settings, variable
        assert any(word in variable for word in ("TIMEOUT", "HEARTBEAT", "SECONDS")) == (
            unit == "seconds"
        )
        assert ("MAX_BODY" in variable) == (unit == "bytes")
        assert meaning


def test_the_tables_of_upstreams_and_routes_are_what_the_code_has() -> None:
    rows = table("of an upstream", "default", "unit", "meaning")
    fields = UpstreamSettings.model_fields
    assert [code_in(row[0])[0] for row in rows] == [*fields]
    for name, default, unit, meaning in rows:
        field = fields[code_in(name)[0]]
        if code_in(default) and not default.startswith("as "):
            (shown,) = code_in(default)
            assert json.dumps(field.default).strip('"').removesuffix(".0") == shown
        else:
            assert field.is_required() or field.default in UNSET or field.default_factory is dict
        assert ("timeout" in name or "seconds" in name) == (unit == "seconds")
        assert meaning
    rows = table("of a route", "default", "meaning")
    assert [name for row in rows for name in code_in(row[0])] == [*RouteSettings.model_fields]
    told = {code_in(row[0])[0]: code_in(row[1]) for row in rows}
    assert tuple(told["fallback_on"]) == RouteSettings().fallback_on
    assert told["choose"] == [str(RouteSettings().choose)]


def test_the_file_of_the_readme_is_one(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    (tmp_path / "gateway.toml").write_text(text)
    keys = {"DASHSCOPE_API_KEY": "k"}
    settings = Settings.from_env(keys, config=tmp_path / "gateway.toml")
    assert [*settings.upstreams] == ["studio", "local"]
    assert [*settings.routes] == ["fast"]


def test_the_settings_that_are_standalones_only_are_said_to_be() -> None:
    rows = table("variable", "field", "default", "unit", "meaning")
    said = {code_in(row[1])[0] for row in rows if row[4].startswith("standalone only")}
    assert said == {"log_file", "log_level", "cors_origins"}


def test_the_table_of_errors_is_the_tree() -> None:
    branches = {errors.QwenASGIError, errors.RequestError, errors.GatewayError}
    tree = {
        (error.__name__, str(error.status), error.type, error.default_code or "none")
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.QwenASGIError)
        if error not in branches
    }
    rows = table("error", "status", "type", "code", "when")
    assert {(*(cell.strip("`") for cell in row[:4]),) for row in rows} == tree
    assert len(rows) == len(tree)
    assert all(row[4] for row in rows)


def test_the_table_of_fields_is_the_one_in_code() -> None:
    """A test of its own sends each field to each dialect (tests/upstreams/test_field_policy.py)."""
    assert f"\n{fields.table()}\n" in README
    for chat_type in qwen_web_v1.TASK_CHAT_TYPES:
        assert f"`{chat_type}`" in README


# Figures and names in the text.


def test_the_table_of_what_works_is_what_comes_out() -> None:
    """Each of its lines is asked for with the official client, over each dialect."""
    assert f"\n{conformance.table()}\n" in README


def test_each_threat_has_a_test() -> None:
    rows = table("what may be tried", "what stands against it", "tried by")
    assert len(rows) > 10
    for *_, tried_by in rows:
        path, _, name = code_in(tried_by)[0].partition("::")
        tests = (ROOT / path).read_text("utf-8")
        assert re.search(rf"^(async )?def {name}\(", tests, re.MULTILINE), name


def test_the_figures_are_those_of_the_code() -> None:
    mebibytes = log_file.MAX_BYTES // 2**20
    assert (mebibytes, log_file.BACKUPS) == (10, 4)
    assert f"rotated at {mebibytes} MiB with four older ones beside it" in README
    assert f"takes {mebibytes * (log_file.BACKUPS + 1)} MiB" in README
    assert f"cut at {request_log.LONGEST} characters" in README
    assert f"`{standalone.LOG_FORMAT}`" in README
    assert f"may have {relay.LONGEST_ANSWER} characters" in README


def test_the_line_of_a_chat_in_the_log_looks_as_shown(demo: Program, http: httpx.Client) -> None:
    shown = blocks("text")[1]
    response = http.post(f"{demo.url}{CHAT}", json=ask())
    id = response.headers["x-request-id"]
    eventually(lambda: f"chat {id}: " in demo.output)
    (line,) = [line for line in demo.output.splitlines() if f"chat {id}: " in line]

    def form(line: str) -> str:
        return re.sub(r"\d+(\.\d+)?", "0", re.sub(r"req-\w+", "ID", line.strip()))

    assert form(line) == form(shown)


def test_the_simulations_and_the_faults_are_named() -> None:
    for name in SIMULATIONS:
        assert f"`{name}`" in README or f"`simulate: {name}`" in README
    faults = {name for name, value in vars(Fault).items() if isinstance(value, classmethod)} - {
        "_instead"
    }
    (named,) = re.findall(r"`Fault` also has (.*?)\. ", README)
    assert set(code_in(named)) | {"status"} == faults


# The commands of development.


def test_ci_runs_the_readmes_own_commands() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (tests,) = [block.strip() for block in blocks("sh") if "pytest" in block]
    assert f"eval '{tests}'" in ci
    (checks,) = [block.strip() for block in blocks("sh") if "mypy" in block]
    for command in checks.split(" && "):
        assert f" {command}\n" in ci
    for line in [*blocks("sh")[0].splitlines(), tests]:
        assert line.startswith("sh .ci/setup")


def test_the_setup_installs_what_its_name_says() -> None:
    setup = (ROOT / ".ci" / "setup").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "standalone" in project["project"]["optional-dependencies"]
    assert "-e '.[standalone,structured]' --group dev" in setup
    assert "-e '.[standalone,structured]' openai" in setup
    assert "dev" in project["dependency-groups"]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_a_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(qwen_asgi/[\w/.]*)`", README))))
def test_a_file_that_is_named_is_there(path: str) -> None:
    assert (ROOT / path).exists()
