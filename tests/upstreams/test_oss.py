from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_asgi.errors import UpstreamError, UpstreamInvalidResponse, UpstreamRefused
from qwen_asgi.testing.storage import signature
from qwen_asgi.upstreams._held_files import InlineFile, Upload
from qwen_asgi.upstreams._oss import Ticket, lifetime, object_url, refusal, signed_put

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "oss" / "put.json").read_bytes())
SECRETS = {
    "key_id": "STS.EXAMPLE",
    "key_secret": "EXAMPLE-secret/+",
    "token": "EXAMPLE-token+/=",
}
DEFAULT = ("*.aliyuncs.com",)


def ticket(**fields: Any) -> Ticket:
    usual: dict[str, Any] = {
        "file": Upload("id", "https://b/canary-address"),
        "bucket": "example-bucket",
        "key": "a/cat.png",
        "endpoint": "oss-accelerate.aliyuncs.com",
        "region": "ap-southeast-1",
        **SECRETS,
    }
    return Ticket(**{**usual, **fields})


def file(media_type: str = "image/png") -> InlineFile:
    return InlineFile("image", media_type, "cat.png", b"canary-data", b"")


@pytest.mark.parametrize("vector", VECTORS, ids=[v["key"][:20] + v["bucket"] for v in VECTORS])
def test_a_signature_is_the_one_of_alibaba_s_own_library(vector: dict[str, Any]) -> None:
    """Made by tests/oss_vectors.py; the simulated storage checks by a code of its own."""
    own = ticket(**{name: vector[name] for name in ("bucket", "region", "key")})
    call = signed_put(own, "https://h/x", file(vector["media_type"]), vector["now"])
    assert call.headers["authorization"] == vector["authorization"]
    assert call.headers["x-oss-date"] == vector["x-oss-date"]
    resource = f"/{vector['bucket']}/{vector['key']}"
    witness = signature(own.key_secret, resource, call.headers, vector["region"])
    assert vector["authorization"].endswith(f",Signature={witness}")


def test_the_call_is_that_of_the_web_client_and_shows_no_secret() -> None:
    own = ticket()
    call = signed_put(own, object_url(own, DEFAULT), file(), 1_772_622_850)
    assert (call.method, call.url) == (
        "PUT",
        "https://example-bucket.oss-accelerate.aliyuncs.com/a/cat.png",
    )
    assert call.body == b"canary-data"
    assert call.headers.keys() == {
        "accept",
        "authorization",
        "content-type",
        "x-oss-content-sha256",
        "x-oss-date",
        "x-oss-security-token",
    }
    assert call.headers["x-oss-security-token"] == own.token
    shown = f"{call!r} {own!r} {own} {file()!r}"
    assert "EXAMPLE" not in shown
    assert "canary" not in shown


URLS: list[tuple[dict[str, Any], tuple[str, ...], str]] = [
    ({"endpoint": "https://oss-cn-hangzhou.aliyuncs.com"}, DEFAULT, "https://example-bucket.oss-cn-hangzhou.aliyuncs.com/a/cat.png"),
    ({"key": "a b/猫+.png"}, DEFAULT, "https://example-bucket.oss-accelerate.aliyuncs.com/a%20b/%E7%8C%AB%2B.png"),
    ({"endpoint": "127.0.0.1:9000"}, ("http://127.0.0.1:9000",), "http://127.0.0.1:9000/example-bucket/a/cat.png"),
    ({"endpoint": "http://127.0.0.1:9000"}, ("x.org", "http://127.0.0.1:9000"), "http://127.0.0.1:9000/example-bucket/a/cat.png"),
    ({"endpoint": "[::1]:9"}, ("https://[::1]:9",), "https://[::1]:9/example-bucket/a/cat.png"),
    ({"endpoint": "store.example:9"}, ("http://*.store.example:9",), "http://example-bucket.store.example:9/a/cat.png"),
    ({"endpoint": "store.example"}, ("example-bucket.store.example",), "https://example-bucket.store.example/a/cat.png"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "hosts", "url"), URLS, ids=[url for _, _, url in URLS])
def test_an_object_is_put_where_the_ticket_says(
    fields: dict[str, Any], hosts: tuple[str, ...], url: str
) -> None:
    assert object_url(ticket(**fields), hosts) == url


@pytest.mark.parametrize(
    ("endpoint", "hosts"),
    [
        ("evil.example", DEFAULT),
        ("oss.aliyuncs.com.evil.example", DEFAULT),
        ("evilaliyuncs.com", DEFAULT),
        ("http://oss-accelerate.aliyuncs.com", DEFAULT),
        ("oss-accelerate.aliyuncs.com:8443", DEFAULT),
        ("127.0.0.1", DEFAULT),
        ("169.254.169.254", ("*.aliyuncs.com", "http://127.0.0.1:9000")),
        ("127.0.0.1:9001", ("http://127.0.0.1:9000",)),
        ("https://127.0.0.1:9000", ("http://127.0.0.1:9000",)),
        ("store.example", ("store.example",)),
    ],
)
def test_nothing_is_put_anywhere_else(endpoint: str, hosts: tuple[str, ...]) -> None:
    with pytest.raises(UpstreamInvalidResponse) as raised:
        object_url(ticket(endpoint=endpoint), hosts)
    assert "QWEN_UPLOAD_HOSTS" in str(raised.value)
    assert endpoint not in str(raised.value)


def said(code: str) -> bytes:
    return (
        f"<Error><Code>{code}</Code><OSSAccessKeyId>STS.EXAMPLE</OSSAccessKeyId></Error>".encode()
    )


@pytest.mark.parametrize(
    ("status", "body", "kind", "shown"),
    [
        (403, said("SignatureDoesNotMatch"), UpstreamError, "(HTTP 403, SignatureDoesNotMatch)"),
        (403, said("EXAMPLE"), UpstreamError, "(HTTP 403)"),
        (403, said("RequestTimeTooSkewed"), UpstreamError, "clock"),
        (500, b"\xff<html>EXAMPLE", UpstreamError, "(HTTP 500)"),
        (400, said("EntityTooLarge"), UpstreamRefused, "this large"),
        (413, b"", UpstreamRefused, "this large"),
        (307, b"", UpstreamInvalidResponse, "elsewhere"),
        (204, b"", UpstreamError, "(HTTP 204)"),
    ],
)
def test_a_refusal_tells_a_code_that_is_known_and_nothing_else(
    status: int, body: bytes, kind: type[UpstreamError], shown: str
) -> None:
    error = refusal(status, body)
    assert type(error) is kind
    assert shown in str(error)
    assert "EXAMPLE" not in str(error)


@pytest.mark.parametrize(
    ("url", "seconds"),
    [
        ("https://h/x", None),
        ("https://h/x?x-oss-signature=EXAMPLE", None),
        ("https://h/x?x-oss-date=20260304T111412Z&x-oss-expires=300&a=b", 300),
        ("https://h/x?Expires=1500&OSSAccessKeyId=a&Signature=b", 500),
        ("https://h/x?Expires=900", -100),
        ("https://h/x?x-oss-expires=soon", None),
    ],
)
def test_an_address_says_how_long_it_holds(url: str, seconds: float | None) -> None:
    assert lifetime(url, 1000) == seconds
