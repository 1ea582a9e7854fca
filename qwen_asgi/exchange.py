"""What is known of one chat when it has ended: the record that is logged and can be measured."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Literal

from qwen_asgi.chat import Notes, Usage
from qwen_asgi.errors import (
    Overloaded,
    QwenASGIError,
    RequestError,
    ShuttingDown,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamTruncated,
)
from qwen_asgi.request_log import printable

logger = logging.getLogger(__name__)

Reason = Literal[
    "done", "client_left", "cancelled", "upstream_cut", "timeout", "shutdown", "refused", "error"
]

_REASONS: tuple[tuple[type[QwenASGIError], Reason], ...] = (
    (UpstreamTruncated, "upstream_cut"),
    (UpstreamTimeout, "timeout"),
    (ShuttingDown, "shutdown"),
    # By this gateway, or by the upstream with good reason.
    (RequestError, "refused"),
    (Overloaded, "refused"),
    (UpstreamRateLimited, "refused"),
    (UpstreamRefused, "refused"),
)


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One chat, from its first byte to its end. It holds no prompt, no answer and no key."""

    request_id: str
    client: str
    model: str = ""
    stream: bool = False
    status: int = 200
    """The HTTP status of an error; 200 for a stream that failed after it had begun."""
    end: str = "cancelled"
    """How it ended: `done`, `client_left`, `cancelled` by the host, or an error's code."""
    reason: Reason = "cancelled"
    """The same in few words, that can be counted."""
    usage: Usage | None = None
    """Of the whole answer; what was told of one that was left is in `notes`."""
    notes: Notes | None = None
    """Of several upstreams, which was asked last, and how often one was."""
    started: float = field(default_factory=time.monotonic)
    first_event: float | None = None
    ended: float | None = None
    """All three in seconds of the monotonic clock."""

    def begun(self) -> None:
        """The upstream was entered, and that is when its first events are there."""
        self.first_event = time.monotonic()

    def done(self) -> None:
        """The upstream's end was seen, and all of it went out."""
        self.end = self.reason = "done"

    def left(self) -> None:
        """The client was gone before the end."""
        self.end = self.reason = "client_left"

    def failed(self, error: QwenASGIError) -> None:
        self.end = error.code or error.type
        self.reason = next((name for kind, name in _REASONS if isinstance(error, kind)), "error")

    def log(self) -> None:
        """Write the one line of this chat, which has ended; of one that is read on without its
        client, when that has ended too."""
        self.ended = time.monotonic()
        rest = self.notes.rest if self.notes else None
        if rest is None:
            self._log()
        else:
            rest.when_over(self._log)

    def _log(self) -> None:
        # It becomes text when the line is made, if one is made of it.
        logger.info("chat %s", self)

    def __str__(self) -> str:
        first, notes = self.first_event, self.notes
        rest = notes.rest if notes else None
        left = notes.left if notes else None
        if self.usage is not None and self.usage.certainty == "estimated":
            # It is of all that came, also of what was left.
            left = None
        known = (self.usage, rest.usage if rest else None, left)
        usage = reduce(add, filter(None, known)) if any(known) else None
        read_on = f" read_on={rest.end}" if rest else ""
        certainty = f" usage={usage.certainty}" if usage and usage.certainty != "exact" else ""
        asked = (
            f" upstream={notes.upstream} attempts={notes.attempts}"
            if notes and notes.upstream
            else ""
        )
        until = time.monotonic() if self.ended is None else self.ended
        return (
            f"{self.request_id}: client={printable(self.client, 64)} "
            f"model={printable(self.model, 256)} "
            f"stream={self.stream} status={self.status} end={self.end} "
            f"first={'-' if first is None else f'{first - self.started:.3f}s'} "
            f"total={until - self.started:.3f}s "
            f"prompt_tokens={'-' if usage is None else usage.prompt_tokens} "
            f"completion_tokens={'-' if usage is None else usage.completion_tokens}"
            f"{certainty}{read_on}{asked}"
        )
