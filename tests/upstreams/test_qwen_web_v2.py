"""What goes out to the second web chat, compared with what was recorded."""

from __future__ import annotations

import json
import time
from typing import Any
from uuid import UUID

import pytest

from qwen_asgi.apis.openai_chat import OpenAIChat
from qwen_asgi.chat import ChatRequest, ModelInfo
from qwen_asgi.errors import (
    InvalidRequest,
    UpstreamAuthenticationFailed,
    UpstreamBlocked,
    UpstreamError,
    UpstreamInvalidResponse,
    UpstreamRateLimited,
)
from qwen_asgi.upstreams._held_files import MOST_FILES
from qwen_asgi.upstreams.qwen_web_v2 import QwenWebV2
from tests.wire import sample

ID = "11111111-1111-4111-8111-111111111111"
DIALECT = QwenWebV2("https://chat", "canary-key")
LINK = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}


def ask(text: str = "你是谁", **fields: Any) -> ChatRequest:
    body = {"model": "qwen3-max", "messages": [{"role": "user", "content": text}], **fields}
    return OpenAIChat().read(json.dumps(body).encode())


def sent(request: ChatRequest) -> dict[str, Any]:
    """Return the document of the call that asks."""
    document: dict[str, Any] = json.loads(DIALECT.encode_opening(request).ask(ID).body)
    return document


def content(*messages: tuple[str, Any]) -> str:
    turns = [{"role": role, "content": text} for role, text in messages]
    text: str = sent(ask(messages=turns))["messages"][0]["content"]
    return text


def refused(request: ChatRequest) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        DIALECT.encode_opening(request)
    return raised.value


# The recorded requests.


def test_the_call_that_makes_a_chat_is_as_it_was_recorded() -> None:
    recorded = json.loads(sample("web2-request-chats-new.json").data)
    call = DIALECT.encode_opening(ask()).call
    document = json.loads(call.body)
    assert (call.method, call.url) == ("POST", "https://chat/api/v2/chats/new")
    # Milliseconds here (W2-01).
    assert abs(document.pop("timestamp") - time.time() * 1000) < 60_000
    del recorded["timestamp"]
    assert document == recorded


def test_the_call_that_asks_is_as_it_was_recorded() -> None:
    recorded = json.loads(sample("web2-request-t2t.json").data)
    call = DIALECT.encode_opening(ask(stream=True)).ask(ID)
    document = json.loads(call.body)
    assert (call.method, call.url) == ("POST", f"https://chat/api/v2/chat/completions?chat_id={ID}")
    for part in document, document["messages"][0]:
        # Seconds here (W2-27).
        assert abs(part.pop("timestamp") - time.time()) < 60
    [turn], [was] = document["messages"], recorded["messages"]
    for name in turn["fid"], *turn["childrenIds"]:
        assert UUID(name).version == 4
    for part in recorded, was:
        del part["timestamp"]
    was |= {"fid": turn["fid"], "childrenIds": turn["childrenIds"]}
    # A search that nobody asked for is not made.
    was["feature_config"]["auto_search"] = False
    assert document == recorded


def test_it_is_always_asked_for_a_stream() -> None:
    assert sent(ask(stream=False))["stream"] is True


def test_the_credential_goes_along_and_shows_nowhere() -> None:
    call = QwenWebV2("https://chat", "canary-key", headers={"source": "h5"}).encode_models()
    assert call.headers["authorization"] == "Bearer canary-key"
    assert call.headers["source"] == "h5"
    assert "canary" not in repr(call)
    assert call.url == "https://chat/api/v2/models/"


def test_stopping_and_removing_a_chat() -> None:
    stop, removal = DIALECT.encode_stop("a/b"), DIALECT.encode_removal("a/b")
    assert stop.url == "https://chat/api/v2/chat/completions/stop?chat_id=a%2Fb"
    assert json.loads(stop.body) == {"chat_id": "a/b"}
    assert (removal.method, removal.url) == ("DELETE", "https://chat/api/v2/chats/a%2Fb")


# The conversation.


def test_one_turn_stays_as_it_is() -> None:
    assert content(("user", " a\n b ")) == " a\n b "


def test_instructions_stand_before_it() -> None:
    assert content(("system", "Be terse."), ("developer", "In German."), ("user", "hi")) == (
        "Be terse.\n\nIn German.\n\nhi"
    )


def test_a_conversation_names_who_speaks_and_ends_with_whose_turn_it_is() -> None:
    turns = ("system", "Be terse."), ("user", "a"), ("assistant", "b"), ("user", "c")
    assert (
        content(*turns) == "System: Be terse.\n\nUser: a\n\nAssistant: b\n\nUser: c\n\nAssistant:"
    )
    assert content(("user", "a"), ("user", "b")) == "User: a\n\nUser: b\n\nAssistant:"


def test_an_answer_that_was_begun_is_gone_on_with() -> None:
    assert content(("user", "a"), ("assistant", "b")) == "User: a\n\nAssistant: b"


def test_parts_are_joined_and_pictures_go_along_as_links() -> None:
    parts = [{"type": "text", "text": "a"}, LINK, {"type": "text", "text": "b"}]
    [turn] = sent(ask(messages=[{"role": "user", "content": parts}]))["messages"]
    assert turn["content"] == "a\nb"
    [file] = turn["files"]
    assert (file["url"], file["file_class"]) == ("https://example.org/a.png", "vision")


# What is wished for.


def features(**fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = sent(ask(**fields))["messages"][0]["feature_config"]
    return found


@pytest.mark.parametrize(
    ("fields", "thinks"),
    [
        ({"enable_thinking": True}, True),
        ({"reasoning_effort": "low"}, True),
        ({"enable_thinking": False}, False),
        ({"reasoning_effort": "none"}, False),
    ],
)
def test_off_is_off_and_on_is_on(fields: dict[str, Any], thinks: bool) -> None:
    found = features(**fields)
    assert (found["thinking_enabled"], found["auto_thinking"]) == (thinks, False)
    assert found["thinking_mode"] == ("Thinking" if thinks else "Fast")


def test_a_budget_and_a_search_are_passed_on() -> None:
    assert features(enable_thinking=True, thinking_budget=99)["thinking_budget"] == 99
    assert features(reasoning_effort="low")["thinking_budget"] == 1024
    assert "thinking_budget" not in features(enable_thinking=False, thinking_budget=99)
    assert features(enable_search=True)["auto_search"] is True
    assert features(web_search_options={})["auto_search"] is True
    assert features(enable_search=False)["auto_search"] is False


def test_the_last_message_s_own_wishes_go_first() -> None:
    turn = {
        "role": "user",
        "content": "a",
        "chat_type": "search",
        "feature_config": {"thinking_format": "detail"},
    }
    body = sent(ask(messages=[turn], enable_thinking=True))
    [message] = body["messages"]
    assert message["chat_type"] == message["sub_chat_type"] == "search"
    assert message["feature_config"]["thinking_format"] == "detail"
    assert message["feature_config"]["thinking_enabled"] is True


def test_a_picture_s_shape_is_passed_on() -> None:
    assert sent(ask(chat_type="t2i", size="16:9"))["size"] == "16:9"
    assert "size" not in sent(ask())


def test_a_budget_alone_asks_for_no_thinking() -> None:
    request = ask(thinking_budget=99)
    DIALECT.encode_opening(request)
    assert request.notes.ignored == ("thinking_budget",)


def test_what_has_no_effect_is_named() -> None:
    request = ask(temperature=0.5, max_tokens=9, stop="x", seed=1, store=True)
    DIALECT.encode_opening(request)
    assert request.notes.ignored == ("temperature", "seed", "stop", "store")


TOOL = {"role": "tool", "content": "4", "tool_call_id": "c"}
PARTS = [LINK] * (MOST_FILES + 1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"chat_type": "t2v"}, "chat_type"),
        ({"chat_type": 5}, "chat_type"),
        ({"enable_thinking": "yes"}, "enable_thinking"),
        ({"messages": [{"role": "user", "content": "a"}, TOOL]}, "messages[1]"),
        ({"messages": [{"role": "user", "content": PARTS}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]},
            "messages[0].content[0].type",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "data:x"}}],
                    }
                ]
            },
            "messages[0].content[0].image_url",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refused(ask(**fields)).param == param


# Documents.


def test_the_recorded_answers_about_chats_and_models() -> None:
    assert (
        DIALECT.decode_opening(sample("web2-chats-new.json").data)
        == (sample("web2-chats-new.json").expect["chat_id"])
    )
    for name in "web2-models.json", "web1-models.json":
        recorded = sample(name)
        found_models = DIALECT.decode_models(recorded.data)
        assert [model.name for model in found_models] == recorded.expect["models"]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (sample("web2-unauthorized-200.json").data, UpstreamAuthenticationFailed),
        (sample("web2-ratelimited-200.json").data, UpstreamRateLimited),
        (b'{"success": true, "data": {}}', UpstreamInvalidResponse),
        (b'{"success": true}', UpstreamInvalidResponse),
        (b" <html>", UpstreamBlocked),
    ],
)
def test_a_chat_that_is_not_made_is_an_error(body: bytes, error: type[UpstreamError]) -> None:
    with pytest.raises(error):
        DIALECT.decode_opening(body)
    with pytest.raises(error):
        DIALECT.decode_models(body)


def test_a_list_says_what_each_model_can_do() -> None:
    plus, top = DIALECT.decode_models(sample("web2-models.json").data)
    assert plus == ModelInfo(
        "qwen3.7-plus",
        context=1_000_000,
        thinking=True,
        tools=True,
        vision=True,
        stream_only=True,
    )
    assert (top.thinking, top.vision) == (True, None)
    assert DIALECT.describe("x") == ModelInfo("x", tools=True, stream_only=True)
    coder, *_ = DIALECT.decode_models(b'{"data": [{"id": "a", "info": {"meta": []}}]}')
    assert coder == ModelInfo("a", tools=True, stream_only=True)
