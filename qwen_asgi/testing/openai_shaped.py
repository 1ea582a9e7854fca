"""The simulated OpenAI-compatible server, and Model Studio with what it does otherwise.

DS numbers are those of the wire notes. Where the two differ, the plain server takes everything.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

from qwen_asgi.testing.answers import DONE, EVENT_STREAM, Answer, compact, sse_of, whole_answer
from qwen_asgi.testing.replies import Reply, object_of

_STREAM_ONLY = re.compile("qwq|qvq|omni", re.IGNORECASE)


def failed(status: int, code: str, message: str, type: str | None = None) -> Answer:
    return whole_answer(compact(error_object(code, message, type)), status=status, form="openai")


def error_object(code: str, message: str, type: str | None = None) -> dict[str, Any]:
    error = {"message": message, "type": type or code, "param": None, "code": code}
    return {"error": error, "request_id": str(uuid4())}


def unauthorized() -> Answer:
    return failed(401, "invalid_api_key", "Incorrect API key provided. ", "invalid_request_error")


def models(names: Iterable[str]) -> Answer:
    entry = {"object": "model", "created": 1732711165, "owned_by": "system"}
    data = [{"id": name, **entry} for name in names]
    return whole_answer(compact({"object": "list", "data": data}), form="openai")


def refusal(body: Any, names: Sequence[str], *, is_model_studio: bool) -> Answer | None:
    """Return why a request is not answered; None if it is."""
    match body:
        case {"model": str(model), "messages": [*_, {}]}:
            if model not in names:
                message = f"The model `{model}` does not exist or you do not have access to it."
                return failed(404, "model_not_found", message, "invalid_request_error")
            return _trap(body) if is_model_studio else None
    return _refused("model and messages are required")


def _trap(body: Mapping[str, Any]) -> Answer | None:
    """Return what Model Studio refuses and OpenAI does not (DS-30, DS-48, DS-49)."""
    thinks, streams = body.get("enable_thinking"), body.get("stream") is True
    demands = body.get("tool_choice") not in (None, "auto", "none")
    if _STREAM_ONLY.search(body["model"]) and not streams:
        return _refused(
            "This model only support stream mode, please enable the stream parameter to access "
            "the model. "
        )
    if thinks and not streams:
        return _refused("parameter.enable_thinking must be set to false for non-streaming calls")
    if thinks and demands:
        return _refused(
            "<400> InternalError.Algo.InvalidParameter: The tool_choice parameter does not support "
            "being set to required or object in thinking mode"
        )
    return None


def _refused(message: str) -> Answer:
    return failed(400, "invalid_parameter_error", message, "invalid_request_error")


def completion(body: Mapping[str, Any], reply: Reply) -> Answer:
    template = object_of(body, "chat_template_kwargs")
    thinks = body.get("enable_thinking") is True or template.get("enable_thinking") is True
    calls = reply.tool_calls if body.get("tools") and body.get("tool_choice") != "none" else ()
    thinking = reply.thinking if thinks else []
    if body.get("stream") is True:
        return Answer(
            headers={"content-type": EVENT_STREAM},
            steps=_stream(body, reply, thinking, calls),
            pace=reply.pace,
            form="openai",
        )
    message: dict[str, Any] = {"role": "assistant", "content": "" if calls else "".join(reply.text)}
    if thinking:
        message["reasoning_content"] = "".join(thinking)
    if calls:
        message["tool_calls"] = [_call(n, name, given) for n, (name, given) in enumerate(calls)]
    choice = {"message": message, "finish_reason": _reason(calls), "index": 0, "logprobs": None}
    document = {"choices": [choice], "object": "chat.completion", **_frame(body)}
    tokens = len(calls) if calls else len(reply.text)
    if reply.counts:
        document["usage"] = _usage(reply, len(thinking), tokens)
    return whole_answer(compact(document), form="openai")


def _stream(
    body: Mapping[str, Any], reply: Reply, thinking: list[str], calls: Sequence[tuple[str, str]]
) -> Iterator[bytes]:
    common = _frame(body)

    def chunk(
        delta: Mapping[str, Any] | None, reason: str | None = None, usage: Any = None
    ) -> bytes:
        choice = {"finish_reason": reason, "delta": delta, "index": 0, "logprobs": None}
        choices = [] if delta is None else [choice]
        return sse_of(
            {"choices": choices, "object": "chat.completion.chunk", "usage": usage, **common}
        )

    yield chunk({"content": "", "role": "assistant"})
    for piece in thinking:
        yield chunk({"content": None, "reasoning_content": piece})
    for n, (name, given) in enumerate(calls):
        yield chunk({"content": None, "tool_calls": [_call(n, name, "")]})
        for start in range(0, len(given), 5):
            # No name, and an id that is empty (DS-71, DS-73).
            more = {"function": {"name": None, "arguments": given[start : start + 5]}}
            yield chunk({"content": None, "tool_calls": [{**more, "index": n, "id": ""}]})
    if not calls:
        for piece in reply.text:
            yield chunk({"content": piece})
    yield chunk({"content": ""}, _reason(calls))
    if reply.counts and object_of(body, "stream_options").get("include_usage") is True:
        tokens = len(calls) if calls else len(reply.text)
        yield chunk(None, usage=_usage(reply, len(thinking), tokens))
    if reply.says_done:
        yield DONE


def _frame(body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "created": int(time.time()),
        "system_fingerprint": None,
        "model": body["model"],
        "id": f"chatcmpl-{uuid4()}",
    }


def _call(index: int, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": f"call_{index:022d}", "type": "function", "function": function}


def _reason(calls: Sequence[Any]) -> str:
    return "tool_calls" if calls else "stop"


def _usage(reply: Reply, thinking: int, tokens: int) -> dict[str, Any]:
    output = thinking + tokens
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": output,
        "total_tokens": reply.prompt_tokens + output,
        "completion_tokens_details": {"reasoning_tokens": thinking},
        "prompt_tokens_details": {"cached_tokens": 0},
    }
