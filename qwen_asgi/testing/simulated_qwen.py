"""The simulated upstream itself, in all its dialects, each at its own paths.

W1 and W2 numbers are those of the wire notes.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from pydantic_core import from_json
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from qwen_asgi.testing import openai_shaped, web, web_v1
from qwen_asgi.testing.answers import Answer, dump, play, slices, whole_answer
from qwen_asgi.testing.faults import SIMULATIONS, Fault
from qwen_asgi.testing.replies import (
    Reply,
    friendly_reply,
    input_tokens,
    last_user_text,
    words,
)
from qwen_asgi.testing.storage import BUCKET, Storage, UploadStep
from qwen_asgi.testing.web_v2 import Chats, completion

MODELS = (
    "qwen-max-latest",
    "qwen2.5-14b-instruct-1m",
    "qvq-72b-preview",
    "qwen-plus-latest",
    "qwen2.5-vl-72b-instruct",
)
THINKING = "The user says something; a short and friendly answer will do."

MODEL_STUDIO = "/compatible-mode/v1"
OPENAI = "/v1"
"""Where `base_url` of these two leads; the web chat's is the simulator's own address."""


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
    query: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_chat(self) -> bool:
        """Whether it asks for an answer, in whatever dialect."""
        return self.path.endswith("/chat/completions")


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
        tool_calls: Sequence[tuple[str, str]] = (),
        candidates: int = 1,
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
        """Whether generation 1 sends snapshots although new pieces only were asked for."""
        self.tool_calls = tool_calls
        """Names and JSON arguments of the tools that are called where tools are offered."""
        self.candidates = candidates
        """Wordings of an answer in one stream of generation 2 (W2-55)."""
        self.chats = Chats()
        """Generation 2's stored chats."""
        self.storage = Storage()
        """The files that were uploaded, of both generations."""
        self.requests: deque[RecordedRequest] = deque(maxlen=1000)
        """What came in, newest last."""
        self.open = 0
        """Answers under way now."""
        self.hung_up = 0
        """Answers whose client left before their end."""
        self._faults: deque[Fault] = deque()
        self._faults_around: deque[Fault] = deque()
        self._faults_of_uploads: dict[str, deque[Fault]] = {
            step: deque() for step in get_args(UploadStep)
        }
        self._changed = threading.Condition()

    def __repr__(self) -> str:
        return (
            f"<SimulatedQwen: {len(self.requests)} requests, {self.open} open, "
            f"{self.hung_up} hung up, {len(self._faults)} faults to come>"
        )

    def fail(
        self,
        *faults: Fault,
        times: int = 1,
        around: bool = False,
        upload: UploadStep | None = None,
    ) -> None:
        """Let the next requests meet these faults, one each, and that `times` over.

        `around` is for the calls of generation 2 that make, stop and remove a chat, `upload` names
        one of those that bring a file; the others do not meet these, nor these the others.
        """
        with self._changed:
            if upload is not None:
                self._faults_of_uploads[upload].extend(faults * times)
            else:
                (self._faults_around if around else self._faults).extend(faults * times)

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
            is_around = request.path.startswith(("/api/v2/chats/", "/api/v2/chat/completions/stop"))
            faults = self._faults_around if is_around else self._faults
            if step := _upload_step(request):
                faults = self._faults_of_uploads[step]
            return faults.popleft() if faults else None

    def _end(self, left: bool) -> None:
        with self._changed:
            self.open -= 1
            self.hung_up += left
            self._changed.notify_all()

    def _answer(self, request: RecordedRequest) -> Answer:
        step = _upload_step(request)
        if step == "put":
            # The storage is a house of its own: it knows tickets, and no bearer.
            return self.storage.put(request.path, request.headers, request.raw)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token or self.api_key not in (None, token):
            is_web = request.path.startswith("/api/")
            refused = whole_answer(web.UNAUTHORIZED, status=401)
            return refused if is_web else openai_shaped.unauthorized()
        if step is not None:
            return self._upload(step, request)
        path, body = request.path, request.body
        match request.method, path:
            case "POST", "/api/chat/completions":
                return self._completion_v1(body)
            case "GET", "/api/models":
                return whole_answer(dump({"data": web.models(self.models)}))
            case "GET", "/api/v2/models/":
                return web.succeeded({"data": web.models(self.models)})
            case "POST", "/api/v2/chats/new":
                return self.chats.new(body, self.models)
            case "POST", "/api/v2/chat/completions":
                return self._completion_v2(request.query.get("chat_id", ""), body)
            case "POST", "/api/v2/chat/completions/stop":
                return self.chats.stop(body)
            case "DELETE", _ if path.startswith("/api/v2/chats/"):
                return self.chats.remove(path.removeprefix("/api/v2/chats/"))
            case "POST", "/compatible-mode/v1/chat/completions" | "/v1/chat/completions":
                return self._completion_openai(body, is_model_studio=not path.startswith(OPENAI))
            case "GET", "/compatible-mode/v1/models" | "/v1/models":
                return openai_shaped.models(self.models)
        return whole_answer(dump({"detail": "Not Found"}), status=404)

    def _upload(self, step: UploadStep, request: RecordedRequest) -> Answer:
        match step:
            case "multipart":
                return self.storage.take_form(request.headers["content-type"], request.raw)
            case "ticket":
                host, wrapped = request.headers["host"], request.path.startswith("/api/v2/")
                return self.storage.give_ticket(request.body, host, wrapped=wrapped)
            case "parse":
                return self.storage.parse(request.body)
        return self.storage.parse_status(request.body)

    def _completion_v1(self, body: Any) -> Answer:
        match body:
            case {"model": str(model), "messages": [*_, {}]}:
                if model not in self.models:
                    return web.failed("Not_Found", "Model not found")
                return self._simulated(body, web_v1.completion(body, self._reply(body)))
        return web.failed("Bad_Request", "Invalid input: model and messages are required.")

    def _completion_v2(self, chat_id: str, body: Any) -> Answer:
        refused = self.chats.refusal(chat_id, body, self.models)
        refused = refused or self.storage.refusal(body["messages"][0])
        if refused is not None:
            return refused
        answer = completion(chat_id, body, self._reply(body))
        return self._simulated(body, replace(answer, steps=self.chats.busy(chat_id, answer.steps)))

    def _completion_openai(self, body: Any, *, is_model_studio: bool) -> Answer:
        refused = openai_shaped.refusal(body, self.models, is_model_studio=is_model_studio)
        if refused is not None:
            return refused
        return self._simulated(body, openai_shaped.completion(body, self._reply(body)))

    def _simulated(self, body: Mapping[str, Any], answer: Answer) -> Answer:
        """Return the answer, changed if the last user text asks for a fault."""
        text = last_user_text(body["messages"])
        name = text.removeprefix("simulate: ")
        return SIMULATIONS[name].change(answer) if name != text and name in SIMULATIONS else answer

    def _reply(self, body: Mapping[str, Any]) -> Reply:
        reply = self.reply(body) if callable(self.reply) else self.reply
        if reply is None:
            reply = friendly_reply(last_user_text(body["messages"]))
        return Reply(
            thinking=self._cut(self.thinking),
            text=self._cut(reply),
            tool_calls=self.tool_calls,
            prompt_tokens=input_tokens(body["messages"]),
            counts=self.usage,
            says_done=self.done,
            is_cumulative=self.ignore_incremental,
            candidates=self.candidates,
            pace=self.pace,
        )

    def _cut(self, text: str) -> list[str]:
        if self.pieces is None:
            return words(text)
        return self.pieces(text) if callable(self.pieces) else list(slices(text, self.pieces))


_UPLOADS: Mapping[str, UploadStep] = {
    "/api/v1/files/": "multipart",
    "/api/v1/files/getstsToken": "ticket",
    "/api/v2/files/getstsToken": "ticket",
    "/api/v2/files/parse": "parse",
    "/api/v2/files/parse/status": "parse_status",
}


def _upload_step(request: RecordedRequest) -> UploadStep | None:
    """Return which call of an upload a request is; None if it is none."""
    if request.method == "PUT":
        return "put" if request.path.startswith(f"/{BUCKET}/") else None
    return _UPLOADS.get(request.path) if request.method == "POST" else None


async def _record(scope: Scope, receive: Receive) -> RecordedRequest:
    request = Request(scope, receive)
    raw = await request.body()
    try:
        body = from_json(raw)
    except ValueError:
        body = None
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    query = dict(QueryParams(scope.get("query_string", b"")))
    return RecordedRequest(request.method, path, request.headers, body, raw, query)


async def _lifespan(receive: Receive, send: Send) -> None:
    for moment in "startup", "shutdown":
        await receive()
        await send({"type": f"lifespan.{moment}.complete"})
