"""Everything that can go wrong, in one tree, split by whose fault it is.

    QwenASGIError
      RequestError                 the client can change its request
        InvalidRequest             a field is missing, wrong, or cannot be honoured here
          ModelNotFound
            NoSuchModel
          RequestTooLarge
          UnsupportedMediaType
        RequestTimeout             its body did not come in time
        HeadersTooLarge
        NotFound                   no such path
        MethodNotAllowed
        AuthenticationFailed
        PermissionDenied
        RateLimited                a limit of the gateway's own
      UpstreamError                the upstream refused or broke
        UpstreamRateLimited
        UpstreamForbidden          the gateway's account has no right to it
          UpstreamQuotaExhausted   ... until somebody pays
        UpstreamRefused            it will not answer this content
        UpstreamAuthenticationFailed
        UpstreamBlocked            a block page or a demand for a human check
        UpstreamUnreachable
          UpstreamSuspended        it failed too often, and is left alone for a while
        UpstreamTimeout
          UpstreamConnectTimeout   no connection
          UpstreamFirstTimeout     no first event of the answer
          UpstreamIdleTimeout      a silence within the answer
          UpstreamTotalTimeout     the whole answer
        UpstreamTruncated          its answer ended before its end
        UpstreamInvalidResponse    it answered something that cannot be read, or nothing
          UpstreamEmptyAnswer      the model ended without a word
      GatewayError
        Overloaded
        ShuttingDown
        InternalError

Each carries what an answer needs (`status`, `type`, `code`, `param`, `retry_after`) and none knows
any client API's format. A message is for the person who reads it; it never holds a key, a prompt
or an upstream's raw body.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class QwenASGIError(Exception):
    """The base of all that this package raises while it serves a request."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal_error"
    default_code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        # The message is not in `args`, so that nothing but `message` need be cleaned of a secret.
        super().__init__()
        self.message = message
        self.code = code or self.default_code
        """A short name that programs can compare."""
        self.param = param
        """The field of the request that is at fault, as a path: `messages[0].content`."""
        self.retry_after = retry_after
        """Seconds after which it is worth trying again."""

    def __str__(self) -> str:
        return self.message

    @property
    def headers(self) -> Mapping[str, str]:
        """HTTP headers that belong to the error itself."""
        return {} if self.retry_after is None else {"retry-after": str(self.retry_after)}


class RequestError(QwenASGIError):
    status = 400
    type = "invalid_request_error"


class InvalidRequest(RequestError):
    """The request is malformed, or asks for what this upstream cannot do."""


class ModelNotFound(InvalidRequest):
    """400 where a chat names an unknown model, as the seed has it."""

    default_code = "model_not_found"


class NoSuchModel(ModelNotFound):
    """404 where the model itself was asked for by its address."""

    status = 404


class RequestTooLarge(InvalidRequest):
    status = 413
    default_code = "request_too_large"


class RequestTimeout(RequestError):
    status = 408
    default_code = "request_timeout"


class HeadersTooLarge(RequestError):
    status = 431
    default_code = "headers_too_large"


class UnsupportedMediaType(InvalidRequest):
    status = 415
    default_code = "unsupported_media_type"


class NotFound(RequestError):
    status = 404
    default_code = "not_found"


class MethodNotAllowed(RequestError):
    status = 405
    default_code = "method_not_allowed"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow

    @property
    def headers(self) -> Mapping[str, str]:
        return {"allow": self.allow}


class AuthenticationFailed(RequestError):
    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"www-authenticate": "Bearer"}


class PermissionDenied(RequestError):
    status = 403
    type = "permission_error"
    default_code = "permission_denied"


class RateLimited(RequestError):
    status = 429
    type = "rate_limit_error"
    default_code = "rate_limited"


class UpstreamError(QwenASGIError):
    """The upstream failed in a way that the client's request did not cause."""

    type = "upstream_error"
    default_code = "upstream_failed"


class UpstreamRateLimited(UpstreamError):
    status = 429
    type = "rate_limit_error"
    default_code = "upstream_rate_limited"


class UpstreamRefused(UpstreamError):
    """400: the upstream will not answer this content; its own code is kept."""

    status = 400
    type = "invalid_request_error"
    default_code = "upstream_refused"


class UpstreamForbidden(UpstreamError):
    """403: the credential is good, but its account may not use this; waiting does not help."""

    status = 403
    type = "permission_error"
    default_code = "upstream_forbidden"


class UpstreamQuotaExhausted(UpstreamForbidden):
    """403: the account has used up what it has paid for, or was given."""

    default_code = "upstream_quota_exhausted"


class UpstreamAuthenticationFailed(UpstreamError):
    default_code = "upstream_authentication"


class UpstreamBlocked(UpstreamError):
    default_code = "upstream_blocked"


class UpstreamUnreachable(UpstreamError):
    default_code = "upstream_unreachable"


class UpstreamSuspended(UpstreamUnreachable):
    """503: it is not even asked."""

    status = 503
    default_code = "upstream_suspended"


class UpstreamTimeout(UpstreamError):
    default_code = "upstream_timeout"


class UpstreamConnectTimeout(UpstreamTimeout):
    default_code = "upstream_connect_timeout"


class UpstreamFirstTimeout(UpstreamTimeout):
    default_code = "upstream_first_timeout"


class UpstreamIdleTimeout(UpstreamTimeout):
    default_code = "upstream_idle_timeout"


class UpstreamTotalTimeout(UpstreamTimeout):
    default_code = "upstream_total_timeout"


class UpstreamTruncated(UpstreamError):
    default_code = "upstream_truncated"


class UpstreamInvalidResponse(UpstreamError):
    default_code = "upstream_invalid_response"


class UpstreamEmptyAnswer(UpstreamInvalidResponse):
    """All of its form was there but no text: a question may bring that about."""

    default_code = "upstream_empty_answer"


class GatewayError(QwenASGIError):
    """The gateway itself cannot serve the request."""


class Overloaded(GatewayError):
    status = 503
    type = "overloaded_error"
    default_code = "overloaded"


class ShuttingDown(GatewayError):
    """503: it takes no more requests, or had to end this one. Another one may answer it."""

    status = 503
    type = "overloaded_error"
    default_code = "shutting_down"


class InternalError(GatewayError):
    """A bug. The answer names the request id, under which the log has the traceback."""

    default_code = "internal_error"
