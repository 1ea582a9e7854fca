"""The worst bodies that the limits let through, and how long each of them holds up all others."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from qwen_asgi import Gateway, Settings, anonymous
from qwen_asgi.apis.body_bounds import MOST_VALUES
from qwen_asgi.apis.openai_chat import MOST_MESSAGES, MOST_PARTS
from qwen_asgi.http import MOST_HEADER_BYTES, MOST_HEADERS
from qwen_asgi.testing import SimulatedQwen
from tests.conftest import CHAT, DIALECTS, MODEL, ask
from tests.hardening.trial import (
    Served,
    Trial,
    check_that_nothing_is_left,
    served,
    upstream_settings,
)
from tests.programs import ROOT

MAX_BODY = 32 * 1024 * 1024
"""The default bound."""

LONGEST_GAP = 1.0
"""Seconds, with a reserve for a machine that others use too."""

TICK = 0.001
SHOWN = 4

_CHAT = json.dumps(ask()).encode()
_PNG = b"\x89PNG\r\n\x1a\n"


def _with(field: bytes, data: bytes) -> bytes:
    return b'%b,"%b":%b}' % (_CHAT[:-1], field, data)


def _text(of: bytes, size: int) -> bytes:
    return _CHAT.replace(b"Hello", of * ((size - 1000) // len(of)))


def _picture(size: int) -> dict[str, Any]:
    data = base64.b64encode(_PNG + bytes(size)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def _call(arguments: str) -> bytes:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "c", "content": "7"}
    turn = {"role": "user", "content": "a"}
    return json.dumps(ask(messages=[turn, said, result, turn])).encode()


def _tools(number: int, fields: int) -> bytes:
    properties = {f"p{n}": {"type": "string", "description": "d" * 20} for n in range(fields)}
    schema = {"type": "object", "properties": properties}
    named = [
        {"type": "function", "function": {"name": f"f{n}", "parameters": schema}}
        for n in range(number)
    ]
    return json.dumps(ask(tools=named)).encode()


def bodies(size: int) -> dict[str, Callable[[], bytes]]:
    """Return what makes the bodies, of `size` bytes at most, so that one is held at a time."""
    # A comma each, and some for the rest of the chat.
    many = MOST_VALUES - 100
    turn = {"role": "user", "content": "a"}
    turns = [turn, {"role": "assistant", "content": "b"}] * (MOST_MESSAGES // 2 - 1) + [turn]
    parts = [{"type": "text", "text": "a"}] * MOST_PARTS
    return {
        "one long text": lambda: _text(b"x", size),
        "escapes only": lambda: _text(b"\\u4e16", size),
        "surrogate pairs only": lambda: _text(b"\\ud83d\\ude00", size),
        "line ends only": lambda: _text(b"\\n", size),
        "numbers": lambda: _with(b"x", b"[" + b"1," * many + b"1]"),
        "empty lists": lambda: _with(b"x", b"[" + b"[]," * (many // 2) + b"1]"),
        "nested lists": lambda: _with(b"x", b"[" + b"[[[[[[1]]]]]]," * (many // 7) + b"1]"),
        "objects": lambda: _with(b"x", b"[" + b'{"a":1},' * (many // 2) + b"1]"),
        "objects in a message": lambda: _CHAT.replace(
            b'"role"', b'"extra":{"a":[' + b'{"a":1},' * (many // 2) + b'1]},"role"'
        ),
        "names": lambda: _with(
            b"x", b"{" + b"".join(b'"%d":1,' % n for n in range(many)) + b'"a":1}'
        ),
        "long numbers": lambda: _with(b"x", b"[" + b"1" * 4000 + b"," + b"1" * 4000 + b"]"),
        "numbers of 4000 digits": lambda: _with(
            b"x", b"[" + (b"1" * 4000 + b",") * min(many, size // 4001 - 2) + b"1]"
        ),
        "messages": lambda: json.dumps(ask(messages=turns)).encode(),
        "parts": lambda: json.dumps(ask(messages=[{"role": "user", "content": parts}])).encode(),
        "parts of many messages": lambda: json.dumps(
            ask(messages=[{"role": "user", "content": parts[:500]}] * 100)
        ).encode(),
        "tools": lambda: _tools(120, 300),
        "a tool's long description": lambda: _tools(1, 30_000),
        "a call's arguments of many values": lambda: _call("[" + "[]," * (many // 2) + "1]"),
        "a call's long argument": lambda: _call(json.dumps({"a": "x" * (size // 2)})),
        "a call's arguments refused": lambda: _call("[" + "[]," * (size // 3 - 1000) + "1]"),
        "pictures": lambda: json.dumps(
            ask(messages=[{"role": "user", "content": [_picture(size // 8)] * 5}])
        ).encode(),
        "deep": lambda: _with(b"x", b"[" * 190 + b"]" * 190),
        "refused for its number": lambda: _with(b"x", b"[" + b"[]," * (size // 3 - 100) + b"1]"),
    }


class _Probe:
    """The longest time between two turns of a server's loop, in seconds."""

    def __init__(self, app: Served) -> None:
        assert app._loop is not None
        self._loop = app._loop
        self.longest = 0.0
        self._last = 0.0
        self._is_over = threading.Event()

    def __enter__(self) -> _Probe:
        self._loop.call_soon_threadsafe(self._begin)
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over.set()

    def _begin(self) -> None:
        self._last = time.perf_counter()
        self._tick()

    def _tick(self) -> None:
        now = time.perf_counter()
        self.longest = max(self.longest, now - self._last)
        self._last = now
        if not self._is_over.is_set():
            self._loop.call_later(TICK, self._tick)


UPSTREAM = """
import time
from qwen_asgi.testing import SimulatedQwen, serve
with serve(SimulatedQwen(reply="7")) as url:
    print(url, flush=True)
    time.sleep(3600)
"""


@contextmanager
def _upstream() -> Iterator[str]:
    """An upstream in a process of its own: what it parses holds up nobody here."""
    command = [sys.executable, "-c", UPSTREAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def run(trial: Trial, *, is_short: bool = False) -> None:
    found: list[tuple[float, str]] = []
    for dialect in ("qwen-web-v1",) if is_short else DIALECTS:
        found += _over(trial, dialect, is_short=is_short)
    found.sort(reverse=True)
    worst = [f"{name} {gap * 1e3:.0f} ms" for gap, name in found[:SHOWN]]
    trial.notes.append(f"longest gaps of the loop: {', '.join(worst)}")


def _over(trial: Trial, dialect: str, *, is_short: bool) -> list[tuple[float, str]]:
    found = []
    with _upstream() as up:
        its = upstream_settings(dialect, up, DIALECTS[dialect])
        settings = Settings(**its, models=(MODEL,), upload_hosts=(up,))
        gateway = Gateway(settings, authenticate=anonymous)
        with served(gateway) as app, httpx.Client(trust_env=False, timeout=60) as http:
            http.post(app.url + CHAT, json=ask())
            tasks = app.tasks()
            size = MAX_BODY // 4 if is_short else MAX_BODY
            for name, make in bodies(size).items():
                body = make()
                for stream in False, True:
                    asked = body[:-1] + (b',"stream":true}' if stream else b"}")
                    gap = _gap(trial, app, http, asked, {}, f"{dialect} {name} stream={stream}")
                    found.append((gap, f"{dialect} {name}{' streamed' if stream else ''}"))
            most = {f"x-{n}": "y" * (MOST_HEADER_BYTES // MOST_HEADERS - 20) for n in range(190)}
            gap = _gap(trial, app, http, _CHAT, most, f"{dialect} headers")
            found.append((gap, f"{dialect} headers"))
            check_that_nothing_is_left(trial, app, SimulatedQwen(), tasks)
    return found


def _gap(
    trial: Trial, app: Served, http: httpx.Client, body: bytes, headers: dict[str, str], what: str
) -> float:
    """Return the longest gap of the loop while the body is sent and answered."""
    headers = {"content-type": "application/json", **headers}
    with _Probe(app) as probe:
        response = http.post(app.url + CHAT, content=body, headers=headers)
        time.sleep(0.005)
    right = response.status_code in (200, 400, 413)
    trial.check(right, f"{what}: {response.status_code} {response.text[:200]}")
    trial.check(probe.longest < LONGEST_GAP, f"{what}: the loop stood for {probe.longest:.3f} s")
    return probe.longest
