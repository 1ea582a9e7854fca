"""Alibaba Cloud Model Studio (DashScope), by its OpenAI-compatible mode.

Source: the wire notes on Model Studio, sections 2 to 4. What it does otherwise than OpenAI, and
answers with a 400 or in silence, is set right here, where the client's wish is clear.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qwen_asgi.chat import ChatRequest, ModelInfo
from qwen_asgi.errors import InvalidRequest
from qwen_asgi.upstreams._thinking import thinking_budget, wants_thinking
from qwen_asgi.upstreams.openai_compatible import OpenAICompatible

_STREAM_ONLY = re.compile(r"qwq|qvq|omni", re.IGNORECASE)
"""Models that answer a stream and nothing else (DS-48)."""

_THINKING_ONLY = re.compile(r"qwq|qvq|-thinking", re.IGNORECASE)
"""Models that cannot be told not to think (DS-50)."""

_VISION = re.compile(r"-vl\b|-vl-|qvq|omni", re.IGNORECASE)

_OPEN_HYBRID = re.compile(r"qwen3(\.\d+)?-\d+b(-a\d+b)?$", re.IGNORECASE)
"""Open-source models that think unless told not to, and then refuse to answer in one piece
(DS-49)."""


class ModelStudio(OpenAICompatible):
    """The dialect `model-studio`. `base_url` goes up to and with `/compatible-mode/v1`."""

    name = "model-studio"

    def describe(self, model: str) -> ModelInfo:
        thinks = _THINKING_ONLY.search(model) or _OPEN_HYBRID.search(model)
        return ModelInfo(
            model,
            thinking=True if thinks else None,
            vision=True if _VISION.search(model) else None,
            stream_only=bool(_STREAM_ONLY.search(model)),
        )

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        options = dict(request.options)
        thinks = _thinking(request.model, options)
        if options.get("tools"):
            # OpenAI's default; here it is false (DS-31, Q-88).
            options.setdefault("parallel_tool_calls", True)
        body = self._document(request, options)
        if not request.stream and _must_stream(request.model, thinks):
            # The answer is put together here.
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        return body


def _thinking(model: str, options: dict[str, Any]) -> bool | None:
    """Say the client's wish to have it think, or not, as Model Studio takes it; return the wish.

    Raises InvalidRequest where a tool is demanded of a model that is to think (DS-30).
    """
    thinks = wants_thinking(options)
    budget = thinking_budget(options)
    options.pop("reasoning_effort", None)
    demands = options.get("tool_choice") == "required" or isinstance(
        options.get("tool_choice"), Mapping
    )
    if demands and options.get("tools"):
        if thinks:
            raise InvalidRequest(
                "the upstream 'model-studio' takes no demand for a tool while the model thinks: "
                "set tool_choice to auto, or enable_thinking to false",
                code="unsupported_parameter",
                param="tool_choice",
            )
        if thinks is None and not _THINKING_ONLY.search(model):
            thinks = False
    if thinks is not None:
        options["enable_thinking"] = thinks
    if thinks and budget is not None:
        options["thinking_budget"] = budget
    if thinks is False:
        # Off is off.
        options.pop("thinking_budget", None)
    return thinks


def _must_stream(model: str, thinks: bool | None) -> bool:
    """Whether a whole answer is refused, or may be: a model that thinks is asked for a stream."""
    if _STREAM_ONLY.search(model) or thinks:
        return True
    return thinks is None and bool(_OPEN_HYBRID.search(model) or _THINKING_ONLY.search(model))
