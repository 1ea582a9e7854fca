"""What is new in each frame's text, where an upstream sends either pieces or snapshots.

A piece is only the new text; a snapshot is the whole text so far. Which of the two a stream holds
follows from what was asked for. Some upstreams ignore that, and nothing in a single frame tells:
"ha" and then "haha" is "hahaha" in pieces and "haha" in snapshots. So:

- From the first text on, both readings are kept as long as both are possible, and only what they
  have in common is given out. An ordinary stream of pieces is settled by its second frame, because
  that does not begin with the first.
- A frame that does not begin with all the text so far settles it: pieces. No stream of snapshots
  has such a frame.
- Snapshots, where pieces were asked for, are believed only on evidence that no answer of a model
  gives in pieces: frame after frame, from the very first, repeats all of the frame before and adds
  to it, and that by more text than a repetitive answer ("-", "--", "----") explains.

Nothing that was given out is ever taken back, so nothing is lost or repeated. Two limits are known:
an answer that spells out the beginnings of one long word, a frame for each and not a letter between
them ("qwe", "qwen", ... nine times), would be taken for snapshots; and an upstream that ignores the
flag is not found out by two or three short frames ("Hello", "Hello!"). QWEN_INCREMENTAL=false says
for certain what such an upstream sends.
Sources: facts W1-21, W1-22, W1-28 and quirks Q-01 to Q-03 of the wire notes.
"""

from __future__ import annotations

SURE = 64
"""Bytes repeated against all expectation after which snapshots are believed in mid-stream."""

SURE_AT_END = 16
"""The same at the end of a stream that never once did otherwise. Bytes of UTF-8 and not characters,
because a Chinese character that comes again by chance is rarer than a letter that does."""

FEWEST_GROWTHS = 3
"""Frames that repeat and add, below which nothing is believed."""

LONGEST_DOUBT = 64
"""Frames after which an undecided stream is what was asked for: what is held stays bounded."""


class Contradiction(ValueError):
    """Snapshots were asked for, and a frame takes back text that was already given out."""


class TextReader:
    """The text of one answer, frame by frame. `feed` each frame's text, then `close` once."""

    __slots__ = (
        "_asked_pieces",
        "_frames",
        "_given",
        "_growths",
        "_joined",
        "_settled_pieces",
        "_settled_snapshots",
        "_snapshot",
        "_surprise",
    )

    def __init__(self, incremental: bool) -> None:
        self._asked_pieces = incremental
        self._settled_pieces = False
        self._settled_snapshots = False
        self._snapshot = ""
        """The whole text, if the frames are snapshots."""
        self._joined = ""
        """The whole text, if the frames are pieces."""
        self._given = 0
        """Characters given out; of the reading that turns out right, so far of both or of the one
        that was asked for."""
        self._frames = 0
        self._growths = 0
        self._surprise = 0

    @property
    def gives_all(self) -> bool:
        """Whether from now on `feed` returns each text as it is."""
        return self._settled_pieces

    @property
    def proven_incremental(self) -> bool | None:
        """Which of the two the frames were found to hold, if it is not what was asked for."""
        contrary = self._settled_snapshots if self._asked_pieces else self._settled_pieces
        return not self._asked_pieces if contrary else None

    def feed(self, text: str) -> str:
        """Return what of `text` is new and certain. Raises Contradiction."""
        if self._settled_pieces or not text:
            return text
        if self._settled_snapshots:
            return self._from_snapshot(text)
        return self._in_doubt(text)

    def close(self) -> str:
        """Return what was held back to the end."""
        if self._settled_pieces or self._settled_snapshots:
            return ""
        if self._asked_pieces and not self._is_evident(SURE_AT_END):
            return self._settle_on_pieces()
        return self._settle_on_snapshots()

    def _in_doubt(self, text: str) -> str:
        self._frames += 1
        before = self._snapshot
        self._joined += text
        if text.startswith(before):
            if before and len(text) > len(before):
                self._growths += 1
                # In pieces, `before` would now stand in the text a second time. The part of it that
                # the text so far begins with anyway may be mere repetition; the rest is evidence.
                unexpected = before[_common(before, self._joined) :]
                self._surprise += len(unexpected.encode("utf-8", "surrogatepass"))
            self._snapshot = text
        elif self._asked_pieces or not before.startswith(text):
            return self._settle_on_pieces()
        return self._what_is_certain()

    def _what_is_certain(self) -> str:
        if not self._asked_pieces:
            if self._frames >= LONGEST_DOUBT:
                return self._settle_on_snapshots()
            return self._give(self._snapshot, len(self._snapshot))
        if self._is_evident(SURE):
            return self._settle_on_snapshots()
        if self._frames >= LONGEST_DOUBT:
            return self._settle_on_pieces()
        return self._give(self._snapshot, _common(self._snapshot, self._joined))

    def _is_evident(self, sure: int) -> bool:
        return self._growths >= FEWEST_GROWTHS and self._surprise >= sure

    def _settle_on_pieces(self) -> str:
        if not self._asked_pieces and self._joined[: self._given] != self._snapshot[: self._given]:
            raise Contradiction
        self._settled_pieces = True
        new = self._give(self._joined, len(self._joined))
        self._joined = self._snapshot = ""
        return new

    def _settle_on_snapshots(self) -> str:
        self._settled_snapshots = True
        self._joined = ""
        return self._give(self._snapshot, len(self._snapshot))

    def _from_snapshot(self, text: str) -> str:
        if text.startswith(self._snapshot):
            self._snapshot = text
            return self._give(text, len(text))
        if self._snapshot.startswith(text):
            # A shorter one takes nothing back: the longest is kept.
            return ""
        raise Contradiction

    def _give(self, text: str, until: int) -> str:
        new = text[self._given : until]
        self._given = max(self._given, until)
        return new


def _common(one: str, other: str) -> int:
    """Return how many characters the two have in common at their beginning.

    A frame may be long and comparing slices is quick, so the place is found by halving.
    """
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
