"""Requests that are hardly any, or mean two things at once: what each may get.

What of them is no HTTP, the server decides, and servers differ. What holds under each of them is in
the table: which answers may come, in their order, and how many chats may reach the upstream.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.conftest import CHAT, MODEL, http_bytes
from tests.hardening.raw import NOTHING
from tests.test_bad_requests import BAD, GOOD, ODD

BODY = GOOD.encode()
SIZE = len(BODY)
SMUGGLED = http_bytes(BODY.replace(b"Hello", b"smuggled"))
"""A request within another one's body; none of the shapes below may have it answered but where the
length, or the chunks, say plainly that the body is over."""

SERVER = "400 server"
REFUSED = (SERVER, "400 invalid_request_error")
NOT_FOUND = (SERVER, "404 not_found")
NO_METHOD = (SERVER, "405 method_not_allowed")
TOO_LARGE = (SERVER, "431 headers_too_large", "431 server")
DROPPED = (SERVER, NOTHING)
EMPTY_AND_NEXT = (SERVER, "400 invalid_request_error", "400 invalid_request_error, 200")
"""RFC 9112, 6.3: where there are both, the chunks say how long the body is. It is empty, then."""


@dataclass(frozen=True)
class Raw:
    """What goes over the socket, and what may come back."""

    name: str
    data: bytes
    outcomes: tuple[str, ...]
    """See `RawAnswer.outcome`; several answers are joined by commas."""
    asks: int = 0
    """How many chats of it may reach the upstream; otherwise none."""


def _chat(name: str, *outcomes: str, asks: int = 0, path: str = CHAT, method: str = "POST") -> Raw:
    """A chat that is a good one but for its first line."""
    return Raw(name, http_bytes(BODY, path=path, method=method), outcomes, asks)


def _head(
    name: str, lines: str, body: bytes, *outcomes: str, asks: int = 0, usual: str = "host: g\r\n"
) -> Raw:
    """A chat with these header lines beside the usual ones."""
    head = f"POST {CHAT} HTTP/1.1\r\n{usual}content-type: application/json\r\n{lines}\r\n\r\n"
    return Raw(name, head.encode("latin-1") + body, outcomes, asks)


def _length(name: str, value: str, *outcomes: str, asks: int = 0) -> Raw:
    return _head(f"length: {name}", f"content-length: {value}", BODY, *outcomes, asks=asks)


def _coded(name: str, lines: str, *outcomes: str, asks: int = 0) -> Raw:
    """A chat whose body is empty if it is read in chunks, and another request follows."""
    return _head(f"coding: {name}", lines, b"0\r\n\r\n" + SMUGGLED, *outcomes, asks=asks)


def _chunks(name: str, body: bytes, *outcomes: str, asks: int = 0) -> Raw:
    return _head(f"chunks: {name}", "transfer-encoding: chunked", body, *outcomes, asks=asks)


def _header(name: str, line: str, *outcomes: str, asks: int = 0) -> Raw:
    lines = f"content-length: {SIZE}\r\n{line}"
    return _head(f"header: {name}", lines, BODY, *outcomes, asks=asks)


def _host(name: str, line: str, *outcomes: str, asks: int = 0) -> Raw:
    lines = f"content-length: {SIZE}"
    return _head(f"host: {name}", lines, BODY, *outcomes, asks=asks, usual=line)


CHUNK = b"%x\r\n%b\r\n" % (SIZE, BODY)
END = b"0\r\n\r\n"

SMUGGLING = [
    _head("two lengths", f"content-length: {SIZE}\r\ncontent-length: 9", BODY, SERVER),
    _head(
        "one length twice",
        f"content-length: {SIZE}\r\ncontent-length: {SIZE}",
        BODY,
        *(SERVER, "200"),
        asks=1,
    ),
    _length("a list", f"{SIZE}, {SIZE}", SERVER, "200", asks=1),
    _length("with a sign", f"+{SIZE}", SERVER),
    _length("below 0", "-1", SERVER),
    _length("in hexadecimal", "0x10", SERVER),
    _length("none", "", SERVER),
    _length("of 30 digits", str(10**30), SERVER, "413 request_too_large"),
    _head("a blank before the colon", f"content-length : {SIZE}", BODY, SERVER),
    _head(
        "a second chat right behind", f"content-length: {SIZE}", BODY + SMUGGLED, "200, 200", asks=2
    ),
    _coded(
        "and a length",
        f"content-length: {SIZE}\r\ntransfer-encoding: chunked",
        *EMPTY_AND_NEXT,
        asks=1,
    ),
    _head(
        "a length that is shorter than the chunks",
        "content-length: 4\r\ntransfer-encoding: chunked",
        CHUNK + END,
        *(SERVER, "200"),
        asks=1,
    ),
    _coded("twice", "transfer-encoding: chunked\r\ntransfer-encoding: identity", SERVER),
    _coded("a list that ends otherwise", "transfer-encoding: chunked, identity", SERVER),
    _coded(
        "packed and in chunks",
        "transfer-encoding: gzip, chunked",
        *EMPTY_AND_NEXT,
        "501 server",
        asks=1,
    ),
    _coded("unknown", "transfer-encoding: xchunked", SERVER, "501 server"),
    _coded("a blank before the colon", "transfer-encoding : chunked", SERVER),
    _coded("on the next line", "transfer-encoding:\r\n chunked", *EMPTY_AND_NEXT, asks=1),
    _coded("behind a vertical tab", "transfer-encoding: \x0bchunked", SERVER, "501 server"),
    _coded("behind a line feed", "x: y\ntransfer-encoding: chunked", *EMPTY_AND_NEXT, asks=1),
    _head(
        "coding: behind a carriage return",
        f"x: y\rtransfer-encoding: chunked\r\ncontent-length: {SIZE}",
        BODY,
        SERVER,
    ),
    _head(
        "coding: behind a tab", "transfer-encoding:\tchunked", CHUNK + END, SERVER, "200", asks=1
    ),
    Raw(
        "a chat in the body of a GET",
        http_bytes(method="GET", path="/v1/models", content_length=str(len(SMUGGLED))) + SMUGGLED,
        ("200",),
    ),
    _chunks("a size below 0", b"-1\r\n" + BODY + END, SERVER, NOTHING),
    _chunks("a size of C", b"0x5\r\nhello\r\n" + END, SERVER, NOTHING),
    _chunks(
        "a blank behind the size", b"%x \r\n%b\r\n" % (SIZE, BODY) + END, SERVER, "200", asks=1
    ),
    _chunks("a size that overflows", b"1" + b"0" * 16 + CHUNK + END, *DROPPED),
    _chunks("a size of 2 GiB", b"7fffffff\r\n" + BODY, *DROPPED),
    _chunks("longer than they say", b"%x\r\n%b\r\n" % (SIZE - 5, BODY) + END, *DROPPED),
    _chunks("shorter than they say", b"%x\r\n%b\r\n" % (SIZE + 5, BODY) + END, *DROPPED),
    _chunks("an extension", b"%x;a=b\r\n%b\r\n" % (SIZE, BODY) + END, "200", asks=1),
    _chunks(
        "an extension of 100 KB",
        b"%x;%b\r\n%b\r\n" % (SIZE, b"a" * 100_000, BODY) + END,
        *(SERVER, "200", NOTHING),
        asks=1,
    ),
    _chunks("an extension with a line in it", b"%x;a\n%b\r\n" % (SIZE, BODY) + END, *DROPPED),
    _chunks(
        "trailers that are headers",
        CHUNK + b"0\r\nauthorization: Bearer x\r\nx-injected: 1\r\n\r\n",
        *(SERVER, "200"),
        asks=1,
    ),
    _chunks(
        "10,000 trailers",
        CHUNK + b"0\r\n" + b"x: 1\r\n" * 10_000 + b"\r\n",
        "200",
        *TOO_LARGE,
        NOTHING,
        asks=1,
    ),
]

HEADERS = [
    _header("10,000", "\r\n".join(f"x-{n}: 1" for n in range(10_000)), *TOO_LARGE),
    _header("10,000 of one name", "\r\n".join(["x: 1"] * 10_000), *TOO_LARGE),
    _header("201", "\r\n".join(f"x-{n}: 1" for n in range(198)), *TOO_LARGE),
    _header("a value of 1 MB", "x: " + "y" * 1_000_000, *TOO_LARGE, NOTHING),
    _header("a name of 1 MB", "y" * 1_000_000 + ": x", *TOO_LARGE, NOTHING),
    _header("a value of 60 KB", "x: " + "y" * 60_000, "200", SERVER, asks=1),
    _header("a value of 70 KB", "x: " + "y" * 70_000, *TOO_LARGE),
    _header("a NUL in a value", "x: a\0b", SERVER),
    _header("a NUL in a name", "x\0y: b", SERVER),
    _header("no colon", "nothing", SERVER),
    _header("no name", ": x", SERVER),
    _header("latin-1 in a request id", "x-request-id: \xe9\xff", SERVER, "200", asks=1),
    _header("a carriage return in a request id", "x-request-id: a\rx-injected: 1", SERVER),
    _header(
        "a request id over two lines", "x-request-id: a\r\n x-injected: 1", SERVER, "200", asks=1
    ),
    _header("a request id of 10 KB", "x-request-id: " + "a" * 10_000, "200", asks=1),
    _header(
        "an odd content type",
        "content-type: a\xff",
        SERVER,
        "415 unsupported_media_type",
        "200",
        asks=1,
    ),
    _host("none", "", SERVER, "200", asks=1),
    _host("two", "host: a\r\nhost: b\r\n", SERVER, "200", asks=1),
    _host("a line feed in it", "host: a\nx-injected: 1\r\n", SERVER, "200", asks=1),
    _host("a path, a user and a query in it", "host: e/../x?y#z@q\r\n", SERVER, "200", asks=1),
    _host("another's", "host: 169.254.169.254\r\n", "200", asks=1),
    Raw("lines that end without CR", http_bytes(BODY).replace(b"\r\n", b"\n"), (SERVER, "200"), 1),
    Raw("an empty line first", b"\r\n" + http_bytes(BODY), (SERVER, "200"), 1),
    Raw(
        "an upgrade to HTTP/2",
        http_bytes(BODY, connection="upgrade", upgrade="h2c"),
        ("200", *REFUSED),
        1,
    ),
    Raw("waits to be told to go on", http_bytes(BODY, expect="100-continue"), ("200",), 1),
    Raw("waits for something else", http_bytes(BODY, expect="x"), ("200", "417 server"), 1),
]

FIRST_LINES = [
    _chat("a method in lower case", *NO_METHOD, method="post"),
    _chat("an unknown method", *NO_METHOD, "501 server", method="BREW"),
    _chat("a method of a kilobyte", *NO_METHOD, method="A" * 1000),
    _chat("a method with a bracket", *NO_METHOD, method="GE(T"),
    _chat("TRACE", *NO_METHOD, method="TRACE"),
    _chat("a tunnel", *NO_METHOD, *NOT_FOUND, NOTHING, path="127.0.0.1:1", method="CONNECT"),
    Raw(
        "HTTP/2.0 by its name",
        http_bytes(BODY).replace(b"HTTP/1.1", b"HTTP/2.0", 1),
        (SERVER, "200", "505 server"),
        1,
    ),
    Raw(
        "HTTP/9.9",
        http_bytes(BODY).replace(b"HTTP/1.1", b"HTTP/9.9", 1),
        (SERVER, "200", "505 server"),
        1,
    ),
    Raw("no version", b"GET /v1/models\r\n\r\n", (SERVER, "200")),
    _chat("an address", *NOT_FOUND, "200", asks=1, path=f"http://192.0.2.1:9{CHAT}"),
    _chat("an address with a user", *NOT_FOUND, "200", asks=1, path=f"http://a:b@192.0.2.1{CHAT}"),
    _chat("an address of a file", *NOT_FOUND, "200", asks=1, path=f"file://{CHAT}"),
    _chat("an address without a path", *NOT_FOUND, path="http://192.0.2.1"),
    _chat("a host alone", *NOT_FOUND, path="192.0.2.1:9"),
    _chat("no slash in front", *NOT_FOUND, path=CHAT[1:]),
    _chat("backslashes", *NOT_FOUND, path=CHAT.replace("/", "\\")),
    _chat("a semicolon", *NOT_FOUND, path=f"{CHAT};x"),
    _chat("a fragment", *NOT_FOUND, "200", asks=1, path=f"{CHAT}#x"),
    _chat("a header in the query", "200", asks=1, path=f"{CHAT}?x=%0d%0ax-injected:%201"),
    _chat("the path in the query", *NO_METHOD, path=f"/v1/models?{CHAT}"),
    _chat("slashes encoded", *NOT_FOUND, "200", asks=1, path="/v1%2Fchat%2Fcompletions"),
    _chat("a letter encoded", *NOT_FOUND, "200", asks=1, path="/v1/chat/completion%73"),
    _chat("slashes encoded twice", *NOT_FOUND, path="/v1/chat%252Fcompletions"),
    _chat("a slash overlong", *NOT_FOUND, path="/v1/chat%c0%afcompletions"),
    _chat("a broken encoding", *NOT_FOUND, path=f"{CHAT}%zz"),
    _chat("a cut encoding", *NOT_FOUND, path=f"{CHAT}%"),
    _chat("dots in front", *NOT_FOUND, "200", asks=1, path=f"/x/..{CHAT}"),
    _chat("dots encoded", *NOT_FOUND, "200", asks=1, path=f"/x/%2e%2e{CHAT}"),
    _chat("a dot in front", *NOT_FOUND, "200", asks=1, path=f"/.{CHAT}"),
    _chat("dots at the end", *NOT_FOUND, *NO_METHOD, path=f"{CHAT}/.."),
    _chat("two slashes in front", *NOT_FOUND, path=f"/{CHAT}"),
    _chat("slashes at the end", *NOT_FOUND, "200", asks=1, path=f"{CHAT}///"),
    _chat("a NUL", *NOT_FOUND, path=f"{CHAT}\0"),
    _chat("a path of 100 KB", *NOT_FOUND, *TOO_LARGE, "414 server", path="/" + "a" * 100_000),
    Raw(
        "a model with slashes",
        http_bytes(method="GET", path=f"/v1/models/{MODEL}%2F..%2F..%2Fapi"),
        ("404 model_not_found",),
    ),
    Raw(
        "a model with plain slashes",
        http_bytes(method="GET", path=f"/v1/models/{MODEL}/../../api"),
        ("404 model_not_found", "404 not_found"),
    ),
    Raw(
        "a model with a line",
        http_bytes(method="GET", path="/v1/models/a%0D%0Ax-injected:%201"),
        ("404 model_not_found",),
    ),
]

CODES = (
    *("invalid_request_error", "model_not_found", "unsupported_parameter", "method_not_allowed"),
    "server",
)

TABLED = [
    Raw(bad.name, bad.data, tuple(f"{bad.status} {code}" for code in (bad.code, *CODES)))
    for bad in BAD
    if len(bad.data) < 8 * 1024 * 1024
]
"""Those of `tests/test_bad_requests.py`, which knows more of each; not the largest, which take
seconds."""

ODD_ONES = [
    Raw(
        name,
        data,
        (
            NOTHING,
            "200",
            *REFUSED,
            *NOT_FOUND,
            *NO_METHOD,
            *TOO_LARGE,
            "204",
            "403 server",
            "404 not_found, 400 server",
        ),
        1,
    )
    for name, data in ODD.items()
    if name != "nothing"
]

RAW = [*SMUGGLING, *HEADERS, *FIRST_LINES, *TABLED, *ODD_ONES]

MOUNT = "/qwen"

MOUNTED = [
    _chat("as it is", "200", asks=1, path=f"{MOUNT}{CHAT}"),
    _chat("not below the mount", "404 server", path=CHAT),
    _chat("the mount twice", "404 not_found", path=f"{MOUNT}{MOUNT}{CHAT}"),
    _chat("the mount in the middle", "404 server", path=f"/v1{MOUNT}{CHAT}"),
    _chat("two slashes in front", "404 server", path=f"/{MOUNT}{CHAT}"),
    _chat("two slashes behind", "404 not_found", path=f"{MOUNT}/{CHAT}"),
    _chat("a name that begins so", "404 server", path=f"{MOUNT}x{CHAT}"),
    _chat("dots back to the host", "404 not_found", path=f"{MOUNT}/..{CHAT}"),
    _chat("encoded dots back to the host", "404 not_found", path=f"{MOUNT}/%2e%2e{CHAT}"),
    _chat("dots into the mount", "404 server", path=f"/x/..{MOUNT}{CHAT}"),
    _chat("the mount's slash encoded", "200", asks=1, path=f"{MOUNT}%2Fv1/chat/completions"),
    _chat("the mount in capitals", "404 server", path=f"{MOUNT.upper()}{CHAT}"),
    _chat("the mount alone", "404 not_found", path=MOUNT + "/"),
]
"""Below `MOUNT` of a Starlette app."""
