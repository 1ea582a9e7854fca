from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_asgi.chat import ReasoningDelta, TextDelta
from qwen_asgi.upstreams._think_tags import LONGEST_INDENT, ThinkTags

INDENT = " " * LONGEST_INDENT

CASES = {
    "<think>2+2</think>4": ("2+2", "4"),
    "<think>2+2</think>\n\n4": ("2+2", "\n\n4"),
    "\n <think>\n2+2\n</think>4": ("\n2+2\n", "4"),
    "<think></think>4": ("", "4"),
    "<think>": ("", ""),
    "<think>2+2": ("2+2", ""),
    "<think>2+2</thin": ("2+2</thin", ""),
    "<think>a</think": ("a</think", ""),
    "<think>a < b </ c</think>d": ("a < b </ c", "d"),
    "<think><think>a</think>b</think>c": ("<think>a", "b</think>c"),
    "<think>a</think>b<think>c</think>": ("a", "b<think>c</think>"),
    "4": ("", "4"),
    "<": ("", "<"),
    " <thin": ("", " <thin"),
    "<thinking>a</thinking>": ("", "<thinking>a</thinking>"),
    "<Think>a": ("", "<Think>a"),
    "The tag <think> opens a thought </think>.": ("", "The tag <think> opens a thought </think>."),
    "a thought without its opener</think>4": ("", "a thought without its opener</think>4"),
    "</think>4": ("", "</think>4"),
    " \n ": ("", " \n "),
    "": ("", ""),
    INDENT + "<think>a</think>b": ("a", "b"),
    INDENT + " <think>a</think>b": ("", INDENT + " <think>a</think>b"),
    "\u2028\x85\u3000<think>a</think>b": ("a", "b"),
}


def read(pieces: list[str]) -> tuple[str, str]:
    tags = ThinkTags()
    events = [event for piece in pieces for event in tags.feed(piece)] + tags.close()
    assert all(event.text for event in events)
    assert tags.close() == []
    reasoning = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    return reasoning, "".join(event.text for event in events if isinstance(event, TextDelta))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
@pytest.mark.parametrize("text", CASES)
def test_only_a_tag_that_opens_the_answer_counts_wherever_it_is_cut(text: str, size: int) -> None:
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert read(pieces) == CASES[text]


@settings(max_examples=300, deadline=None, database=None)
@given(
    text=st.lists(
        st.sampled_from(["<think>", "</think>", "<", "</", "think>", " ", "\n" * 30, "a", "你"]),
        max_size=12,
    ).map("".join),
    cuts=st.lists(st.integers(0, 300), max_size=12),
)
def test_the_cut_makes_no_difference(text: str, cuts: list[int]) -> None:
    ends = [*sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    assert read(pieces) == read([text])


def test_a_thought_flows_and_only_what_may_be_a_tag_is_held_back() -> None:
    tags = ThinkTags()
    assert tags.feed("<thi") == []
    assert tags.feed("nk>") == []
    assert tags.feed("2 <") == [ReasoningDelta("2 ")]
    assert tags.feed(" 3") == [ReasoningDelta("< 3")]
    assert tags.feed("</th") == []
    assert tags.feed("ink>yes <") == [TextDelta("yes <")]
    assert tags.feed("/think>") == [TextDelta("/think>")]
    assert tags.close() == []
