"""What can be set of each of several upstreams, and of the models that they serve.

In the file that QWEN_CONFIG names they are the tables `[upstreams.NAME]` and `[routes."MODEL"]`;
otherwise the values of `Settings.upstreams` and `Settings.routes`. Times are in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from qwen_asgi.apis.openai_chat import read_fields
from qwen_asgi.errors import InvalidRequest
from qwen_asgi.setting_types import (
    Address,
    Connections,
    DialectName,
    DrainTokens,
    Headers,
    Key,
    ModelName,
    Models,
    OnDisconnect,
    Seconds,
    SecondsOrNone,
    ToolForm,
    UploadHosts,
    UploadWay,
    check_uploads,
    with_address,
)

FailureClass = Literal[
    "limit", "outage", "busy", "quota", "credential", "blocked", "model", "unsupported", "refused"
]
"""Why an upstream did not answer, as a route's `fallback_on` names it."""

NOT_SET_HERE = {"model", "messages", "stream", "stream_options", "n"}
"""Fields of a request that a route does not set: they are what the client asks for."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
"""A header carries it."""


class UpstreamSettings(BaseModel):
    """One upstream. What is not set here is as in the gateway's own settings of that name."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    dialect: DialectName
    """What it speaks; see `Settings.upstream`."""
    base_url: Address
    """Where it is; see `Settings.base_url`."""
    api_key: Key | None = None
    """The credential for it. In a file, `env:NAME` takes it from that variable."""
    models: Models = "upstream"
    """The models that are asked for here: names, and patterns such as `qwen3-*`, which stand for
    what the upstream lists; `upstream` is all that it lists."""
    incremental: bool = True
    """See `Settings.incremental`."""
    keep_chats: bool = False
    """See `Settings.keep_chats`."""
    tool_form: ToolForm = "hermes"
    """See `Settings.tool_form`."""
    json_repair: bool = False
    """See `Settings.json_repair`."""
    uploads: UploadWay = "ticket"
    """See `Settings.uploads`."""
    upload_hosts: UploadHosts | None = None
    """See `Settings.upload_hosts`, which stand for it where it is not set."""
    headers: Headers = Field(default_factory=dict, repr=False)
    """Request headers, that replace or extend the dialect's own."""

    connect_timeout: Seconds | None = None
    first_timeout: Seconds | None = None
    idle_timeout: Seconds | None = None
    total_timeout: SecondsOrNone = None
    """Longest life of one answer of this upstream."""
    max_connections: Connections | None = None

    max_concurrent: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Chats that are under way here at once; None for any number."""
    queue: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    """Chats that may wait for their turn; further ones are refused at once."""
    queue_timeout: Seconds = 30.0
    """Longest wait for a turn."""
    retries: Annotated[int, Field(ge=0, le=10)] = 0
    """How often a chat is asked again here when nothing of its answer has come."""
    retry_share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.2
    """Retries in proportion to chats, beyond the first ten: so they cannot become a storm."""
    breaker_failures: Annotated[int, Field(ge=0, le=1000)] = 5
    """Failures in a row after which the upstream is left alone; 0 for never."""
    breaker_seconds: Seconds = 30.0
    """How long it is left alone until one chat tries it again."""

    @model_validator(mode="before")
    @classmethod
    def _place(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        try:
            return with_address(data, data.get("dialect"))
        except ValueError as exc:
            raise ValueError(f"base_url {exc}") from None

    @field_validator("uploads")
    @classmethod
    def _way(cls, value: UploadWay, info: ValidationInfo) -> UploadWay:
        if "dialect" in info.data:
            check_uploads(value, info.data["dialect"])
        return value


class Step(BaseModel):
    """One of the upstreams that a model is asked for at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    upstream: str
    model: ModelName | None = None
    """Its name there; None for the same name."""
    weight: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)] = 1.0


def _step(value: Any) -> Any:
    return {"upstream": value} if isinstance(value, str) else value


def _steps(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class RouteSettings(BaseModel):
    """Where a model is asked for, and with what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    to: Annotated[tuple[Annotated[Step, BeforeValidator(_step)], ...], BeforeValidator(_steps)] = ()
    """The upstreams, in their order; empty for all that serve a model of this name."""
    model: ModelName | None = None
    """Its name at those of `to` that name none; None for the same name."""
    choose: Literal["order", "weight", "least-busy"] = "order"
    """Which is asked first: the first one, one by chance in proportion to the weights, or the one
    with the fewest chats under way for its weight. The others are asked when it fails."""
    fallback_on: tuple[FailureClass, ...] = (
        "limit",
        "outage",
        "busy",
        "quota",
        "credential",
        "blocked",
        "model",
        "unsupported",
    )
    """Failures upon which the next upstream is asked; any other is the client's answer."""
    defaults: Mapping[str, Any] = Field(default_factory=dict)
    """Fields of a request that are set where the client sets none."""
    forced: Mapping[str, Any] = Field(default_factory=dict)
    """Fields of a request that are set whatever the client says."""
    on_disconnect: OnDisconnect | None = None
    drain_seconds: Seconds | None = None
    drain_tokens: DrainTokens = None
    """See `Settings.on_disconnect`; what is not set here is as in the gateway's own."""
    context: Annotated[int, Field(ge=1)] | None = None
    thinking: bool | None = None
    tools: bool | None = None
    vision: bool | None = None
    stream_only: bool | None = None
    """What `GET /v1/models` says of the model, in the place of what its upstream says."""

    @field_validator("defaults", "forced")
    @classmethod
    def _fields(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        wrong = sorted(NOT_SET_HERE & value.keys())
        if wrong:
            raise ValueError(f"cannot set {', '.join(wrong)}")
        try:
            return read_fields(value)
        except InvalidRequest as error:
            raise ValueError(error.message) from None
