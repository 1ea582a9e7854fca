"""Stop sequences for an upstream that knows none: the answer ends where one begins."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

from qwen_asgi.chat import Batches, ChatRequest, Event, Finish, Notes, TextDelta, Upstream
from qwen_asgi.errors import InvalidRequest, QwenASGIError

MOST_SEQUENCES = 16
LONGEST_SEQUENCE = 256
"""Characters; OpenAI takes four sequences, and says nothing of their length."""


class StopText:
    """An answer's text, piece by piece, up to the first of some sequences.

    What may be the beginning of one is held back, and no more.
    """

    __slots__ = ("_beginnings", "_held", "_last", "_longest", "_sequences", "stopped")

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences = sequences
        self._longest = max(map(len, sequences))
        self._beginnings = {s[:length] for s in sequences for length in range(1, len(s))}
        self._last = {beginning[-1] for beginning in self._beginnings}
        self._held = ""
        self.stopped = False
        """Whether a sequence was met: what comes behind it is nothing."""

    def feed(self, text: str) -> str:
        """Return what of the text is certain to stand before any sequence."""
        if self.stopped:
            return ""
        text = self._held + text
        # The one that is whole first ends the answer, as if it came letter by letter.
        found = [(at + len(s), at) for s in self._sequences if (at := text.find(s)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        held = self._beginning_at_the_end_of(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def close(self) -> str:
        """Return what was held back."""
        held, self._held = self._held, ""
        return held

    def _beginning_at_the_end_of(self, text: str) -> int:
        """Return how many of the last characters may begin a sequence."""
        if not text or text[-1] not in self._last:
            return 0
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                return length
        return 0


class StopSequences:
    """An `Upstream` whose answers end at the request's `stop`, which it need not know of."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    def __call__(self, request: ChatRequest) -> AbstractAsyncContextManager[Batches]:
        if "stop" not in request.options:
            return self._upstream(request)
        return self._stopping(request)

    @asynccontextmanager
    async def _stopping(self, request: ChatRequest) -> AsyncIterator[Batches]:
        sequences = read_stop(request.options["stop"])
        options = {name: value for name, value in request.options.items() if name != "stop"}
        async with self._upstream(replace(request, options=options)) as batches:
            yield _stopped(batches, StopText(sequences), request.notes) if sequences else batches


def read_stop(stop: Any) -> list[str]:
    """Return the sequences that a request names. Raises InvalidRequest."""
    sequences = [stop] if isinstance(stop, str) else stop
    if not isinstance(sequences, list) or len(sequences) > MOST_SEQUENCES:
        raise InvalidRequest(
            f"stop should be a string, or a list of at most {MOST_SEQUENCES}", param="stop"
        )
    for sequence in sequences:
        if not isinstance(sequence, str) or not 0 < len(sequence) <= LONGEST_SEQUENCE:
            raise InvalidRequest(
                f"stop should hold strings of 1 to {LONGEST_SEQUENCE} characters", param="stop"
            )
    return sequences


async def _stopped(
    batches: Batches, text: StopText, notes: Notes
) -> AsyncIterator[Sequence[Event]]:
    """Yield the batches as far as the first sequence, and the answer's end behind it."""
    while True:
        try:
            batch = await anext(batches)
        except StopAsyncIteration:
            return
        except QwenASGIError:
            # What came before it goes out first.
            held = text.close()
            if held:
                yield [TextDelta(held)]
            raise
        events: list[Event] = []
        for event in batch:
            if type(event) is TextDelta:
                certain = text.feed(event.text)
                if certain:
                    events.append(TextDelta(certain))
                if text.stopped:
                    notes.leave_rest(batch[batch.index(event) + 1 :])
                    yield [*events, Finish("stop")]
                    return
            elif type(event) is Finish:
                held = text.close()
                events += [TextDelta(held), event] if held else [event]
            else:
                events.append(event)
        if events:
            yield events
