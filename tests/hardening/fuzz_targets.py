"""What is fuzzed, and what must hold of each: a function of bytes that raises where it does not.

None of them opens a socket. The first bytes of an input say how the rest is cut into pieces, so
that the fuzzer looks for splits that matter, too. What a client or an upstream may send leads to
the project's own errors only; any other goes on to the fuzzer.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, Never

from qwen_asgi import Settings, sse
from qwen_asgi.apis.openai_chat import OpenAIChat
from qwen_asgi.chat import ChatRequest, Message, ToolCallDelta, fold
from qwen_asgi.errors import (
    InvalidRequest,
    QwenASGIError,
    RequestError,
    UpstreamError,
    UpstreamUnreachable,
)
from qwen_asgi.layers.json_answer import JSONText, make_check
from qwen_asgi.settings import SEED_MODELS
from qwen_asgi.tool_text.parser import ToolText
from qwen_asgi.tool_text.tools import read_tools
from qwen_asgi.transports import UpstreamRequest, UpstreamResponse
from qwen_asgi.transports._response import DirectResponse
from qwen_asgi.upstreams import AnswerReader, Decoder
from qwen_asgi.upstreams.model_studio import ModelStudio
from qwen_asgi.upstreams.openai_compatible import OpenAICompatible
from qwen_asgi.upstreams.openai_compatible_decoder import OpenAIDecoder
from qwen_asgi.upstreams.qwen_web_v1 import QwenWebV1
from qwen_asgi.upstreams.qwen_web_v1_decoder import QwenWebV1Decoder
from qwen_asgi.upstreams.qwen_web_v2 import QwenWebV2
from qwen_asgi.upstreams.qwen_web_v2_decoder import QwenWebV2Decoder
from qwen_asgi.wiring import wire
from tests.hardening.seeds import SAMPLES, recorded, requests
from tests.wire import Reading, at, read

HEAD = 8
"""Bytes of an input that are not of the body: two of options, and three places of two bytes."""

_MOST_SINGLE = 16
"""Bytes of a body that come one by one, of a longer one those behind its third place."""


@dataclass(frozen=True)
class Input:
    """A body, how it is cut, and a choice among what the target can do with it."""

    option: int
    places: Sequence[int]
    body: bytes

    @classmethod
    def of(cls, data: bytes) -> Input:
        head, body = data[:HEAD].ljust(HEAD, b"\0"), data[HEAD:]
        first, second, third = (int.from_bytes(head[at : at + 2], "big") for at in (2, 4, 6))
        single = range(third, third + head[1] % _MOST_SINGLE)
        return cls(head[0], (first, second, *single), body)

    @property
    def pieces(self) -> list[bytes]:
        return at(self.body, self.places)

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    @property
    def text_pieces(self) -> list[str]:
        text = self.text
        cuts = sorted({0, len(text), *(place % (len(text) + 1) for place in self.places)})
        return [text[start:end] for start, end in itertools.pairwise(cuts)]


@dataclass(frozen=True)
class Target:
    check: Callable[[Input], None]
    bodies: Callable[[], list[bytes]]
    """What inputs begin as."""

    def seeds(self) -> list[bytes]:
        """Return inputs: each body by itself, and cut in several ways."""
        heads = (bytes(HEAD), b"\1\x0f\0\x40\0\x80\0\0", b"\2\x08\0\7\1\0\0\x20")
        return [head + body for body in self.bodies() for head in heads]


# Decoders of answers.

_API = OpenAIChat()
_CHAT = ChatRequest(model="m", messages=(Message("user", "a"),), stream=True, include_usage=True)


_ZEROS_BEFORE = re.compile(rb"([:,\[{]\s*-?)0+(?=\d)")
"""Those that JSON forbids: in this one thing a frame that is read by its shape may be read though
it is wrong, and to look for them would take a fifth of what a frame takes."""


def _decodes(make: Callable[[bool], Decoder]) -> Callable[[Input], None]:
    """`make` is told whether only the connection's end ends the answer."""

    def check(given: Input) -> None:
        by_close = bool(given.option & 1)
        given = replace(given, body=_ZEROS_BEFORE.sub(rb"\1", given.body))
        whole = read(make(by_close), [given.body])
        parts = read(make(by_close), given.pieces)
        _same(_outcome(whole, given.body), _outcome(parts, given.body))
        assert (whole.error is None) == (len(whole.finishes) == 1), "an end, and no error, or not"
        if given.option & 2:
            # It takes as long as all else.
            _check_written(whole)

    return check


def _outcome(reading: Reading, body: bytes) -> tuple[object, ...]:
    """Return what a client could tell readings apart by, without the ids that were made up here."""
    text, reasoning, rest, error = reading.outcome
    assert isinstance(rest, list)
    told = [
        replace(event, id="made up")
        if isinstance(event, ToolCallDelta) and event.id and event.id.encode() not in body
        else event
        for event in rest
    ]
    return text, reasoning, told, error


def _check_written(reading: Reading) -> None:
    """Raise where what was read cannot be given to a client."""
    writer = _API.stream(_CHAT)
    stream = writer.write(reading.events)
    stream += writer.finish() if reading.error is None else writer.fail(reading.error)
    for frame in stream.removesuffix(b"data: [DONE]\n\n").split(b"\n\n")[:-1]:
        _check_json(frame.removeprefix(b"data: "))
    _check_json(_API.answer(_CHAT, fold(reading.events)))


def _check_frames(given: Input) -> None:
    """With a small limit, which not every split meets, nothing but FrameTooLarge may be raised."""
    if given.option & 1:
        decoder = sse.Decoder(limit=16 + given.option)
        try:
            for piece in given.pieces:
                decoder.feed(piece)
            decoder.close()
        except sse.FrameTooLarge:
            pass
        return
    _same(_frames([given.body]), _frames(given.pieces))


def _frames(pieces: Iterable[bytes]) -> tuple[object, ...]:
    decoder = sse.Decoder()
    frames = [frame for piece in pieces for frame in decoder.feed(piece)]
    return frames, decoder.is_fresh, decoder.within_event, decoder.close()


# Documents of upstreams: lists of models, refusals, what is said of chats and files.

_V1, _V2 = QwenWebV1("http://u", "k"), QwenWebV2("http://u", "k")
_READERS: tuple[AnswerReader, ...] = (
    *(_V1, _V2, ModelStudio("http://u", "k"), OpenAICompatible("http://u", "k")),
)
_STATUSES = (400, 401, 403, 404, 405, 413, 418, 429, 500, 502, 503, 504)
_DOCUMENTS: tuple[Callable[[bytes], object], ...] = (
    *(reader.decode_models for reader in _READERS),
    *(_V2.decode_opening, _V2.check_removal),
    *(read for v in (_V1, _V2) for read in (v.uploads.read_form, v.uploads.read_ticket)),
    *(read for v in (_V1, _V2) for read in (v.uploads.read_parse, v.uploads.read_parse_state)),
)


def _check_documents(given: Input) -> None:
    for read_document in _DOCUMENTS:
        try:
            read_document(given.body)
        except UpstreamError as error:
            _check_error(error)
    headers = {"retry-after": given.body[:40].decode("latin-1")}
    for reader in _READERS:
        status = _STATUSES[given.option % len(_STATUSES)]
        _check_error(reader.refusal(status, headers, given.body))


def _check_error(error: QwenASGIError) -> None:
    _check_json(_API.error(error))
    for value in error.headers.values():
        assert value.isprintable(), repr(value)


# Requests of clients.

_LOOP = asyncio.new_event_loop()


class _Closed:
    """A transport that reaches nobody, and looks at what it was to send."""

    def open(
        self, request: UpstreamRequest, *, within: float
    ) -> AbstractAsyncContextManager[UpstreamResponse]:
        kind = request.headers.get("content-type", "")
        if request.body and kind == "application/json":
            _check_json(request.body)
        raise UpstreamUnreachable("nobody is there")

    async def aclose(self) -> None:
        pass


def _upstream(dialect: Any) -> Any:
    """Return all that a request goes through behind the reader, made as the gateway makes it."""
    settings = Settings(upstream=dialect, base_url="http://u", api_key="k", models=SEED_MODELS)
    return wire(settings, transport=_Closed()).catalog.certain(SEED_MODELS[0])


_UPSTREAMS = tuple(
    _upstream(name) for name in ("qwen-web-v1", "qwen-web-v2", "model-studio", "openai")
)


def _check_request(given: Input) -> None:
    try:
        chat = _API.read(given.body)
    except InvalidRequest as error:
        _check_error(error)
        return
    _LOOP.run_until_complete(_check_translations(given, chat))


async def _check_translations(given: Input, chat: ChatRequest) -> None:
    for upstream in _UPSTREAMS:
        try:
            async with upstream(chat):
                raise AssertionError("an answer of nobody")
        except (RequestError, UpstreamUnreachable) as error:
            _check_error(error)
        # What has been noted on it is of one call.
        chat = _API.read(given.body)
    try:
        opening = _V2.encode_opening(chat)
    except InvalidRequest:
        return
    _check_json(opening.ask("c").body)


# Responses of the direct lane.


class _Source:
    """A connection of which nothing is known but what arrives."""

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def wake_at(self, when: float) -> None:
        pass


def _check_response(given: Input) -> None:
    _LOOP.run_until_complete(_check_response_in_loop(given))


async def _check_response_in_loop(given: Input) -> None:
    exc = ConnectionResetError() if given.option & 1 else None
    whole, parts = await _received([given.body], exc), await _received(given.pieces, exc)
    _same((whole.head, whole.error), (parts.head, parts.error))
    if whole.body != parts.body:
        # Of what cannot be unpacked the library gives out less when more of it came at once.
        assert whole.error is not None, "another body"
        assert whole.head is not None, "a body without a head"
        assert "content-encoding" in whole.head[1], "another body"
        longer, shorter = sorted((whole.body, parts.body), key=len, reverse=True)
        assert longer.startswith(shorter), "another body"


@dataclass
class _Received:
    head: tuple[int, Mapping[str, str], bool] | None = None
    body: bytes = b""
    error: tuple[type[UpstreamError], str] | None = None


async def _received(pieces: Iterable[bytes], exc: Exception | None) -> _Received:
    """Return what is read of a response that arrives in pieces, until its connection is lost."""
    response = DirectResponse(_LOOP, _Source())
    reading = _LOOP.create_task(_read_all(response))
    for piece in pieces:
        response.feed(piece)
        await asyncio.sleep(0)
        if reading.done():
            break
    if not reading.done():
        response.lost(exc)
    return await reading


async def _read_all(response: DirectResponse) -> _Received:
    received = _Received()
    try:
        await response.begin(within=60.0)
        received.head = response.status, response.headers, response.ends_by_close
        while piece := await response.read(within=60.0):
            received.body += piece
    except UpstreamError as error:
        received.error = type(error), str(error)
    return received


# What a model writes.

_TOOLS = read_tools(json.loads((SAMPLES / "tool-schemas.json").read_bytes()))
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["name"],
}
_CHECKS = (None, make_check(_SCHEMA))


def _check_tool_text(given: Input) -> None:
    most = 1 if given.option & 1 else None
    is_cut = bool(given.option & 2)
    whole = _called([given.text], most, is_cut)
    _same(whole, _called(given.text_pieces, most, is_cut))
    text, calls, error = whole
    for name, arguments in calls if error is None and not is_cut else calls[:-1]:
        assert _TOOLS.find(name) is not None, name
        assert isinstance(_check_json(arguments), dict), arguments
    remaining = iter(given.text)
    assert all(character in remaining for character in text), "text that is none of the model's"


def _called(
    texts: Iterable[str], most: int | None, is_cut: bool
) -> tuple[str, list[tuple[str, str]], type[UpstreamError] | None]:
    parser = ToolText(_TOOLS, iter(map(str, range(1 << 30))).__next__, most=most)
    found: list[Any] = []
    error = None
    try:
        for text in texts:
            found += parser.feed(text)
        found += parser.cut() if is_cut else parser.close()
    except UpstreamError as exc:
        error = type(exc)
        found += parser.flush()
    answer = fold(found)
    return answer.text, [(call.name, call.arguments) for call in answer.tool_calls], error


def _check_json_text(given: Input) -> None:
    check = _CHECKS[given.option & 1]
    whole = _only_object([given.text], check)
    _same(whole, _only_object(given.text_pieces, check))
    text, error = whole
    if error is None:
        assert isinstance(_check_json(text), dict), text


def _only_object(texts: Iterable[str], check: Any) -> tuple[str, str | None]:
    reader = JSONText(check)
    certain: list[str] = []
    try:
        certain += map(reader.feed, texts)
        reader.close()
    except UpstreamError as error:
        # What was certain before the fault in the same piece is not given out.
        return "", str(error)
    return "".join(certain), None


# What all have in common.


def _same(one: object, other: object) -> None:
    # NaN is not the same as itself, but looks the same.
    if one != other and repr(one) != repr(other):
        raise AssertionError(f"another split, another outcome:\n{one!r}\n{other!r}"[:4000])


def _check_json(text: bytes | str) -> Any:
    """Return what JSON text holds. Raises ValueError for what is none."""
    return json.loads(text, parse_constant=_no_number)


def _no_number(name: str) -> Never:
    raise ValueError(f"{name} is no JSON")


def _model_texts() -> list[bytes]:
    return recorded("tool-*.txt")


def _json_texts() -> list[bytes]:
    return [
        b'Sure:\n```json\n{"name": "Paris", "people": 2100000}\n```',
        b'{"name": "\\u00e9\\n", "a": [1, -2.5e3, true, null, {}, []],}',
        *_model_texts(),
    ]


def _responses() -> list[bytes]:
    head = b"HTTP/1.1 200 OK\r\n"
    chunks = b"5;a=b\r\nhello\r\n1\r\n!\r\n0\r\nx-t: 1\r\n\r\n"
    packed = gzip.compress(b"hello", mtime=0)
    return [
        head + b"Content-Length: 5\r\nContent-Type: application/json\r\n\r\nhello",
        head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks,
        head + b"Connection: close\r\n\r\nhello",
        head + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(packed), packed),
        head + b"Content-Encoding: deflate\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc",
        b"HTTP/1.0 429 Too Many\r\nRetry-After: 7\r\n\r\n{}",
    ]


TARGETS: Mapping[str, Target] = {
    "web1": Target(
        _decodes(lambda by_close: QwenWebV1Decoder(incremental=True, ends_by_close=by_close)),
        lambda: recorded("web1-*.sse", "web1-nonstream.json"),
    ),
    "web1-whole": Target(
        _decodes(lambda by_close: QwenWebV1Decoder(incremental=False, ends_by_close=by_close)),
        lambda: recorded("web1-*.sse", "web1-nonstream.json"),
    ),
    "web2": Target(
        _decodes(lambda by_close: QwenWebV2Decoder(ends_by_close=by_close)),
        lambda: recorded("web2-*.sse", "web2-*-200.json"),
    ),
    "openai": Target(
        _decodes(lambda by_close: OpenAIDecoder()),
        lambda: recorded("ds-*.sse", "ds-nonstream*.json"),
    ),
    "frames": Target(_check_frames, lambda: recorded("*.sse")),
    "documents": Target(_check_documents, lambda: recorded("ds-*.json", "web*.json", "*.html")),
    "request": Target(_check_request, requests),
    "response": Target(_check_response, _responses),
    "tool-text": Target(_check_tool_text, _model_texts),
    "json-text": Target(_check_json_text, _json_texts),
}
