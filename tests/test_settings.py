from __future__ import annotations

import ast
import copy
import inspect
import json
import os
import pickle
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from qwen_asgi.setting_types import REGIONS
from qwen_asgi.settings import ENVIRONMENT, SEED_MODELS, Settings, SettingsError

SECRETS = {
    "api_key": "sk-canary-1",
    "client_keys": ("ck-canary-2", "ck-canary-3"),
    "headers": {"Cookie": "token=canary-4"},
}


def wrong(**fields: Any) -> str:
    with pytest.raises(SettingsError) as raised:
        Settings(**fields)
    return str(raised.value)


def wrong_in(environ: dict[str, str], **options: Any) -> str:
    with pytest.raises(SettingsError) as raised:
        Settings.from_env(environ, **options)
    return str(raised.value)


# Defaults and bounds.


def test_defaults_are_the_designs() -> None:
    assert Settings().model_dump() == {
        "api_key": None,
        "upstream": "qwen-web-v1",
        "base_url": "https://chat.qwenlm.ai",
        "models": (
            "qwen-max-latest",
            "qwen2.5-14b-instruct-1m",
            "qvq-72b-preview",
            "qwen-plus-latest",
            "qwen2.5-vl-72b-instruct",
        ),
        "incremental": True,
        "keep_chats": False,
        "tool_form": "hermes",
        "json_repair": False,
        "max_requests": 10_000,
        "max_requests_of_client": None,
        "queue": 100,
        "queue_timeout": 30,
        "body_timeout": 30,
        "write_timeout": 60,
        "shutdown_seconds": 30,
        "on_disconnect": "cancel",
        "drain_seconds": 60,
        "drain_tokens": None,
        "estimate_usage": False,
        "uploads": "ticket",
        "upload_hosts": ("*.aliyuncs.com",),
        "reasoning_field": "reasoning_content",
        "upstreams": {},
        "routes": {},
        "headers": {},
        "client_keys": (),
        "http_proxy": None,
        "https_proxy": None,
        "no_proxy": (),
        "connect_timeout": 10.0,
        "first_timeout": 120.0,
        "idle_timeout": 60.0,
        "total_timeout": None,
        "max_connections": 1000,
        "max_body": 33554432,
        "heartbeat": 15.0,
        "log_bodies": False,
        "log_file": Path("chat_api.log"),
        "log_level": "INFO",
        "cors_origins": (),
    }


PROXIES: tuple[list[Any], list[Any]] = (
    [None, "proxy:3128", "http://proxy", "https://user:p%40ss@proxy:1", "http://[::1]:3128"],
    ["", "ftp://proxy", "http://", "http://proxy:0", "http://proxy:x", "http://a b", "http://é", 5],
)

BOUNDS: dict[str, tuple[list[Any], list[Any]]] = {
    "api_key": (
        [None, "k", "sk-!~", "x" * 4000],
        ["", " ", "a b", "a\n", "a\r\nx: y", "schlüssel", "a\x00", 5],
    ),
    "upstream": (["qwen-web-v1", "qwen-web-v2", "model-studio"], ["qwen", "", None, 1]),
    "base_url": (
        [
            "https://chat.qwenlm.ai",
            "http://127.0.0.1:8000",
            "http://[::1]:80",
            "https://host/a/path",
        ],
        [
            "",
            "chat.qwenlm.ai",
            "ftp://host",
            "https://",
            "https://:80",
            "https://host:0",
            "https://host:65536",
            "https://host:x",
            "https://user:pass@host",
            "https://user@host",
            "https://host?key=x",
            "https://host#x",
            "https://ho st",
            "https://host\n",
            "https://hőst",
            "http://[::1",
            None,
            5,
        ],
    ),
    "models": (
        [("a",), ["a", "b"], "upstream", ("x" * 256,)],
        [(), ("",), ("x" * 257,), "a", None, (5,)],
    ),
    "incremental": ([True, False], ["maybe", None, 2]),
    "keep_chats": ([True, False], ["maybe", None, 2]),
    "tool_form": (["hermes", "coder", "brackets"], ["xml", "", None, 2]),
    "json_repair": ([True, False], ["maybe", None, 2]),
    "estimate_usage": ([True, False], ["maybe", None, 2]),
    "on_disconnect": (["cancel", "drain"], ["stay", "", None, 2]),
    "max_requests": ([1, 1_000_000, None, "none"], [0, -1, 1_000_001, 1.5, "x"]),
    "max_requests_of_client": ([1, None], [0, -1, 1_000_001]),
    "queue": ([0, 1_000_000], [-1, 1_000_001, 1.5, None]),
    "queue_timeout": ([0.5, 86400], [0, -1, 86401, None]),
    "body_timeout": ([0.5, 86400], [0, -1, 86401, None]),
    "write_timeout": ([0.5, 86400], [0, -1, 86401, None]),
    "shutdown_seconds": ([0.5, 86400], [0, -1, 86401, float("nan"), None]),
    "drain_seconds": ([0.5, 86400], [0, -1, 86401, float("nan"), None]),
    "drain_tokens": ([1, None, "none"], [0, -1, 1.5, "x"]),
    "reasoning_field": (["reasoning_content", "reasoning", "both"], ["thoughts", "", None, 2]),
    "uploads": (["ticket", "multipart", "off"], ["s3", "", None, 2]),
    "upload_hosts": (
        [
            ("*.aliyuncs.com",),
            ["store.example", "http://127.0.0.1:9000"],
            ("https://*.store.example:8443", "http://[::1]:9"),
        ],
        [
            (),
            ("",),
            ("*",),
            ("localhost",),
            ("a b.example",),
            ("ftp://store.example",),
            ("https://store.example/path",),
            ("https://user@store.example",),
            ("http://store.example?x",),
            ("*.*.example",),
            ("store.example:9000",),
            ("ex*ample.org",),
            "store.example",
            None,
            (5,),
        ],
    ),
    "headers": (
        [{}, {"X-A": "b"}, {"x-a": "b c\td"}],
        [
            {"": "b"},
            {"a b": "c"},
            {"a:": "b"},
            {"a\n": "b"},
            {"a": ""},
            {"a": "b\r\nc: d"},
            {"a": " b"},
            {"a": "字"},
            {"é": "b"},
            {"Host": "b"},
            {"content-length": "5"},
            {"Transfer-Encoding": "chunked"},
            {"connection": "close"},
            {"upgrade": "h2c"},
            {"a": 5},
            "a: b",
            None,
        ],
    ),
    "upstreams": (
        [{}, {"a": {"dialect": "qwen-web-v2"}, "b-1.c_d": {"dialect": "model-studio"}}],
        [
            {"a": {}},
            {"a": {"dialect": "openai"}},
            {"a b": {"dialect": "model-studio"}},
            {"": {"dialect": "model-studio"}},
            {"a": {"dialect": "model-studio", "novelty": 1}},
            {"a": {"dialect": "model-studio", "retries": -1}},
            {"a": {"dialect": "qwen-web-v2", "uploads": "multipart"}},
            {"a": {"dialect": "qwen-web-v2", "upload_hosts": ()}},
            {"a": 5},
            [],
            None,
        ],
    ),
    "routes": ([{}], [{"m": {}}, {"m": {"novelty": 1}}, {"": {}}, {"m": 5}, [], None]),
    "client_keys": (
        [(), ("k",), ["a", "b"]],
        [("",), (" ",), ("a", ""), ("a b",), ("a\n",), ("ключ",), "k", None, (5,)],
    ),
    "http_proxy": PROXIES,
    "https_proxy": PROXIES,
    "no_proxy": ([(), ("*",), ["localhost", ".example.com"]], ["*", None, (5,)]),
    "connect_timeout": (
        [0.001, 10, 86_400],
        [0, -1, 86_401, "x", None, float("nan"), float("inf")],
    ),
    "first_timeout": ([0.001, 10, 86_400], [0, -1, 86_401, "x", None, float("nan"), float("inf")]),
    "idle_timeout": ([0.001, 10, 86_400], [0, -1, 86_401, "x", None, float("nan"), float("inf")]),
    "total_timeout": ([None, 0.001, 86_400], [0, -1, 86_401, "x", float("nan"), float("inf")]),
    "max_connections": ([1, 100_000], [0, -1, 100_001, 1.5, "x", None]),
    "max_body": ([1024, 2**40], [1023, 0, -1, 1.5, "x", None]),
    "heartbeat": ([0, 0.5, 86_400], [-1, 86_401, "x", None, float("nan"), float("inf")]),
    "log_bodies": ([True, False], ["maybe", None, 2]),
    "log_file": ([None, "a.log", Path("/tmp/a.log")], [5]),
    "log_level": (["DEBUG", "INFO", "WARNING", "ERROR"], ["info", "LOUD", "", None, 10]),
    "cors_origins": ([(), ("*",), ["https://a.example"]], ["*", None, (5,)]),
}


def test_the_table_of_bounds_knows_each_setting() -> None:
    assert BOUNDS.keys() == Settings.model_fields.keys()


@pytest.mark.parametrize("field", BOUNDS)
def test_each_setting_is_bounded_and_a_wrong_one_is_named(field: str) -> None:
    right, refused = BOUNDS[field]
    for value in right:
        Settings(**{field: value})
    for value in refused:
        message = wrong(**{field: value})
        assert re.match(rf"{field}[.:]", message), message
        assert "pydantic" not in message
        assert "Value error" not in message
        assert "errors.pydantic.dev" not in message


def test_an_openai_compatible_upstream_has_an_address_and_tells_its_models() -> None:
    assert wrong(upstream="openai").startswith("base_url: is needed")
    assert wrong_in({"QWEN_UPSTREAM": "openai"}).startswith("QWEN_BASE_URL: is needed")
    settings = Settings(upstream="openai", base_url="http://localhost:8000/v1/")
    assert (settings.base_url, settings.models) == ("http://localhost:8000/v1", "upstream")
    assert Settings(upstream="openai", base_url="http://a/v1", models=("m",)).models == ("m",)


def test_model_studio_is_found_by_its_region_or_address() -> None:
    def address(**fields: Any) -> str:
        return Settings(upstream="model-studio", **fields).base_url

    assert address() == "https://dashscope-intl.aliyuncs.com/compatible-mode/v1"
    for region, known in REGIONS.items():
        assert address(base_url=region) == known
    assert (
        address(base_url="https://own.maas.aliyuncs.com/v1") == "https://own.maas.aliyuncs.com/v1"
    )
    assert Settings(upstream="model-studio").models == "upstream"
    assert wrong(upstream="model-studio", base_url="atlantis").startswith("base_url: ")
    assert wrong(upstream="model-studio", base_url=5).startswith("base_url: ")
    assert wrong(base_url="beijing").startswith("base_url: ")


def test_files_go_by_form_to_the_first_web_chat_only() -> None:
    assert wrong(upstream="qwen-web-v2", uploads="multipart").startswith("uploads: multipart is")
    assert Settings(upstream="qwen-web-v1", uploads="multipart").uploads == "multipart"
    environ = {"QWEN_UPSTREAM": "qwen-web-v2", "QWEN_UPLOADS": "multipart"}
    assert wrong_in(environ).startswith("QWEN_UPLOADS: multipart is for")
    several = {"a": {"dialect": "qwen-web-v2", "uploads": "multipart"}}
    assert wrong(upstreams=several).startswith("upstreams.a.uploads: multipart is for")


def test_each_setting_says_in_words_what_it_is() -> None:
    """A docstring stands under each field, where an editor shows it."""
    (record,) = ast.parse(inspect.getsource(Settings)).body
    assert isinstance(record, ast.ClassDef)
    for statement, after in pairwise(record.body):
        if isinstance(statement, ast.AnnAssign):
            assert isinstance(after, ast.Expr), ast.unparse(statement)
            assert isinstance(after.value, ast.Constant)
            assert isinstance(after.value.value, str)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("connect_timeout", -3.5),
        ("max_body", 12),
        ("log_level", "LOUD"),
        ("base_url", "chat.qwenlm.ai"),
    ],
)
def test_a_wrong_value_is_shown_beside_what_would_be_right(field: str, value: Any) -> None:
    message = wrong(**{field: value})
    assert message.endswith(f"not {value!r}")


def test_several_wrong_settings_are_told_at_once() -> None:
    message = wrong(heartbeat=-1, max_body=1)
    assert "heartbeat: " in message
    assert "max_body: " in message


def test_an_unknown_setting_is_refused_by_its_name() -> None:
    assert wrong(time_out=5).startswith("time_out: ")


def test_a_settings_error_is_no_validation_error() -> None:
    with pytest.raises(SettingsError) as raised:
        Settings(heartbeat=-1)
    assert not isinstance(raised.value, ValidationError)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


def test_the_address_has_no_slash_at_its_end() -> None:
    assert Settings(base_url="http://host:1/").base_url == "http://host:1"


def test_names_of_headers_are_lower_case_and_models_are_told_once() -> None:
    assert Settings(headers={"User-Agent": "x"}).headers == {"user-agent": SecretStr("x")}
    assert Settings(models=("a", "b", "a")).models == ("a", "b")


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().heartbeat = 5  # type: ignore[misc]


def test_what_was_dumped_makes_the_same_settings() -> None:
    settings = Settings(heartbeat=3, models="upstream", **SECRETS)
    assert Settings(**settings.model_dump()) == settings


# Secrets.


def test_no_secret_is_shown_by_repr_str_or_json() -> None:
    settings = Settings(**SECRETS)
    shown = [
        repr(settings),
        str(settings),
        f"{settings}",
        f"{settings!r:>10}",
        settings.model_dump_json(),
        json.dumps(settings.model_dump(mode="json")),
        repr(settings.model_copy(update={"heartbeat": 1})),
        repr(copy.deepcopy(settings)),
        repr(settings.model_dump()),
    ]
    assert all("canary" not in text for text in shown)
    assert json.loads(shown[4])["headers"] == {"cookie": "**********"}


def test_what_was_pickled_is_the_same_and_shows_no_secret_either() -> None:
    """So a worker process may be handed its settings; the bytes are as secret as a `.env`."""
    again = pickle.loads(pickle.dumps(Settings(**SECRETS)))
    assert again == Settings(**SECRETS)
    assert "canary" not in f"{again!r} {again} {again.model_dump_json()}"


@pytest.mark.parametrize(
    "fields",
    [
        {"api_key": "sk canary"},
        {"api_key": ["canary"]},
        {"client_keys": ("canary 1",)},
        {"client_keys": "canary"},
        {"headers": {"a b": "canary"}},
        {"headers": {"Bearer canary": ""}},
        {"headers": {"canary": ""}},
        {"headers": {"a": "can\nary canary"}},
        {"headers": "canary"},
        {"headers": {"a": ["canary"]}},
        {"apikey": "canary"},
        {"QWEN_API_KEY": "canary"},
        {"base_url": "https://user:canary@host"},
        {"base_url": "ftp://canary@host"},
        {"base_url": "https://host?token=canary"},
        {"base_url": "https://host#canary"},
    ],
)
def test_what_may_be_a_secret_is_not_shown_when_it_is_refused(fields: dict[str, Any]) -> None:
    assert "canary" not in wrong(**fields)


# The environment.

READ: dict[str, tuple[str, str, Any]] = {
    "QWEN_API_KEY": ("api_key", "sk-canary-1", SecretStr("sk-canary-1")),
    "QWEN_UPSTREAM": ("upstream", "qwen-web-v1", "qwen-web-v1"),
    "QWEN_BASE_URL": ("base_url", "http://127.0.0.1:9/", "http://127.0.0.1:9"),
    "QWEN_MODELS": ("models", " a, b ,,a", ("a", "b")),
    "QWEN_INCREMENTAL": ("incremental", "false", False),
    "QWEN_KEEP_CHATS": ("keep_chats", "true", True),
    "QWEN_TOOL_FORM": ("tool_form", "coder", "coder"),
    "QWEN_JSON_REPAIR": ("json_repair", "true", True),
    "QWEN_ESTIMATE_USAGE": ("estimate_usage", "true", True),
    "QWEN_MAX_REQUESTS": ("max_requests", "50", 50),
    "QWEN_MAX_REQUESTS_OF_CLIENT": ("max_requests_of_client", "5", 5),
    "QWEN_QUEUE": ("queue", "7", 7),
    "QWEN_QUEUE_TIMEOUT": ("queue_timeout", "2.5", 2.5),
    "QWEN_BODY_TIMEOUT": ("body_timeout", "9", 9),
    "QWEN_WRITE_TIMEOUT": ("write_timeout", "9", 9),
    "QWEN_SHUTDOWN_SECONDS": ("shutdown_seconds", "5", 5),
    "QWEN_ON_DISCONNECT": ("on_disconnect", "drain", "drain"),
    "QWEN_DRAIN_SECONDS": ("drain_seconds", "5", 5),
    "QWEN_DRAIN_TOKENS": ("drain_tokens", "500", 500),
    "QWEN_REASONING_FIELD": ("reasoning_field", "both", "both"),
    "QWEN_UPLOADS": ("uploads", "off", "off"),
    "QWEN_UPLOAD_HOSTS": (
        "upload_hosts",
        "*.Aliyuncs.com, http://127.0.0.1:9000",
        ("*.aliyuncs.com", "http://127.0.0.1:9000"),
    ),
    "QWEN_HEADERS": (
        "headers",
        "User-Agent: x\nX-A: b: c",
        {"user-agent": SecretStr("x"), "x-a": SecretStr("b: c")},
    ),
    "QWEN_CLIENT_KEYS": ("client_keys", "a, b", (SecretStr("a"), SecretStr("b"))),
    "HTTP_PROXY": ("http_proxy", "proxy:3128", SecretStr("http://proxy:3128")),
    "HTTPS_PROXY": ("https_proxy", "http://u:p@proxy:3128", SecretStr("http://u:p@proxy:3128")),
    "NO_PROXY": ("no_proxy", "localhost, .example.com", ("localhost", ".example.com")),
    "QWEN_CONNECT_TIMEOUT": ("connect_timeout", "2.5", 2.5),
    "QWEN_FIRST_TIMEOUT": ("first_timeout", "30", 30.0),
    "QWEN_IDLE_TIMEOUT": ("idle_timeout", "31", 31.0),
    "QWEN_TOTAL_TIMEOUT": ("total_timeout", "32", 32.0),
    "QWEN_MAX_CONNECTIONS": ("max_connections", "7", 7),
    "QWEN_MAX_BODY": ("max_body", "4096", 4096),
    "QWEN_HEARTBEAT": ("heartbeat", "0", 0.0),
    "QWEN_LOG_FILE": ("log_file", "/tmp/x.log", Path("/tmp/x.log")),
    "QWEN_LOG_LEVEL": ("log_level", "debug", "DEBUG"),
    "QWEN_LOG_BODIES": ("log_bodies", "true", True),
    "QWEN_CORS_ORIGINS": (
        "cors_origins",
        "https://a.example,https://b.example",
        ("https://a.example", "https://b.example"),
    ),
}

IN_A_FILE = {"upstreams", "routes"}
"""What does not fit into a variable: QWEN_CONFIG names the file (tests/test_config_file.py)."""


def test_the_table_of_variables_knows_each_variable_and_each_setting() -> None:
    assert READ.keys() == ENVIRONMENT.keys()
    assert {field for field, _, _ in READ.values()} | IN_A_FILE == set(Settings.model_fields)


@pytest.mark.parametrize("variable", READ)
def test_each_variable_is_read_into_its_setting(variable: str) -> None:
    field, text, value = READ[variable]
    for given in text, f"  {text}\n":
        settings = Settings.from_env({variable: given})
        assert getattr(settings, field) == value
        assert settings.model_copy(update={field: getattr(Settings(), field)}) == Settings()


@pytest.mark.parametrize("variable", READ)
@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_an_empty_variable_counts_as_not_set(variable: str, text: str) -> None:
    assert Settings.from_env({variable: text}) == Settings()


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("QWEN_MODELS", "upstream", "upstream"),
        ("QWEN_INCREMENTAL", "0", False),
        ("QWEN_INCREMENTAL", "NO", False),
        ("QWEN_INCREMENTAL", "on", True),
        ("QWEN_TOTAL_TIMEOUT", "none", None),
        ("QWEN_TOTAL_TIMEOUT", "None", None),
        ("QWEN_LOG_FILE", "-", None),
        ("QWEN_HEADERS", '{"User-Agent": "x"}', {"user-agent": SecretStr("x")}),
        ("QWEN_CORS_ORIGINS", "*", ("*",)),
    ],
)
def test_words_that_stand_for_something_else(variable: str, text: str, value: Any) -> None:
    settings = Settings.from_env({variable: text}, total_timeout=5, log_file="x")
    assert getattr(settings, ENVIRONMENT[variable]) == value


WRONG: list[tuple[str, str, bool]] = [
    ("QWEN_API_KEY", "canary key", False),
    ("QWEN_UPSTREAM", "canary", True),
    ("QWEN_BASE_URL", "canary", True),
    ("QWEN_BASE_URL", "https://user:canary@host", False),
    ("QWEN_MODELS", "x" * 250 + "canary-canary", False),
    ("QWEN_INCREMENTAL", "canary", True),
    ("QWEN_HEADERS", "Bearer canary", False),
    ("QWEN_HEADERS", "canary", False),
    ("QWEN_HEADERS", '{"a": "canary"', False),
    ("QWEN_HEADERS", '{"a": ["canary"]}', False),
    ("QWEN_HEADERS", "host: canary", False),
    ("QWEN_CLIENT_KEYS", "canary one,b", False),
    ("HTTP_PROXY", "ftp://user:canary@proxy", False),
    ("HTTPS_PROXY", "http://user:canary@proxy:99999", False),
    ("HTTPS_PROXY", "http://user:can ary@proxy", False),
    ("QWEN_CONNECT_TIMEOUT", "canary", True),
    ("QWEN_FIRST_TIMEOUT", "canary", True),
    ("QWEN_IDLE_TIMEOUT", "60canary", True),
    ("QWEN_TOTAL_TIMEOUT", "canary", True),
    ("QWEN_MAX_CONNECTIONS", "canary", True),
    ("QWEN_MAX_BODY", "32 MBcanary", True),
    ("QWEN_HEARTBEAT", "canary", True),
    ("QWEN_LOG_LEVEL", "canary", True),
    ("QWEN_LOG_BODIES", "canary", True),
]


@pytest.mark.parametrize(("variable", "text", "is_shown"), WRONG)
def test_a_wrong_variable_is_named_with_its_value_unless_that_is_a_secret(
    variable: str, text: str, is_shown: bool
) -> None:
    message = wrong_in({variable: text})
    assert message.startswith(f"{variable}: ")
    assert ("canary" in message.lower()) is is_shown


@pytest.mark.parametrize("text", [",", " , ", ",,,"])
@pytest.mark.parametrize("variable", ["QWEN_CLIENT_KEYS", "QWEN_MODELS", "QWEN_CORS_ORIGINS"])
def test_a_list_of_commas_is_an_error_and_no_open_gateway(variable: str, text: str) -> None:
    assert wrong_in({variable: text}).startswith(f"{variable}: ")


@pytest.mark.parametrize("name", ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"])
def test_proxies_are_read_in_lower_case_too_and_that_goes_first(name: str) -> None:
    field = ENVIRONMENT[name]
    lower = {name.lower(): "http://lower:1"}
    assert Settings.from_env(lower) == Settings.from_env({**lower, name: "http://upper:1"})
    assert getattr(Settings.from_env(lower), field) != getattr(Settings(), field)


def test_a_proxy_that_a_client_of_a_cgi_script_may_have_set_is_not_used() -> None:
    """A header `Proxy` becomes the variable HTTP_PROXY there (CVE-2016-5385)."""
    environment = {"REQUEST_METHOD": "POST", "HTTP_PROXY": "http://theirs:1"}
    assert Settings.from_env(environment) == Settings()
    assert Settings.from_env({**environment, "http_proxy": "http://ours:1"}).http_proxy is not None


def test_a_proxy_needs_what_its_scheme_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_asgi.settings.find_spec", lambda name: None)
    assert "pip install httpx[socks]" in wrong_in({"HTTPS_PROXY": "socks5://proxy:1080"})
    monkeypatch.setattr("qwen_asgi.settings.find_spec", lambda name: object())
    assert Settings.from_env({"HTTPS_PROXY": "socks5://proxy:1080"}).https_proxy is not None


def test_a_proxy_s_password_is_not_shown() -> None:
    settings = Settings(https_proxy="http://user:canary@proxy")
    assert "canary" not in f"{settings!r} {settings.model_dump_json()}"


def test_defaults_give_way_to_the_environment() -> None:
    settings = Settings.from_env({"QWEN_HEARTBEAT": "5"}, heartbeat=1, log_bodies=True)
    assert (settings.heartbeat, settings.log_bodies) == (5, True)


def test_without_being_asked_nothing_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("QWEN_API_KEY=from-file\nQWEN_HEARTBEAT=3\n")
    for variable, (_, text, _) in READ.items():
        monkeypatch.setenv(variable, text)
    assert Settings() == Settings(models=SEED_MODELS)
    assert Settings().api_key is None
    assert Settings.from_env({}) == Settings()
    before = dict(os.environ)
    Settings.from_env({}, env_file=".env")
    assert dict(os.environ) == before


def test_the_process_s_environment_is_read_where_none_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in READ:
        monkeypatch.delenv(variable, raising=False)
    Path(".env").write_text("QWEN_API_KEY=from-file\n")
    monkeypatch.setenv("QWEN_HEARTBEAT", "3")
    assert Settings.from_env() == Settings(heartbeat=3)


# The file.


def test_a_file_is_read_when_it_is_named_and_gives_way_to_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "qwen.env"
    file.write_text(
        "# a comment\n"
        "export QWEN_API_KEY='sk-canary-1'\n"
        'QWEN_MODELS="a,b"\n'
        "QWEN_HEARTBEAT=3\n"
        "QWEN_MAX_BODY=\n"
        "OTHER=x\n",
        encoding="utf-8",
    )
    settings = Settings.from_env({"QWEN_HEARTBEAT": "5"}, env_file=file)
    expected = Settings(api_key="sk-canary-1", models=("a", "b"), heartbeat=5)
    assert settings == expected
    assert Settings.from_env({"QWEN_HEARTBEAT": "5"}, env_file=str(file)) == expected


def test_a_wrong_line_of_the_file_is_named_as_the_variable(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("QWEN_HEARTBEAT=soon\n")
    message = wrong_in({}, env_file=file)
    assert message.startswith("QWEN_HEARTBEAT: ")
    assert "'soon'" in message


def test_a_value_of_the_file_is_taken_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME_OF_SECRETS", "from-the-process")
    file = tmp_path / ".env"
    file.write_text("QWEN_API_KEY=a${HOME_OF_SECRETS}b\n")
    key = Settings.from_env({}, env_file=file).api_key
    assert key is not None
    assert key.get_secret_value() == "a${HOME_OF_SECRETS}b"


def test_a_byte_order_mark_and_other_line_ends_do_no_harm(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_bytes(b"\xef\xbb\xbfQWEN_API_KEY=k\r\nQWEN_HEARTBEAT=3\r\n")
    assert Settings.from_env({}, env_file=file) == Settings(api_key="k", heartbeat=3)


@pytest.mark.parametrize("content", ["QWEN_API_KEY=canary".encode("utf-16"), b"QWEN_API_KEY=\xff"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / ".env"
    file.write_bytes(content)
    message = wrong_in({}, env_file=file)
    assert str(file) in message
    assert "UTF-8" in message
    assert "canary" not in message
