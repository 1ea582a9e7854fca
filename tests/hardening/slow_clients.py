"""Clients that do not read, and clients that hardly send: what they cost, and whom they hinder."""

from __future__ import annotations

import json
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import repeat
from pathlib import Path

from qwen_asgi.testing import Fault, SimulatedQwen, serve
from qwen_asgi.testing.answers import Answer
from tests.conftest import address_of, ask, eventually, frame, http_bytes
from tests.hardening.raw import hear, open_connections, outcome_of, talk
from tests.hardening.trial import Trial
from tests.programs import QWEN_ASGI, Program, running

MOST_KIB = 4096.0
"""What the gateway may hold for a client that does not read; some 2100 was measured."""

GROWTH = 1.1
"""How much more it may hold after a second more of a flood."""

BODY_TIMEOUT = 1.5
CHUNK = frame("x" * 8000)


def run(trial: Trial, *, clients: int) -> None:
    with _program() as (program, qwen):
        _do_not_read(trial, program, qwen, clients)
        _hardly_send(trial, program, clients)
        eventually(lambda: qwen.open == 0)


@contextmanager
def _program() -> Iterator[tuple[Program, SimulatedQwen]]:
    """The gateway in a process of its own, whose memory can be measured."""
    qwen = SimulatedQwen(api_key="k", reply="7")
    command = [*QWEN_ASGI, "--port", "0"]
    told = {"QWEN_API_KEY": "k", "QWEN_LOG_FILE": "-", "QWEN_BODY_TIMEOUT": str(BODY_TIMEOUT)}
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(qwen) as up,
        running(command, Path(folder), QWEN_BASE_URL=up, **told) as program,
    ):
        yield program, qwen


def _kib(program: Program) -> float:
    """Return the program's resident memory; Linux only."""
    status = Path(f"/proc/{program.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return float(found[1])


def _connect(url: str) -> socket.socket:
    """Return a connection that takes next to nothing while its client does not read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(10)
    connection.connect(address_of(url))
    return connection


def _floods(answer: Answer) -> Answer:
    """Without an end: what is not held back somewhere would be held in memory."""
    return replace(answer, steps=repeat(CHUNK))


def _healthy_seconds(trial: Trial, url: str) -> float:
    took = []
    for _ in range(20):
        begun = time.perf_counter()
        outcome = outcome_of(talk(url, http_bytes(json.dumps(ask()).encode(), connection="close")))
        took.append(time.perf_counter() - begun)
        trial.check(outcome == "200", f"a healthy client got {outcome}")
    return sorted(took)[len(took) // 2]


def _do_not_read(trial: Trial, program: Program, qwen: SimulatedQwen, clients: int) -> None:
    url = program.url
    _healthy_seconds(trial, url)
    before = _kib(program)
    with ExitStack() as stack:
        qwen.fail(Fault("flood", _floods), times=clients)
        for _ in range(clients):
            connection = stack.enter_context(_connect(url))
            connection.sendall(http_bytes(json.dumps(ask(stream=True)).encode()))
        qwen.wait_for(lambda qwen: qwen.open == clients, 30)
        held = []
        for _ in range(3):
            time.sleep(0.6)
            held.append((_kib(program) - before) / clients)
        took = _healthy_seconds(trial, url)
    trial.check(
        max(held) < MOST_KIB, f"{max(held):.0f} KiB are held for a client that does not read"
    )
    trial.check(took < 0.5, f"a healthy client waits {took:.3f} s beside those that do not read")
    try:
        qwen.wait_for(lambda qwen: qwen.open == 0, 10)
        eventually(lambda: open_connections(url) == 0, 10)
        trial.check(True, "")
    except (AssertionError, TimeoutError):
        trial.check(False, f"{qwen.open} calls go on of clients that did not read and left")
    told = f"{max(held):.0f} KiB resident for each of {clients} that do not read"
    trial.notes.append(f"{told}, a healthy one beside them {took * 1e3:.1f} ms")


def _hardly_send(trial: Trial, program: Program, clients: int) -> None:
    url, request = program.url, http_bytes(json.dumps(ask()).encode())
    head = request.index(b"\r\n\r\n") + 4
    before = _healthy_seconds(trial, url)
    with ExitStack() as stack:
        opened = [stack.enter_context(_connect(url)) for _ in range(clients)]
        # Kinds: the head drips, the body drips, the body stalls, nothing comes at all.
        sent = [(0, head + 1, head + 1, 0)[number % 4] for number in range(clients)]
        for connection, size in zip(opened, sent, strict=True):
            connection.sendall(request[:size])
        begun, took = time.monotonic(), []
        while time.monotonic() - begun < 3 * BODY_TIMEOUT:
            for number, connection in enumerate(opened):
                if number % 4 < 2:
                    with suppress(OSError):
                        connection.sendall(request[sent[number] : sent[number] + 1])
                    sent[number] += 1
            took.append(_healthy_seconds(trial, url))
            time.sleep(0.9)
        for number, connection in enumerate(opened):
            if number % 4 == 2:
                outcome = outcome_of(hear(connection))
                trial.check(outcome == "408 request_timeout", f"a body that stalls: {outcome}")
        still = [open_connections(url)]
    trial.check(
        max(took) < 3 * before + 0.05, f"slow beside those that hardly send: {max(took):.3f}"
    )
    eventually(lambda: open_connections(url) == 0, 10)
    told = f"beside {clients} that hardly send {max(took) * 1e3:.1f} ms ({before * 1e3:.1f} alone)"
    trial.notes.append(
        f"{told}; uvicorn itself bounds neither a head that drips nor silence before it: "
        f"{still[0]} connections were open after {3 * BODY_TIMEOUT:.1f} s"
    )
