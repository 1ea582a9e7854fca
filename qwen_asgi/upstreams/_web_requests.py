"""What the requests of both generations of the web chat have in common."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from qwen_asgi.chat import Message, ModelInfo
from qwen_asgi.errors import InvalidRequest
from qwen_asgi.upstreams._documents import count_in
from qwen_asgi.upstreams._thinking import thinking_budget, wants_thinking
from qwen_asgi.upstreams.field_policy import Column


def web_model(entry: Mapping[str, Any], stream_only: bool) -> ModelInfo:
    """Return what an entry of the list of models says (W1-35)."""
    meta = _object(_object(entry, "info"), "meta")
    abilities = _object(meta, "capabilities")
    has_thoughts = "max_thinking_generation_length" in meta
    return ModelInfo(
        entry["id"],
        context=count_in(meta, "max_context_length"),
        thinking=_flag(abilities, "thinking") or (True if has_thoughts else None),
        tools=True,
        vision=_flag(abilities, "vision"),
        stream_only=stream_only,
    )


def _object(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = fields.get(name)
    return value if isinstance(value, Mapping) else {}


def _flag(fields: Mapping[str, Any], name: str) -> bool | None:
    value = fields.get(name)
    return value if isinstance(value, bool) else None


def refuse_tools(message: Message, where: str, upstream: str) -> None:
    """Raise InvalidRequest for a turn that calls a tool, or that holds its result."""
    calls = message.extra.get("tool_calls") or message.extra.get("function_call")
    if message.role in ("tool", "function") or calls:
        raise InvalidRequest(
            f"the upstream {upstream!r} knows no tools; {where} is a tool's call or result",
            code="unsupported_parameter",
            param=where,
        )


def refuse_task(chat_type: str, types: set[str], param: str) -> None:
    """Raise InvalidRequest for a mode whose answer cannot be given as one."""
    if chat_type in types:
        raise InvalidRequest(
            f"the chat type {chat_type!r} is answered with tasks or reports, not with text; "
            'use "artifacts", "t2t" or "search"',
            code="unsupported_parameter",
            param=param,
        )


def thinking_config(options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how the client's wish to have it think, or not, is said (W1-07); None without one."""
    wish = wants_thinking(options)
    if wish is None:
        return None
    config: dict[str, Any] = {"thinking_enabled": wish, "output_schema": "phase"}
    budget = thinking_budget(options) if wish else None
    if budget is not None:
        config["thinking_budget"] = budget
    return config


def known_fields(policy: Column, options: Mapping[str, Any]) -> Set[str]:
    """Return the names of the options that something is done with, or that ask for nothing."""
    has_wish = "enable_thinking" in options or "reasoning_effort" in options
    if "thinking_budget" in options and not has_wish:
        # A budget alone does not say that the model should think.
        return policy.known - {"thinking_budget"}
    return policy.known


def link_of(part: Mapping[str, Any], where: str, upstream: str) -> str:
    """Return the link that an `image_url` part holds. Raises InvalidRequest."""
    link = part.get("image_url")
    image = link.get("url") if isinstance(link, Mapping) else link
    if isinstance(image, str) and image.startswith(("https://", "http://")):
        return image
    raise InvalidRequest(
        f"{where}.image_url should be a link (https://...); pictures inside the request are "
        f"not supported by {upstream!r}",
        code="unsupported_parameter",
        param=f"{where}.image_url",
    )


def text_field(fields: Mapping[str, Any], name: str, param: str) -> str | None:
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return value
    raise InvalidRequest(f"{param} should be a string", param=param)


def object_field(fields: Mapping[str, Any], name: str, param: str) -> Mapping[str, Any] | None:
    value = fields.get(name)
    if value is None or isinstance(value, Mapping):
        return value
    raise InvalidRequest(f"{param} should be an object", param=param)
