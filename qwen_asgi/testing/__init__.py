"""A simulated Qwen that can be told to fail, and a thread that serves any ASGI app.

    qwen = SimulatedQwen(reply="2")
    with serve(qwen) as url:
        ...  # point the gateway at `url`, then look at `qwen.requests`

It speaks both generations of the web chat at its own address, Model Studio's API below
`/compatible-mode/v1` and that of other OpenAI-compatible servers below `/v1`. W1, W2 and WE are
the numbers of facts in `wire/qwen-web.md`, DS of those in `wire/model-studio.md`.
"""

from __future__ import annotations

from qwen_asgi.testing.answers import DONE, EVENT_STREAM, JSON
from qwen_asgi.testing.faults import (
    BLOCK_PAGE,
    GARBAGE,
    HUMAN_CHECK,
    RATE_LIMITED,
    SIMULATIONS,
    Fault,
)
from qwen_asgi.testing.server import serve
from qwen_asgi.testing.simulated_qwen import (
    MODEL_STUDIO,
    MODELS,
    OPENAI,
    THINKING,
    RecordedRequest,
    SimulatedQwen,
)
from qwen_asgi.testing.storage import StoredFile
from qwen_asgi.testing.web import UNAUTHORIZED
from qwen_asgi.testing.web_v1 import SEARCH_FRAME

__all__ = [
    "BLOCK_PAGE",
    "DONE",
    "EVENT_STREAM",
    "GARBAGE",
    "HUMAN_CHECK",
    "JSON",
    "MODELS",
    "MODEL_STUDIO",
    "OPENAI",
    "RATE_LIMITED",
    "SEARCH_FRAME",
    "SIMULATIONS",
    "THINKING",
    "UNAUTHORIZED",
    "Fault",
    "RecordedRequest",
    "SimulatedQwen",
    "StoredFile",
    "serve",
]
