"""The classes of failure that the layers tell apart."""

from __future__ import annotations

from qwen_asgi.errors import (
    InvalidRequest,
    Overloaded,
    QwenASGIError,
    UpstreamAuthenticationFailed,
    UpstreamBlocked,
    UpstreamEmptyAnswer,
    UpstreamError,
    UpstreamForbidden,
    UpstreamInvalidResponse,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)

_OUTAGES = (UpstreamUnreachable, UpstreamTimeout, UpstreamTruncated, UpstreamInvalidResponse)

_UNFIT_CODES = {
    "upstream_invalid_json",
    "upstream_no_tool_call",
    "upstream_answer_too_long",
    "upstream_upload_failed",
}
"""That a model does not keep to the form which a client asked for, or does not come to an end, is
not the upstream's failure; and a file that cannot be put keeps nobody from talking."""

_BY_ERROR: tuple[tuple[type[QwenASGIError], str], ...] = (
    (UpstreamRateLimited, "limit"),
    (UpstreamForbidden, "quota"),
    (UpstreamAuthenticationFailed, "credential"),
    (UpstreamBlocked, "blocked"),
    (UpstreamRefused, "refused"),
    (UpstreamError, "outage"),
    (Overloaded, "busy"),
)


def class_of(error: QwenASGIError) -> str:
    """Return the name of the failure's class; empty where no other upstream can help."""
    if isinstance(error, UpstreamRefused) and error.code == "model_not_found":
        return "model"
    if isinstance(error, InvalidRequest):
        # What this dialect cannot do, another one may.
        return "unsupported" if error.code == "unsupported_parameter" else ""
    return next((name for kind, name in _BY_ERROR if isinstance(error, kind)), "")


def is_outage(error: QwenASGIError) -> bool:
    """Whether the upstream itself is broken: a limit, a quota or a refusal is its good working, and
    that a model says nothing may be the question's doing."""
    if isinstance(error, UpstreamEmptyAnswer) or error.code in _UNFIT_CODES:
        return False
    return isinstance(error, _OUTAGES) or type(error) is UpstreamError
