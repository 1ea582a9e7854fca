from __future__ import annotations

import traceback

import pytest

from qwen_asgi import errors
from qwen_asgi.errors import (
    AuthenticationFailed,
    GatewayError,
    HeadersTooLarge,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    NoSuchModel,
    NotFound,
    Overloaded,
    PermissionDenied,
    QwenASGIError,
    RateLimited,
    RequestError,
    RequestTimeout,
    RequestTooLarge,
    ShuttingDown,
    UnsupportedMediaType,
    UpstreamAuthenticationFailed,
    UpstreamBlocked,
    UpstreamConnectTimeout,
    UpstreamEmptyAnswer,
    UpstreamError,
    UpstreamFirstTimeout,
    UpstreamForbidden,
    UpstreamIdleTimeout,
    UpstreamInvalidResponse,
    UpstreamQuotaExhausted,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamSuspended,
    UpstreamTimeout,
    UpstreamTotalTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)

TABLE: dict[type[QwenASGIError], tuple[type[QwenASGIError], int, str, str | None]] = {
    InvalidRequest: (RequestError, 400, "invalid_request_error", None),
    ModelNotFound: (RequestError, 400, "invalid_request_error", "model_not_found"),
    NoSuchModel: (RequestError, 404, "invalid_request_error", "model_not_found"),
    RequestTooLarge: (RequestError, 413, "invalid_request_error", "request_too_large"),
    UnsupportedMediaType: (RequestError, 415, "invalid_request_error", "unsupported_media_type"),
    NotFound: (RequestError, 404, "invalid_request_error", "not_found"),
    MethodNotAllowed: (RequestError, 405, "invalid_request_error", "method_not_allowed"),
    AuthenticationFailed: (RequestError, 401, "authentication_error", "invalid_api_key"),
    PermissionDenied: (RequestError, 403, "permission_error", "permission_denied"),
    RateLimited: (RequestError, 429, "rate_limit_error", "rate_limited"),
    UpstreamError: (UpstreamError, 500, "upstream_error", "upstream_failed"),
    UpstreamRateLimited: (UpstreamError, 429, "rate_limit_error", "upstream_rate_limited"),
    UpstreamForbidden: (UpstreamError, 403, "permission_error", "upstream_forbidden"),
    UpstreamQuotaExhausted: (
        UpstreamError,
        403,
        "permission_error",
        "upstream_quota_exhausted",
    ),
    UpstreamRefused: (UpstreamError, 400, "invalid_request_error", "upstream_refused"),
    UpstreamAuthenticationFailed: (
        UpstreamError,
        500,
        "upstream_error",
        "upstream_authentication",
    ),
    UpstreamBlocked: (UpstreamError, 500, "upstream_error", "upstream_blocked"),
    UpstreamUnreachable: (UpstreamError, 500, "upstream_error", "upstream_unreachable"),
    UpstreamSuspended: (UpstreamUnreachable, 503, "upstream_error", "upstream_suspended"),
    UpstreamTimeout: (UpstreamError, 500, "upstream_error", "upstream_timeout"),
    UpstreamConnectTimeout: (UpstreamTimeout, 500, "upstream_error", "upstream_connect_timeout"),
    UpstreamFirstTimeout: (UpstreamTimeout, 500, "upstream_error", "upstream_first_timeout"),
    UpstreamIdleTimeout: (UpstreamTimeout, 500, "upstream_error", "upstream_idle_timeout"),
    UpstreamTotalTimeout: (UpstreamTimeout, 500, "upstream_error", "upstream_total_timeout"),
    UpstreamTruncated: (UpstreamError, 500, "upstream_error", "upstream_truncated"),
    UpstreamEmptyAnswer: (
        UpstreamInvalidResponse,
        500,
        "upstream_error",
        "upstream_empty_answer",
    ),
    UpstreamInvalidResponse: (
        UpstreamError,
        500,
        "upstream_error",
        "upstream_invalid_response",
    ),
    Overloaded: (GatewayError, 503, "overloaded_error", "overloaded"),
    RequestTimeout: (RequestError, 408, "invalid_request_error", "request_timeout"),
    HeadersTooLarge: (RequestError, 431, "invalid_request_error", "headers_too_large"),
    ShuttingDown: (GatewayError, 503, "overloaded_error", "shutting_down"),
    InternalError: (GatewayError, 500, "internal_error", "internal_error"),
}
"""Section 7 of the design: whose fault, status, type and code. The two 403s are those of the wire
notes on Model Studio: neither the client's request nor waiting changes them."""

GROUPS = {QwenASGIError, RequestError, GatewayError}


def make(kind: type[QwenASGIError], message: str = "what was wrong") -> QwenASGIError:
    return MethodNotAllowed(message, "GET") if kind is MethodNotAllowed else kind(message)


def test_the_table_knows_each_error() -> None:
    found = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, QwenASGIError)
    }
    assert found == TABLE.keys() | GROUPS


@pytest.mark.parametrize("kind", TABLE, ids=lambda kind: str(kind.__name__))
def test_each_error_has_the_status_type_and_code_of_the_design(kind: type[QwenASGIError]) -> None:
    group, status, type, code = TABLE[kind]
    error = make(kind)
    assert isinstance(error, group)
    assert (error.status, error.type, error.code) == (status, type, code)
    assert str(error) == error.message == "what was wrong"
    assert error.param is None
    assert error.retry_after is None


def test_the_tree_at_the_top_of_the_file_is_the_tree() -> None:
    """Its indentation says which error is which error's kind."""
    lines = (errors.__doc__ or "").splitlines()
    drawn: list[tuple[int, str]] = []
    for line in lines:
        if line.startswith("    "):
            drawn.append((len(line) - len(line.lstrip()), line.split()[0]))
    parents: dict[str, str] = {}
    for index, (depth, name) in enumerate(drawn):
        above = [other for other_depth, other in drawn[:index] if other_depth < depth]
        if above:
            parents[name] = above[-1]
    real = {
        name: vars(errors)[name].__base__.__name__ for _, name in drawn if name != "QwenASGIError"
    }
    assert parents == real
    assert {name for _, name in drawn} == {kind.__name__ for kind in TABLE.keys() | GROUPS}


def test_the_upstreams_own_code_goes_before_ours() -> None:
    assert UpstreamRefused("x", code="data_inspection_failed").code == "data_inspection_failed"
    assert UpstreamRefused("x", code="").code == "upstream_refused"


def test_a_wait_goes_out_as_a_header() -> None:
    assert UpstreamRateLimited("x", retry_after=7).headers == {"retry-after": "7"}
    assert UpstreamRateLimited("x", retry_after=0).headers == {"retry-after": "0"}
    assert UpstreamRateLimited("x").headers == {}
    assert Overloaded("x", retry_after=1).headers == {"retry-after": "1"}


def test_http_s_own_errors_carry_the_header_that_http_asks_for() -> None:
    assert MethodNotAllowed("x", "GET, HEAD").headers == {"allow": "GET, HEAD"}
    assert AuthenticationFailed("x").headers == {"www-authenticate": "Bearer"}


def test_a_message_that_was_cleaned_is_nowhere_else() -> None:
    error = UpstreamError("the key is CANARY")
    error.message = error.message.replace("CANARY", "(removed)")
    shown = "".join(traceback.format_exception(error))
    assert "(removed)" in shown
    assert "CANARY" not in f"{shown} {error!r} {error.args}"
