"""START HERE: the gateway as an ASGI app, from a request to who answers it.

A chat goes through `_chat` below: body, `OpenAIChat.read`, `Catalog.resolve`, `relay`. The upstream
under the relay is a dialect and a transport, put together in `wiring` and `upstreams.call`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from qwen_asgi.admission import Admission, Place
from qwen_asgi.apis.body_bounds import LONG_BODY
from qwen_asgi.apis.openai_chat import REASONING_FIELDS, OpenAIChat
from qwen_asgi.authentication import (
    ANYBODY,
    Authenticate,
    ClientKeys,
    NoForeignPages,
    Principal,
    anonymous,
    identify,
)
from qwen_asgi.begun import guarded
from qwen_asgi.cutoff import TimeLimit
from qwen_asgi.disconnect import ClientLeft, ClientWatch
from qwen_asgi.errors import (
    AuthenticationFailed,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    PermissionDenied,
    QwenASGIError,
    RateLimited,
    ShuttingDown,
    UnsupportedMediaType,
    UpstreamError,
)
from qwen_asgi.exchange import Exchange, Reason
from qwen_asgi.http import (
    JSON,
    RawHeaders,
    Response,
    announced,
    check_headers,
    headers_of,
    read_body,
    refuse_length,
)
from qwen_asgi.ids import IdSource
from qwen_asgi.paths import own_paths
from qwen_asgi.relay import relay
from qwen_asgi.request_log import Printable, printable
from qwen_asgi.settings import Settings
from qwen_asgi.shutdown import Shutdown, Work
from qwen_asgi.transports import Transport
from qwen_asgi.wiring import Wired, wire

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""Answered to nobody when the client left first: some hosts fail where no response comes."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.\-]{1,128}")
_MODEL_PATH = "/v1/models/"
_PROBES = {"/healthz", "/readyz"}
"""What watches over the process asks there, without a credential; nothing is told but yes or no."""


@dataclass(slots=True)
class _Call:
    """One HTTP request on its way through the gateway."""

    scope: Scope
    receive: Receive
    headers: Mapping[bytes, bytes]
    response: Response
    id: str
    path: str = ""
    principal: Principal = field(default=ANYBODY)


_Endpoint = Callable[["_Call"], Awaitable[None]]

AUTHENTICATE_SECONDS = 30.0
"""How long a host's `authenticate` may take; nobody sees meanwhile that a client leaves."""


class _Identifying(TimeLimit):
    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(AUTHENTICATE_SECONDS)

    def error(self) -> Exception:
        return Overloaded(
            f"whom this request is from was not known within {self._seconds:g} seconds; ask again"
        )


class Gateway:
    """An OpenAI-compatible API over a Qwen upstream, as an ASGI app.

        Starlette(routes=[Mount("/qwen", app=Gateway(Settings(api_key="...")))])

    Making one opens nothing and reads nothing; connections are opened when the first request needs
    them, for each event loop, so it works where nobody runs its lifespan. Any number of gateways
    with different settings live in one process.

    What is given is used and never closed: `http_client`, any `httpx.AsyncClient`, or `transport`.
    `authenticate` says whom a request is from; without it, and without `client_keys` in the
    settings, everybody is let in, with a warning unless `authenticate=anonymous` says that this is
    meant. Raises ValueError where two of these contradict each other.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        transport: Transport | None = None,
        http_client: httpx.AsyncClient | None = None,
        authenticate: Authenticate | None = None,
    ) -> None:
        settings = settings or Settings()
        if transport is not None and http_client is not None:
            raise ValueError("give either transport or http_client: the one would hide the other")
        self._api = _api(settings)
        self._transport, self._http_client = transport, http_client
        self._given_authenticate = authenticate
        self._authenticate = _who_is_let_in(settings, authenticate)
        self._wired = self._wire(settings)
        self._retired: list[Wired] = []
        """What was made of earlier settings and may still be in use."""
        self._ids = IdSource()
        self._routes: dict[str, dict[str, _Endpoint]] = {
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/models": {"GET": self._models},
            "/healthz": {"GET": self._alive},
            "/readyz": {"GET": self._ready},
        }
        self._routes_of_a_model: dict[str, _Endpoint] = {"GET": self._model}
        self._ends: Counter[Reason] = Counter()
        self._shutdown = Shutdown()
        self._admission = Admission()
        _admit_as_set(self._admission, settings)
        self._has_lifespan = False
        self._is_to_be_closed = transport is None and http_client is None
        self._advised = False

    @property
    def settings(self) -> Settings:
        """What it was told last."""
        return self._wired.settings

    @property
    def ends(self) -> Mapping[Reason, int]:
        """How many chats have ended, by their reason. `done` are those whose upstream's end was
        seen and went out; no other looks like one to its client."""
        return dict(self._ends)

    def reload(self, settings: Settings) -> None:
        """Take other settings at once: the next request meets them, those under way the old.

        Connections of the old ones are closed when the last chat on them has ended. Raises
        ValueError where they contradict what the gateway was given, and changes nothing then.
        """
        authenticate = _who_is_let_in(settings, self._given_authenticate)
        if not _is_open(self._authenticate) and _is_open(authenticate):
            logger.warning("the settings read anew have no client_keys: everybody is let in now")
        wired = self._wire(settings, self._wired)
        # From here on nothing fails.
        _admit_as_set(self._admission, settings)
        old, self._wired = self._wired, wired
        self._authenticate = authenticate
        self._api = _api(settings)
        self._retired = [wired for wired in self._retired if not wired.is_closed] + [old]
        old.retire()

    def _wire(self, settings: Settings, before: Wired | None = None) -> Wired:
        return wire(
            settings, transport=self._transport, http_client=self._http_client, before=before
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._serve_lifespan(receive, send)
        elif scope["type"] == "websocket":
            # Before it is accepted, a close is a refusal of the handshake.
            await send({"type": "websocket.close", "code": 1000, "reason": ""})

    @asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[None]:
        """Open and close with a host: `FastAPI(lifespan=gateway.lifespan)`.

        With a lifespan of the host's own: `combine_lifespans(gateway.lifespan, own)`.
        """
        self._has_lifespan = True
        self._advise()
        try:
            yield
        finally:
            await self.aclose()

    def begin_drain(self, seconds: float | None = None) -> None:
        """Take no more requests, and end those under way after so many seconds; for a host that is
        about to stop. None is `settings.shutdown_seconds`. May be called from a signal handler."""
        for wired in (*self._retired, self._wired):
            wired.begin_to_end()
        self._shutdown.begin(self.settings.shutdown_seconds if seconds is None else seconds)

    async def aclose(self) -> None:
        """Close the connections of the running event loop. A later request opens new ones."""
        await asyncio.gather(*(wired.aclose() for wired in (*self._retired, self._wired)))

    # One request, from outside to inside: id, errors, route, client, endpoint.

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._advised:
            self._advise()
        headers = headers_of(scope)
        id = self._request_id(headers)
        response = Response(
            send,
            [(b"x-request-id", id.encode("ascii"))],
            patience=self._wired.settings.write_timeout,
        )
        call = _Call(scope, receive, headers, response, id)
        try:
            check_headers(scope)
            endpoint = await self._endpoint(call)
            await endpoint(call)
        except ClientLeft:
            await _answer_nobody(response)
        except QwenASGIError as error:
            await self._refuse(call, error)
        except HTTPException as exc:
            await self._refuse(call, _as_ours(exc), exc.status_code, exc.headers)
        except Exception:
            logger.exception("a bug ended request %s", id)
            await self._refuse(call, InternalError(f"an internal error ended request {id}"))

    async def _endpoint(self, call: _Call) -> _Endpoint:
        """Return what answers the request.

        Raises NotFound, MethodNotAllowed, AuthenticationFailed.
        """
        methods = self._route(call)
        method = "GET" if call.scope["method"] == "HEAD" else call.scope["method"]
        if method == "OPTIONS" and methods:
            # A preflight carries no credential: it is answered before one is asked for.
            return self._options
        if call.path in _PROBES and method in methods:
            return methods[method]
        self._shutdown.refuse()
        if method == "POST" and announced(call.headers) > self.settings.max_body:
            # Nobody need be known to be told so.
            await refuse_length(call.headers, call.receive, self.settings.max_body)
        if method != "OPTIONS" and self._authenticate not in OPEN:
            call.principal = await self._identified(call)
        if not methods:
            raise NotFound(
                f"there is no {printable(call.path, 200)} here; "
                "there are /v1/chat/completions and /v1/models"
            )
        if method not in methods:
            allow = _allow(methods)
            raise MethodNotAllowed(f"{printable(call.path, 200)} takes {allow} only", allow)
        return methods[method]

    async def _identified(self, call: _Call) -> Principal:
        """Return whom the request is from: what the host does to know that has an end, too."""
        asked = guarded(identify(self._authenticate, Request(call.scope)), _Identifying())
        return await guarded(asked, Work(self._shutdown))

    def _route(self, call: _Call) -> dict[str, _Endpoint]:
        """Return the endpoints of the request's path by method; none for an unknown path."""
        if not call.scope.get("root_path") and call.scope["path"] in self._routes:
            call.path = call.scope["path"]
            return self._routes[call.path]
        for path in own_paths(call.scope):
            call.path = call.path or path
            is_a_model = path.startswith(_MODEL_PATH)
            methods = self._routes_of_a_model if is_a_model else self._routes.get(path)
            if methods:
                call.path = path
                return methods
        return {}

    # The endpoints.

    async def _chat(self, call: _Call) -> None:
        exchange = Exchange(request_id=call.id, client=call.principal.name)
        work = Work(self._shutdown)
        try:
            place = self._admission.enter(_client_of(call))
            try:
                # One set of settings for all of a chat, though others may come meanwhile.
                with self._wired as wired:
                    await self._chat_over(wired, call, exchange, work, place)
            finally:
                place.leave()
        except ClientLeft:
            exchange.left()
            exchange.status = CLIENT_CLOSED_REQUEST
            raise
        except QwenASGIError as error:
            exchange.failed(error)
            exchange.status = error.status
            raise
        except Exception:
            exchange.failed(InternalError(""))
            exchange.status = InternalError.status
            raise
        finally:
            self._ends[exchange.reason] += 1
            exchange.log()

    async def _chat_over(
        self, wired: Wired, call: _Call, exchange: Exchange, work: Work, place: Place
    ) -> None:
        settings = wired.settings
        _check_content_type(call.headers)
        reading = read_body(call.receive, settings.max_body, settings.body_timeout)
        body = await guarded(reading, work)
        if settings.log_bodies:
            logger.info("request %s: %s", call.id, Printable(body))
        async with ClientWatch(call.receive) as watch:
            if not place.has_turn:
                with work:
                    await place.turn()
            chat = self._api.read(body)
            if len(body) > LONG_BODY:
                # It is written anew next, which takes as long as to read it: others come between.
                await asyncio.sleep(0)
            upstream = wired.catalog.certain(chat.model)
            if upstream is None:
                with work:
                    upstream = await wired.catalog.resolve(chat.model)
            exchange.model, exchange.stream = chat.model, chat.stream
            exchange.notes = chat.notes
            await relay(
                chat,
                upstream,
                self._api,
                watch,
                call.response,
                exchange,
                heartbeat=settings.heartbeat,
                work=work,
            )

    async def _models(self, call: _Call) -> None:
        with self._wired as wired:
            with Work(self._shutdown):
                async with ClientWatch(call.receive) as watch:
                    document = await wired.catalog.document()
                    watch.stop()
            await self._document(call, document)

    async def _model(self, call: _Call) -> None:
        model = call.path.removeprefix(_MODEL_PATH)
        with self._wired as wired:
            with Work(self._shutdown):
                async with ClientWatch(call.receive) as watch:
                    document = await wired.catalog.model_document(model)
                    watch.stop()
            await self._document(call, document)

    async def _alive(self, call: _Call) -> None:
        await self._document(call, b'{"status":"ok"}')

    async def _ready(self, call: _Call) -> None:
        self._shutdown.refuse()
        await self._document(call, b'{"status":"ready"}')

    async def _options(self, call: _Call) -> None:
        methods = self._route(call)
        allow = (b"allow", _allow(methods).encode("ascii"))
        await call.response.start(204, [allow])
        await call.response.end(b"")

    async def _document(self, call: _Call, body: bytes) -> None:
        await call.response.whole(200, body, [JSON], head=call.scope["method"] == "HEAD")

    # Errors, rendered here and nowhere else.

    async def _refuse(
        self,
        call: _Call,
        error: QwenASGIError,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer with `error`; a host's own status and headers go before the error's."""
        if isinstance(error, UpstreamError):
            logger.warning("request %s: upstream: %s (%s)", call.id, error.message, error.code)
        if call.response.started:
            return
        if isinstance(error, ShuttingDown) and call.scope.get("http_version", "1.1")[0] == "1":
            # HTTP/2 and later have a way of their own, which is the server's.
            call.response.headers.append((b"connection", b"close"))
        with suppress(ClientLeft):
            await call.response.whole(
                status or error.status,
                self._api.error(error),
                [JSON, *_raw(error.headers if headers is None else headers)],
                head=call.scope["method"] == "HEAD",
            )

    # Life.

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        """Run alone: the server's own lifespan is ours."""
        await receive()
        async with self.lifespan():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    def _advise(self) -> None:
        """Say once what a host may have forgotten."""
        if self._advised:
            return
        self._advised = True
        if self._authenticate is _everybody:
            logger.warning(
                "this gateway lets everybody in: it has neither client keys (QWEN_CLIENT_KEYS) nor "
                "authenticate=. The dependencies= of a FastAPI app do not reach what is mounted in "
                "it. authenticate=anonymous says that this is meant."
            )
        if not self._has_lifespan and self._is_to_be_closed:
            logger.warning(
                "nobody runs this gateway's lifespan, so its connections are not closed when the "
                "host stops; add lifespan=gateway.lifespan to the host app"
            )

    def _request_id(self, headers: Mapping[bytes, bytes]) -> str:
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given.decode("ascii")
        return f"req-{self._ids.next()}"


async def _everybody(request: Request) -> Principal:
    """As `anonymous`, where nobody said that it is meant."""
    return ANYBODY


OPEN = (anonymous, _everybody)
"""Those that need not be asked: each says that it is anybody."""


def _is_open(authenticate: Authenticate) -> bool:
    return authenticate in OPEN or isinstance(authenticate, NoForeignPages)


def _who_is_let_in(settings: Settings, authenticate: Authenticate | None) -> Authenticate:
    if authenticate is not None and settings.client_keys:
        raise ValueError("give either authenticate or client_keys: each decides who is let in")
    if authenticate is not None:
        return authenticate
    if settings.client_keys:
        return ClientKeys(key.get_secret_value() for key in settings.client_keys)
    return _everybody


def _check_content_type(headers: Mapping[bytes, bytes]) -> None:
    """A page of any origin may have a browser send text, or bytes without a type, but JSON only
    with the host's consent."""
    given = headers.get(b"content-type")
    if given == b"application/json":
        return
    if given is None:
        if b"origin" not in headers and b"sec-fetch-site" not in headers:
            return
        given = b"nothing"
    kind = str(given, "latin-1").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise UnsupportedMediaType(
            f"the request's body should be JSON, sent as 'content-type: application/json', not "
            f"{printable(kind, 100)}"
        )


def _allow(methods: dict[str, _Endpoint]) -> str:
    names = ["HEAD"] if "GET" in methods else []
    return ", ".join([*methods, *names, "OPTIONS"])


def _admit_as_set(admission: Admission, settings: Settings) -> None:
    admission.set(
        most=settings.max_requests,
        of_client=settings.max_requests_of_client,
        queue=settings.queue,
        patience=settings.queue_timeout,
    )


def _client_of(call: _Call) -> str:
    """Return whom a request is counted for: who was named, or else where it comes from."""
    if call.principal is not ANYBODY:
        return call.principal.name
    address = call.scope.get("client")
    if not address:
        return ANYBODY.name
    host = str(address[0])
    # Whoever has one address of IPv6 has 2^64 of them.
    return host if ":" not in host else _network_of(host)


def _network_of(host: str) -> str:
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


def _api(settings: Settings) -> OpenAIChat:
    return OpenAIChat(REASONING_FIELDS[settings.reasoning_field])


def _raw(headers: Mapping[str, str]) -> RawHeaders:
    return [
        (name.lower().encode("latin-1", "replace"), value.encode("latin-1", "replace"))
        for name, value in headers.items()
    ]


def _as_ours(exc: HTTPException) -> QwenASGIError:
    """Return what a host's `authenticate` raised, in our own terms; its status is kept."""
    message = str(exc.detail)
    match exc.status_code:
        case 401:
            return AuthenticationFailed(message)
        case 403:
            return PermissionDenied(message)
        case 429:
            return RateLimited(message)
        case status if status >= 500:
            return Overloaded(message)
        case _:
            return InvalidRequest(message)


async def _answer_nobody(response: Response) -> None:
    if response.started:
        return
    with suppress(ClientLeft):
        await response.whole(CLIENT_CLOSED_REQUEST, b"", [])
