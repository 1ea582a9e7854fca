"""The thinking that the web chat tells in summaries: lists that grow from frame to frame.

Each frame holds all titles and all thoughts so far, mostly unchanged; the last of each may still
grow, and in each round of the model's tools both lists begin anew (fact W2-43 and quirk Q-05 of the
wire notes). What is new in each becomes text: a title, its thought below it, a blank line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LONGEST_ROUND = 1_000
"""Titles, and thoughts, that are looked at; what is behind them in a list is not."""


class Summaries:
    """Both lists of one answer, frame by frame: `feed` returns what is new, as text."""

    __slots__ = ("_given", "_last", "_parts")

    def __init__(self) -> None:
        self._parts: dict[tuple[int, int], str] = {}
        """What was given out of each title (n, 0) and thought (n, 1) of this round."""
        self._last: tuple[int, int] | None = None
        """The one that was given out last."""
        self._given = False

    def feed(self, titles: Sequence[str], thoughts: Sequence[str]) -> str:
        new = self._parts_of(titles, thoughts)
        if any(not _goes_on(self._parts.get(place, ""), part) for place, part in new.items()):
            # Not what this round held: another has begun.
            self._parts = {}
            self._last = None
        return "".join(self._more(place, new[place]) for place in sorted(new))

    def _parts_of(
        self, titles: Sequence[str], thoughts: Sequence[str]
    ) -> dict[tuple[int, int], str]:
        parts = {(n, 0): title for n, title in enumerate(titles[:LONGEST_ROUND])}
        return parts | {(n, 1): thought for n, thought in enumerate(thoughts[:LONGEST_ROUND])}

    def _more(self, place: tuple[int, int], part: str) -> str:
        before = self._parts.get(place, "")
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
    return [text for text in content if isinstance(text, str)] if isinstance(content, list) else []
