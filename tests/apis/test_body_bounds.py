from __future__ import annotations

import json
import random
import time
from contextlib import suppress
from typing import Any

import pytest

from qwen_asgi.apis.body_bounds import LONG_BODY, MOST_VALUES, check_bounds
from qwen_asgi.apis.openai_chat import OpenAIChat
from qwen_asgi.errors import RequestTooLarge
from tests.conftest import ask

CHAT = json.dumps(ask()).encode()


def with_field(data: bytes) -> bytes:
    return CHAT[:-1] + b',"x":' + data + b"}"


@pytest.mark.parametrize("value", [b"[],", b"1,", b'{"a":1},', b"[[1]],", b'"",', b'"\\"[",'])
def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(value: bytes) -> None:
    many = with_field(b"[" + value * (MOST_VALUES + LONG_BODY // 2) + b"1]")
    with pytest.raises(RequestTooLarge) as caught:
        OpenAIChat().read(many)
    assert (caught.value.status, caught.value.code) == (413, "too_many_values")


@pytest.mark.parametrize(
    "text",
    [
        "A" * 8_000_000,
        "Once, there was a king. " * 150_000,
        "1,2,[3],{4}\n" * 100_000,
        '{"a": [1, 2, "\\\\"], "b": "\\""}' * 50_000,
        "\\" * 500_000,
        "7" * 500_000,
    ],
    ids=["a picture", "a book", "a table", "JSON", "backslashes", "digits"],
)
def test_what_a_text_holds_is_no_value(text: str) -> None:
    for body in json.dumps(ask(text)), json.dumps(ask(text), indent=4):
        assert OpenAIChat().read(body.encode()).messages[0].text == text


def test_a_long_body_with_a_very_long_number_is_refused() -> None:
    text = json.dumps("x" * LONG_BODY).encode()
    for digits, is_right in (399, True), (400, False), (4000, False):
        body = with_field(b"[%b, -%b]" % (text, b"7" * digits))
        if is_right:
            check_bounds(body)
            continue
        with pytest.raises(RequestTooLarge) as caught:
            check_bounds(body)
        assert (caught.value.status, caught.value.code) == (413, "number_too_long")


@pytest.mark.parametrize("form", ["tool_calls", "function_call"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["[" + "[]," * 1_000_000 + "1]"], "too_many_values"),
        (["[" + "[]," * 10_000 + "1]"] * 30, "too_many_values"),
        (['"', *["[" + "[]," * 10_000 + "1]"] * 30], "too_many_values"),
        (['"' * 200_000] * 10, "too_many_values"),
        (["[" + "7" * 4000 + "]"] * 100, "number_too_long"),
        ([json.dumps({"file": '[[1,2,3],"{}"]\\\n' * 100_000})], None),
        (['{"a": [1, 2, 3]}'] * 1000, None),
        (["not JSON"] * 1000, None),
    ],
    ids=[
        "one",
        "many",
        "behind an open quote",
        "quotes",
        "long numbers",
        "a file",
        "small ones",
        "no JSON",
    ],
)
def test_the_arguments_of_calls_are_parsed_too(
    arguments: list[str], code: str | None, form: str
) -> None:
    """30 MB of empty lists in them held the loop for 5 s."""
    functions = [{"name": "f", "arguments": text} for text in arguments]
    calls = [{"id": "c", "type": "function", "function": one} for one in functions]
    said: list[Any] = [{"role": "assistant", "content": None, "tool_calls": calls}]
    if form == "function_call":
        said = [{"role": "assistant", "content": None, form: one} for one in functions]
    chat = ask()
    chat["messages"] += said
    body = json.dumps({**chat, "x": "y" * LONG_BODY}).encode()
    if code is None:
        OpenAIChat().read(body)
        return
    with pytest.raises(RequestTooLarge) as caught:
        OpenAIChat().read(body)
    assert (caught.value.status, caught.value.code) == (413, code)


def test_blanks_without_end_are_refused() -> None:
    with pytest.raises(RequestTooLarge):
        check_bounds(with_field(b" " * 9_000_000 + b"1"))


def test_texts_are_told_from_what_is_outside_of_them_as_a_parser_does() -> None:
    """Where the bounds are lower than the values that are there, it is refused, and only there."""
    source = random.Random(1)
    alphabet = ['"', "\\", ",", "[", "{", "a", "\n", "7", "é"]
    for _ in range(300):
        words = ["".join(source.choices(alphabet, k=source.randrange(30))) for _ in range(20)]
        fill = "x" * LONG_BODY
        check_bounds(json.dumps([*words, fill]).encode())
        assert json.loads(json.dumps([*words, fill])) == [*words, fill]


@pytest.mark.parametrize(
    "body",
    [
        b'"' * 32_000_000,
        b"\\" * 32_000_000,
        b'\\"' * 16_000_000,
        b"[" * 32_000_000,
        b"7" * 8_000_000,
        with_field(b'"' + b"x" * 32_000_000 + b'"'),
        b'{"a' * 10_000_000,
        with_field(b"[" + (b"7" * 399 + b",") * 20_000 + b"1]"),
    ],
    ids=[
        "quotes",
        "backslashes",
        "escaped quotes",
        "brackets",
        "digits",
        "a text",
        "no JSON",
        "numbers that are almost too long",
    ],
)
def test_it_is_looked_at_quickly(body: bytes) -> None:
    begun = time.process_time()
    with suppress(RequestTooLarge):
        check_bounds(body)
    took = time.process_time() - begun
    print(f"{took * 1e3:.0f} ms")
    assert took < 1
