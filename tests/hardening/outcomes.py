"""What may become of a chat whose upstream fails, as values that can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import httpx

from tests.conftest import error_of
from tests.hardening.asking import read_stream, read_text
from tests.hardening.faulty_upstream import REPLY


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a client got, or is to get."""

    status: int = 200
    code: str | None = None
    """Of the error; None without one."""
    text: str = ""
    """That came, thinking included, before the error if there was one. Beside the status of an
    error, what is to come before it in a stream, whose status then is 200."""
    retry_after: int | None = None
    """Seconds; of an error with a status of its own."""

    def __str__(self) -> str:
        if self.code is None and self.status == 200:
            return "whole" if self.text == REPLY else "the start as if whole"
        is_ours = self.code is not None and self.code.startswith(
            ("upstream_", "model_", "internal_")
        )
        code = self.code if is_ours else "a code of the upstream's"
        return f"text, then {code}" if self.status == 200 else f"{self.status} {code}"


WHOLE = Outcome(text=REPLY)


def failed(status: int, code: str | None, retry_after: int | None = None) -> Outcome:
    """An error before the first byte."""
    return Outcome(status, code, retry_after=retry_after)


def broke(error: Outcome, text: str) -> Outcome:
    """That error as the last event of a stream, behind this much text; without any, and where the
    answer is no stream, with a status of its own."""
    return replace(error, text=text)


TRUNCATED = failed(500, "upstream_truncated")
INVALID = failed(500, "upstream_invalid_response")
EMPTY = failed(500, "upstream_empty_answer")
FAILED = failed(500, "upstream_failed")
CREDENTIAL = failed(500, "upstream_authentication")
BLOCKED = failed(500, "upstream_blocked")
UNREACHABLE = failed(500, "upstream_unreachable")
NO_CONNECTION = failed(500, "upstream_connect_timeout")
NO_EVENT = failed(500, "upstream_first_timeout")
SILENT = failed(500, "upstream_idle_timeout")
LIMITED = failed(429, "upstream_rate_limited")
REFUSED = failed(400, "upstream_refused")
FORBIDDEN = failed(403, "upstream_forbidden")
NO_MODEL = failed(400, "model_not_found")

NO_HTTP = (("direct", INVALID), ("httpx", TRUNCATED))
"""httpx has one error for an answer that is no HTTP and for one that ended too soon."""

Expected = Outcome | Sequence[tuple[str, Outcome]]
"""One outcome for all, or the first one whose words are all among a chat's traits: its lane, its
dialect, `web` or `openai-kind`, `plain` or `stream`, and `document` or `events`, what is asked for
at the upstream; no words are for all others."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How a chat is asked for."""

    lane: str
    dialect: str
    is_streamed: bool

    @property
    def is_web(self) -> bool:
        return self.dialect.startswith("qwen-web")

    @property
    def is_document(self) -> bool:
        """Whether the upstream is asked for an answer in one piece."""
        return not self.is_streamed and self.dialect != "qwen-web-v2"

    @property
    def traits(self) -> frozenset[str]:
        return frozenset(
            {
                self.lane,
                self.dialect,
                "web" if self.is_web else "openai-kind",
                "stream" if self.is_streamed else "plain",
                "document" if self.is_document else "events",
            }
        )

    def of(self, expected: Expected) -> Outcome:
        """Return what is to come of this one; in one piece no text comes before an error."""
        if not isinstance(expected, Outcome):
            traits = self.traits
            expected = next(o for words, o in expected if traits.issuperset(words.split()))
        if expected.code is None or not expected.text:
            return expected
        if self.is_streamed:
            return Outcome(code=expected.code, text=expected.text)
        return replace(expected, text="")

    def __str__(self) -> str:
        return f"{self.lane} {self.dialect} {'stream' if self.is_streamed else 'plain'}"


def observed(response: httpx.Response, *, is_streamed: bool) -> Outcome:
    """Return what a client got, having checked the form of it: what is neither a whole answer nor
    an error in its proper form raises AssertionError, or what a validator raises."""
    if response.status_code != 200:
        error = error_of(response, response.status_code)
        wait = response.headers.get("retry-after")
        return failed(response.status_code, error["code"], None if wait is None else int(wait))
    if not is_streamed:
        return Outcome(text=read_text(response))
    read = read_stream(response)
    assert read.is_whole or read.is_broken_off, response.text[-300:]
    code = None if read.error is None else str(read.error["code"])
    return Outcome(code=code, text=read.reasoning + read.text)
