"""The pieces of streamed tool calls, told apart although upstreams number and name them badly.

OpenAI: the first piece of a call has its `index`, `id` and name; later ones only `index` and more
of the arguments. What comes instead: an empty `id` in later pieces, `null` or nothing for name or
arguments, one index for several calls, an id that comes late or never, no arguments at all, and a
whole call sent again. Source: facts DS-70 to DS-76, quirks Q-100 to Q-103 of the wire notes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json

from qwen_asgi.chat import ToolCallDelta
from qwen_asgi.errors import UpstreamInvalidResponse

MOST_CALLS = 128
"""What OpenAI allows in tools, and more than any model calls at once."""


@dataclass(slots=True)
class _Call:
    index: int
    """Ours: calls are numbered as they begin."""
    id: str = ""
    """The upstream's; empty while it has told none."""
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    begun: bool = False
    """Whether its first piece was given out: that is when the name is known."""
    held: str = ""
    """Arguments that came before the name."""
    size: int = 0
    """Characters of the arguments that were given out."""

    def take(self, arguments: str) -> str:
        if arguments:
            self.arguments.append(arguments)
            self.size += len(arguments)
        return arguments

    def has_all(self, arguments: str) -> bool:
        """Whether these are all its arguments so far, a whole object: nothing goes on like that."""
        is_whole = arguments.startswith("{") and arguments.endswith("}")
        is_long = self.begun and len(arguments) == self.size
        return is_whole and is_long and arguments == "".join(self.arguments)


class ToolCallPieces:
    """Reads the `tool_calls` of one answer; `add` each list of pieces, then `close` once."""

    __slots__ = ("_calls", "_current", "_last")

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._current: dict[int, _Call] = {}
        """The call under way by the upstream's index."""
        self._last: _Call | None = None

    def __bool__(self) -> bool:
        """Whether there was a call."""
        return bool(self._calls)

    def add(self, pieces: Any) -> list[ToolCallDelta]:
        """Return what the pieces of one frame, or the calls of one message, tell."""
        deltas: list[ToolCallDelta] = []
        for piece in pieces if isinstance(pieces, list) else ():
            if isinstance(piece, Mapping):
                self._add(piece, deltas)
        return deltas

    def close(self) -> list[ToolCallDelta]:
        """Return what is still due. Raises UpstreamInvalidResponse for a call without a name."""
        deltas = []
        for call in self._calls:
            if not call.begun:
                raise UpstreamInvalidResponse("the upstream's answer calls a tool without its name")
            if not call.arguments:
                # OpenAI: arguments are JSON text, and none at all are an empty object.
                deltas.append(ToolCallDelta(call.index, "{}"))
        return deltas

    def _add(self, piece: Mapping[str, Any], deltas: list[ToolCallDelta]) -> None:
        function = piece.get("function")
        if not isinstance(function, Mapping):
            function = {}
        id, name = _text(piece.get("id")), _text(function.get("name"))
        arguments = _arguments(function.get("arguments"))
        call = self._call(piece.get("index"), id)
        if name and call.has_all(arguments):
            # The whole call once more.
            return
        call.id = call.id or id
        call.name = call.name or name
        if not call.name:
            call.held += arguments
            return
        if not call.begun:
            call.begun = True
            first = call.take(call.held + arguments)
            deltas.append(ToolCallDelta(call.index, first, id=call.id or new_id(), name=call.name))
        elif arguments:
            deltas.append(ToolCallDelta(call.index, call.take(arguments)))

    def _call(self, index: Any, id: str) -> _Call:
        """Return the call that a piece belongs to."""
        place = index if type(index) is int else None
        call = self._last if place is None else self._current.get(place)
        if id and (call is None or (call.id and call.id != id)):
            # An id that is known goes on with its call, whatever the index says.
            call = next((known for known in self._calls if known.id == id), None)
        if call is None:
            if len(self._calls) >= MOST_CALLS:
                raise UpstreamInvalidResponse(
                    f"the upstream's answer has more than {MOST_CALLS} tool calls"
                )
            call = _Call(len(self._calls))
            self._calls.append(call)
        if place is not None:
            self._current[place] = call
        self._last = call
        return call


def new_id() -> str:
    """Return an id for a call that the upstream gave none."""
    return f"call_{os.urandom(12).hex()}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _arguments(value: Any) -> str:
    """Return arguments as JSON text; some servers send the object itself."""
    if isinstance(value, Mapping):
        return to_json(value).decode()
    return _text(value)
