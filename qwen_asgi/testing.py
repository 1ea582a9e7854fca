"""A simulated Qwen web chat that can be told to fail, and a thread that serves any ASGI app.

    qwen = SimulatedQwen(reply="2")
    with serve(qwen) as url:
        ...  # point the gateway at `url`, then look at `qwen.requests`

It speaks generation 1 as public programs read it from January to May 2025. W1 and WE are the
numbers of those facts in `wire/qwen-web.md`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, AnyStr, Literal
from uuid import uuid4

import uvicorn
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

JSON: Literal["application/json"] = "application/json"
EVENT_STREAM: Literal["text/event-stream"] = "text/event-stream"

MODELS = (
    "qwen-max-latest",
    "qwen2.5-14b-instruct-1m",
    "qvq-72b-preview",
    "qwen-plus-latest",
    "qwen2.5-vl-72b-instruct",
)
THINKING = "The user says something; a short and friendly answer will do."
DONE = b"data: [DONE]\n\n"
UNAUTHORIZED = b'{"detail": "401 Unauthorized"}\n'
RATE_LIMITED = (
    b'{"code": "RateLimited", "detail": "You\'ve reached the upper limit for today\'s usage.", '
    b'"template": "You have reached the daily usage limit. Please wait {{num}} hours before '
    b'trying again.", "num": 4}\n'
)
BLOCK_PAGE = (
    b'<!doctypehtml><html lang="zh-cn"><head><meta charset="utf-8"><meta name="aliyun_waf_aa" '
    b'content="00000000000000000000000000000000"><title></title></head><body><noscript>Please '
    b"enable JavaScript.</noscript><script>/* challenge removed */</script></body></html>\n"
)
HUMAN_CHECK = (
    '{"ret":["FAIL_SYS_USER_VALIDATE","RGV587_ERROR::SM::哎哟喂,被挤爆啦,请稍后重试"],"data":{"url":'
    '"https://chat.example.invalid/api/v2/chat/completions/_____tmd_____/punish'
    '?x5secdata=EXAMPLE&action=captcha"}}'
).encode()
SEARCH_FRAME = (
    b'data: {"choices": [{"delta": {"role": "function", "content": "", "name": "web_search", '
    b'"extra": {"web_search_info": [{"url": "https://example.org/a", "title": "Result A", '
    b'"snippet": "First snippet", "hostname": "example.org", '
    b'"hostlogo": "https://example.org/favicon.ico", "date": " (2025-02-20)"}, '
    b'{"url": "https://example.com/b", "title": "Result B", "snippet": "Second snippet", '
    b'"hostname": null, "hostlogo": null, "date": ""}]}}}]}\n\n'
)
GARBAGE = b"\x1f\x8b\x08\x00\xff\xfe\x00\xc3\x28\n\x80\x81 not an event\n\n\xf0\x9f"

_Part = tuple[str | None, list[str]]
"""One phase of an answer, None where phases were not asked for, and the pieces of its text."""


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request as it came in."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Found by name in any case."""
    body: Any
    """The JSON document; None when `raw` is none."""
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What goes out for one request."""

    status: int = 200
    headers: Mapping[str, str]
    steps: Iterable[bytes | float]
    """Frames, or the whole body of what is no stream; a number is a silence, in seconds."""
    pace: float = 0.0
    """Seconds between two frames."""
    delay: float = 0.0
    """Seconds before the headers."""
    complete: bool = True
    """Whether the end of the body is said; otherwise the connection is cut."""

    @property
    def is_stream(self) -> bool:
        return self.headers["content-type"] == EVENT_STREAM

    @property
    def frames(self) -> Iterator[bytes]:
        return (step for step in self.steps if isinstance(step, bytes))


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one answer; the class methods make them.

    `empty`, `error_frame`, `truncate`, `stall` and `drip` change the answer that the request would
    have had; the others stand in its place, whatever was asked for.
    """

    name: str
    change: Callable[[_Answer], _Answer] = field(repr=False)

    @classmethod
    def status(
        cls,
        code: int,
        body: bytes = b"",
        content_type: str = JSON,
        headers: Mapping[str, str] | None = None,
    ) -> Fault:
        """Answer with this HTTP status (WE-07, WE-09, WE-17), `headers` beside the usual ones."""
        return cls._instead(f"status {code}", _whole(body, content_type, code, headers))

    @classmethod
    def failure(cls, code: str, details: str, **extra: Any) -> Fault:
        """Say no with HTTP 200 and `success: false` (WE-01); `extra` stands beside `code`."""
        return cls._instead(f"failure {code}", _failure(code, details, **extra))

    @classmethod
    def block_page(cls, status: int = 200) -> Fault:
        """Answer with the HTML of the site's filter (WE-13), which comes with 200 or 5xx."""
        return cls._instead("block page", _whole(BLOCK_PAGE, "text/html", status))

    @classmethod
    def human_check(
        cls, content_type: Literal["application/json", "text/event-stream"] = JSON
    ) -> Fault:
        """Ask for a human (WE-14), with 200 and JSON that may be labelled as an event stream."""
        return cls._instead("human check", _whole(HUMAN_CHECK, content_type))

    @classmethod
    def bare_json(cls, document: Any) -> Fault:
        """Answer 200 with a JSON document labelled as an event stream, without `data:`."""
        return cls._instead("bare JSON", _whole(_dump(document), EVENT_STREAM))

    @classmethod
    def garbage(cls) -> Fault:
        """Answer 200 with bytes that are no events, no JSON and no UTF-8, labelled as events."""
        return cls._instead("garbage", _whole(GARBAGE, EVENT_STREAM))

    @classmethod
    def empty(cls) -> Fault:
        """Answer 200 without a byte of body (WE-15), labelled as the answer would have been."""
        return cls("empty", lambda answer: _whole(b"", answer.headers["content-type"]))

    @classmethod
    def error_frame(cls, after_frames: int, code: str, details: str) -> Fault:
        """End the stream with an error object (WE-11) after that many whole frames.

        An answer that is no stream becomes a `failure`.
        """

        def change(answer: _Answer) -> _Answer:
            if not answer.is_stream:
                return _failure(code, details)
            error = _frame({"error": {"code": code, "details": details}})
            return replace(answer, steps=chain(islice(answer.steps, after_frames), [error]))

        return cls(f"error frame {code}", change)

    @classmethod
    def truncate(cls, after_bytes: int | None = None) -> Fault:
        """Cut the connection within the body; needs a real socket.

        `after_bytes` of the body still go out, None is half of it; its last byte never does.
        """

        def change(answer: _Answer) -> _Answer:
            frames = list(answer.frames)
            size = sum(map(len, frames))
            limit = size // 2 if after_bytes is None else min(after_bytes, size - 1)
            return replace(answer, steps=_first_bytes(frames, limit), complete=False)

        return cls("truncate", change)

    @classmethod
    def stall(cls, after_frames: int | None = 0, seconds: float = 3600.0) -> Fault:
        """Fall silent for `seconds` after that many frames, then go on; None is before the headers.

        With more frames than there are, the silence is before the end of the body. An answer that
        is no stream falls silent before its body.
        """

        def change(answer: _Answer) -> _Answer:
            if after_frames is None:
                return replace(answer, delay=seconds)
            steps = iter(answer.steps)
            before = islice(steps, after_frames if answer.is_stream else 0)
            return replace(answer, steps=chain(before, [seconds], steps))

        return cls("stall", change)

    @classmethod
    def drip(cls, bytes_per_piece: int = 1, pause: float = 0.0) -> Fault:
        """Send the body in pieces of that many bytes, `pause` seconds between them."""

        def change(answer: _Answer) -> _Answer:
            pieces = (piece for frame in answer.frames for piece in _slices(frame, bytes_per_piece))
            return replace(answer, steps=pieces, pace=pause)

        return cls("drip", change)

    @classmethod
    def _instead(cls, name: str, answer: _Answer) -> Fault:
        return cls(name, lambda _: answer)


class SimulatedQwen:
    """The simulated upstream: an ASGI app for servers that run on asyncio.

    SimulatedQwen()                       Takes any bearer token and says something friendly.
    SimulatedQwen(reply="2", pieces=1)    Answers "2" to everything, one character a frame.
    SimulatedQwen(reply=answer_of)        Answers what the function returns for a request's body.

    The settings are attributes too, read anew for each request. A last user text of exactly
    `simulate: NAME`, NAME being a key of `SIMULATIONS`, meets that fault. Tests that look at `open`
    and `hung_up` call `wait_for`, since a client has its answer before the simulator has counted.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        models: Sequence[str] = MODELS,
        reply: str | Callable[[Mapping[str, Any]], str] | None = None,
        thinking: str = THINKING,
        pieces: Callable[[str], list[str]] | int | None = None,
        pace: float = 0.0,
        done: bool = True,
        usage: bool = True,
        ignore_incremental: bool = False,
    ) -> None:
        self.api_key = api_key
        """The right bearer token; None lets in any that is not empty."""
        self.models = models
        self.reply = reply
        """The answer, or what makes it of a request's body; None quotes the last user text."""
        self.thinking = thinking
        """What comes before the answer when a request asks for thinking."""
        self.pieces = pieces
        """How a text is cut into frames: a function, or characters a piece; None is by words.

        An empty piece is an empty frame, between cumulative frames too (W1-28).
        """
        self.pace = pace
        """Seconds between two frames."""
        self.done = done
        """Whether a stream ends with `data: [DONE]` (W1-27)."""
        self.usage = usage
        """Whether answers tell their usage (W1-26); it counts each piece as one token."""
        self.ignore_incremental = ignore_incremental
        """Whether streams are cumulative although new pieces only were asked for."""
        self.requests: deque[RecordedRequest] = deque(maxlen=1000)
        """What came in, newest last."""
        self.open = 0
        """Answers under way now."""
        self.hung_up = 0
        """Answers whose client left before their end."""
        self._faults: deque[Fault] = deque()
        self._changed = threading.Condition()

    def __repr__(self) -> str:
        return (
            f"<SimulatedQwen: {len(self.requests)} requests, {self.open} open, "
            f"{self.hung_up} hung up, {len(self._faults)} faults to come>"
        )

    def fail(self, *faults: Fault, times: int = 1) -> None:
        """Let the next requests meet these faults, one each, and that `times` over."""
        with self._changed:
            self._faults.extend(faults * times)

    def wait_for(self, predicate: Callable[[SimulatedQwen], object], timeout: float = 5.0) -> None:
        """Block until `predicate` of this object holds; for a thread other than the simulator's.

        Raises TimeoutError after `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: predicate(self), timeout):
                raise TimeoutError(f"not so within {timeout:g} seconds; at the end it was {self!r}")

    async def wait_until(
        self,
        predicate: Callable[[SimulatedQwen], object],
        timeout: float = 5.0,  # noqa: ASYNC109  # The same signature as `wait_for`.
    ) -> None:
        """Do as `wait_for`, but let the event loop run; `predicate` is called in another thread."""
        await asyncio.to_thread(self.wait_for, predicate, timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await _lifespan(receive, send)
        if scope["type"] != "http":
            raise NotImplementedError(f"the simulated Qwen does not speak {scope['type']}")
        try:
            request = await _record(scope, receive)
        except ClientDisconnect:
            return
        fault = self._begin(request)
        left = False
        try:
            answer = self._answer(request)
            await _play(fault.change(answer) if fault else answer, receive, send)
        except (ClientDisconnect, OSError):
            # A server of ASGI 2.4 raises OSError from `send` when the client is gone.
            left = True
        finally:
            self._end(left)

    def _begin(self, request: RecordedRequest) -> Fault | None:
        with self._changed:
            self.requests.append(request)
            self.open += 1
            self._changed.notify_all()
            return self._faults.popleft() if self._faults else None

    def _end(self, left: bool) -> None:
        with self._changed:
            self.open -= 1
            self.hung_up += left
            self._changed.notify_all()

    def _answer(self, request: RecordedRequest) -> _Answer:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token or self.api_key not in (None, token):
            return _whole(UNAUTHORIZED, status=401)
        match request.method, request.path:
            case "POST", "/api/chat/completions":
                return self._completion(request.body)
            case "GET", "/api/models":
                return _whole(_dump({"data": [_model(name) for name in self.models]}))
        return _whole(_dump({"detail": "Not Found"}), status=404)

    def _completion(self, body: Any) -> _Answer:
        match body:
            case {"model": str(model), "messages": [*_, {}]}:
                if model not in self.models:
                    return _failure("Not_Found", "Model not found")
            case _:
                return _failure("Bad_Request", "Invalid input: model and messages are required.")
        text = _last_user_text(body)
        answer = self._reply_to(body, text)
        name = text.removeprefix("simulate: ")
        return SIMULATIONS[name].change(answer) if name != text and name in SIMULATIONS else answer

    def _reply_to(self, body: Mapping[str, Any], text: str) -> _Answer:
        reply = self.reply(body) if callable(self.reply) else self.reply
        if reply is None:
            reply = _friendly_reply(text)
        parts = [(phase, self._cut(text)) for phase, text in self._phases(body, reply)]
        if body.get("stream") is True:
            headers = {"content-type": EVENT_STREAM}
            return _Answer(headers=headers, steps=self._stream(body, parts), pace=self.pace)
        message = {"role": "assistant", "content": "".join(parts[-1][1])}
        tokens = sum(len(pieces) for _, pieces in parts)
        usage = self._usage(_input_tokens(body), tokens)
        return _whole(_dump({"choices": [{"message": message}], **usage}))

    def _phases(self, body: Mapping[str, Any], reply: str) -> list[tuple[str | None, str]]:
        """Return the texts of an answer by phase (W1-24); without phases one text (W1-23)."""
        features = body["messages"][-1].get("feature_config")
        features = features if isinstance(features, dict) else {}
        thinking = self.thinking if features.get("thinking_enabled") is True else ""
        if features.get("output_schema") == "phase":
            return [("think", thinking), ("answer", reply)] if thinking else [("answer", reply)]
        return [(None, f"<think>{thinking}</think>{reply}" if thinking else reply)]

    def _cut(self, text: str) -> list[str]:
        if self.pieces is None:
            return _words(text)
        return self.pieces(text) if callable(self.pieces) else list(_slices(text, self.pieces))

    def _stream(self, body: Mapping[str, Any], parts: list[_Part]) -> Iterator[bytes]:
        # Programs that search say so on the body and on the last message.
        if body.get("chat_type") == body["messages"][-1].get("chat_type") == "search":
            yield SEARCH_FRAME
        cumulative = self.ignore_incremental or body.get("incremental_output") is not True
        input_tokens = _input_tokens(body)
        for delta, tokens in _deltas(parts, cumulative):
            yield _frame({"choices": [{"delta": delta}], **self._usage(input_tokens, tokens)})
        if self.done:
            yield DONE

    def _usage(self, input_tokens: int, output_tokens: int) -> dict[str, Any]:
        if not self.usage:
            return {}
        usage = {
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "total_tokens": input_tokens + output_tokens,
            "output_tokens_details": {"text_tokens": output_tokens},
            "input_tokens_details": {"text_tokens": input_tokens},
        }
        return {"usage": usage}


@contextmanager
def serve(
    app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0, **uvicorn_options: Any
) -> Iterator[str]:
    """Run `app` in uvicorn, in a thread of its own, and yield its base URL; port 0 is a free one.

    Raises OSError when the port is taken, and what the app raised when it does not start. Leaving
    gives open answers half a second, then cancels them. uvicorn logs nothing meanwhile, and neither
    does another one in this process: its loggers, which they share, stand at `critical`; with
    `log_level=None` they stay as they are. `uvicorn_options` (that, `http`,
    `timeout_graceful_shutdown` in seconds...) are those of `uvicorn.Config`.
    """
    startup_errors: list[BaseException] = []

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except BaseException as exc:
            if scope["type"] == "lifespan":
                startup_errors.append(exc)
            raise

    quiet = {"log_config": None, "log_level": "critical", "timeout_graceful_shutdown": 0.5}
    with (
        _levels_put_back("uvicorn.access", "uvicorn.asgi", "uvicorn.error"),
        socket.create_server((host, port)) as listener,
        ThreadPoolExecutor(1, "serve") as pool,
    ):
        server = _Server(uvicorn.Config(watched, **(quiet | uvicorn_options)))
        running = pool.submit(server.run, [listener])
        try:
            wait([server.ready, running], return_when=FIRST_COMPLETED)
            if not server.ready.done():
                raise startup_errors[0] if startup_errors else RuntimeError("the app did not start")
            yield f"http://{host}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
    running.result()


@contextmanager
def _levels_put_back(*names: str) -> Iterator[None]:
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


class _Server(uvicorn.Server):
    """uvicorn that says when it is ready and drops the connections that outlive it."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready: Future[None] = Future()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready.set_result(None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        # A connection whose client does not read stays open, and a socket would be left behind.
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)


async def _record(scope: Scope, receive: Receive) -> RecordedRequest:
    request = Request(scope, receive)
    raw = await request.body()
    try:
        body = from_json(raw)
    except ValueError:
        body = None
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return RecordedRequest(request.method, path, request.headers, body, raw)


async def _play(answer: _Answer, receive: Receive, send: Send) -> None:
    """Send an answer. Raises ClientDisconnect as soon as the client leaves.

    One pending `receive()` watches for that, in silences too.
    """
    leaving = asyncio.ensure_future(_departure(receive))

    async def silence(seconds: float) -> None:
        # With no seconds this still is a turn of the loop, in which a departure is seen.
        await asyncio.wait({leaving}, timeout=seconds)
        if leaving.done():
            raise ClientDisconnect

    try:
        await silence(answer.delay)
        headers = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        for number, step in enumerate(answer.steps):
            if not isinstance(step, bytes):
                await silence(step)
                continue
            if number:
                await silence(answer.pace)
            await send({"type": "http.response.body", "body": step, "more_body": True})
        if answer.complete:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        leaving.cancel()


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(receive: Receive, send: Send) -> None:
    for moment in "startup", "shutdown":
        await receive()
        await send({"type": f"lifespan.{moment}.complete"})


def _whole(
    body: bytes,
    content_type: str = JSON,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> _Answer:
    """Return an answer whose length its headers tell."""
    usual = {"content-type": content_type, "content-length": str(len(body))}
    return _Answer(status=status, headers=usual | dict(headers or {}), steps=(body,))


def _failure(code: str, details: str, **extra: Any) -> _Answer:
    data = {"code": code, "details": details, **extra}
    return _whole(_dump({"success": False, "request_id": str(uuid4()), "data": data}))


def _dump(document: Any) -> bytes:
    # The upstream writes a blank behind each comma and colon, as `json` does.
    return json.dumps(document, ensure_ascii=False).encode()


def _frame(chunk: Mapping[str, Any]) -> bytes:
    return b"data: %b\n\n" % _dump(chunk)


def _deltas(parts: list[_Part], cumulative: bool) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the deltas of an answer, each with the number of pieces so far.

    A part's last delta adds nothing: it is empty, or, in a cumulative stream without phases, the
    whole text once more.
    """
    count = 0
    for phase, pieces in parts:
        so_far = ""
        for piece in pieces:
            count += 1
            so_far += piece
            yield _delta(so_far if cumulative and piece else piece, phase, "typing"), count
        yield _delta(so_far if cumulative and phase is None else "", phase, "finished"), count


def _delta(content: str, phase: str | None, status: str) -> dict[str, Any]:
    delta = {"role": "assistant", "content": content}
    return delta if phase is None else {**delta, "phase": phase, "status": status}


def _input_tokens(body: Mapping[str, Any]) -> int:
    return sum(len(_words(_text(message))) for message in body["messages"])


def _words(text: str) -> list[str]:
    """Cut a text into words of up to twelve characters, or pairs of Chinese characters."""
    return re.findall(r"\s*[\u4e00-\u9fff]{1,2}|\s*[^\s\u4e00-\u9fff]{1,12}|\s+", text)


def _slices(whole: AnyStr, size: int) -> Iterator[AnyStr]:
    return (whole[start : start + size] for start in range(0, len(whole), size))


def _first_bytes(frames: Iterable[bytes], limit: int) -> Iterator[bytes]:
    for frame in frames:
        if limit > 0:
            yield frame[:limit]
        limit -= len(frame)


def _last_user_text(body: Mapping[str, Any]) -> str:
    for message in reversed(body["messages"]):
        match message:
            case {"role": "user"}:
                return _text(message)
    return ""


def _text(message: Any) -> str:
    """Return the text of a message, of parts each one's text (W1-04)."""
    match message:
        case {"content": str(text)}:
            return text
        case {"content": [*parts]}:
            return "\n".join(part["text"] for part in parts if _is_text(part))
    return ""


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def _friendly_reply(text: str) -> str:
    quoted = text if len(text) <= 80 else f"{text[:79]}…"
    if re.search(r"[\u4e00-\u9fff]", text):
        return f"你好！我是模拟的通义千问。你说的是：“{quoted}”"
    return f"Hello! This is the simulated Qwen. You said: “{quoted}”"


def _model(name: str) -> dict[str, Any]:
    """Return one entry of the model list (W1-35)."""
    capabilities = {"vision": "vl" in name or "qvq" in name, "document": True, "citations": True}
    meta = {
        "profile_image_url": "/static/favicon.png",
        "description": "simulated",
        "capabilities": capabilities,
        "short_description": "simulated",
        "max_context_length": 131072,
        "abilities": {ability: 1 for ability, present in capabilities.items() if present},
        "chat_type": ["t2t", "search", "artifacts"],
        "mcp": [],
        "modality": ["text"],
        "max_generation_length": 8192,
    }
    info = {
        "id": name,
        "user_id": "00000000-0000-4000-8000-000000000001",
        "base_model_id": None,
        "name": name,
        "meta": meta,
        "access_control": None,
        "is_active": True,
        "is_visitor_active": True,
        "updated_at": 1732711466,
        "created_at": 1732711466,
    }
    entry = {"id": name, "name": name, "object": "model", "owned_by": "openai"}
    return {**entry, "info": info, "preset": True, "action_ids": []}


SIMULATIONS: Mapping[str, Fault] = {
    "401": Fault.status(401, UNAUTHORIZED),
    "429": Fault.status(429, RATE_LIMITED),
    "500": Fault.status(500, b"Internal Server Error", "text/plain"),
    "block": Fault.block_page(),
    "truncate": Fault.truncate(),
    "stall": Fault.stall(after_frames=3),
    "drip": Fault.drip(pause=0.001),
    "empty": Fault.empty(),
}
"""What a last user text of `simulate: NAME` brings about, by that name.

`401`, `429` and `500` are HTTP statuses; `block` is the filter's page; `truncate` cuts the
connection in the middle; `stall` falls silent for an hour after three frames; `drip` sends a byte
each millisecond; `empty` sends no body.
"""
