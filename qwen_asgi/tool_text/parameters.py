"""The arguments of a call in the form of Qwen3-Coder, given out as JSON while they are written.

    <parameter=KEY>
    value, may be many lines
    </parameter>
    </function>

A value that is text by its schema streams; any other is given out when it is whole, because only
then its type is known (TC-22). A value ends at its own end, or at the next one's beginning (TC-25);
`</function>` may be a part of it as long as its own end may still come (TC-23).
"""

from __future__ import annotations

import re

from pydantic_core import to_json

from qwen_asgi.tool_text.calls import PARAMETER, is_text, typed
from qwen_asgi.tool_text.json_object import NotJSON
from qwen_asgi.tool_text.tools import Tool

MOST_HELD = 256 * 1024
"""Characters of a value, or behind what may be its end, that are held back."""

MOST_AT_ONCE = 4 * 1024
"""Characters that are taken at a time: each step looks through all that is held."""

_VALUE_END = re.compile(r"\n?</\s{0,4}parameter\s{0,4}>|\n?(?=<\s{0,4}parameter\b[^<>]*>)", re.I)
_FUNCTION_END = re.compile(r"\n?</\s{0,4}(?:function|invoke)\s{0,4}>", re.I)
_TAG_SO_FAR = re.compile(r"<[^<>]{0,300}\Z")
_LAST_TAG = re.compile(r"\n?(<[^<>]{0,300})\Z")
_TAGS = ("</parameter>", "<parameter", "</function>", "</invoke>")


class ParameterText:
    """The parameters of one call, piece by piece: `feed` until `complete`, or `close`.

    `feed` returns what is certain of the JSON object; what is behind the call is in `rest`.
    """

    __slots__ = ("_held", "_is_first", "_is_text", "_key", "_tool", "_value", "complete", "rest")

    def __init__(self, tool: Tool) -> None:
        self._tool = tool
        self._held = ""
        self._key: str | None = None
        """Of the value under way; None between two."""
        self._is_text = False
        self._value = ""
        """Of a value that is not given out while it is written: what came."""
        self._is_first = True
        self.complete = False
        self.rest = ""

    def feed(self, text: str) -> str:
        """Return what of `text` is certain. Raises NotJSON for what is too long to be held."""
        out: list[str] = []
        for start in range(0, len(text), MOST_AT_ONCE):
            self._held += text[start : start + MOST_AT_ONCE]
            while not self.complete and self._step(out):
                pass
            if self.complete:
                self.rest += text[start + MOST_AT_ONCE :]
                break
            if len(self._held) + len(self._value) > MOST_HELD:
                failure = NotJSON()
                failure.certain = "".join(out)
                raise failure
        return "".join(out)

    def close(self) -> str | None:
        """Return the rest of the object, or None if a value has no end."""
        out: list[str] = []
        if self._key is not None:
            end = _FUNCTION_END.search(self._held)
            if end is None:
                return None
            self._end_value(self._held[: end.start()], out)
        self._finish(out)
        return "".join(out)

    def _step(self, out: list[str]) -> bool:
        """Take what is certain of what is held; return whether there may be more."""
        return self._between(out) if self._key is None else self._in_value(out)

    def _between(self, out: list[str]) -> bool:
        self._held = self._held.lstrip()
        opener = PARAMETER.match(self._held)
        if opener is not None:
            self._begin_value(opener[1], out)
            self._held = self._held[opener.end() :]
            return True
        if not self._held or _TAG_SO_FAR.match(self._held):
            return False
        # Its own end, or something else: then the end was forgotten.
        end = _FUNCTION_END.match(self._held)
        self.rest = self._held[end.end() :] if end else self._held
        self._held = ""
        self._finish(out)
        return False

    def _begin_value(self, key: str, out: list[str]) -> None:
        self._key = key
        self._is_text = is_text(self._tool, key)
        self._value = ""
        out.append("{" if self._is_first else ", ")
        self._is_first = False
        out.append(to_json(key).decode() + ": ")
        if self._is_text:
            out.append('"')

    def _in_value(self, out: list[str]) -> bool:
        if not self._held:
            return False
        end = _VALUE_END.search(self._held)
        function = _FUNCTION_END.search(self._held)
        if end is not None:
            is_own = end[0].strip() != ""
            cut = function if function and not is_own and function.start() < end.start() else end
            self._end_value(self._held[: cut.start()], out)
            self._held = self._held[end.end() :]
            return True
        certain = self._held[: function.start() if function else _may_end(self._held)]
        self._held = self._held[len(certain) :]
        self._give(certain, out)
        return False

    def _end_value(self, text: str, out: list[str]) -> None:
        self._give(text, out)
        assert self._key is not None
        if self._is_text:
            out.append('"')
        else:
            value = typed(self._value.removeprefix("\n"), self._tool, self._key)
            out.append(to_json(value, inf_nan_mode="null").decode())
        self._key = None

    def _give(self, text: str, out: list[str]) -> None:
        if not self._is_text:
            self._value += text
            return
        if text and not self._value:
            # One line end belongs to the tag (TC-21).
            self._value = "begun"
            text = text.removeprefix("\n")
        if text:
            out.append(to_json(text).decode()[1:-1])

    def _finish(self, out: list[str]) -> None:
        out.append("{}" if self._is_first else "}")
        self.complete = True


def _may_end(text: str) -> int:
    """Return where in a text its last characters begin that may begin a value's end."""
    found = _LAST_TAG.search(text)
    if found is None:
        return len(text) - text.endswith("\n")
    tag = re.sub(r"\s", "", found[1].lower())
    may_be = any(known.startswith(tag) or tag.startswith(known) for known in _TAGS)
    return found.start() if may_be else len(text) - text.endswith("\n")
