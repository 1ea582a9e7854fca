"""Tools for an upstream that knows none: asked for in the prompt, and read out of the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

from qwen_asgi.chat import Batches, ChatRequest, Event, Finish, Message, TextDelta, Upstream
from qwen_asgi.errors import InvalidRequest, QwenASGIError, UpstreamInvalidResponse
from qwen_asgi.ids import IdSource
from qwen_asgi.tool_text.parser import ToolText
from qwen_asgi.tool_text.prompt import Form, as_text, named_by, with_tools
from qwen_asgi.tool_text.tools import Toolbox, read_tools

FIELDS = {"tools", "tool_choice", "parallel_tool_calls"}
"""What the upstream need not know of."""


class EmulatedTools:
    """An `Upstream` to which tools are text. A chat without tools passes through as it is."""

    def __init__(self, upstream: Upstream, *, form: Form = "hermes") -> None:
        self._upstream = upstream
        self._form: Form = form
        self._ids = IdSource()

    def __call__(self, request: ChatRequest) -> AbstractAsyncContextManager[Batches]:
        if request.options.get("tools"):
            return self._with_tools(request)
        if _speaks_of_tools(request.messages):
            # A history of tools that are offered no more.
            messages = as_text(request.messages, form=self._form)
            return self._upstream(replace(_without(request), messages=messages))
        return self._upstream(request)

    @asynccontextmanager
    async def _with_tools(self, request: ChatRequest) -> AsyncIterator[Batches]:
        options = request.options
        toolbox = read_tools(options["tools"])
        choice = _choice(options.get("tool_choice", "auto"), toolbox)
        plain = _without(request)
        if choice == "none":
            messages = as_text(request.messages, form=self._form)
            async with self._upstream(replace(plain, messages=messages)) as batches:
                yield batches
            return
        parallel = options.get("parallel_tool_calls") is not False
        messages = with_tools(
            request.messages, toolbox, form=self._form, choice=choice, parallel=parallel
        )
        parser = ToolText(toolbox, self._new_id, most=None if parallel else 1)
        async with self._upstream(replace(plain, messages=messages)) as batches:
            yield _read(batches, parser, is_demanded=choice != "auto")

    def _new_id(self) -> str:
        return f"call_{self._ids.next()}"


def _speaks_of_tools(messages: Sequence[Message]) -> bool:
    """Whether a conversation holds calls or results; asked of every chat, and most are long."""
    for message in messages:
        if message.role == "tool" or (message.extra and message.extra.get("tool_calls")):
            return True
    return False


def _without(request: ChatRequest) -> ChatRequest:
    """Return the request as one that has nothing to do with tools."""
    options = {name: value for name, value in request.options.items() if name not in FIELDS}
    return replace(request, options=options)


def _choice(choice: Any, toolbox: Toolbox) -> Any:
    if choice in ("none", "auto", "required"):
        return choice
    if isinstance(choice, Mapping):
        name = named_by(choice)
        if name in {tool.name for tool in toolbox.tools}:
            return choice
        raise InvalidRequest(
            f"tool_choice names {name!r}, which is not among the tools", param="tool_choice"
        )
    raise InvalidRequest(
        "tool_choice should be none, auto, required or a function's name", param="tool_choice"
    )


async def _read(
    batches: Batches, parser: ToolText, *, is_demanded: bool
) -> AsyncIterator[Sequence[Event]]:
    """Yield the batches with the calls that their text holds."""
    async for batch in batches:
        events: list[Event] = []
        try:
            for event in batch:
                if type(event) is TextDelta:
                    events += parser.feed(event.text)
                elif type(event) is Finish and event.reason == "length":
                    events += [*parser.cut(), event]
                elif type(event) is Finish:
                    events += parser.close()
                    events.append(_finish(event, parser, is_demanded))
                else:
                    events.append(event)
        except QwenASGIError:
            # What came before it goes out first.
            events += parser.flush()
            if events:
                yield events
            raise
        if events:
            yield events


def _finish(finish: Finish, parser: ToolText, is_demanded: bool) -> Finish:
    if parser.calls:
        return Finish("tool_calls")
    if is_demanded and finish.reason == "stop":
        raise UpstreamInvalidResponse(
            "the model called no tool although one was demanded", code="upstream_no_tool_call"
        )
    return finish
