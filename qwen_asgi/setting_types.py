"""What a setting may be: the types and bounds that more than one kind of settings has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

DialectName = Literal["qwen-web-v1", "qwen-web-v2", "model-studio", "openai"]

ToolForm = Literal["hermes", "coder", "brackets"]
"""What a model without tools of its own is asked to write its calls in."""

UploadWay = Literal["ticket", "multipart", "off"]
"""How a web chat is given files."""

UPLOAD_HOSTS = ("*.aliyuncs.com",)
"""Where the web chat keeps its files."""

REGIONS = {
    "beijing": "https://dashscope.aliyuncs.com/compatible-mode/v1",
    "singapore": "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
    "us": "https://dashscope-us.aliyuncs.com/compatible-mode/v1",
    "hongkong": "https://cn-hongkong.dashscope.aliyuncs.com/compatible-mode/v1",
}
"""Where Model Studio is, by region (facts DS-01 to DS-04 of the wire notes)."""

ADDRESSES = {
    "qwen-web-v1": "https://chat.qwenlm.ai",
    "qwen-web-v2": "https://chat.qwen.ai",
    "model-studio": REGIONS["singapore"],
}
"""Where each dialect is spoken, unless told otherwise."""

_UPLOAD_HOST = re.compile(
    r"(?:https?://(?:\*\.)?(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?"
    r"|(?:\*\.)?[a-z0-9-]+(?:\.[a-z0-9-]+)+)"
)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?")
_FRAMING_HEADERS = {"connection", "content-length", "host", "transfer-encoding", "upgrade"}


def _address(value: str) -> str:
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        parts = urlsplit("")
        port = None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(
            "should be an address such as https://chat.qwenlm.ai; of model-studio it may be a "
            f"region, {', '.join(REGIONS)}"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("should hold no user, query or fragment; the credential is api_key")
    if not value.isascii() or any(c.isspace() for c in value):
        raise ValueError("should be plain ASCII without blanks")
    return value.rstrip("/")


def _plain_headers(value: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
    for name, secret in value.items():
        text = secret.get_secret_value()
        if name.lower() in _FRAMING_HEADERS:
            raise ValueError(f"{name!r} is not a header that can be set")
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(text):
            # What stands in the place of a name may be a credential that has none.
            raise ValueError("should be names of headers, each with one line of text")
    return {name.lower(): secret for name, secret in value.items()}


def _one_line(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]+", value.get_secret_value()):
        raise ValueError("should be printable ASCII without blanks")
    return value


def _some_model(value: tuple[str, ...] | str) -> tuple[str, ...] | str:
    if not value:
        raise ValueError("should name at least one model")
    return value if isinstance(value, str) else tuple(dict.fromkeys(value))


def _plain_hosts(value: tuple[str, ...]) -> tuple[str, ...]:
    hosts = tuple(host.lower() for host in value)
    if not hosts or not all(_UPLOAD_HOST.fullmatch(host) for host in hosts):
        raise ValueError(
            "should be names of hosts such as *.aliyuncs.com, which are reached by https, or "
            "origins such as http://127.0.0.1:9000"
        )
    return hosts


def _number_or_none(value: object) -> object:
    """TOML and the environment have no null."""
    return None if isinstance(value, str) and value.lower() == "none" else value


Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
SecondsOrNone = Annotated[Seconds | None, BeforeValidator(_number_or_none)]
Address = Annotated[str, AfterValidator(_address)]
Key = Annotated[SecretStr, AfterValidator(_one_line)]
ModelName = Annotated[str, Field(min_length=1, max_length=256)]
Models = Annotated[tuple[ModelName, ...] | Literal["upstream"], AfterValidator(_some_model)]
UploadHosts = Annotated[tuple[str, ...], AfterValidator(_plain_hosts)]
Headers = Annotated[Mapping[str, SecretStr], AfterValidator(_plain_headers)]
Connections = Annotated[int, Field(ge=1, le=100_000)]


OnDisconnect = Literal["cancel", "drain"]
Requests = Annotated[
    Annotated[int, Field(ge=1, le=1_000_000)] | None, BeforeValidator(_number_or_none)
]
DrainTokens = Annotated[
    Annotated[int, Field(ge=1, le=2**31 - 1)] | None, BeforeValidator(_number_or_none)
]


def revealed(secret: SecretStr | None) -> str | None:
    """Return a secret's text, for the one place that it is sent to."""
    return None if secret is None else secret.get_secret_value()


def check_uploads(way: UploadWay, dialect: DialectName) -> None:
    """Raise ValueError for a way of uploading that a dialect does not have."""
    if way == "multipart" and dialect == "qwen-web-v2":
        raise ValueError("multipart is for 'qwen-web-v1' only; use ticket or off")


def with_address(fields: Mapping[str, Any], dialect: object) -> Mapping[str, Any]:
    """Return the fields with the dialect's own `base_url` where they have none, and a region of
    Model Studio's by its address. Raises ValueError where there must be one."""
    place = fields.get("base_url", ADDRESSES.get(str(dialect)))
    if place is None and dialect == "openai" and "base_url" not in fields:
        raise ValueError(
            "is needed for the upstream 'openai', up to and with /v1, such as "
            "http://localhost:8000/v1"
        )
    if dialect == "model-studio" and isinstance(place, str):
        place = REGIONS.get(place, place)
    if place is None and "base_url" not in fields:
        return fields
    return {**fields, "base_url": place}
