"""Alibaba's object storage, as far as a web chat's uploads need it: one object put, signed.

Source: "Include V4 signatures in the Authorization header" of the documentation of Object Storage
Service; the tests compare the signatures with those of Alibaba's own library. That the web chat
asks for just this call is fact W2-07, seen in a capture of March 2026.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote, urlsplit

from qwen_asgi.errors import UpstreamError, UpstreamInvalidResponse, UpstreamRefused
from qwen_asgi.transports import UpstreamRequest
from qwen_asgi.upstreams._held_files import InlineFile, Upload

ALGORITHM = "OSS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"
"""In the place of the body's hash, as the web client has it: TLS guards the body."""

_CODES = {
    b"AccessDenied",
    b"EntityTooLarge",
    b"InvalidAccessKeyId",
    b"InvalidSecurityToken",
    b"NoSuchBucket",
    b"RequestTimeTooSkewed",
    b"SecurityTokenExpired",
    b"ServerBusy",
    b"SignatureDoesNotMatch",
}
"""Those that are told; anything else in a refusal may be a secret of the ticket's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """Leave to put one object into the storage of an upstream."""

    file: Upload
    """What the object is called at the upstream once it is there."""
    bucket: str
    key: str
    endpoint: str
    """A host, with or without a scheme and a port."""
    region: str
    key_id: str = field(repr=False)
    key_secret: str = field(repr=False)
    token: str = field(repr=False)


def object_url(ticket: Ticket, hosts: Sequence[str]) -> str:
    """Return where an object is put, which must be at one of `hosts`.

    These are names such as `*.aliyuncs.com`, which stand for https, or origins such as
    `http://127.0.0.1:9000`. Raises UpstreamInvalidResponse.
    """
    scheme, separator, place = ticket.endpoint.rpartition("://")
    schemes = (scheme,) if separator else ("https", "http")
    # As Alibaba's own library has it: a bucket is a part of the name, if there is a name.
    if _is_address(place):
        host, path = place, f"/{ticket.bucket}/{ticket.key}"
    else:
        host, path = f"{ticket.bucket}.{place}", f"/{ticket.key}"
    for origin in (f"{scheme}://{host}" for scheme in schemes):
        if any(_is_at(origin, allowed) for allowed in hosts):
            return origin + quote(path)
    raise UpstreamInvalidResponse(
        "the upstream keeps its files at a place that is none of upload_hosts (QWEN_UPLOAD_HOSTS); "
        "the gateway's log says where"
    )


def _is_address(place: str) -> bool:
    try:
        ipaddress.ip_address(urlsplit(f"//{place}").hostname or "")
    except ValueError:
        return False
    return True


def _is_at(origin: str, allowed: str) -> bool:
    scheme, _, host = (allowed if "://" in allowed else f"https://{allowed}").partition("://")
    own_scheme, _, own_host = origin.partition("://")
    if own_scheme != scheme:
        return False
    if host.startswith("*."):
        return own_host.endswith(host[1:]) and len(own_host) > len(host) - 1
    return own_host == host


def signed_put(ticket: Ticket, url: str, file: InlineFile, now: float) -> UpstreamRequest:
    """Return the call that puts a file; `now` is Unix time in seconds."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    headers = {
        "content-type": file.media_type,
        "x-oss-content-sha256": UNSIGNED,
        "x-oss-date": stamp,
        "x-oss-security-token": ticket.token,
    }
    scope = f"{stamp[:8]}/{ticket.region}/oss/aliyun_v4_request"
    signature = _signature(ticket, headers, stamp, scope)
    credential = f"{ALGORITHM} Credential={ticket.key_id}/{scope},Signature={signature}"
    return UpstreamRequest(
        method="PUT",
        url=url,
        headers={"accept": "*/*", **headers, "authorization": credential},
        body=file.data,
    )


def _signature(ticket: Ticket, headers: dict[str, str], stamp: str, scope: str) -> str:
    signed = "".join(f"{name}:{value}\n" for name, value in headers.items())
    path = quote(f"/{ticket.bucket}/{ticket.key}")
    # No query, and no headers beside those that are signed anyway.
    request = f"PUT\n{path}\n\n{signed}\n\n{UNSIGNED}"
    digest = hashlib.sha256(request.encode()).hexdigest()
    key = f"aliyun_v4{ticket.key_secret}".encode()
    for step in scope.split("/"):
        key = hmac.digest(key, step.encode(), "sha256")
    return hmac.digest(key, f"{ALGORITHM}\n{stamp}\n{scope}\n{digest}".encode(), "sha256").hex()


def refusal(status: int, body: bytes) -> UpstreamError:
    """Return the error that an answer of another status than 200 means."""
    found = re.search(rb"<Code>([A-Za-z]{1,64})</Code>", body)
    code = found[1] if found and found[1] in _CODES else b""
    shown = f"HTTP {status}, {code.decode()}" if code else f"HTTP {status}"
    if code == b"EntityTooLarge" or status == 413:
        return UpstreamRefused(f"the upstream's storage does not take a file this large ({shown})")
    if 300 <= status < 400:
        return UpstreamInvalidResponse(
            f"the upstream's storage sends elsewhere ({shown}), where nothing is sent"
        )
    if code == b"RequestTimeTooSkewed":
        shown += ": the clock of the gateway's machine is wrong"
    return UpstreamError(f"the upstream's storage refuses the file ({shown})")


def lifetime(url: str, now: float) -> float | None:
    """Return for how many seconds a signed address holds; None if it does not say."""
    query = parse_qs(urlsplit(url).query)
    if expires := _number(query.get("x-oss-expires")):
        return expires
    until = _number(query.get("Expires"))
    return until - now if until else None


def _number(values: list[str] | None) -> int | None:
    value = values[0] if values else ""
    return int(value) if re.fullmatch(r"[0-9]{1,12}", value) else None
