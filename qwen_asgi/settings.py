"""What can be set, and the one place that reads the environment.

Times are in seconds, sizes in bytes. A `Settings` is made once and never changes; two gateways with
different settings live in one process.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler

SEED_MODELS = (
    "qwen-max-latest",
    "qwen2.5-14b-instruct-1m",
    "qvq-72b-preview",
    "qwen-plus-latest",
    "qwen2.5-vl-72b-instruct",
)

REGIONS = {
    "beijing": "https://dashscope.aliyuncs.com/compatible-mode/v1",
    "singapore": "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
    "us": "https://dashscope-us.aliyuncs.com/compatible-mode/v1",
    "hongkong": "https://cn-hongkong.dashscope.aliyuncs.com/compatible-mode/v1",
}
"""Where Model Studio is, by region (facts DS-01 to DS-04 of the wire notes)."""

DEFAULT_REGION = "singapore"

ENVIRONMENT = {
    "QWEN_API_KEY": "api_key",
    "QWEN_UPSTREAM": "upstream",
    "QWEN_BASE_URL": "base_url",
    "QWEN_MODELS": "models",
    "QWEN_INCREMENTAL": "incremental",
    "QWEN_KEEP_CHATS": "keep_chats",
    "QWEN_HEADERS": "headers",
    "QWEN_CLIENT_KEYS": "client_keys",
    "HTTP_PROXY": "http_proxy",
    "HTTPS_PROXY": "https_proxy",
    "NO_PROXY": "no_proxy",
    "QWEN_CONNECT_TIMEOUT": "connect_timeout",
    "QWEN_FIRST_TIMEOUT": "first_timeout",
    "QWEN_IDLE_TIMEOUT": "idle_timeout",
    "QWEN_TOTAL_TIMEOUT": "total_timeout",
    "QWEN_MAX_CONNECTIONS": "max_connections",
    "QWEN_MAX_BODY": "max_body",
    "QWEN_HEARTBEAT": "heartbeat",
    "QWEN_LOG_FILE": "log_file",
    "QWEN_LOG_LEVEL": "log_level",
    "QWEN_LOG_BODIES": "log_bodies",
    "QWEN_CORS_ORIGINS": "cors_origins",
}
"""Variable to field: the whole of what `Settings.from_env` reads."""

_ALSO_IN_LOWER_CASE = {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}
"""As other programs read them; where both are set, lower case goes first."""

_LISTS = {"client_keys", "cors_origins", "models", "no_proxy"}
_SECRETS = {"api_key", "client_keys", "headers", "http_proxy", "https_proxy"}
_PROXY_SCHEMES = {"http", "https", "socks5", "socks5h"}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?")
_FRAMING_HEADERS = {"connection", "content-length", "host", "transfer-encoding", "upgrade"}

ModelName = Annotated[str, Field(min_length=1, max_length=256)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class SettingsError(Exception):
    """A setting is missing or wrong; the message says which, and what would be right."""


class Settings(BaseModel):
    """Everything that one gateway is told. Raises SettingsError when a value is wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    api_key: SecretStr | None = None
    """The credential for the upstream; an upstream that asks for none works without."""
    upstream: Literal["qwen-web-v1", "qwen-web-v2", "model-studio", "openai"] = "qwen-web-v1"
    """The dialect that the upstream speaks: of the web chat the first or the second generation,
    `model-studio` is Alibaba Cloud's API, `openai` any OpenAI-compatible server."""
    base_url: str = "https://chat.qwenlm.ai"
    """Where the upstream is. Of the web chat its origin, to which the dialect adds its paths; for
    the others what an OpenAI client takes, up to and with `/v1`. `model-studio` knows some regions
    by name, of which `singapore` is the default; `openai` has no default."""
    models: tuple[ModelName, ...] | Literal["upstream"] = SEED_MODELS
    """The models that clients may name; `upstream`, which is the default but for `qwen-web-v1`,
    reads them from the upstream."""
    incremental: bool = True
    """True asks the upstream for new pieces only; False reads the whole text so far."""
    keep_chats: bool = False
    """Whether `qwen-web-v2` leaves each chat in the account; otherwise it is removed when its
    answer is over."""
    headers: Mapping[str, str] = Field(default_factory=dict, repr=False)
    """Request headers for the upstream, that replace or extend the dialect's own."""

    client_keys: tuple[SecretStr, ...] = ()
    """Keys, one of which a client must send as a bearer token."""

    http_proxy: SecretStr | None = None
    """The proxy on the way to an `http://` upstream, as an address; it may hold a password."""
    https_proxy: SecretStr | None = None
    """The proxy on the way to an `https://` upstream."""
    no_proxy: tuple[str, ...] = ()
    """Hosts and domains that are reached without a proxy; `*` for all."""

    connect_timeout: Seconds = 10.0
    """Longest wait for a connection to the upstream."""
    first_timeout: Seconds = 120.0
    """Longest wait for the answer's first event."""
    idle_timeout: Seconds = 60.0
    """Longest silence within an answer."""
    total_timeout: Seconds | None = None
    """Longest life of one answer; None for no end."""
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Upstream calls that may be open at once; further ones wait, `connect_timeout` at most."""

    max_body: Annotated[int, Field(ge=1024)] = 32 * 1024 * 1024
    """Longest request body, in bytes."""
    heartbeat: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 15.0
    """Silence after which a streamed answer gets a comment; 0 for never.

    Silence before the first event counts too: then the answer's status, 200, is out, and an error
    that comes later is the stream's last event."""

    log_bodies: bool = False
    """Whether each request's body is logged, at INFO. The standalone program turns it on."""
    log_file: Path | None = Path("chat_api.log")
    """Standalone only: where the log goes beside the console; None (in the environment: `-`) for
    the console alone."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Standalone only."""
    cors_origins: tuple[str, ...] = ()
    """Standalone only: web origins that browsers may call from; `*` for any."""

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(data, Mapping):
            data = _with_defaults_of_the_upstream(data)
        try:
            return handler(data)
        except ValidationError as exc:
            raise SettingsError(_explanation(exc)) from None

    @field_validator("base_url")
    @classmethod
    def _origin(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError:
            parts = urlsplit("")
            port = None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError("should be an address such as https://chat.qwenlm.ai")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("should hold no user, query or fragment; the credential is api_key")
        if not value.isascii() or any(c.isspace() for c in value):
            raise ValueError("should be plain ASCII without blanks")
        return value.rstrip("/")

    @field_validator("headers")
    @classmethod
    def _plain_headers(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for name, text in value.items():
            if name.lower() in _FRAMING_HEADERS:
                raise ValueError(f"{name!r} is not a header that can be set")
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(text):
                # What stands in the place of a name may be a credential that has none.
                raise ValueError("should be names of headers, each with one line of text")
        return {name.lower(): text for name, text in value.items()}

    @field_serializer("headers", when_used="json")
    def _masked_headers(self, value: Mapping[str, str]) -> dict[str, str]:
        return dict.fromkeys(value, "**********")

    @field_validator("api_key")
    @classmethod
    def _one_line(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"[\x21-\x7e]+", value.get_secret_value()):
            raise ValueError("should be printable ASCII without blanks")
        return value

    @field_validator("http_proxy", "https_proxy")
    @classmethod
    def _proxy(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        # "proxy:3128" is what other programs take too.
        text = value.get_secret_value()
        text = text if "://" in text else f"http://{text}"
        try:
            parts = urlsplit(text)
            valid = bool(parts.scheme in _PROXY_SCHEMES and parts.hostname and parts.port != 0)
        except ValueError:
            valid = False
        if not valid or not re.fullmatch(r"[\x21-\x7e]+", text):
            raise ValueError("should be a proxy's address such as http://proxy.example:3128")
        if parts.scheme.startswith("socks") and find_spec("socksio") is None:
            raise ValueError(
                "needs the package socksio for a SOCKS proxy: pip install httpx[socks]"
            )
        return SecretStr(text)

    @field_validator("client_keys")
    @classmethod
    def _plain_keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(not re.fullmatch(r"[\x21-\x7e]+", key.get_secret_value()) for key in value):
            raise ValueError("should be keys of printable ASCII without blanks")
        return value

    @field_validator("models")
    @classmethod
    def _some_model(cls, value: tuple[str, ...] | str) -> tuple[str, ...] | str:
        if not value:
            raise ValueError("should name at least one model")
        return value if isinstance(value, str) else tuple(dict.fromkeys(value))

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        env_file: str | Path | None = None,
        **defaults: Any,
    ) -> Self:
        """Read the variables of `ENVIRONMENT`; empty ones count as not set.

        `environ` is the process's environment unless given; a variable in it goes before one in
        `env_file`, a file of `NAME=value` lines that is read only when named here. `defaults` are
        settings for what neither holds. Raises SettingsError, naming the variable.
        """
        variables = _read_file(env_file) if env_file is not None else {}
        variables.update(os.environ if environ is None else environ)
        values: dict[str, Any] = dict(defaults)
        for variable, field in ENVIRONMENT.items():
            text = _text(variables, variable)
            if text:
                values[field] = _parse(field, text)
                if values[field] == ():
                    raise SettingsError(f"{variable}: should hold something between its commas")
        try:
            return cls(**values)
        except SettingsError as exc:
            raise SettingsError(_in_variables(str(exc))) from None


def _with_defaults_of_the_upstream(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    match fields.get("upstream"):
        case "qwen-web-v2":
            return {"models": "upstream", "base_url": "https://chat.qwen.ai", **fields}
        case "model-studio":
            place = fields.get("base_url", DEFAULT_REGION)
            address = REGIONS.get(place, place) if isinstance(place, str) else place
            return {"models": "upstream", **fields, "base_url": address}
        case "openai" if "base_url" not in fields:
            raise SettingsError(
                "base_url: is needed for the upstream 'openai', up to and with /v1, such as "
                "http://localhost:8000/v1"
            )
        case "openai":
            return {"models": "upstream", **fields}
    return fields


def revealed(secret: SecretStr | None) -> str | None:
    """Return a secret's text, for the one place that it is sent to."""
    return None if secret is None else secret.get_secret_value()


def _read_file(path: str | Path) -> dict[str, str | None]:
    try:
        # Some editors begin a file with a byte order mark. A value is taken as it stands: a `${`
        # in it would otherwise be replaced out of the process's environment.
        return dict(dotenv_values(path, interpolate=False, encoding="utf-8-sig"))
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or "it is not UTF-8 text"
        raise SettingsError(f"{path} cannot be read: {reason}") from None


def _text(variables: Mapping[str, str | None], name: str) -> str:
    lower = variables.get(name.lower()) if name in _ALSO_IN_LOWER_CASE else None
    if not lower and name == "HTTP_PROXY" and "REQUEST_METHOD" in variables:
        # Under CGI a client sets it, with a header named Proxy (CVE-2016-5385).
        return ""
    return (lower or variables.get(name) or "").strip()


def _parse(field: str, text: str) -> Any:
    """Return a variable's text as what the field takes; pydantic reads numbers and booleans."""
    if field == "models" and text == "upstream":
        return text
    if field in _LISTS:
        return tuple(item for item in (part.strip() for part in text.split(",")) if item)
    if field == "headers":
        return _parse_headers(text)
    if field == "total_timeout" and text.lower() == "none":
        return None
    if field == "log_file" and text == "-":
        return None
    if field == "log_level":
        return text.upper()
    return text


def _parse_headers(text: str) -> Any:
    """Return `name: value` lines, or a JSON object, as a mapping."""
    if text.startswith("{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    lines = [line.partition(":") for line in text.splitlines() if line.strip()]
    return {name.strip(): value.strip() for name, _, value in lines}


def _explanation(exc: ValidationError) -> str:
    lines = []
    for error in exc.errors(include_url=False, include_context=False):
        field = str(error["loc"][0]) if error["loc"] else "settings"
        message = error["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        given = f", not {error['input']!r}" if _may_be_shown(field, error["input"]) else ""
        lines.append(f"{field}: {message}{given}")
    return "; ".join(dict.fromkeys(lines))


def _may_be_shown(field: str, value: object) -> bool:
    """A secret is not shown, nor what may be one: a misspelt `apikey`, an address's password."""
    known = field in Settings.model_fields and field not in _SECRETS
    return known and not set("@?#") & set(str(value))


def _in_variables(message: str) -> str:
    for variable, field in ENVIRONMENT.items():
        message = re.sub(rf"(^|; ){field}: ", rf"\g<1>{variable}: ", message)
    return message
