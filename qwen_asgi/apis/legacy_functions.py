"""OpenAI's older form of tools, `functions`: read as tools, and told as function calls.

Source: OpenAI's published API description, where they are deprecated: one call an answer, without
an id, named `function_call`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qwen_asgi.chat import Message, ToolCall, ToolCallDelta
from qwen_asgi.errors import InvalidRequest, UpstreamInvalidResponse


def with_tools(options: dict[str, Any]) -> bool:
    """Put tools in the place of functions; return whether there were some.

    Raises InvalidRequest where both are given.
    """
    functions, choice = options.pop("functions", None), options.pop("function_call", None)
    if isinstance(choice, str) and choice not in ("auto", "none"):
        raise InvalidRequest(
            "function_call should be auto, none or a function's name", param="function_call"
        )
    if not functions:
        if isinstance(choice, Mapping):
            raise InvalidRequest(
                "function_call names a function, and functions holds none", param="function_call"
            )
        return False
    if options.get("tools"):
        raise InvalidRequest("give either tools or functions, not both", param="functions")
    options["tools"] = [{"type": "function", "function": function} for function in functions]
    if isinstance(choice, Mapping):
        options["tool_choice"] = {"type": "function", "function": choice}
    elif choice is not None:
        options["tool_choice"] = choice
    # There is room for one.
    options["parallel_tool_calls"] = False
    return True


def with_tool_turns(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Put calls of tools and their results in the place of those of functions, which have no ids: a
    result is that of the last call of its name."""
    turned = []
    ids: dict[str, str] = {}
    for number, message in enumerate(messages):
        call = message.extra.get("function_call")
        if isinstance(call, Mapping):
            id = f"call_{number}"
            ids[str(call.get("name"))] = id
            extra = {name: v for name, v in message.extra.items() if name != "function_call"}
            extra["tool_calls"] = [{"id": id, "type": "function", "function": call}]
            turned.append(replace(message, extra=extra))
        elif message.role == "function":
            name = str(message.extra.get("name"))
            extra = {k: v for k, v in message.extra.items() if k != "name"}
            extra["tool_call_id"] = ids.get(name, f"call_{name}")
            turned.append(replace(message, role="tool", extra=extra))
        else:
            turned.append(message)
    return tuple(turned)


def only_call(calls: Sequence[ToolCall]) -> dict[str, str]:
    """Return the one call of an answer. Raises UpstreamInvalidResponse for several."""
    if len(calls) > 1:
        raise _several()
    return {"name": calls[0].name, "arguments": calls[0].arguments}


def call_piece(piece: ToolCallDelta) -> dict[str, str]:
    """Return what a piece of the one call adds. Raises UpstreamInvalidResponse for another's."""
    if piece.index:
        raise _several()
    if piece.name is None:
        return {"arguments": piece.arguments}
    return {"name": piece.name, "arguments": piece.arguments}


def _several() -> UpstreamInvalidResponse:
    return UpstreamInvalidResponse(
        "the model calls several functions at once, and an answer to `functions` has room for one; "
        "send `tools`"
    )
