"""Every fault of an upstream, over each dialect and lane, plain and streamed."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx

from qwen_asgi import Gateway, Settings, anonymous
from qwen_asgi.testing import Fault, SimulatedQwen, serve
from qwen_asgi.testing.answers import Answer
from tests.conftest import CHAT, DIALECTS, MODEL, ask, error_of, stream_of
from tests.hardening.trial import (
    Served,
    Trial,
    check_that_nothing_is_left,
    served,
    upstream_settings,
)
from tests.schemas import check_answer

REPLY = "Hello, 世界: it is 7."
STATUSES = (301, 302, 307, 400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504)
HUGE = 50_000_000


def faults(step: int) -> Iterator[tuple[str, Fault]]:
    """Yield all of them; a stream is cut at every `step` bytes."""
    for status in STATUSES:
        elsewhere = {"location": "http://127.0.0.1:9/"}
        yield f"{status} without a body", Fault.status(status, headers=elsewhere)
        yield f"{status} with text", Fault.status(status, b"no", "text/plain", elsewhere)
        yield f"{status} with JSON", Fault.status(status, b'{"error":{"message":"no"}}')
    for status in 200, 403, 405, 503:
        yield f"block page {status}", Fault.block_page(status)
    yield "human check", Fault.human_check()
    yield "human check as events", Fault.human_check("text/event-stream")
    documents: tuple[Any, ...] = (None, 1, "x", [], {}, {"choices": []}, {"code": "x"}, {"data": 0})
    for document in documents:
        yield f"bare {document!r}", Fault.bare_json(document)
    yield "garbage", Fault.garbage()
    yield "empty", Fault.empty()
    yield "drip", Fault.drip()
    for code in "RateLimited", "Internal_Server_Error", "Not_Found", "x":
        yield f"failure {code}", Fault.failure(code, "no")
        for index in range(6):
            yield f"error frame {index} {code}", Fault.error_frame(index, code, "no")
    for frames in None, 0, 1, 3:
        yield f"stall after {frames}", Fault.stall(frames)
    yield "gzip that was not asked for", Fault("gzip", _packed)
    yield "gzip that is none", Fault("no gzip", _not_packed)
    yield "a frame of 50 MB", Fault("huge", _huge)
    for size in range(0, 4000, step):
        yield f"cut at byte {size}", Fault.truncate(size)


def _packed(answer: Answer) -> Answer:
    body = gzip.compress(b"".join(answer.frames))
    headers = {**answer.headers, "content-encoding": "gzip"}
    return replace(answer, headers=headers, steps=[body])


def _not_packed(answer: Answer) -> Answer:
    return replace(answer, headers={**answer.headers, "content-encoding": "gzip"})


def _huge(answer: Answer) -> Answer:
    return replace(answer, steps=[b'data: {"x": "', b"y" * HUGE, b'"}\n\n'])


def run(trial: Trial, *, step: int = 1) -> None:
    for lane in "direct", "httpx":
        for dialect in DIALECTS:
            _over(trial, lane, dialect, step)


def _over(trial: Trial, lane: str, dialect: str, step: int) -> None:
    qwen = SimulatedQwen(api_key="k", reply=REPLY, pieces=2)
    with serve(qwen) as up:
        settings = Settings(
            **upstream_settings(dialect, up, DIALECTS[dialect]),
            models=(MODEL,),
            first_timeout=0.1,
            idle_timeout=0.1,
        )
        client = httpx.AsyncClient(trust_env=False) if lane == "httpx" else None
        gateway = Gateway(settings, http_client=client, authenticate=anonymous)
        with served(gateway, client) as app, httpx.Client(trust_env=False, timeout=30) as http:
            _meet(trial, app, http, None, f"{lane} {dialect} no fault")
            before = app.tasks()
            for name, fault in faults(step):
                for stream in False, True:
                    # One stays if its chat met what the one before had done to the connection.
                    qwen._faults.clear()
                    qwen.fail(fault)
                    _meet(trial, app, http, stream, f"{lane} {dialect} {name} stream={stream}")
            check_that_nothing_is_left(trial, app, qwen, before)
            qwen._faults.clear()
            _meet(trial, app, http, None, f"{lane} {dialect} after all faults")


def _meet(trial: Trial, app: Served, http: httpx.Client, stream: bool | None, what: str) -> None:
    """Ask, and look at what came; `stream` None is an answer that must be right."""
    try:
        response = http.post(app.url + CHAT, json=ask(stream=bool(stream)))
        if stream is None and response.status_code == 500:
            # A connection that the upstream has just closed may be met once.
            response = http.post(app.url + CHAT, json=ask())
        is_right = _is_right(response, bool(stream), must_be=stream is None)
    except (AssertionError, httpx.HTTPError, ValueError) as exc:
        trial.check(False, f"{what}: {type(exc).__name__} {exc}"[:300])
    else:
        trial.check(is_right, f"{what}: {response.status_code} {response.text[:200]}")


def _is_right(response: httpx.Response, stream: bool, *, must_be: bool) -> bool:
    """Whether it is an answer that is whole, or an error that says so."""
    if response.status_code != 200:
        error = error_of(response, response.status_code)
        is_ours = error["type"] != "internal_error" and error["code"] != "internal_error"
        return not must_be and is_ours and response.status_code in (400, 403, 429, 500, 503)
    if not stream:
        document = response.json()
        check_answer(document)
        return bool(document["choices"][0]["message"]["content"] == REPLY)
    read = stream_of(response.content)
    if read.is_whole:
        return read.text == REPLY
    return read.is_broken_off and REPLY.startswith(read.text)
