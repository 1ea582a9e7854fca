"""Every fault of a client: what it gets, that nothing of it stays, that the next one is served."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.routing import Mount

from qwen_asgi import Gateway, Settings, anonymous
from qwen_asgi.exchange import Reason
from qwen_asgi.standalone import LOG_FORMAT
from qwen_asgi.testing import Fault, SimulatedQwen, serve
from qwen_asgi.testing.answers import Answer
from tests.conftest import CHAT, DIALECTS, MODEL, ask, connect, eventually, http_bytes, stream_of
from tests.hardening.raw import (
    NOTHING,
    RawAnswer,
    hear,
    open_connections,
    open_files,
    outcome_of,
    reset,
    talk,
)
from tests.hardening.raw_requests import MOUNT, MOUNTED, RAW, Raw
from tests.hardening.trial import (
    Served,
    Trial,
    check_that_nothing_is_left,
    served,
    upstream_settings,
)

TEXT = b'"delta":{"content":"'
IDLE_CONNECTIONS = 4


def _half_a_frame(answer: Answer) -> Answer:
    """Fall silent within the fourth frame."""
    frames = list(answer.frames)
    whole = frames[: min(3, len(frames) - 1)]
    cut = frames[len(whole)]
    return replace(answer, steps=[*whole, cut[: len(cut) // 2], 3600.0])


@dataclass(frozen=True)
class Leave:
    """When a client leaves, and how the chat may then have ended."""

    name: str
    sends: float = 1.0
    """How much of its request, of 1; above it, a part of the next one too."""
    ends: tuple[str, ...] = ("client_left",)
    """The gateway's own count by reason; empty where no chat had begun."""
    fault: Fault | None = None
    """What the upstream does meanwhile."""
    reads: bytes = b""
    """What it has read by then, of a stream."""
    is_asked: bool = False
    """Whether it waits until the upstream was called."""


LEAVES = [
    Leave("before it has sent anything", sends=0.0, ends=()),
    *(Leave(f"within the head, {part:.0%}", sends=part, ends=()) for part in (0.01, 0.2, 0.4)),
    *(Leave(f"within the body, {part:.0%}", sends=part) for part in (0.6, 0.75, 0.9, 0.999)),
    Leave("right after the body", ends=("client_left", "done")),
    Leave("before the upstream's headers", fault=Fault.stall(None), is_asked=True),
    Leave("before the upstream's first event", fault=Fault.stall(0), is_asked=True),
    Leave("between frames", fault=Fault.stall(4), reads=TEXT, is_asked=True),
    Leave("within a frame", fault=Fault("half a frame", _half_a_frame), reads=TEXT, is_asked=True),
    Leave("while it drips", fault=Fault.drip(1, pause=0.01), is_asked=True),
    Leave(
        "before the stream's end",
        fault=Fault.stall(99),
        reads=b'"finish_reason":"stop"',
        ends=("client_left", "done"),
    ),
    Leave("as the last event goes out", reads=b"[DONE]", ends=("done",)),
    Leave("in the pause after an answer", reads=b"0\r\n\r\n", ends=("done",)),
    Leave("within the head of the next request", sends=1.3, reads=b"0\r\n\r\n", ends=("done",)),
]


def run(trial: Trial, *, is_short: bool = False) -> None:
    for dialect in ("qwen-web-v2",) if is_short else DIALECTS:
        for parser in ("httptools",) if is_short else ("httptools", "h11"):
            _leave(trial, dialect, parser)
    for parser in ("httptools",) if is_short else ("httptools", "h11"):
        _send_raw(trial, RAW[::4] if is_short else RAW, parser)
        _send_raw(trial, MOUNTED, parser, is_mounted=True)
    _pipeline(trial)
    _close_half(trial)
    _leave_the_queue(trial)
    for dialect in ("qwen-web-v2",) if is_short else DIALECTS:
        _inject(trial, dialect)


@contextmanager
def _gateway(
    dialect: str,
    qwen: SimulatedQwen,
    *,
    parser: str = "httptools",
    is_mounted: bool = False,
    **settings: Any,
) -> Iterator[Served]:
    with serve(qwen) as up:
        its = upstream_settings(dialect, up, DIALECTS[dialect])
        told = {**its, "models": (MODEL,), "max_connections": IDLE_CONNECTIONS, **settings}
        gateway = Gateway(Settings(upload_hosts=(up,), **told), authenticate=anonymous)
        app = Starlette(routes=[Mount(MOUNT, gateway)], lifespan=gateway.lifespan)
        with served(gateway, app=app if is_mounted else None, http=parser) as it:
            yield it


# Those who leave.


def _leave(trial: Trial, dialect: str, parser: str) -> None:
    qwen = SimulatedQwen(api_key="k", reply="abcdef", pieces=1)
    with _gateway(dialect, qwen, parser=parser) as app:
        _is_served(trial, app, f"{dialect} at first")
        eventually(lambda: open_connections(app.url) == 0)
        tasks, files = app.tasks(), open_files()
        for leave in LEAVES:
            for stream in False, True:
                for by_reset in False, True:
                    way = "RST" if by_reset else "FIN"
                    what = f"{dialect} {parser} leaves {leave.name} stream={stream} {way}"
                    _leave_once(trial, app, qwen, leave, what, stream=stream, by_reset=by_reset)
                    check_that_nothing_is_left(trial, app, qwen, tasks)
                    qwen._faults.clear()
                    _check_no_connection(trial, app, files, what)
                    _is_served(trial, app, what)


def _leave_once(
    trial: Trial,
    app: Served,
    qwen: SimulatedQwen,
    leave: Leave,
    what: str,
    *,
    stream: bool,
    by_reset: bool,
) -> None:
    before = dict(app.gateway.ends)
    if leave.fault is not None:
        qwen.fail(leave.fault)
    request = http_bytes(json.dumps(ask(stream=stream)).encode())
    is_whole = leave.sends >= 1
    connection = connect(app.url)
    try:
        connection.sendall((request * 2)[: int(leave.sends * len(request))])
        if is_whole and leave.is_asked:
            qwen.wait_for(lambda qwen: qwen.open > 0)
        if is_whole and stream and leave.reads:
            seen = b""
            while leave.reads not in seen and (data := connection.recv(65536)):
                seen += data
        elif is_whole and leave.reads and (leave.fault is None):
            hear(connection)
    except (OSError, TimeoutError) as exc:
        trial.check(False, f"{what}: {exc!r}")
    finally:
        reset(connection) if by_reset else connection.close()
    if not leave.ends:
        time.sleep(0.01)
        trial.check(app.gateway.ends == before, f"{what}: {app.gateway.ends}")
        return
    _check_end(trial, app, before, leave.ends, what)


def _check_end(
    trial: Trial, app: Served, before: Mapping[Reason, int], ends: tuple[str, ...], what: str
) -> None:
    """Wait until one chat more has ended, and look at why."""

    def more() -> list[str]:
        return [end for end, times in app.gateway.ends.items() if times > before.get(end, 0)]

    try:
        eventually(more, 5)
    except AssertionError:
        trial.check(False, f"{what}: no end was counted")
    else:
        trial.check(len(more()) == 1 and more()[0] in ends, f"{what}: {more()}")


def _check_no_connection(trial: Trial, app: Served, files: int, what: str) -> None:
    try:
        # Connections to the upstream may be kept, to be used again.
        most = files + 2 * IDLE_CONNECTIONS
        eventually(lambda: open_connections(app.url) == 0 and open_files() <= most, 5)
        trial.check(True, what)
    except AssertionError:
        left = f"{open_connections(app.url)} connections, {open_files()} files, {files} before"
        trial.check(False, f"{what}: {left}")


def _is_served(trial: Trial, app: Served, what: str, path: str = CHAT) -> None:
    data = http_bytes(json.dumps(ask()).encode(), path=path, connection="close")
    outcome = outcome_of(talk(app.url, data))
    trial.check(outcome == "200", f"{what}: the next client got {outcome}")


def _leave_the_queue(trial: Trial) -> None:
    """One that waits for its turn and leaves takes the place of nobody."""
    qwen = SimulatedQwen(api_key="k", reply="abcdef", pieces=1)
    with _gateway("qwen-web-v1", qwen, max_requests=1, queue=3, queue_timeout=20) as app:
        _is_served(trial, app, "the queue at first")
        for by_reset in False, True:
            qwen.fail(Fault.stall(None))
            request = http_bytes(json.dumps(ask()).encode())
            with ExitStack() as stack:
                first = stack.enter_context(connect(app.url))
                first.sendall(request)
                qwen.wait_for(lambda qwen: qwen.open == 1)
                waiting = [connect(app.url) for _ in range(3)]
                for one in waiting:
                    one.sendall(request)
                eventually(lambda: app.gateway._admission.open == 4)
                for one in waiting:
                    reset(one) if by_reset else one.close()
                try:
                    eventually(lambda: app.gateway._admission.open == 1, 2)
                    trial.check(True, "")
                except AssertionError:
                    still = app.gateway._admission.open - 1
                    trial.check(False, f"{still} that left the queue keep their places in it")
            eventually(lambda: app.gateway._admission.open == 0)
            _is_served(trial, app, "after the queue")


# Those who send what is hardly a request.


def _send_raw(trial: Trial, rows: list[Raw], parser: str, *, is_mounted: bool = False) -> None:
    qwen = SimulatedQwen(api_key="k")
    with _gateway("qwen-web-v1", qwen, parser=parser, is_mounted=is_mounted) as app:
        path = (MOUNT if is_mounted else "") + CHAT
        _is_served(trial, app, "raw at first", path)
        usual = set(qwen.requests[-1].headers)
        tasks = app.tasks()
        for row in rows:
            what = f"{parser} {row.name[:80]}"
            qwen.requests.clear()
            # Of what may get no answer it is not waited for long whether one comes.
            patience = 0.3 if NOTHING in row.outcomes else 10.0
            most = 1 + max(outcome.count(",") for outcome in row.outcomes)
            try:
                answers = talk(app.url, row.data, answers=most, within=patience)
                outcome = outcome_of(answers)
            except (AssertionError, ValueError) as exc:
                trial.check(False, f"{what}: {exc!r}"[:300])
                continue
            trial.check(outcome in row.outcomes, f"{what}: {outcome}, not {row.outcomes}")
            trial.check(all(a.has_own_headers_only for a in answers), f"{what}: {answers}"[:400])
            _check_asked(trial, qwen, row.asks, usual, what)
            _is_served(trial, app, what, path)
        check_that_nothing_is_left(trial, app, qwen, tasks)


def _check_asked(trial: Trial, qwen: SimulatedQwen, most: int, usual: set[str], what: str) -> None:
    """Whether what reached the upstream has its own path, and the headers that it always has."""
    asked = list(qwen.requests)
    trial.check(len(asked) <= most, f"{what}: {len(asked)} requests reached the upstream")
    for request in asked:
        is_usual = set(request.headers) == usual and request.path == "/api/chat/completions"
        trial.check(is_usual, f"{what}: {request.path} {dict(request.headers)}"[:300])


def _pipeline(trial: Trial) -> None:
    """Requests that are sent at once are answered one after the other, each as itself."""
    qwen = SimulatedQwen(api_key="k")
    with _gateway("qwen-web-v1", qwen) as app:
        tasks = app.tasks()
        ids = [f"p{number}" for number in range(12)]
        data = b"".join(
            http_bytes(json.dumps(ask(stream=number % 3 == 0)).encode(), x_request_id=id)
            if number % 2
            else http_bytes(b"{", x_request_id=id)
            for number, id in enumerate(ids)
        )
        answers = talk(app.url, data, answers=len(ids))
        told = [dict(answer.headers)["x-request-id"] for answer in answers]
        trial.check(told == ids, f"pipelined: {told}")
        statuses = [answer.status for answer in answers]
        trial.check(statuses == [400, 200] * 6, f"pipelined: {statuses}")
        check_that_nothing_is_left(trial, app, qwen, tasks)


def _close_half(trial: Trial) -> None:
    """Who ends its own side of the connection has left, as uvicorn tells it: the call is ended."""
    for stream in False, True:
        qwen = SimulatedQwen(api_key="k", pace=0.01)
        with _gateway("qwen-web-v1", qwen) as app:
            _is_served(trial, app, "half closed at first")
            before, tasks = dict(app.gateway.ends), app.tasks()
            with connect(app.url) as connection:
                connection.sendall(http_bytes(json.dumps(ask(stream=stream)).encode()))
                connection.shutdown(1)
                outcome = outcome_of(hear(connection))
            trial.check(outcome in (NOTHING, "200"), f"half closed: {outcome}")
            _check_end(trial, app, before, ("client_left", "done"), f"half closed {stream}")
            check_that_nothing_is_left(trial, app, qwen, tasks)
        trial.notes.append(f"half-closed, stream={stream}: {outcome}")


# Those who write into what comes back.

HOSTILE = {
    "a header": "a\r\nx-injected: 1",
    "a header by LF": "a\nx-injected: 1\n\nbody",
    "a carriage return": "a\rb",
    "a NUL": "a\0b",
    "latin-1": "ÿé",
    "another script": "名前",
    "separators": "a\u2028b\u2029c\x85d\x0be",
    "an event": 'a\n\ndata: {"error": 1}\n\ndata: [DONE]\n\n',
    "a log line": "a\n2026-01-01 00:00:00,000 - INFO - chat forged",
    "a terminal": "\x1b[2J\x1b]0;x\x07",
    "encoded": "%0d%0ax-injected:%201",
    "long": "x" * 10_000,
}


def _bodies(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a chat for each field that comes back, or goes on, somewhere."""
    tool = {"type": "function", "function": {"name": text, "parameters": {"type": "object"}}}
    call = {"id": text, "type": "function", "function": {"name": text, "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "a", "name": text},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": text, "content": text},
    ]
    picture = {"type": "image_url", "image_url": {"url": f"data:image/{text};base64,iVBORw0KGgo="}}
    file = {"type": "file", "file": {"filename": f"{text}.txt", "file_data": "aGVsbG8="}}
    schema = {"name": text, "schema": {"type": "object"}}
    yield "text", ask(text)
    yield "model", ask(model=text)
    yield "user", ask(user=text)
    yield "tool", ask(tools=[tool])
    yield (
        "tool_choice",
        ask(tools=[tool], tool_choice={"type": "function", "function": {"name": text}}),
    )
    yield "turns", ask(messages=turns)
    yield "an unknown field", {**ask(), text: 1}
    yield "an unknown field of a message", ask(messages=[{"role": "user", "content": "a", text: 1}])
    yield "metadata", ask(metadata={text: text})
    yield "logit_bias", ask(logit_bias={text: "x"})
    yield "role", ask(messages=[{"role": text, "content": "a"}])
    yield "a part's type", ask(messages=[{"role": "user", "content": [{"type": text}]}])
    yield "stop", ask(stop=[text])
    yield "response_format", ask(response_format={"type": "json_schema", "json_schema": schema})
    yield "reasoning_effort", ask(reasoning_effort=text)
    yield "chat_type", ask(chat_type=text)
    yield "a picture's type", ask(messages=[{"role": "user", "content": [picture]}])
    yield "a file's name", ask(messages=[{"role": "user", "content": [file]}])


class _Lines(logging.Handler):
    """Each record as the standalone program would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(LOG_FORMAT))
        self.split: list[str] = []
        self.number = 0

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        self.number += 1
        # A traceback is the gateway's own, and a bug that the answer shows.
        if not text.isprintable():
            self.split.append(text)


@contextmanager
def _lines() -> Iterator[_Lines]:
    logger, lines = logging.getLogger("qwen_asgi"), _Lines()
    before = logger.level, logger.propagate
    logger.addHandler(lines)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(lines)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def _inject(trial: Trial, dialect: str) -> None:
    qwen = SimulatedQwen(api_key="k", models=(MODEL, *HOSTILE.values()))
    told: dict[str, Any] = {"models": "upstream", "log_bodies": True}
    with _lines() as lines, _gateway(dialect, qwen, **told) as app:
        _is_served(trial, app, "injection at first")
        names = {name for request in qwen.requests for name in request.headers}
        for way, text in HOSTILE.items():
            for field, body in _bodies(text):
                for stream in False, True:
                    what = f"{dialect} {way} as {field} stream={stream}"
                    data = json.dumps({**body, "stream": stream}).encode()
                    _send_hostile(trial, app.url, http_bytes(data), what)
            path = f"/v1/models/{quote(text, safe='')}"
            _send_hostile(trial, app.url, http_bytes(method="GET", path=path), f"{way} as a path")
            path = f"/{quote(text, safe='')}"
            _send_hostile(trial, app.url, http_bytes(method="GET", path=path), f"{way} as a path")
            qwen.fail(Fault.failure(text[:100], text))
            what = f"{dialect} {way} said by the upstream"
            _send_hostile(trial, app.url, http_bytes(json.dumps(ask()).encode()), what)
            qwen._faults.clear()
            for split in lines.split:
                trial.check(False, f"{dialect} {way}: a line of the log is split: {split!r}"[:300])
            lines.split.clear()
        uploads = {"content-type", "x-oss-content-sha256", "x-oss-date", "x-oss-security-token"}
        for request in qwen.requests:
            more = set(request.headers) - names - uploads
            trial.check(not more, f"{dialect}: headers {more} reached the upstream")
        trial.check(lines.number > 100, f"{lines.number} lines were logged")


def _send_hostile(trial: Trial, url: str, data: bytes, what: str) -> None:
    try:
        answers = talk(url, data)
        is_right = len(answers) == 1 and _is_sound(answers[0])
    except (AssertionError, ValueError) as exc:
        trial.check(False, f"{what}: {exc!r}"[:300])
    else:
        trial.check(is_right, f"{what}: {answers}"[:400])


def _is_sound(answer: RawAnswer) -> bool:
    """Whether it is whole, of its form, and has nothing in it that a client wrote there."""
    if not answer.has_own_headers_only or "internal_error" in answer.outcome:
        return False
    if dict(answer.headers).get("content-type", "").startswith("text/event-stream"):
        read = stream_of(answer.body)
        return read.is_whole or read.is_broken_off
    json.loads(answer.body)
    return answer.outcome.endswith("server") is False
