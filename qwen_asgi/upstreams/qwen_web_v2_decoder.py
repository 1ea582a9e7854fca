"""The answers of the second generation of the Qwen web chat, from bytes to events.

The frames are those of the first, and read as those. What came with this generation is here: two
answers in one stream, summaries of the thinking, pictures, and frames that are about the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from qwen_asgi.chat import ReasoningDelta, TextDelta
from qwen_asgi.errors import UpstreamTruncated
from qwen_asgi.upstreams._summaries import Summaries, texts_in
from qwen_asgi.upstreams.qwen_web_v1_decoder import QwenWebV1Decoder

MOST_HELD = 256
"""Frames of a second answer that are kept until the first one shows; it has come by then."""


class QwenWebV2Decoder(QwenWebV1Decoder):
    """The bytes of one answer to events; see `upstreams.Decoder` for the order of calls.

    Of several candidates in one stream the one of `response_index` 0 is read, or without an index
    the first one named (W2-55). The frames of the others are left: they are another wording of the
    same answer. Server tools and what they found are `Extra` (W2-45, W2-46).
    """

    __slots__ = ("_candidate", "_held", "_others", "_summaries")

    def __init__(self, *, ends_by_close: bool = False, secret: str = "") -> None:
        super().__init__(incremental=True, ends_by_close=ends_by_close, secret=secret)
        self._candidate: str | None = None
        """The `response_id` that is read."""
        self._others: set[str] = set()
        """Those known to be of another index."""
        self._held: list[Mapping[str, Any]] = []
        self._summaries = Summaries()

    def _only_content(self, chunk: Mapping[str, Any]) -> str | None:
        if chunk.get("response_id") != self._candidate:
            return None
        return super()._only_content(chunk)

    def _chunk(self, chunk: Mapping[str, Any], field: Literal["delta", "message"]) -> None:
        created = chunk.get("response.created")
        if isinstance(created, Mapping):
            self._created(created)
        elif "response.stopped" in chunk:
            raise UpstreamTruncated("the upstream's answer was stopped before its end")
        elif chunk.get("done") is True and not chunk.get("choices"):
            self._finished = self.ending = True
        elif self._is_of_the_candidate(chunk):
            super()._chunk(chunk, field)

    def _created(self, created: Mapping[str, Any]) -> None:
        """Take the frame that announces a candidate (W2-40)."""
        id, index = created.get("response_id"), created.get("response_index")
        if not isinstance(id, str):
            return
        if str(index or "0") != "0":
            self._others.add(id)
        elif self._candidate is None or self._may_still_change():
            self._settle_on(id)

    def _may_still_change(self) -> bool:
        """Whether the one that is read turned out to be another, and nothing of it went out."""
        return self._candidate in self._others and not (self._has_text or self._has_reasoning)

    def _is_of_the_candidate(self, chunk: Mapping[str, Any]) -> bool:
        id = chunk.get("response_id")
        if id == self._candidate or not isinstance(id, str):
            return True
        if self._candidate is None:
            if str(chunk.get("response_index") or "0") != "0":
                self._others.add(id)
            if id not in self._others:
                self._settle_on(id)
                return True
            # The first has not shown yet.
            self._held.append(chunk)
            if len(self._held) >= MOST_HELD:
                self._read_held()
        return False

    def _settle_on(self, id: str) -> None:
        self._candidate = id
        self._shapes.forget()
        self._shapes.identity = b'"%b"' % id.encode()
        self._held.clear()

    def _read_held(self) -> None:
        """Read what was held back of another candidate: the first one does not come."""
        held, self._held = self._held, []
        if held and self._candidate is None:
            self._settle_on(held[0]["response_id"])
            for chunk in held:
                if chunk.get("response_id") == self._candidate:
                    super()._chunk(chunk, "delta")

    def _delta(self, delta: Mapping[str, Any]) -> None:
        phase, extra = delta.get("phase"), delta.get("extra")
        if delta.get("status") == "error":
            error = extra.get("error") if isinstance(extra, Mapping) else None
            self._raise_failure({"error": error or delta.get("error") or "no more is known"})
        if phase == "image_gen" and delta.get("role") != "function":
            self._picture(delta)
            return
        if phase == "thinking_summary":
            new = self._summaries.feed(
                texts_in(extra, "summary_title"), texts_in(extra, "summary_thought")
            )
            if new:
                self._give_up_held()
                self._add(ReasoningDelta(new))
        super()._delta(delta)

    def _picture(self, delta: Mapping[str, Any]) -> None:
        """Each frame of this phase holds one whole address (W2-50): a line of the answer."""
        content = delta.get("content")
        if isinstance(content, str) and content:
            self._add(TextDelta(f"\n{content}" if self._has_text else content))
        if delta.get("status") == "finished":
            self._finished = self.ending = True

    def _give_up_held(self) -> None:
        self._read_held()
        super()._give_up_held()

    def _is_cut(self) -> bool:
        return self._ends_by_close and not self._finished
