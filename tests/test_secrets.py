"""Known secrets driven through every route, fault and log level, and looked for in all that comes
out: no key, no prompt of others, no header of the upstream's."""

from __future__ import annotations

import io
import json
import logging
import traceback
from collections.abc import Iterator

import httpx
import pytest

from qwen_asgi import Gateway, QwenASGIError, Settings, anonymous
from qwen_asgi.apis.openai_chat import OpenAIChat
from qwen_asgi.testing import SIMULATIONS, Fault, SimulatedQwen
from tests.conftest import CHAT, DIALECTS, MODEL, GatewayURL, ScriptedTransport, ask, frame

UPSTREAM_SECRET = "sk-canary-upstream-7"
CLIENT_SECRET = "sk-canary-client-8"
HEADER_SECRET = "canary-header-9"
COOKIE_SECRET = "canary-cookie-10"
SECRETS = (UPSTREAM_SECRET, CLIENT_SECRET, HEADER_SECRET, COOKIE_SECRET)

ECHO = (
    f"refused: authorization: Bearer {UPSTREAM_SECRET}, see https://x.invalid/?key={HEADER_SECRET}"
)

FAULTS = {
    **SIMULATIONS,
    "401 that repeats the key": Fault.status(401, ECHO.encode(), "text/plain"),
    "400 that repeats the key": Fault.status(400, b'{"detail": "%b"}' % ECHO.encode()),
    "500 with a cookie": Fault.status(500, headers={"set-cookie": f"t={COOKIE_SECRET}"}),
    "failure that repeats the key": Fault.failure("Bad_Request", ECHO),
    "failure whose code is the key": Fault.failure(UPSTREAM_SECRET, "no"),
    "error frame that repeats the key": Fault.error_frame(2, "Internal_Server_Error", ECHO),
    "bare JSON that repeats the key": Fault.bare_json({"error": {"message": ECHO}}),
    "human check": Fault.human_check("text/event-stream"),
    "garbage": Fault.garbage(),
}
FAULTS.pop("stall")


@pytest.fixture(params=["DEBUG", "INFO", "WARNING"])
def log(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """All that any logger writes, ours and httpx's among them, with tracebacks.

    But for httpcore's, which tells the headers of responses at DEBUG: a host that turns that on
    sees what its upstream sends.
    """
    sink = io.StringIO()
    handler = logging.StreamHandler(sink)
    handler.addFilter(lambda record: not record.name.startswith("httpcore"))
    handler.setFormatter(logging.Formatter("%(name)s %(message)s %(args)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(request.param)
    yield sink
    root.removeHandler(handler)
    root.setLevel(level)


def found_in(*texts: str) -> set[str]:
    return {secret for secret in SECRETS for text in texts if secret in text}


def written(response: httpx.Response) -> str:
    return f"{response.status_code} {response.headers!r} {response.text}"


@pytest.fixture
def url(qwen: SimulatedQwen, gateway_url: GatewayURL) -> str:
    qwen.api_key = UPSTREAM_SECRET
    return gateway_url(
        api_key=UPSTREAM_SECRET,
        client_keys=(CLIENT_SECRET,),
        headers={"x-extra": HEADER_SECRET, "cookie": COOKIE_SECRET},
        log_bodies=True,
    )


def key(secret: str = CLIENT_SECRET) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_no_secret_comes_out_of_any_fault(
    url: str, qwen: SimulatedQwen, http: httpx.Client, log: io.StringIO, stream: bool
) -> None:
    for fault in [*FAULTS.values(), None]:
        if fault is not None:
            qwen.fail(fault)
        with http.stream("POST", url + CHAT, json=ask(stream=stream), headers=key()) as response:
            response.read()
        assert not found_in(written(response)), fault
    assert qwen.requests[-1].headers["x-extra"] == HEADER_SECRET, "the secrets were not even used"
    assert "chat req-" in log.getvalue() or logging.getLogger().level > logging.INFO
    assert not found_in(log.getvalue())


def test_no_secret_comes_out_of_any_route(url: str, http: httpx.Client, log: io.StringIO) -> None:
    wrong = f"x{CLIENT_SECRET}"
    responses = [
        http.request(method, url + path, headers=headers)
        for method in ("GET", "HEAD", "OPTIONS", "POST", "DELETE")
        for path in (CHAT, "/v1/models", "/v1/models/nothing", "/nothing")
        for headers in (key(), key(wrong), {"authorization": CLIENT_SECRET}, {})
    ]
    assert {response.status_code for response in responses} >= {200, 204, 400, 401, 404, 405}
    assert not found_in(*map(written, responses))
    assert not found_in(log.getvalue())


def test_an_upstream_that_cannot_be_reached_gives_nothing_away(
    gateway_url: GatewayURL, http: httpx.Client, log: io.StringIO
) -> None:
    url = gateway_url(api_key=UPSTREAM_SECRET, base_url="http://127.0.0.1:9")
    response = http.post(url + CHAT, json=ask())
    assert response.json()["error"]["code"] == "upstream_unreachable"
    assert not found_in(written(response), log.getvalue())


def test_a_bug_s_traceback_holds_no_secret(
    gateway_url: GatewayURL, http: httpx.Client, log: io.StringIO
) -> None:
    transport = ScriptedTransport([], refuses=ZeroDivisionError("a bug"))
    url = gateway_url(api_key=UPSTREAM_SECRET, client_keys=(CLIENT_SECRET,), transport=transport)
    response = http.post(url + CHAT, json=ask(), headers=key())
    assert response.status_code == 500
    assert transport.requests[0].headers["authorization"] == f"Bearer {UPSTREAM_SECRET}"
    assert "Traceback" in log.getvalue()
    assert not found_in(written(response), log.getvalue(), repr(transport.requests))


@pytest.mark.anyio
async def test_the_errors_themselves_and_all_they_come_from_hold_none(qwen_url: str) -> None:
    from qwen_asgi.chat import ChatRequest, Message
    from qwen_asgi.transports.httpx import HttpxTransport
    from qwen_asgi.upstreams.call import HTTPUpstream, Timeouts
    from qwen_asgi.upstreams.qwen_web_v1 import QwenWebV1

    chat = ChatRequest(model="m", messages=(Message("user", "hi"),))
    for address in "http://127.0.0.1:9", qwen_url:
        transport = HttpxTransport()
        dialect = QwenWebV1(address, UPSTREAM_SECRET, headers={"x-extra": HEADER_SECRET})
        upstream = HTTPUpstream(dialect, transport, Timeouts())
        with pytest.raises(QwenASGIError) as caught:
            await anext(await upstream(chat).__aenter__())
        # What error reporters collect: the whole chain, arguments and attributes.
        told = "".join(traceback.format_exception(caught.value))
        chain: BaseException | None = caught.value
        while chain is not None:
            told += repr(chain) + repr(chain.args) + repr(vars(chain))
            chain = chain.__cause__
        assert not found_in(told)
        await transport.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("lane", ["direct", "httpx"])
async def test_a_report_that_shows_the_locals_of_all_frames_shows_none(
    dialect: str, lane: str
) -> None:
    """Of our own frames: what httpx keeps in its own is not ours to hide."""
    client = httpx.AsyncClient(trust_env=False) if lane == "httpx" else None
    settings = Settings(
        upstream=dialect,
        base_url="http://127.0.0.1:9",
        api_key=UPSTREAM_SECRET,
        headers={"x-extra": HEADER_SECRET},
        models=(MODEL,),
    )
    gateway = Gateway(settings, http_client=client, authenticate=anonymous)
    upstream = gateway._wired.catalog.certain(MODEL)
    assert upstream is not None
    with pytest.raises(QwenASGIError) as caught:
        await upstream(OpenAIChat().read(json.dumps(ask()).encode())).__aenter__()
    report = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    shown = [frame for frame in report.stack if "qwen_asgi" in frame.filename]
    assert len(shown) > 2
    assert not found_in(*(f"{frame.name} {frame.locals}" for frame in shown))
    await gateway.aclose()
    if client is not None:
        await client.aclose()


def test_nothing_that_is_shown_of_settings_and_gateway_holds_one() -> None:
    settings = Settings(
        api_key=UPSTREAM_SECRET,
        client_keys=(CLIENT_SECRET,),
        headers={"cookie": COOKIE_SECRET},
    )
    gateway = Gateway(settings)
    shown = [repr(settings), str(settings), settings.model_dump_json(), repr(gateway)]
    assert not found_in(*shown)


def test_the_upstream_s_headers_stop_here(gateway_url: GatewayURL, http: httpx.Client) -> None:
    headers = {"set-cookie": f"t={COOKIE_SECRET}", "x-extra": HEADER_SECRET, "server": "theirs"}
    transport = ScriptedTransport([frame("hi"), b"data: [DONE]\n\n"], headers=headers)
    url = gateway_url(transport=transport)
    for stream in False, True:
        response = http.post(url + CHAT, json=ask(stream=stream))
        assert response.status_code == 200
        assert "set-cookie" not in response.headers
        assert not found_in(written(response))


def test_a_client_s_headers_stop_here(url: str, qwen: SimulatedQwen, http: httpx.Client) -> None:
    headers = {**key(), "cookie": "session=1", "x-forwarded-for": "10.0.0.1", "x-own": "1"}
    assert http.post(url + CHAT, json=ask(), headers=headers).status_code == 200
    sent = qwen.requests[-1].headers
    assert sent["authorization"] == f"Bearer {UPSTREAM_SECRET}"
    assert sent["cookie"] == COOKIE_SECRET
    assert not {"x-forwarded-for", "x-own", "x-request-id"} & {name.lower() for name in sent}
