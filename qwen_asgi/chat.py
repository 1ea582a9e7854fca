"""The vocabulary between the client APIs and the upstream dialects.

A `ChatRequest` goes down, batches of `Event` come up. An upstream is one function of a request, so
a layer around it is a function too, and a test's upstream is five lines.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, assert_never

Certainty = Literal["exact", "partial", "estimated"]
Role = Literal["system", "user", "assistant", "tool", "function"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


# A frozen dataclass takes two to three times as long to make as a plain slotted one (measured: 0.29
# against 0.15 us for one field). What is made for each message or each frame is not frozen, then;
# nobody changes it.


@dataclass(slots=True)
class Part:
    """One part of a message's content."""

    kind: str
    """OpenAI's `type`: `text`, `image_url`, `input_audio`, `file`; or the upstream's own."""
    text: str
    """The text of a `text` part, otherwise empty."""
    data: Mapping[str, Any]
    """The part as the client sent it."""


@dataclass(slots=True)
class Message:
    """One turn of the conversation, in OpenAI's roles; `developer` is read as `system`."""

    role: Role
    content: str | tuple[Part, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)
    """The message's other fields, as the client sent them: `name`, `tool_calls`, `chat_type`..."""
    at: int = field(default=-1, compare=False, repr=False)
    """Where the client has it among its own; -1 for one that the gateway has put there."""

    def where(self, index: int) -> str:
        """Return how the client names it, whatever stands before it by now; `index` is its place
        here."""
        return f"messages[{index if self.at < 0 else self.at}]"

    @property
    def text(self) -> str:
        """The text of the content: of parts, each one's `text`, joined with a newline; of a turn
        that refused to answer, and has no other, its words."""
        if isinstance(self.content, str):
            refusal = self.extra.get("refusal") if not self.content and self.extra else None
            return refusal if isinstance(refusal, str) else self.content
        return "\n".join(part.text for part in self.content if part.kind == "text")


class Rest:
    """What an upstream goes on to say when its client has left, and somebody reads on."""

    __slots__ = ("_heard_by", "end", "usage")

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.end = ""
        """How that ended: `done`; `seconds` or `tokens` at a bound; `shutdown`; or an error's code.
        Empty while it goes on."""
        self._heard_by: list[Callable[[], None]] = []

    def when_over(self, tell: Callable[[], None]) -> None:
        """Call `tell` once it has ended."""
        if self.end:
            tell()
        else:
            self._heard_by.append(tell)

    def over(self, end: str) -> None:
        self.end = end
        for tell in self._heard_by:
            tell()


@dataclass(slots=True)
class Notes:
    """What was found out on the way down and belongs into the answer's headers."""

    ignored: tuple[str, ...] = ()
    """Names of request fields that the upstream cannot honour and that do no harm when dropped."""
    upstream: str = ""
    """Which of several upstreams was asked last; empty where there is but one."""
    attempts: int = 0
    """How often an upstream was asked."""
    left: Usage | None = None
    """What answers had cost that were left before their end, as far as their upstreams told."""

    rest: Rest | None = None
    """What goes on although the client has left."""

    def leave(self, usage: Usage | None) -> None:
        """Note what an answer had cost when it was left."""
        if usage is not None:
            usage = replace(usage, certainty="partial")
            self.left = usage if self.left is None else self.left + usage

    def leave_rest(self, events: Sequence[Event]) -> None:
        """Note what stands of it in events that are not given on."""
        for event in events:
            if type(event) is Usage:
                self.leave(event)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """What a client asks for, the same for every client API and every dialect."""

    model: str
    messages: tuple[Message, ...]
    stream: bool = False
    include_usage: bool = False
    """Whether a streamed answer tells its usage in a last chunk."""
    temperature: float | None = None
    max_tokens: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Every other field of the body, by its OpenAI name, as the client sent it; nulls left out."""
    calls_as_functions: bool = False
    """Whether the client reads calls of tools as its API told them before there were tools."""
    deadline: float | None = None
    """When the answer must have ended, in seconds of the monotonic clock, whoever gives it."""
    time_limit: float | None = None
    """The seconds that there were until then when the request came."""
    notes: Notes = field(default_factory=Notes)


@dataclass(slots=True)
class TextDelta:
    """A piece of the answer, that adds to what came before."""

    text: str


@dataclass(slots=True)
class ReasoningDelta:
    """A piece of the model's thinking, that adds to what came before."""

    text: str


@dataclass(slots=True)
class ToolCallDelta:
    """A piece of a tool call: `id` and `name` come once, with the first piece."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(slots=True)
class Finish:
    """The upstream said that the answer is whole, and why it ended."""

    reason: FinishReason


@dataclass(slots=True)
class Usage:
    """What the upstream counted for the whole answer, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    reasoning_tokens: int | None = None
    """Part of `completion_tokens`; None where the upstream does not say."""
    cached_tokens: int | None = None
    """Part of `prompt_tokens`; None where the upstream does not say."""
    certainty: Certainty = "exact"
    """`exact` is the upstream's own count of a whole answer, `partial` that of one which was left
    before its end, `estimated` what the gateway makes of the text."""

    def __add__(self, other: Usage) -> Usage:
        """Return that of both together, as certain as the less certain one."""
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.total_tokens + other.total_tokens,
            _sum(self.reasoning_tokens, other.reasoning_tokens),
            _sum(self.cached_tokens, other.cached_tokens),
            max(self.certainty, other.certainty, key=CERTAINTIES.index),
        )


CERTAINTIES: Sequence[Certainty] = ("exact", "estimated", "partial")
"""The most certain first."""


def _sum(one: int | None, other: int | None) -> int | None:
    return one if other is None else other if one is None else one + other


@dataclass(slots=True)
class Extra:
    """What a frame held and no event models, such as search results."""

    kind: str
    """`delta` for fields beside those of OpenAI's delta, `logprobs` for OpenAI's object of that
    name; anything else is an upstream's own."""
    data: Mapping[str, Any]


@dataclass(slots=True)
class Choice:
    """Which of several answers to the one request a batch is of: it stands first in the batch, and
    all of the batch is of that answer. Where one answer was asked for, there is none."""

    index: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model, and what is known of it; None for what is not."""

    name: str
    context: int | None = None
    """Tokens of prompt and answer together."""
    thinking: bool | None = None
    tools: bool | None = None
    vision: bool | None = None
    stream_only: bool | None = None
    """Whether its upstream answers a stream and nothing else; here it may be asked for both."""


Event = TextDelta | ReasoningDelta | ToolCallDelta | Finish | Usage | Extra | Choice
Batches = AsyncIterator[Sequence[Event]]
"""What came up, one batch for what one network read held; it ends after a `Finish`, or one of each
choice, or raises."""

Upstream = Callable[[ChatRequest], AbstractAsyncContextManager[Batches]]
"""Entering means that the upstream accepted and has begun to answer; leaving ends the call.

Both entering and iterating raise `QwenASGIError`. After the first event has gone out to a client, a
request must not be sent again.
"""

Layer = Callable[[Upstream], Upstream]


@dataclass(slots=True)
class ToolCall:
    """One whole tool call; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Answer:
    """All events of one chat put together."""

    text: str
    reasoning: str
    tool_calls: list[ToolCall]
    finish_reason: FinishReason
    usage: Usage | None
    extras: list[Extra]
    others: list[Answer] = field(default_factory=list)
    """The further choices, where several answers were asked for; `usage` is of all together."""


class Fold:
    """Puts the events of a chat together as they come: `add` each batch, then `answer`."""

    def __init__(self) -> None:
        self._first = _FoldOne()
        self._others: dict[int, _FoldOne] = {}

    @property
    def usage(self) -> Usage | None:
        """What was counted so far for all together."""
        return self._first.usage

    @property
    def size(self) -> int:
        """Characters of text, of thinking and of tool calls' arguments so far."""
        if not self._others:
            return self._first.size
        return self._first.size + sum(one.size for one in self._others.values())

    def add(self, events: Sequence[Event]) -> None:
        one = self._first
        if events and type(events[0]) is Choice:
            index, events = events[0].index, events[1:]
            if index:
                one = self._others.setdefault(index, _FoldOne())
        one.add(events)

    def answer(self) -> Answer:
        answer = self._first.answer()
        if self._others:
            answer.others = [self._others[index].answer() for index in sorted(self._others)]
        return answer


class _FoldOne:
    """Puts the events of one answer together."""

    __slots__ = (
        "_extras",
        "_finish_reason",
        "_reasoning",
        "_text",
        "_tool_calls",
        "size",
        "usage",
    )

    def __init__(self) -> None:
        self.size = 0
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._tool_calls: dict[int, ToolCall] = {}
        self._finish_reason: FinishReason = "stop"
        self.usage: Usage | None = None
        self._extras: list[Extra] = []

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case TextDelta():
                    self.size += len(event.text)
                    self._text.append(event.text)
                case ReasoningDelta():
                    self.size += len(event.text)
                    self._reasoning.append(event.text)
                case ToolCallDelta():
                    self.size += len(event.arguments)
                    call = self._tool_calls.setdefault(event.index, ToolCall("", "", ""))
                    call.id = event.id or call.id
                    call.name = event.name or call.name
                    call.arguments += event.arguments
                case Finish():
                    self._finish_reason = event.reason
                case Usage():
                    self.usage = event
                case Extra():
                    self._extras.append(event)
                case Choice():
                    # `Fold` has taken it off the batch.
                    continue
                case _:
                    assert_never(event)

    def answer(self) -> Answer:
        return Answer(
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            tool_calls=[self._tool_calls[index] for index in sorted(self._tool_calls)],
            finish_reason=self._finish_reason,
            usage=self.usage,
            extras=self._extras,
        )


def fold(events: Iterable[Event]) -> Answer:
    """Put the events of one whole answer together."""
    whole = _FoldOne()
    whole.add(events)
    return whole.answer()
