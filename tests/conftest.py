"""What the tests of the running gateway share: servers on real sockets, and readers of answers.

Starting a server costs more than a request does, so one uvicorn for the simulated upstream and one
for the gateway serve the whole session, and each test puts its own app behind them. A test that is
about a server's own life starts one with `serve_app`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from qwen_asgi import Gateway, Settings, anonymous
from qwen_asgi.errors import UpstreamTimeout
from qwen_asgi.settings import SEED_MODELS
from qwen_asgi.testing import MODEL_STUDIO, OPENAI, SimulatedQwen, serve
from qwen_asgi.transports import UpstreamRequest, UpstreamResponse
from tests.schemas import check_answer, check_chunk, check_error

CHAT = "/v1/chat/completions"
MODEL = "qwen-max-latest"
UPSTREAM_KEY = "upstream-key"

DIALECTS = {
    "qwen-web-v1": "",
    "qwen-web-v2": "",
    "model-studio": MODEL_STUDIO,
    "openai": OPENAI,
}
"""The value of `upstream`, and where the simulated Qwen speaks it."""


@pytest.fixture
def anyio_backend() -> str:
    """The gateway's relay is asyncio's; trio is not promised."""
    return "asyncio"


class Stage:
    """One server, behind which each test puts an app of its own."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.loop = asyncio.get_running_loop()
        if scope["type"] == "lifespan":
            for moment in "startup", "shutdown":
                await receive()
                await send({"type": f"lifespan.{moment}.complete"})
        else:
            assert self.app is not None
            await self.app(scope, receive, send)

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine in the server's loop."""
        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)


@pytest.fixture(scope="session")
def _qwen_stage() -> Iterator[tuple[Stage, str]]:
    stage = Stage()
    with serve(stage) as url:
        yield stage, url


@pytest.fixture(scope="session")
def _gateway_stage() -> Iterator[tuple[Stage, str]]:
    stage = Stage()
    with serve(stage) as url:
        yield stage, url


@pytest.fixture
def qwen_url(_qwen_stage: tuple[Stage, str]) -> str:
    return _qwen_stage[1]


@pytest.fixture
def qwen(_qwen_stage: tuple[Stage, str]) -> SimulatedQwen:
    """The upstream of this test; set its attributes, or let it `fail`."""
    qwen = _qwen_stage[0].app = SimulatedQwen(api_key=UPSTREAM_KEY)
    return qwen


@pytest.fixture
def dialect() -> str:
    """The dialect of this test's gateways; a file that is about all of them overrides it."""
    return "qwen-web-v1"


class MakeGateway(Protocol):
    def __call__(self, **options: Any) -> Gateway:
        """Return a gateway to `qwen` that means to be open; options are `Gateway`'s or settings."""


@pytest.fixture
def make_gateway(
    qwen: SimulatedQwen, qwen_url: str, dialect: str, _gateway_stage: tuple[Stage, str]
) -> Iterator[MakeGateway]:
    made: list[Gateway] = []

    def make(**options: Any) -> Gateway:
        given = {
            name: options.pop(name)
            for name in ("transport", "http_client", "authenticate")
            if name in options
        }
        url = qwen_url + DIALECTS[dialect]
        # The list that the simulated one has too, so that a test's first request is its own.
        upstream = {"upstream": dialect, "base_url": url, "models": SEED_MODELS}
        settings = Settings(**{"api_key": UPSTREAM_KEY, **upstream, **options})
        if "authenticate" not in given and not settings.client_keys:
            given["authenticate"] = anonymous
        made.append(Gateway(settings, **given))
        return made[-1]

    yield make
    stage = _gateway_stage[0]
    if stage.loop is not None:
        for gateway in made:
            stage.run(gateway.aclose())


class GatewayURL(Protocol):
    def __call__(self, app: ASGIApp | None = None, **options: Any) -> str:
        """Return the address of `app`, or of a new gateway with these options."""


@pytest.fixture
def gateway_url(make_gateway: MakeGateway, _gateway_stage: tuple[Stage, str]) -> GatewayURL:
    stage, url = _gateway_stage

    def gateway_url(app: ASGIApp | None = None, **options: Any) -> str:
        stage.app = app or make_gateway(**options)
        return url

    return gateway_url


@pytest.fixture
def gateway_loop(_gateway_stage: tuple[Stage, str]) -> Callable[[Any], Any]:
    """Runs a coroutine in the loop of the gateway's server."""
    return _gateway_stage[0].run


@pytest.fixture
def serve_app() -> Iterator[Callable[..., str]]:
    """Serves an app, lifespan and all, in a server of its own; options are uvicorn's."""
    with ExitStack() as stack:
        yield lambda app, **options: stack.enter_context(serve(app, **options))


@pytest.fixture(scope="session")
def http() -> Iterator[httpx.Client]:
    """A client for plain HTTP; to load the certificates takes longer than a test."""
    with httpx.Client(trust_env=False, timeout=20, verify=False) as http:
        yield http


# Requests and answers.


def ask(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    """Return the body of a chat request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}


class Answered(Protocol):
    """A response, of httpx or of the package that Starlette's test client is made with."""

    @property
    def status_code(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def content(self) -> bytes: ...

    @property
    def text(self) -> str: ...

    def json(self) -> Any: ...


def error_of(response: Answered, status: int) -> dict[str, Any]:
    """Return the error that a response is, having checked its form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    return checked_error(response.json())


def checked_error(document: Any) -> dict[str, Any]:
    check_error(document)
    assert document["error"]["message"]
    return dict(document["error"])


def answer_of(response: Answered) -> dict[str, Any]:
    """Return the document of a whole answer, having checked its form."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    document = response.json()
    check_answer(document)
    return dict(document)


@dataclass
class StreamRead:
    """A stream as a client sees it."""

    chunks: list[dict[str, Any]] = field(default_factory=list)
    error: dict[str, Any] | None = None
    """The error that was its last event."""
    done: bool = False
    comments: int = 0

    @property
    def text(self) -> str:
        return self._joined("content")

    @property
    def reasoning(self) -> str:
        return self._joined("reasoning_content")

    @property
    def finish_reasons(self) -> list[str]:
        choices = [choice for chunk in self.chunks for choice in chunk["choices"]]
        return [choice["finish_reason"] for choice in choices if choice["finish_reason"]]

    @property
    def is_whole(self) -> bool:
        return self.done and self.error is None and len(self.finish_reasons) == 1

    @property
    def is_broken_off(self) -> bool:
        """Whether it ended as a failure must: by an error, with nothing that looks like success."""
        return self.error is not None and not self.done and not self.finish_reasons

    def _joined(self, name: str) -> str:
        deltas = [choice["delta"] for chunk in self.chunks for choice in chunk["choices"]]
        return "".join(delta.get(name) or "" for delta in deltas)


def stream_of(body: bytes) -> StreamRead:
    """Read a streamed answer, having checked the form of all of it and that nothing is cut."""
    read = StreamRead()
    assert body.endswith(b"\n\n")
    for event in body.removesuffix(b"\n\n").split(b"\n\n"):
        assert not read.done, "something follows [DONE]"
        assert read.error is None, "something follows the error"
        if event.startswith(b":"):
            read.comments += 1
            continue
        assert event.startswith(b"data: "), event
        if event == b"data: [DONE]":
            read.done = True
            continue
        document = json.loads(event.removeprefix(b"data: "))
        if "error" in document:
            read.error = checked_error(document)
        else:
            check_chunk(document)
            read.chunks.append(document)
    for name in "id", "created", "model":
        assert len({chunk[name] for chunk in read.chunks}) <= 1
    return read


def streamed(response: Answered) -> StreamRead:
    """Return the stream that a response is, having checked its form."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-request-id"]
    return stream_of(response.content)


# An upstream without a socket.


@dataclass
class ScriptedTransport:
    """A transport whose one answer is a list: bytes are read, an exception is raised.

    A number is a silence, in seconds; at the end of the list the body ends.
    """

    script: list[bytes | BaseException | float]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    ends_by_close: bool = False
    refuses: BaseException | None = None
    """Raised in the place of an answer."""
    requests: list[UpstreamRequest] = field(default_factory=list)
    open_now: int = 0
    closed: int = 0
    waits: list[float] = field(default_factory=list)
    """How long each read was told to wait at the most, in seconds."""

    @asynccontextmanager
    async def open(
        self, request: UpstreamRequest, *, within: float
    ) -> AsyncIterator[UpstreamResponse]:
        self.requests.append(request)
        if self.refuses is not None:
            raise self.refuses
        self.open_now += 1
        try:
            yield ScriptedResponse(self, iter(list(self.script)))
        finally:
            self.open_now -= 1

    async def aclose(self) -> None:
        self.closed += 1


@dataclass
class ScriptedResponse:
    transport: ScriptedTransport
    steps: Iterator[bytes | BaseException | float]

    @property
    def status(self) -> int:
        return self.transport.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self.transport.headers

    @property
    def ends_by_close(self) -> bool:
        return self.transport.ends_by_close

    async def read(self, within: float) -> bytes:
        self.transport.waits.append(within)
        match next(self.steps, b""):
            case bytes() as data:
                return data
            case BaseException() as exc:
                raise exc
            case float() | int() as silence:
                if silence <= within:
                    await asyncio.sleep(silence)
                    return await self.read(within - silence)
                await asyncio.sleep(within)
                raise UpstreamTimeout("the upstream was silent")


def frame(text: str, **delta: Any) -> bytes:
    """Return one frame of the upstream's, that adds `text`."""
    chunk = {"choices": [{"delta": {"role": "assistant", "content": text, **delta}}]}
    return b"data: %b\n\n" % json.dumps(chunk).encode()


# Sockets.


def address_of(url: str) -> tuple[str, int]:
    parts = httpx.URL(url)
    assert parts.port is not None
    return parts.host, parts.port


def connect(url: str) -> socket.socket:
    connection = socket.create_connection(address_of(url), timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def http_bytes(
    body: bytes = b"", *, method: str = "POST", path: str = CHAT, **headers: str
) -> bytes:
    """Return an HTTP/1.1 request; `_` in a header's name stands for `-`."""
    fields = {"host": "gateway", "content_type": "application/json", **headers}
    fields.setdefault("content_length", str(len(body)))
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1") + body


def read_request(connection: socket.socket) -> None:
    """Take one whole request from a client."""
    with connection.makefile("rb") as lines:
        length = 0
        while (line := lines.readline()) not in (b"\r\n", b""):
            name, _, value = line.lower().partition(b":")
            if name == b"content-length":
                length = int(value)
        lines.read(length)


def eventually(condition: Callable[[], object], within: float = 5.0) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be in time"
        time.sleep(0.005)


@pytest.fixture
def logging_untouched() -> Iterator[None]:
    """For a test that sets up the standalone program's logging: what it did is undone."""
    factory, source = logging.getLogRecordFactory(), logging._srcfile
    yield
    logging.setLogRecordFactory(factory)
    logging._srcfile = source
