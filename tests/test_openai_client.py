"""The official OpenAI client against the running gateway, and in the same process without a socket.

Requests are not repeated (`max_retries=0`) but where it is said, or a failure would hide.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam
from starlette.exceptions import HTTPException

from qwen_asgi import Gateway, Principal, Settings, anonymous
from qwen_asgi.settings import SEED_MODELS
from qwen_asgi.testing import Fault, SimulatedQwen, serve
from qwen_asgi.testing.web_v2 import SUMMARY_TITLE
from tests.conftest import DIALECTS, MODEL, UPSTREAM_KEY, GatewayURL, MakeGateway, eventually

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
REPLY = "你好，世界！ Two and two is four \u2028 👩‍👩‍👧 — \r\n haha\u0085."


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@contextmanager
def client_of(url: str, **options: Any) -> Iterator[OpenAI]:
    with OpenAI(
        base_url=f"{url}/v1", **{"api_key": "any", "max_retries": 0, "timeout": 20, **options}
    ) as client:
        yield client


@pytest.fixture
def client(gateway_url: GatewayURL) -> Iterator[OpenAI]:
    with client_of(gateway_url()) as client:
        yield client


# Answers.


def test_several_answers(gateway_url: GatewayURL, qwen: SimulatedQwen, dialect: str) -> None:
    qwen.reply = REPLY
    with client_of(gateway_url(upstream=dialect)) as client:
        answer = client.chat.completions.create(model=MODEL, messages=HELLO, n=3)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert [choice.message.content for choice in answer.choices] == [REPLY] * 3
        assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 3
        one = client.chat.completions.create(model=MODEL, messages=HELLO)
        assert answer.usage is not None
        assert one.usage is not None
        assert answer.usage.total_tokens == 3 * one.usage.total_tokens
    assert sum(request.is_chat for request in qwen.requests) == 4


def test_several_answers_streamed(
    gateway_url: GatewayURL, qwen: SimulatedQwen, dialect: str
) -> None:
    qwen.reply, qwen.pieces = REPLY, 3
    with client_of(gateway_url(upstream=dialect)) as client:
        chunks = list(
            client.chat.completions.create(
                model=MODEL,
                messages=HELLO,
                n=2,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    *chunks, last = chunks
    assert last.choices == []
    assert last.usage is not None
    for index in 0, 1:
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert [choice.delta.role for choice in own].count("assistant") == 1
        assert own[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in own) == REPLY
        assert [choice.finish_reason for choice in own if choice.finish_reason] == ["stop"]


def test_a_plain_answer(client: OpenAI, qwen: SimulatedQwen) -> None:
    qwen.reply = REPLY
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0.5)
    assert answer.model == MODEL
    assert answer.id.startswith("chatcmpl-")
    assert abs(answer.created - time.time()) < 60
    [choice] = answer.choices
    assert (choice.index, choice.finish_reason) == (0, "stop")
    assert (choice.message.role, choice.message.content) == ("assistant", REPLY)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 1
    assert answer.usage.total_tokens == 1 + answer.usage.completion_tokens


def test_a_streamed_answer(client: OpenAI, qwen: SimulatedQwen) -> None:
    qwen.reply = REPLY
    chunks = list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == REPLY
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", None]
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in chunks)


def test_the_usage_of_a_stream_is_its_last_chunk_where_it_was_asked_for(
    client: OpenAI, qwen: SimulatedQwen
) -> None:
    *chunks, last = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_no_usage_is_made_up_where_the_upstream_gives_none(
    client: OpenAI, qwen: SimulatedQwen
) -> None:
    qwen.usage = False
    assert client.chat.completions.create(model=MODEL, messages=HELLO).usage is None
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    assert all(chunk.usage is None for chunk in stream)


def test_reasoning_is_read_from_reasoning_content(
    client: OpenAI, qwen: SimulatedQwen, dialect: str
) -> None:
    qwen.thinking, qwen.reply = "One and one.", "Two."
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, extra_body={"enable_thinking": True}
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks]
    thoughts = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
    title = f"{SUMMARY_TITLE}\n" if dialect == "qwen-web-v2" else ""
    assert "".join(thoughts) == f"{title}One and one."
    assert "".join(delta.content or "" for delta in deltas) == "Two."


def test_a_plain_answer_that_was_asked_to_think_tells_its_thinking(
    client: OpenAI, qwen: SimulatedQwen, dialect: str
) -> None:
    qwen.thinking, qwen.reply = "One and one.", "Two."
    create = client.chat.completions.create
    answer = create(model=MODEL, messages=HELLO, extra_body={"enable_thinking": True})
    message = answer.choices[0].message
    title = f"{SUMMARY_TITLE}\n" if dialect == "qwen-web-v2" else ""
    told = (getattr(message, "reasoning_content", None), message.content)
    assert told == (f"{title}One and one.", "Two.")


def test_reasoning_is_read_from_a_plain_answer_too(
    client: OpenAI, qwen: SimulatedQwen, dialect: str
) -> None:
    if dialect == "qwen-web-v2":
        pytest.skip("each of its frames says whether it is thinking")
    qwen.reply = "<think>One and one.</think>Two."
    message = client.chat.completions.create(model=MODEL, messages=HELLO).choices[0].message
    assert (getattr(message, "reasoning_content", None), message.content) == (
        "One and one.",
        "Two.",
    )


def test_models_are_listed_and_found(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == list(SEED_MODELS)
    model = client.models.retrieve("qwen-plus-latest")
    assert (model.id, model.object, model.owned_by) == ("qwen-plus-latest", "model", "qwen")


def ignored_by(dialect: str, *fields: str) -> set[str]:
    """The web chats ignore what they do not know; the others are sent it."""
    return set(fields) if dialect.startswith("qwen-web") else set()


def ignored_in(headers: Mapping[str, str]) -> set[str]:
    return set(filter(None, headers.get("x-qwen-asgi-ignored", "").split(", ")))


def test_the_raw_response_has_the_request_id_and_what_was_ignored(
    client: OpenAI, dialect: str
) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=HELLO, seed=7, user="me", extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert ignored_in(raw.headers) == ignored_by(dialect, "seed", "user")
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer._request_id == "mine-1"


def test_a_stream_has_these_headers_too(client: OpenAI, dialect: str) -> None:
    create = client.chat.completions.with_streaming_response.create
    with create(model=MODEL, messages=HELLO, stream=True, seed=7) as raw:
        assert raw.headers["x-request-id"].startswith("req-")
        assert ignored_in(raw.headers) == ignored_by(dialect, "seed")
        assert sum(1 for _ in raw.parse()) > 2


# Errors.


REFUSED: dict[str, dict[str, Any]] = {
    "logprobs": {"logprobs": True},
    "audio": {"audio": {"voice": "alloy", "format": "wav"}},
    "modalities": {"modalities": ["text", "audio"]},
    "temperature": {"temperature": 2.5},
}
WEB_REFUSES = REFUSED.keys() - {"temperature"}
"""What the other dialects send on."""


@pytest.mark.parametrize("field", REFUSED)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_field_that_cannot_be_honoured_is_a_bad_request_that_names_it(
    client: OpenAI, qwen: SimulatedQwen, dialect: str, field: str, stream: bool
) -> None:
    if field in WEB_REFUSES and not dialect.startswith("qwen-web"):
        client.chat.completions.create(model=MODEL, messages=HELLO, stream=stream, **REFUSED[field])
        assert qwen.requests[-1].body[field] == REFUSED[field][field]
        return
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=HELLO, stream=stream, **REFUSED[field])
    assert caught.value.param == field
    assert caught.value.type == "invalid_request_error"
    assert not qwen.requests


def test_an_unknown_model_is_a_bad_request(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "gpt-4o" in caught.value.message


def test_an_unknown_model_s_address_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4o")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL, input="x")


def test_a_wrong_client_key_is_an_authentication_error(gateway_url: GatewayURL) -> None:
    url = gateway_url(client_keys=("right",))
    with client_of(url, api_key="wrong") as client, pytest.raises(openai.AuthenticationError) as e:
        client.models.list()
    assert e.value.code == "invalid_api_key"
    assert e.value.response.headers["www-authenticate"] == "Bearer"
    with client_of(url, api_key="right") as client:
        assert client.models.list().data


def test_a_refused_principal_is_a_permission_error(gateway_url: GatewayURL) -> None:
    def authenticate(request: Any) -> Principal:
        raise HTTPException(403, "not you")

    with (
        client_of(gateway_url(authenticate=authenticate)) as client,
        pytest.raises(openai.PermissionDeniedError, match="not you"),
    ):
        client.models.list()


UPSTREAM_FAULTS: dict[str, tuple[Fault, type[openai.APIStatusError], str]] = {
    "bad request": (
        Fault.failure("Bad_Request", "the input is too long"),
        openai.BadRequestError,
        "Bad_Request",
    ),
    "limit": (
        Fault.failure("RateLimited", "too often", num=4, status=429),
        openai.RateLimitError,
        "RateLimited",
    ),
    "its credential": (
        Fault.status(401),
        openai.InternalServerError,
        "upstream_authentication",
    ),
    "web page": (Fault.block_page(), openai.InternalServerError, "upstream_blocked"),
    "server error": (Fault.status(503), openai.InternalServerError, "upstream_failed"),
    "cut": (Fault.truncate(5), openai.InternalServerError, "upstream_truncated"),
    "empty": (Fault.empty(), openai.InternalServerError, "upstream_invalid_response"),
}


@pytest.mark.parametrize("fault", UPSTREAM_FAULTS)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_an_upstream_s_failure_has_its_class(
    client: OpenAI, qwen: SimulatedQwen, dialect: str, fault: str, stream: bool
) -> None:
    simulated, kind, code = UPSTREAM_FAULTS[fault]
    if fault == "web page" and not dialect.startswith("qwen-web"):
        code = "upstream_invalid_response"
    qwen.fail(simulated)
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=MODEL, messages=HELLO, stream=stream)
    assert type(caught.value) is kind
    assert caught.value.code == code
    assert caught.value.request_id


def test_a_limit_in_hours_becomes_a_retry_after_in_seconds(
    client: OpenAI, qwen: SimulatedQwen, dialect: str
) -> None:
    if not dialect.startswith("qwen-web"):
        pytest.skip("its limits are in seconds, in a header")
    qwen.fail(Fault.failure("RateLimited", "upper limit for today", num=4))
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert caught.value.response.headers["retry-after"] == str(4 * 3600)


def test_the_client_waits_as_long_as_the_upstream_said_and_then_succeeds(
    gateway_url: GatewayURL, qwen: SimulatedQwen
) -> None:
    qwen.fail(Fault.status(429, headers={"retry-after": "1"}))
    with client_of(gateway_url(), max_retries=1) as client:
        start = time.monotonic()
        answer = client.chat.completions.create(model=MODEL, messages=HELLO)
        # Its own first back-off would be half a second.
        assert 1.0 <= time.monotonic() - start < 3.0
    assert answer.choices[0].message.content
    assert sum(request.is_chat for request in qwen.requests) == 2


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault.error_frame(3, "Internal_Server_Error", "out of order"), "upstream_failed"),
        (Fault.error_frame(3, "insufficient_quota", "quota exceeded"), "insufficient_quota"),
        (Fault.truncate(), "upstream_truncated"),
    ],
    ids=["error frame", "limit", "cut"],
)
def test_a_failure_in_mid_stream_raises_behind_the_text_before_it(
    client: OpenAI, qwen: SimulatedQwen, fault: Fault, code: str
) -> None:
    qwen.reply, qwen.pieces = "abcdefgh", 1
    qwen.fail(fault)
    stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    chunks: list[ChatCompletionChunk] = []
    with pytest.raises(openai.APIError) as caught:
        chunks.extend(stream)
    assert caught.value.code == code
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text
    assert qwen.reply.startswith(text)
    assert {chunk.choices[0].finish_reason for chunk in chunks} == {None}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_web_chat_s_answer_ends_at_a_stop_sequence(
    client: OpenAI, qwen: SimulatedQwen, dialect: str, stream: bool
) -> None:
    if not dialect.startswith("qwen-web"):
        pytest.skip("the server does that")
    qwen.reply, qwen.pieces = "one two three", 2
    if not stream:
        answer = client.chat.completions.create(model=MODEL, messages=HELLO, stop="two")
        assert answer.choices[0].message.content == "one "
        assert answer.choices[0].finish_reason == "stop"
    else:
        chunks = list(
            client.chat.completions.create(model=MODEL, messages=HELLO, stop=["wo"], stream=True)
        )
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == "one t"
        assert chunks[-1].choices[0].finish_reason == "stop"
    qwen.wait_for(lambda qwen: qwen.open == 0)


def test_closing_a_stream_frees_the_upstream(client: OpenAI, qwen: SimulatedQwen) -> None:
    qwen.reply, qwen.pieces, qwen.pace = "x" * 10_000, 1, 0.001
    with client.chat.completions.create(model=MODEL, messages=HELLO, stream=True) as stream:
        next(iter(stream))
    qwen.wait_for(lambda qwen: qwen.hung_up == 1 and qwen.open == 0)


def test_the_client_reads_through_comments(gateway_url: GatewayURL, qwen: SimulatedQwen) -> None:
    qwen.reply, qwen.pieces = "abc", 1
    for silence in None, 0, 1, 4:
        qwen.fail(Fault.stall(silence, seconds=0.2))
        with client_of(gateway_url(heartbeat=0.02)) as client:
            stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text == "abc"


# The asynchronous client: over a socket, and with no socket between it and the gateway.


@asynccontextmanager
async def over_a_socket(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    with serve(gateway) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            yield client


@asynccontextmanager
async def in_process(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    httpx2 = pytest.importorskip("httpx2")
    transport: Any = httpx2.ASGITransport(app=gateway)
    async with (
        openai.DefaultAsyncHttpxClient(transport=transport) as http,
        AsyncOpenAI(
            base_url="http://gateway/v1", api_key="any", max_retries=0, http_client=http
        ) as client,
        gateway.lifespan(),
    ):
        yield client


@asynccontextmanager
async def in_process_by_httpx(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    """A host's own `httpx.AsyncClient`, which this client takes as well."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=gateway)) as http:
        given: Any = http
        client = AsyncOpenAI(
            base_url="http://gateway/v1", api_key="any", max_retries=0, http_client=given
        )
        async with gateway.lifespan():
            yield client


WAYS = [over_a_socket, in_process, in_process_by_httpx]


@pytest.mark.anyio
@pytest.mark.parametrize("way", WAYS)
async def test_the_asynchronous_client(way: Any, make_gateway: MakeGateway) -> None:
    async with way(make_gateway()) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=HELLO)
        assert "simulated Qwen" in answer.choices[0].message.content
        stream = await client.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == answer.choices[0].message.content
        assert chunks[-1].usage.total_tokens > 0
        assert [model.id async for model in client.models.list()] == list(SEED_MODELS)


@pytest.mark.anyio
@pytest.mark.parametrize("way", WAYS)
async def test_the_asynchronous_client_raises(
    way: Any, make_gateway: MakeGateway, qwen: SimulatedQwen
) -> None:
    async with way(make_gateway()) as client:
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model="gpt-4o", messages=HELLO)
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("gpt-4o")
        qwen.fail(Fault.block_page())
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        qwen.fail(Fault.truncate())
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        chunks: list[ChatCompletionChunk] = []

        async def read() -> None:
            async for chunk in stream:
                chunks.append(chunk)

        with pytest.raises(openai.APIError, match="upstream"):
            await read()
        assert chunks
        assert all(chunk.choices[0].finish_reason is None for chunk in chunks)


@pytest.mark.anyio
async def test_many_at_once_each_get_their_own_answer(
    make_gateway: MakeGateway, qwen: SimulatedQwen
) -> None:
    async with over_a_socket(make_gateway()) as client:

        async def one(number: int) -> None:
            text = f"number {number}"
            stream = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": text}], stream=True
            )
            read = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            assert read.endswith(f"“{text}”")

        await asyncio.gather(*(one(number) for number in range(40)))
    eventually(lambda: qwen.open == 0)


def test_a_gateway_without_an_upstream_is_an_internal_server_error() -> None:
    settings = Settings(api_key=UPSTREAM_KEY, base_url="http://127.0.0.1:1", connect_timeout=5)
    with (
        serve(Gateway(settings, authenticate=anonymous)) as url,
        client_of(url) as client,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert caught.value.code == "upstream_unreachable"
