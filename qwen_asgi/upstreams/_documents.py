"""JSON documents as upstreams send them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from qwen_asgi.errors import UpstreamInvalidResponse, UpstreamTruncated


def read_object(data: bytes) -> dict[str, Any] | None:
    """Return the JSON object that `data` is, or None if it is none."""
    try:
        document = from_json(data)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def read_document(body: bytes) -> Mapping[str, Any]:
    """Return a body's JSON object. Raises UpstreamTruncated or UpstreamInvalidResponse."""
    try:
        document = from_json(body)
    except ValueError as exc:
        # A refusal may stand in a line of its own before something else (WE-14).
        document = read_object(body.split(b"\n", 1)[0])
        if document is None:
            if "EOF" in str(exc):
                raise UpstreamTruncated("the upstream's answer broke off") from None
            raise UpstreamInvalidResponse("the upstream's answer is not JSON") from None
    if not isinstance(document, dict):
        raise UpstreamInvalidResponse("the upstream's answer is not a JSON object")
    return document


def model_names(document: Mapping[str, Any]) -> list[str]:
    """Return the names in a list of models: `{data: [{id, ...}]}`.

    Raises UpstreamInvalidResponse when there is none.
    """
    data = document.get("data")
    models = data if isinstance(data, list) else []
    names = [model.get("id") for model in models if isinstance(model, dict)]
    named = [name for name in names if isinstance(name, str) and name]
    if not named:
        raise UpstreamInvalidResponse("the upstream's list of models holds no model")
    return named
