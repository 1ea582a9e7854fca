"""Server-sent events without I/O: bytes in any split to frames, data to bytes.

Lines end at CR, LF or CRLF and nowhere else: U+2028 or U+0085 may stand inside a JSON string.
Source: WHATWG HTML, "Server-sent events", sections "Parsing" and "Interpreting an event stream".
"""

from __future__ import annotations

BOM = b"\xef\xbb\xbf"

COMMENT = b": keep-alive\n\n"
"""What a silent stream is kept open with; every reader skips it."""


_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b"{")


class FrameTooLarge(ValueError):
    """One event was longer than the decoder's limit."""


Frame = tuple[bytes, bytes]
"""One event of the stream: its name (empty for the default, `message`) and its data.

A plain tuple, for they come by the hundred in a stream.
"""


class Decoder:
    """Bytes of an event stream to frames, whatever the split.

    `feed` any number of times, then `close` once for what stands behind the last blank line. `id`
    and `retry` are for reconnecting readers and are skipped, as are comments and unknown fields.

    It goes beyond the specification in two things, because upstreams report their failures so: a
    line that is a JSON object on its own is kept as data, and an event that has a name but no data
    is a frame too, its data empty.
    """

    __slots__ = (
        "_after_cr",
        "_at_start",
        "_data",
        "_data_size",
        "_event",
        "_line",
        "_parts",
        "_size",
        "limit",
    )

    def __init__(self, limit: int = 16 * 1024 * 1024) -> None:
        self.limit = limit
        """The longest line and the longest event, in bytes."""
        self._parts: list[bytes] = []
        """The unfinished last line, in the pieces that it came in."""
        self._size = 0
        self._after_cr = False
        self._at_start = True
        self._line = b""
        """The last whole line."""
        self._event = b""
        self._data: list[bytes] = []
        self._data_size = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that `data` completes. Raises FrameTooLarge."""
        if self._after_cr and data:
            # The CR before was taken as a line end at once; a LF behind it belongs to it.
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if not data:
            return []
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        end = data.rfind(b"\n") + 1
        if not end:
            self._hold(data)
            return []
        lines, tail = data[:end], data[end:]
        if self._parts:
            lines = b"".join(self._parts) + lines
            self._parts.clear()
            self._size = 0
        frames = self._events(lines)
        if tail:
            self._hold(tail)
        return frames

    @property
    def is_fresh(self) -> bool:
        """Whether all that was fed are whole events, so that the next byte begins one."""
        return not (self._parts or self._line or self._data or self._event or self._after_cr)

    @property
    def within_event(self) -> bool:
        """Whether an event has begun whose blank line has not come.

        A comment, and a line that is no part of an event stream, begin none.
        """
        line = b"".join(self._parts).strip() or self._line
        is_field = any(line.startswith(f) or f.startswith(line) for f in _FIELDS)
        return bool(self._data or self._event or (line and is_field))

    def close(self) -> Frame | None:
        """Return what came after the last blank line, if that is an event's data.

        The specification drops it; a reader that finds it whole may use it.
        """
        if self._parts:
            self._add_lines(b"".join(self._parts), [])
            self._parts.clear()
        return self._dispatch()

    def _hold(self, tail: bytes) -> None:
        self._size += len(tail)
        if self._size > self.limit:
            raise FrameTooLarge(f"one line is longer than {self.limit} bytes")
        self._parts.append(tail)

    def _events(self, lines: bytes) -> list[Frame]:
        """Return the frames that whole lines complete."""
        if self._at_start:
            lines = lines.removeprefix(BOM)
            self._at_start = False
        frames: list[Frame] = []
        *events, rest = lines.split(b"\n\n")
        is_fresh = not self._data and not self._event and len(lines) <= self.limit
        for event in events:
            # Nearly all of them are one line of data; the rest is read line by line.
            if is_fresh and event.startswith(b"data: ") and b"\n" not in event:
                frames.append((b"", event[6:]))
            else:
                self._add_lines(event + b"\n", frames)
                is_fresh = len(lines) <= self.limit
        self._line = b""
        if rest:
            self._add_lines(rest.removesuffix(b"\n"), frames)
        return frames

    def _add_lines(self, block: bytes, frames: list[Frame]) -> None:
        """Take lines, the last one without its line end; append the frames that they complete."""
        for line in block.split(b"\n"):
            if line.startswith(b"data:"):
                self._add(line[5:].removeprefix(b" "))
            elif not line:
                frame = self._dispatch()
                if frame is not None:
                    frames.append(frame)
            elif line.startswith(b"event:"):
                self._event = line[6:].removeprefix(b" ")
            elif line.startswith(b"{"):
                self._add(line)
            elif line == b"data":
                self._add(b"")
        self._line = line

    def _add(self, value: bytes) -> None:
        self._data_size += len(value) + 1
        if self._data_size > self.limit:
            raise FrameTooLarge(f"one event is longer than {self.limit} bytes")
        self._data.append(value)

    def _dispatch(self) -> Frame | None:
        data, event = self._data, self._event
        if not data and not event:
            return None
        self._data = []
        self._data_size = 0
        self._event = b""
        return event, b"\n".join(data)


def encode(data: bytes) -> bytes:
    """Return one event that carries `data`, which holds no line end (compact JSON holds none)."""
    return b"data: %b\n\n" % data
