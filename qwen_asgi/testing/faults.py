"""What can go wrong with a simulated answer. WE numbers are those of the wire notes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, Literal

from qwen_asgi.testing import openai_shaped, web
from qwen_asgi.testing.answers import (
    EVENT_STREAM,
    JSON,
    Answer,
    compact,
    dump,
    frame,
    slices,
    sse_of,
    whole_answer,
)
from qwen_asgi.testing.web import UNAUTHORIZED

RATE_LIMITED = (
    b'{"code": "RateLimited", "detail": "You\'ve reached the upper limit for today\'s usage.", '
    b'"template": "You have reached the daily usage limit. Please wait {{num}} hours before '
    b'trying again.", "num": 4}\n'
)
BLOCK_PAGE = (
    b'<!doctypehtml><html lang="zh-cn"><head><meta charset="utf-8"><meta name="aliyun_waf_aa" '
    b'content="00000000000000000000000000000000"><title></title></head><body><noscript>Please '
    b"enable JavaScript.</noscript><script>/* challenge removed */</script></body></html>\n"
)
HUMAN_CHECK = (
    '{"ret":["FAIL_SYS_USER_VALIDATE","RGV587_ERROR::SM::哎哟喂,被挤爆啦,请稍后重试"],"data":{"url":'
    '"https://chat.example.invalid/api/v2/chat/completions/_____tmd_____/punish'
    '?x5secdata=EXAMPLE&action=captcha"}}'
).encode()
GARBAGE = b"\x1f\x8b\x08\x00\xff\xfe\x00\xc3\x28\n\x80\x81 not an event\n\n\xf0\x9f"


WEB_REFUSALS = {
    401: (UNAUTHORIZED, JSON),
    429: (RATE_LIMITED, JSON),
    500: (b"Internal Server Error", "text/plain"),
}
OPENAI_REFUSALS = {
    401: ("invalid_api_key", "Incorrect API key provided. "),
    429: ("limit_requests", "You exceeded your current requests list."),
    500: ("internal_error", "An internal error has occured, please try again later."),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one answer; the class methods make them.

    `empty`, `error_frame`, `truncate`, `stall` and `drip` change the answer that the request would
    have had; the others stand in its place, whatever was asked for.
    """

    name: str
    change: Callable[[Answer], Answer] = field(repr=False)

    @classmethod
    def status(
        cls,
        code: int,
        body: bytes = b"",
        content_type: str = JSON,
        headers: Mapping[str, str] | None = None,
    ) -> Fault:
        """Answer with this HTTP status (WE-07, WE-09, WE-17), `headers` beside the usual ones."""
        return cls._instead(f"status {code}", whole_answer(body, content_type, code, headers))

    @classmethod
    def failure(cls, code: str, details: str, *, status: int = 400, **extra: Any) -> Fault:
        """Say no with HTTP 200 and `success: false` (WE-01); `extra` stands beside `code`.

        Model Studio and OpenAI's kind say it with that HTTP status and an `error` object.
        """

        def change(answer: Answer) -> Answer:
            if answer.form == "openai":
                return openai_shaped.failed(status, code, details)
            return web.failed(code, details, **extra)

        return cls(f"failure {code}", change)

    @classmethod
    def refusal(cls, status: int) -> Fault:
        """Answer with HTTP 401, 429 or 500 and what the upstream says with it."""

        def change(answer: Answer) -> Answer:
            if answer.form == "openai":
                return openai_shaped.failed(status, *OPENAI_REFUSALS[status])
            return whole_answer(*WEB_REFUSALS[status], status)

        return cls(f"refusal {status}", change)

    @classmethod
    def event_framed(cls, status: int, code: str, message: str) -> Fault:
        """Answer with an error status and, in its body, the error as an event (DS-90)."""
        body = sse_of(openai_shaped.error_object(code, message))
        return cls._instead(f"event framed {code}", whole_answer(body, EVENT_STREAM, status))

    @classmethod
    def leaked_event(cls, status: int, code: str, message: str) -> Fault:
        """The same as Model Studio's native event under the label of JSON (DS-91)."""
        error = compact({"code": code, "message": message, "request_id": "r"})
        body = b"id:1\nevent:error\n:HTTP_STATUS/%d\ndata:%b\n\n" % (status, error)
        return cls._instead(f"leaked event {code}", whole_answer(body, JSON, status))

    @classmethod
    def block_page(cls, status: int = 200) -> Fault:
        """Answer with the HTML of the site's filter (WE-13), which comes with 200 or 5xx."""
        return cls._instead("block page", whole_answer(BLOCK_PAGE, "text/html", status))

    @classmethod
    def human_check(
        cls, content_type: Literal["application/json", "text/event-stream"] = JSON
    ) -> Fault:
        """Ask for a human (WE-14), with 200 and JSON that may be labelled as an event stream."""
        return cls._instead("human check", whole_answer(HUMAN_CHECK, content_type))

    @classmethod
    def bare_json(cls, document: Any) -> Fault:
        """Answer 200 with a JSON document labelled as an event stream, without `data:`."""
        return cls._instead("bare JSON", whole_answer(dump(document), EVENT_STREAM))

    @classmethod
    def garbage(cls) -> Fault:
        """Answer 200 with bytes that are no events, no JSON and no UTF-8, labelled as events."""
        return cls._instead("garbage", whole_answer(GARBAGE, EVENT_STREAM))

    @classmethod
    def empty(cls) -> Fault:
        """Answer 200 without a byte of body (WE-15), labelled as the answer would have been."""
        return cls("empty", lambda answer: whole_answer(b"", answer.headers["content-type"]))

    @classmethod
    def error_frame(cls, after_frames: int, code: str, details: str) -> Fault:
        """End the stream with an error object (WE-11) after that many whole frames.

        An answer that is no stream becomes a `failure`.
        """

        def change(answer: Answer) -> Answer:
            if not answer.is_stream:
                return cls.failure(code, details).change(answer)
            if answer.form == "openai":
                error = sse_of(openai_shaped.error_object(code, details))
            else:
                error = frame({"error": {"code": code, "details": details}})
            return replace(answer, steps=chain(islice(answer.steps, after_frames), [error]))

        return cls(f"error frame {code}", change)

    @classmethod
    def truncate(cls, after_bytes: int | None = None) -> Fault:
        """Cut the connection within the body; needs a real socket.

        `after_bytes` of the body still go out, None is half of it; its last byte never does.
        """

        def change(answer: Answer) -> Answer:
            frames = list(answer.frames)
            size = sum(map(len, frames))
            limit = size // 2 if after_bytes is None else min(after_bytes, size - 1)
            return replace(answer, steps=_first_bytes(frames, limit), complete=False)

        return cls("truncate", change)

    @classmethod
    def stall(cls, after_frames: int | None = 0, seconds: float = 3600.0) -> Fault:
        """Fall silent for `seconds` after that many frames, then go on; None is before the headers.

        With more frames than there are, the silence is before the end of the body. An answer that
        is no stream falls silent before its body.
        """

        def change(answer: Answer) -> Answer:
            if after_frames is None:
                return replace(answer, delay=seconds)
            steps = iter(answer.steps)
            before = islice(steps, after_frames if answer.is_stream else 0)
            return replace(answer, steps=chain(before, [seconds], steps))

        return cls("stall", change)

    @classmethod
    def drip(cls, bytes_per_piece: int = 1, pause: float = 0.0) -> Fault:
        """Send the body in pieces of that many bytes, `pause` seconds between them."""

        def change(answer: Answer) -> Answer:
            pieces = (piece for frame in answer.frames for piece in slices(frame, bytes_per_piece))
            return replace(answer, steps=pieces, pace=pause)

        return cls("drip", change)

    @classmethod
    def _instead(cls, name: str, answer: Answer) -> Fault:
        return cls(name, lambda _: answer)


def _first_bytes(frames: Iterable[bytes], limit: int) -> Iterator[bytes]:
    for piece in frames:
        if limit > 0:
            yield piece[:limit]
        limit -= len(piece)


SIMULATIONS: Mapping[str, Fault] = {
    "401": Fault.refusal(401),
    "429": Fault.refusal(429),
    "500": Fault.refusal(500),
    "block": Fault.block_page(),
    "truncate": Fault.truncate(),
    "stall": Fault.stall(after_frames=3),
    "drip": Fault.drip(pause=0.001),
    "empty": Fault.empty(),
}
"""What a last user text of `simulate: NAME` brings about, by that name.

`401`, `429` and `500` are HTTP statuses; `block` is the filter's page; `truncate` cuts the
connection in the middle; `stall` falls silent for an hour after three frames; `drip` sends a byte
each millisecond; `empty` sends no body.
"""
