"""JSON documents as upstreams send them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from qwen_asgi.errors import UpstreamInvalidResponse, UpstreamTruncated

LONGEST_NAME = 256
"""Characters of a model's name."""


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


def listed_models(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of a list of models, each with an `id`: `{data: [{id, ...}]}`.

    Those whose names no log, header or terminal should be given are left out. Raises
    UpstreamInvalidResponse when there is none left.
    """
    data = document.get("data")
    models: list[Any] = data if isinstance(data, list) else []
    named = [model for model in models if isinstance(model, dict) and _is_name(model.get("id"))]
    if not named:
        raise UpstreamInvalidResponse("the upstream's list of models holds no model")
    return named


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isprintable()


def count_in(entry: Mapping[str, Any], *names: str) -> int | None:
    """Return the first of these fields that is a positive count."""
    for name in names:
        value = entry.get(name)
        if type(value) is int and value > 0:
            return value
    return None
