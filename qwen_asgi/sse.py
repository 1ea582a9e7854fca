"""Server-sent events without I/O: bytes in any split to frames, data to bytes.

Lines end at CR, LF or CRLF and nowhere else: U+2028 or U+0085 may stand inside a JSON string.
Source: WHATWG HTML, "Server-sent events", sections "Parsing" and "Interpreting an event stream".
"""

from __future__ import annotations

from typing import NamedTuple

BOM = b"\xef\xbb\xbf"

COMMENT = b": keep-alive\n\n"
"""What a silent stream is kept open with; every reader skips it."""


class FrameTooLarge(ValueError):
    """One event was longer than the decoder's limit."""


class Frame(NamedTuple):
    """One event of the stream: its name (empty for the default, `message`) and its data."""

    event: bytes
    data: bytes


class Decoder:
    """Bytes of an event stream to frames, whatever the split.

    `feed` any number of times, then `close` once for what stands behind the last blank line. `id`
    and `retry` are for reconnecting readers and are skipped, as are comments and unknown fields;
    but a line that is a JSON object on its own is kept as data, because upstreams send their
    refusals so into streams that they label as events.
    """

    def __init__(self, limit: int = 16 * 1024 * 1024) -> None:
        self.limit = limit
        """The longest line and the longest event, in bytes."""
        self._parts: list[bytes] = []
        """The unfinished last line, in the pieces that it came in."""
        self._size = 0
        self._after_cr = False
        self._at_start = True
        self._event = b""
        self._data: list[bytes] = []
        self._data_size = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that `data` completes. Raises FrameTooLarge."""
        if self._after_cr and data:
            # The CR before was taken as a line end at once; a LF behind it belongs to it.
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        head, newline, tail = data.rpartition(b"\n")
        if not newline:
            self._hold(tail)
            return []
        if self._parts:
            head = b"".join(self._parts) + head
            self._parts.clear()
            self._size = 0
        frames = self._lines(head)
        if tail:
            self._hold(tail)
        return frames

    @property
    def tail(self) -> bytes:
        """The last line so far, that has no line end yet."""
        return b"".join(self._parts)

    def close(self) -> Frame | None:
        """Return what came after the last blank line, if that is an event's data.

        The specification drops it; a reader that finds it whole may use it.
        """
        if self._parts:
            self._lines(b"".join(self._parts))
            self._parts.clear()
        return self._dispatch()

    def _hold(self, tail: bytes) -> None:
        self._size += len(tail)
        if self._size > self.limit:
            raise FrameTooLarge(f"one line is longer than {self.limit} bytes")
        self._parts.append(tail)

    def _lines(self, block: bytes) -> list[Frame]:
        if self._at_start:
            block = block.removeprefix(BOM)
            self._at_start = False
        frames: list[Frame] = []
        for line in block.split(b"\n"):
            if line.startswith(b"data: "):
                self._add(line[6:])
            elif not line:
                frame = self._dispatch()
                if frame is not None:
                    frames.append(frame)
            elif line.startswith(b"data:"):
                self._add(line[5:])
            elif line.startswith(b"event:"):
                self._event = line[6:].removeprefix(b" ")
            elif line.startswith(b"{"):
                self._add(line)
            elif line == b"data":
                self._add(b"")
        return frames

    def _add(self, value: bytes) -> None:
        self._data_size += len(value) + 1
        if self._data_size > self.limit:
            raise FrameTooLarge(f"one event is longer than {self.limit} bytes")
        self._data.append(value)

    def _dispatch(self) -> Frame | None:
        data, event = self._data, self._event
        if not data:
            self._event = b""
            return None
        self._data = []
        self._data_size = 0
        self._event = b""
        return Frame(event, data[0] if len(data) == 1 else b"\n".join(data))


def encode(data: bytes) -> bytes:
    """Return one event that carries `data`, which holds no line end (compact JSON holds none)."""
    return b"data: %b\n\n" % data
