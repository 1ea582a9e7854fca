from __future__ import annotations

import json
from types import MappingProxyType

import pytest

from qwen_asgi.chat import ChatRequest, Message
from qwen_asgi.errors import (
    UpstreamAuthenticationFailed,
    UpstreamError,
    UpstreamRateLimited,
)
from qwen_asgi.transports import UpstreamResponse
from qwen_asgi.upstreams import AnswerReader
from qwen_asgi.upstreams._words import Secrets
from qwen_asgi.upstreams.model_studio import ModelStudio
from qwen_asgi.upstreams.openai_compatible import OpenAICompatible
from qwen_asgi.upstreams.qwen_web_v1 import QwenWebV1
from qwen_asgi.upstreams.qwen_web_v2 import QwenWebV2

URL = "http://127.0.0.1:1"
HEADERS = {
    "authorization": "Bearer kry-1",
    "cookie": "lang=en; session=cky-two-long",
    "x-gateway": "Team=canary-three",
    "x-team-key": "ky4",
    "x-source": "web",
    "x-auth-more": 'Token token="quoted5"; other=k6',
    "x-digest-auth": "Digest username=op, response='s3cr3t7'",
    "proxy-authorization": "Basic b3BlcmF0b3I6aHVudGVyMnB3",
    "x-login": "operator:hunter3pw",
}
PIECES = (
    "kry-1",
    "cky-two-long",
    "canary-three",
    "ky4",
    "own-key-5",
    "quoted5",
    "s3cr3t7",
    "hunter2pw",
    "hunter3pw",
)
DIALECTS = [
    QwenWebV1(URL, "own-key-5", headers=HEADERS),
    QwenWebV2(URL, "own-key-5", headers=HEADERS),
    ModelStudio(URL, "own-key-5", headers=HEADERS),
    OpenAICompatible(URL, "own-key-5", headers=HEADERS),
]


def errors_of(dialect: AnswerReader, text: str) -> list[UpstreamError]:
    """The errors that this text becomes, wherever an upstream may say it."""
    document = json.dumps(
        {"success": False, "error": {"code": "Bad", "message": text, "details": text}}
    )
    errors = [dialect.refusal(status, {}, document.encode()) for status in (400, 429, 500)]
    request = ChatRequest(model="m", messages=(Message("user", "hi"),))
    decoder = dialect.decoder(request, Answered())
    with pytest.raises(UpstreamError) as raised:
        decoder.feed(f"data: {document}\n\n".encode())
    errors.append(raised.value)
    with pytest.raises(UpstreamError) as raised:
        dialect.decode_models(document.encode())
    return [*errors, raised.value]


class Answered(UpstreamResponse):
    status = 200
    headers = MappingProxyType[str, str]({})
    ends_by_close = False

    async def read(self, within: float) -> bytes:
        raise NotImplementedError


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_what_the_operators_headers_hold_is_struck_out_wherever_it_is_repeated(
    dialect: AnswerReader,
) -> None:
    for piece in PIECES:
        for text in piece, f"no: {piece}.", f"got 'Bearer {piece}', which is old":
            for error in errors_of(dialect, text):
                assert piece not in f"{error} {error!r} {error.code} {error.param}"


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_an_upstreams_plain_words_are_kept(dialect: AnswerReader) -> None:
    said = [str(error) for error in errors_of(dialect, "the web search of Bearer is broken")]
    assert all("the web search of Bearer is broken" in text for text in said)


def test_a_longer_secret_goes_before_one_that_is_a_part_of_it() -> None:
    secrets = Secrets("abcdefgh", {"x-token": "abcdefgh-and-more"})
    assert secrets.struck("abcdefgh-and-more abcdefgh") == "(removed) (removed)"


@pytest.mark.parametrize("key", ["x", "token", "-", "progress", "test"])
@pytest.mark.parametrize("dialect", [QwenWebV1, QwenWebV2])
def test_a_key_that_is_an_ordinary_word_changes_no_error(
    dialect: type[QwenWebV1] | type[QwenWebV2], key: str
) -> None:
    def refused(details: str) -> UpstreamError:
        body = json.dumps({"success": False, "data": {"code": "Bad_Request", "details": details}})
        return dialect(URL, key).refusal(500, {}, body.encode())

    assert type(refused("Your token has expired")) is UpstreamAuthenticationFailed
    assert type(refused("The chat is in progress!")) is UpstreamRateLimited
    assert "max context exceeded" in str(refused("max context exceeded"))


def test_a_key_that_is_a_word_hides_no_code() -> None:
    body = b'{"error": {"code": "context_length_exceeded", "message": "max context"}}'
    error = OpenAICompatible(URL, "x").refusal(400, {}, body)
    assert (error.code, "max context" in str(error)) == ("context_length_exceeded", True)


def test_of_a_list_of_errors_no_secret_is_shown() -> None:
    key = 'ab"cd\\12345'
    body = json.dumps({"error": [f"bad key {key}", 5]}).encode()
    error = OpenAICompatible(URL, key).refusal(400, {}, body)
    assert "12345" not in str(error)
    assert "bad key (removed)" in str(error)


def test_no_secret_is_shown_by_repr() -> None:
    assert "own-key-5" not in repr(Secrets("own-key-5", HEADERS))


def test_without_a_secret_nothing_is_struck_out() -> None:
    assert Secrets("", {}).struck("any text") == "any text"
