"""The second generation of the Qwen web chat: a stored chat, and one turn in it, at `chat.qwen.ai`.

It has no published specification. What is written here are the facts W2-* of the wire notes, read
out of public programs and captures from August 2025 to October 2026. The operator's credential is
passed on; what a browser would add to it is not made up here (`headers` can add it), and a refusal
is reported as what it is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

from pydantic_core import to_json

from qwen_asgi.chat import ChatRequest, Message, ModelInfo
from qwen_asgi.errors import InvalidRequest, UpstreamError, UpstreamInvalidResponse
from qwen_asgi.ids import fresh_uuids
from qwen_asgi.transports import UpstreamRequest, UpstreamResponse
from qwen_asgi.upstreams import _web_errors
from qwen_asgi.upstreams._documents import listed_models, read_object
from qwen_asgi.upstreams._fields import ignored, refuse
from qwen_asgi.upstreams._file_types import Kind
from qwen_asgi.upstreams._held_files import MOST_FILES, UploadedPart
from qwen_asgi.upstreams._transcript import transcript
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
from qwen_asgi.upstreams.qwen_web_v2_decoder import QwenWebV2Decoder
from qwen_asgi.upstreams.stored_chats import Opening

BASE_URL = "https://chat.qwen.ai"

HEADERS = {
    "accept": "*/*",
    "accept-encoding": "identity",
    "content-type": "application/json",
    "source": "web",
}

DEFAULT_CHAT_TYPE = "t2t"

TASK_CHAT_TYPES = {"deep_research", "t2v"}
"""Modes that are answered with a task to wait for (W2-60), or in phases of their own whose form
nobody has written down (W2-48)."""

SHOWN_AS: Mapping[Kind, tuple[str, str]] = {
    "image": ("image", "vision"),
    "audio": ("audio", "audio"),
    "document": ("file", "document"),
}
"""The `type` and the `file_class` of each kind of file (W2-33)."""

POLICY = column("qwen-web-v2")

FEATURES = {
    "thinking_enabled": True,
    "output_schema": "phase",
    "research_mode": "normal",
    "auto_thinking": True,
    "thinking_format": "summary",
    "auto_search": False,
}
"""What the web client says (W2-31), but that it searches only when asked to."""


class QwenWebV2:
    """The dialect `qwen-web-v2`. `headers` are added to the usual ones or replace them."""

    name = "qwen-web-v2"

    def __init__(
        self,
        base_url: str = BASE_URL,
        api_key: str = "",
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._base_url = base_url
        self._secrets = Secrets(api_key, headers)
        credential = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._headers = {**HEADERS, **credential, **(headers or {})}
        self.uploads = UploadCalls(base_url, self._headers, self._secrets, generation=2)

    def encode_opening(self, request: ChatRequest) -> Opening:
        refuse(request.options, POLICY.refused, self.name)
        turn = _turn(request)
        request.notes.ignored = _ignored(request)
        now = time.time()
        document = {
            "title": "New Chat",
            "models": [request.model],
            "chat_mode": "normal",
            "chat_type": turn["chat_type"],
            # Here in milliseconds (W2-01), below in seconds (W2-27).
            "timestamp": int(now * 1000),
            "project_id": "",
        }
        body = {
            "stream": True,
            "version": "2.1",
            "incremental_output": True,
            "chat_mode": "normal",
            "model": request.model,
            "parent_id": None,
            "messages": [turn],
            "timestamp": int(now),
        }
        size = text_field(request.options, "size", "size")
        if size is not None:
            body["size"] = size
        return Opening(self._post("/api/v2/chats/new", document), partial(self._completion, body))

    def decode_opening(self, body: bytes) -> str:
        document = _web_errors.good_document(body, secrets=self._secrets)
        data = document.get("data")
        id = data.get("id") if isinstance(data, Mapping) else None
        if not isinstance(id, str) or not id:
            raise UpstreamInvalidResponse("the upstream made a chat without a name")
        return id

    def encode_stop(self, chat_id: str) -> UpstreamRequest:
        """Fact W2-03: dropping the connection does not end the answer at once (W2-37)."""
        path = f"/api/v2/chat/completions/stop?chat_id={quote(chat_id, safe='')}"
        return self._post(path, {"chat_id": chat_id})

    def encode_removal(self, chat_id: str) -> UpstreamRequest:
        """Fact W2-04."""
        url = f"{self._base_url}/api/v2/chats/{quote(chat_id, safe='')}"
        return UpstreamRequest(method="DELETE", url=url, headers=self._headers)

    def check_removal(self, body: bytes) -> None:
        """Whatever it says that is no failure is good: nobody has written down what it says."""
        document = read_object(body)
        if document is not None or body.lstrip().startswith(b"<"):
            _web_errors.good_document(body, secrets=self._secrets)

    def decoder(self, request: ChatRequest, response: UpstreamResponse) -> QwenWebV2Decoder:
        return QwenWebV2Decoder(ends_by_close=response.ends_by_close, secrets=self._secrets)

    def refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return _web_errors.refusal(status, headers, body, secrets=self._secrets)

    def encode_models(self) -> UpstreamRequest:
        url = f"{self._base_url}/api/v2/models/"
        return UpstreamRequest(method="GET", url=url, headers=self._headers)

    def decode_models(self, body: bytes) -> list[ModelInfo]:
        """Fact W2-06: the list of W1-35, wrapped once more."""
        document = _web_errors.good_document(body, secrets=self._secrets)
        inner = document.get("data")
        return [
            web_model(entry, stream_only=True)
            for entry in listed_models(inner if isinstance(inner, Mapping) else document)
        ]

    def describe(self, model: str) -> ModelInfo:
        return ModelInfo(model, tools=True, stream_only=True)

    def _completion(self, body: Mapping[str, Any], chat_id: str) -> UpstreamRequest:
        path = f"/api/v2/chat/completions?chat_id={quote(chat_id, safe='')}"
        return self._post(path, {**body, "chat_id": chat_id})

    def _post(self, path: str, document: Mapping[str, Any]) -> UpstreamRequest:
        return UpstreamRequest(
            method="POST",
            url=self._base_url + path,
            headers=self._headers,
            # JSON has no NaN; a client's is sent on as null.
            body=to_json(document, inf_nan_mode="null"),
        )


def _ignored(request: ChatRequest) -> tuple[str, ...]:
    """Return the names of the fields that have no effect here (W2-34); the limit on tokens has one
    by the layer around it."""
    names = ignored(
        request.options,
        request.messages,
        known_fields(POLICY, request.options),
        POLICY.known_in_messages,
    )
    return names if request.temperature is None else ("temperature", *names)


def _turn(request: ChatRequest) -> dict[str, Any]:
    """Return the one message that is sent, with the whole conversation in it (W2-29, W2-30)."""
    last = request.messages[-1]
    param = last.where(len(request.messages) - 1)
    chat_type = (
        text_field(last.extra, "chat_type", f"{param}.chat_type")
        or text_field(request.options, "chat_type", "chat_type")
        or DEFAULT_CHAT_TYPE
    )
    refuse_task(chat_type, TASK_CHAT_TYPES, "chat_type")
    files = [file for i, m in enumerate(request.messages) for file in _files(m, m.where(i))]
    if len(files) > MOST_FILES:
        raise InvalidRequest(
            f"the upstream {QwenWebV2.name!r} takes {MOST_FILES} files in a request, "
            f"not {len(files)}",
            code="unsupported_parameter",
            param="messages",
        )
    fid, child = fresh_uuids(2)
    return {
        "fid": fid,
        "parentId": None,
        "parent_id": None,
        "childrenIds": [child],
        "role": "user",
        "content": transcript(request.messages),
        "user_action": "chat",
        "files": files,
        "timestamp": int(time.time()),
        "models": [request.model],
        "chat_type": chat_type,
        "sub_chat_type": chat_type,
        "feature_config": _features(request.options, last, param),
        "extra": {"meta": {"subChatType": chat_type}},
    }


def _features(options: Mapping[str, Any], last: Message, param: str) -> dict[str, Any]:
    features: dict[str, Any] = dict(FEATURES)
    thinking = thinking_config(options)
    if thinking is not None:
        # Off is off, and on is on: neither is left to the upstream.
        mode = "Thinking" if thinking["thinking_enabled"] else "Fast"
        features |= {"auto_thinking": False, "thinking_mode": mode, **thinking}
    if options.get("enable_search") is True or options.get("web_search_options") is not None:
        features["auto_search"] = True
    own = object_field(last.extra, "feature_config", f"{param}.feature_config")
    return features | dict(own or {})


def _files(message: Message, where: str) -> list[dict[str, Any]]:
    """Return a message's files, and links to pictures, as the upstream has them (W2-33)."""
    refuse_tools(message, where, QwenWebV2.name)
    if isinstance(message.content, str):
        return []
    files = []
    for i, part in enumerate(message.content):
        if isinstance(part, UploadedPart):
            files.append(_uploaded(part))
        elif part.kind == "image_url":
            files.append(_file(link_of(part.data, f"{where}.content[{i}]", QwenWebV2.name)))
        elif part.kind != "text":
            raise InvalidRequest(
                f"{where}.content[{i}]: the upstream {QwenWebV2.name!r} takes parts of type text "
                "and image_url only",
                code="unsupported_parameter",
                param=f"{where}.content[{i}].type",
            )
    return files


def _file(link: str) -> dict[str, Any]:
    (id,) = fresh_uuids(1)
    return {
        "type": "image",
        "file": {},
        "id": id,
        "url": link,
        "name": "image",
        "status": "uploaded",
        "size": 0,
        "file_type": "image",
        "showType": "image",
        "file_class": "vision",
    }


def _uploaded(part: UploadedPart) -> dict[str, Any]:
    """Return an upload as the web client's captures have it."""
    file, id, size = part.file, part.upload.id, len(part.file.data)
    shown, file_class = SHOWN_AS[file.kind]
    now = int(time.time() * 1000)
    item, task = fresh_uuids(2)
    meta: dict[str, Any] = {"name": file.name, "size": size, "content_type": file.media_type}
    if file.kind == "document":
        meta["parse_meta"] = {"parse_status": "success"}
    return {
        "type": shown,
        "file": {
            "created_at": now,
            "data": {},
            "filename": file.name,
            "hash": None,
            "id": id,
            "meta": meta,
            "update_at": now,
        },
        "id": id,
        "url": part.upload.url,
        "name": file.name,
        "collection_name": "",
        "progress": 0,
        "status": "uploaded",
        "greenNet": "success",
        "size": size,
        "error": "",
        "itemId": item,
        "file_type": file.media_type,
        "showType": shown,
        "file_class": file_class,
        "uploadTaskId": task,
    }
