"""The answers of the first generation of the Qwen web chat, from bytes to events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_asgi import sse
from qwen_asgi.chat import Event, Extra, Finish, FinishReason, ReasoningDelta, TextDelta
from qwen_asgi.errors import UpstreamError, UpstreamInvalidResponse, UpstreamTruncated
from qwen_asgi.upstreams import _web_errors
from qwen_asgi.upstreams._frame_shapes import FrameShapes
from qwen_asgi.upstreams._snapshots import Contradiction, TextReader
from qwen_asgi.upstreams._think_tags import ThinkTags
from qwen_asgi.upstreams._usage import RunningUsage

MOST_AT_ONCE = 32 * 1024
"""Bytes that are cut frame by frame at a time; of more, each cut would copy the rest."""


class QwenWebV1Decoder:
    """The bytes of one answer to events: an event stream, or one JSON document.

    Which of the two it is, its first byte tells and not its label: failures come as JSON under the
    label of a stream, with HTTP 200. See `upstreams.Decoder` for the order of calls. Whatever went
    wrong, `flush` returns all the text that came, also what was held back for a reading that no
    longer comes.

    The end is `[DONE]`, or the body's proper end with or without a frame of status `finished`. A
    body that only the connection's end delimits must have shown one of them if its frames carry
    phases, for then a cut looks like an end.
    """

    LONGEST_DOCUMENT = 16 * 1024 * 1024

    __slots__ = (
        "_begun",
        "_document",
        "_ends_by_close",
        "_events",
        "_finished",
        "_frames",
        "_has_phases",
        "_has_reasoning",
        "_has_text",
        "_incremental",
        "_is_between",
        "_phase",
        "_piece",
        "_reason",
        "_secret",
        "_shapes",
        "_start",
        "_texts",
        "_think_tags",
        "_usage",
        "complete",
        "ending",
    )

    def __init__(self, *, incremental: bool, ends_by_close: bool = False, secret: str = "") -> None:
        self._incremental = incremental
        self._ends_by_close = ends_by_close
        self._secret = secret
        self._frames = sse.Decoder()
        self._document: bytearray | None = None
        """The body so far, if it is one JSON document."""
        self._begun = False
        self._start = b""
        """Of a byte order mark, what came."""
        self._events: list[Event] = []
        self._is_between = False
        """Whether what was fed ends between two frames."""
        self._phase = ""
        self._has_phases = False
        self._piece: type[TextDelta] | type[ReasoningDelta] | None = None
        """What each text of the phase under way is, once nothing of it is held or examined."""
        self._shapes = FrameShapes()
        """Of frames that were such a piece."""
        self._texts: dict[str, TextReader] = {}
        self._think_tags = ThinkTags()
        self._usage = RunningUsage()
        self._reason: FinishReason = "stop"
        self._has_text = False
        self._has_reasoning = False
        self._finished = False
        self.ending = False
        self.complete = False

    def feed(self, data: bytes) -> list[Event]:
        piece = self._piece
        if piece is not None and self._is_between:
            # Nearly all that is fed ends here.
            data = self._shapes.read(data, piece, self._events)
            if not data:
                events, self._events = self._events, []
                return events
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
            self._shapes.learn(frame)
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

    def _only_content(self, chunk: Mapping[str, Any]) -> str | None:
        """Return the text of a frame that holds that and its usage, and nothing to look into."""
        choices = chunk.get("choices")
        choice = choices[0] if type(choices) is list and choices else None
        delta = choice.get("delta") if type(choice) is dict else None
        if type(choice) is not dict or type(delta) is not dict:
            return None
        content = delta.get("content")
        is_usual = (
            type(content) is str
            and delta.get("phase", "") == self._phase
            and delta.get("status") != "finished"
            and delta.get("role") != "function"
            and choice.get("finish_reason") is None
            and _MORE.isdisjoint(delta)
            and _web_errors.SIGNS.isdisjoint(chunk)
        )
        return content or None if is_usual else None

    def _feed(self, data: bytes) -> None:
        if not self._begun:
            data = (self._start + data).lstrip().removeprefix(sse.BOM).lstrip()
            if sse.BOM.startswith(data):
                self._start = data
                return
            self._begun = True
            if data.startswith(b"<"):
                raise _web_errors.block_page()
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
        document = _web_errors.read_document(body)
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
        if self._ends_by_close and self._has_phases and not self._finished:
            raise UpstreamTruncated("the upstream's answer broke off before its end")
        self._end()

    def _frame(self, event: bytes, data: bytes) -> None:
        data = data.strip()
        if data.startswith(b"{"):
            chunk = _web_errors.read_object(data)
            if chunk is None:
                raise UpstreamInvalidResponse("a frame of the upstream's answer is not JSON")
            if not _web_errors.SIGNS.isdisjoint(chunk):
                self._raise_failure(chunk)
            self._chunk(chunk, "delta")
        elif data == b"[DONE]":
            self._end()
            return
        # Other frames are keep-alives; an error is one whatever it says (WE-12).
        if event == b"error":
            raise UpstreamError("the upstream reports an error within its answer")

    def _raise_failure(self, document: Mapping[str, Any]) -> None:
        error = _web_errors.failure(document, secret=self._secret)
        if error is not None:
            raise error

    def _chunk(self, chunk: Mapping[str, Any], key: str) -> None:
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._usage.update(usage)
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return
        delta = choice.get(key)
        if isinstance(delta, dict):
            self._delta(delta)
        reason = choice.get("finish_reason")
        if reason in ("length", "content_filter"):
            self._reason = reason

    def _delta(self, delta: Mapping[str, Any]) -> None:
        error = delta.get("error")
        if error:
            self._raise_failure({"error": error})
        phase = delta.get("phase") or ""
        content = delta.get("content")
        if delta.get("role") == "function" or not _is_of_the_answer(phase):
            # Search results and other tools' frames are never answer text (W1-25).
            self._events.append(Extra(_kind(delta), delta))
            return
        reasoning = delta.get("reasoning_content")
        if isinstance(reasoning, str) and reasoning:
            self._add(ReasoningDelta(reasoning))
        if phase != self._phase and (phase or content):
            self._give_up_held()
            self._phase = phase
            self._piece = None
            self._shapes.forget()
        self._has_phases = self._has_phases or bool(phase)
        if isinstance(content, str) and content:
            self._content(phase, content)
        if delta.get("status") == "finished" and phase in ("answer", ""):
            self._finished = self.ending = True

    def _content(self, phase: str, content: str) -> None:
        if self._document is not None:
            # There is one text, and it is all.
            self._text(phase, content)
            return
        reader = self._texts.get(phase)
        if reader is None:
            reader = self._texts[phase] = TextReader(self._is_incremental())
        try:
            self._text(phase, reader.feed(content))
        except Contradiction:
            raise UpstreamInvalidResponse(
                "the upstream took back text that it had sent, as if it sent pieces; "
                "QWEN_INCREMENTAL=true reads them"
            ) from None
        if reader.gives_all and (phase or self._think_tags.gives_all):
            # Not before one was made here, which notes that there is some.
            if phase.startswith("think"):
                self._piece = ReasoningDelta if self._has_reasoning else None
            else:
                self._piece = TextDelta if self._has_text else None

    def _is_incremental(self) -> bool:
        """What was found out in one phase holds for the next one."""
        for reader in self._texts.values():
            if reader.proven_incremental is not None:
                return reader.proven_incremental
        return self._incremental

    def _text(self, phase: str, text: str) -> None:
        if not text:
            return
        if phase.startswith("think"):
            self._add(ReasoningDelta(text))
        elif phase:
            self._add(TextDelta(text))
        else:
            for event in self._think_tags.feed(text):
                self._add(event)

    def _add(self, event: TextDelta | ReasoningDelta) -> None:
        if isinstance(event, TextDelta):
            self._has_text = True
        else:
            self._has_reasoning = True
        self._events.append(event)

    def _give_up_held(self) -> None:
        """Give out what was held back for a reading that no longer comes."""
        for phase, reader in self._texts.items():
            self._text(phase, reader.close())
        for event in self._think_tags.close():
            self._add(event)

    def _end(self) -> None:
        self._give_up_held()
        self._count_last()
        if not self._has_text and self._reason != "length":
            raise UpstreamInvalidResponse(
                "the upstream ended its answer after the thinking"
                if self._has_reasoning
                else "the upstream's answer is empty"
            )
        usage = self._usage.total()
        if usage is not None:
            self._events.append(usage)
        self._events.append(Finish(self._reason))
        self.complete = True
        self.ending = False
        self._piece = None


_MORE = frozenset({"error", "reasoning_content"})
"""Fields of a delta that say something beside its content."""


def _only_object(frame: bytes) -> dict[str, Any] | None:
    """Return what an event of one line of data holds, if that is a JSON object."""
    if not frame.startswith(b"data: {") or frame.find(b"\n") != len(frame) - 2:
        return None
    return _web_errors.read_object(frame[6:])


def _is_whole(data: bytes) -> bool:
    return data == b"[DONE]" or _web_errors.read_object(data) is not None


def _is_of_the_answer(phase: Any) -> bool:
    return not phase or phase == "answer" or (isinstance(phase, str) and phase.startswith("think"))


def _kind(delta: Mapping[str, Any]) -> str:
    name = delta.get("name") or delta.get("phase")
    return name if isinstance(name, str) else "unknown"
