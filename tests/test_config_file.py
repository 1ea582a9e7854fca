"""QWEN_CONFIG: what a file says, and that a mistake in it is named with its line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from qwen_asgi import Settings
from qwen_asgi.config_file import MOST_BYTES
from qwen_asgi.settings import SettingsError
from qwen_asgi.upstream_settings import RouteSettings, UpstreamSettings
from tests.programs import ROOT

EXAMPLE = ROOT / "examples" / "several_upstreams.toml"
KEYS = {"DASHSCOPE_API_KEY": "sk-canary-1", "QWEN_API_KEY": "canary-2"}


@pytest.fixture
def config(tmp_path: Path) -> Any:
    def config(text: str, **environ: str) -> Settings:
        path = tmp_path / "gateway.toml"
        path.write_text(text, "utf-8")
        return Settings.from_env({"QWEN_CONFIG": str(path), **environ})

    return config


def wrong(config: Any, text: str, **environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        config(text, **environ)
    return str(caught.value).partition("gateway.toml")[2]


def test_the_example_says_what_it_means() -> None:
    settings = Settings.from_env(KEYS, config=EXAMPLE)
    studio, local, web = settings.upstreams.values()
    assert studio.base_url == "https://dashscope-intl.aliyuncs.com/compatible-mode/v1"
    assert studio.api_key is not None
    assert studio.api_key.get_secret_value() == "sk-canary-1"
    assert (studio.models, local.models) == (("qwen-plus", "qwen3-*"), "upstream")
    assert (studio.max_concurrent, studio.retries, studio.first_timeout) == (50, 1, 60)
    assert (local.api_key, web.base_url) == (None, "https://chat.qwen.ai")
    fast = settings.routes["fast"]
    assert [step.upstream for step in fast.to] == ["local", "studio", "web"]
    assert [step.model for step in fast.to] == ["Qwen/Qwen3-8B", "qwen-turbo", None]
    assert (fast.forced, fast.defaults) == ({"enable_thinking": False}, {"temperature": 0.2})
    plus = settings.routes["qwen-plus"]
    assert (plus.choose, [step.weight for step in plus.to]) == ("weight", [3, 1])
    assert "canary" not in repr(settings)
    assert "canary" not in settings.model_dump_json()


def test_a_variable_may_be_the_end_of_a_headers_text_and_of_no_other(config: Any) -> None:
    settings = config(
        '[upstreams.a]\ndialect = "model-studio"\nheaders = { authorization = "Bearer env:KEY", '
        'x-a = "env:KEY", x-b = "team:chat env:prod" }\n'
        '[routes.headers]\nforced = { user = "my env:KEY" }\n',
        KEY="k",
    )
    headers = settings.upstreams["a"].headers
    assert [value.get_secret_value() for value in headers.values()] == [
        "Bearer k",
        "k",
        "team:chat env:prod",
    ]
    assert settings.routes["headers"].forced == {"user": "my env:KEY"}


def test_one_upstream_may_stand_without_its_brackets(config: Any) -> None:
    settings = config('[upstreams.a]\ndialect = "model-studio"\n[routes.m]\nto = "a"\n')
    assert [step.upstream for step in settings.routes["m"].to] == ["a"]


def test_a_variable_goes_before_the_file_and_the_file_before_a_default(config: Any) -> None:
    text = 'max_body = 2048\nheartbeat = 5\nclient_keys = ["env:KEY"]\ntotal_timeout = "none"\n'
    settings = config(text, QWEN_MAX_BODY="4096", KEY="canary")
    assert (settings.max_body, settings.heartbeat) == (4096, 5)
    assert [key.get_secret_value() for key in settings.client_keys] == ["canary"]
    assert settings.total_timeout is None


def test_a_file_may_be_named_in_env_and_the_command_s_goes_first(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("max_body = 1111")
    two.write_text("max_body = 2222")
    env = tmp_path / ".env"
    env.write_text(f"QWEN_CONFIG={one}\nKEY=x\n")
    assert Settings.from_env({}, env_file=env).max_body == 1111
    assert Settings.from_env({}, env_file=env, config=two).max_body == 2222


MISTAKES: dict[str, tuple[str, str]] = {
    "no TOML": ("a = 1\nb = \n", ": is not TOML: "),
    "a number": (
        '# a\n\n[upstreams.a]\ndialect = "model-studio"\nretries = -1\n',
        ", line 5: upstreams.a.retries: input should be greater than or equal to 0, not -1",
    ),
    "a dialect": (
        '[upstreams.a]\n\n# which\ndialect = "qwen"\n',
        ", line 4: upstreams.a.dialect: input should be ",
    ),
    "an unknown field": (
        '[upstreams.a]\ndialect = "model-studio"\n\n[upstreams.b]\ndialect = "model-studio"\n'
        "colour = 1\n",
        ", line 6: upstreams.b.colour: extra inputs are not permitted",
    ),
    "a field of another line": (
        '[upstreams.a]\nmodels = [\n  "x",\n  "",\n]\ndialect = "model-studio"\n',
        ", line 2: upstreams.a.models: ",
    ),
    "no address": ('x = 1\n[upstreams.a]\ndialect = "openai"\n', ", line 2: upstreams.a: base_url"),
    "no dialect": ("\n[upstreams.a]\nretries = 1\n", ", line 2: upstreams.a.dialect: field requ"),
    "inline": ('upstreams = { a = { dialect = "x" } }\n', ", line 1: upstreams.a.dialect: "),
    "a name": (
        '[upstreams."a b"]\ndialect = "model-studio"\n',
        ", line 1: upstreams.a b.[key]: string should match",
    ),
    "an unknown upstream": (
        '[upstreams.a]\ndialect = "model-studio"\n[routes.m]\nchoose = "order"\nto = ["a", "b"]\n',
        ", line 5: routes.m.to.1: there is no upstream 'b'; there are a",
    ),
    "a route's field": (
        '[upstreams.a]\ndialect = "model-studio"\n[routes."m.1"]\nforced = { model = "x" }\n',
        ", line 4: routes.m.1.forced: cannot set model",
    ),
    "a field of the wrong kind": (
        '[upstreams.a]\ndialect = "model-studio"\n[routes.m.defaults]\nn2 = 1\n'
        'temperature = "hot"\n',
        ", line 3: routes.m.defaults: temperature: input should be a valid number",
    ),
    "a field beyond its bounds": (
        '[upstreams.a]\ndialect = "model-studio"\n[routes.m]\nforced = { max_tokens = 0 }\n',
        ", line 4: routes.m.forced: max_tokens: input should be greater than or equal to 1, not 0",
    ),
    "no upstream": ("x = 1\n[upstreams]\n", ", line 2: upstreams: should name at least one"),
    "a variable within a header": (
        '[upstreams.a]\ndialect = "model-studio"\n[upstreams.a.headers]\n'
        'authorization = "Bearer env:NOT_THERE"\n',
        ", line 4: upstreams.a.headers.authorization: the variable NOT_THERE is not set",
    ),
    "a route to nowhere": ("[routes.m]\n", ", line 1: routes: need upstreams"),
    "one beside several": (
        'models = ["m"]\n[upstreams.a]\ndialect = "model-studio"\n',
        ", line 1: models: is not to be set beside several",
    ),
    "a variable": (
        '[upstreams.a]\ndialect = "model-studio"\napi_key = "env:NOT_THERE"\n',
        ", line 3: upstreams.a.api_key: the variable NOT_THERE is not set",
    ),
    "a region": (
        '[upstreams.a]\ndialect = "model-studio"\nbase_url = "beijin"\n',
        "region, beijing, singapore, us, hongkong, not 'beijin'",
    ),
    "a list": ("upstreams = [1]\n", ", line 1: upstreams: input should be a table, not [1]"),
    "a top field": ("x = 1\nmax_body = 1\n", ", line 1: x: extra inputs are not permitted"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_line(config: Any, name: str) -> None:
    text, message = MISTAKES[name]
    found = wrong(config, text)
    assert message in found
    assert "pydantic" not in found


def test_each_of_several_mistakes_is_named(config: Any) -> None:
    found = wrong(config, 'max_body = 1\n[upstreams.a]\ndialect = "model-studio"\nretries = 99\n')
    assert "line 1: max_body: " in found
    assert "line 4: upstreams.a.retries: " in found


@pytest.mark.parametrize(
    "line", ['api_key = "a canary"', 'apikey = "canary"', 'headers = { "canary x" = "y" }']
)
def test_a_mistake_shows_no_secret(config: Any, line: str) -> None:
    found = wrong(config, f'[upstreams.a]\ndialect = "model-studio"\n{line}\n')
    assert "line 3" in found
    assert "canary" not in found


@pytest.mark.parametrize(
    "line",
    [
        'base_url = "env:KEY"',
        'models = "env:KEY"',
        'tool_form = "env:KEY"',
        'max_concurrent = "env:KEY"',
        'queue = "env:SHORT"',
        'base_url = "env:SHORT"',
        '[routes.m]\nto = "env:KEY"',
        '[routes.m]\nto = "a"\nchoose = "env:SHORT"',
    ],
)
def test_what_a_variable_holds_is_not_shown_where_it_is_wrong(config: Any, line: str) -> None:
    text = f'[upstreams.a]\ndialect = "model-studio"\n{line}\n'
    found = wrong(config, text, KEY="sk-canary-1234567", SHORT="canary7")
    assert "canary" not in found
    assert "line " in found


def test_a_key_in_the_place_of_an_address_is_not_shown(config: Any) -> None:
    found = wrong(config, '[upstreams.a]\ndialect = "openai"\nbase_url = "sk-canary-123456"\n')
    assert "canary" not in wrong(config, 'base_url = "sk-canary-1234567"\n')
    assert ", line 3: upstreams.a.base_url: should be an address" in found


def test_a_file_that_is_nested_too_deep(config: Any) -> None:
    assert "is nested too deep" in wrong(config, f"a = {'[' * 5000}{']' * 5000}\n")


def test_a_routes_fields_are_read_as_a_clients_are(config: Any) -> None:
    settings = config(
        '[upstreams.a]\ndialect = "model-studio"\n[routes.m]\nforced = { seed = 1e3, x = 1.0 }\n'
    )
    forced = settings.routes["m"].forced
    assert (repr(forced["seed"]), repr(forced["x"])) == ("1000", "1.0")


def test_a_variable_beside_several_upstreams_is_named_as_a_variable(config: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        config('[upstreams.a]\ndialect = "model-studio"\n', QWEN_BASE_URL="http://x")
    assert str(caught.value).startswith("QWEN_BASE_URL: is not to be set")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for data, message in (
        (None, "cannot be read: No such file"),
        (b"a = '\xff'", "is not UTF-8 text"),
        (b"#" * (MOST_BYTES + 1), "is longer than"),
    ):
        path = tmp_path / "gateway.toml"
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(SettingsError, match=message):
            Settings.from_env({}, config=path)


def test_a_file_of_many_lines_is_read_and_its_last_line_is_found(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    upstream = '[upstreams.u{}]\ndialect = "model-studio"\n'
    path.write_text("".join(upstream.format(n) for n in range(200)) + "retries = 99\n")
    with pytest.raises(SettingsError, match=r"line 401: upstreams.u199.retries"):
        Settings.from_env({}, config=path)


def test_every_setting_of_an_upstream_and_a_route_has_a_type_and_a_unit_or_a_reference() -> None:
    for kind in UpstreamSettings, RouteSettings:
        for name, field in kind.model_fields.items():
            assert field.annotation is not None, name


ROUTE = """[upstreams.a]
dialect = "openai"
base_url = "http://a"

[[routes.m.to]]
upstream = "a"
weight = 1

[[routes.m.to]]
"""


@pytest.mark.parametrize(
    ("rest", "line"),
    [
        ('upstream = "a"\nweight = 0\n', 11),
        ('weight = 2\nupstream = "a"\nnovel = 1\n', 12),
        ("weight = 2\n", 9),
    ],
    ids=["wrong", "unknown", "missing"],
)
def test_of_several_tables_of_one_name_the_right_one_is_named(
    config: Any, rest: str, line: int
) -> None:
    assert wrong(config, ROUTE + rest).startswith(f", line {line}: routes.m.to.1")


def test_the_line_is_found_without_reading_each_line_before_it(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, calls = tomllib.loads, []

    def counted(text: str) -> Any:
        calls.append(len(text))
        return loads(text)

    monkeypatch.setattr(tomllib, "loads", counted)
    many = "".join(f"[routes.m{n}]\nto = [\n 'a',\n]\n\n" for n in range(500))
    text = f'[upstreams.a]\ndialect = "openai"\nbase_url = "http://a"\n{many}'
    assert wrong(config, f"{text}[routes.last]\nnovel = 1\n").startswith(", line 2505: ")
    assert len(calls) < 60
