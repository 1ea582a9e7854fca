from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_asgi.chat import Event, Finish, ReasoningDelta, TextDelta, Usage, fold
from qwen_asgi.errors import InvalidRequest, UpstreamTruncated
from qwen_asgi.layers.stop import LONGEST_SEQUENCE, MOST_SEQUENCES, StopSequences, StopText
from tests.layers.scripted import ANSWER, CHAT, Scripted, answer

pytestmark = pytest.mark.anyio


def says(*texts: str) -> list[Event]:
    return [*map(TextDelta, texts), Usage(1, 2, 3), Finish("length")]


async def stopped(upstream: Scripted, stop: Any) -> list[Event]:
    return await answer(StopSequences(upstream), replace(CHAT, options={"stop": stop, "seed": 1}))


@pytest.mark.parametrize(
    ("texts", "stop", "text", "reason"),
    [
        (["one two three"], " two", "one", "stop"),
        (["one t", "w", "o three"], [" two", "x"], "one", "stop"),
        (["a", "b", "c"], ["bc", "c"], "a", "stop"),
        (["\n", "\n", "x"], "\n\n", "", "stop"),
        (["one tw", "ist"], "two", "one twist", "length"),
        (["aab"], "ab", "a", "stop"),
        (["ends with tw"], "two", "ends with tw", "length"),
        (["你好", "世界"], "好世", "你", "stop"),
        (["abc"], [], "abc", "length"),
    ],
)
async def test_the_answer_ends_where_a_sequence_begins(
    texts: list[str], stop: Any, text: str, reason: Any
) -> None:
    upstream = Scripted(says(*texts))
    events = await stopped(upstream, stop)
    assert fold(events).text == text
    assert events[-1] == Finish(reason)
    assert upstream.asked[0].options == {"seed": 1}
    assert upstream.open == 0


async def test_what_cannot_begin_one_is_given_out_at_once() -> None:
    text = StopText(["two"])
    assert [text.feed(piece) for piece in ("one ", "t", "w", "x", "t")] == [
        "one ",
        "",
        "",
        "twx",
        "",
    ]
    assert text.close() == "t"


async def test_thinking_is_not_stopped() -> None:
    events = await stopped(Scripted([ReasoningDelta("two"), *says("one two")]), "two")
    assert (fold(events).reasoning, fold(events).text) == ("two", "one ")


async def test_a_failure_gives_out_what_was_held() -> None:
    upstream = Scripted([TextDelta("one tw"), UpstreamTruncated("cut")])
    seen: list[Event] = []

    async def read() -> None:
        async with StopSequences(upstream)(replace(CHAT, options={"stop": "two"})) as batches:
            async for batch in batches:
                seen.extend(batch)

    with pytest.raises(UpstreamTruncated):
        await read()
    assert fold(seen).text == "one tw"


async def test_without_sequences_the_chat_passes_as_it_is() -> None:
    upstream = Scripted(ANSWER)
    assert await answer(StopSequences(upstream), CHAT) == [*ANSWER]
    assert upstream.asked[0] is CHAT


@pytest.mark.parametrize(
    "stop", [5, "", [""], ["x", 5], ["x"] * (MOST_SEQUENCES + 1), "x" * (LONGEST_SEQUENCE + 1)]
)
async def test_what_is_no_sequence_is_refused(stop: Any) -> None:
    upstream = Scripted()
    with pytest.raises(InvalidRequest) as caught:
        await stopped(upstream, stop)
    assert caught.value.param == "stop"
    assert not upstream.asked


@settings(max_examples=300, deadline=None, database=None)
@given(
    text=st.text("ab", max_size=30),
    sequences=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, 5), min_size=30, max_size=30),
)
def test_any_split_gives_the_same(text: str, sequences: list[str], sizes: list[int]) -> None:
    ends = [(at + len(s), at) for s in sequences if (at := text.find(s)) >= 0]
    expected = text[: min(ends)[1]] if ends else text
    stop, out, place = StopText(sequences), "", 0
    for size in sizes:
        out += stop.feed(text[place : place + size])
        place += size
    assert out + stop.close() == expected
    assert stop.stopped is bool(ends)
