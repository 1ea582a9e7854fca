"""What both generations of the simulated web chat have in common: counts, models, refusals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import uuid4

from qwen_asgi.testing.answers import Answer, dump, whole_answer
from qwen_asgi.testing.replies import Reply

UNAUTHORIZED = b'{"detail": "401 Unauthorized"}\n'


def failed(code: str, details: str, **extra: Any) -> Answer:
    """Say no with HTTP 200 (WE-01)."""
    data = {"code": code, "details": details, **extra}
    return whole_answer(dump({"success": False, "request_id": str(uuid4()), "data": data}))


def succeeded(data: Any) -> Answer:
    return whole_answer(dump({"success": True, "request_id": str(uuid4()), "data": data}))


def usage(reply: Reply, tokens: int, **details: int) -> dict[str, Any]:
    if not reply.counts:
        return {}
    counts = {
        "input_tokens": reply.prompt_tokens,
        "output_tokens": tokens,
        "total_tokens": reply.prompt_tokens + tokens,
        "output_tokens_details": {**details, "text_tokens": tokens},
        "input_tokens_details": {"text_tokens": reply.prompt_tokens},
    }
    return {"usage": counts}


def models(names: Iterable[str]) -> list[dict[str, Any]]:
    return [_model(name) for name in names]


def _model(name: str) -> dict[str, Any]:
    """Return one entry of the model list (W1-35)."""
    capabilities = {"vision": "vl" in name or "qvq" in name, "document": True, "citations": True}
    meta = {
        "profile_image_url": "/static/favicon.png",
        "description": "simulated",
        "capabilities": capabilities,
        "short_description": "simulated",
        "max_context_length": 131072,
        "abilities": {ability: 1 for ability, present in capabilities.items() if present},
        "chat_type": ["t2t", "search", "artifacts"],
        "mcp": [],
        "modality": ["text"],
        "max_generation_length": 8192,
    }
    info = {
        "id": name,
        "user_id": "00000000-0000-4000-8000-000000000001",
        "base_model_id": None,
        "name": name,
        "meta": meta,
        "access_control": None,
        "is_active": True,
        "is_visitor_active": True,
        "updated_at": 1732711466,
        "created_at": 1732711466,
    }
    entry = {"id": name, "name": name, "object": "model", "owned_by": "openai"}
    return {**entry, "info": info, "preset": True, "action_ids": []}
