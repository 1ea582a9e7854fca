"""The thinking that the web chat tells in summaries: lists that grow from frame to frame.

Each frame holds all titles and all thoughts so far, mostly unchanged; the last of each may still
grow, and in each round of the model's tools both lists begin anew (fact W2-43 and quirk Q-05 of the
wire notes). What is new in each becomes text: a title, its thought below it, a blank line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_KINDS = (0, 1)

LONGEST_ROUND = 1_000
"""Titles, and thoughts, that are looked at; what is behind them in a list is not."""


class Summaries:
    """Both lists of one answer, frame by frame: `feed` returns what is new, as text.

    A round is known by its first title or thought, if that does not go on with what stood there
    before. Behind a tool's result, where rounds begin, lists that hold less than they did are a new
    round too. Anything else that was reworded is told anew, in a paragraph of its own.
    """

    __slots__ = ("_given", "_last", "_may_begin", "_parts")

    def __init__(self) -> None:
        self._parts: dict[tuple[int, int], str] = {}
        """What was given out of each title (n, 0) and thought (n, 1) of this round."""
        self._last: tuple[int, int] | None = None
        """The one that was given out last."""
        self._given = False
        self._may_begin = False

    def expect_round(self) -> None:
        """A tool's result has come: the lists to come may be those of a new round."""
        self._may_begin = True

    def feed(self, titles: Sequence[str], thoughts: Sequence[str]) -> str:
        new = self._parts_of(titles, thoughts)
        if self._is_a_round(new):
            self._parts = {}
            self._last = None
        if new:
            self._may_begin = False
        return "".join(self._more(place, new[place]) for place in sorted(new))

    def _is_a_round(self, new: dict[tuple[int, int], str]) -> bool:
        if any(
            not _goes_on(self._parts.get((0, kind), ""), new.get((0, kind), "")) for kind in _KINDS
        ):
            return True
        return (
            self._may_begin
            and bool(new)
            and any(len(new.get(place, "")) < len(part) for place, part in self._parts.items())
        )

    def _parts_of(
        self, titles: Sequence[str], thoughts: Sequence[str]
    ) -> dict[tuple[int, int], str]:
        parts = {(n, 0): title for n, title in enumerate(titles[:LONGEST_ROUND])}
        return parts | {(n, 1): thought for n, thought in enumerate(thoughts[:LONGEST_ROUND])}

    def _more(self, place: tuple[int, int], part: str) -> str:
        before = self._parts.get(place, "")
        if not _goes_on(before, part):
            before, self._last = "", None
        if len(part) <= len(before):
            return ""
        self._parts[place] = part
        more = part[len(before) :]
        if place == self._last:
            return more
        is_below_its_title = self._last == (place[0], 0)
        gap = "" if not self._given else "\n" if is_below_its_title else "\n\n"
        self._last, self._given = place, True
        return gap + more


def _goes_on(before: str, now: str) -> bool:
    """Whether a part says what it said before, and perhaps more; an older frame may come again."""
    return now.startswith(before) or before.startswith(now)


def texts_in(extra: Any, name: str) -> list[str]:
    """Return the list of texts that stands in `extra[name].content`."""
    part = extra.get(name) if isinstance(extra, dict) else None
    content = part.get("content") if isinstance(part, dict) else None
    if isinstance(content, str):
        return [content]
    texts = content if isinstance(content, list) else []
    # What is no text keeps its place: title and thought stand at the same one.
    return [text if isinstance(text, str) else "" for text in texts]
