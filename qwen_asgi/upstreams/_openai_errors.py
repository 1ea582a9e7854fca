"""How OpenAI-compatible servers fail: Model Studio, vLLM, SGLang, llama.cpp, Ollama and their kin.

Source: section 4 of the wire notes on Model Studio (facts DS-80 to DS-93), and the shapes that
other servers are known to send: OpenAI's `{"error": {...}}`, an `error` that is only a sentence
(Ollama), the flat object of vLLM and SGLang (`{"object": "error", "message": ..., "code": 404}`),
FastAPI's `{"detail": ...}`, and DashScope's own `{"code", "message", "request_id"}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_asgi import sse
from qwen_asgi.errors import (
    UpstreamAuthenticationFailed,
    UpstreamError,
    UpstreamForbidden,
    UpstreamInvalidResponse,
    UpstreamQuotaExhausted,
    UpstreamRateLimited,
    UpstreamRefused,
)
from qwen_asgi.upstreams._documents import read_object
from qwen_asgi.upstreams._retry_after import retry_after
from qwen_asgi.upstreams._words import NONE, Secrets, plain_code, said

_CREDENTIAL = {"invalid_api_key", "invalid_authentication", "unauthorized"}
_FORBIDDEN = {"access_denied", "accessdenied", "accessdenied.unpurchased", "model.accessdenied"}
_NO_MONEY = {"allocationquota.freetieronly", "arrearage"}
_LIMITED = {
    "insufficient_quota",  # with 403 it is final (DS-87)
    "limit_burst_rate",
    "limit_requests",
    "rate_limit_exceeded",
    "throttling",
    "throttling.allocationquota",
    "throttling.concurrency",
    "throttling.ratequota",
}
_REFUSED = {
    "context_length_exceeded",
    "data_inspection_failed",
    "datainspectionfailed",
    "invalid_parameter_error",
    "invalidparameter",
}
_REFUSED_STATUSES = {400, 405, 406, 409, 413, 415, 422}


def failure(
    document: Mapping[str, Any], status: int = 200, *, secrets: Secrets = NONE
) -> UpstreamError | None:
    """Return the error that a JSON document of the upstream means, or None if it means none.

    `secrets` are struck out of what the error repeats of the document.
    """
    data = _error_of(document, status)
    return None if data is None else _from_code(data, status, secrets)


def refusal(
    status: int, headers: Mapping[str, str], body: bytes, *, secrets: Secrets = NONE
) -> UpstreamError:
    """Return the error that an answer with a status other than 200 means."""
    if body.lstrip()[:1] == b"<":
        return web_page(status)
    document = _document(body)
    error = failure(document, status, secrets=secrets) or _from_code(document, status, secrets)
    if error.retry_after is None:
        error.retry_after = retry_after(headers)
    return error


def web_page(status: int = 200) -> UpstreamError:
    """Return the error for a page where data should be: an address, or a proxy, that is wrong."""
    return UpstreamInvalidResponse(
        f"the upstream answered with a web page (HTTP {status}) instead of data; is its address "
        "(base_url; QWEN_BASE_URL of the only upstream) right?"
    )


def _document(body: bytes) -> Mapping[str, Any]:
    """Return the JSON object of an error's body, bare or within an event (DS-90, DS-91)."""
    document = read_object(body)
    if document is not None:
        return document
    reader = sse.Decoder()
    try:
        frames = reader.feed(body)
        last = reader.close()
    except sse.FrameTooLarge:
        return {}
    for _, data in [*frames, *([last] if last else [])]:
        document = read_object(data)
        if document is not None:
            return document
    return {}


def _error_of(document: Mapping[str, Any], status: int) -> Mapping[str, Any] | None:
    """Return the part of a document that tells of an error, if it does."""
    error = document.get("error")
    if isinstance(error, Mapping):
        return error
    if error:
        parts = error if isinstance(error, list) else [error]
        return {"message": "; ".join(part for part in parts if isinstance(part, str))}
    if document.get("choices"):
        return None
    if document.get("object") == "error" or isinstance(document.get("code"), str | int):
        return document
    if status != 200 and "detail" in document:
        return {"message": document["detail"] if isinstance(document["detail"], str) else ""}
    return None


def _from_code(data: Mapping[str, Any], status: int, secrets: Secrets) -> UpstreamError:
    """The one table from the upstream's codes, and the status, to our errors."""
    code = data.get("code")
    if isinstance(code, int) and status == 200:
        # So vLLM and llama.cpp say it within a stream.
        status = code
    names = [n for n in (code, data.get("type")) if isinstance(n, str) and n]
    known = {name.lower() for name in names}
    message = data.get("message")
    words = said(secrets.struck(message)) if isinstance(message, str) else ""
    shown = next(filter(None, (plain_code(secrets.struck(name)) for name in names)), None)
    if status == 401 or known & _CREDENTIAL:
        return UpstreamAuthenticationFailed(
            "the upstream does not accept the gateway's credential, which holds for one region "
            "only; its operator must set api_key right (QWEN_API_KEY of the only upstream)"
        )
    if known & _NO_MONEY or (status == 403 and "insufficient_quota" in known):
        return UpstreamQuotaExhausted(f"the upstream's quota is used up{words}", code=shown)
    if status == 429 or known & _LIMITED:
        return UpstreamRateLimited(f"the upstream's limit is reached{words}", code=shown)
    if status == 403 or known & _FORBIDDEN:
        return UpstreamForbidden(f"the upstream does not allow this{words}", code=shown)
    if status == 404 or "model_not_found" in known:
        return UpstreamRefused("the upstream does not know this model", code="model_not_found")
    if status in _REFUSED_STATUSES or known & _REFUSED:
        return UpstreamRefused(f"the upstream refuses this request{words}", code=shown)
    shown_status = f" with HTTP {status}" if status != 200 else ""
    shown_code = f" ({shown})" if shown else ""
    return UpstreamError(f"the upstream failed{shown_status}{shown_code}{words}")
