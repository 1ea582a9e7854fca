"""`qwen-asgi check`: each upstream is asked once, and what is wrong is said."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_asgi import Settings
from qwen_asgi.check import MOST_NAMED, check
from qwen_asgi.testing import Fault, SimulatedQwen, serve
from tests.conftest import DIALECTS, UPSTREAM_KEY
from tests.programs import QWEN_ASGI, run

pytestmark = pytest.mark.anyio


@pytest.fixture
def up() -> Iterator[tuple[SimulatedQwen, str]]:
    qwen = SimulatedQwen(api_key=UPSTREAM_KEY)
    with serve(qwen) as url:
        yield qwen, url


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_an_upstream_that_answers_is_well(
    up: tuple[SimulatedQwen, str], dialect: str
) -> None:
    qwen, url = up
    at = url + DIALECTS[dialect]
    report = await check(Settings(upstream=dialect, base_url=at, api_key=UPSTREAM_KEY))
    assert report.is_well, report.lines
    assert report.lines[0] == f"upstream: {dialect} at {at}, with a credential"
    assert report.lines[1] == f"  it lists {', '.join(qwen.models)}"
    [request] = qwen.requests
    assert (request.method, request.is_chat) == ("GET", False)


async def test_each_of_several_is_asked_and_what_is_wrong_is_said(
    up: tuple[SimulatedQwen, str],
) -> None:
    qwen, url = up
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    qwen.models = tuple(f"qwen{n}" for n in range(MOST_NAMED + 2))
    upstreams = {
        "good": {"dialect": "qwen-web-v2", "base_url": url, "api_key": UPSTREAM_KEY},
        "named": {
            "dialect": "openai",
            "base_url": f"{url}/v1",
            "api_key": UPSTREAM_KEY,
            "models": ["qwen0", "qwen-x", "qwen1*", "vision-*"],
        },
        "refused": {"dialect": "qwen-web-v1", "base_url": url, "api_key": "canary"},
        "gone": {"dialect": "openai", "base_url": f"http://127.0.0.1:{port}/v1"},
    }
    routes = {
        "fast": {"to": [{"upstream": "good", "model": "qwen2"}, "named"], "model": "nope"},
        "qwen0": {"defaults": {"seed": 1}},
    }
    report = await check(Settings(upstreams=upstreams, routes=routes))
    text = "\n".join(report.lines)
    assert not report.is_well
    assert "good: qwen-web-v2 at " in text
    assert "qwen7 and 2 more" in text
    assert "wrong: it lists nothing like 'qwen-x'" in text
    assert "wrong: it lists nothing like 'vision-*'" in text
    assert "'qwen1*'" not in text
    assert "(upstream_authentication)" in text
    assert "gone: openai at " in text
    assert "without a credential" in text
    assert "(upstream_unreachable)" in text
    assert "fast: good (qwen2), then named (nope)" in text
    assert "wrong: named does not list 'nope'" in text
    assert "qwen0: wherever it is listed" in text
    assert "canary" not in text
    assert len(qwen.requests) == 3


async def test_a_models_name_writes_no_line_of_its_own(up: tuple[SimulatedQwen, str]) -> None:
    qwen, url = up
    qwen.models = ("\x1b]0;title\x07", "ok\n  wrong: nothing", "fine")
    one = {"dialect": "qwen-web-v2", "base_url": url, "api_key": UPSTREAM_KEY}
    report = await check(Settings(upstreams={"one": one}))
    assert report.is_well
    assert all(line.isprintable() for line in report.lines)
    assert len(report.lines) == 2
    assert "fine" in report.lines[1]


async def test_a_route_that_no_upstream_has_is_said_unless_one_could_not_be_asked(
    up: tuple[SimulatedQwen, str],
) -> None:
    qwen, url = up
    one = {"dialect": "qwen-web-v2", "base_url": url, "api_key": UPSTREAM_KEY}
    routes: dict[str, object] = {qwen.models[0]: {}, "other": {}}
    report = await check(Settings(upstreams={"one": one}, routes=routes))
    assert report.lines[2:] == [
        f"{qwen.models[0]}: wherever it is listed",
        "other: wherever it is listed",
        "  wrong: no upstream lists it",
    ]
    qwen.fail(Fault.status(503))
    report = await check(Settings(upstreams={"one": one}, routes=routes))
    assert "wrong: no upstream lists it" not in "\n".join(report.lines)
    named = {"one": one | {"models": ["else-*"]}}
    report = await check(Settings(upstreams=named, routes=routes))
    assert report.lines.count("  wrong: no upstream lists it") == 2


def test_the_command_prints_it_and_tells_by_its_status(
    up: tuple[SimulatedQwen, str], tmp_path: Path
) -> None:
    qwen, url = up
    config = tmp_path / "gateway.toml"
    config.write_text(
        f'[upstreams.studio]\ndialect = "model-studio"\napi_key = "env:KEY"\n'
        f'base_url = "{url}/compatible-mode/v1"\n'
    )
    command = [*QWEN_ASGI, "check", "--config", str(config)]
    ended = run(command, tmp_path, KEY=UPSTREAM_KEY)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("studio: model-studio at ")
    qwen.fail(Fault.status(503))
    ended = run(command, tmp_path, KEY=UPSTREAM_KEY)
    assert ended.returncode == 1
    assert "wrong: the upstream failed with HTTP 503 (upstream_failed)" in ended.stdout
    ended = run(command, tmp_path)
    assert ended.returncode == 2
    assert "line 3: upstreams.studio.api_key: the variable KEY is not set" in ended.stderr
    assert sys.executable
