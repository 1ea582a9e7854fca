"""A simulated Qwen web chat that can be told to fail, and a thread that serves any ASGI app.

    qwen = SimulatedQwen(reply="2")
    with serve(qwen) as url:
        ...  # point the gateway at `url`, then look at `qwen.requests`

It speaks generation 1 as public programs read it from January to May 2025. W1 and WE are the
numbers of those facts in `wire/qwen-web.md`.
"""

from __future__ import annotations

from qwen_asgi.testing.answers import EVENT_STREAM, JSON
from qwen_asgi.testing.faults import (
    BLOCK_PAGE,
    GARBAGE,
    HUMAN_CHECK,
    RATE_LIMITED,
    SIMULATIONS,
    UNAUTHORIZED,
    Fault,
)
from qwen_asgi.testing.server import serve
from qwen_asgi.testing.simulated_qwen import (
    DONE,
    MODELS,
    SEARCH_FRAME,
    THINKING,
    RecordedRequest,
    SimulatedQwen,
)

__all__ = [
    "BLOCK_PAGE",
    "DONE",
    "EVENT_STREAM",
    "GARBAGE",
    "HUMAN_CHECK",
    "JSON",
    "MODELS",
    "RATE_LIMITED",
    "SEARCH_FRAME",
    "SIMULATIONS",
    "THINKING",
    "UNAUTHORIZED",
    "Fault",
    "RecordedRequest",
    "SimulatedQwen",
    "serve",
]
