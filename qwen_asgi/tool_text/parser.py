"""Calls of tools in an answer's text, found while it comes.

Text is given out as soon as it cannot be the beginning of a tag. A call in one of the usual forms,
JSON with its name first or Qwen3-Coder's tags, is given out while it is written: its arguments
stream. Any other form is collected to its end and read as a whole, leniently where that is safe;
what cannot be read is text. Tags within a Markdown fence or between backticks are an example, and
text (TC-63).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from qwen_asgi.chat import TextDelta, ToolCallDelta
from qwen_asgi.errors import UpstreamInvalidResponse, UpstreamTruncated
from qwen_asgi.tool_text.calls import FUNCTION, PARAMETER, Call, read_calls
from qwen_asgi.tool_text.json_object import NotJSON, ObjectText
from qwen_asgi.tool_text.parameters import ParameterText
from qwen_asgi.tool_text.tools import Toolbox

Pieces = list[TextDelta | ToolCallDelta]

MOST_HELD = 256 * 1024
"""Characters of a call that are collected; what is longer and not of the usual form is text."""

LONGEST_TAG = 300

LONGEST_TAIL = 2_000
"""Characters of other fields behind a call's arguments, which are dropped."""

MOST_FALSE_TAGS = 64
"""Tags that turned out to be text, after which the answer is about tags, and is all text."""

_WORDS = "tool_call|function_call|tool_use|invoke|function"
_OPENER = re.compile(
    rf"<\s{{0,4}}(?:{_WORDS})(?:\s[^<>]{{0,270}})?>"
    r"|<\s{0,4}function\s{0,4}=[^<>]{0,270}>"
    r"|\[\s{0,4}TOOL_CALL\s{0,4}\]",
    re.IGNORECASE,
)
_BEGINNINGS = tuple(f"<{word}" for word in _WORDS.split("|"))

LONGEST_CLOSER = 40

MOST_FALSE_ENDS = 32
"""Closing tags within a call that is collected, each of which it is looked at for anew."""

MOST_LOOKED_AT = 4 * MOST_HELD
"""Characters, each time that one is looked at counted, in which no call was found where a tag or an
end of one was; after them the answer is all text. Many tags before much text took minutes."""

_CLOSER = re.compile(
    rf"</\s{{0,4}}(?:{_WORDS}|tool)\s{{0,4}}>|\[\s{{0,4}}/\s{{0,4}}TOOL_CALL\s{{0,4}}\]",
    re.IGNORECASE,
)
_NAME_IN_TAG = re.compile(r"\bname\s*=\s*[\"']?([^\"'<>\s]+)", re.IGNORECASE)
_IS_FUNCTION = re.compile(r"<\s*(?:function\s*=|(?:function|invoke)\s+name\b)", re.IGNORECASE)
_IS_FUNCTION_END = re.compile(r"</\s*(?:function|invoke)\b", re.IGNORECASE)
_INNER = ("<function", "<parameter", "<invoke", "</function", "</tool_call", "</invoke")
_RESULT = re.compile(r"\s*<\s*tool_response", re.IGNORECASE)

_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"arguments"\s*:\s*'
    r'(?=\{\s*(?:\}|"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])*"\s*:))'
)
"""The usual form up to its arguments, of which the first name is there, so that no other reading is
left."""

_ORPHANS = re.compile(
    rf"\s*(?:(?:</\s*(?:{_WORDS}|tool|parameter)\s*>|\[\s*/\s*TOOL_CALL\s*\])\s*)*", re.IGNORECASE
)
"""What closes a call that was closed before, or was never opened (TC-24)."""


class ToolText:
    """Splits an answer's text, piece by piece, into text and calls. `close` once at the end."""

    __slots__ = (
        "_arguments",
        "_body",
        "_buffer",
        "_calls",
        "_false_ends",
        "_false_tags",
        "_fenced",
        "_in_code",
        "_is_in_question",
        "_looked_at",
        "_most",
        "_name",
        "_new_id",
        "_opener",
        "_out",
        "_run",
        "_scanned",
        "_state",
        "_toolbox",
    )

    def __init__(self, toolbox: Toolbox, new_id: Callable[[], str], *, most: int | None) -> None:
        """`most` is how many calls are given out; further ones are left away."""
        self._toolbox = toolbox
        self._new_id = new_id
        self._most = most
        self._out: Pieces = []
        self._calls = 0
        self._false_tags = 0
        self._looked_at = 0
        """Characters in which no call was found."""
        self._state = "text"
        """text, call (collected), arguments (given out), after (behind a call), over."""
        self._buffer = ""
        """What may be a tag, or is blank behind a call."""
        self._opener = ""
        self._name = ""
        self._body = ""
        self._false_ends = 0
        self._is_in_question = False
        """Whether what stands behind the tag may still show that it is a word."""
        self._scanned = 0
        """Characters of the body in which no end was found."""
        self._arguments: ObjectText | ParameterText = ObjectText()
        self._run = 0
        """Backticks that the text ends with."""
        self._fenced = False
        self._in_code = False

    @property
    def calls(self) -> int:
        """How many calls were given out so far."""
        return self._calls

    def feed(self, text: str) -> Pieces:
        """Return what `text` settles. Raises UpstreamInvalidResponse for arguments that cannot be
        read, of a call that was begun to be given out."""
        is_plain = "<" not in text and "[" not in text and "`" not in text
        if is_plain and self._state == "text" and not self._buffer and not self._run:
            if "\n" in text:
                self._in_code = False
            return [TextDelta(text)] if text else []
        self._feed(text, self._out)
        return self.flush()

    def close(self) -> Pieces:
        """Return what was held back. Raises UpstreamTruncated within a call's arguments."""
        while self._state == "call":
            self._feed(self._end_call(self._out, closer="", is_cut=True), self._out)
        if self._state == "arguments":
            self._end_arguments()
        if self._state == "text":
            self._give(self._buffer, self._out)
        self._buffer, self._state = "", "over"
        return self.flush()

    def cut(self) -> Pieces:
        """Return what was settled of an answer that was cut off at a limit of its length.

        A call that was not whole is none: nothing is put in the place of what is missing. What of
        one is out already stays as it is.
        """
        if self._state == "text" and len(self._buffer) == 1:
            # Nothing tells it from an ordinary sign.
            self._give(self._buffer, self._out)
        self._buffer, self._state = "", "over"
        return self.flush()

    def flush(self) -> Pieces:
        """Return what was found and not returned yet, as before a fault."""
        out, self._out = self._out, []
        return _joined(out)

    def _feed(self, text: str, out: Pieces) -> None:
        while text:
            text = self._step(text, out)

    def _step(self, text: str, out: Pieces) -> str:
        """Take some of `text`; return the rest."""
        match self._state:
            case "text":
                return self._in_text(text, out)
            case "call":
                return self._in_call(text, out)
            case "arguments":
                return self._in_arguments(text, out)
            case "after":
                return self._behind_call(text)
        # Over: whatever the model goes on to say is left away.
        return ""

    # Text.

    def _in_text(self, text: str, out: Pieces) -> str:
        text, self._buffer = self._buffer + text, ""
        if self._false_tags >= MOST_FALSE_TAGS or self._looked_at >= MOST_LOOKED_AT:
            self._give(text, out)
            return ""
        at = 0
        while at < len(text):
            mark = _next_mark(text, at)
            if mark < 0:
                self._see(text[at:])
                break
            self._see(text[at:mark])
            if text[mark] == "`":
                self._see("`")
                at = mark + 1
                continue
            if self._is_code():
                self._see(text[mark])
                at = mark + 1
                continue
            opener = _OPENER.match(text, mark)
            if opener is not None:
                self._give(text[:mark], out)
                self._open(opener[0])
                return text[opener.end() :]
            if _may_begin_a_tag(text[mark:]):
                self._give(text[:mark], out)
                self._buffer = text[mark:]
                return ""
            self._see(text[mark])
            at = mark + 1
        self._give(text, out)
        return ""

    def _give(self, text: str, out: Pieces) -> None:
        if text:
            out.append(TextDelta(text))

    def _see(self, text: str) -> None:
        """Follow the backticks: three or more begin or end a fence, fewer code in a line."""
        for character in text if "`" in text or self._run or "\n" in text else ():
            if character == "`":
                self._run += 1
                continue
            self._end_run()
            if character == "\n":
                self._in_code = False

    def _end_run(self) -> None:
        if self._run >= 3:
            self._fenced, self._in_code = not self._fenced, False
        elif self._run and not self._fenced:
            self._in_code = not self._in_code
        self._run = 0

    def _is_code(self) -> bool:
        self._end_run()
        return self._fenced or self._in_code

    # A call that is collected, until its form is known or its end is there.

    def _open(self, opener: str) -> None:
        self._opener = opener
        found = _NAME_IN_TAG.search(opener)
        self._name = found[1] if found else ""
        # The tag itself names the function, and is read with what is in it.
        self._body = opener if _IS_FUNCTION.match(opener) else ""
        self._scanned = 0
        self._false_ends = 0
        self._is_in_question = True
        self._state = "call"

    def _in_call(self, text: str, out: Pieces) -> str:
        self._body += text
        if self._is_in_question:
            if not self._is_plausible():
                return self._release(self._inner(), out)
            self._is_in_question = len(self._inner().lstrip()) < LONGEST_TAG
        if not self._name:
            head = _HEAD.match(self._body)
            tool = self._toolbox.find(head[1]) if head else None
            if head is not None and tool is not None and self._has_room():
                rest = self._body[head.end() :]
                self._begin(tool.name, out)
                return rest
        function = FUNCTION.match(self._body) if self._has_room() else None
        if function is not None:
            tool = self._toolbox.find(function[1])
            if tool is not None and PARAMETER.match(function[2].lstrip()):
                self._begin(tool.name, out)
                self._arguments = ParameterText(tool)
                return function[2]
        for closer in _CLOSER.finditer(self._body, self._scanned):
            is_enough = self._false_ends >= MOST_FALSE_ENDS or self._looked_at >= MOST_LOOKED_AT
            if closer.start() > MOST_HELD or is_enough:
                return self._release(self._inner(), out)
            if self._ends_at(closer):
                rest = self._body[closer.end() :]
                self._body = self._body[: closer.start()]
                return self._end_call(out, closer=closer[0], is_cut=False) + rest
            self._scanned = closer.end()
            self._false_ends += 1
            self._looked_at += closer.start()
        if len(self._body) > MOST_HELD + LONGEST_CLOSER:
            return self._release(self._inner(), out)
        self._scanned = max(self._scanned, len(self._body) - LONGEST_CLOSER)
        return ""

    def _inner(self) -> str:
        """Return what stands behind the opening tag."""
        return self._body.removeprefix(self._opener) if self._is_function() else self._body

    def _is_function(self) -> bool:
        return _IS_FUNCTION.match(self._opener) is not None

    def _ends_at(self, closer: re.Match[str]) -> bool:
        """Whether this closes the call: not within a value that goes on behind it (TC-53)."""
        body = self._body[: closer.start()]
        if body.lstrip()[:1] == "<":
            # `</function>` may stand in a value, and within `<tool_call>` it is not the last.
            is_last = self._is_function() or not _IS_FUNCTION_END.match(closer[0])
            return is_last and not _is_in_parameter(body)
        if read_calls(body, self._toolbox, named=self._name) is not None:
            return True
        return not _is_in_string(body)

    def _is_plausible(self) -> bool:
        """Whether what stands behind the tag may be a call; else the tag is a word (TC-41)."""
        inner = self._inner().lstrip()
        if not inner or inner[0] in "{[":
            return True
        if inner[0] == "`":
            return "```".startswith(inner[:3])
        begun = re.sub(r"\s", "", inner[:40].lower())
        return any(begun.startswith(tag) or tag.startswith(begun) for tag in _INNER)

    def _end_call(self, out: Pieces, *, closer: str, is_cut: bool) -> str:
        """Give the calls of the body out; return what of it is text after all."""
        calls = read_calls(self._body, self._toolbox, named=self._name, is_cut=is_cut)
        if calls is None:
            self._looked_at += len(self._body)
            return self._release(self._inner() + closer, out)
        for call in calls:
            self._give_call(call, out)
        self._body, self._state = "", "after"
        return ""

    def _release(self, rest: str, out: Pieces) -> str:
        """It was none: the tag is text. Return what stands behind it, which may hold another."""
        self._give(self._opener, out)
        self._false_tags += 1
        self._body, self._state = "", "text"
        return rest

    def _give_call(self, call: Call, out: Pieces) -> None:
        if self._has_room():
            out.append(
                ToolCallDelta(self._calls, call.arguments, id=self._new_id(), name=call.name)
            )
            self._calls += 1

    def _has_room(self) -> bool:
        return self._most is None or self._calls < self._most

    # A call that is given out while it is written.

    def _begin(self, name: str, out: Pieces) -> None:
        out.append(ToolCallDelta(self._calls, "", id=self._new_id(), name=name))
        self._arguments = ObjectText()
        self._body = ""
        self._state = "arguments"

    def _in_arguments(self, text: str, out: Pieces) -> str:
        try:
            self._give_arguments(self._arguments.feed(text), out)
        except NotJSON as exc:
            self._give_arguments(exc.certain, out)
            raise UpstreamInvalidResponse(
                "the model wrote a tool call whose arguments are not JSON"
            ) from None
        if not self._arguments.complete:
            return ""
        self._calls += 1
        self._state = "after"
        return self._arguments.rest

    def _end_arguments(self) -> None:
        """The answer has ended within a call, which may be whole but for its end."""
        rest = self._arguments.close()
        if rest is None:
            raise UpstreamTruncated("the upstream's answer broke off within a tool call")
        self._give_arguments(rest, self._out)
        self._calls += 1

    def _give_arguments(self, text: str, out: Pieces) -> None:
        if text:
            out.append(ToolCallDelta(self._calls, text))

    # Behind a call.

    def _behind_call(self, text: str) -> str:
        """Drop the call's own end and what is blank between two; text goes on as text."""
        text, self._buffer = self._buffer + text, ""
        rest = text.lstrip()
        if rest[:1] == ",":
            # Other fields than name and arguments.
            end = rest.find("<")
            if end < 0 and len(rest) <= LONGEST_TAIL:
                self._buffer = rest
                return ""
            rest = rest[end:] if 0 <= end <= LONGEST_TAIL else rest
        else:
            rest = rest.removeprefix("}").lstrip()
        rest = rest[_ORPHANS.match(rest).end() :]  # type: ignore[union-attr]  # It always matches.
        if not rest or _may_begin_an_end(rest) or _may_begin_a_result(rest):
            self._buffer = text
            return ""
        if _RESULT.match(rest) or not self._has_room():
            # The model plays the tool itself (TC-62): what it says from here on is made up. Or it
            # calls more tools than it may.
            self._state = "over"
            return ""
        self._state = "text"
        return rest


def _next_mark(text: str, start: int) -> int:
    """Return where the next character stands that may begin something; -1 for nowhere."""
    found = [at for mark in "<[`" if (at := text.find(mark, start)) >= 0]
    return min(found, default=-1)


def _may_begin_a_tag(tail: str) -> bool:
    """Whether a text that ends here may be the beginning of an opening tag."""
    if len(tail) > LONGEST_TAG or (">" if tail[0] == "<" else "]") in tail:
        return False
    if tail[0] == "[":
        return "[tool_call]".startswith(re.sub(r"\s", "", tail.lower()))
    plain = "<" + tail[1:].lstrip().lower()
    return "<" not in tail[1:] and any(
        word.startswith(plain) or (plain.startswith(word) and not plain[len(word)].isalnum())
        for word in _BEGINNINGS
        if len(plain) <= len(word) or plain.startswith(word)
    )


def _may_begin_an_end(rest: str) -> bool:
    """Whether this may be the beginning of a tag that closes the call before it."""
    if rest[0] not in "<[" or ">" in rest or len(rest) > 40:
        return False
    plain = re.sub(r"\s", "", rest.lower())
    words = [*_WORDS.split("|"), "tool", "parameter"]
    return any(f"</{word}>".startswith(plain) for word in words) or "[/tool_call]".startswith(plain)


def _is_in_string(body: str) -> bool:
    """Whether a body of JSON ends within one of its strings."""
    in_string = escaped = False
    for character in body:
        if escaped:
            escaped = False
        elif character == "\\" and in_string:
            escaped = True
        elif character == '"':
            in_string = not in_string
    return in_string


def _is_in_parameter(body: str) -> bool:
    """Whether a body in the form of Qwen3-Coder ends within a value that has an end to come."""
    openers = [found.end() for found in re.finditer(r"<\s*parameter[^<>]*>", body, re.I)]
    closers = [found.start() for found in re.finditer(r"</\s*parameter\s*>", body, re.I)]
    return bool(openers) and (not closers or closers[-1] < openers[-1])


def _may_begin_a_result(rest: str) -> bool:
    return len(rest) < len("<tool_response") and "<tool_response".startswith(rest.lower())


def _joined(pieces: Pieces) -> Pieces:
    """Put pieces of text that follow one another together."""
    out: Pieces = []
    for piece in pieces:
        last = out[-1] if out else None
        if isinstance(piece, TextDelta) and isinstance(last, TextDelta):
            out[-1] = TextDelta(last.text + piece.text)
        else:
            out.append(piece)
    return out
