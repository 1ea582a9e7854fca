"""Who imports whom, and that importing does nothing."""

from __future__ import annotations

import ast
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "qwen_asgi"


@cache
def modules() -> dict[str, ast.Module]:
    """Return each module of the package by its name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text("utf-8"), str(path))
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """Return what a module imports, anywhere in it: ours by the whole name, others by the first."""
    found = set()
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules() else node.module)
    return frozenset(name if name in modules() else name.partition(".")[0] for name in found)


def own(module: str) -> frozenset[str]:
    return imports(module) & modules().keys()


def within(prefix: str) -> list[str]:
    return [name for name in modules() if name == prefix or name.startswith(f"{prefix}.")]


MIDDLE = {"qwen_asgi.chat", "qwen_asgi.errors", "qwen_asgi.sse"}
PURE = {"qwen_asgi.ids", *MIDDLE}

ALLOWED: dict[str, set[str]] = {
    # The middle, which knows nobody.
    "qwen_asgi.chat": set(),
    "qwen_asgi.errors": set(),
    "qwen_asgi.sse": set(),
    "qwen_asgi.ids": set(),
    "qwen_asgi.paths": set(),
    "qwen_asgi.background": set(),
    "qwen_asgi.turns": set(),
    "qwen_asgi.admission": {"qwen_asgi.errors", "qwen_asgi.turns"},
    "qwen_asgi.request_log": set(),
    "qwen_asgi.setting_types": set(),
    "qwen_asgi.config_file": set(),
    "qwen_asgi.upstream_settings": {
        "qwen_asgi.apis.openai_chat",
        "qwen_asgi.errors",
        "qwen_asgi.setting_types",
    },
    "qwen_asgi.settings": {
        "qwen_asgi.config_file",
        "qwen_asgi.setting_types",
        "qwen_asgi.upstream_settings",
    },
    "qwen_asgi.log_batch": set(),
    "qwen_asgi.log_file": set(),
    # The two sides: neither knows the other.
    "qwen_asgi.apis": PURE,
    "qwen_asgi.upstreams": PURE | {"qwen_asgi.background", "qwen_asgi.transports"},
    "qwen_asgi.transports": {"qwen_asgi.errors"},
    # HTTP, and one chat's journey.
    "qwen_asgi.authentication": {"qwen_asgi.errors", "qwen_asgi.request_log"},
    "qwen_asgi.model_list": MIDDLE,
    "qwen_asgi.catalog": {*MIDDLE, "qwen_asgi.model_list"},
    "qwen_asgi.tool_text": MIDDLE,
    "qwen_asgi.layers": PURE
    | {
        "qwen_asgi.background",
        "qwen_asgi.request_log",
        "qwen_asgi.turns",
        "qwen_asgi.tool_text.json_object",
        "qwen_asgi.tool_text.parser",
        "qwen_asgi.tool_text.prompt",
        "qwen_asgi.tool_text.tools",
    },
    "qwen_asgi.disconnect": set(),
    "qwen_asgi.begun": set(),
    "qwen_asgi.bounded_http": {"qwen_asgi.apis.openai_chat", "qwen_asgi.errors"},
    "qwen_asgi.cutoff": set(),
    "qwen_asgi.shutdown": {"qwen_asgi.cutoff", "qwen_asgi.errors"},
    "qwen_asgi.exchange": {*MIDDLE, "qwen_asgi.request_log"},
    "qwen_asgi.http": {
        *MIDDLE,
        "qwen_asgi.begun",
        "qwen_asgi.cutoff",
        "qwen_asgi.disconnect",
    },
    "qwen_asgi.relay": {
        *MIDDLE,
        "qwen_asgi.apis",
        "qwen_asgi.disconnect",
        "qwen_asgi.exchange",
        "qwen_asgi.http",
        "qwen_asgi.shutdown",
    },
    "qwen_asgi.routing": {
        "qwen_asgi.catalog",
        "qwen_asgi.chat",
        "qwen_asgi.layers.breaker",
        "qwen_asgi.layers.choices",
        "qwen_asgi.layers.drain",
        "qwen_asgi.layers.fallback",
        "qwen_asgi.layers.limit",
        "qwen_asgi.layers.named",
        "qwen_asgi.layers.retry",
        "qwen_asgi.layers.target",
        "qwen_asgi.settings",
        "qwen_asgi.turns",
        "qwen_asgi.upstream_settings",
    },
    # What users make and run.
    "qwen_asgi.mount": {"qwen_asgi.app", "qwen_asgi.paths"},
    "qwen_asgi.check": {
        "qwen_asgi.errors",
        "qwen_asgi.request_log",
        "qwen_asgi.settings",
        "qwen_asgi.upstream_settings",
        "qwen_asgi.wiring",
    },
    "qwen_asgi.standalone": {
        "qwen_asgi.app",
        "qwen_asgi.bounded_http",
        "qwen_asgi.check",
        "qwen_asgi.authentication",
        "qwen_asgi.log_batch",
        "qwen_asgi.log_file",
        "qwen_asgi.settings",
        "qwen_asgi.testing",
    },
    "qwen_asgi.__main__": {"qwen_asgi.standalone"},
    "qwen_asgi.testing": set(),
}
"""What of the package each module, or each folder of it, may import; beside itself and what is in
it. `app`, `wiring` and the package itself put all of it together."""

FREE = {"qwen_asgi", "qwen_asgi.app", "qwen_asgi.wiring"}


def rule_of(module: str) -> str:
    return max((rule for rule in ALLOWED if module in within(rule)), key=len)


def test_the_table_of_imports_knows_each_module() -> None:
    ruled = {name for rule in ALLOWED for name in within(rule)}
    assert ruled | FREE == modules().keys()


@pytest.mark.parametrize("module", sorted(set(modules()) - FREE))
def test_a_module_imports_only_what_its_place_allows(module: str) -> None:
    rule = rule_of(module)
    foreign = own(module) - set(within(rule))
    assert foreign <= ALLOWED[rule]


def test_apis_and_upstreams_never_import_each_other() -> None:
    apis, upstreams = set(within("qwen_asgi.apis")), set(within("qwen_asgi.upstreams"))
    assert not any(own(module) & upstreams for module in apis)
    assert not any(own(module) & apis for module in upstreams)


OUTSIDE: dict[str, set[str]] = {
    "dotenv": {"qwen_asgi.settings"},
    "httpx": {"qwen_asgi.app", "qwen_asgi.wiring", *within("qwen_asgi.transports")},
    # The program takes its port; the simulator serves on one.
    "socket": {
        "qwen_asgi.standalone",
        "qwen_asgi.testing.server",
        *within("qwen_asgi.transports"),
    },
    "ssl": set(within("qwen_asgi.transports")),
    "httptools": set(within("qwen_asgi.transports")),
    "jsonschema": {"qwen_asgi.layers.json_answer"},
    "requests": set(),
    "uvicorn": {"qwen_asgi.bounded_http", "qwen_asgi.standalone", "qwen_asgi.testing.server"},
    "starlette": {
        "qwen_asgi.app",
        "qwen_asgi.authentication",
        "qwen_asgi.disconnect",
        "qwen_asgi.http",
        "qwen_asgi.mount",
        "qwen_asgi.paths",
        "qwen_asgi.standalone",
        *within("qwen_asgi.testing"),
    },
    "pydantic": {
        "qwen_asgi.setting_types",
        "qwen_asgi.settings",
        "qwen_asgi.upstream_settings",
        *within("qwen_asgi.apis"),
    },
    "fastapi": set(),
    "orjson": set(),
    "uvloop": set(),
}
"""Who may import what is not ours."""


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_is_not_ours_is_imported_only_where_it_belongs(name: str) -> None:
    users = {module for module in modules() if name in imports(module)}
    assert users <= OUTSIDE[name]


def test_nothing_else_is_imported_than_what_the_project_depends_on() -> None:
    outside = {name for module in modules() for name in imports(module) - modules().keys()}
    assert outside - sys.stdlib_module_names == {
        "anyio",  # It comes with Starlette.
        "certifi",
        "dotenv",
        "httptools",
        "httpx",
        "jsonschema",  # An extra; it brings `referencing`.
        "pydantic",
        "pydantic_core",
        "referencing",
        "starlette",
        "typing_extensions",  # It comes with pydantic.
        "uvicorn",
    }


CONNECTING = {
    "open_connection",
    "open_unix_connection",
    "create_connection",
    "create_unix_connection",
    "StreamReader",
    "StreamWriter",
    "sock_connect",
    "sock_sendall",
}
LISTENING = {"start_server", "start_unix_server", "create_server", "create_unix_server", "listen"}


def attributes(module: str) -> Iterator[str]:
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)


def test_transports_alone_open_connections() -> None:
    users = {module for module in modules() if CONNECTING & set(attributes(module))}
    assert users <= set(within("qwen_asgi.transports"))


def test_the_program_and_the_simulator_alone_listen() -> None:
    users = {module for module in modules() if LISTENING & set(attributes(module))}
    assert users <= {"qwen_asgi.standalone", "qwen_asgi.testing.server"}


def test_settings_alone_read_the_environment() -> None:
    readers = {
        module
        for module in modules()
        if {"environ", "getenv", "environb"} & set(attributes(module))
    }
    assert readers == {"qwen_asgi.settings"}


def test_only_the_program_and_the_simulator_touch_the_process() -> None:
    """Handlers of signals and logs, and exits, are the host's own matter."""
    forbidden = {"basicConfig", "addHandler", "setLevel", "signal", "exit", "putenv", "chdir"}
    users = {module for module in modules() if forbidden & set(attributes(module))}
    assert users <= {"qwen_asgi.standalone", "qwen_asgi.testing.server"}


AWAITING = {
    "qwen_asgi.upstreams.call",
    "qwen_asgi.upstreams.removals",
    "qwen_asgi.upstreams.shared_work",
    "qwen_asgi.upstreams.stored_chats",
    "qwen_asgi.upstreams.uploads",
}
PURE_FOLDERS = [
    *within("qwen_asgi.apis"),
    *within("qwen_asgi.tool_text"),
    *within("qwen_asgi.upstreams"),
    *sorted(PURE),
]


@pytest.mark.parametrize("module", sorted(set(PURE_FOLDERS) - AWAITING))
def test_what_turns_bytes_into_meaning_awaits_nothing(module: str) -> None:
    awaiting = ast.Await | ast.AsyncFor | ast.AsyncWith | ast.AsyncFunctionDef
    assert not any(isinstance(node, awaiting) for node in ast.walk(modules()[module]))
    assert not imports(module) & {"asyncio", "anyio", "threading", "logging", "socket"}


def test_there_are_no_cycles() -> None:
    """The package itself imports what it exports, and nobody imports the package."""
    graph = {module: own(module) for module in modules()}
    assert not any("qwen_asgi" in names for names in graph.values())
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("qwen_asgi.chat") < order.index("qwen_asgi.app")


# What importing does: nothing.

PROBE = """
import importlib, json, logging, os, signal, sys, threading, warnings

def watch(event, arguments):
    if event.startswith(("socket.", "os.putenv", "os.unsetenv", "subprocess.", "os.fork")):
        raise AssertionError(f"{event} {arguments}")
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        raise AssertionError(f"{event} {arguments}")

def loggers():
    known = [logging.root, *logging.root.manager.loggerDict.values()]
    return sorted(
        (each.name, each.level, [repr(handler) for handler in each.handlers], each.propagate)
        for each in known
        if isinstance(each, logging.Logger) and (each.handlers or each.level or not each.propagate)
    )

def state():
    return {
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "files": sorted(os.listdir()),
        "descriptors": os.path.isdir("/proc/self/fd") and sorted(os.listdir("/proc/self/fd")),
        "loggers": loggers(),
        "threads": [thread.name for thread in threading.enumerate()],
        "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "hooks": [repr(sys.excepthook), repr(threading.excepthook), repr(sys.displayhook)],
        "limits": [sys.getrecursionlimit(), sys.get_int_max_str_digits(), sys.getswitchinterval()],
        "warnings": [str(filter) for filter in warnings.filters],
        "path": sys.path,
    }

sys.dont_write_bytecode = True
before = state()
sys.addaudithook(watch)
for module in sys.argv[1:]:
    importlib.import_module(module)
print(json.dumps([before, state()]))
"""

IMPORTED = [
    ["qwen_asgi"],
    ["qwen_asgi.standalone"],
    ["qwen_asgi.testing"],
    sorted(set(modules()) - {"qwen_asgi.__main__"}),
]


@pytest.mark.parametrize(
    "names", IMPORTED, ids=lambda names: names[0] if names[1:] == [] else "all"
)
def test_importing_leaves_the_process_as_it_was(names: list[str], tmp_path: Path) -> None:
    """Its environment, files, sockets, loggers, threads and signals, even where a `.env` lies."""
    (tmp_path / ".env").write_text("QWEN_API_KEY=from-file\nQWEN_LOG_LEVEL=nonsense\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "QWEN_LOG_FILE": "written.log"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE, *names],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    before, after = json.loads(done.stdout)
    assert after == before
    assert after["files"] == [".env"]


def test_importing_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints how long it takes; the bound is wide, for machines differ."""
    program = (
        "import time; began = time.perf_counter(); import qwen_asgi; "
        "print(time.perf_counter() - began)"
    )
    seconds = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=50,
            check=True,
        )
        seconds.append(float(done.stdout))
    median = statistics.median(seconds)
    with capsys.disabled():
        print(f"\nimport qwen_asgi: {median:.2f} s (median of {len(seconds)})")
    assert median < 10
