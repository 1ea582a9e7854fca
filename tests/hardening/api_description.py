"""An OpenAPI description of all that the gateway serves, with OpenAI's own schemas.

What may be answered with which status is told by the errors themselves, as in the README's table.
An `internal_error` stands nowhere in it: that is a bug.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from qwen_asgi import errors
from tests.schemas import FOLDER

MODELS = ("qwen-max-latest", "qwen-plus-latest")

_TOKENS = {"type": ["integer", "null"], "minimum": 1, "maximum": 2**31 - 1}
_BOUNDS: Mapping[str, Any] = {
    "model": {"enum": list(MODELS)},
    "max_tokens": _TOKENS,
    "max_completion_tokens": _TOKENS,
    "n": {"type": ["integer", "null"], "minimum": 1, "maximum": 3},
}
"""What OpenAI's schema leaves open and no server takes; and no more choices than a trial has time
for."""

_GENERAL = (401, 403, 408, 413, 429, 431, 500, 503)
"""What may come of any request that needs a credential."""


def description() -> dict[str, Any]:
    """Return the description, of OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "qwen_asgi", "version": "1"},
        "paths": {
            "/v1/chat/completions": _path(post=_chat()),
            "/v1/models": _path(get=_get("ListModelsResponse", *_GENERAL)),
            "/v1/models/{model}": {
                "parameters": [_model()],
                **_path(get=_get("Model", 404, *_GENERAL)),
            },
            "/healthz": _path(get=_probe(431)),
            "/readyz": _path(get=_probe(431, 503)),
        },
        "components": {
            "schemas": {**_schemas("chat"), **_schemas("models"), "Status": _status()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _schemas(file: str) -> dict[str, Any]:
    text = (FOLDER / f"{file}.json").read_text(encoding="utf-8")
    schemas: dict[str, Any] = json.loads(text.replace("#/$defs/", "#/components/schemas/"))["$defs"]
    if file == "chat":
        name = "CreateChatCompletionRequest"
        request = _merged(schemas[name], schemas)
        schemas[name] = {**request, "properties": {**request["properties"], **_BOUNDS}}
    return schemas


def _merged(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object's schema in one piece: of an `allOf` too little is tried."""
    if "$ref" in schema:
        return _merged(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    parts = [_merged(part, schemas) for part in schema.get("allOf", ())] + [schema]
    return {
        "type": "object",
        "properties": {k: v for part in parts for k, v in part.get("properties", {}).items()},
        "required": [name for part in parts for name in part.get("required", ())],
    }


def _path(**operations: Mapping[str, Any]) -> dict[str, Any]:
    """Return the operations of a path with those that go with them."""
    head = {"head": _without_bodies(operations["get"])} if "get" in operations else {}
    return {**operations, **head, "options": {"responses": {"204": _allowing("No content")}}}


def _chat() -> dict[str, Any]:
    return {
        "security": [{"key": []}],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _named("CreateChatCompletionRequest")}},
        },
        "responses": {
            "200": {
                "description": "An answer, whole or streamed",
                "content": {
                    "application/json": {"schema": _named("CreateChatCompletionResponse")},
                    "text/event-stream": {},
                },
            },
            **_refusals(400, 415, *_GENERAL),
        },
    }


def _get(schema: str, *statuses: int) -> dict[str, Any]:
    document = {"description": "A document", "content": _json(_named(schema))}
    return {
        "security": [{"key": []}],
        "responses": {"200": document, **_refusals(*statuses)},
    }


def _probe(*statuses: int) -> dict[str, Any]:
    document = {"description": "It is so", "content": _json(_named("Status"))}
    return {"responses": {"200": document, **_refusals(*statuses)}}


def _status() -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"status": {"enum": ["ok", "ready"]}},
        "required": ["status"],
        "additionalProperties": False,
    }


def _without_bodies(operation: Mapping[str, Any]) -> dict[str, Any]:
    responses = {
        status: {name: part for name, part in response.items() if name != "content"}
        for status, response in operation["responses"].items()
    }
    return {**operation, "responses": responses}


def _model() -> dict[str, Any]:
    return {
        "name": "model",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
        "examples": {name: {"value": name} for name in MODELS},
    }


def _named(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


# Errors.


def _refusals(*statuses: int) -> dict[str, Any]:
    return {
        str(status): {
            "description": HTTPStatus(status).phrase,
            "content": _json(_error(_types(status))),
        }
        for status in sorted({*statuses, 405})
    }


def _allowing(what: str) -> dict[str, Any]:
    header = {"required": True, "schema": {"type": "string", "pattern": "OPTIONS"}}
    return {"description": what, "headers": {"Allow": header}}


def _types(status: int) -> list[str]:
    """Return the types of the errors of a status, without that of a bug."""
    kinds = _with_all_below(errors.QwenASGIError)
    bugs = (errors.QwenASGIError, errors.GatewayError, errors.InternalError)
    types = {kind.type for kind in kinds if kind.status == status and kind not in bugs}
    assert types, status
    return sorted(types)


def _with_all_below(kind: type[errors.QwenASGIError]) -> list[type[errors.QwenASGIError]]:
    return [kind, *(one for child in kind.__subclasses__() for one in _with_all_below(child))]


def _error(types: Sequence[str]) -> dict[str, Any]:
    """Return OpenAI's `ErrorResponse` with nothing beside what it names, and one of these types."""
    schemas = json.loads((FOLDER / "error.json").read_bytes())["$defs"]
    response, error = dict(schemas["ErrorResponse"]), dict(schemas["Error"])
    error["properties"] = {**error["properties"], "type": {"enum": list(types)}}
    error["additionalProperties"] = False
    return {**response, "properties": {"error": error}, "additionalProperties": False}
