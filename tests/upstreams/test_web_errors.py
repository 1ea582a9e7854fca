"""What an answer other than 200 means, and what of it nobody may see.

The failures that come with HTTP 200 are tested in all their forms with the decoder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_asgi.errors import (
    UpstreamAuthenticationFailed,
    UpstreamBlocked,
    UpstreamError,
    UpstreamInvalidResponse,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTruncated,
)
from qwen_asgi.upstreams import _openai_errors
from qwen_asgi.upstreams._documents import read_document
from qwen_asgi.upstreams._web_errors import failure, refusal
from qwen_asgi.upstreams._words import Secrets
from tests.wire import sample

WAF = sample("web-waf.html").data
NGINX = b"<html>\r\n<head><title>oops</title></head>\r\n</html>\r\n"
JSON_FAILURE = b'{"success": false, "data": {"code": "Oops", "details": "no"}}'

STATUSES: list[tuple[int, bytes, type[UpstreamError], int]] = [
    (400, b"", UpstreamRefused, 400),
    (400, b'{"detail": "bad"}', UpstreamRefused, 400),
    (400, NGINX, UpstreamRefused, 400),
    (401, sample("web-401.json").data, UpstreamAuthenticationFailed, 500),
    (401, NGINX, UpstreamAuthenticationFailed, 500),
    (403, b"", UpstreamAuthenticationFailed, 500),
    (403, NGINX, UpstreamBlocked, 500),
    (403, WAF, UpstreamBlocked, 500),
    (404, b"", UpstreamError, 500),
    (404, NGINX, UpstreamError, 500),
    (405, NGINX, UpstreamBlocked, 500),
    (408, b"", UpstreamError, 500),
    (413, NGINX, UpstreamRefused, 400),
    (422, b'{"detail": []}', UpstreamRefused, 400),
    (429, b"", UpstreamRateLimited, 429),
    (429, NGINX, UpstreamRateLimited, 429),
    (429, WAF, UpstreamRateLimited, 429),
    (429, JSON_FAILURE, UpstreamRateLimited, 429),
    (500, b"", UpstreamError, 500),
    (500, JSON_FAILURE, UpstreamError, 500),
    (502, NGINX, UpstreamError, 500),
    (503, WAF, UpstreamBlocked, 500),
    (503, sample("web-waf-punish.json").data, UpstreamBlocked, 500),
    (500, sample("web2-ratelimited-200.json").data, UpstreamRateLimited, 429),
    (400, sample("web2-chat-in-progress.json").data, UpstreamRateLimited, 429),
    (400, sample("web2-model-not-found.json").data, UpstreamRefused, 400),
    (201, b"{}", UpstreamError, 500),
    (204, b"", UpstreamError, 500),
    (302, NGINX, UpstreamError, 500),
    (500, b"\xff\xfe\x00", UpstreamError, 500),
    (500, b"[" * 100_000, UpstreamError, 500),
    (500, b"null", UpstreamError, 500),
]


@pytest.mark.parametrize(("status", "body", "kind", "public"), STATUSES)
def test_a_status_and_its_body_are_one_error(
    status: int, body: bytes, kind: type[UpstreamError], public: int
) -> None:
    error = refusal(status, {}, body)
    assert type(error) is kind
    assert error.status == public
    assert error.code
    assert "html" not in str(error).lower()


def test_an_unknown_status_is_told() -> None:
    assert str(refusal(503, {}, b"")) == "the upstream failed with HTTP 503"


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({"retry-after": "30"}, b"", 30),
        ({"retry-after": "30"}, NGINX, 30),
        ({"retry-after": "30"}, b'{"detail": "slow down"}', 30),
        ({"retry-after": "30"}, sample("web-429.json").data, 14400),
        ({"retry-after": "Wed, 21 Oct 9999999999 07:28:00 GMT"}, b"", None),
        ({}, b"", None),
    ],
)
def test_a_limit_says_when_to_come_back(
    headers: dict[str, str], body: bytes, expected: int | None
) -> None:
    error = refusal(429, headers, body)
    assert error.retry_after == expected
    assert error.headers == ({} if expected is None else {"retry-after": str(expected)})


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"success": True},
        {"success": None},
        {"choices": [{}], "code": "fine"},
        {"code": None},
        {"code": ""},
        {"code": 200},
        {"error": None},
        {"error": ""},
        {"error": {}},
        {"detail": "x"},
    ],
)
def test_a_document_that_says_no_failure_is_none(document: dict[str, Any]) -> None:
    assert failure(document) is None


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", UpstreamTruncated),
        (b'{"a": 1', UpstreamTruncated),
        (b'{"a": "x', UpstreamTruncated),
        (b"{'a'}", UpstreamInvalidResponse),
        (b"[]", UpstreamInvalidResponse),
        (b"5", UpstreamInvalidResponse),
        (b'"x"', UpstreamInvalidResponse),
        (b"\xff", UpstreamInvalidResponse),
    ],
)
def test_a_body_that_is_no_document_is_an_error(body: bytes, kind: type[UpstreamError]) -> None:
    with pytest.raises(UpstreamError) as raised:
        read_document(body)
    assert type(raised.value) is kind


# What nobody may see.

SECRETS = [
    "sk-canary-1",
    "Zq7",
    "eyJhbGciOiJIUzI1NiJ9.eyJpZCI6InF6eHZ3IiwiZXhwIjoxfQ.qzxvwqzxvwqzxvwqzxvw",
    "qzx!vw?qzxvwqzxvwqzxvwqzxvwqzxvw$qzx^vw",
    "Q" * 300,
]


def echoes(text: str) -> Iterator[dict[str, Any]]:
    """Every place of a failure that an upstream could repeat a request in."""
    for field in "details", "message", "detail":
        yield {"success": False, "data": {"code": "Oops", field: text}}
        yield {"success": False, "data": {"code": "Bad_Request", field: text}}
        yield {"success": False, "data": {"code": "RateLimited", field: text}}
        yield {"error": {"code": "Oops", field: text}}
        yield {"code": "Oops", field: text}
    for code in text, f"Oops_{text}":
        yield {"success": False, "data": {"code": code}}
        yield {"error": {"code": code, "details": "Allocated quota exceeded"}}
    yield {"error": text}
    yield {"ret": [text]}
    yield {"ret": [f"{text}::FAIL_SYS"]}
    yield {"ret": text}


def shown(error: UpstreamError | None) -> str:
    assert error is not None
    return f"{error} {error!r} {error.args} {error.message} {error.code} {error.param}"


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("place", [0, 1, 150, 190, 195, 199, 200, 205, 1990, 1999])
def test_the_credential_is_struck_out_wherever_the_upstream_repeats_it(
    secret: str, place: int
) -> None:
    filler = ("word " * 500)[:place]
    for text in f"{filler}{secret} {filler}", f"{filler}Bearer {secret}", f"{filler}'{secret}'.":
        for document in echoes(text):
            for error in (
                failure(document, secrets=Secrets(secret)),
                refusal(500, {}, json.dumps(document).encode(), secrets=Secrets(secret)),
                refusal(429, {}, json.dumps(document).encode(), secrets=Secrets(secret)),
            ):
                # Nor a part of it that is long enough to be one.
                for start in range(max(1, len(secret) - 3)):
                    assert secret[start : start + 4] not in shown(error)


PRIVATE = {
    "an address": "see https://chat.example.invalid/punish?x5secdata=CANARY&action=captcha now",
    "an address of another kind": "redis://user:CANARY@10.0.0.1/0 refused",
    "a token": "token eyJhbGciOiJIUzI1NiJ9CANARY is old",
    "what is long": "no " * 200 + "CANARY",
}


@pytest.mark.parametrize("name", PRIVATE)
def test_an_address_a_token_and_what_is_long_are_not_shown(name: str) -> None:
    for document in echoes(PRIVATE[name]):
        text = shown(failure(document))
        assert "CANARY" not in text
        assert "10.0.0.1" not in text
        assert len(str(failure(document))) < 300


def test_a_forged_line_stays_one_line() -> None:
    text = "x\r\n2025-01-01 - INFO - forged\x1b[2J\x00\u2028y\u202egpj\ufefftail\u200b"
    for document in echoes(text):
        error = failure(document)
        assert error is not None
        assert str(error).isprintable()
        assert error.code is not None
        assert error.code.isascii()
        assert error.code.isprintable()
        assert " " not in error.code


@settings(max_examples=150, deadline=None, database=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["success", "data", "code", "details", "message", "error", "ret", "num", "x"]
                ),
                inner,
                max_size=5,
            )
        ),
    ),
    st.sampled_from([200, 400, 401, 403, 429, 500, 503]),
)
def test_any_document_is_an_error_or_none_and_never_a_crash(document: Any, status: int) -> None:
    found: UpstreamError | None = refusal(status, {}, json.dumps(document).encode())
    assert isinstance(found, UpstreamError)
    if isinstance(document, dict):
        found = failure(document, status)
    if found is not None:
        assert str(found).isprintable()
        assert len(str(found)) < 300
        assert found.retry_after is None or 0 <= found.retry_after <= 604800


@pytest.mark.parametrize(
    "document",
    [
        {"success": False, "data": {"code": "RateLimited", "num": 4}},
        {"success": False, "data": {"code": "RateLimited", "num": "4"}},
        {"success": False, "num": 4, "data": {"code": "RateLimited"}},
        {"success": False, "code": "RateLimited", "num": 4},
        {"success": False, "error": {"code": "RateLimited", "num": 4}},
        {"error": {"code": "RateLimited"}, "num": 4},
        {"error": {"message": "Quota exceeded", "num": 4}},
    ],
)
def test_the_hours_of_a_limit_are_found_wherever_they_stand(document: dict[str, Any]) -> None:
    error = failure(document)
    assert isinstance(error, UpstreamRateLimited)
    assert error.retry_after == 4 * 3600


@pytest.mark.parametrize("num", [True, "soon", "-1", -1, 0, None, [4], float("nan"), "9" * 400])
def test_hours_that_are_none_are_not_told(num: Any) -> None:
    error = failure({"code": "RateLimited", "num": num})
    assert isinstance(error, UpstreamRateLimited)
    assert error.retry_after is None


@pytest.mark.parametrize(
    ("details", "code"),
    [
        ("Model not found", "model_not_found"),
        ("Model xyz not exist", "model_not_found"),
        ("The chat does not exist.", "Not_Found"),
        ("gone", "Not_Found"),
    ],
)
def test_what_is_gone_is_refused_and_no_outage(details: str, code: str) -> None:
    error = failure({"success": False, "data": {"code": "Not_Found", "details": details}})
    assert type(error) is UpstreamRefused
    assert error.code == code


@pytest.mark.parametrize("read", [refusal, _openai_errors.refusal])
@pytest.mark.parametrize("body", [b"", b'{"detail": "down"}'])
def test_any_refusal_may_say_when_to_come_back(read: Any, body: bytes) -> None:
    assert read(503, {"retry-after": "3"}, body).retry_after == 3
