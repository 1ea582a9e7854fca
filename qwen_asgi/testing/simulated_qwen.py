"""The simulated upstream itself. W1 numbers are those of the wire notes."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from qwen_asgi.testing.answers import (
    EVENT_STREAM,
    Answer,
    dump,
    failed_answer,
    frame,
    play,
    slices,
    whole_answer,
)
from qwen_asgi.testing.faults import SIMULATIONS, UNAUTHORIZED, Fault

MODELS = (
    "qwen-max-latest",
    "qwen2.5-14b-instruct-1m",
    "qvq-72b-preview",
    "qwen-plus-latest",
    "qwen2.5-vl-72b-instruct",
)
THINKING = "The user says something; a short and friendly answer will do."
DONE = b"data: [DONE]\n\n"
SEARCH_FRAME = (
    b'data: {"choices": [{"delta": {"role": "function", "content": "", "name": "web_search", '
    b'"extra": {"web_search_info": [{"url": "https://example.org/a", "title": "Result A", '
    b'"snippet": "First snippet", "hostname": "example.org", '
    b'"hostlogo": "https://example.org/favicon.ico", "date": " (2025-02-20)"}, '
    b'{"url": "https://example.com/b", "title": "Result B", "snippet": "Second snippet", '
    b'"hostname": null, "hostlogo": null, "date": ""}]}}}]}\n\n'
)

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
            await play(fault.change(answer) if fault else answer, receive, send)
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

    def _answer(self, request: RecordedRequest) -> Answer:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token or self.api_key not in (None, token):
            return whole_answer(UNAUTHORIZED, status=401)
        match request.method, request.path:
            case "POST", "/api/chat/completions":
                return self._completion(request.body)
            case "GET", "/api/models":
                return whole_answer(dump({"data": [_model(name) for name in self.models]}))
        return whole_answer(dump({"detail": "Not Found"}), status=404)

    def _completion(self, body: Any) -> Answer:
        match body:
            case {"model": str(model), "messages": [*_, {}]}:
                if model not in self.models:
                    return failed_answer("Not_Found", "Model not found")
            case _:
                return failed_answer(
                    "Bad_Request", "Invalid input: model and messages are required."
                )
        text = _last_user_text(body)
        answer = self._reply_to(body, text)
        name = text.removeprefix("simulate: ")
        return SIMULATIONS[name].change(answer) if name != text and name in SIMULATIONS else answer

    def _reply_to(self, body: Mapping[str, Any], text: str) -> Answer:
        reply = self.reply(body) if callable(self.reply) else self.reply
        if reply is None:
            reply = _friendly_reply(text)
        parts = [(phase, self._cut(text)) for phase, text in self._phases(body, reply)]
        if body.get("stream") is True:
            headers = {"content-type": EVENT_STREAM}
            return Answer(headers=headers, steps=self._stream(body, parts), pace=self.pace)
        message = {"role": "assistant", "content": "".join(parts[-1][1])}
        tokens = sum(len(pieces) for _, pieces in parts)
        usage = self._usage(_input_tokens(body), tokens)
        return whole_answer(dump({"choices": [{"message": message}], **usage}))

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
        return self.pieces(text) if callable(self.pieces) else list(slices(text, self.pieces))

    def _stream(self, body: Mapping[str, Any], parts: list[_Part]) -> Iterator[bytes]:
        # Programs that search say so on the body and on the last message.
        if body.get("chat_type") == body["messages"][-1].get("chat_type") == "search":
            yield SEARCH_FRAME
        cumulative = self.ignore_incremental or body.get("incremental_output") is not True
        input_tokens = _input_tokens(body)
        for delta, tokens in _deltas(parts, cumulative):
            yield frame({"choices": [{"delta": delta}], **self._usage(input_tokens, tokens)})
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


async def _record(scope: Scope, receive: Receive) -> RecordedRequest:
    request = Request(scope, receive)
    raw = await request.body()
    try:
        body = from_json(raw)
    except ValueError:
        body = None
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return RecordedRequest(request.method, path, request.headers, body, raw)


async def _lifespan(receive: Receive, send: Send) -> None:
    for moment in "startup", "shutdown":
        await receive()
        await send({"type": f"lifespan.{moment}.complete"})


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
