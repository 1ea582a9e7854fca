"""Malformed requests over a real socket: each gets its error, and the server serves on."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from qwen_asgi import Gateway, Settings, anonymous
from qwen_asgi.testing import SimulatedQwen, serve
from tests.conftest import (
    MODEL,
    ask,
    checked_error,
    connect,
    http_bytes,
)

MEGABYTE = 1024 * 1024
MAX_BODY = 8 * MEGABYTE


@dataclass
class Bad:
    """One request, and what it should get."""

    name: str
    data: bytes
    """The request as it goes over the socket."""
    status: int = 400
    param: str | None = None
    code: str | None = None
    says: str = ""
    """What the message should hold."""


def body(name: str, text: str | bytes, says: str = "", **expected: Any) -> Bad:
    """A chat request with this body."""
    data = text.encode() if isinstance(text, str) else text
    return Bad(name, http_bytes(data), says=says, **expected)


def fields(name: str, param: str | None, **changes: Any) -> Bad:
    """A good chat request but for these fields; `...` leaves one out."""
    document = {k: v for k, v in {**ask(), **changes}.items() if v is not ...}
    return body(name, json.dumps(document), param=param)


def message(name: str, param: str, **changes: Any) -> Bad:
    """A good chat request but for these fields of its only message."""
    one = {"role": "user", "content": "Hello", **changes}
    return fields(name, param, messages=[{k: v for k, v in one.items() if v is not ...}])


def content(name: str, param: str, value: Any) -> Bad:
    return message(name, f"messages[0].content{param}", content=value)


def chunked(*pieces: bytes) -> bytes:
    head = http_bytes(content_length="", transfer_encoding="chunked")
    head = head.replace(b"content-length: \r\n", b"")
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


GOOD = json.dumps(ask())

BAD = [
    # Not JSON.
    body("an empty body", "", "JSON"),
    body("a blank body", " \r\n", "JSON"),
    body("cut JSON", GOOD[:-1], "JSON"),
    body("text", "hello", "JSON"),
    body("a form", "model=qwen&messages=hi", "JSON"),
    body("single quotes", "{'model': 'x'}", "JSON"),
    body("a trailing comma", GOOD[:-1] + ",}", "JSON"),
    body("a comment", "/* hello */" + GOOD, "JSON"),
    body("two documents", GOOD + GOOD, "JSON"),
    body("UTF-16", GOOD.encode("utf-16"), "JSON"),
    body("invalid UTF-8 in a string", GOOD.encode().replace(b"Hello", b"\xff\xfe"), "JSON"),
    body("cut UTF-8 in a string", GOOD.encode().replace(b"Hello", b"\xe4\xbd"), "JSON"),
    body("an overlong encoding", GOOD.encode().replace(b"Hello", b"\xc0\xaf"), "JSON"),
    body("an encoded surrogate", GOOD.encode().replace(b"Hello", b"\xed\xa0\x80"), "JSON"),
    body("a raw NUL in a string", GOOD.replace("Hello", "\0"), "JSON"),
    body("a raw newline in a string", GOOD.replace("Hello", "\n"), "JSON"),
    body("nothing but NUL", b"\0" * 100, "JSON"),
    body("a lone leading surrogate", GOOD.replace("Hello", "\\ud83d"), "JSON"),
    body("a lone trailing surrogate", GOOD.replace("Hello", "\\ude00"), "JSON"),
    body("a broken escape", GOOD.replace("Hello", "\\x41"), "JSON"),
    body("deep lists", "[" * 100_000 + "]" * 100_000, "JSON"),
    body("deep objects", '{"a":' * 100_000 + "1" + "}" * 100_000, "JSON"),
    body("depth within a message", GOOD.replace('"Hello"', "[" * 5000 + "]" * 5000), "JSON"),
    body("depth without an end", '{"messages":' + "[" * 190_000, "JSON"),
    body(
        "depth beyond all counting",
        '{"messages":' + "[" * 1_000_000,
        "values",
        status=413,
        code="too_many_values",
    ),
    # JSON, but not a chat.
    *(
        body(f"{document} as the body", document, "object")
        for document in ("null", "true", "1", '"text"', "[]", "NaN")
    ),
    body("a list of chats", f"[{GOOD}]", "object"),
    body("an empty object", "{}", param="model"),
    body("a key twice, the last one wrong", GOOD[:-1] + ', "model": 1}', param="model"),
    # The model.
    fields("no model", "model", model=...),
    fields("a model that is null", "model", model=None),
    fields("a model that is a number", "model", model=1),
    fields("a model that is a list", "model", model=[MODEL]),
    fields("an empty model", "model", model=""),
    fields("a model of a megabyte", "model", model="x" * MEGABYTE),
    fields("an unknown model", "model", model="gpt-4o"),
    fields("a model with a header in it", "model", model="a\r\nx-injected: 1\r\n\r\n<b>"),
    fields("a model that is a path", "model", model="../../etc/passwd"),
    fields("a model that is an address", "model", model="http://127.0.0.1:1/v1"),
    fields("a model with a NUL in it", "model", model="qwen\0"),
    fields("a model in another case", "model", model=MODEL.upper()),
    # The messages.
    fields("no messages", "messages", messages=...),
    fields("messages that are null", "messages", messages=None),
    fields("messages that are text", "messages", messages="Hello"),
    fields("messages that are an object", "messages", messages={"role": "user"}),
    fields("no message", "messages", messages=[]),
    fields("a message that is null", "messages[0]", messages=[None]),
    fields("a message that is text", "messages[0]", messages=["Hello"]),
    fields("the second is wrong", "messages[1]", messages=[*ask()["messages"], 1]),
    message("no role", "messages[0].role", role=...),
    message("an unknown role", "messages[0].role", role="robot"),
    message("a role that is a number", "messages[0].role", role=1),
    content("no content", "", ...),
    content("content that is null", "", None),
    content("content that is a number", "", 1),
    content("content that is true", "", True),
    content("no part", "", []),
    content("a part that is text", "[0]", ["Hello"]),
    content("a part that is null", "[0]", [None]),
    content("a part that is a list", "[0]", [[]]),
    content("a part without a type", "[0].type", [{}]),
    content("an only part without a type", ".type", {}),
    content("a part's type that is a number", "[0].type", [{"type": 1}]),
    content("a text part without text", "[0].text", [{"type": "text"}]),
    content("a text part of a number", "[0].text", [{"type": "text", "text": 1}]),
    content("a second part without a type", "[1].type", [{"type": "text", "text": ""}, {}]),
    content("sound", "[0].input_audio", [{"type": "input_audio", "input_audio": {}}]),
    content(
        "a picture within the request",
        "[0].image_url",
        [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
    ),
    content(
        "a picture on the gateway's disk",
        "[0].image_url",
        [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
    ),
    content("a picture that is a number", "[0].image_url", [{"type": "image_url", "image_url": 1}]),
    message("a function's result", "messages[0]", role="function"),
    message("a chat type that is a number", "messages[0].chat_type", chat_type=1),
    message("extra that is text", "messages[0].extra", extra="x"),
    # Other fields.
    fields("stream that is text", "stream", stream="yes"),
    fields("stream that is a number", "stream", stream=1),
    fields("stream_options that are true", "stream_options", stream=True, stream_options=True),
    fields(
        "include_usage that is text",
        "stream_options.include_usage",
        stream=True,
        stream_options={"include_usage": "yes"},
    ),
    fields("temperature that is text", "temperature", temperature="1"),
    fields("temperature above 2", "temperature", temperature=2.01),
    fields("temperature below 0", "temperature", temperature=-0.1),
    fields("temperature that is true", "temperature", temperature=True),
    body("temperature NaN", GOOD[:-1] + ', "temperature": NaN}', param="temperature"),
    body("temperature -Infinity", GOOD[:-1] + ', "temperature": -Infinity}', param="temperature"),
    body("temperature 1e999", GOOD[:-1] + ', "temperature": 1e999}', param="temperature"),
    fields("max_tokens 0", "max_tokens", max_tokens=0),
    fields("max_tokens below 0", "max_tokens", max_tokens=-1),
    fields("max_tokens with a fraction", "max_tokens", max_tokens=1.5),
    fields("max_tokens of 20 digits", "max_tokens", max_tokens=10**20),
    body("max_tokens of 5000 digits", GOOD[:-1] + f', "max_tokens": {"9" * 5000}}}'),
    fields("max_completion_tokens that is text", "max_completion_tokens", max_completion_tokens=""),
    fields("n of 17", "n", n=17),
    fields("n of 0", "n", n=0),
    fields("tools that are an object", "tools", tools={}),
    fields("a tool", "tools[0]", tools=[{"type": "web_search"}]),
    fields("stop that is a number", "stop", stop=1),
    fields("stop that lists numbers", "stop", stop=[1]),
    fields("response_format that is text", "response_format", response_format="json"),
    fields("XML as the answer", "response_format", response_format={"type": "xml"}),
    fields("logprobs", "logprobs", logprobs=True),
    fields("an unknown kind of answer", "modalities", modalities=["smell"]),
    fields("a logit bias that is text", "logit_bias", logit_bias="x"),
    fields("a seed with a fraction", "seed", seed=0.5),
    fields("a chat type that is a list", "chat_type", chat_type=[]),
    fields("a wish to think that is text", "enable_thinking", enable_thinking="very"),
    # HTTP.
    *(
        Bad(
            f"{method} of a chat",
            http_bytes(method=method),
            405,
            code="method_not_allowed",
            says="POST",
        )
        for method in ("GET", "PUT", "DELETE", "PATCH", "PROPFIND")
    ),
    Bad("POST of the models", http_bytes(path="/v1/models"), 405, code="method_not_allowed"),
    Bad("DELETE of a model", http_bytes(method="DELETE", path=f"/v1/models/{MODEL}"), 405),
    *(
        Bad(f"the path {path}", http_bytes(GOOD.encode(), path=path), 404, code="not_found")
        for path in (
            "/",
            "/v1",
            "/v1/",
            "//v1/chat/completions",
            "/v1//chat/completions",
            "/v1/chat/completions/x",
            "/V1/CHAT/COMPLETIONS",
            "/v1/chat/completions%00",
            "/v1/chat/completions%0d%0ax-injected:%201",
            "/v1/%2e%2e/v1/chat/completions",
            "/v1/../../etc/passwd",
            "/v1/completions",
            "/%ff%fe",
            "/" + "a" * 10_000,
        )
    ),
    *(
        Bad(
            f"the model {path}",
            http_bytes(method="GET", path=f"/v1/models/{path}"),
            404,
            param="model",
            code="model_not_found",
        )
        for path in (
            "gpt-4o",
            "a%2Fb",
            "..%2F..%2Fetc%2Fpasswd",
            "a%0D%0Ax-injected:%201",
            "%00",
            "%ED%A0%80",
            "%F0%9F%98%80",
        )
    ),
    *(
        Bad(
            f"the content type {kind}",
            http_bytes(GOOD.encode(), content_type=kind),
            415,
            code="unsupported_media_type",
        )
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/jsonp",
            "application/octet-stream",
            "json",
            "",
        )
    ),
    Bad("chunked rubbish", chunked(b"{", b'"mod', b"el"), says="JSON"),
    Bad(
        "50 MB",
        http_bytes(b" " * (50 * MEGABYTE)),
        413,
        code="request_too_large",
        says="QWEN_MAX_BODY",
    ),
    Bad("50 MB in chunks", chunked(*[b" " * MEGABYTE] * 50), 413, code="request_too_large"),
    Bad("a byte too much", http_bytes(b" " * (MAX_BODY + 1)), 413, code="request_too_large"),
    Bad("a byte too much in chunks", chunked(b" " * MAX_BODY, b" "), 413, code="request_too_large"),
    Bad("exactly the most, but blank", http_bytes(b" " * MAX_BODY), says="JSON"),
    Bad(
        "a length of 18 digits",
        http_bytes(content_length="9" * 18),
        413,
        code="request_too_large",
    ),
]


@pytest.fixture(scope="module")
def upstream() -> Iterator[tuple[SimulatedQwen, str]]:
    qwen = SimulatedQwen()
    with serve(qwen) as url:
        yield qwen, url


@pytest.fixture(scope="module", params=["httptools", "h11"])
def server(request: Any, upstream: tuple[SimulatedQwen, str]) -> Iterator[str]:
    """One server for the whole table: what one request spoils, the next one shows."""
    settings = Settings(api_key="key", base_url=upstream[1], max_body=MAX_BODY)
    with serve(Gateway(settings, authenticate=anonymous), http=request.param) as url:
        yield url


def exchange(connection: socket.socket, data: bytes) -> http.client.HTTPResponse:
    """Send a request, also where the server answers before it has taken all of it."""
    connection.sendall(data)
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name[:60])
def test_a_bad_request_gets_its_error_and_the_server_serves_on(server: str, bad: Bad) -> None:
    with connect(server) as connection:
        response = exchange(connection, bad.data)
        shown = response.read()
    assert response.status == bad.status, shown
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req-")
    assert response.headers["x-injected"] is None
    error = checked_error(json.loads(shown))
    assert error["type"] == "invalid_request_error"
    assert error["param"] == bad.param
    assert bad.says in error["message"]
    assert len(error["message"]) < 1000
    if bad.code is not None:
        assert error["code"] == bad.code
    assert_serves_on(server)


def test_the_table_is_as_long_as_was_asked_for() -> None:
    names = {bad.name for bad in BAD}
    assert len(names) == len(BAD) >= 40


def assert_serves_on(server: str) -> None:
    with connect(server) as connection:
        response = exchange(connection, http_bytes(GOOD.encode()))
        assert response.status == 200
        assert json.loads(response.read())["choices"][0]["message"]["content"]


HARMLESS = {
    "NaN in a field that nobody reads": GOOD[:-1] + ', "x": [NaN, -Infinity, 1e999]}',
    "5000 digits in a field that nobody reads": GOOD[:-1] + f', "x": {"9" * 4000}}}',
    "a thousand unknown fields": json.dumps({**{f"x{i}": i for i in range(1000)}, **ask()}),
    "an unknown field of a megabyte": json.dumps({**ask(), "x" * MEGABYTE: 1}),
    "an unknown field with a header in it": json.dumps({**ask(), "a\r\nx-injected: 1": 1}),
    "an unknown field with no letters": json.dumps({**ask(), "": 1, "é": 1, "\0": 1, ",": 1}),
    "unknown fields in a message": json.dumps(
        {**ask(), "messages": [{"role": "user", "content": "", "a\r\nx-injected: 1": 1, "ø": 2}]}
    ),
    "depth that can still be read": GOOD[:-1] + f', "x": {"[" * 150 + "]" * 150}}}',
    "depth in what is sent on": json.dumps(ask()).replace(
        '"role"', '"extra": ' + '{"a":' * 150 + "1" + "}" * 150 + ', "role"'
    ),
    "NaN in what is sent on": json.dumps(ask()).replace('"role"', '"extra": {"a": NaN}, "role"'),
    "a key twice": GOOD[:-1] + f', "model": "{MODEL}"}}',
    "escapes of every kind": GOOD.replace("Hello", "\\u0000\\ud83d\\ude00\\u2028\\/\\b"),
    "nulls": json.dumps({**ask(), "temperature": None, "stream": None, "tools": None, "n": None}),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_no_harm_is_answered(server: str, name: str) -> None:
    with connect(server) as connection:
        response = exchange(connection, http_bytes(HARMLESS[name].encode()))
        shown = response.read()
    assert response.status == 200, shown
    assert response.headers["x-injected"] is None
    ignored = response.headers["x-qwen-asgi-ignored"] or ""
    assert re.fullmatch(r"[A-Za-z0-9_.\-, ]{0,2000}", ignored)


ODD = {
    "no HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "nothing": b"",
    "a request that breaks off": b"POST /v1/chat/completions HTT",
    "a body that breaks off": http_bytes(b"{", content_length="1000"),
    "chunks that break off": chunked(b"{")[:-7],
    "a chunk of no length": chunked(b"{").replace(b"1\r\n{", b"x\r\n{"),
    "a length that is none": http_bytes(b"{}", content_length="-1"),
    "two lengths": http_bytes(b"{}").replace(b"\r\n\r\n", b"\r\ncontent-length: 7\r\n\r\n"),
    "a length and chunks": http_bytes(b"0\r\n\r\n", transfer_encoding="chunked"),
    "an endless header": http_bytes(method="GET", path="/v1/models", x="x" * 200_000),
    "raw bytes in the path": http_bytes(GOOD.encode(), path="/v1/chat/completions\xff\xfe"),
    "a blank in the path": http_bytes(GOOD.encode(), path="/v1/chat/comple tions"),
    "an asterisk": http_bytes(method="OPTIONS", path="*"),
    "a tunnel": http_bytes(method="CONNECT", path="127.0.0.1:1"),
    "an upgrade": http_bytes(
        method="GET",
        path="/v1/models",
        connection="upgrade",
        upgrade="websocket",
        sec_websocket_version="13",
        sec_websocket_key="AAAAAAAAAAAAAAAAAAAAAA==",
    ),
    "HTTP/2 without asking": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(50),
    "HTTP/1.0": b"GET /v1/models HTTP/1.0\r\n\r\n",
    "another address": http_bytes(method="GET", path="http://192.0.2.1:9/v1/models"),
    "another address with a user": http_bytes(method="GET", path="http://a:b@192.0.2.1/v1/models"),
}


@pytest.mark.parametrize("name", ODD)
def test_the_server_survives_what_is_hardly_a_request(
    server: str, upstream: tuple[SimulatedQwen, str], name: str
) -> None:
    """What of it reaches the gateway, the server decides; nothing of it reaches the upstream."""
    before = len(upstream[0].requests)
    with connect(server) as connection:
        answer = b""
        with contextlib.suppress(OSError):
            connection.sendall(ODD[name])
            connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(65536):
                answer += data
    assert b"500 Internal" not in answer
    assert len(upstream[0].requests) == before
    assert_serves_on(server)


def test_several_requests_on_one_connection_are_answered_in_order(server: str) -> None:
    """A refused body is read to its end, so the next request begins where it should."""
    with connect(server) as connection:
        for data, status in [
            (http_bytes(b"{}"), 400),
            (http_bytes(b" " * (MAX_BODY + 1)), 413),
            (http_bytes(GOOD.encode()), 200),
            (http_bytes(GOOD.encode(), content_type="text/plain"), 415),
            (http_bytes(GOOD.encode(), path="/v1/nothing"), 404),
            (chunked(b" " * (MAX_BODY + 1)), 413),
            (http_bytes(GOOD.encode()), 200),
        ]:
            response = exchange(connection, data)
            assert response.status == status
            response.read()


def test_a_client_that_waits_to_be_asked_for_a_long_body_need_not_send_it(server: str) -> None:
    with connect(server) as connection:
        data = http_bytes(b"", content_length=str(50 * MEGABYTE), expect="100-continue")
        response = exchange(connection, data)
        assert response.status == 413
        checked_error(json.loads(response.read()))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "https://evil.example"}, 415),
        ({"sec-fetch-site": "cross-site"}, 415),
        ({"origin": "https://evil.example", "content-type": "application/json"}, 200),
    ],
)
def test_a_web_page_must_say_that_its_bytes_are_json(
    headers: dict[str, str], status: int, server: str
) -> None:
    """A browser sends a Blob without a type for any page, and asks nobody before."""
    request = http_bytes(GOOD.encode(), **{n.replace("-", "_"): v for n, v in headers.items()})
    if "content-type" not in headers:
        request = request.replace(b"content-type: application/json\r\n", b"")
    with connect(server) as client:
        client.sendall(request)
        assert client.recv(65536).startswith(b"HTTP/1.1 %d " % status)
