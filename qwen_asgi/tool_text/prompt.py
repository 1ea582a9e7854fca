"""Tools, calls and results as text in a conversation, as Qwen's models were trained to read them.

The shape of the blocks is the models' own (TC-01 to TC-05); the words around them are ours. The
form is what the model is asked to write its calls in: `hermes`, JSON between tags, `coder`, that of
Qwen3-Coder, or `brackets`, for a web chat that takes the tags for its own tools' calls (TC-59).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic_core import from_json, to_json

from qwen_asgi.chat import Message
from qwen_asgi.errors import InvalidRequest
from qwen_asgi.tool_text.tools import Toolbox

Form = Literal["hermes", "coder", "brackets"]

EMPTY_RESULT = "(the tool returned nothing)"
"""A result that is left out loses the turn (TC-60)."""

_ASK = {
    "hermes": """\
To call a tool, write a JSON object with its name and its arguments between these tags, \
and nothing behind the last call:
<tool_call>
{"name": "TOOL", "arguments": {"ARGUMENT": "VALUE"}}
</tool_call>""",
    "coder": """\
To call a tool, write its name and each of its arguments in these tags, and nothing \
behind the last call:
<tool_call>
<function=TOOL>
<parameter=ARGUMENT>
VALUE
</parameter>
</function>
</tool_call>""",
    "brackets": """\
To call a tool, write a JSON object with its name and its arguments between these marks, \
and nothing behind the last call:
[TOOL_CALL]
{"name": "TOOL", "arguments": {"ARGUMENT": "VALUE"}}
[/TOOL_CALL]""",
}


def with_tools(
    messages: Sequence[Message], toolbox: Toolbox, *, form: Form, choice: Any, parallel: bool
) -> tuple[Message, ...]:
    """Return the conversation with the tools in its instructions, and calls and results as text.

    `choice` is OpenAI's `tool_choice`, of which `none` has been dealt with before.
    """
    written = as_text(messages, form=form)
    if not toolbox.tools:
        return written
    block = "\n\n".join(_chapter(toolbox, form, choice, parallel))
    first = written[0]
    if first.role == "system":
        joined = f"{first.text}\n\n{block}" if first.text else block
        return (replace(first, content=joined), *written[1:])
    return (Message("system", block), *written)


def as_text(messages: Sequence[Message], *, form: Form) -> tuple[Message, ...]:
    """Return the conversation with its calls and results as text.

    Results that follow one another stand in one user's turn (TC-04). Raises InvalidRequest for a
    call or a result that is not one.
    """
    written: list[Message] = []
    results: list[str] = []
    for n, message in enumerate(messages):
        if message.role in ("tool", "function"):
            results.append(f"<tool_response>\n{message.text or EMPTY_RESULT}\n</tool_response>")
            continue
        if results:
            written.append(Message("user", "\n".join(results)))
            results = []
        calls = message.extra.get("tool_calls")
        written.append(_with_calls(message, calls, message.where(n), form) if calls else message)
    if results:
        written.append(Message("user", "\n".join(results)))
    return tuple(written)


def _chapter(toolbox: Toolbox, form: Form, choice: Any, parallel: bool) -> Iterable[str]:
    listed = "\n".join(to_json(tool.document).decode() for tool in toolbox.tools)
    yield "# Tools"
    yield f"You may call these tools where they help with the request:\n<tools>\n{listed}\n</tools>"
    yield _ASK[form]
    if choice == "required":
        yield "Now call at least one tool; do not answer without one."
    elif isinstance(choice, Mapping):
        yield f"Now call the tool {named_by(choice)} and no other; do not answer without it."
    if not parallel:
        yield "Call one tool at a time."


def named_by(choice: Mapping[str, Any]) -> str:
    """Return the name of the tool that a `tool_choice` demands. Raises InvalidRequest."""
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise InvalidRequest(
            "tool_choice should be none, auto, required or a function's name",
            param="tool_choice",
        )
    return name


def _with_calls(message: Message, calls: Any, where: str, form: Form) -> Message:
    if not isinstance(calls, list):
        raise InvalidRequest(f"{where}.tool_calls should be a list", param=f"{where}.tool_calls")
    blocks = [_block(call, f"{where}.tool_calls[{n}]", form) for n, call in enumerate(calls)]
    text = "\n".join([*([message.text] if message.text else []), *blocks])
    extra = {name: value for name, value in message.extra.items() if name != "tool_calls"}
    return replace(message, content=text, extra=extra)


def _block(call: Any, where: str, form: Form) -> str:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise InvalidRequest(f"{where} should have a function with a name", param=where)
    arguments = _arguments(function.get("arguments"))
    if form == "coder":
        return _coder_block(name, arguments)
    head, foot = (
        ("[TOOL_CALL]", "[/TOOL_CALL]") if form == "brackets" else ("<tool_call>", "</tool_call>")
    )
    body = to_json({"name": name, "arguments": arguments}).decode()
    return f"{head}\n{body}\n{foot}"


def _arguments(text: Any) -> Any:
    """Return the arguments of a call as the client has them back: JSON text, or what it made of
    it."""
    if not isinstance(text, str) or not text.strip():
        return text or {}
    try:
        return from_json(text)
    except ValueError:
        return text


def _coder_block(name: str, arguments: Any) -> str:
    values = arguments if isinstance(arguments, Mapping) else {"arguments": arguments}
    parameters = "".join(
        f"<parameter={key}>\n{_coder_value(value)}\n</parameter>\n" for key, value in values.items()
    )
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


def _coder_value(value: Any) -> str:
    return value if isinstance(value, str) else to_json(value).decode()
