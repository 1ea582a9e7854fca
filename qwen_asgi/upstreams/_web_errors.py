"""How the web chat fails, both generations: mostly with HTTP 200 and a JSON document.

Source: section 7 of the wire notes on the web chat (facts WE-01 to WE-17). A document that is none
of these is no failure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qwen_asgi.errors import (
    UpstreamAuthenticationFailed,
    UpstreamBlocked,
    UpstreamError,
    UpstreamInvalidResponse,
    UpstreamRateLimited,
    UpstreamRefused,
)
from qwen_asgi.sse import BOM
from qwen_asgi.upstreams._documents import read_document, read_object
from qwen_asgi.upstreams._retry_after import retry_after, seconds
from qwen_asgi.upstreams._words import NONE, Secrets, plain_code, said

_RATE_CODES = {"ratelimited", "parallellimited", "quotalimited", "quota_limit"}
_CREDENTIAL_CODES = {"unauthorized", "invalid_token", "forbidden"}
_BLOCK_SIGNS = ("FAIL_SYS", "RGV587")
_NUMBER = re.compile(r"\d{1,6}(\.\d{1,6})?")
_BLOCK_PAGE_SIGN = b"aliyun_waf"
_BLOCK_PAGE_STATUSES = {403, 405}

BUSY_SECONDS = 5
"""What a chat that is still answering is given before the next try."""


SIGNS = frozenset({"ret", "success", "error", "code"})
"""A document without any of these fields is no failure."""


def failure(
    document: Mapping[str, Any], status: int = 200, *, secrets: Secrets = NONE
) -> UpstreamError | None:
    """Return the error that a JSON document of the upstream means, or None if it means none.

    `secrets` are struck out of what the error repeats of the document.
    """
    if "ret" in document:
        return _blocked(document["ret"], secrets)
    data, error, code = document.get("data"), document.get("error"), document.get("code")
    if error and not isinstance(error, Mapping):
        error = {"details": error}
    if document.get("success") is False:
        # Each of them may hold what another leaves out.
        data = {**document, **(error or {}), **(data if isinstance(data, Mapping) else {})}
    elif error:
        data = {"code": code, "num": document.get("num"), **error}
    elif isinstance(code, str) and code and not document.get("choices"):
        data = document
    else:
        return None
    return _from_code(data, status, secrets)


def good_document(body: bytes, *, secrets: Secrets = NONE) -> Mapping[str, Any]:
    """Return the JSON document of an answer with HTTP 200 that is no chat's.

    Raises the UpstreamError that stands in its place: the filter's page (WE-13), nothing (WE-15),
    or a document that says no.
    """
    body = body.strip().removeprefix(BOM).lstrip()
    if body.startswith(b"<"):
        raise block_page()
    if not body:
        raise UpstreamInvalidResponse("the upstream's answer is empty")
    document = read_document(body)
    error = failure(document, secrets=secrets)
    if error is not None:
        raise error
    return document


def refusal(
    status: int, headers: Mapping[str, str], body: bytes, *, secrets: Secrets = NONE
) -> UpstreamError:
    """Return the error that an answer with a status other than 200 means.

    Any server on the way writes a page of its own beside its status; only the filter's pages are
    blocks, and a 429 stays one whatever is written beside it.
    """
    is_page = body.lstrip()[:1] == b"<"
    if is_page and status != 429 and (status in _BLOCK_PAGE_STATUSES or _BLOCK_PAGE_SIGN in body):
        return block_page(status)
    document = read_object(body) or {}
    error = failure(document, status, secrets=secrets) or _from_code(document, status, secrets)
    if error.retry_after is None:
        error.retry_after = retry_after(headers)
    return error


def block_page(status: int = 200) -> UpstreamError:
    """Return the error for a page where data should be. The page itself is shown to nobody."""
    return UpstreamBlocked(
        f"the upstream answered with a web page (HTTP {status}) instead of data: its access check "
        "blocks this gateway"
    )


def _blocked(ret: Any, secrets: Secrets) -> UpstreamError:
    first = str(ret[0]) if isinstance(ret, list) and ret else ""
    name = re.match(r"[A-Z][A-Z0-9_]{2,63}\b", secrets.struck(first))
    code = name[0] if name else "an unknown code"
    if any(sign in str(ret) for sign in _BLOCK_SIGNS):
        return UpstreamBlocked(
            f"the upstream asks for a human check ({code}) and blocks this gateway"
        )
    return UpstreamInvalidResponse(f"the upstream answered with {code} instead of data")


def _from_code(data: Mapping[str, Any], status: int, secrets: Secrets) -> UpstreamError:
    """The one table from the upstream's codes and words, and the status, to our errors."""
    code = data.get("code")
    name = code.lower() if isinstance(code, str) else ""
    words = _details(data).lower()
    # Struck out while it is whole: of a part, nothing would tell that it is one.
    details = secrets.struck(_details(data))
    shown = plain_code(secrets.struck(code)) if isinstance(code, str) else None
    wait = _wait(data)
    if status == 429 or name in _RATE_CODES or "quota exceeded" in words:
        return UpstreamRateLimited(
            f"the upstream's limit is reached{said(details)}", code=shown, retry_after=wait
        )
    if "chat is in progress" in words:
        return UpstreamRateLimited(
            "the upstream is still answering in this chat", code=shown, retry_after=BUSY_SECONDS
        )
    if status in (401, 403) or name in _CREDENTIAL_CODES or "token has expired" in words:
        return UpstreamAuthenticationFailed(
            "the upstream does not accept the gateway's credential; its operator must renew "
            "api_key (QWEN_API_KEY of the only upstream)"
        )
    if "model not found" in words or ("model" in words and "not exist" in words):
        return UpstreamRefused("the upstream does not know this model", code="model_not_found")
    if status in (400, 413, 422) or _is_refused(name, words):
        return UpstreamRefused(f"the upstream refuses this request{said(details)}", code=shown)
    shown_status = f" with HTTP {status}" if status != 200 else ""
    shown_code = f" ({shown})" if shown else ""
    return UpstreamError(f"the upstream failed{shown_status}{shown_code}{said(details)}")


def _is_refused(name: str, words: str) -> bool:
    """Whether the request is at fault, or what it names is gone (WE-06, WE-08): no outage."""
    is_gone = name == "not_found" or "not exist" in words
    return is_gone or (name == "bad_request" and "internal error" not in words)


def _wait(data: Mapping[str, Any]) -> int | None:
    """`num` counts the hours until the limit is lifted (WE-02)."""
    hours = data.get("num")
    if isinstance(hours, str) and _NUMBER.fullmatch(hours):
        hours = float(hours)
    if isinstance(hours, int | float) and not isinstance(hours, bool) and hours > 0:
        return seconds(hours * 3600)
    return None


def _details(data: Mapping[str, Any]) -> str:
    for field in ("details", "message", "detail"):
        value = data.get(field)
        if isinstance(value, str):
            return value
    return ""
