"""Known secrets, driven through every route, fault and log level: none may come out anywhere."""

from __future__ import annotations

import base64
import io
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from qwen_asgi import Gateway, Settings
from qwen_asgi.testing import Fault, SimulatedQwen, serve
from tests.conftest import CHAT, DIALECTS, MODEL, ask, connect, http_bytes
from tests.hardening.raw_requests import FIRST_LINES, HEADERS
from tests.hardening.trial import Trial, served, upstream_settings
from tests.programs import QWEN_ASGI, running
from tests.programs import run as run_command
from tests.test_secrets import CLIENT_SECRET, COOKIE_SECRET, HEADER_SECRET, UPSTREAM_SECRET

PROMPT = "canary-prompt-11-which-no-log-may-hold"
ANSWER = "canary-answer-12-which-no-log-may-hold"
FILE = b"canary-file-13-which-no-log-may-hold"
OWN_SECRET = "canary-own-header-14-of-the-client"
PROXY_SECRET = "canary-proxy-15"

CREDENTIALS = (UPSTREAM_SECRET, CLIENT_SECRET, HEADER_SECRET, COOKIE_SECRET, OWN_SECRET)
"""What nobody may see but whom it is for."""

WORDS = (PROMPT, ANSWER, FILE.decode())
"""What is the clients' own, and is nobody's to log."""

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
KEY = {"authorization": f"Bearer {CLIENT_SECRET}", "cookie": OWN_SECRET, "x-own": OWN_SECRET}


def found_in(text: str, secrets: Iterable[str]) -> list[str]:
    """Return those of the secrets that `text` holds, in whatever form."""
    return [secret for secret in secrets if any(form in text for form in _forms(secret))]


def _forms(secret: str) -> Iterator[str]:
    data = secret.encode()
    yield secret
    yield repr(secret)[1:-1]
    yield quote(secret, safe="").replace("-", "%2D")
    yield data.hex()
    for start in range(3):
        # Base64 of it, wherever it stands in a longer text.
        coded = base64.b64encode(bytes(start) + data).decode().rstrip("=")
        yield coded[4 if start else 0 : -2]


def run(trial: Trial, *, is_short: bool = False) -> None:
    for dialect in DIALECTS:
        for lane in "direct", "httpx":
            for level in ("DEBUG",) if is_short else LEVELS:
                _over(trial, dialect, lane, level, each=40 if is_short else 5)
    _bodies_are_logged_where_asked_for(trial)
    _alone(trial, levels=("DEBUG",) if is_short else ("DEBUG", "INFO", "WARNING", "ERROR"))


@contextmanager
def _log(level: str) -> Iterator[io.StringIO]:
    """All that any logger writes, but for httpcore's, which tells headers at DEBUG."""
    sink, root, own = io.StringIO(), logging.getLogger(), logging.getLogger("qwen_asgi")
    handler = logging.StreamHandler(sink)
    handler.addFilter(lambda record: not record.name.startswith("httpcore"))
    handler.setFormatter(logging.Formatter("%(name)s %(message)s %(args)s"))
    before, own_before = root.level, own.level
    root.addHandler(handler)
    root.setLevel(level)
    own.setLevel(level)
    try:
        yield sink
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        own.setLevel(own_before)


def _settings(dialect: str, up: str, **more: Any) -> Settings:
    its = {**upstream_settings(dialect, up, DIALECTS[dialect]), "api_key": UPSTREAM_SECRET}
    return Settings(
        **its,
        models=(MODEL,),
        client_keys=(CLIENT_SECRET,),
        headers={"x-extra": HEADER_SECRET, "cookie": COOKIE_SECRET},
        upload_hosts=(up,),
        first_timeout=0.1,
        idle_timeout=0.1,
        **more,
    )


def _echoes() -> Iterator[tuple[str, Fault]]:
    """Yield what an upstream says that repeats what it was sent."""
    said = f"authorization: Bearer {UPSTREAM_SECRET}, x-extra: {HEADER_SECRET}, {COOKIE_SECRET}"
    for status in 400, 401, 403, 404, 429, 500:
        yield f"{status} that repeats", Fault.status(status, said.encode(), "text/plain")
        document = json.dumps({"error": {"message": said, "code": UPSTREAM_SECRET}}).encode()
        cookie = {"set-cookie": COOKIE_SECRET, "x-extra": HEADER_SECRET}
        yield f"{status} that repeats as JSON", Fault.status(status, document, headers=cookie)
    yield "a failure that repeats", Fault.failure(UPSTREAM_SECRET, said)
    for index in range(3):
        yield "a frame that repeats", Fault.error_frame(index, UPSTREAM_SECRET, said)


def _chats() -> Iterator[tuple[str, dict[str, Any]]]:
    data = base64.b64encode(b"\x89PNG\r\n\x1a\n" + FILE).decode()
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    for stream in False, True:
        yield f"chat stream={stream}", ask(PROMPT, stream=stream)
        yield (
            f"picture stream={stream}",
            ask(messages=[{"role": "user", "content": [picture]}], stream=stream),
        )
    yield "wrong", ask(PROMPT, temperature=PROMPT)
    yield "unknown model", ask(PROMPT, model="x")
    yield "wrong message", ask(messages=[{"role": PROMPT, "content": PROMPT}])


def _faults() -> Iterator[tuple[str, Fault]]:
    """Yield those in which an upstream says something that an error or the log may repeat."""
    for status in (301, 307, 400, 401, 403, 404, 408, 413, 422, 429, 500, 502, 503, 504):
        elsewhere = {"location": "http://127.0.0.1:9/"}
        yield f"{status} without a body", Fault.status(status, headers=elsewhere)
        yield f"{status} with text", Fault.status(status, b"no", "text/plain", elsewhere)
        yield f"{status} with JSON", Fault.status(status, b'{"error":{"message":"no"}}')
    for status in 200, 403, 405, 503:
        yield f"block page {status}", Fault.block_page(status)
    yield "human check", Fault.human_check()
    yield "garbage", Fault.garbage()
    yield "empty", Fault.empty()
    for code in "RateLimited", "Internal_Server_Error", "Not_Found", "x":
        yield f"failure {code}", Fault.failure(code, "no")
        for index in range(3):
            yield f"error frame {index} {code}", Fault.error_frame(index, code, "no")
    for frames in None, 0, 1:
        yield f"stall after {frames}", Fault.stall(frames)
    for size in range(0, 1000, 97):
        yield f"cut at byte {size}", Fault.truncate(size)


def _over(trial: Trial, dialect: str, lane: str, level: str, *, each: int) -> None:
    qwen = SimulatedQwen(api_key=UPSTREAM_SECRET, reply=ANSWER)
    client = httpx.AsyncClient(trust_env=False) if lane == "httpx" else None
    with serve(qwen) as up, _log(level) as log:
        settings = _settings(dialect, up)
        gateway = Gateway(settings, http_client=client)
        with served(gateway, client) as app, httpx.Client(trust_env=False, timeout=30) as http:
            upstream_faults = [*list(_faults())[::each], *_echoes()]
            for name, fault in [("none", None), *upstream_faults]:
                for chat, body in _chats() if fault is None else list(_chats())[:3:2]:
                    if fault is not None:
                        qwen.fail(fault)
                    what = f"{dialect} {lane} {level} {name} {chat}"
                    response = http.post(app.url + CHAT, json=body, headers=KEY)
                    _check_answer(trial, response, what)
                    qwen._faults.clear()
            _ask_all_routes(trial, http, app.url, f"{dialect} {lane} {level}")
            _send_raw(app.url)
        shown = [repr(settings), str(settings), settings.model_dump_json(), repr(gateway)]
        shown.append(repr(vars(gateway)))
        trial.check(not found_in(" ".join(shown), CREDENTIALS), f"{dialect}: shown of settings")
        told = log.getvalue()
        is_used = level in ("ERROR", "CRITICAL") or told
        trial.check(is_used, f"{dialect} {lane} {level}: nothing was logged")
        for secret in found_in(told, (*CREDENTIALS, *WORDS)):
            at = told.find(secret)
            trial.check(
                False, f"{dialect} {lane} {level}: the log holds {told[at - 150 : at + 40]!r}"
            )
        _check_upstream(trial, qwen, f"{dialect} {lane}")


def _check_answer(trial: Trial, response: httpx.Response, what: str) -> None:
    written = f"{response.status_code} {response.headers!r} {response.text}"
    # A client's own words may come back to it in an answer, but not in an error.
    words = WORDS if response.status_code != 200 else (FILE.decode(),)
    found = found_in(written, (*CREDENTIALS, *words))
    trial.check(not found, f"{what}: {found} in {written[:300]}")


def _check_upstream(trial: Trial, qwen: SimulatedQwen, what: str) -> None:
    """Nothing but what is for it reaches the upstream: of a client its words, and no header."""
    trial.check(any(PROMPT in str(request.body) for request in qwen.requests), f"{what}: no chat")
    for request in qwen.requests:
        received = f"{request.path} {dict(request.headers)} {request.raw!r}"
        found = found_in(received, (CLIENT_SECRET, OWN_SECRET))
        trial.check(not found, f"{what}: {found} reached the upstream at {request.path}")
        if request.method == "PUT":
            found = found_in(str(dict(request.headers)), CREDENTIALS)
            trial.check(not found, f"{what}: {found} reached the storage")


def _ask_all_routes(trial: Trial, http: httpx.Client, url: str, what: str) -> None:
    wrong = {"authorization": f"Bearer x{CLIENT_SECRET}"}
    for method in "GET", "HEAD", "OPTIONS", "POST", "DELETE":
        for path in CHAT, "/v1/models", "/v1/models/nothing", "/healthz", "/readyz", "/nothing":
            for headers in KEY, wrong, {"authorization": CLIENT_SECRET}, {"x-own": OWN_SECRET}:
                response = http.request(method, url + path, headers=headers)
                _check_answer(trial, response, f"{what} {method} {path}")


def _send_raw(url: str) -> None:
    """Send what is hardly a request, with a key, and leave."""
    for row in [*HEADERS[-14:], *FIRST_LINES]:
        head = f"host: g\r\nauthorization: Bearer {CLIENT_SECRET}\r\n".encode()
        with connect(url) as connection:
            connection.sendall(row.data.replace(b"host: gateway\r\n", head))
    with connect(url) as connection:
        body = json.dumps(ask(PROMPT)).encode()
        connection.sendall(http_bytes(body, authorization=KEY["authorization"])[:-20])


def _bodies_are_logged_where_asked_for(trial: Trial) -> None:
    """So it shows that the search finds what is there; files and keys are not, even then."""
    qwen = SimulatedQwen(api_key=UPSTREAM_SECRET, reply=ANSWER)
    with serve(qwen) as up, _log("DEBUG") as log:
        settings = _settings("qwen-web-v2", up, log_bodies=True)
        with served(Gateway(settings)) as app, httpx.Client(trust_env=False) as http:
            for _, body in _chats():
                http.post(app.url + CHAT, json=body, headers=KEY)
        told = log.getvalue()
        trial.check(PROMPT in told, "bodies were to be logged, and are not")
        found = found_in(told, (*CREDENTIALS, ANSWER))
        trial.check(not found, f"with bodies logged: {found}")


def _alone(trial: Trial, levels: Iterable[str]) -> None:
    """The program of its own: its console, its log file, and what `check` prints."""
    qwen = SimulatedQwen(api_key=UPSTREAM_SECRET, reply=ANSWER)
    with tempfile.TemporaryDirectory() as place, serve(qwen) as up:
        for level in levels:
            folder = Path(place) / level
            folder.mkdir()
            told = {
                "QWEN_API_KEY": UPSTREAM_SECRET,
                "QWEN_BASE_URL": up,
                "QWEN_CLIENT_KEYS": CLIENT_SECRET,
                "QWEN_HEADERS": json.dumps({"x-extra": HEADER_SECRET, "cookie": COOKIE_SECRET}),
                "QWEN_LOG_BODIES": "false",
                "QWEN_LOG_LEVEL": level,
                "HTTP_PROXY": f"http://user:{PROXY_SECRET}@127.0.0.1:9",
                "NO_PROXY": "127.0.0.1",
            }
            command = [*QWEN_ASGI, "--port", "0"]
            # Only from INFO on it says where it listens.
            if level in ("DEBUG", "INFO"):
                with running(command, folder, **told) as program:
                    with httpx.Client(trust_env=False, timeout=30) as http:
                        for name, fault in [("none", None), *_echoes()]:
                            if fault is not None:
                                qwen.fail(fault)
                            for chat, body in list(_chats())[:: 3 if fault else 1]:
                                response = http.post(program.url + CHAT, json=body, headers=KEY)
                                _check_answer(trial, response, f"alone {level} {name} {chat}")
                            qwen._faults.clear()
                    program.end()
                    written = program.output + (folder / "chat_api.log").read_text()
                _check_program(trial, written, f"alone {level}")
                trial.check("chat req-" in written, f"alone {level}: no chat was logged")
            checked = run_command([*QWEN_ASGI, "check"], folder, **told)
            _check_program(trial, checked.stdout + checked.stderr, f"check {level}")
            wrong = {**told, "QWEN_HEADERS": HEADER_SECRET, "HTTP_PROXY": f"x://{PROXY_SECRET} "}
            refused = run_command([*QWEN_ASGI, "check"], folder, **wrong)
            _check_program(trial, refused.stdout + refused.stderr, f"wrong settings {level}")


def _check_program(trial: Trial, written: str, what: str) -> None:
    found = found_in(written, (*CREDENTIALS, *WORDS, PROXY_SECRET))
    trial.check(written and not found, f"{what}: {found or 'nothing'} was written")
