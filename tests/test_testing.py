from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Message, Receive, Scope, Send

from qwen_asgi.testing import (
    BLOCK_PAGE,
    GARBAGE,
    MODELS,
    RATE_LIMITED,
    SEARCH_FRAME,
    SIMULATIONS,
    UNAUTHORIZED,
    Fault,
    SimulatedQwen,
    serve,
)

WIRE = Path(__file__).parent / "data" / "wire"
PATH = "/api/chat/completions"
GREETING = ["你", "好", "，", "世界", "！"]
PHASES = {"thinking_enabled": True, "output_schema": "phase"}


def sample(name: str) -> bytes:
    return (WIRE / name).read_bytes()


def frames(body: bytes) -> list[bytes]:
    return [frame + b"\n\n" for frame in body.split(b"\n\n")[:-1]]


def deltas(body: bytes) -> list[dict[str, Any]]:
    chunks = [json.loads(frame[6:]) for frame in frames(body) if frame != b"data: [DONE]\n\n"]
    return [chunk["choices"][0]["delta"] for chunk in chunks]


def contents(body: bytes) -> list[str]:
    return [delta["content"] for delta in deltas(body)]


def without_counts(body: bytes) -> bytes:
    return re.sub(rb'(_tokens": )\d+', rb"\1N", body)


def question(text: str = "Hello", *, stream: bool = True, **fields: Any) -> dict[str, Any]:
    last = {"role": "user", "content": text, **fields.pop("last", {})}
    return {"model": "qwen-max-latest", "messages": [last], "stream": stream, **fields}


@dataclass
class Stage:
    """One server for the whole file, behind which each test puts its own simulator."""

    qwen: SimulatedQwen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.qwen(scope, receive, send)


@dataclass
class Chat:
    """A simulator and a client that talks to it over a socket."""

    qwen: SimulatedQwen
    client: httpx.Client

    def ask(self, text: str = "Hello", **fields: Any) -> httpx.Response:
        return self.client.post(PATH, json=question(text, **fields))

    def read(self, text: str = "Hello", **fields: Any) -> tuple[bytes, bool]:
        """Return the body as far as it came, and whether the connection was cut."""
        body = b""
        try:
            with self.client.stream("POST", PATH, json=question(text, **fields)) as response:
                for piece in response.iter_raw():
                    body += piece
        except httpx.RemoteProtocolError:
            return body, True
        return body, False


Simulate = Callable[..., Chat]


@pytest.fixture(scope="module")
def stage() -> Iterator[tuple[Stage, httpx.Client]]:
    stage = Stage(SimulatedQwen())
    headers = {"authorization": "Bearer key"}
    with serve(stage) as url, httpx.Client(base_url=url, headers=headers) as client:
        yield stage, client


@pytest.fixture
def simulate(stage: tuple[Stage, httpx.Client]) -> Simulate:
    def simulate(**settings: Any) -> Chat:
        stage[0].qwen = SimulatedQwen(**settings)
        return Chat(stage[0].qwen, stage[1])

    return simulate


def test_a_plain_stream_repeats_the_text_so_far_byte_for_byte(simulate: Simulate) -> None:
    chat = simulate(reply="你好，世界！", pieces=lambda _: GREETING, usage=False)
    answer = chat.ask()
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.content == sample("web1-cumulative.sse")


def test_an_incremental_stream_has_new_pieces_only_byte_for_byte(simulate: Simulate) -> None:
    chat = simulate(reply="你好，世界！", pieces=lambda _: GREETING, usage=False, done=False)
    assert chat.ask(incremental_output=True).content == sample("web1-incremental.sse")


def test_an_upstream_may_ignore_that_new_pieces_only_were_asked_for(simulate: Simulate) -> None:
    chat = simulate(reply="abc", pieces=1, ignore_incremental=True)
    assert contents(chat.ask(incremental_output=True).content) == ["a", "ab", "abc", "abc"]


def test_an_empty_piece_is_an_empty_frame_between_cumulative_ones(simulate: Simulate) -> None:
    chat = simulate(pieces=lambda _: ["It ", "", "is"])
    assert contents(chat.ask().content) == ["It ", "", "It is", "It is"]


def test_thinking_in_phases_reads_as_the_sample_but_for_the_counts(simulate: Simulate) -> None:
    texts = {"1+1": ["1+1 ", "is a simple sum."], "The answer": ["The answer ", "is 2."]}
    chat = simulate(thinking="1+1", reply="The answer", pieces=lambda text: texts[text])
    body = chat.ask(incremental_output=True, last={"feature_config": PHASES}).content
    assert without_counts(body) == without_counts(sample("web1-phase-think-answer.sse"))


def test_each_phase_is_cumulative_by_itself(simulate: Simulate) -> None:
    chat = simulate(thinking="ab", reply="yz", pieces=1)
    body = chat.ask(last={"feature_config": PHASES}).content
    assert [(delta["phase"], delta["content"]) for delta in deltas(body)] == [
        ("think", "a"),
        ("think", "ab"),
        ("think", ""),
        ("answer", "y"),
        ("answer", "yz"),
        ("answer", ""),
    ]


def test_without_thinking_a_phased_stream_holds_the_answer_only(simulate: Simulate) -> None:
    body = simulate().ask(last={"feature_config": {"output_schema": "phase"}}).content
    assert {delta["phase"] for delta in deltas(body)} == {"answer"}
    assert [delta["status"] for delta in deltas(body)][-2:] == ["typing", "finished"]


@pytest.mark.parametrize("pieces", [None, 1, 3])
def test_without_phases_the_thinking_stands_in_tags(simulate: Simulate, pieces: int | None) -> None:
    chat = simulate(thinking="Well.", reply="Yes.", pieces=pieces)
    thinking = {"feature_config": {"thinking_enabled": True}}
    body = chat.ask(incremental_output=True, last=thinking).content
    assert "".join(contents(body)) == "<think>Well.</think>Yes."
    assert all("phase" not in delta for delta in deltas(body))


def test_a_search_begins_with_the_result_frame_of_the_sample(simulate: Simulate) -> None:
    chat = simulate(reply="It is sunny", pieces=lambda _: ["It is ", "sunny"], usage=False)
    body = chat.ask(chat_type="search", last={"chat_type": "search"}).content
    assert frames(body)[0] == SEARCH_FRAME
    assert frames(body)[:3] == frames(sample("web1-search-cumulative.sse"))[:3]


def test_the_usage_grows_by_a_token_a_piece(simulate: Simulate) -> None:
    body = simulate(reply="abc", pieces=1, done=False).ask("Hello there").content
    usages = [json.loads(frame[6:])["usage"] for frame in frames(body)]
    assert [usage["output_tokens"] for usage in usages] == [1, 2, 3, 3]
    assert {usage["input_tokens"] for usage in usages} == {2}
    assert [usage["total_tokens"] for usage in usages] == [3, 4, 5, 5]


def test_done_and_usage_can_be_left_out_of_a_stream(simulate: Simulate) -> None:
    body = simulate(done=False, usage=False).ask().content
    assert b"[DONE]" not in body
    assert b"usage" not in body


def test_an_answer_in_one_piece_reads_as_the_sample(simulate: Simulate) -> None:
    answer = simulate(reply="你好，世界！", usage=False).ask(stream=False)
    assert answer.headers["content-type"] == "application/json"
    assert answer.content == sample("web1-nonstream.json").rstrip()


def test_an_answer_in_one_piece_tells_the_usage_of_the_whole_stream(simulate: Simulate) -> None:
    chat = simulate(thinking="Well, well.", reply="Yes, indeed.")
    whole = chat.ask(stream=False, last={"feature_config": PHASES}).json()
    last = frames(chat.ask(last={"feature_config": PHASES}).content)[-2]
    assert whole["choices"][0]["message"]["content"] == "Yes, indeed."
    assert whole["usage"] == json.loads(last[6:])["usage"]


@pytest.mark.parametrize("text", ["Hello, what is new?", "你好，今天有什么新闻？"])
def test_words_are_cut_into_pieces_that_join_to_the_text(simulate: Simulate, text: str) -> None:
    reply = f"  {text} naïve {'x' * 30}\n\n```py\nprint('好')\n```  "
    pieces = contents(simulate(reply=reply).ask(incremental_output=True).content)
    assert "".join(pieces) == reply
    assert len(pieces) > 10


def test_the_friendly_reply_quotes_the_last_user_text_in_its_language(simulate: Simulate) -> None:
    chat = simulate()
    english = chat.ask("How are you?", stream=False).json()["choices"][0]["message"]["content"]
    chinese = chat.ask("你好吗？", stream=False).json()["choices"][0]["message"]["content"]
    assert english == "Hello! This is the simulated Qwen. You said: “How are you?”"
    assert chinese == "你好！我是模拟的通义千问。你说的是：“你好吗？”"


def test_the_last_user_text_may_be_in_parts_and_before_other_turns(simulate: Simulate) -> None:
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image", "image": "an-id"}]
    messages = [
        {"role": "user", "content": "No."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None},
    ]
    answer = simulate().ask(stream=False, messages=messages)
    assert "“What is it?”" in answer.json()["choices"][0]["message"]["content"]


def test_a_conversation_without_a_user_gets_a_reply_too(simulate: Simulate) -> None:
    answer = simulate().ask(stream=False, messages=[{"role": "system", "content": "Be terse."}])
    assert "“”" in answer.json()["choices"][0]["message"]["content"]


def test_a_long_text_is_quoted_in_short(simulate: Simulate) -> None:
    answer = simulate().ask("a" * 5000, stream=False)
    assert len(answer.json()["choices"][0]["message"]["content"]) < 150


def test_a_function_of_the_request_may_make_the_reply(simulate: Simulate) -> None:
    chat = simulate(reply=lambda body: body["model"].upper())
    assert "".join(contents(chat.ask(incremental_output=True).content)) == "QWEN-MAX-LATEST"


def test_settings_may_change_between_requests(simulate: Simulate) -> None:
    chat = simulate(reply="one", usage=False)
    first = chat.ask(stream=False).json()
    chat.qwen.reply = "two"
    assert first != chat.ask(stream=False).json()


def test_frames_keep_their_pace(simulate: Simulate) -> None:
    chat = simulate(reply="abcd", pieces=1, pace=0.02, done=False)
    begin = time.monotonic()
    assert len(frames(chat.ask().content)) == 5
    assert time.monotonic() - begin >= 4 * 0.02


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer other", "Basic right"])
def test_a_wrong_key_is_refused(simulate: Simulate, authorization: str) -> None:
    chat = simulate(api_key="right")
    headers = {"authorization": authorization}
    answer = chat.client.post(PATH, json=question(), headers=headers)
    assert (answer.status_code, answer.content) == (401, sample("web-401.json"))
    assert chat.client.get("/api/models", headers=headers).status_code == 401


def test_the_right_key_is_let_in(simulate: Simulate) -> None:
    chat = simulate(api_key="right")
    headers = {"authorization": "Bearer right"}
    assert chat.client.post(PATH, json=question(), headers=headers).status_code == 200


def test_an_unknown_model_is_refused_with_status_200(simulate: Simulate) -> None:
    answer = simulate(models=["qwen-max-latest"]).ask(model="gpt-5")
    expected = json.loads(sample("web2-model-not-found.json"))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == expected | {"request_id": answer.json()["request_id"]}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"messages": [{"role": "user", "content": "Hi"}]}',
        b'{"model": "qwen-max-latest"}',
        b'{"model": "qwen-max-latest", "messages": []}',
        b'{"model": "qwen-max-latest", "messages": ["Hi"]}',
        b'{"model": "qwen-max-latest", "messages": [{"role": "user", "content": "\\ud800"}]}',
    ],
)
def test_what_is_no_chat_is_a_bad_request_with_status_200(simulate: Simulate, body: bytes) -> None:
    answer = simulate().client.post(PATH, content=body)
    assert answer.status_code == 200
    assert answer.json()["success"] is False
    assert answer.json()["data"]["code"] == "Bad_Request"


def test_the_model_list_has_the_shape_of_the_sample(simulate: Simulate) -> None:
    models = simulate().client.get("/api/models").json()
    recorded = json.loads(sample("web1-models.json"))["data"][2]
    assert [model["id"] for model in models["data"]] == list(MODELS)
    for model in models["data"]:
        assert set(model) == set(recorded)
        assert set(model["info"]) == set(recorded["info"])
        assert set(model["info"]["meta"]) == set(recorded["info"]["meta"])


def test_another_address_is_not_found(simulate: Simulate) -> None:
    assert simulate().client.get("/api/v2/models").status_code == 404


def test_the_simulator_works_mounted_below_a_path() -> None:
    app = Starlette(routes=[Mount("/qwen", SimulatedQwen())])

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            headers = {"authorization": "Bearer key"}
            return await client.get("http://host/qwen/api/models", headers=headers)

    assert len(asyncio.run(ask()).json()["data"]) == 5


def test_a_request_is_recorded_as_it_came(simulate: Simulate) -> None:
    chat = simulate()
    chat.ask("Hi", stream=False)
    chat.client.post(PATH + "?x=1", content=b"not json")
    first, second = chat.qwen.requests
    assert (first.method, first.path, first.body) == ("POST", PATH, question("Hi", stream=False))
    assert first.headers["Authorization"] == first.headers["authorization"] == "Bearer key"
    assert (second.path, second.body, second.raw) == (PATH, None, b"not json")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fault", "status", "content_type", "body"),
    [
        (Fault.status(401, UNAUTHORIZED), 401, "application/json", sample("web-401.json")),
        (Fault.status(429, RATE_LIMITED), 429, "application/json", sample("web-429.json")),
        (Fault.status(503, b"busy", "text/plain"), 503, "text/plain", b"busy"),
        (Fault.block_page(), 200, "text/html", sample("web-waf.html")),
        (Fault.block_page(503), 503, "text/html", sample("web-waf.html")),
        (Fault.human_check(), 200, "application/json", sample("web-waf-punish.json")),
        (
            Fault.human_check("text/event-stream"),
            200,
            "text/event-stream",
            sample("web-waf-punish.json"),
        ),
        (Fault.bare_json({"a": "好"}), 200, "text/event-stream", '{"a": "好"}'.encode()),
        (Fault.garbage(), 200, "text/event-stream", GARBAGE),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
def test_a_fault_may_stand_in_place_of_the_answer(
    simulate: Simulate, fault: Fault, status: int, content_type: str, body: bytes, stream: bool
) -> None:
    chat = simulate()
    chat.qwen.fail(fault)
    answer = chat.ask(stream=stream)
    assert answer.status_code == status
    assert answer.headers["content-type"] == content_type
    assert answer.content == body


def test_a_status_may_have_headers() -> None:
    with serve(qwen := SimulatedQwen()) as url:
        qwen.fail(Fault.status(429, headers={"Retry-After": "7"}))
        assert httpx.get(url).headers["retry-after"] == "7"


def test_garbage_is_no_text_no_event_and_no_json() -> None:
    with pytest.raises(UnicodeDecodeError):
        GARBAGE.decode()
    assert not any(
        line.startswith((b"data", b"event", b"{", b"<")) for line in GARBAGE.split(b"\n")
    )


def test_a_failure_says_no_with_status_200(simulate: Simulate) -> None:
    expected = json.loads(sample("web2-ratelimited-200.json"))
    data = expected["data"]
    chat = simulate()
    chat.qwen.fail(Fault.failure("RateLimited", data["details"], template=data["template"], num=6))
    answer = chat.ask()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() | {"request_id": ""} == expected | {"request_id": ""}


@pytest.mark.parametrize(
    ("stream", "label"), [(True, "text/event-stream"), (False, "application/json")]
)
def test_an_empty_answer_keeps_its_label(simulate: Simulate, stream: bool, label: str) -> None:
    chat = simulate()
    chat.qwen.fail(Fault.empty())
    answer = chat.ask(stream=stream)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == label


def test_an_error_frame_ends_the_stream_after_some_frames(simulate: Simulate) -> None:
    chat = simulate(reply="abc", pieces=1)
    whole = frames(chat.ask().content)
    chat.qwen.fail(Fault.error_frame(2, "Internal_Server_Error", "Internal error."))
    body = frames(chat.ask().content)
    assert body[:2] == whole[:2]
    assert body[2:] == [
        b'data: {"error": {"code": "Internal_Server_Error", "details": "Internal error."}}\n\n'
    ]


def test_an_error_frame_of_no_stream_is_a_failure(simulate: Simulate) -> None:
    chat = simulate()
    chat.qwen.fail(Fault.error_frame(2, "Internal_Server_Error", "Internal error."))
    answer = chat.ask(stream=False).json()
    assert answer["data"] == {"code": "Internal_Server_Error", "details": "Internal error."}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("after_bytes", [None, 0, 1, 100, 10**6])
def test_truncation_cuts_the_connection_within_the_body(
    simulate: Simulate, stream: bool, after_bytes: int | None
) -> None:
    chat = simulate(reply="A sentence.", pieces=4)
    whole = chat.ask(stream=stream).content
    chat.qwen.fail(Fault.truncate(after_bytes))
    body, cut = chat.read(stream=stream)
    expected = len(whole) // 2 if after_bytes is None else min(after_bytes, len(whole) - 1)
    assert cut
    assert body == whole[:expected]


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("stream", [True, False])
def test_both_of_uvicorns_parsers_show_the_cut(http: str, stream: bool) -> None:
    qwen = SimulatedQwen()
    qwen.fail(Fault.truncate())
    with serve(qwen, http=http, loop="asyncio") as url:
        headers = {"authorization": "Bearer key"}
        with pytest.raises(httpx.RemoteProtocolError, match="complete message body"):
            httpx.post(url + PATH, json=question(stream=stream), headers=headers)


@pytest.mark.parametrize("stream", [True, False])
def test_dripping_sends_each_byte_by_itself(stream: bool) -> None:
    """Over a hand-written `send`, since a socket may join what was sent apart."""
    qwen = SimulatedQwen(reply="你", usage=False)
    whole = sent(qwen, question(stream=stream))
    qwen.fail(Fault.drip())
    dripped = sent(qwen, question(stream=stream))
    assert b"".join(body for _, body in dripped) == b"".join(body for _, body in whole)
    assert {len(body) for _, body in dripped[1:-1]} == {1}


def sent(qwen: SimulatedQwen, body: dict[str, Any]) -> list[tuple[float, bytes]]:
    """Return what the messages of an answer held, headers first, each with when it was sent.

    The time is in seconds since the request.
    """
    messages: list[tuple[float, bytes]] = []
    begin = time.monotonic()

    async def send(message: Message) -> None:
        messages.append((time.monotonic() - begin, message.get("body", b"")))

    headers = [(b"authorization", b"Bearer key")]
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers}
    request = {"type": "http.request", "body": json.dumps(body).encode()}
    asyncio.run(qwen(scope, receiving(request), send))
    return messages


def receiving(*messages: Message) -> Receive:
    """Return a `receive` that gives these messages and then waits for ever."""
    left = iter(messages)

    async def receive() -> Message:
        for message in left:
            return message
        never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        return await never

    return receive


async def refuse(message: Message) -> None:
    raise AssertionError(message)


def test_dripping_over_a_socket_gives_the_same_body(simulate: Simulate) -> None:
    chat = simulate(reply="你好")
    whole = chat.ask().content
    chat.qwen.fail(Fault.drip(bytes_per_piece=3, pause=0.0001))
    assert chat.ask().content == whole


@pytest.mark.parametrize("after_frames", [None, 0, 2, 1000])
@pytest.mark.parametrize("stream", [True, False])
def test_a_stall_that_ends_changes_nothing_but_the_time(
    simulate: Simulate, after_frames: int | None, stream: bool
) -> None:
    chat = simulate(reply="abc", pieces=1)
    whole = chat.ask(stream=stream).content
    chat.qwen.fail(Fault.stall(after_frames, seconds=0.05))
    begin = time.monotonic()
    assert chat.ask(stream=stream).content == whole
    assert time.monotonic() - begin >= 0.05


@pytest.mark.parametrize(
    ("stream", "after_frames", "silent"),
    [(True, None, 0), (True, 0, 1), (True, 2, 3), (True, 1000, 6), (False, None, 0), (False, 2, 1)],
)
def test_a_stall_comes_before_the_right_message(
    stream: bool, after_frames: int | None, silent: int
) -> None:
    """The messages are the headers (0), then four frames and `[DONE]` or one body, then the end."""
    qwen = SimulatedQwen(reply="abc", pieces=1)
    qwen.fail(Fault.stall(after_frames, seconds=0.1))
    moments = [0.0, *(moment for moment, _ in sent(qwen, question(stream=stream)))]
    assert len(moments) == (8 if stream else 4)
    assert moments[silent + 1] - moments[silent] >= 0.099


@pytest.mark.parametrize("after_frames", [0, 3, 1000])
def test_hanging_up_in_a_stall_is_noticed_within_250_ms(
    simulate: Simulate, after_frames: int
) -> None:
    chat = simulate()
    chat.qwen.fail(Fault.stall(after_frames))
    with chat.client.stream("POST", PATH, json=question()):
        assert (chat.qwen.open, chat.qwen.hung_up) == (1, 0)
    chat.qwen.wait_for(lambda qwen: (qwen.open, qwen.hung_up) == (0, 1), timeout=0.25)


def test_hanging_up_before_the_headers_is_noticed_within_250_ms(simulate: Simulate) -> None:
    chat = simulate()
    chat.qwen.fail(Fault.stall(after_frames=None))
    with connect(str(chat.client.base_url)) as client:
        client.sendall(b"GET /api/models HTTP/1.1\r\nHost: host\r\n\r\n")
        chat.qwen.wait_for(lambda qwen: qwen.open == 1)
    chat.qwen.wait_for(lambda qwen: qwen.hung_up == 1, timeout=0.25)


def test_hanging_up_between_frames_is_noticed_within_250_ms(simulate: Simulate) -> None:
    chat = simulate(pace=3600)
    with chat.client.stream("POST", PATH, json=question()):
        pass
    chat.qwen.wait_for(lambda qwen: qwen.hung_up == 1, timeout=0.25)


def test_hanging_up_in_a_hurried_stream_is_noticed(simulate: Simulate) -> None:
    chat = simulate(reply="a" * 20_000, pieces=1)
    with chat.client.stream("POST", PATH, json=question()):
        pass
    chat.qwen.wait_for(lambda qwen: qwen.hung_up == 1)


def test_who_reads_to_the_end_has_not_hung_up(simulate: Simulate) -> None:
    chat = simulate()
    chat.ask()
    chat.ask(stream=False)
    chat.qwen.wait_for(lambda qwen: qwen.open == 0)
    assert chat.qwen.hung_up == 0


def test_who_leaves_before_asking_is_not_counted() -> None:
    qwen = SimulatedQwen()
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": []}
    asyncio.run(qwen(scope, receiving({"type": "http.disconnect"}), refuse))
    assert (len(qwen.requests), qwen.hung_up) == (0, 0)


def test_a_send_that_says_the_client_is_gone_counts_as_hung_up() -> None:
    async def send(message: Message) -> None:
        raise OSError

    qwen = SimulatedQwen()
    scope = {"type": "http", "method": "GET", "path": "/api/models", "headers": []}
    asyncio.run(qwen(scope, receiving({"type": "http.request"}), send))
    assert (qwen.open, qwen.hung_up) == (0, 1)


def test_another_protocol_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="websocket"):
        asyncio.run(SimulatedQwen()({"type": "websocket"}, receiving(), refuse))


def test_faults_come_in_order_and_then_stop(simulate: Simulate) -> None:
    chat = simulate()
    chat.qwen.fail(Fault.status(500), Fault.status(503), times=2)
    assert [chat.ask().status_code for _ in range(5)] == [500, 503, 500, 503, 200]


def test_a_fault_meets_the_model_list_too(simulate: Simulate) -> None:
    chat = simulate()
    chat.qwen.fail(Fault.status(500))
    assert chat.client.get("/api/models").status_code == 500


@pytest.mark.parametrize(
    ("name", "status", "body"),
    [
        ("401", 401, UNAUTHORIZED),
        ("429", 429, RATE_LIMITED),
        ("500", 500, b"Internal Server Error"),
        ("block", 200, BLOCK_PAGE),
        ("empty", 200, b""),
    ],
)
def test_a_last_user_text_may_ask_for_a_fault(
    simulate: Simulate, name: str, status: int, body: bytes
) -> None:
    answer = simulate(reply="ignored").ask(f"simulate: {name}")
    assert (answer.status_code, answer.content) == (status, body)


def test_truncation_can_be_asked_for(simulate: Simulate) -> None:
    body, cut = simulate().read("simulate: truncate")
    assert cut
    assert len(frames(body)) > 1


def test_a_stall_can_be_asked_for(simulate: Simulate) -> None:
    chat = simulate()
    body = b""
    with chat.client.stream("POST", PATH, json=question("simulate: stall")) as response:
        pieces = response.iter_raw()
        while len(frames(body)) < 3:
            body += next(pieces)
        assert chat.qwen.open == 1
    chat.qwen.wait_for(lambda qwen: qwen.hung_up == 1, timeout=0.25)


def test_dripping_can_be_asked_for(simulate: Simulate) -> None:
    chat = simulate(reply="Yes.", usage=False)
    assert chat.ask("simulate: drip").content == chat.ask("Hello").content


@pytest.mark.parametrize("text", ["401", "simulate: 402", "simulate: ", "Do simulate: 401"])
def test_any_other_text_is_answered(simulate: Simulate, text: str) -> None:
    assert b"[DONE]" in simulate().ask(text).content


def test_every_simulation_is_documented_and_needs_the_right_key(simulate: Simulate) -> None:
    chat = simulate(api_key="right")
    assert set(SIMULATIONS) == {
        "401", "429", "500", "block", "truncate", "stall", "drip", "empty"
    }  # fmt: skip
    assert {chat.ask(f"simulate: {name}").status_code for name in SIMULATIONS} == {401}


def test_waiting_in_vain_tells_the_state_that_was_found(simulate: Simulate) -> None:
    chat = simulate()
    chat.ask()
    chat.qwen.wait_for(lambda qwen: qwen.open == 0)
    with pytest.raises(TimeoutError, match=r"0\.01 seconds.*1 requests, 0 open, 0 hung up"):
        chat.qwen.wait_for(lambda qwen: qwen.hung_up == 1, timeout=0.01)


def test_waiting_in_an_event_loop_lets_the_loop_run() -> None:
    qwen = SimulatedQwen()

    async def ask_and_wait() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(qwen)) as client:
            asking = asyncio.create_task(client.post(f"http://host{PATH}", json=question()))
            await qwen.wait_until(lambda qwen: len(qwen.requests) == 1)
            assert (await asking).status_code == 401
            with pytest.raises(TimeoutError):
                await qwen.wait_until(lambda qwen: qwen.hung_up == 1, timeout=0.01)

    asyncio.run(ask_and_wait())


def test_serve_leaves_no_thread_no_socket_and_no_output(capfd: pytest.CaptureFixture[str]) -> None:
    threads = threading.enumerate()
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    qwen = SimulatedQwen()
    qwen.fail(Fault.status(200), Fault.truncate())
    with serve(qwen) as url:
        assert url.startswith("http://127.0.0.1:")
        assert len(threading.enumerate()) == len(threads) + 1
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
        httpx.get(url)
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(url)
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    gc.collect()
    assert threading.enumerate() == threads
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_serve_stops_within_a_second_or_so_though_streams_are_open(loop: str) -> None:
    qwen = SimulatedQwen()
    qwen.fail(Fault.stall(), Fault.stall(after_frames=None))
    headers = {"authorization": "Bearer key"}
    with httpx.Client(headers=headers) as client:
        with serve(qwen, loop=loop) as url, connect(url) as other:
            request = client.build_request("POST", url + PATH, json=question())
            response = client.send(request, stream=True)
            other.sendall(b"GET /api/models HTTP/1.1\r\nHost: host\r\n\r\n")
            qwen.wait_for(lambda qwen: qwen.open == 2)
            begin = time.monotonic()
        assert time.monotonic() - begin < 1.5
        response.close()
    assert (qwen.open, qwen.hung_up) == (0, 1)
    gc.collect()


def connect(url: str) -> socket.socket:
    return socket.create_connection((httpx.URL(url).host, httpx.URL(url).port or 80))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_serve_stops_though_a_client_does_not_read(loop: str) -> None:
    qwen = SimulatedQwen(reply="a" * 20_000_000, pieces=100_000)
    body = json.dumps(question(incremental_output=True)).encode()
    head = (
        b"POST %b HTTP/1.1\r\nHost: host\r\nAuthorization: Bearer key\r\nContent-Length: %d\r\n\r\n"
    )
    with serve(qwen, loop=loop) as url:
        client = connect(url)
        client.sendall(head % (PATH.encode(), len(body)) + body)
        qwen.wait_for(lambda qwen: qwen.open == 1)
        begin = time.monotonic()
    assert time.monotonic() - begin < 1.5
    client.close()
    assert (qwen.open, qwen.hung_up) == (0, 0)
    gc.collect()


def test_serve_ends_the_lifespan_though_a_stream_is_open() -> None:
    ended = threading.Event()
    qwen = SimulatedQwen()
    qwen.fail(Fault.stall())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        ended.set()

    app = Starlette(routes=[Mount("/", qwen)], lifespan=lifespan)
    headers = {"authorization": "Bearer key"}
    with httpx.Client(headers=headers) as client, serve(app) as url:
        response = client.send(
            client.build_request("POST", url + PATH, json=question()), stream=True
        )
    assert ended.is_set()
    response.close()


def test_serve_raises_what_kept_the_app_from_starting() -> None:
    threads = threading.enumerate()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        raise LookupError("no such setting")
        yield

    with pytest.raises(LookupError, match="no such setting"), serve(Starlette(lifespan=lifespan)):
        pass
    assert threading.enumerate() == threads


def test_serve_says_when_the_app_refused_to_start_without_an_error() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed"})

    with pytest.raises(RuntimeError, match="did not start"), serve(app):
        pass


def test_serve_raises_when_the_port_is_taken() -> None:
    with serve(SimulatedQwen()) as url:
        port = httpx.URL(url).port
        assert port is not None
        with pytest.raises(OSError, match="in use"), serve(SimulatedQwen(), port=port):
            pass


def test_serve_silences_uvicorn_only_while_it_runs() -> None:
    logger = logging.getLogger("uvicorn.error")
    level = logger.level
    with serve(SimulatedQwen()):
        assert logger.getEffectiveLevel() == logging.CRITICAL
    assert logger.level == level
    with serve(SimulatedQwen(), log_level=None):
        assert logger.level == level


def test_serve_stops_when_its_block_raises() -> None:
    threads = threading.enumerate()
    with pytest.raises(LookupError), serve(SimulatedQwen()):
        raise LookupError
    assert threading.enumerate() == threads


def test_serve_runs_apps_without_a_lifespan() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    with serve(app) as url:
        assert httpx.get(url).status_code == 204
