from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_asgi.chat import ToolCall, ToolCallDelta, fold
from qwen_asgi.errors import UpstreamInvalidResponse
from qwen_asgi.upstreams._tool_calls import MOST_CALLS, ToolCallPieces


def piece(index: int | None = 0, id: str | None = None, **function: Any) -> dict[str, Any]:
    document: dict[str, Any] = {"function": function, "type": "function"}
    if index is not None:
        document["index"] = index
    if id is not None:
        document["id"] = id
    return document


def calls(*frames: Any) -> list[ToolCall]:
    reader = ToolCallPieces()
    events = [delta for frame in frames for delta in reader.add([frame])]
    return fold([*events, *reader.close()]).tool_calls


FIRST = piece(0, "call_1", name="f", arguments="")


@pytest.mark.parametrize("id", [None, "", "call_1"])
@pytest.mark.parametrize("name", [None, "", "f"])
def test_later_pieces_may_repeat_or_leave_out_what_is_known(id: str, name: str | None) -> None:
    more = [piece(0, id, name=name, arguments=part) for part in ('{"a":', "1}")]
    assert calls(FIRST, *more, piece(0, id)) == [ToolCall("call_1", "f", '{"a":1}')]


def test_the_first_piece_alone_has_id_and_name() -> None:
    reader = ToolCallPieces()
    assert reader.add([FIRST]) == [ToolCallDelta(0, "", id="call_1", name="f")]
    assert reader.add([piece(0, "", arguments="{}")]) == [ToolCallDelta(0, "{}")]
    assert reader.close() == []


def test_calls_of_one_index_are_told_apart_by_their_ids() -> None:
    second = piece(0, "call_2", name="g", arguments="{}")
    assert calls(FIRST, piece(0, "", arguments="{}"), second) == [
        ToolCall("call_1", "f", "{}"),
        ToolCall("call_2", "g", "{}"),
    ]


def test_an_id_goes_on_with_its_call_whatever_the_index_says() -> None:
    second = piece(1, "call_2", name="g", arguments="{}")
    assert calls(FIRST, second, piece(1, "call_1", arguments="[]")) == [
        ToolCall("call_1", "f", "[]"),
        ToolCall("call_2", "g", "{}"),
    ]


def test_a_call_without_an_id_gets_one() -> None:
    [call] = calls(piece(0, name="f", arguments="{}"), piece(0, "late", arguments=""))
    assert call.id.startswith("call_")
    first, second = calls(piece(0, name="f"), piece(1, name="f"))
    assert first.id != second.id


def test_arguments_before_the_name_wait_for_it() -> None:
    assert calls(piece(0, "call_1", arguments="{"), piece(0, name="f", arguments="}")) == [
        ToolCall("call_1", "f", "{}")
    ]


@pytest.mark.parametrize("arguments", ["", None])
def test_no_arguments_are_an_empty_object(arguments: str | None) -> None:
    assert calls(piece(0, "call_1", name="f", arguments=arguments)) == [
        ToolCall("call_1", "f", "{}")
    ]


def test_a_whole_call_that_comes_again_is_the_same_call() -> None:
    again = piece(0, "call_1", name="f", arguments='{"a":1}')
    parts = [piece(0, "", arguments=part) for part in ('{"a"', ":1}")]
    assert calls(FIRST, *parts, again) == [ToolCall("call_1", "f", '{"a":1}')]


def test_a_piece_that_only_looks_like_all_so_far_goes_on_with_it() -> None:
    pieces = [piece(0, "call_1", name="f", arguments=part) for part in ('{"a":', '{"a":', "1}}")]
    assert calls(*pieces) == [ToolCall("call_1", "f", '{"a":{"a":1}}')]


def test_calls_without_an_index_follow_one_another() -> None:
    first, second = piece(None, "call_1", name="f"), piece(None, "call_2", name="g")
    assert [c.name for c in calls(first, piece(None, arguments="{}"), second)] == ["f", "g"]


def test_arguments_that_are_an_object_become_text() -> None:
    [call] = calls(piece(0, "call_1", name="f", arguments={"a": "ü"}))
    assert json.loads(call.arguments) == {"a": "ü"}


def test_a_call_without_a_name_is_none() -> None:
    with pytest.raises(UpstreamInvalidResponse):
        calls(piece(0, "call_1", arguments="{}"))


def test_calls_are_bounded() -> None:
    with pytest.raises(UpstreamInvalidResponse):
        calls(*[piece(n, f"call_{n}", name="f") for n in range(MOST_CALLS + 1)])


@pytest.mark.parametrize("odd", [None, 1, "x", {}, [None], [1]])
def test_what_is_no_call_is_skipped(odd: Any) -> None:
    assert ToolCallPieces().add(odd) == []
