"""Structured outputs for an upstream that knows none: asked for in words, and checked.

The answer is given out while it is written, as long as it is JSON beyond doubt; what stands around
the one object that is asked for (a greeting, a code fence) is left away. At its end it is checked
against the schema, with a well-kept library: an answer that does not follow it ends with an error
that says where. Patterns are told to the model and not checked, for a pattern of a client's could
hold up everybody else; no address in a schema is ever fetched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import reduce
from importlib.util import find_spec
from operator import add
from typing import Any

from pydantic_core import from_json, to_json

from qwen_asgi.chat import (
    Batches,
    ChatRequest,
    Event,
    Finish,
    Message,
    Notes,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Upstream,
    Usage,
)
from qwen_asgi.errors import InvalidRequest, UpstreamInvalidResponse
from qwen_asgi.request_log import printable
from qwen_asgi.tool_text.json_object import NotJSON, ObjectText

logger = logging.getLogger(__name__)

LONGEST_SCHEMA = 64 * 1024
"""Bytes."""

SMALL_SCHEMA = 2 * 1024
"""Bytes of one that is checked at once."""

MOST_SCHEMAS = 64
"""Those that are remembered."""

LONGEST_PREFACE = 4_096
"""Characters before the object, which are left away."""

LONGEST_ANSWER = 8 * 1024 * 1024
"""Characters of the object."""

LONGEST_SENT_BACK = 32 * 1024
"""Characters of an answer that is sent back to be put right."""

MOST_STEPS = 100_000
"""Keywords of a schema that are applied to one answer: some tenths of a second. A few references
that each name the next one twice would take hours, and every other client would wait."""

CODE = "upstream_invalid_json"

_NOT_CHECKED = ("pattern", "patternProperties", "format", "$dynamicRef")

Check = Callable[[Any], str]
"""Returns what is wrong with a value, and where; nothing if it is right."""


class JSONAnswers:
    """An `Upstream` that answers with the JSON that `response_format` asks for.

    With `repairs` an answer that is something else is sent back once, to be put right, if none of
    it went out to the client.
    """

    def __init__(self, upstream: Upstream, *, repairs: bool = False) -> None:
        self._upstream = upstream
        self._repairs = repairs
        self._checks: dict[bytes, asyncio.Task[Check]] = {}
        """By the schema: several choices of one request have the same, and so have most requests of
        one program."""

    def __call__(self, request: ChatRequest) -> AbstractAsyncContextManager[Batches]:
        wish = request.options.get("response_format")
        if wish is None or (isinstance(wish, Mapping) and wish.get("type") == "text"):
            return self._upstream(request)
        return self._structured(request, wish)

    @asynccontextmanager
    async def _structured(self, request: ChatRequest, wish: Any) -> AsyncIterator[Batches]:
        schema = _schema(wish)
        check = None if schema is None else await self._check_of(schema)
        options = {k: v for k, v in request.options.items() if k != "response_format"}
        messages = _asking(request.messages, schema)
        plain = replace(request, options=options, messages=messages)
        async with AsyncExitStack() as stack:
            batches = await stack.enter_async_context(self._upstream(plain))
            text = JSONText(check)
            answer = _read(batches, text, request.notes)
            yield self._repaired(stack, plain, answer, text) if self._repairs else answer

    async def _check_of(self, schema: Mapping[str, Any]) -> Check:
        """Return what checks values against a schema: that of a while ago, if it is the same one.

        A large one takes some tenths of a second, in a thread: others are served meanwhile.
        """
        text = to_json(schema)
        if len(text) > LONGEST_SCHEMA:
            raise _wrong_schema(f"is longer than {LONGEST_SCHEMA} bytes")
        making = self._checks.get(text)
        loop = asyncio.get_running_loop()
        if making is None or making.get_loop() is not loop or making.cancelled():
            if len(self._checks) >= MOST_SCHEMAS:
                self._checks.clear()
            making = loop.create_task(_made(schema, len(text)), name="qwen_asgi schema")
            self._checks[text] = making
            making.add_done_callback(_hear)
        return await asyncio.shield(making)

    async def _repaired(
        self, stack: AsyncExitStack, request: ChatRequest, answer: Batches, text: JSONText
    ) -> Batches:
        """Yield the answer, or that of a second call in its place; `stack` holds the first."""
        held: list[Sequence[Event]] = []
        is_out = False
        try:
            async for batch in answer:
                is_out = is_out or (request.stream and any(map(_is_content, batch)))
                # Thinking goes out as it comes; an answer that is given whole can wait.
                if is_out or (request.stream and any(type(e) is ReasoningDelta for e in batch)):
                    yield batch
                else:
                    held.append(batch)
        except UpstreamInvalidResponse as error:
            if is_out or error.code != CODE:
                raise
            problem = error.message
        else:
            for batch in held:
                yield batch
            return
        logger.info("an answer is sent back to be put right: %s", problem)
        spent = [event for batch in held for event in batch if type(event) is Usage]
        try:
            await stack.aclose()
            again = replace(request, messages=(*request.messages, *_sent_back(text.said, problem)))
            batches = await stack.enter_async_context(self._upstream(again))
            async for batch in _read(batches, JSONText(text.check), request.notes):
                if any(type(event) is Usage for event in batch):
                    batch = [reduce(add, spent, e) if type(e) is Usage else e for e in batch]
                    spent = []
                yield batch
        finally:
            for usage in spent:
                request.notes.leave(usage)


async def _made(schema: Mapping[str, Any], size: int) -> Check:
    if size <= SMALL_SCHEMA:
        return make_check(schema)
    return await asyncio.to_thread(make_check, schema)


def _hear(making: asyncio.Task[Check]) -> None:
    """Take an error that whoever waited was told of."""
    if not making.cancelled():
        making.exception()


def _is_content(event: Event) -> bool:
    return type(event) is TextDelta or type(event) is ToolCallDelta


def _sent_back(said: str, problem: str) -> tuple[Message, Message]:
    """Return the turns that ask for a better answer."""
    if len(said) > LONGEST_SENT_BACK:
        said = f"{said[:LONGEST_SENT_BACK]}…"
    wish = f"{problem}. Answer again with the one JSON object, put right, and with nothing else."
    return Message("assistant", said), Message("user", wish)


def _schema(wish: Any) -> Mapping[str, Any] | None:
    """Return the schema that is wished for; None for any object. Raises InvalidRequest."""
    kind = wish.get("type") if isinstance(wish, Mapping) else None
    if kind == "json_object":
        return None
    described = wish.get("json_schema") if isinstance(wish, Mapping) else None
    schema = described.get("schema") if isinstance(described, Mapping) else None
    if kind != "json_schema" or not isinstance(schema, Mapping):
        raise InvalidRequest(
            "response_format should be of type text or json_object, or json_schema with a schema",
            param="response_format",
        )
    return schema


def make_check(schema: Mapping[str, Any]) -> Check:
    """Return what checks values against a schema. Raises InvalidRequest for one that is none."""
    if len(to_json(schema)) > LONGEST_SCHEMA:
        raise _wrong_schema(f"is longer than {LONGEST_SCHEMA} bytes")
    if find_spec("jsonschema") is None:
        raise InvalidRequest(
            "this gateway cannot check a json_schema: its operator should install "
            "qwen-asgi[structured]; json_object works without",
            code="unsupported_parameter",
            param="response_format",
        )
    # They take as long to import as half of all the rest.
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from jsonschema.validators import extend
    from referencing import Registry

    _check_schema(schema)
    steps = _Steps()
    keywords = {name: steps.counted(rule) for name, rule in Draft202012Validator.VALIDATORS.items()}
    kind = extend(  # type: ignore[no-untyped-call]
        Draft202012Validator, keywords | dict.fromkeys(_NOT_CHECKED, _unchecked)
    )
    # With a registry of its own it fetches nothing.
    validator = kind(schema, registry=Registry())

    def check(value: Any) -> str:
        steps.left = MOST_STEPS
        try:
            found = best_match(validator.iter_errors(value))
        except _TooManySteps:
            return f"the schema takes more than {MOST_STEPS} steps to check"
        except Exception as exc:
            # What a client's references lead to may be no schema at all.
            return f"the schema cannot be followed: {type(exc).__name__}"
        # The model's own names stand in the path, and all of it goes to the log.
        return "" if found is None else printable(f"{found.json_path}: {found.message}", 300)

    return check


def _check_schema(schema: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for what is no schema. Of a very large one that is not found out here,
    but when an answer is checked."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from jsonschema.validators import extend

    steps = _Steps()
    steps.left = MOST_STEPS
    keywords = {name: steps.counted(rule) for name, rule in Draft202012Validator.VALIDATORS.items()}
    kind = extend(Draft202012Validator, keywords)  # type: ignore[no-untyped-call]
    try:
        found = best_match(kind(Draft202012Validator.META_SCHEMA).iter_errors(schema))
    except _TooManySteps:
        return
    except RecursionError:
        raise _wrong_schema("is not valid: too deep") from None
    if found is not None:
        raise _wrong_schema(f"is not valid: {found.message}"[:300])


class _TooManySteps(Exception):
    pass


class _Steps:
    """A bound on the work of one check."""

    left = 0

    def counted(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Return the rule of a keyword, made to take one of the steps that are left."""

        def step(*args: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise _TooManySteps
            return rule(*args)

        return step


def _unchecked(*_: Any) -> Sequence[Any]:
    return ()


def _wrong_schema(message: str) -> InvalidRequest:
    return InvalidRequest(
        f"response_format.json_schema.schema {message}",
        param="response_format.json_schema.schema",
    )


def _asking(messages: Sequence[Message], schema: Mapping[str, Any] | None) -> tuple[Message, ...]:
    words = (
        "Answer with one JSON object and nothing else: no words before or behind it, no code fence."
    )
    if schema is not None:
        words += f"\nIt must follow this JSON schema:\n{to_json(schema).decode()}"
    first = messages[0]
    if first.role == "system":
        text = f"{first.text}\n\n{words}" if first.text else words
        return (replace(first, content=text), *messages[1:])
    return (Message("system", words), *messages)


class JSONText:
    """The one object in an answer's text, piece by piece."""

    def __init__(self, check: Check | None) -> None:
        self.check = check
        self._heard: list[str] = []
        self._heard_size = 0
        self._object = ObjectText()
        self._preface = 0
        self._begun = False
        self._given: list[str] = []
        self._size = 0

    @property
    def said(self) -> str:
        """The beginning of the text, as the model wrote it."""
        return "".join(self._heard)

    def feed(self, text: str) -> str:
        """Return what of the object is certain. Raises UpstreamInvalidResponse."""
        if self._heard_size <= LONGEST_SENT_BACK:
            self._heard.append(text)
            self._heard_size += len(text)
        if not self._begun:
            start = text.find("{")
            self._preface += len(text) if start < 0 else start
            if self._preface > LONGEST_PREFACE:
                raise _not_json("it does not begin with an object")
            if start < 0:
                return ""
            self._begun, text = True, text[start:]
        if self._object.complete:
            return ""
        try:
            certain = self._object.feed(text)
        except NotJSON as exc:
            self._take(exc.certain)
            raise _not_json("it stops being JSON within the object") from None
        self._take(certain)
        return certain

    def close(self) -> None:
        """Check the whole of it. Raises UpstreamInvalidResponse."""
        if not self._object.complete:
            raise _not_json("its object has no end" if self._begun else "there is no object in it")
        try:
            value = from_json("".join(self._given))
        except ValueError:
            # Half a character, or deeper than is read.
            raise _not_json("it cannot be read") from None
        problem = "" if self.check is None else self.check(value)
        if problem:
            raise _not_json(problem)

    def _take(self, text: str) -> None:
        self._size += len(text)
        if self._size > LONGEST_ANSWER:
            raise _not_json(f"it is longer than {LONGEST_ANSWER} characters")
        self._given.append(text)


def _not_json(why: str) -> UpstreamInvalidResponse:
    return UpstreamInvalidResponse(
        f"the model's answer is not the JSON that was asked for: {why}", code=CODE
    )


async def _read(batches: Batches, text: JSONText, notes: Notes) -> AsyncIterator[Sequence[Event]]:
    """Yield the batches with nothing but the object for their text."""
    calls_tools = False
    async for batch in batches:
        events: list[Event] = []
        try:
            for event in batch:
                if type(event) is TextDelta:
                    certain = text.feed(event.text)
                    if certain:
                        events.append(TextDelta(certain))
                    continue
                calls_tools = calls_tools or type(event) is ToolCallDelta
                if type(event) is Finish and event.reason == "stop" and not calls_tools:
                    text.close()
                events.append(event)
        except UpstreamInvalidResponse:
            notes.leave_rest(batch[batch.index(event) :])
            # What came before it goes out first.
            if events:
                yield events
            raise
        if events:
            yield events
