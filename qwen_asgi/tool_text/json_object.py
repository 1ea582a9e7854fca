"""A JSON object that a model writes, as a call's arguments are, given out while it is written.

Only what is JSON beyond doubt is given out: a comma waits for what follows it, so that one too many
can still be left away.
"""

from __future__ import annotations

import re
from typing import Literal

_SPACE = " \t\r\n"
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?\Z")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_LITERALS = ("true", "false", "null")

DEEPEST = 200


class NotJSON(Exception):
    """What was written is no JSON from here on; `certain` is what of it was, before."""

    certain = ""


class ObjectText:
    """One JSON object, character by character: `feed` until `complete`.

    `feed` returns what is certain of it; what is behind its end is in `rest`.
    """

    __slots__ = ("_after", "_escape", "_held", "_stack", "_state", "_word", "complete", "rest")

    def __init__(self) -> None:
        self._stack: list[Literal["{", "["]] = []
        self._state: str = "value"
        """What may come next: value, first (of a list or an object), key, colon, more; or where it
        is: string, name (a key's string), word."""
        self._after = ""
        self._escape = 0
        """Characters of an escape that are still to come; -1 directly behind the backslash."""
        self._word = ""
        self._held = ""
        """A comma and blanks that wait for what follows."""
        self.complete = False
        self.rest = ""

    @property
    def in_string(self) -> bool:
        return self._state in ("string", "name")

    def feed(self, text: str) -> str:
        """Return what of `text` is certain. Raises NotJSON."""
        out: list[str] = []
        try:
            self._read(text, out)
        except NotJSON as exc:
            exc.certain = "".join(out)
            raise
        return "".join(out)

    def close(self) -> None:
        """Return that the object has no end, wherever it broke off."""

    def _read(self, text: str, out: list[str]) -> None:
        at = 0
        while at < len(text) and not self.complete:
            if self.in_string and not self._escape:
                # Most of what is written stands in strings.
                plain = _PLAIN.match(text, at)
                if plain is not None:
                    out.append(plain[0])
                    at = plain.end()
                    continue
            self._take(text[at], out)
            at += 1
        self.rest = text[at:] if self.complete else ""

    def _take(self, character: str, out: list[str]) -> None:
        if self.in_string:
            self._in_string(character, out)
        elif self._state == "word":
            self._in_word(character, out)
        elif character in _SPACE:
            self._hold(character, out)
        else:
            self._between(character, out)

    def _in_string(self, character: str, out: list[str]) -> None:
        if self._escape == -1:
            if character not in '"\\/bfnrtu':
                raise NotJSON
            self._escape = 4 if character == "u" else 0
        elif self._escape:
            if character not in "0123456789abcdefABCDEF":
                raise NotJSON
            self._escape -= 1
        elif character == "\\":
            self._escape = -1
        elif character == '"':
            self._state = "colon" if self._state == "name" else "more"
        elif character < " ":
            raise NotJSON
        out.append(character)

    def _in_word(self, character: str, out: list[str]) -> None:
        if character not in _SPACE and character not in ",]}":
            self._word += character
            if len(self._word) > 400:
                raise NotJSON
            return
        if self._word not in _LITERALS and not _NUMBER.match(self._word):
            raise NotJSON
        out.append(self._word)
        self._word, self._state = "", "more"
        self._take(character, out)

    def _hold(self, character: str, out: list[str]) -> None:
        if self._held:
            self._held += character
        else:
            out.append(character)

    def _between(self, character: str, out: list[str]) -> None:
        state = self._state
        if character in "}]":
            self._close(character, out)
            return
        if state == "more" and character == ",":
            self._held = ","
            self._state = "key" if self._stack[-1] == "{" else "value"
            return
        if state == "colon" and character == ":":
            out.append(character)
            self._state = "value"
            return
        is_key = state == "key" or (state == "first" and self._stack[-1] == "{")
        if state in ("more", "colon") or (is_key and character != '"'):
            raise NotJSON
        out.append(self._held)
        self._held = ""
        self._begin(character, is_key, out)

    def _begin(self, character: str, is_key: bool, out: list[str]) -> None:
        if character == '"':
            self._state = "name" if is_key else "string"
        elif character == "{" or character == "[":
            if len(self._stack) >= DEEPEST:
                raise NotJSON
            self._stack.append("{" if character == "{" else "[")
            self._state = "first"
        elif self._stack and (character.isalnum() or character == "-"):
            self._word, self._state = character, "word"
            return
        else:
            raise NotJSON
        out.append(character)

    def _close(self, character: str, out: list[str]) -> None:
        opener = "{" if character == "}" else "["
        # A comma that was held is one too many, and is left away.
        may_end = self._state in ("more", "first") or bool(self._held)
        if not self._stack or self._stack[-1] != opener or not may_end:
            raise NotJSON
        self._held = ""
        self._stack.pop()
        self._state = "more"
        out.append(character)
        self.complete = not self._stack
