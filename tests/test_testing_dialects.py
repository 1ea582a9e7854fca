"""The simulated Qwen in its other dialects: its frames have the recorded ones' fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from qwen_asgi.testing import MODEL_STUDIO, OPENAI, Fault, SimulatedQwen, serve
from tests.wire import sample

MODEL = "qwen-max-latest"
NEW = {"title": "New Chat", "models": [MODEL], "chat_type": "t2t", "timestamp": 1}
V2 = "/api/v2/chat/completions"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[SimulatedQwen, httpx.Client]]:
    qwen = SimulatedQwen()
    headers = {"authorization": "Bearer key"}
    with serve(qwen) as url, httpx.Client(base_url=url, headers=headers) as client:
        yield qwen, client


@pytest.fixture
def client(served: tuple[SimulatedQwen, httpx.Client]) -> httpx.Client:
    return served[1]


@pytest.fixture
def qwen(served: tuple[SimulatedQwen, httpx.Client]) -> SimulatedQwen:
    qwen = served[0]
    qwen.wait_for(lambda qwen: qwen.open == 0)
    qwen.__init__()  # type: ignore[misc]
    return qwen


def shape(value: Any) -> Any:
    """Return a document's fields without what they hold."""
    match value:
        case dict():
            return {name: shape(value[name]) for name in sorted(value)}
        case list():
            return [shape(value[0])] if value else []
    return type(value).__name__ if not isinstance(value, int | float) else "number"


def documents(body: bytes) -> list[Any]:
    lines = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def shapes(body: bytes) -> list[Any]:
    found: list[Any] = []
    for document in documents(body):
        fields = shape(document)
        if fields not in found:
            found.append(fields)
    return found


def chat_id(client: httpx.Client) -> str:
    made = client.post("/api/v2/chats/new", json=NEW).json()
    assert shape(made) == shape(json.loads(sample("web2-chats-new.json").data))
    id: str = made["data"]["id"]
    return id


def turn(id: str, text: str = "hi", **features: Any) -> dict[str, Any]:
    config = {"output_schema": "phase", **features}
    message = {"role": "user", "content": text, "feature_config": config}
    return {"chat_id": id, "model": MODEL, "stream": True, "messages": [message]}


def ask_v2(client: httpx.Client, text: str = "hi", **features: Any) -> httpx.Response:
    id = chat_id(client)
    return client.post(V2, params={"chat_id": id}, json=turn(id, text, **features))


# Generation 2.


def test_frames_of_generation_2_have_the_recorded_fields(
    client: httpx.Client, qwen: SimulatedQwen
) -> None:
    qwen.done = False
    response = ask_v2(client)
    assert response.headers["content-type"] == "text/event-stream"
    recorded = shapes(sample("web2-answer.sse").data)
    # Since 2026 the first frame has one field more (W2-40), and usage one that says nothing.
    recorded[0]["response.created"]["response_index"] = "str"
    for frame in recorded:
        frame.get("usage", {}).pop("characters", None)
    assert shapes(response.content) == recorded
    first = response.content.split(b"\n")[0]
    assert first.endswith(b"}} ")
    assert b"[DONE]" not in response.content


@pytest.mark.parametrize("form", ["summary", "detail"])
def test_thinking_of_generation_2_has_the_recorded_fields(
    client: httpx.Client, qwen: SimulatedQwen, form: str
) -> None:
    response = ask_v2(client, thinking_enabled=True, thinking_format=form)
    name = "web2-search-tool.sse" if form == "summary" else "web2-think-phase.sse"
    phase = "thinking_summary" if form == "summary" else "think"

    def deltas(body: bytes) -> list[Any]:
        found = [d["choices"][0]["delta"] for d in documents(body) if d.get("choices")]
        return [shape(delta) for delta in found if delta.get("phase") == phase]

    recorded = deltas(sample(name).data)
    assert all(delta in recorded for delta in deltas(response.content))
    assert deltas(response.content)


def test_a_chat_of_generation_2_is_there_until_it_is_removed(
    client: httpx.Client, qwen: SimulatedQwen
) -> None:
    id = chat_id(client)
    assert qwen.chats.stored == {id}
    assert client.delete(f"/api/v2/chats/{id}").json()["success"] is True
    assert client.delete(f"/api/v2/chats/{id}").json()["success"] is False
    gone = client.post(V2, params={"chat_id": id}, json=turn(id)).json()
    assert (gone["success"], gone["data"]["code"]) == (False, "Not_Found")
    stopped = client.post(f"{V2}/stop", params={"chat_id": id}, json={"chat_id": id})
    assert stopped.json()["success"] is True


def test_generation_2_refuses_as_recorded(client: httpx.Client, qwen: SimulatedQwen) -> None:
    id = chat_id(client)
    body = turn(id)
    several = {**body, "messages": body["messages"] * 2}
    for wrong, name in (
        (several, "web2-too-many-messages.json"),
        ({**body, "model": "nope"}, "web2-model-not-found.json"),
    ):
        answer = client.post(V2, params={"chat_id": id}, json=wrong).json()
        assert answer["data"] == json.loads(sample(name).data)["data"]
    qwen.pace, qwen.pieces = 0.05, 1
    with client.stream("POST", V2, params={"chat_id": id}, json=body) as under_way:
        pieces = under_way.iter_raw()
        next(pieces)
        busy = client.post(V2, params={"chat_id": id}, json=body).json()
        recorded = json.loads(sample("web2-chat-in-progress.json").data)
        assert busy["data"] == recorded["data"]
    qwen.wait_for(lambda qwen: not qwen.chats.answering)


def test_wordings_of_an_answer_run_side_by_side(client: httpx.Client, qwen: SimulatedQwen) -> None:
    qwen.candidates = 2
    found = documents(ask_v2(client).content)
    created = [d["response.created"] for d in found if "response.created" in d]
    assert [c["response_index"] for c in created] == ["1", "0"]
    assert len({d["response_id"] for d in found if "response_id" in d}) == 2


def test_faults_around_a_chat_are_not_those_of_its_answer(
    client: httpx.Client, qwen: SimulatedQwen
) -> None:
    qwen.fail(Fault.status(503))
    qwen.fail(Fault.status(504), around=True)
    assert client.post("/api/v2/chats/new", json=NEW).status_code == 504
    assert ask_v2(client).status_code == 503


# Model Studio and OpenAI's kind.


def ask_openai(
    client: httpx.Client, root: str = MODEL_STUDIO, text: str = "hi", **fields: Any
) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}
    return client.post(f"{root}/chat/completions", json=body)


USAGE: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def without_details(found: list[Any]) -> list[Any]:
    for frame in found:
        usage = frame.get("usage")
        if isinstance(usage, dict):
            usage.pop("completion_tokens_details", None)
            usage.pop("prompt_tokens_details", None)
    return found


def test_frames_of_model_studio_have_the_recorded_fields(
    client: httpx.Client, qwen: SimulatedQwen
) -> None:
    response = ask_openai(client, **USAGE)
    recorded = shapes(sample("ds-stream-usage.sse").data)
    assert without_details(shapes(response.content)) == without_details(recorded)
    assert response.content.endswith(b"data: [DONE]\n\n")


def test_a_plain_answer_of_model_studio_has_the_recorded_fields(
    client: httpx.Client, qwen: SimulatedQwen
) -> None:
    recorded = json.loads(sample("ds-nonstream.json").data)
    found = ask_openai(client).json()
    assert without_details([shape(found)]) == without_details([shape(recorded)])


def test_tool_calls_come_in_pieces_with_the_oddities_of_model_studio(
    client: httpx.Client, qwen: SimulatedQwen
) -> None:
    qwen.tool_calls = [("get_weather", '{"city": "Paris"}')]
    tools = [{"type": "function", "function": {"name": "get_weather"}}]
    found = documents(ask_openai(client, tools=tools, stream=True).content)
    choices = [choice for document in found for choice in document["choices"]]
    pieces = [call for c in choices for call in c["delta"].get("tool_calls", [])]
    assert pieces[0]["function"]["name"] == "get_weather"
    assert [piece["id"] for piece in pieces[1:]] == [""] * (len(pieces) - 1)
    assert "".join(p["function"]["arguments"] for p in pieces) == '{"city": "Paris"}'
    assert choices[-1]["finish_reason"] == "tool_calls"
    assert not documents(ask_openai(client, stream=True).content)[1]["choices"][0]["delta"].get(
        "tool_calls"
    )


TRAPS: list[tuple[dict[str, Any], str]] = [
    ({"model": "qvq-72b-preview"}, "ds-400-stream-only.json"),
    ({"enable_thinking": True}, "ds-400-thinking-nonstream.json"),
    (
        {"enable_thinking": True, "tool_choice": "required", "stream": True},
        "ds-400-tool-choice-thinking.json",
    ),
]


@pytest.mark.parametrize(("fields", "name"), TRAPS)
def test_what_model_studio_refuses_and_others_take(
    client: httpx.Client, qwen: SimulatedQwen, fields: dict[str, Any], name: str
) -> None:
    refused = ask_openai(client, **fields)
    recorded = json.loads(sample(name).data)
    assert (refused.status_code, refused.json()["error"]) == (400, recorded["error"])
    assert ask_openai(client, OPENAI, **fields).status_code == 200


def test_refusals_of_model_studio_are_the_recorded_ones(
    client: httpx.Client, qwen: SimulatedQwen
) -> None:
    unknown = ask_openai(client, model="qwen-nope")
    recorded = json.loads(sample("ds-404-model.json").data)
    assert (unknown.status_code, unknown.json()["error"]) == (404, recorded["error"])
    qwen.api_key = "another"
    refused = ask_openai(client)
    recorded = json.loads(sample("ds-401.json").data)
    assert (refused.status_code, refused.json()["error"]) == (401, recorded["error"])


@pytest.mark.parametrize("root", [MODEL_STUDIO, OPENAI])
def test_models_of_openai_s_kind_have_the_recorded_fields(
    client: httpx.Client, qwen: SimulatedQwen, root: str
) -> None:
    recorded = json.loads(sample("ds-models.json").data)
    assert shape(client.get(f"{root}/models").json()) == shape(recorded)


def test_faults_are_told_in_the_upstream_s_own_way(
    client: httpx.Client, qwen: SimulatedQwen
) -> None:
    for status, code in (401, "invalid_api_key"), (429, "limit_requests"), (500, "internal_error"):
        qwen.fail(Fault.refusal(status))
        response = ask_openai(client)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    qwen.fail(Fault.failure("throttling", "slow down", status=429))
    assert ask_openai(client).json()["error"]["code"] == "throttling"
    qwen.fail(Fault.error_frame(2, "data_inspection_failed", "no"))
    frames = documents(ask_openai(client, stream=True).content)
    assert frames[-1]["error"]["code"] == "data_inspection_failed"
    qwen.fail(Fault.event_framed(400, "data_inspection_failed", "no"))
    framed = ask_openai(client, stream=True)
    assert framed.status_code == 400
    assert shape(documents(framed.content)[0]["error"]) == shape(
        documents(sample("ds-400-sse-framed.sse").data)[0]["error"]
    )
    qwen.fail(Fault.leaked_event(400, "InvalidParameter", "no"))
    leaked = ask_openai(client)
    assert leaked.headers["content-type"] == "application/json"
    assert leaked.content.startswith(b"id:1\nevent:error\n:HTTP_STATUS/400\ndata:{")


@pytest.mark.parametrize("simulation", ["401", "429", "500"])
def test_a_message_may_ask_for_a_fault_in_each_dialect(
    client: httpx.Client, qwen: SimulatedQwen, simulation: str
) -> None:
    text = f"simulate: {simulation}"
    assert ask_openai(client, text=text).status_code == int(simulation)
    assert ask_v2(client, text).status_code == int(simulation)
