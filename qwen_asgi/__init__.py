"""An OpenAI-compatible API over Qwen upstreams, as an ASGI app that mounts anywhere.

Importing this package does nothing but define names.
"""

from __future__ import annotations

from qwen_asgi.app import Gateway
from qwen_asgi.authentication import Principal, anonymous
from qwen_asgi.errors import QwenASGIError
from qwen_asgi.mount import GatewayMiddleware, combine_lifespans
from qwen_asgi.settings import Settings, SettingsError

__version__ = "0.1.0"

__all__ = [
    "Gateway",
    "GatewayMiddleware",
    "Principal",
    "QwenASGIError",
    "Settings",
    "SettingsError",
    "__version__",
    "anonymous",
    "combine_lifespans",
]
