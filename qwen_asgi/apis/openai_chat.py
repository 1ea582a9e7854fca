"""OpenAI's Chat Completions: request bodies to chats, events to answers and chunks.

Source: OpenAI's published API description, "Create chat completion"; the tests validate all that is
written here against its schemas.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Annotated, Any, Literal, Required, assert_never

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import ErrorDetails, to_json
from typing_extensions import TypedDict

from qwen_asgi import sse
from qwen_asgi.apis.body_bounds import LONG_BODY, check_arguments, check_bounds
from qwen_asgi.apis.legacy_functions import call_piece, only_call, with_tool_turns, with_tools
from qwen_asgi.chat import (
    Answer,
    ChatRequest,
    Choice,
    Event,
    Extra,
    Finish,
    FinishReason,
    Message,
    Part,
    ReasoningDelta,
    Role,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from qwen_asgi.errors import InvalidRequest, QwenASGIError
from qwen_asgi.ids import IdSource

DONE = sse.encode(b"[DONE]")

MOST_MESSAGES = 10_000
MOST_PARTS = 1_000
MOST_UNKNOWN_FIELDS = 10_000
"""Bounds on what a body may hold of each: their number costs time, and their length hardly any."""


def _only(what: str, is_one: Callable[[Any], bool]) -> AfterValidator:
    """Check all elements at once: by their type, each of a million wrong ones were a finding."""

    def check(elements: Any) -> Any:
        values = elements.values() if isinstance(elements, dict) else elements
        if not all(is_one(value) for value in values):
            raise ValueError(f"should hold {what} only")
        return elements

    return AfterValidator(check)


_Numbers = Annotated[
    dict[str, Any],
    _only("finite numbers", lambda v: type(v) in (int, float) and isfinite(v)),
]
_Objects = Annotated[list[Any], _only("objects", lambda v: isinstance(v, dict))]
_Texts = Annotated[list[Any], _only("strings", lambda v: isinstance(v, str))]


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 10.0 is a whole one too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Int = Annotated[int, BeforeValidator(_whole)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]
_Tokens = Annotated[_Int, Field(ge=1, le=2**31 - 1)]


_UNION_MEMBERS = {"dict[str,any]", "str"}
"""How pydantic names the members of the unions below, in the place of a finding."""


# The JSON objects of a request: wrong types are refused, unknown fields are kept. They are read
# into plain dicts, that hold what was sent and nothing else: a model with all its fields takes
# twice as long to make.
_OBJECT = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Message(TypedDict, total=False):
    __pydantic_config__ = _OBJECT  # type: ignore[misc]

    role: Required[Literal["system", "developer", "user", "assistant", "tool", "function"]]
    content: Any


class _StreamOptions(TypedDict, total=False):
    __pydantic_config__ = _OBJECT  # type: ignore[misc]

    include_usage: bool | None


class _ResponseFormat(TypedDict):
    __pydantic_config__ = _OBJECT  # type: ignore[misc]

    type: str


class _Body(TypedDict, total=False):
    """The body of `POST /v1/chat/completions`."""

    __pydantic_config__ = _OBJECT  # type: ignore[misc]

    model: Required[Annotated[str, Field(min_length=1, max_length=256)]]
    # A body may hold a million wrong messages; the first is enough to refuse it.
    messages: Required[
        Annotated[list[_Message], Field(min_length=1, max_length=MOST_MESSAGES), FailFast()]
    ]
    stream: bool | None
    stream_options: _StreamOptions | None
    temperature: Annotated[float, Field(ge=0, le=2)] | None
    max_tokens: _Tokens | None
    max_completion_tokens: _Tokens | None

    audio: dict[str, Any] | None
    frequency_penalty: _Penalty | None
    function_call: str | dict[str, Any] | None
    functions: _Objects | None
    logit_bias: _Numbers | None
    logprobs: bool | None
    metadata: dict[str, Any] | None
    modalities: _Texts | None
    n: Annotated[_Int, Field(ge=1, le=128)] | None
    parallel_tool_calls: bool | None
    prediction: dict[str, Any] | None
    presence_penalty: _Penalty | None
    prompt_cache_key: str | None
    reasoning_effort: str | None
    response_format: _ResponseFormat | None
    safety_identifier: str | None
    seed: Annotated[_Int, Field(ge=-(2**63), lt=2**63)] | None
    service_tier: str | None
    stop: str | _Texts | None
    store: bool | None
    tool_choice: str | dict[str, Any] | None
    tools: _Objects | None
    top_logprobs: Annotated[_Int, Field(ge=0, le=20)] | None
    top_p: Annotated[float, Field(ge=0, le=1)] | None
    user: str | None
    verbosity: str | None
    web_search_options: dict[str, Any] | None


_BODY = TypeAdapter(_Body)

REASONING_FIELDS = {
    "reasoning_content": ("reasoning_content",),
    "reasoning": ("reasoning",),
    "both": ("reasoning_content", "reasoning"),
}
"""Where clients read what the model thought, which OpenAI's API has no field for."""

_READ_HERE = {
    "model",
    "messages",
    "stream",
    "stream_options",
    "temperature",
    "max_tokens",
    "max_completion_tokens",
}


_OF_MESSAGES = {"role", "content"}


def read_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields that a chat may have, as a client's are read. Raises InvalidRequest."""
    chat = {"model": "m", "messages": [{"role": "user", "content": ""}]}
    try:
        read: Any = _BODY.validate_json(to_json({**chat, **fields}))
    except ValidationError as exc:
        raise _invalid(exc.errors(include_url=False)[0]) from None
    return {name: read[name] for name in fields}


class OpenAIChat:
    """The client API of OpenAI's Chat Completions. `reasoning` names the fields of an answer that
    tell what the model thought."""

    def __init__(self, reasoning: Sequence[str] = REASONING_FIELDS["reasoning_content"]) -> None:
        self._ids = IdSource()
        self._reasoning = reasoning

    def read(self, body: bytes) -> ChatRequest:
        """Return the chat that a body asks for.

        `content` may be text, a list of parts or one part. Fields with the value null count as not
        given; what is not read here is in `options`. Raises InvalidRequest, `param` naming the
        field.
        """
        check_bounds(body)
        try:
            fields: Any = _BODY.validate_json(body.removeprefix(sse.BOM))
        except ValidationError as exc:
            raise _invalid(exc.errors(include_url=False)[0]) from None
        stream_options = fields.get("stream_options") or {}
        messages = tuple([_message(m, i) for i, m in enumerate(fields["messages"])])
        if any(m.extra and (m.role == "function" or "function_call" in m.extra) for m in messages):
            messages = with_tool_turns(messages)
        if len(body) > LONG_BODY:
            check_arguments(messages)
        options = _options(fields)
        has_functions = "functions" in options or "function_call" in options
        return ChatRequest(
            model=fields["model"],
            messages=messages,
            stream=bool(fields.get("stream")),
            include_usage=bool(stream_options.get("include_usage")),
            temperature=fields.get("temperature"),
            max_tokens=fields.get("max_completion_tokens") or fields.get("max_tokens"),
            options=options,
            calls_as_functions=has_functions and with_tools(options),
        )

    def answer(self, request: ChatRequest, answer: Answer) -> bytes:
        choices = enumerate([answer, *answer.others])
        document: dict[str, Any] = {
            "id": self._new_id(),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.model,
            "choices": [
                _choice(index, one, request.calls_as_functions, self._reasoning)
                for index, one in choices
            ],
        }
        if answer.usage is not None:
            document["usage"] = _usage(answer.usage)
        return to_json(document)

    def stream(self, request: ChatRequest) -> ChunkWriter:
        return ChunkWriter(request, self._new_id(), int(time.time()), self._reasoning)

    def error(self, error: QwenASGIError) -> bytes:
        return _error(error)

    def _new_id(self) -> str:
        return f"chatcmpl-{self._ids.next()}"


def _choice(
    index: int, answer: Answer, calls_as_functions: bool, reasoning: Sequence[str]
) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer.text if answer.text or not answer.tool_calls else None,
        "refusal": None,
    }
    if answer.reasoning:
        message.update(dict.fromkeys(reasoning, answer.reasoning))
    if answer.tool_calls and calls_as_functions:
        message["function_call"] = only_call(answer.tool_calls)
    elif answer.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in answer.tool_calls
        ]
    logprobs: dict[str, Any] | None = None
    for extra in answer.extras:
        if extra.kind == "delta":
            message.update(extra.data)
        elif extra.kind == "logprobs":
            logprobs = _more_logprobs(logprobs, extra.data)
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": _reason(answer.finish_reason, calls_as_functions),
    }


def _reason(reason: FinishReason, calls_as_functions: bool) -> str:
    return "function_call" if calls_as_functions and reason == "tool_calls" else reason


class ChunkWriter:
    """Events to the chunks of one stream; see `apis.StreamWriter` for the order of calls.

    What is the same in every chunk of a stream is rendered once.
    """

    __slots__ = (
        "_after",
        "_before",
        "_calls_as_functions",
        "_choices",
        "_finish",
        "_has_role",
        "_head",
        "_include_usage",
        "_index",
        "_reasoning",
        "_reasonings",
        "_text",
        "usage",
    )

    def __init__(
        self, request: ChatRequest, id: str, created: int, reasoning: Sequence[str]
    ) -> None:
        head = to_json(
            {"id": id, "object": "chat.completion.chunk", "created": created},
        ).removesuffix(b"}")
        self._head = b'data: %b,"model":%b,"choices":' % (head, to_json(request.model))
        self._include_usage = request.include_usage
        self._calls_as_functions = request.calls_as_functions
        self._reasoning = ",".join(f'"{name}":%b' for name in reasoning).encode()
        self._reasonings = len(reasoning)
        # OpenAI: with `include_usage` every chunk has the field, null in all but the last.
        tail = b',"usage":null}\n\n' if request.include_usage else b"}\n\n"
        self._after = b'},"logprobs":null,"finish_reason":null}]' + tail
        self._finish = b'[{"index":%d,"delta":{},"logprobs":null,"finish_reason":%b}]' + tail
        self._choices: set[int] = set()
        """Those that have begun, where there are several."""
        self._has_role = False
        self._turn_to(0)
        self.usage: Usage | None = None

    def _turn_to(self, index: int) -> None:
        """Write what is of this choice."""
        self._index = index
        self._before = self._head + b'[{"index":%d,"delta":{' % index
        self._text = self._before.replace(b"%", b"%%") + b'"content":%b' + self._after
        """A whole chunk, but for the text."""

    def write(self, events: Sequence[Event]) -> bytes:
        if events and type(events[0]) is Choice:
            index, events = events[0].index, events[1:]
            if index != self._index:
                self._turn_to(index)
            self._has_role = index in self._choices
        chunks = []
        for event in events:
            if type(event) is TextDelta:
                # Nearly every event is one.
                chunks.append(self._text % to_json(event.text))
            elif chunk := self._chunk(event):
                chunks.append(chunk)
        if chunks and not self._has_role:
            self._has_role = True
            self._choices.add(self._index)
            chunks.insert(0, self._delta(b'"role":"assistant","content":"","refusal":null'))
        return b"".join(chunks)

    def finish(self) -> bytes:
        if self.usage is None or not self._include_usage:
            return DONE
        return b'%b[],"usage":%b}\n\n%b' % (self._head, to_json(_usage(self.usage)), DONE)

    def fail(self, error: QwenASGIError) -> bytes:
        return sse.encode(_error(error))

    def _chunk(self, event: Event) -> bytes:
        match event:
            case TextDelta():
                return self._delta(b'"content":' + to_json(event.text))
            case ReasoningDelta():
                text = to_json(event.text)
                return self._delta(self._reasoning % ((text,) * self._reasonings))
            case ToolCallDelta() if self._calls_as_functions:
                return self._delta(b'"function_call":' + to_json(call_piece(event)))
            case ToolCallDelta():
                return self._delta(b'"tool_calls":' + to_json([_tool_call_piece(event)]))
            case Finish():
                reason = to_json(_reason(event.reason, self._calls_as_functions))
                return self._head + self._finish % (self._index, reason)
            case Usage():
                self.usage = event
                return b""
            case Extra(kind="delta"):
                return self._delta(to_json(event.data)[1:-1])
            case Extra(kind="logprobs"):
                # It is the first that is null behind a delta.
                return self._before + self._after.replace(b"null", to_json(event.data), 1)
            case Extra() | Choice():
                # The API has no place for it.
                return b""
            case _:
                assert_never(event)

    def _delta(self, fields: bytes) -> bytes:
        return self._before + fields + self._after


def _error(error: QwenASGIError) -> bytes:
    return to_json(
        {
            "error": {
                "message": error.message,
                "type": error.type,
                "param": error.param,
                "code": error.code,
            }
        }
    )


def _more_logprobs(known: dict[str, Any] | None, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the probabilities of all tokens so far; each piece has those of its own."""
    if known is None:
        return dict(more)
    for name, tokens in more.items():
        before = known.get(name)
        is_more = isinstance(before, list) and isinstance(tokens, list)
        known[name] = before + tokens if is_more else tokens or before
    return known


def _usage(usage: Usage) -> dict[str, Any]:
    document: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    if usage.certainty != "exact":
        # Not OpenAI's: there all usage is counted.
        document["certainty"] = usage.certainty
    if usage.reasoning_tokens is not None:
        document["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    if usage.cached_tokens is not None:
        document["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    return document


def _tool_call_piece(piece: ToolCallDelta) -> dict[str, Any]:
    """The first piece has index, id, type and name; later ones must not repeat them."""
    function: dict[str, Any] = {"arguments": piece.arguments}
    document: dict[str, Any] = {"index": piece.index, "function": function}
    if piece.id is not None:
        document.update(id=piece.id, type="function")
    if piece.name is not None:
        function["name"] = piece.name
    return document


def _options(fields: Mapping[str, Any]) -> dict[str, Any]:
    if len(fields) > MOST_UNKNOWN_FIELDS + len(_Body.__annotations__):
        raise InvalidRequest(f"the request holds more than {MOST_UNKNOWN_FIELDS} unknown fields")
    return {k: v for k, v in fields.items() if v is not None and k not in _READ_HERE}


def _message(fields: Mapping[str, Any], index: int) -> Message:
    role: Role = "system" if fields["role"] == "developer" else fields["role"]
    content = fields.get("content")
    extra = {}
    if len(fields) > 1 + ("content" in fields):
        extra = {
            k: v for k, v in fields.items() if k not in _OF_MESSAGES and v not in (None, [], {})
        }
    if type(content) is str:
        return Message(role, content, extra, index)
    if (role == "assistant" and content in (None, [])) or (role == "function" and content is None):
        # So a tool-calling turn, or a refusal, comes back in a history; a function may return
        # nothing.
        return Message(role, "", extra, index)
    return Message(role, _content(content, f"messages[{index}].content"), extra, index)


def _content(content: Any, where: str) -> str | tuple[Part, ...]:
    match content:
        case str():
            return content
        case list() if len(content) > MOST_PARTS:
            raise InvalidRequest(f"{where} holds more than {MOST_PARTS} parts", param=where)
        case list() if content:
            return tuple(_part(part, f"{where}[{i}]") for i, part in enumerate(content))
        case dict():
            return (_part(content, where),)
        case None:
            raise InvalidRequest(f"{where} is required", param=where)
        case _:
            raise InvalidRequest(
                f"{where} should be text, a part, or a list of at least one part", param=where
            )


def _part(part: Any, where: str) -> Part:
    match part:
        case {"type": "text", "text": str(text)}:
            return Part("text", text, part)
        case {"type": "refusal", "refusal": str(text)}:
            # An assistant's turn in a history: its words, though it said no.
            return Part("text", text, part)
        case {"type": "text"}:
            raise InvalidRequest(f"{where}.text should be a string", param=f"{where}.text")
        case {"type": str(kind)}:
            return Part(kind, "", part)
        case {"type": _}:
            raise InvalidRequest(f"{where}.type should be a string", param=f"{where}.type")
        case {"text": str(text)}:
            # The seed takes a part that says nothing of its type.
            return Part("text", text, part)
        case dict():
            raise InvalidRequest(f"{where}.type is required", param=f"{where}.type")
        case _:
            raise InvalidRequest(f"{where} should be an object with a type", param=where)


def _invalid(error: ErrorDetails) -> InvalidRequest:
    """Return pydantic's first finding as an error that names the field and shows no content."""
    param = _param(error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    match error["type"]:
        case "json_invalid":
            reason = (error.get("ctx") or {}).get("error", "")
            return InvalidRequest(f"the request's body is not valid JSON: {reason}")
        case "missing":
            return InvalidRequest(f"{param} is required", param=param)
        case "dict_type" if param is None:
            return InvalidRequest("the request's body should be a JSON object")
        case "dict_type":
            message = "input should be an object"
    given = error["input"]
    shown = f", not {given}" if isinstance(given, bool | float) or _is_short(given) else ""
    return InvalidRequest(f"{param}: {message[:1].lower()}{message[1:]}{shown}", param=param)


def _is_short(value: object) -> bool:
    return isinstance(value, int) and abs(value) < 10**20


def _param(loc: Sequence[int | str]) -> str | None:
    """Return where a finding is, as a path; the names that pydantic gives to the members of a union
    are left out."""
    path = ""
    for step in loc:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step in _UNION_MEMBERS:
            break
        else:
            path += f".{step}" if path else step
    return path[:200] or None
