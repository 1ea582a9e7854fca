"""What the answers of all dialects have in common, from bytes to JSON documents.

An answer is an event stream, or one JSON document. Which of the two it is, its first byte tells and
not its label: failures come as JSON under the label of a stream, with HTTP 200, and a stream comes
where a document was asked for (facts WE-01 and DS-93 of the wire notes).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from qwen_asgi import sse
from qwen_asgi.chat import Event, ReasoningDelta, TextDelta, Usage
from qwen_asgi.errors import (
    UpstreamEmptyAnswer,
    UpstreamError,
    UpstreamInvalidResponse,
    UpstreamTruncated,
)
from qwen_asgi.upstreams._documents import read_document, read_object
from qwen_asgi.upstreams._frame_shapes import FrameShapes
from qwen_asgi.upstreams._usage import RunningUsage

MOST_AT_ONCE = 32 * 1024
"""Bytes that are cut frame by frame at a time; of more, each cut would copy the rest."""


class AnswerDecoder(ABC):
    """An `upstreams.Decoder`, all but what a dialect's documents mean.

    A dialect says that in the methods without a body here. What they find out they add to
    `_events`; they set `complete` when the answer's `Finish` is among them, and `ending` when
    nothing but a footer may follow. Whatever went wrong, `flush` returns all the text that came,
    also what was held back for a reading that no longer comes.
    """

    LONGEST_DOCUMENT = 16 * 1024 * 1024

    __slots__ = (
        "_begun",
        "_document",
        "_events",
        "_field",
        "_frames",
        "_has_frames",
        "_is_between",
        "_piece",
        "_shapes",
        "_start",
        "_usage",
        "complete",
        "ending",
    )

    def __init__(self) -> None:
        self._frames = sse.Decoder()
        self._document: bytearray | None = None
        """The body so far, if it is one JSON document."""
        self._begun = False
        self._has_frames = False
        """Whether it has the form of an answer, whatever stands in it."""
        self._start = b""
        """Of a byte order mark, what came; a whole one, and what may be another."""
        self._events: list[Event] = []
        self._piece: type[TextDelta] | type[ReasoningDelta] | None = None
        """What each text under way is, once nothing of it is held or examined."""
        self._field = b"content"
        """Where in a frame it stands."""
        self._is_between = False
        """Whether what was fed ends between two frames."""
        self._shapes = FrameShapes()
        """Of frames that were such a piece."""
        self._usage = RunningUsage()
        self.ending = False
        self.complete = False

    # A dialect's own.

    @abstractmethod
    def _chunk(self, chunk: Mapping[str, Any], field: Literal["delta", "message"]) -> None:
        """Take a frame's document, or the whole answer's: its text is in that field."""

    @abstractmethod
    def _only_content(self, chunk: Mapping[str, Any]) -> str | None:
        """Return the text of a frame that holds that and its usage, and nothing to look into."""

    @abstractmethod
    def _failure(self, document: Mapping[str, Any]) -> UpstreamError | None:
        """Return the error that a document means, or None if it means none."""

    @abstractmethod
    def _page(self) -> UpstreamError:
        """Return the error for a web page where data should be."""

    @abstractmethod
    def _end(self) -> None:
        """The answer has come to its end. Raises UpstreamInvalidResponse if there was none."""

    @abstractmethod
    def _is_cut(self) -> bool:
        """Whether a body that ended between two frames should have gone on."""

    @abstractmethod
    def _give_up_held(self) -> None:
        """Give out what was held back for a reading that no longer comes."""

    @property
    def counted(self) -> Usage | None:
        self._count_last()
        return self._usage.total()

    # From bytes to documents.

    def feed(self, data: bytes) -> list[Event]:
        piece = self._piece
        if piece is not None and self._is_between:
            # Nearly all that is fed ends here.
            data = self._shapes.read(data, piece, self._events)
            if not data:
                return self._take()
        try:
            for start in range(0, len(data), MOST_AT_ONCE):
                self._feed_part(data[start : start + MOST_AT_ONCE])
        except sse.FrameTooLarge as exc:
            raise UpstreamInvalidResponse(f"the upstream's answer is too long: {exc}") from exc
        return self._take()

    def close(self) -> list[Event]:
        if not self.complete:
            if self._document is not None:
                self._close_document(bytes(self._document))
            else:
                self._close_stream()
        return self._take()

    def flush(self) -> list[Event]:
        # What was held back may end in an error too; there is one already.
        with suppress(UpstreamError):
            self._give_up_held()
        return self._take()

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _feed_part(self, data: bytes) -> None:
        """Take what arrived, by the short way wherever that leads on."""
        self._count_last()
        step = 1
        while data:
            if self._piece is not None and self._frames.is_fresh:
                data = self._feed_pieces(self._piece, data)
            # Much may have arrived at once: a few frames on, the short way may be open again.
            end = data.find(b"\n\n", step) + 2
            part, data = (data[:end], data[end:]) if end > 1 else (data, b"")
            self._feed(part)
            step *= 2
        self._is_between = self._frames.is_fresh

    def _feed_pieces(self, piece: type[TextDelta] | type[ReasoningDelta], data: bytes) -> bytes:
        """Take the frames at the start of `data` that only go on with the text; return the rest.

        Nearly every frame of an answer is such a one. It is no other reading than that of `_feed`,
        which any frame that has more to say is left to, but one without a call for each step, and
        after the first frames without a look at what is the same in all of them.
        """
        if b"\r" in data:
            return data
        while data:
            data = self._shapes.read(data, piece, self._events)
            self._count_last()
            end = data.find(b"\n\n") + 2
            frame = data[:end]
            chunk = _only_object(frame)
            content = None if chunk is None else self._only_content(chunk)
            if chunk is None or content is None:
                break
            self._count(chunk)
            self._events.append(piece(content))
            self._shapes.learn(frame, self._field)
            data = data[end:]
        return data

    def _count_last(self) -> None:
        """Look at the counts of the last frame that was read by its shape."""
        frame = self._shapes.take_last()
        if frame:
            self._count(_only_object(frame) or {})

    def _count(self, chunk: Mapping[str, Any]) -> None:
        usage = chunk.get("usage")
        if usage and type(usage) is dict:
            self._usage.update(usage)

    def _feed(self, data: bytes) -> None:
        if not self._begun:
            start = (self._start + data).lstrip()
            data = start.removeprefix(sse.BOM).lstrip()
            if sse.BOM.startswith(data):
                # A mark that was removed stays known: a second one is none.
                self._start = start[: len(sse.BOM)] + data if start.startswith(sse.BOM) else data
                return
            self._begun = True
            if data.startswith(b"<"):
                raise self._page()
            if data.startswith((b"{", b"[")):
                self._document = bytearray()
        if self._document is not None:
            self._document += data
            if len(self._document) > self.LONGEST_DOCUMENT:
                raise UpstreamInvalidResponse("the upstream's answer is too long for one document")
            return
        for event, frame in self._frames.feed(data):
            if self.complete:
                return
            self._frame(event, frame)

    def _close_document(self, body: bytes) -> None:
        document = read_document(body)
        self._raise_failure(document)
        inner = document.get("data")
        if "choices" not in document and isinstance(inner, dict):
            document = inner
        if not document.get("choices"):
            raise UpstreamInvalidResponse("the upstream's answer holds no text")
        self._chunk(document, "message")
        self._end()

    def _close_stream(self) -> None:
        is_cut = self._frames.within_event
        frame = self._frames.close()
        if frame is not None and _is_whole(frame[1].strip()):
            # Only its blank line is missing (quirk Q-31).
            self._frame(*frame)
        elif is_cut:
            raise UpstreamTruncated("the upstream's answer broke off inside a frame")
        if self.complete:
            return
        if self._is_cut():
            raise UpstreamTruncated("the upstream's answer broke off before its end")
        self._end()

    def _frame(self, event: bytes, data: bytes) -> None:
        data = data.strip()
        if data.startswith(b"{"):
            chunk = read_object(data)
            if chunk is None:
                raise UpstreamInvalidResponse("a frame of the upstream's answer is not JSON")
            self._raise_failure(chunk)
            self._has_frames = True
            self._chunk(chunk, "delta")
        elif data == b"[DONE]":
            self._end()
            return
        # Other frames are keep-alives; an error is one whatever it says (WE-12).
        if event == b"error":
            raise UpstreamError("the upstream reports an error within its answer")

    def _nothing(self, has_reasoning: bool) -> UpstreamError:
        """Return the error for an answer without text."""
        if has_reasoning:
            return UpstreamEmptyAnswer("the upstream ended its answer after the thinking")
        kind = UpstreamEmptyAnswer if self._has_frames else UpstreamInvalidResponse
        return kind("the upstream's answer is empty")

    def _raise_failure(self, document: Mapping[str, Any]) -> None:
        error = self._failure(document)
        if error is not None:
            raise error


def _only_object(frame: bytes) -> dict[str, Any] | None:
    """Return what an event of one line of data holds, if that is a JSON object."""
    if not frame.startswith(b"data: {") or frame.find(b"\n") != len(frame) - 2:
        return None
    return read_object(frame[6:])


def _is_whole(data: bytes) -> bool:
    return data == b"[DONE]" or read_object(data) is not None
