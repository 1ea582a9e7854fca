from __future__ import annotations

import dataclasses

import pytest

from qwen_asgi.chat import (
    Answer,
    ChatRequest,
    Extra,
    Finish,
    Message,
    Part,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
    fold,
)


def test_the_events_of_an_answer_are_put_together() -> None:
    search = Extra("web_search", {"a": 1})
    assert fold(
        [
            search,
            ReasoningDelta("thi"),
            ReasoningDelta("nk"),
            TextDelta("a"),
            Usage(1, 2, 3),
            TextDelta("b"),
            Usage(4, 5, 9),
            Finish("length"),
        ]
    ) == Answer("ab", "think", [], "length", Usage(4, 5, 9), [search])


def test_pieces_of_tool_calls_are_put_together_by_their_index() -> None:
    answer = fold(
        [
            ToolCallDelta(1, "", id="call_2", name="g"),
            ToolCallDelta(0, "", id="call_1", name="f"),
            ToolCallDelta(0, '{"a"'),
            ToolCallDelta(1, "{}", id="", name=""),
            ToolCallDelta(0, ": 1}"),
            Finish("tool_calls"),
        ]
    )
    assert answer.tool_calls == [
        ToolCall("call_1", "f", '{"a": 1}'),
        ToolCall("call_2", "g", "{}"),
    ]


def test_nothing_folds_to_an_empty_answer_without_usage() -> None:
    assert fold([]) == Answer("", "", [], "stop", None, [])


def test_the_text_of_a_message_is_that_of_its_text_parts() -> None:
    parts = (Part("text", "a", {}), Part("image_url", "no", {}), Part("text", "b", {}))
    assert Message("user", parts).text == "a\nb"
    assert Message("user", "a").text == "a"
    assert Message("user", ()).text == ""


def test_two_chats_share_no_notes() -> None:
    first, second = (ChatRequest(model="m", messages=()) for _ in range(2))
    first.notes.ignored = ("user",)
    assert second.notes.ignored == ()


def test_a_chat_does_not_change() -> None:
    chat = ChatRequest(model="m", messages=())
    with pytest.raises(dataclasses.FrozenInstanceError):
        chat.model = "other"  # type: ignore[misc]
