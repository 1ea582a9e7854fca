"""The tools that a client offers, as the prompt and the parser need them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_asgi.errors import InvalidRequest

MOST_TOOLS = 128
"""As many as OpenAI allows."""

_NAME = re.compile(r"[A-Za-z0-9_.:\-]{1,256}")


@dataclass(frozen=True, slots=True)
class Tool:
    """One function."""

    name: str
    document: Mapping[str, Any]
    """The tool as the client sent it."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Its parameters' schemas, by name."""
        function = self.document.get("function")
        schema = function.get("parameters") if isinstance(function, Mapping) else None
        found = schema.get("properties") if isinstance(schema, Mapping) else None
        return found if isinstance(found, Mapping) else {}


class Toolbox:
    """The tools of one request, found by the names that models give them."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.tools = tools
        self._by_name = {tool.name: tool for tool in tools}
        self._by_likeness = _unambiguous((_likeness(tool.name), tool) for tool in tools)

    def find(self, name: str) -> Tool | None:
        """Return the tool of that name, or else the only one that it may mean (TC-55)."""
        return self._by_name.get(name) or self._by_likeness.get(_likeness(name))


def read_tools(documents: Any) -> Toolbox:
    """Return the tools that a request offers. Raises InvalidRequest."""
    if not isinstance(documents, list) or len(documents) > MOST_TOOLS:
        raise InvalidRequest(f"tools should be a list of at most {MOST_TOOLS}", param="tools")
    return Toolbox([_tool(document, f"tools[{n}]") for n, document in enumerate(documents)])


def _tool(document: Any, where: str) -> Tool:
    function = document.get("function") if isinstance(document, Mapping) else None
    if not isinstance(function, Mapping) or document.get("type", "function") != "function":
        raise InvalidRequest(
            f"{where} should be a function: this upstream knows no other tools",
            code="unsupported_parameter",
            param=where,
        )
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{where}.function.name should be letters, digits and any of _ . : -",
            param=f"{where}.function.name",
        )
    return Tool(name, document)


def _likeness(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _unambiguous(pairs: Iterable[tuple[str, Tool]]) -> dict[str, Tool]:
    found: dict[str, Tool] = {}
    twice = set()
    for key, tool in pairs:
        if key in found:
            twice.add(key)
        found[key] = tool
    return {key: tool for key, tool in found.items() if key not in twice}
