"""The answers of the second generation of the Qwen web chat, from bytes to events.

The frames are those of the first, and read as those. What came with this generation is here: two
answers in one stream, summaries of the thinking, pictures, and frames that are about the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from qwen_asgi.chat import ReasoningDelta, TextDelta
from qwen_asgi.errors import UpstreamInvalidResponse, UpstreamTruncated
from qwen_asgi.upstreams._summaries import Summaries, texts_in
from qwen_asgi.upstreams._usage import RunningUsage
from qwen_asgi.upstreams._words import NONE, Secrets
from qwen_asgi.upstreams.qwen_web_v1_decoder import QwenWebV1Decoder

SUMMARY = "thinking_summary"

MOST_HELD = 256
"""Frames of a second answer that are kept until the first one shows; it has come by then."""

MOST_HELD_BYTES = 1024 * 1024
"""The same in bytes of those frames."""

MOST_OTHERS = 64
"""Candidates of one stream beside the one that is read; two are all that were ever seen."""


class QwenWebV2Decoder(QwenWebV1Decoder):
    """The bytes of one answer to events; see `upstreams.Decoder` for the order of calls.

    Of several candidates in one stream the one of `response_index` 0 is read, or without an index
    the first one named (W2-55). The frames of the others are left: they are another wording of the
    same answer. Server tools and what they found are `Extra` (W2-45, W2-46).
    """

    __slots__ = (
        "_candidate",
        "_frame_size",
        "_held",
        "_held_bytes",
        "_is_behind_picture",
        "_others",
        "_summaries",
    )

    def __init__(self, *, ends_by_close: bool = False, secrets: Secrets = NONE) -> None:
        super().__init__(incremental=True, ends_by_close=ends_by_close, secrets=secrets)
        self._candidate: str | None = None
        """The `response_id` that is read."""
        self._others: set[str] = set()
        """Those known to be of another index."""
        self._held: list[Mapping[str, Any]] = []
        self._held_bytes = 0
        self._frame_size = 0

    def _begin_answer(self) -> None:
        super()._begin_answer()
        self._summaries = Summaries()
        self._is_behind_picture = False

    def _only_content(self, chunk: Mapping[str, Any]) -> str | None:
        # The lists of a summary stand beside its text.
        if chunk.get("response_id") != self._candidate or self._phase == SUMMARY:
            return None
        return super()._only_content(chunk)

    # Which frames are read.

    def _frame(self, event: bytes, data: bytes) -> None:
        self._frame_size = len(data)
        super()._frame(event, data)

    def _chunk(self, chunk: Mapping[str, Any], field: Literal["delta", "message"]) -> None:
        created = chunk.get("response.created")
        if isinstance(created, Mapping):
            self._created(created)
        elif self._is_of_the_candidate(chunk):
            self._read(chunk, field)

    def _created(self, created: Mapping[str, Any]) -> None:
        """Take the frame that announces a candidate (W2-40)."""
        id, index = created.get("response_id"), created.get("response_index")
        if not isinstance(id, str):
            return
        if str(index or "0") != "0":
            self._is_another(id)
        elif self._candidate is None or self._may_still_change():
            self._settle_on(id)

    def _may_still_change(self) -> bool:
        """Whether the one that is read turned out to be another, and nothing of it went out."""
        return self._candidate in self._others and not (self._has_text or self._has_reasoning)

    def _is_of_the_candidate(self, chunk: Mapping[str, Any]) -> bool:
        id = _id_of(chunk)
        if id is None or id == self._candidate:
            return True
        if self._candidate is None:
            if str(chunk.get("response_index") or "0") != "0":
                self._is_another(id)
            if id not in self._others:
                self._settle_on(id)
                return True
            # The first has not shown yet.
            self._hold(chunk)
        return False

    def _is_another(self, id: str) -> None:
        self._others.add(id)
        if len(self._others) > MOST_OTHERS:
            raise UpstreamInvalidResponse("the upstream gives too many answers in one")

    def _hold(self, chunk: Mapping[str, Any]) -> None:
        self._held.append(chunk)
        self._held_bytes += self._frame_size
        if len(self._held) >= MOST_HELD or self._held_bytes >= MOST_HELD_BYTES:
            self._read_held()

    def _settle_on(self, id: str) -> None:
        if self._candidate is not None:
            # Another's end, phase and counts are not this one's.
            self._begin_answer()
            self._usage = RunningUsage()
            self._piece = None
            self.ending = False
        self._candidate = id
        self._shapes.forget()
        self._shapes.identify(b"response_id", b'"%b"' % id.encode("utf-8", "surrogatepass"))
        self._held.clear()

    def _read_held(self) -> None:
        """Read what was held back of another candidate: the first one does not come."""
        held, self._held = self._held, []
        if held and self._candidate is None:
            self._settle_on(str(_id_of(held[0])))
            for chunk in held:
                if _id_of(chunk) == self._candidate:
                    self._read(chunk, "delta")

    # What they say.

    def _read(self, chunk: Mapping[str, Any], field: Literal["delta", "message"]) -> None:
        if "response.stopped" in chunk:
            raise UpstreamTruncated("the upstream's answer was stopped before its end")
        if chunk.get("done") is True and not chunk.get("choices"):
            self._finished = self.ending = True
        else:
            super()._chunk(chunk, field)

    def _delta(self, delta: Mapping[str, Any]) -> None:
        phase, extra = delta.get("phase"), delta.get("extra")
        is_of_a_tool = delta.get("role") == "function"
        if is_of_a_tool:
            self._summaries.expect_round()
        elif delta.get("status") == "error" or delta.get("error"):
            error = extra.get("error") if isinstance(extra, Mapping) else None
            self._raise_failure({"error": error or delta.get("error") or "no more is known"})
        elif phase == "image_gen":
            self._picture(delta)
            return
        elif phase == SUMMARY:
            self._summary(extra)
        super()._delta(delta)

    def _summary(self, extra: Any) -> None:
        new = self._summaries.feed(
            texts_in(extra, "summary_title"), texts_in(extra, "summary_thought")
        )
        if new:
            self._give_up_held()
            self._add(ReasoningDelta(new))

    def _picture(self, delta: Mapping[str, Any]) -> None:
        """Each frame of this phase holds one whole address (W2-50): a line of the answer."""
        content = delta.get("content")
        if isinstance(content, str) and content:
            self._give_up_held()
            self._phase, self._piece = "image_gen", None
            self._is_behind_picture = self._has_text
            self._add(TextDelta(content))
            self._is_behind_picture = True
        if delta.get("status") == "finished":
            self._finished = self.ending = True

    def _add(self, event: TextDelta | ReasoningDelta) -> None:
        if self._is_behind_picture and isinstance(event, TextDelta):
            event.text = f"\n{event.text}"
            self._is_behind_picture = False
        super()._add(event)

    def _give_up_held(self) -> None:
        try:
            self._read_held()
        finally:
            super()._give_up_held()

    def _is_cut(self) -> bool:
        # The end may be among what was held back.
        self._read_held()
        return self._ends_by_close and not self._finished


def _id_of(chunk: Mapping[str, Any]) -> str | None:
    """Return which candidate a frame belongs to, if it says so."""
    stopped = chunk.get("response.stopped")
    id = chunk.get("response_id") or (
        stopped.get("response_id") if isinstance(stopped, Mapping) else None
    )
    return id if isinstance(id, str) and id else None
