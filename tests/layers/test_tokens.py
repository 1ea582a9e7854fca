from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_asgi.layers.tokens import UNIT, tokens_in, weight_of, within

COUNTED = json.loads((Path(__file__).parents[1] / "data" / "tokens.json").read_text("utf-8"))
"""Texts with the tokens that Qwen's vocabulary makes of them: `qwen.tiktoken` of dashscope 2.0.2,
read with tiktoken 0.14.0 and the pattern of Qwen's tokenizer."""


@pytest.mark.parametrize("counted", COUNTED, ids=lambda counted: counted["what"])
def test_an_estimate_is_near_what_qwen_counts(counted: dict[str, object]) -> None:
    text, tokens = str(counted["text"]), int(str(counted["tokens"]))
    assert 0.78 * tokens <= tokens_in(text) <= 1.15 * tokens + 1


@given(st.text(), st.text())
def test_the_parts_of_a_text_add_up_to_the_whole(one: str, other: str) -> None:
    assert weight_of(one) + weight_of(other) == weight_of(one + other)
    assert tokens_in(one, other) == tokens_in(one + other)


@given(st.text(), st.integers(0, 1000))
def test_as_much_as_fits_is_within(text: str, weight: int) -> None:
    part = within(text, weight)
    assert text.startswith(part)
    assert weight_of(part) <= weight
    assert part == text or weight_of(text[: len(part) + 1]) > weight


def test_no_text_has_no_tokens_and_any_has_one() -> None:
    assert (tokens_in(""), tokens_in("a"), tokens_in("1" * 7)) == (0, 1, 7)
    assert weight_of("\ud800") > 0
    assert weight_of("7") == UNIT
