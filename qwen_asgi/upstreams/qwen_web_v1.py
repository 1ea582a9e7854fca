"""The first generation of the Qwen web chat: `POST /api/chat/completions` at `chat.qwenlm.ai`.

It has no published specification. What is written here are the facts W1-* and WE-* of the wire
notes, read out of public programs and captures from January to May 2025, and the first
implementation of this service. Whether that site still answers on this path is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from qwen_asgi.chat import ChatRequest, Message, ModelInfo, Part
from qwen_asgi.errors import InvalidRequest, UpstreamError
from qwen_asgi.ids import fresh_uuids
from qwen_asgi.transports import UpstreamRequest, UpstreamResponse
from qwen_asgi.upstreams import _web_errors
from qwen_asgi.upstreams._documents import listed_models
from qwen_asgi.upstreams._fields import ignored, refuse
from qwen_asgi.upstreams._held_files import UploadedPart
from qwen_asgi.upstreams._upload_calls import UploadCalls
from qwen_asgi.upstreams._web_requests import (
    known_fields,
    link_of,
    object_field,
    refuse_task,
    refuse_tools,
    text_field,
    thinking_config,
    web_model,
)
from qwen_asgi.upstreams._words import Secrets
from qwen_asgi.upstreams.field_policy import column
from qwen_asgi.upstreams.qwen_web_v1_decoder import QwenWebV1Decoder

BASE_URL = "https://chat.qwenlm.ai"

HEADERS = {
    "accept": "*/*",
    "accept-encoding": "identity",
    "content-type": "application/json",
    "origin": "https://chat.qwenlm.ai",
    "referer": "https://chat.qwenlm.ai/c/b01c2449-9e27-47d2-a1d6-4e792a22030c",
    "user-agent": (
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
        "Chrome/132.0.0.0 Safari/537.36"
    ),
}
"""The seed's request headers, beside the credential."""

DEFAULT_CHAT_TYPE = "artifacts"
DEFAULT_SIZE = "960*960"
"""The seed sends it with its own chat type, on text too."""

TASK_CHAT_TYPES = {"image_edit", "t2i", "t2v"}
"""Modes that are answered with a task to wait for, and no text (W1-31)."""

USUAL_ROLES = ("user", "assistant", "system")

POLICY = column("qwen-web-v1")


class QwenWebV1:
    """The dialect `qwen-web-v1`. `headers` replace the seed's or are added to them."""

    name = "qwen-web-v1"

    def __init__(
        self,
        base_url: str = BASE_URL,
        api_key: str = "",
        *,
        incremental: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._base_url = base_url
        self._chat_url = f"{base_url}/api/chat/completions"
        self._secrets = Secrets(api_key, headers)
        self._incremental = incremental
        credential = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._headers = {**HEADERS, **credential, **(headers or {})}
        self.uploads = UploadCalls(base_url, self._headers, self._secrets, generation=1)

    def encode(self, request: ChatRequest) -> UpstreamRequest:
        refuse(request.options, POLICY.refused, self.name)
        body = _body(request, self._incremental)
        request.notes.ignored = ignored(
            request.options,
            request.messages,
            known_fields(POLICY, request.options),
            POLICY.known_in_messages,
        )
        return UpstreamRequest(
            method="POST",
            url=self._chat_url,
            headers=self._headers,
            # JSON has no NaN; a client's is sent on as null.
            body=to_json(body, inf_nan_mode="null"),
        )

    def decoder(self, request: ChatRequest, response: UpstreamResponse) -> QwenWebV1Decoder:
        return QwenWebV1Decoder(
            incremental=self._incremental,
            ends_by_close=response.ends_by_close,
            secrets=self._secrets,
        )

    def refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return _web_errors.refusal(status, headers, body, secrets=self._secrets)

    def encode_models(self) -> UpstreamRequest:
        return UpstreamRequest(
            method="GET", url=f"{self._base_url}/api/models", headers=self._headers
        )

    def decode_models(self, body: bytes) -> list[ModelInfo]:
        """Fact W1-35: `{data: [{id, ...}]}`."""
        document = _web_errors.good_document(body, secrets=self._secrets)
        return [web_model(entry, stream_only=False) for entry in listed_models(document)]

    def describe(self, model: str) -> ModelInfo:
        return ModelInfo(model, tools=True, stream_only=False)


def _body(request: ChatRequest, incremental: bool) -> dict[str, Any]:
    """Return the document of facts W1-01 to W1-14, with the fields of the first implementation.

    `temperature` and `max_tokens` are as the client gave them; whether they act is not known.
    """
    options = request.options
    default_type = text_field(options, "chat_type", "chat_type") or DEFAULT_CHAT_TYPE
    messages = [_message(message, i, default_type) for i, message in enumerate(request.messages)]
    chat_type = messages[-1]["chat_type"]
    session_id, chat_id, message_id = fresh_uuids(3)
    body: dict[str, Any] = {
        "stream": request.stream,
        "chat_type": chat_type,
        "model": request.model,
        "messages": messages,
        "session_id": session_id,
        "chat_id": chat_id,
        "id": message_id,
    }
    if incremental:
        body["incremental_output"] = True
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    if chat_type == DEFAULT_CHAT_TYPE:
        body["size"] = DEFAULT_SIZE
    if options:
        _add_options(body, options)
    return body


def _add_options(body: dict[str, Any], options: Mapping[str, Any]) -> None:
    thinking = thinking_config(options)
    if thinking is not None:
        if thinking["thinking_enabled"]:
            # An answer in one piece promises its text and nothing else (W1-30).
            body["stream"] = True
        # It is read from the last message only (W1-07); what that says of itself goes before.
        last = body["messages"][-1]
        last["feature_config"] = {**thinking, **last.get("feature_config", {})}
    for field in ("size", "sub_chat_type", "chat_mode"):
        value = text_field(options, field, field)
        if value is not None:
            body[field] = value


def _message(message: Message, index: int, default_type: str) -> dict[str, Any]:
    is_usual = (
        not message.extra
        and type(message.content) is str
        and message.role in USUAL_ROLES
        and default_type == DEFAULT_CHAT_TYPE
    )
    if is_usual:
        return _document(message.role, message.content, default_type, {})
    where = message.where(index)
    refuse_tools(message, where, QwenWebV1.name)
    chat_type = text_field(message.extra, "chat_type", f"{where}.chat_type") or default_type
    refuse_task(chat_type, TASK_CHAT_TYPES, f"{where}.chat_type")
    content = _content(message, where, chat_type)
    extra = object_field(message.extra, "extra", f"{where}.extra") or {}
    document = _document(message.role, content, chat_type, extra)
    config = object_field(message.extra, "feature_config", f"{where}.feature_config")
    if config is not None:
        document["feature_config"] = config
    return document


def _document(role: str, content: Any, chat_type: str, extra: Any) -> dict[str, Any]:
    return {"role": role, "content": content, "chat_type": chat_type, "extra": extra}


def _content(message: Message, where: str, chat_type: str) -> str | list[dict[str, Any]]:
    """Return text as one string; text beside pictures as the upstream's own parts (W1-04)."""
    if isinstance(message.content, str):
        return message.text
    if all(part.kind == "text" for part in message.content):
        return message.text
    return [
        {**_part(part, f"{where}.content[{i}]"), "chat_type": chat_type}
        for i, part in enumerate(message.content)
    ]


def _part(part: Part, where: str) -> dict[str, Any]:
    if part.kind == "text":
        return {"type": "text", "text": part.text}
    return {"type": "image", "image": _image(part, where)}


def _image(part: Part, where: str) -> str:
    """Return the link, or the file id of the upstream's own, that a picture part names."""
    if isinstance(part, UploadedPart):
        # Of an upload by form the id is known, of one by ticket the address (W1-33, W1-34).
        return part.upload.url or part.upload.id
    if part.kind == "image_url":
        return link_of(part.data, where, QwenWebV1.name)
    image = part.data.get("image")
    if part.kind == "image" and isinstance(image, str) and not image.startswith("data:"):
        return image
    raise InvalidRequest(
        f"{where}: the upstream {QwenWebV1.name!r} takes parts of type text and image_url only",
        code="unsupported_parameter",
        param=f"{where}.type",
    )
