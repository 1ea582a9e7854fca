"""What can be set, and the one place that reads the environment.

Times are in seconds, sizes in bytes. A `Settings` is made once and never changes; two gateways with
different settings live in one process.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler

from qwen_asgi.config_file import ConfigError, ConfigFile
from qwen_asgi.setting_types import (
    ADDRESSES,
    UPLOAD_HOSTS,
    Address,
    Connections,
    DialectName,
    DrainTokens,
    Headers,
    Key,
    ModelName,
    Models,
    OnDisconnect,
    Requests,
    Seconds,
    SecondsOrNone,
    ToolForm,
    UploadHosts,
    UploadWay,
    check_uploads,
    with_address,
)
from qwen_asgi.upstream_settings import Name, RouteSettings, Step, UpstreamSettings

SEED_MODELS = (
    "qwen-max-latest",
    "qwen2.5-14b-instruct-1m",
    "qvq-72b-preview",
    "qwen-plus-latest",
    "qwen2.5-vl-72b-instruct",
)

ENVIRONMENT = {
    "QWEN_API_KEY": "api_key",
    "QWEN_UPSTREAM": "upstream",
    "QWEN_BASE_URL": "base_url",
    "QWEN_MODELS": "models",
    "QWEN_INCREMENTAL": "incremental",
    "QWEN_KEEP_CHATS": "keep_chats",
    "QWEN_TOOL_FORM": "tool_form",
    "QWEN_UPLOADS": "uploads",
    "QWEN_UPLOAD_HOSTS": "upload_hosts",
    "QWEN_REASONING_FIELD": "reasoning_field",
    "QWEN_JSON_REPAIR": "json_repair",
    "QWEN_ESTIMATE_USAGE": "estimate_usage",
    "QWEN_ON_DISCONNECT": "on_disconnect",
    "QWEN_DRAIN_SECONDS": "drain_seconds",
    "QWEN_DRAIN_TOKENS": "drain_tokens",
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
    "QWEN_SHUTDOWN_SECONDS": "shutdown_seconds",
    "QWEN_MAX_REQUESTS": "max_requests",
    "QWEN_MAX_REQUESTS_OF_CLIENT": "max_requests_of_client",
    "QWEN_QUEUE": "queue",
    "QWEN_QUEUE_TIMEOUT": "queue_timeout",
    "QWEN_BODY_TIMEOUT": "body_timeout",
    "QWEN_WRITE_TIMEOUT": "write_timeout",
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

_LISTS = {"client_keys", "cors_origins", "models", "no_proxy", "upload_hosts"}
_SECRETS = {"api_key", "client_keys", "headers", "http_proxy", "https_proxy"}
_PROXY_SCHEMES = {"http", "https", "socks5", "socks5h"}


CONFIG_VARIABLE = "QWEN_CONFIG"
"""Names a file with what does not fit into variables; a variable goes before what it says."""

OF_ONE_UPSTREAM = {"upstream", "base_url", "models"}
"""What says nothing once there are several."""


class SettingsError(Exception):
    """A setting is missing or wrong; the message says which, and what would be right."""

    def __init__(self, message: str, findings: Sequence[Finding] = ()) -> None:
        super().__init__(message)
        self.findings = findings
        """What is wrong, each with its place: `("upstreams", "studio", "base_url")`."""


Finding = tuple[tuple[str | int, ...], str]


class Settings(BaseModel):
    """Everything that one gateway is told. Raises SettingsError when a value is wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    api_key: Key | None = None
    """The credential for the upstream; an upstream that asks for none works without."""
    upstream: DialectName = "qwen-web-v1"
    """The dialect that the upstream speaks: of the web chat the first or the second generation,
    `model-studio` is Alibaba Cloud's API, `openai` any OpenAI-compatible server."""
    base_url: Address = ADDRESSES["qwen-web-v1"]
    """Where the upstream is. Of the web chat its origin, to which the dialect adds its paths; for
    the others what an OpenAI client takes, up to and with `/v1`. `model-studio` knows some regions
    by name, of which `singapore` is the default; `openai` has no default."""
    models: Models = SEED_MODELS
    """The models that clients may name; `upstream`, which is the default but for `qwen-web-v1`,
    reads them from the upstream."""
    incremental: bool = True
    """True asks the upstream for new pieces only; False reads the whole text so far."""
    keep_chats: bool = False
    """Whether `qwen-web-v2` leaves each chat in the account; otherwise it is removed when its
    answer is over."""
    tool_form: ToolForm = "hermes"
    """How the model of a web chat, which has no tools, is asked to write a call: `hermes`, as JSON
    between tags, `coder`, in the tags of Qwen3-Coder, `brackets`, as JSON between square ones."""
    json_repair: bool = False
    """Whether a web chat's answer that is not the JSON which was asked for is sent back once to be
    put right, if nothing of it went out: that is a further call."""
    reasoning_field: Literal["reasoning_content", "reasoning", "both"] = "reasoning_content"
    """The field of an answer, beside `content`, that tells what the model thought: OpenAI's API has
    none. Most clients of Qwen read the first, some the second."""
    estimate_usage: bool = False
    """Whether usage that an upstream does not tell is estimated, and marked as that."""
    max_requests: Requests = 10_000
    """Chats that are open at once, in each event loop; None for any number."""
    max_requests_of_client: Requests = None
    """Chats of one client that are open at once. A client is whom its key or `authenticate` names;
    where anybody is let in, an address."""
    queue: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    """Chats beyond `max_requests` that wait for their turn; further ones are refused at once."""
    queue_timeout: Seconds = 30.0
    """Longest wait for a turn."""
    body_timeout: Seconds = 30.0
    """Longest time in which a client that sends a request's body must send 256 KiB more, or all."""
    write_timeout: Seconds = 60.0
    """Longest time that a client may read nothing of an answer: then it counts as gone."""
    shutdown_seconds: Seconds = 30.0
    """How long answers under way may go on when the gateway is told to end."""
    on_disconnect: OnDisconnect = "cancel"
    """What becomes of an answer whose client leaves: `cancel` ends the call at once, `drain` reads
    it on, so that the log has its usage."""
    drain_seconds: Seconds = 60.0
    """Longest time that an answer is read on."""
    drain_tokens: DrainTokens = None
    """Most tokens that are read on, by an estimate of the text; None for any number."""
    uploads: UploadWay = "ticket"
    """How a web chat is given the files in a request: `ticket`, by a ticket for object storage,
    `multipart`, as a form, which only `qwen-web-v1` took; `off` refuses them."""
    upload_hosts: UploadHosts = UPLOAD_HOSTS
    """Where a ticket may send a file: hosts, reached by https, of which `*.` stands for any below;
    or whole origins."""
    headers: Headers = Field(default_factory=dict, repr=False)
    """Request headers for the upstream, that replace or extend the dialect's own."""

    upstreams: Mapping[Name, UpstreamSettings] = Field(default_factory=dict)
    """Several upstreams, by names of your own; then `upstream`, `base_url` and `models` are not to
    be set, and `api_key`, `headers`, `incremental`, `keep_chats` and `uploads` stand for
    nothing."""
    routes: Mapping[ModelName, RouteSettings] = Field(default_factory=dict)
    """Models that are to be found elsewhere, or otherwise, than the upstreams' lists say."""

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
    total_timeout: SecondsOrNone = None
    """Longest life of one answer; None for no end."""
    max_connections: Connections = 1000
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
        several = False
        if isinstance(data, Mapping):
            several = bool(data.get("upstreams"))
            _refuse_one_beside_several(data)
            data = data if several else _with_defaults_of_the_upstream(data)
        try:
            settings = handler(data)
        except ValidationError as exc:
            findings = _findings(exc)
        else:
            _check_routes(settings)
            _check_uploads(settings)
            return settings
        # Out here, so that it does not hold on to the other one, which holds the values.
        raise _error(findings)

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

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        env_file: str | Path | None = None,
        config: str | Path | None = None,
        **defaults: Any,
    ) -> Self:
        """Read the variables of `ENVIRONMENT`; empty ones count as not set.

        `config` is a TOML file of the fields of this class; without it QWEN_CONFIG may name one. A
        text `env:NAME` in it stands for that variable's value, in a header also behind a word:
        `Bearer env:NAME`.

        `environ` is the process's environment unless given; a variable in it goes before one in
        `env_file`, a file of `NAME=value` lines that is read only when named here. `defaults` are
        settings for what neither holds. Raises SettingsError, naming the variable.
        """
        variables = _read_file(env_file) if env_file is not None else {}
        variables.update(os.environ if environ is None else environ)
        set_here: dict[str, Any] = {}
        for variable, field in ENVIRONMENT.items():
            text = _text(variables, variable)
            if text:
                set_here[field] = _parse(field, text)
                if set_here[field] == ():
                    raise SettingsError(f"{variable}: should hold something between its commas")
        path = config or _text(variables, CONFIG_VARIABLE)
        if not path:
            return _made(cls, {**defaults, **set_here}, None, set_here)
        try:
            file = ConfigFile(path)
            file.resolve(lambda name: _text(variables, name))
        except ConfigError as exc:
            raise SettingsError(str(exc)) from None
        if file.fields.get("upstreams") == {}:
            raise SettingsError(str(file.error(["upstreams"], "should name at least one upstream")))
        return _made(cls, {**defaults, **file.fields, **set_here}, file, set_here)


def name_config(path: str | Path) -> None:
    """Set QWEN_CONFIG for this process and those it starts: so a program tells its workers."""
    os.environ[CONFIG_VARIABLE] = str(path)


_S = TypeVar("_S", bound=Settings)


def _made(
    kind: type[_S], values: Mapping[str, Any], file: ConfigFile | None, set_here: Mapping[str, Any]
) -> _S:
    """Return the settings, or say of what is wrong with them where it stands."""
    try:
        return kind(**values)
    except SettingsError as exc:
        findings = []
        for place, message in exc.findings:
            if file is not None and place and place[0] not in set_here:
                findings.append(str(file.error(place, message)))
            else:
                findings.append(f"{_in_variables(place)}: {message}")
        raise SettingsError("; ".join(findings) or str(exc)) from None


def _with_defaults_of_the_upstream(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    dialect = fields.get("upstream", "qwen-web-v1")
    models = {} if dialect == "qwen-web-v1" else {"models": "upstream"}
    try:
        return {**models, **with_address(fields, dialect)}
    except ValueError as exc:
        raise _error([(("base_url",), str(exc))]) from None


def _refuse_one_beside_several(fields: Mapping[str, Any]) -> None:
    beside = sorted(OF_ONE_UPSTREAM & fields.keys()) if fields.get("upstreams") else []
    if beside:
        raise _error([((beside[0],), "is not to be set beside several upstreams, which have it")])


_NAME = re.compile(r"[A-Za-z0-9_.-]{1,16}")


def _check_routes(settings: Settings) -> None:
    names = settings.upstreams.keys()
    if settings.routes and not names:
        raise _error([(("routes",), "need upstreams to lead to")])
    for model, route in settings.routes.items():
        for n, step in enumerate(route.to):
            if step.upstream not in names:
                known = ", ".join(names)
                shown = f" {step.upstream!r}" if _NAME.fullmatch(step.upstream) else ""
                message = f"there is no upstream{shown}; there are {known}"
                raise _error([(("routes", model, "to", n), message)])


def _check_uploads(settings: Settings) -> None:
    try:
        check_uploads(settings.uploads, settings.upstream)
    except ValueError as exc:
        raise _error([(("uploads",), str(exc))]) from None


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


def _findings(exc: ValidationError) -> list[Finding]:
    findings = []
    for error in exc.errors(include_url=False, include_context=False):
        place = _place(error["loc"])
        message = error["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        for ours, theirs in _IN_OTHER_WORDS.items():
            message = message.replace(theirs, ours)
        shown = _may_be_shown(place, error["input"])
        findings.append((place, f"{message}, not {error['input']!r}" if shown else message))
    return list(dict.fromkeys(findings))


def _error(findings: Sequence[Finding]) -> SettingsError:
    lines = [f"{_dotted(place) or 'settings'}: {message}" for place, message in findings]
    return SettingsError("; ".join(dict.fromkeys(lines)), findings)


def _dotted(place: Sequence[str | int]) -> str:
    return ".".join(map(str, place))


_IN_OTHER_WORDS = {"a list": "a valid tuple", "a table": "a valid dictionary"}
"""What a file and its reader call a thing, and what pydantic does."""


def _place(loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Return the field, and of which upstream or route it is; what is within may be a secret."""
    match loc:
        case "upstreams", name, *rest:
            return ("upstreams", name, *rest[:1])
        case "routes", name, "to", *rest:
            return ("routes", name, "to", *(step for step in rest[:2] if step != "[key]"))
        case "routes", name, *rest:
            return ("routes", name, *rest[:1])
    return loc[:1]


def _may_be_shown(place: Sequence[str | int], value: object) -> bool:
    """A secret is not shown, nor what may be one: a misspelt `apikey`, an address's password."""
    if isinstance(value, Mapping) or any(step in _SECRETS for step in place):
        return False
    known = _KNOWN_FIELDS.issuperset(step for step in place[-1:] if isinstance(step, str))
    text = str(value)
    # What is long and no address may be a key that stands in the wrong place.
    is_harmless = len(text) <= LONGEST_SHOWN or "://" in text
    return known and is_harmless and not set("@?#") & set(text)


LONGEST_SHOWN = 16
"""Characters of a wrong value that is shown."""


_KNOWN_FIELDS = {
    *Settings.model_fields,
    *UpstreamSettings.model_fields,
    *RouteSettings.model_fields,
    *Step.model_fields,
}


def _in_variables(place: Sequence[str | int]) -> str:
    names = {field: variable for variable, field in ENVIRONMENT.items()}
    return names.get(str(place[0]), _dotted(place)) if place else "settings"
