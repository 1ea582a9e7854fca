"""What is known of one chat when it has ended: the record that is logged and can be measured."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from qwen_asgi.chat import Usage
from qwen_asgi.errors import QwenASGIError
from qwen_asgi.request_log import printable

logger = logging.getLogger(__name__)


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
    usage: Usage | None = None
    started: float = field(default_factory=time.monotonic)
    first_event: float | None = None
    """Both in seconds of the monotonic clock."""

    def begun(self) -> None:
        """The upstream was entered, and that is when its first events are there."""
        self.first_event = time.monotonic()

    def failed(self, error: QwenASGIError) -> None:
        self.end = error.code or error.type

    def log(self) -> None:
        """Write the one line of this chat."""
        if not logger.isEnabledFor(logging.INFO):
            return
        now = time.monotonic()
        first = None if self.first_event is None else self.first_event - self.started
        logger.info(
            "chat %s: client=%s model=%s stream=%s status=%d end=%s first=%s total=%.3fs "
            "prompt_tokens=%s completion_tokens=%s",
            self.request_id,
            printable(self.client, 64),
            self.model,
            self.stream,
            self.status,
            self.end,
            "-" if first is None else f"{first:.3f}s",
            now - self.started,
            "-" if self.usage is None else self.usage.prompt_tokens,
            "-" if self.usage is None else self.usage.completion_tokens,
        )
