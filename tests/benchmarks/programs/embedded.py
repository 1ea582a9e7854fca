"""The gateway as a host has it that sets up no logging of its own: `uvicorn embedded:app`."""

from __future__ import annotations

from qwen_asgi import Gateway, Settings, anonymous

app = Gateway(Settings.from_env(), authenticate=anonymous)
