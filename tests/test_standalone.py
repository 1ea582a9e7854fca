"""The program that runs alone, as processes of their own on real ports."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen_asgi import Settings, standalone
from qwen_asgi.log_file import BACKUPS, MAX_BYTES
from qwen_asgi.settings import SEED_MODELS
from qwen_asgi.testing import SIMULATIONS, Fault, SimulatedQwen, serve
from tests.conftest import CHAT, answer_of, ask, error_of, eventually, streamed
from tests.programs import QWEN_ASGI, ROOT, STARTS_WITHIN, UVICORN, Program, run, running

APP = (*UVICORN, "qwen_asgi.standalone:app", "--port", "0")
"""The seed's command line, but for its port."""

SEED_REQUEST = """{
  "model": "qwen-max-latest",
  "messages": [
    {"role": "user", "content": "你好"}
  ],
  "stream": false
}"""
KEY = "upstream-credential-1234"
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - (DEBUG|INFO|WARNING|ERROR) - \S.*")
OPEN_WARNING = "whoever reaches this port"
NOT_ON_WINDOWS = pytest.mark.skipif(os.name == "nt", reason="there are no such signals")


@pytest.fixture(scope="module")
def qwen() -> SimulatedQwen:
    return SimulatedQwen(api_key=KEY)


@pytest.fixture(scope="module")
def qwen_url(qwen: SimulatedQwen) -> Iterator[str]:
    with serve(qwen) as url:
        yield url


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, qwen_url: str) -> Path:
    """A folder with nothing but a .env in it."""
    folder = tmp_path_factory.mktemp("seed")
    (folder / ".env").write_text(f"QWEN_API_KEY={KEY}\nQWEN_BASE_URL={qwen_url}\n")
    return folder


@pytest.fixture(scope="module")
def seed(folder: Path) -> Iterator[Program]:
    """The seed's program, in `folder`."""
    with running([*APP, "--host", "0.0.0.0"], folder) as program:
        yield program


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with running([*QWEN_ASGI, "--demo", "--port", "0"], tmp_path_factory.mktemp("demo")) as program:
        yield program


@pytest.fixture
def closed(tmp_path: Path, qwen_url: str) -> Iterator[Program]:
    """A program that is told all that the seed's is not."""
    variables = {
        "QWEN_API_KEY": KEY,
        "QWEN_BASE_URL": qwen_url,
        "QWEN_CLIENT_KEYS": "anna-secret-key, eva-secret-key",
        "QWEN_CORS_ORIGINS": "https://app.example",
        "QWEN_LOG_BODIES": "false",
        "QWEN_LOG_FILE": "-",
        "QWEN_LOG_LEVEL": "debug",
    }
    command = [*QWEN_ASGI, "--host", "0.0.0.0", "--port", "0"]
    with running(command, tmp_path, **variables) as program:
        yield program


def lines_of(log: str) -> list[str]:
    """Return a log's lines, having checked that each has the seed's format."""
    lines = log.splitlines()
    for line in lines:
        assert LOG_LINE.fullmatch(line), line
    return lines


# The seed's command.


def test_the_seeds_command_answers_the_seeds_request(
    seed: Program, qwen: SimulatedQwen, http: httpx.Client
) -> None:
    response = http.post(
        f"http://localhost:{seed.port}/v1/chat/completions",
        content=SEED_REQUEST.encode(),
        headers={"Content-Type": "application/json"},
    )
    message = answer_of(response)["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert "你好" in message["content"]
    assert qwen.requests[-1].path == "/api/chat/completions"
    assert qwen.requests[-1].headers["authorization"] == f"Bearer {KEY}"
    assert qwen.requests[-1].body["messages"][0]["content"] == "你好"


def test_the_seeds_models_are_listed(seed: Program, http: httpx.Client) -> None:
    document = http.get(f"{seed.url}/v1/models").json()
    assert [model["id"] for model in document["data"]] == [
        "qwen-max-latest",
        "qwen2.5-14b-instruct-1m",
        "qvq-72b-preview",
        "qwen-plus-latest",
        "qwen2.5-vl-72b-instruct",
    ]


def test_the_log_is_written_in_the_seeds_format_to_the_file_and_to_the_console(
    seed: Program, folder: Path, http: httpx.Client
) -> None:
    response = http.post(f"{seed.url}{CHAT}", content=json.dumps(ask("喂")))
    id = response.headers["x-request-id"]
    log = folder / "chat_api.log"
    eventually(lambda: f"chat {id}" in log.read_text(encoding="utf-8"))

    lines = lines_of(log.read_text(encoding="utf-8"))
    (request,) = [line for line in lines if f"request {id}: " in line]
    assert request.endswith(json.dumps(ask("喂"))), "the raw request, as it came"
    (chat,) = [line for line in lines if f"chat {id}: " in line]
    assert "model=qwen-max-latest" in chat
    assert "end=done" in chat
    assert set(lines) <= set(seed.output.splitlines())
    assert OPEN_WARNING in seed.output


def test_a_request_is_logged_in_utf_8(seed: Program, folder: Path, http: httpx.Client) -> None:
    http.post(f"{seed.url}{CHAT}", content=SEED_REQUEST.encode())
    log = folder / "chat_api.log"
    eventually(lambda: '"content": "你好"'.encode() in log.read_bytes())


def test_the_key_stands_in_no_log_and_in_no_answer_whatever_fails(
    seed: Program, qwen: SimulatedQwen, folder: Path, http: httpx.Client
) -> None:
    """Least of all where the upstream repeats it."""
    repeated = f"the header was authorization: Bearer {KEY}"
    qwen.fail(
        Fault.failure("Bad_Request", repeated),
        Fault.failure(KEY, "odd"),
        Fault.status(400, json.dumps({"detail": repeated}).encode()),
        Fault.error_frame(1, "Bad_Request", repeated),
    )
    answers = [http.post(f"{seed.url}{CHAT}", json=ask(stream=True)) for _ in range(4)]
    answers += [
        http.post(f"{seed.url}{CHAT}", json=ask(f"simulate: {name}", stream=stream))
        for name in SIMULATIONS
        if name not in ("stall", "drip")
        for stream in (False, True)
    ]
    assert {response.status_code for response in answers} == {200, 400, 429, 500}
    log = (folder / "chat_api.log").read_text(encoding="utf-8")
    for text in [log, seed.output, *(response.text for response in answers)]:
        assert KEY not in text


# What ends a start.


NO_KEY = r"QWEN_API_KEY is not set: put the line QWEN_API_KEY=\.\.\. into a file \.env .*"
SOON = {"QWEN_API_KEY": KEY, "QWEN_FIRST_TIMEOUT": "soon"}
SOON_IS_NO_NUMBER = "QWEN_FIRST_TIMEOUT: .*number.*, not 'soon'"
TWO_WORDS = {"QWEN_API_KEY": f"two {KEY}"}


@pytest.mark.parametrize(
    ("command", "variables", "message"),
    [
        (APP, {}, NO_KEY),
        (APP, SOON, SOON_IS_NO_NUMBER),
        (QWEN_ASGI, {}, NO_KEY),
        (QWEN_ASGI, SOON, SOON_IS_NO_NUMBER),
        (QWEN_ASGI, TWO_WORDS, "QWEN_API_KEY: should be .* without blanks"),
    ],
)
def test_a_wrong_start_is_one_clear_line_and_status_2(
    command: tuple[str, ...], variables: dict[str, str], message: str, tmp_path: Path
) -> None:
    ended = run(command, tmp_path, **variables)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert re.fullmatch(f"qwen-asgi: {message}", line)
    assert ended.stdout == ""
    assert KEY not in line
    assert list(tmp_path.iterdir()) == [], "nothing was logged to a file"


def test_workers_of_uvicorn_that_cannot_start_are_not_started_again_and_again(
    tmp_path: Path,
) -> None:
    ended = run([*APP, "--workers", "2", "--timeout-worker-healthcheck", "1"], tmp_path)
    assert 1 <= ended.stderr.count("QWEN_API_KEY is not set") <= 2


def test_an_env_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes("QWEN_API_KEY=x".encode("utf-16"))
    ended = run(QWEN_ASGI, tmp_path)
    assert ended.returncode == 2
    assert re.fullmatch(r"qwen-asgi: \.env cannot be read: .*\n", ended.stderr)


@pytest.mark.parametrize("options", [[], ["--demo"]])
def test_a_port_that_is_taken_is_said_and_nothing_pretends_to_listen(
    options: list[str], qwen_url: str, tmp_path: Path
) -> None:
    port = qwen_url.rpartition(":")[2]
    ended = run([*QWEN_ASGI, "--port", port, *options], tmp_path, QWEN_API_KEY=KEY)
    assert ended.returncode != 0
    assert "address already in use" in ended.stderr.lower()
    assert "curl" not in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--port", "65536"], "a port is a number from 0 to 65535"),
        (["--workers", "0"], "workers are a number from 1 to 64"),
        (["--demo", "--workers", "2"], "--demo runs one worker"),
    ],
)
def test_a_wrong_option_is_refused(
    arguments: list[str], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        standalone.main(arguments)
    assert ended.value.code == 2
    assert names in capsys.readouterr().err


# Who is let in.


@pytest.mark.parametrize(
    ("origin", "settings", "status"),
    [
        (None, {}, 200),
        ("http://localhost:5173", {}, 200),
        ("http://127.0.0.1", {}, 200),
        ("http://[::1]:3000", {}, 200),
        ("https://evil.example", {}, 403),
        ("http://localhost.evil.example", {}, 403),
        ("null", {}, 403),
        ("http://[", {}, 403),
        ("https://site.example", {"cors_origins": ("https://site.example",)}, 200),
        ("https://evil.example", {"cors_origins": ("https://site.example",)}, 403),
        ("https://evil.example", {"cors_origins": ("*",)}, 200),
        ("https://evil.example", {"client_keys": ("key",)}, 200),
    ],
)
def test_an_open_program_answers_no_page_of_elsewhere(
    origin: str | None, settings: dict[str, Any], status: int, qwen_url: str, http: httpx.Client
) -> None:
    """A browser reaches it for any page, also under a name of the page's own."""
    app = standalone.build(Settings(api_key=KEY, base_url=qwen_url, models=SEED_MODELS, **settings))
    headers = {"authorization": "Bearer key", **({"origin": origin} if origin else {})}
    with serve(app) as url:
        response = http.post(url + CHAT, json=ask(), headers=headers)
        assert response.status_code == status
        if status == 403:
            assert "QWEN_CLIENT_KEYS" in error_of(response, 403)["message"]
        assert http.get(f"{url}/healthz", headers=headers).status_code == 200


@pytest.mark.parametrize("trusted", [None, "127.0.0.1"])
def test_a_client_s_address_is_told_by_a_proxy_that_is_trusted(
    trusted: str | None,
    qwen: SimulatedQwen,
    qwen_url: str,
    tmp_path: Path,
    http: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(qwen, "reply", "abcdefghij" * 10)
    monkeypatch.setattr(qwen, "pieces", 1)
    monkeypatch.setattr(qwen, "pace", 0.05)
    options = ["--trusted-proxies", trusted] if trusted else []
    with running(
        [*QWEN_ASGI, "--port", "0", *options],
        tmp_path,
        QWEN_API_KEY=KEY,
        QWEN_BASE_URL=qwen_url,
        QWEN_MAX_REQUESTS_OF_CLIENT="1",
    ) as program:
        url, one = program.url + CHAT, {"x-forwarded-for": "192.0.2.1"}
        with http.stream("POST", url, json=ask(stream=True), headers=one) as response:
            assert response.status_code == 200
            body = response.iter_raw()
            next(body)
            monkeypatch.setattr(qwen, "pace", 0.0)
            statuses = [
                http.post(url, json=ask(), headers={"x-forwarded-for": address}).status_code
                for address in ("192.0.2.1", "192.0.2.2")
            ]
    assert statuses == ([429, 200] if trusted else [429, 429])


@pytest.mark.parametrize("text", ["", "nginx", "10.0.0.1/8", "127.0.0.1,"])
def test_proxies_that_are_no_addresses_are_refused_at_the_start(text: str, tmp_path: Path) -> None:
    """uvicorn would take them, and match none."""
    ended = run([*QWEN_ASGI, "--trusted-proxies", text], tmp_path, QWEN_API_KEY=KEY)
    assert ended.returncode == 2
    assert "--trusted-proxies" in ended.stderr


@pytest.mark.parametrize("text", ["*", "::1", "127.0.0.1, 10.0.0.0/8"])
def test_proxies_are_all_or_addresses_and_networks(text: str, tmp_path: Path) -> None:
    command = [*QWEN_ASGI, "--port", "0", "--trusted-proxies", text]
    with running(command, tmp_path, QWEN_API_KEY=KEY, QWEN_LOG_FILE="-"):
        pass


# The log file.


@pytest.mark.usefixtures("logging_untouched")
def test_the_log_is_rotated_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_asgi.standalone.MAX_BYTES", 2000)
    log = tmp_path / "chat_api.log"
    logger = logging.getLogger("tests.rotation")
    standalone.configure_logging(Settings(log_file=log), logger.name)
    try:
        for number in range(500):
            logger.info("第 %d 行", number)
    finally:
        for handler in logger.handlers:
            handler.close()
        logger.handlers.clear()
    names = ["chat_api.log", *(f"chat_api.log.{number}" for number in range(1, 5))]
    assert sorted(tmp_path.glob("chat_api.log*")) == sorted(
        tmp_path / name for name in [*names, "chat_api.log.lock"]
    )
    for name in names:
        assert 0 < (tmp_path / name).stat().st_size <= 2000
    assert lines_of(log.read_text(encoding="utf-8"))[-1].endswith("第 499 行")


def test_the_log_takes_50_mebibytes_at_most() -> None:
    assert MAX_BYTES * (BACKUPS + 1) == 50 * 1024 * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_where_no_file_can_be_written_the_log_goes_to_the_console_with_a_warning(
    qwen_url: str, tmp_path: Path, http: httpx.Client
) -> None:
    """Not even root can write into /proc, whatever a folder's mode says."""
    variables = {
        "QWEN_API_KEY": KEY,
        "QWEN_BASE_URL": qwen_url,
        "QWEN_LOG_FILE": "/proc/chat_api.log",
    }
    with running([*QWEN_ASGI, "--port", "0"], tmp_path, **variables) as program:
        id = http.post(f"{program.url}{CHAT}", json=ask()).headers["x-request-id"]
        eventually(lambda: f"chat {id}: " in program.output)
        warnings = [line for line in lines_of(program.output) if " - WARNING - " in line]
        (warning,) = warnings
        assert "the log goes to the console only (QWEN_LOG_FILE)" in warning
        assert "/proc/chat_api.log" in warning


# Who is let in, and what is told of it.


def test_a_program_with_client_keys_serves_who_has_one_and_logs_no_secret(
    closed: Program, tmp_path: Path, http: httpx.Client
) -> None:
    url = f"{closed.url}{CHAT}"
    error = error_of(http.post(url, json=ask()), 401)
    assert error["code"] == "invalid_api_key"
    for key in "anna-secret-key", "eva-secret-key":
        headers = {"authorization": f"Bearer {key}"}
        response = http.post(url, json=ask("private words"), headers=headers)
        answer_of(response)
    eventually(lambda: f"chat {response.headers['x-request-id']}: " in closed.output)

    assert OPEN_WARNING not in closed.output
    assert "private words" not in closed.output, "QWEN_LOG_BODIES is false"
    assert "secret-key" not in closed.output
    assert KEY not in closed.output
    assert not (tmp_path / "chat_api.log").exists(), "QWEN_LOG_FILE is -"
    lines_of(closed.output)


def test_a_browser_of_an_origin_that_is_set_is_let_in(closed: Program, http: httpx.Client) -> None:
    asked = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    preflight = http.options(f"{closed.url}{CHAT}", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    allowed = preflight.headers["access-control-allow-headers"].lower()
    assert "authorization" in allowed
    assert "content-type" in allowed

    headers = {"origin": "https://app.example"}
    refused = http.post(f"{closed.url}{CHAT}", json=ask(), headers=headers)
    error_of(refused, 401)
    assert refused.headers["access-control-allow-origin"] == "https://app.example"
    exposed = refused.headers["access-control-expose-headers"].lower()
    assert "x-request-id" in exposed

    stranger = http.options(f"{closed.url}{CHAT}", headers={**asked, "origin": "https://b.example"})
    assert "access-control-allow-origin" not in stranger.headers


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_a_command_without_client_keys_warns_when_others_can_reach_it(
    host: str, warned: bool, tmp_path: Path
) -> None:
    command = [*QWEN_ASGI, "--host", host, "--port", "0"]
    with running(command, tmp_path, QWEN_API_KEY=KEY) as program:
        assert (OPEN_WARNING in program.output) is warned
        assert ("QWEN_CLIENT_KEYS" in program.output) is warned


# The demo.


def test_the_demo_answers_plain(demo: Program, http: httpx.Client) -> None:
    answer = answer_of(http.post(f"{demo.url}{CHAT}", json=ask("你好")))
    assert "你好" in answer["choices"][0]["message"]["content"]
    assert answer["usage"]["total_tokens"] > 0


def test_the_demo_streams_thinking_and_then_the_answer_as_they_come(
    demo: Program, http: httpx.Client
) -> None:
    body = ask("你好", stream=True, enable_thinking=True)
    read = streamed(http.post(f"{demo.url}{CHAT}", json=body))
    assert read.is_whole
    assert read.reasoning
    assert "你好" in read.text
    assert len(read.chunks) > 10, "it streams at a human pace, not all at once"


def test_the_demo_takes_a_picture(demo: Program, http: httpx.Client) -> None:
    """The simulated Qwen keeps it at its own address, where the demo may put it."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlh"}}
    content = [{"type": "text", "text": "你好"}, picture]
    body = {**ask(), "messages": [{"role": "user", "content": content}]}
    answer_of(http.post(f"{demo.url}{CHAT}", json=body))


def test_the_demo_fails_when_it_is_told_to(demo: Program, http: httpx.Client) -> None:
    response = http.post(f"{demo.url}{CHAT}", json=ask("simulate: 429"))
    assert error_of(response, 429)["type"] == "rate_limit_error"
    assert int(response.headers["retry-after"]) > 0
    error_of(http.post(f"{demo.url}{CHAT}", json=ask("simulate: block")), 500)


def test_the_demo_says_what_to_try(demo: Program) -> None:
    assert demo.output.count(f"http://localhost:{demo.port}{CHAT}") == 3
    for name in SIMULATIONS:
        assert name in demo.output


@NOT_ON_WINDOWS
def test_the_demo_ends_at_ctrl_c_though_an_answer_stalls(
    tmp_path: Path, http: httpx.Client
) -> None:
    with (
        running([*QWEN_ASGI, "--demo", "--port", "0"], tmp_path) as program,
        http.stream(
            "POST", f"{program.url}{CHAT}", json=ask("simulate: stall", stream=True)
        ) as response,
    ):
        assert response.status_code == 200
        assert program.end(signal.SIGINT) == 0
        assert "Traceback" not in program.output


# Processes.


@NOT_ON_WINDOWS
@pytest.mark.parametrize(
    ("command", "status"),
    [
        (APP, {0, -signal.SIGTERM}),
        ((*QWEN_ASGI, "--port", "0"), {0, -signal.SIGTERM}),
        ((*QWEN_ASGI, "--port", "0", "--workers", "2"), {0}),
    ],
    ids=["uvicorn", "qwen-asgi", "two workers"],
)
def test_sigterm_ends_it_at_once(
    command: tuple[str, ...], status: set[int], tmp_path: Path
) -> None:
    started = "(?s)(startup complete.*){2}" if "--workers" in command else "startup complete"
    with running(command, tmp_path, started, QWEN_API_KEY=KEY) as program:
        assert program.end(signal.SIGTERM) in status
        assert "Traceback" not in program.output


@pytest.mark.parametrize(
    "command", [APP, (*QWEN_ASGI, "--port", "0")], ids=["uvicorn", "qwen-asgi"]
)
@pytest.mark.usefixtures("qwen")
def test_sigterm_leaves_no_line_of_the_log_unwritten(
    command: tuple[str, ...], qwen_url: str, tmp_path: Path, http: httpx.Client
) -> None:
    variables = {"QWEN_API_KEY": KEY, "QWEN_BASE_URL": qwen_url}
    with running(command, tmp_path, **variables) as program:
        response = http.post(f"{program.url}{CHAT}", json=ask(), headers={"connection": "close"})
        program.end(signal.SIGTERM)
    log = (tmp_path / "chat_api.log").read_text(encoding="utf-8")
    assert f"chat {response.headers['x-request-id']}: " in log
    # Our own command logs the server's lines too, and this is its last.
    assert ("Finished server process" in log) is (command != APP)


def test_two_workers_serve_and_write_one_log(
    qwen_url: str, tmp_path: Path, http: httpx.Client
) -> None:
    command = [*QWEN_ASGI, "--port", "0", "--workers", "2"]
    variables = {"QWEN_API_KEY": KEY, "QWEN_BASE_URL": qwen_url}
    log = tmp_path / "chat_api.log"
    ids: list[str] = []

    def workers() -> int:
        """Ask once more, and return how many have answered; each has a prefix of its own."""
        response = http.post(
            f"{program.url}{CHAT}", json=ask("你好"), headers={"connection": "close"}
        )
        answer_of(response)
        ids.append(response.headers["x-request-id"])
        return len({id[:-8] for id in ids})

    with running(command, tmp_path, "(?s)(startup complete.*){2}", **variables) as program:
        eventually(lambda: workers() == 2, STARTS_WITHIN)
        eventually(lambda: log.read_text(encoding="utf-8").count(" - INFO - chat ") == len(ids))
        assert OPEN_WARNING not in program.output, "it listens on the loopback"
    lines = lines_of(log.read_text(encoding="utf-8"))
    for id in ids:
        assert len([line for line in lines if f"request {id}: " in line]) == 1
        assert len([line for line in lines if f"chat {id}: " in line]) == 1
    assert any("Application startup complete" in line for line in lines), "uvicorn's lines too"


def test_help_explains_each_option(tmp_path: Path) -> None:
    ended = run([*QWEN_ASGI, "--help"], tmp_path)
    assert ended.returncode == 0
    assert ended.stdout.startswith("usage: qwen-asgi ")
    for option in "--host", "--port", "--demo", "--workers":
        assert re.search(rf"^  {option}\b[A-Z ]*\s+[a-z]{{4,}}", ended.stdout, re.MULTILINE), option
    for default in "127.0.0.1", "8008":
        assert default in ended.stdout
    assert "QWEN_API_KEY" in ended.stdout


def test_the_installed_command_is_the_same_program() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"qwen-asgi": "qwen_asgi.standalone:main"}
    assert callable(standalone.main)


def test_a_name_that_the_module_does_not_have_is_missed() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'application'"):
        standalone.application  # noqa: B018


# A file with several upstreams, read anew on SIGHUP.


def several(url: str, *models: str) -> str:
    return (
        f'[upstreams.web]\ndialect = "qwen-web-v2"\nbase_url = "{url}"\n'
        f'api_key = "env:KEY"\nmodels = {json.dumps(models)}\n'
    )


def models_at(http: httpx.Client, program: Program) -> list[str]:
    return [model["id"] for model in http.get(f"{program.url}/v1/models").json()["data"]]


@NOT_ON_WINDOWS
@pytest.mark.parametrize("command", [QWEN_ASGI, APP], ids=["command", "uvicorn"])
def test_settings_are_read_anew_on_sighup(
    command: tuple[str, ...], tmp_path: Path, qwen_url: str, http: httpx.Client
) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(several(qwen_url, "qwen-max-latest"))
    port = ["--port", "0"] if command is QWEN_ASGI else []
    with running([*command, *port], tmp_path, KEY=KEY, QWEN_CONFIG=str(config)) as program:
        answer_of(http.post(f"{program.url}{CHAT}", json=ask()))
        assert models_at(http, program) == ["qwen-max-latest"]
        config.write_text(several(qwen_url, "qwen-plus-latest"))
        program.hang_up()
        eventually(lambda: program.says("the settings were read anew"))
        assert models_at(http, program) == ["qwen-plus-latest"]
        config.write_text("nonsense")
        program.hang_up()
        eventually(lambda: program.says("are wrong; the old ones stay: .*gateway.toml"))
        assert models_at(http, program) == ["qwen-plus-latest"]


@NOT_ON_WINDOWS
def test_client_keys_may_come_and_go_with_the_settings(
    tmp_path: Path, qwen_url: str, http: httpx.Client
) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(several(qwen_url, "m"))
    command = [*QWEN_ASGI, "--port", "0", "--config", str(config)]
    with running(command, tmp_path, KEY=KEY) as program:
        models = f"{program.url}/v1/models"
        config.write_text('client_keys = ["k"]\n' + several(qwen_url, "m"))
        program.hang_up()
        eventually(lambda: http.get(models).status_code == 401)
        config.write_text(several(qwen_url, "m"))
        program.hang_up()
        eventually(lambda: http.get(models).status_code == 200)


@NOT_ON_WINDOWS
def test_the_file_that_the_command_names_reaches_its_workers(
    tmp_path: Path, qwen_url: str, http: httpx.Client
) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(several(qwen_url, "qwen-max-latest"))
    command = [*QWEN_ASGI, "--port", "0", "--workers", "2", "--config", str(config)]
    with running(command, tmp_path, "(?s)(startup complete.*){2}", KEY=KEY) as program:
        for _ in range(4):
            response = http.post(f"{program.url}{CHAT}", json=ask())
            assert response.headers["x-qwen-asgi-upstream"] == "web"
