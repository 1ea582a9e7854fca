"""The faults of an upstream, all but the cuts, each with what is to come of it."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from qwen_asgi.testing import Fault
from qwen_asgi.testing.answers import DONE, EVENT_STREAM, JSON, Answer, compact, dump, frame, sse_of
from tests.hardening.faulty_upstream import PIECES, REPLY, Play, head, segments, whole
from tests.hardening.outcomes import (
    BLOCKED,
    CREDENTIAL,
    FAILED,
    FORBIDDEN,
    INVALID,
    LIMITED,
    NO_EVENT,
    NO_HTTP,
    NO_MODEL,
    REFUSED,
    SILENT,
    TRUNCATED,
    WHOLE,
    Asking,
    Expected,
    Outcome,
    broke,
    failed,
)
from tests.transports.test_direct import BROKEN
from tests.transports.test_faults import ENDLESS, EVIL
from tests.transports.torture import Do, Flood, Script, Step, chunk
from tests.wire import Sample, samples


@dataclass(frozen=True, slots=True)
class Row:
    """One fault."""

    name: str
    play: Play
    expected: Expected
    is_opening: bool = False
    """Whether it is one of the call that makes a chat, which one dialect has."""
    is_alone: bool = False
    """Whether nothing else is to be under way, for what it does to a connection or a processor."""


def faults() -> Iterator[Row]:
    yield from _statuses()
    yield from _documents()
    yield from _within_answers()
    yield from _labels()
    yield from _silences()
    yield from _framings()
    yield from _compressed()
    yield from _no_http()
    yield from _more_than_asked()
    yield from _of_openings()


def _fault(name: str, fault: Fault, expected: Expected) -> Row:
    return Row(name, lambda answer: whole(fault.change(answer)), expected)


# An answer with another status.

WEB_STATUSES: Mapping[int, Outcome] = {
    400: REFUSED,
    401: CREDENTIAL,
    403: CREDENTIAL,
    413: REFUSED,
    422: REFUSED,
    429: LIMITED,
}
"""All others are failures without a name."""

OPENAI_STATUSES: Mapping[int, Outcome] = {
    **dict.fromkeys((400, 405, 409, 413, 422), REFUSED),
    401: CREDENTIAL,
    403: FORBIDDEN,
    404: NO_MODEL,
    429: LIMITED,
}

STATUSES = (
    *(201, 202, 204, 206, 299, 301, 302, 303, 304, 307, 308),
    *(400, 401, 402, 403, 404, 405, 408, 409, 410, 413, 418, 422, 425, 429, 431, 451),
    *(500, 501, 502, 503, 504, 520, 524, 529, 599),
)
BODILESS = (204, 304)


def _statuses() -> Iterator[Row]:
    elsewhere = {"location": "http://127.0.0.1:9/"}
    for status in STATUSES:
        expected = (
            ("web", WEB_STATUSES.get(status, FAILED)),
            ("", OPENAI_STATUSES.get(status, FAILED)),
        )
        yield _fault(f"{status} without a body", Fault.status(status, headers=elsewhere), expected)
        if status in BODILESS:
            continue
        text = Fault.status(status, b"no", "text/plain", elsewhere)
        yield _fault(f"{status} with text", text, expected)
        said = Fault.status(status, b'{"error":{"message":"no"}}')
        yield _fault(f"{status} with JSON", said, expected)
        page = Fault.status(status, b"<html>no</html>", "text/html")
        yield _fault(f"{status} with a page", page, _page(status, expected))
    yield _fault(
        "429 with Retry-After",
        Fault.status(429, headers={"retry-after": "7"}),
        failed(429, "upstream_rate_limited", 7),
    )
    yield _fault(
        "503 with Retry-After",
        Fault.status(503, headers={"retry-after": "7"}),
        failed(500, "upstream_failed", 7),
    )


def _page(status: int, expected: Sequence[tuple[str, Outcome]]) -> Expected:
    """What some server on the way says; at the web chats its filter blocks with two statuses."""
    web = BLOCKED if status in (403, 405) else dict(expected)["web"]
    return ("web", web), ("", INVALID)


# Another document, or other events.


def _documents() -> Iterator[Row]:
    for status in 200, 403, 405, 503:
        yield _fault(
            f"block page {status}", Fault.block_page(status), (("web", BLOCKED), ("", INVALID))
        )
    human = ("web", BLOCKED), ("", INVALID)
    yield _fault("human check", Fault.human_check(), human)
    yield _fault("human check as events", Fault.human_check("text/event-stream"), human)
    # What is no object or list begins no answer, and ends without one.
    for word in None, 1, "x":
        yield _fault(f"bare {word!r}", Fault.bare_json(word), INVALID)
    documents: tuple[Any, ...] = ([], {}, {"choices": []}, {"data": 0}, {"choices": [{}]})
    for document in documents:
        yield _fault(f"bare {document!r}", Fault.bare_json(document), INVALID)
    yield _fault("bare code", Fault.bare_json({"code": "x"}), FAILED)
    yield _fault("garbage", Fault.garbage(), INVALID)
    yield _fault("empty", Fault.empty(), INVALID)
    for sample in samples():
        if "error" in sample.expect:
            yield Row(f"recorded {sample}", _sent(sample), _of_sample(sample))


def _sent(sample: Sample) -> Play:
    """Send the bytes of a sample as they were."""
    fault = Fault.status(
        sample.status,
        sample.data,
        sample.headers["content-type"],
        {name: value for name, value in sample.headers.items() if name != "content-type"},
    )
    return lambda answer: whole(fault.change(answer))


CLASSES: Mapping[str, tuple[int, str | None]] = {
    "auth": (500, "upstream_authentication"),
    "bad_request": (400, None),
    "blocked": (500, "upstream_blocked"),
    "busy": (429, None),
    "empty": (500, "upstream_empty_answer"),
    "forbidden": (403, None),
    "moderation": (400, None),
    "not_found": (400, "model_not_found"),
    "quota_exhausted": (403, None),
    "rate_limited": (429, None),
    "truncated": (500, "upstream_truncated"),
    "upstream": (500, "upstream_failed"),
}
"""Of what the samples are said to be; without a code of ours the upstream's own is kept."""

FOREIGN: Mapping[str, Expected] = {
    "ds-400-sse-framed.sse": REFUSED,
    "ds-401.json": CREDENTIAL,
    "ds-403-access-denied.json": CREDENTIAL,
    "ds-403-free-tier.json": CREDENTIAL,
    "ds-404-model.json": NO_MODEL,
    "ds-429-rpm.json": failed(429, "limit_requests"),
    "ds-429-burst.json": failed(429, "limit_burst_rate"),
    "ds-400-thinking-nonstream.json": failed(400, "invalid_parameter_error"),
    "ds-400-tool-choice-thinking.json": failed(400, "invalid_parameter_error"),
    "ds-400-stream-only.json": failed(400, "invalid_parameter_error"),
    "ds-400-moderation.json": failed(400, "data_inspection_failed"),
    "ds-stream-moderation-midstream.sse": broke(FAILED, "Part of an"),
    "ds-500.json": FAILED,
    "web-401.json": CREDENTIAL,
    "web-429.json": failed(429, "RateLimited"),
    "web2-error-midstream.sse": broke(FAILED, "The answer"),
    "web2-ratelimited-in-stream.sse": FAILED,
    "web2-thinking-only.sse": broke(TRUNCATED, "Let me think about it"),
    "web2-truncated.sse": broke(TRUNCATED, "The first half"),
    # Fields that are not known begin a stream, though they hold no text.
    "web2-empty-answer.sse": (("stream", Outcome(code="upstream_truncated")), ("", TRUNCATED)),
}
"""What the samples are for the dialects of the other kind, which find their own signs in them."""

BUSY_SECONDS = 5


def _of_sample(sample: Sample) -> Expected:
    error = sample.expect["error"]
    status, code = CLASSES[error["class"]]
    wait = BUSY_SECONDS if error["class"] == "busy" else error.get("retry_after_s")
    outcome = failed(status, code or error.get("code"), wait)
    if sample.expect.get("content") is None and error["class"] == "empty":
        # No form of an answer, let alone one.
        outcome = INVALID
    text = sample.expect.get("reasoning", "") + sample.expect.get("content", "")
    own = "openai-kind" if sample.dialect == "dashscope" else "web"
    foreign = FOREIGN.get(sample.name, INVALID)
    others = [("", foreign)] if isinstance(foreign, Outcome) else foreign
    return (own, broke(outcome, text)), *others


# An answer that goes wrong in its middle.

_SO_FAR = tuple(accumulate(PIECES))
TEXTS: Mapping[str, Sequence[str]] = {
    "qwen-web-v1": ("", *_SO_FAR, REPLY, REPLY),
    "qwen-web-v2": ("", "", *_SO_FAR, REPLY),
    "model-studio": ("", "", *_SO_FAR, REPLY),
    "openai": ("", "", *_SO_FAR, REPLY),
}
"""What is said in so many frames of an answer: the first is one without text, but
of one dialect."""

WEB_CODES: Mapping[str, Outcome] = {
    "RateLimited": failed(429, "RateLimited"),
    "Internal_Server_Error": FAILED,
    "Not_Found": failed(400, "Not_Found"),
    "x": FAILED,
}
"""The web chats say them with HTTP 200; those of the other kind do not know them, nor need
to: it is their status, where there is one."""


def _within_answers() -> Iterator[Row]:
    yield _fault("drip", Fault.drip(), WHOLE)
    yield Row("drip, the head too", _dripping, WHOLE)
    for code, error in WEB_CODES.items():
        refused = (("web", error), ("", failed(400, code)))
        yield _fault(f"failure {code}", Fault.failure(code, "no"), refused)
        for index in range(6):
            fault = Fault.error_frame(index, code, "no")
            yield _fault(f"error frame {index} {code}", fault, _error_frame(index, code, error))
    yield Row(
        "a frame that is no JSON",
        _with_frame(b"data: {nothing}\n\n"),
        (("document", INVALID), *_behind(3, INVALID)),
    )
    yield Row(
        "an event that is an error",
        _with_frame(b"event: error\ndata: no\n\n"),
        (("document", FAILED), *_behind(3, FAILED)),
    )
    yield Row("a frame of 50 MB", _huge_frame, INVALID, is_alone=True)
    yield Row("a line of 50 MB", _huge_line, INVALID, is_alone=True)


def _behind(index: int, error: Outcome) -> Sequence[tuple[str, Outcome]]:
    """What is to come of an error behind that many frames."""
    return tuple((dialect, broke(error, texts[index])) for dialect, texts in TEXTS.items())


def _error_frame(index: int, code: str, error: Outcome) -> Expected:
    # The last frame of this one is the fifth.
    over = [("qwen-web-v1 events", WHOLE)] if index == 5 else []
    refused = [("openai-kind document", failed(400, code)), ("document", error)]
    web, other = _behind(index, error), _behind(index, FAILED)
    return (*over, *refused, *web[:2], *other[2:])


def _dripping(answer: Answer) -> Script:
    data = b"".join(part for part, _ in segments(answer))
    return [bytes([byte]) for byte in data]


def _with_frame(more: bytes) -> Play:
    """Send a frame behind the first three; or it alone, in the place of a document."""

    def play(answer: Answer) -> Script:
        frames = list(answer.frames)
        steps = [*frames[:3], more, *frames[3:]] if answer.is_stream else [more]
        return whole(replace(answer, headers={"content-type": EVENT_STREAM}, steps=steps))

    return play


_MEGABYTE = b"y" * 1_000_000


def _huge_frame(answer: Answer) -> Script:
    begun = head(answer, "chunked")
    return [begun, chunk(b'data: {"x": "'), Flood(chunk(_MEGABYTE), 50), chunk(b'"}\n\n'), Do.WAIT]


def _huge_line(answer: Answer) -> Script:
    return [head(answer, "chunked"), Flood(chunk(b": " + _MEGABYTE), 50), Do.WAIT]


# An answer under another label, or in another form.


def _labels() -> Iterator[Row]:
    for label in "text/html", "text/plain", JSON, EVENT_STREAM, "application/octet-stream", "":
        yield Row(f"the right answer as {label or 'nothing'}", _labelled(label), WHOLE)
        yield Row(f"a document as {label or 'nothing'}", _document(label), WHOLE)
        yield Row(f"events as {label or 'nothing'}", _events(label), WHOLE)
    yield Row("JSON within a page", _page_with_json, (("web", BLOCKED), ("", INVALID)))


def _labelled(label: str) -> Play:
    def play(answer: Answer) -> Script:
        headers = dict(answer.headers)
        del headers["content-type"]
        if label:
            headers["content-type"] = label
        return _as_labelled(answer, headers)

    return play


def _as_labelled(answer: Answer, headers: Mapping[str, str]) -> Script:
    if not answer.is_stream:
        return whole(replace(answer, headers=headers, steps=list(answer.steps)))
    return whole(replace(answer, headers=headers))


def _document(label: str) -> Play:
    message = {"role": "assistant", "content": REPLY}
    body = dump({"choices": [{"message": message, "finish_reason": "stop", "index": 0}]})
    fault = Fault.status(200, body, label or "x")
    return lambda answer: _labelled(label)(fault.change(answer))


def _events(label: str) -> Play:
    delta = {"role": "assistant", "content": REPLY}
    chunks = sse_of({"choices": [{"delta": delta, "index": 0}]}) + DONE
    fault = Fault.status(200, chunks, label or "x")
    return lambda answer: _labelled(label)(fault.change(answer))


def _page_with_json(answer: Answer) -> Script:
    body = b"<html><body><pre>%b</pre></body></html>" % compact({"choices": []})
    return whole(Fault.status(200, body, "text/html").change(answer))


# An answer that stops to come.


def _silences() -> Iterator[Row]:
    yield Row("silent before the head", lambda _: [Do.WAIT], NO_EVENT)
    for size in 1, 12, 40:
        yield Row(f"silent after {size} bytes of the head", _silent_in_head(size), NO_EVENT)
    yield _fault("silent, and then too late", Fault.stall(None), NO_EVENT)
    for index in range(6):
        yield _fault(f"silent after {index} frames", Fault.stall(index), _silent_behind(index))
    over = (("document", NO_EVENT), ("", WHOLE))
    yield _fault("silent after all frames", Fault.stall(99), over)
    within = (("document", NO_EVENT), ("", broke(SILENT, PIECES[0])))
    yield Row("silent within a frame", _silent_in_frame, within)
    yield Row("a head of two bytes a second", _slow_head, NO_EVENT)
    yield Row("comments only", _comments, NO_EVENT)


def _silent_behind(index: int) -> Expected:
    if index == 5:
        # Its end was seen, if only a footer may follow.
        return ("document", NO_EVENT), ("qwen-web-v2", broke(SILENT, REPLY)), ("", WHOLE)
    behind = [
        (dialect, broke(SILENT, texts[index]) if texts[index] else NO_EVENT)
        for dialect, texts in TEXTS.items()
    ]
    return ("document", NO_EVENT), *behind


def _silent_in_head(size: int) -> Play:
    return lambda answer: [head(answer)[:size], Do.WAIT]


def _silent_in_frame(answer: Answer) -> Script:
    data = b"".join(answer.frames)
    begun = data[: data.find("世".encode())]
    return [head(answer, "chunked"), chunk(begun), Do.WAIT]


def _slow_head(answer: Answer) -> Script:
    steps: list[Step] = []
    for byte in head(answer):
        steps += [bytes([byte]), 0.5]
    return steps


def _comments(answer: Answer) -> Script:
    steps: list[Step] = [head(answer, "chunked")]
    for _ in range(100):
        steps += [chunk(b": still here\n\n"), 0.05]
    return steps


# An answer whose length is told wrong.


def _framings() -> Iterator[Row]:
    # All of the text is there, and of the frame that ends it a part.
    short = (("document", TRUNCATED), ("", broke(TRUNCATED, REPLY)))
    yield Row(
        "length too long, then silence", _length(5, Do.WAIT), (("document", NO_EVENT), ("", WHOLE))
    )
    yield Row(
        "length too long, then the end",
        _length(5, Do.CLOSE),
        (("document", TRUNCATED), ("", WHOLE)),
    )
    yield Row("length too short", _length(-5, Do.CLOSE), short, is_alone=True)
    yield Row("a length that is none", _more_headers(b"content-length: 1x"), NO_HTTP)
    yield Row("two lengths", _more_headers(b"content-length: 7"), NO_HTTP)
    yield Row(
        "length and chunks", _length_and_chunks, (("direct", INVALID), ("", WHOLE)), is_alone=True
    )
    yield Row("chunks of more than they say", _chunks(3), NO_HTTP, is_alone=True)
    less = (
        ("direct qwen-web-v1 events", broke(INVALID, PIECES[0])),
        ("httpx qwen-web-v1 events", broke(TRUNCATED, PIECES[0])),
        *NO_HTTP,
    )
    yield Row("chunks of less than they say", _chunks(-3), less, is_alone=True)
    yield Row(
        "no last chunk, then silence",
        _no_last_chunk(Do.WAIT),
        (("document", NO_EVENT), ("", WHOLE)),
    )
    yield Row(
        "no last chunk, then the end",
        _no_last_chunk(Do.CLOSE),
        (("document", TRUNCATED), ("", WHOLE)),
    )


def _length(wrong_by: int, then: Do) -> Play:
    def play(answer: Answer) -> Script:
        body = b"".join(answer.frames)
        line = b"content-length: %d" % (len(body) + wrong_by)
        return [head(answer, "close", line) + body, then]

    return play


def _more_headers(*lines: bytes) -> Play:
    def play(answer: Answer) -> Script:
        body = b"".join(answer.frames)
        return [head(replace(answer, steps=[body]), "length", *lines) + body, Do.CLOSE]

    return play


def _length_and_chunks(answer: Answer) -> Script:
    body = b"".join(answer.frames)
    return [head(answer, "chunked", b"content-length: 7") + chunk(body) + b"0\r\n\r\n", Do.CLOSE]


def _chunks(more: int) -> Play:
    def play(answer: Answer) -> Script:
        parts = [b"%x\r\n%b\r\n" % (len(f) - more, f) for f in answer.frames]
        return [head(answer, "chunked") + b"".join(parts) + b"0\r\n\r\n", Do.CLOSE]

    return play


def _no_last_chunk(then: Do) -> Play:
    return lambda answer: [head(answer, "chunked") + b"".join(map(chunk, answer.frames)), then]


# An answer that is packed, though it was not asked for.


def _compressed() -> Iterator[Row]:
    yield Row("gzip", _packed(gzip.compress, "gzip"), WHOLE)
    # httpx reads the first one only.
    yield Row("gzip in two members", _packed(_twice, "gzip"), (("direct", WHOLE), ("", TRUNCATED)))
    yield Row("gzip that is none", _packed(bytes, "gzip"), INVALID)
    # What breaks off behind the text httpx does not miss, and what breaks off before it is nothing.
    ends = (("direct document", TRUNCATED), ("", WHOLE))
    yield Row("gzip without its end", _packed(lambda data: gzip.compress(data)[:-9], "gzip"), ends)
    begins = (("direct", TRUNCATED), ("", INVALID))
    yield Row("gzip of 15 bytes", _packed(lambda data: gzip.compress(data)[:15], "gzip"), begins)
    # httpx hands on what it does not know, and here it is the plain answer.
    unknown = (("direct", INVALID), ("", WHOLE))
    yield Row("an encoding that nobody knows", _packed(bytes, "rot13"), unknown)
    yield Row("a gigabyte in a megabyte", _bomb, INVALID, is_alone=True)


def _twice(data: bytes) -> bytes:
    return gzip.compress(data[:50]) + gzip.compress(data[50:])


def _packed(pack: Any, encoding: str) -> Play:
    def play(answer: Answer) -> Script:
        body = pack(b"".join(answer.frames))
        headers = {**answer.headers, "content-encoding": encoding}
        return whole(replace(answer, headers=headers, steps=[body]))

    return play


_BOMB = gzip.compress(b'data: {"x": "' + bytes(200_000_000), 9)


def _bomb(answer: Answer) -> Script:
    headers = {**answer.headers, "content-encoding": "gzip"}
    return whole(replace(answer, headers=headers, steps=[_BOMB]))


# What is no answer in HTTP.

READ_BY_H11 = "length and chunks"
"""Its body, `hello`, is no answer either."""


def _no_http() -> Iterator[Row]:
    for name, data in BROKEN.items():
        expected = INVALID if name == READ_BY_H11 else NO_HTTP
        is_read = name == READ_BY_H11
        yield Row(f"no HTTP: {name}", _instead(data, Do.CLOSE), expected, is_alone=is_read)
    words = {
        "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
        "an alert of TLS": b"\x15\x03\x01\x00\x02\x02\x46",
        "a page and no head": b"<html>hello</html>\n",
        "frames of HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18),
        "zeros": bytes(1000),
    }
    for name, data in words.items():
        yield Row(name, _instead(data, Do.CLOSE), NO_HTTP)
    for name in "one header", "many headers", "short headers", "reason", "blank lines":
        yield Row(f"no end: {name}", _instead(*ENDLESS[name], Do.WAIT), NO_HTTP, is_alone=True)
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    # httpx skips any number of them; only the deadline ends it.
    flood = (("direct", INVALID), ("httpx", NO_EVENT))
    yield Row("no end: 1xx", _instead(Flood(hints * 100, 20), Do.WAIT), flood, is_alone=True)
    yield Row("1xx, then the answer", lambda answer: [hints * 3, *whole(answer)], WHOLE)
    changed = (("direct", FAILED), ("", TRUNCATED))
    upgrade = b"HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    yield Row("a change of protocol", _instead(upgrade, Do.CLOSE), changed)


def _instead(*steps: Step) -> Play:
    return lambda _: steps


# More than was asked for.

LATER_SECONDS = 0.005
"""A moment in which the answer before it has been read."""


def _more_than_asked() -> Iterator[Row]:
    mores = {
        "another answer": EVIL,
        "half an answer": EVIL[:9],
        "text": b"evil",
        "a frame": frame({"choices": [{"delta": {"content": "evil"}}]}),
        "blank lines": b"\r\n\r\n",
    }
    for name, more in mores.items():
        yield Row(f"then {name}", _then(more), WHOLE, is_alone=True)
        yield Row(f"a moment later {name}", _then(LATER_SECONDS, more), WHOLE, is_alone=True)
    for name, end in {"closed": Do.CLOSE, "reset": Do.RESET}.items():
        yield Row(f"then {name}", _then(end), WHOLE, is_alone=True)
    trailers = b"0\r\nx-more: 1\r\nx-more: 2\r\n\r\n"
    yield Row("trailers", _trailed(trailers), WHOLE)


def _then(*steps: Step) -> Play:
    def play(answer: Answer) -> Script:
        data = b"".join(part for part, _ in segments(answer))
        if steps and isinstance(steps[0], bytes):
            return [data + steps[0], Do.CLOSE]
        return [data, *steps, Do.CLOSE]

    return play


def _trailed(trailers: bytes) -> Play:
    return lambda answer: [head(answer, "chunked") + b"".join(map(chunk, answer.frames)) + trailers]


# The call that makes a chat.


def _of_openings() -> Iterator[Row]:
    """Any of these ends a chat before it was asked in."""

    def opening(name: str, play: Play, expected: Expected) -> Row:
        is_read = name == READ_BY_H11
        name = f"making a chat: {name}"
        return Row(name, play, expected, is_opening=True, is_alone=is_read)

    for status in 301, 400, 401, 403, 404, 429, 500, 503:
        fault = Fault.status(status)
        yield opening(str(status), _fault("", fault, FAILED).play, WEB_STATUSES.get(status, FAILED))
    more: dict[str, tuple[Fault, Outcome]] = {
        "block page": (Fault.block_page(), BLOCKED),
        "human check": (Fault.human_check(), BLOCKED),
        "empty": (Fault.empty(), INVALID),
        "garbage": (Fault.garbage(), INVALID),
        "limit": (Fault.failure("RateLimited", "no", num=2), failed(429, "RateLimited", 7200)),
        "no name": (Fault.status(200, b'{"success":true,"data":{}}'), INVALID),
        "a list": (Fault.status(200, b"[]"), INVALID),
        "events": (Fault.status(200, b"data: {}\n\n", EVENT_STREAM), INVALID),
        "stall": (Fault.stall(None), NO_EVENT),
        "stall before the body": (Fault.stall(0), NO_EVENT),
        "drip": (Fault.drip(), WHOLE),
    }
    for name, (fault, outcome) in more.items():
        yield opening(name, _fault("", fault, FAILED).play, outcome)
    yield opening("closed before the head", _instead(Do.CLOSE), TRUNCATED)
    yield opening("reset before the head", _instead(Do.RESET), TRUNCATED)
    yield opening(
        "closed in the body",
        lambda a: [b"".join(p for p, _ in segments(a))[:-3], Do.CLOSE],
        TRUNCATED,
    )
    yield opening(
        "reset in the body",
        lambda a: [b"".join(p for p, _ in segments(a))[:-3], Do.RESET],
        TRUNCATED,
    )
    for name, data in BROKEN.items():
        expected = INVALID if name == READ_BY_H11 else NO_HTTP
        yield opening(name, _instead(data, Do.CLOSE), expected)


def applies(row: Row, asking: Asking) -> bool:
    return not row.is_opening or asking.dialect == "qwen-web-v2"
