"""OpenAI's own schemas, as validators; where they come from says the licence beside them.

Their format `unixtime` is a plain integer to a validator, and every `oneOf` in what we write is
told apart by a constant.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

FOLDER = Path(__file__).parent / "data" / "schema"


def check_chunk(document: Any) -> None:
    """Raise where `document` is no chunk of a streamed answer."""
    _validator("chat", "CreateChatCompletionStreamResponse").validate(document)


def check_answer(document: Any) -> None:
    """Raise where `document` is no whole answer."""
    _validator("chat", "CreateChatCompletionResponse").validate(document)


def check_request(document: Any) -> None:
    """Raise where `document` is no request that OpenAI would take."""
    _validator("chat", "CreateChatCompletionRequest").validate(document)


def check_error(document: Any) -> None:
    """Raise where `document` is no error, or holds more than one."""
    _validator("error", "ErrorResponse").validate(document)
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "type", "param", "code"}


def check_models(document: Any) -> None:
    _validator("models", "ListModelsResponse").validate(document)


def check_model(document: Any) -> None:
    _validator("models", "Model").validate(document)


@cache
def _validator(file: str, root: str) -> Draft202012Validator:
    document = json.loads((FOLDER / f"{file}.json").read_bytes())
    return Draft202012Validator({**document, "$ref": f"#/$defs/{root}"})
