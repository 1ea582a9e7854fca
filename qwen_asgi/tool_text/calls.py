"""One whole call, or several, as a model wrote them between its tags: strictly read first.

What is mended is what the wire notes say is safe (TC-44 to TC-52): another name for a field, a
wrapping, a code fence, single quotes, a comma or closing braces too many or too few. A string that
was cut off is never closed: half a file would be written.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json

from qwen_asgi.tool_text.tools import Tool, Toolbox

_NAMES = ("name", "tool", "function", "tool_name")
_ARGUMENTS = ("arguments", "parameters", "params", "args", "input")
_FENCE = re.compile(r"\A\s*```[a-zA-Z]*\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)
FUNCTION = re.compile(
    r"\A\s*<\s*(?:function|invoke)\s*(?:=\s*|\s+name\s*=\s*)\"?([^\"<>\s]+)\"?\s*>(.*)\Z",
    re.DOTALL | re.IGNORECASE,
)
PARAMETER = re.compile(
    r"<\s*parameter\s*(?:=\s*|\s+name\s*=\s*)\"?([^\"<>\s]+)\"?\s*>", re.IGNORECASE
)
_PARAMETER_END = re.compile(r"\n?</\s*parameter\s*>", re.IGNORECASE)
_FUNCTION_END = re.compile(r"\n?</\s*(?:function|invoke)\s*>", re.IGNORECASE)
_COMMA = re.compile(r",(\s*[}\]])")

DEEPEST = 100
"""Levels of braces that are closed for the model."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that can be made: its tool is known, and its arguments are a JSON object."""

    name: str
    arguments: str


def read_calls(
    body: str, toolbox: Toolbox, *, named: str = "", is_cut: bool = False
) -> list[Call] | None:
    """Return the calls in the text between two tags, or None if it holds none that can be made.

    `named` is the name that the opening tag told. `is_cut` says that the closing tag never came:
    then a value that has no end of its own is no value.
    """
    function = FUNCTION.match(body)
    if function is not None:
        return _xml_call(function[1], function[2], toolbox, is_cut=is_cut)
    fence = _FENCE.match(body)
    value = _value(fence[1] if fence else body)
    values = value if isinstance(value, list) else [value]
    if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
        values = value["tool_calls"]
    calls = [_json_call(item, toolbox, named) for item in values]
    made = [call for call in calls if call is not None]
    # Of several the good ones are not made alone: what belongs to them is not known (TC-64).
    return made if made and len(made) == len(calls) else None


def _json_call(value: Any, toolbox: Toolbox, named: str) -> Call | None:
    if not isinstance(value, dict):
        return None
    inner = value.get("function")
    if isinstance(inner, dict):
        return _json_call(inner, toolbox, named)
    name = next((value[key] for key in _NAMES if isinstance(value.get(key), str)), "")
    has_arguments = any(key in value for key in _ARGUMENTS)
    if named and not name and not has_arguments:
        # The tag has the name; what stands in it is the arguments.
        return _call(named, value, toolbox)
    arguments = next((value[key] for key in _ARGUMENTS if key in value), None)
    return _call(name or named, arguments, toolbox)


def _call(name: str, arguments: Any, toolbox: Toolbox) -> Call | None:
    tool = toolbox.find(name)
    if tool is None:
        return None
    if isinstance(arguments, str) and arguments.strip():
        # JSON text in the place of JSON (TC-48).
        arguments = _value(arguments)
        if not isinstance(arguments, dict):
            return None
    if not isinstance(arguments, dict):
        arguments = {}
    return _made(tool, arguments)


def _made(tool: Tool, arguments: dict[str, Any]) -> Call | None:
    try:
        return Call(tool.name, to_json(arguments, inf_nan_mode="null").decode())
    except ValueError:
        # Half a character, which no JSON can hold.
        return None


def _value(text: str) -> Any:
    """Return what a text holds, mended where it must be; None for nothing."""
    text = text.strip()
    for candidate in _candidates(text):
        for read in (from_json, _python_literal):
            try:
                return read(candidate)
            except ValueError:
                continue
    return None


def _candidates(text: str) -> list[str]:
    closed = _closed(text)
    texts = [text] if closed is None else [text, closed]
    return [*texts, *(_COMMA.sub(r"\1", candidate) for candidate in texts)]


def _closed(text: str) -> str | None:
    """Return the text with the braces closed that it left open; None inside a string (TC-52)."""
    open_braces: list[str] = []
    in_string = escaped = False
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "{[":
            open_braces.append("}" if character == "{" else "]")
        elif character in "}]" and (not open_braces or open_braces.pop() != character):
            return None
    if in_string or not open_braces or len(open_braces) > DEEPEST:
        return None
    return text + "".join(reversed(open_braces))


_WORDS = {"true": "True", "false": "False", "null": "None"}
_WORD = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\b(?:true|false|null)\b", re.DOTALL)


def _python_literal(text: str) -> Any:
    """Read JSON as Python writes it. Raises ValueError where it is none."""
    try:
        value = ast.literal_eval(_WORD.sub(lambda found: _WORDS.get(found[0], found[0]), text))
        if _is_json(value):
            return value
    except (SyntaxError, TypeError, RecursionError, MemoryError) as exc:
        raise ValueError from exc
    raise ValueError


def _is_json(value: Any) -> bool:
    match value:
        case None | str() | bool() | int() | float():
            return True
        case list():
            return all(map(_is_json, value))
        case dict():
            return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    return False


# The form of Qwen3-Coder (TC-20 to TC-25).


def _xml_call(name: str, body: str, toolbox: Toolbox, *, is_cut: bool) -> list[Call] | None:
    tool = toolbox.find(name)
    if tool is None:
        return None
    values, is_whole = _parameters(body)
    if is_cut and not is_whole:
        return None
    arguments = {key: typed(value, tool, key) for key, value in values.items()}
    call = _made(tool, arguments)
    return None if call is None else [call]


def _parameters(body: str) -> tuple[dict[str, str], bool]:
    """Return the values by name, and whether the last one has an end."""
    found = list(PARAMETER.finditer(body))
    values: dict[str, str] = {}
    is_whole = True
    for n, opener in enumerate(found):
        end = found[n + 1].start() if n + 1 < len(found) else len(body)
        text = body[opener.end() : end]
        closer = _PARAMETER_END.search(text) or _FUNCTION_END.search(text)
        is_whole = closer is not None or n + 1 < len(found)
        value = text[: closer.start()] if closer else text.removesuffix("\n")
        values[opener[1]] = value.removeprefix("\n")
    return values, is_whole


def is_text(tool: Tool, parameter: str) -> bool:
    """Whether a parameter is text and nothing else by its schema."""
    schema = tool.parameters.get(parameter)
    return isinstance(schema, Mapping) and _kinds(schema) == {"string"}


def typed(value: str, tool: Tool, parameter: str) -> Any:
    """Return a parameter's text as what its schema says it is (TC-22); text where it is nothing
    else."""
    schema = tool.parameters.get(parameter)
    kinds = _kinds(schema) if isinstance(schema, Mapping) else set()
    text = value.strip()
    if text.lower() == "null" and (kinds - {"string"} or not kinds):
        return None
    if not kinds or kinds <= {"string"}:
        return value
    for read in (from_json, _python_literal):
        try:
            found = read(text)
        except ValueError:
            continue
        if _is_of(found, kinds):
            return found
    if "boolean" in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    return value


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    kind = schema.get("type")
    if isinstance(kind, str):
        return {kind}
    if isinstance(kind, list):
        return {name for name in kind if isinstance(name, str)}
    options = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(options, list):
        return {k for option in options if isinstance(option, Mapping) for k in _kinds(option)}
    return set()


def _is_of(value: Any, kinds: set[str]) -> bool:
    match value:
        case None:
            return "null" in kinds
        case bool():
            return "boolean" in kinds
        case int():
            return bool(kinds & {"integer", "number"})
        case float():
            return "number" in kinds
        case dict():
            return "object" in kinds
        case list():
            return "array" in kinds
    return False
