"""Calls found in text: the recorded ones in every split, and mutilated ones that lose nothing."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_asgi.chat import Event, ReasoningDelta, TextDelta, ToolCallDelta, fold
from qwen_asgi.errors import UpstreamError, UpstreamInvalidResponse, UpstreamTruncated
from qwen_asgi.tool_text.parser import (
    MOST_FALSE_ENDS,
    MOST_FALSE_TAGS,
    MOST_HELD,
    Pieces,
    ToolText,
)
from qwen_asgi.tool_text.tools import read_tools
from qwen_asgi.upstreams._think_tags import ThinkTags
from tests.wire import FOLDER, SPLITS, Sample, at, pieces, samples

TOOLBOX = read_tools(json.loads((FOLDER / "tool-schemas.json").read_bytes()))
TEXTS = [s for s in samples() if s.dialect == "model-text" and "tool_calls" in s.expect]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
PARIS = ("get_weather", {"city": "Paris"})


def ids() -> Callable[[], str]:
    numbers = itertools.count()
    return lambda: f"call_{next(numbers)}"


def parse(text: str, size: int | None = None, most: int | None = None) -> Pieces:
    return parse_pieces(cut(text, size), most)


def parse_pieces(parts: list[str], most: int | None = None) -> Pieces:
    parser = ToolText(TOOLBOX, ids(), most=most)
    return [*itertools.chain.from_iterable(map(parser.feed, parts)), *parser.close()]


def cut(text: str, size: int | None) -> list[str]:
    step = size or len(text) or 1
    return [text[start : start + step] for start in range(0, len(text), step)]


def text_of(found: list[Any]) -> str:
    return "".join(piece.text for piece in found if isinstance(piece, TextDelta))


def calls_of(found: list[Any]) -> list[tuple[str, Any]]:
    answer = fold(found)
    assert len({call.id for call in answer.tool_calls}) == len(answer.tool_calls)
    return [(call.name, json.loads(call.arguments)) for call in answer.tool_calls]


@pytest.mark.parametrize("size", SPLITS)
@pytest.mark.parametrize("sample", TEXTS, ids=str)
def test_each_recorded_text_means_what_the_wire_notes_say(sample: Sample, size: int | None) -> None:
    expect = sample.expect
    thinking = ThinkTags()
    parser = ToolText(TOOLBOX, ids(), most=None)
    found: list[Event] = []
    for part in pieces(sample.data, size):
        events = thinking.feed(part.decode("utf-8", "ignore")) if sample.data.isascii() else []
        for event in events:
            found += parser.feed(event.text) if isinstance(event, TextDelta) else [event]
    for event in thinking.close():
        found += parser.feed(event.text) if isinstance(event, TextDelta) else [event]
    if sample.name == "tool-hermes-truncated-args.txt":
        # Its arguments were being given out: an error, and not half a file.
        with pytest.raises(UpstreamTruncated):
            parser.close()
        return
    found += parser.close()
    assert text_of(found).strip() == expect["content"].strip()
    wanted = [(call["name"], call["arguments"]) for call in expect["tool_calls"]]
    assert calls_of(found) == wanted
    reasoning = "".join(e.text for e in found if isinstance(e, ReasoningDelta))
    assert reasoning.strip() == expect.get("reasoning", "").strip()


def test_arguments_stream_while_they_are_written() -> None:
    parser = ToolText(TOOLBOX, ids(), most=None)
    head = '<tool_call>\n{"name": "write_file", "arguments": {"path":'
    [first, *_] = parser.feed(head)
    assert first == ToolCallDelta(0, "", id="call_0", name="write_file")
    for part in (' "a', ".txt", '", "content": "one', " two", "\\n"):
        [piece] = parser.feed(part)
        assert isinstance(piece, ToolCallDelta)
        assert (piece.index, piece.id, piece.name) == (0, None, None)
        assert piece.arguments == part
    [last] = parser.feed('three"}}\n</tool_call>')
    assert isinstance(last, ToolCallDelta)
    assert last.arguments == 'three"}'
    assert parser.close() == []


def test_arguments_stream_in_the_form_of_coder_models_too() -> None:
    parser = ToolText(TOOLBOX, ids(), most=None)
    head = "<tool_call>\n<function=write_file>\n<parameter=path>\na.txt\n</parameter>\n<parameter="
    found: list[Any] = [*parser.feed(head)]
    assert found[0] == ToolCallDelta(0, "", id="call_0", name="write_file")
    assert "".join(p.arguments for p in found) == '{"path": "a.txt"'
    given = [
        "".join(p.arguments for p in parser.feed(part) if isinstance(p, ToolCallDelta))
        for part in (
            "content>\nif a ",
            "< b:\n",
            '    say "<b>"',
            "\n</par",
            "ameter>\n</function>",
        )
    ]
    assert given == [
        ', "content": "if a ',
        "< b:",
        '\\n    say \\"<b>\\"',
        "",
        '"}',
    ]
    assert parser.feed("\n</tool_call>") == parser.close() == []


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize(
    ("parameters", "arguments"),
    [
        ("<parameter=path>\na\n</parameter>\n", {"path": "a"}),
        ("<parameter=path>a</parameter>", {"path": "a"}),
        ("<parameter=path>\n\n a \n\n</parameter>", {"path": "\n a \n"}),
        ("<parameter=path>\na\n<parameter=limit>\n5\n</parameter>", {"path": "a", "limit": 5}),
        ("<parameter=path>\na</function>b\n</parameter>", {"path": "a</function>b"}),
        ("<parameter=path></parameter>", {"path": ""}),
        ("<parameter=limit>many</parameter>", {"limit": "many"}),
        ('<parameter name="limit">7</parameter>', {"limit": 7}),
        ("<parameter=other>null</parameter>", {"other": None}),
        ("<parameter=path>\na\n", {"path": "a"}),
        ("", {}),
    ],
)
def test_values_are_what_the_schema_says_and_end_where_they_end(
    parameters: str, arguments: dict[str, Any], size: int | None
) -> None:
    for text in (
        f"<function=read_file>{parameters}</function>",
        f"<tool_call>\n<function=read_file>\n{parameters}</function>\n</tool_call>",
    ):
        found = parse(text, size)
        assert calls_of(found) == [("read_file", arguments)]
        assert text_of(found) == ""


@pytest.mark.parametrize("size", [None, 1, 3])
def test_a_call_whose_end_is_forgotten_ends_where_something_else_begins(size: int | None) -> None:
    found = parse(f"<function=run><parameter=check>true</parameter> and so\n{CALL}", size)
    assert calls_of(found) == [("run", {"check": True}), PARIS]
    assert text_of(found).strip() == "and so"


def test_a_value_that_breaks_off_is_no_value() -> None:
    with pytest.raises(UpstreamTruncated):
        parse("<function=read_file><parameter=path>\nhalf of a na")
    with pytest.raises(UpstreamTruncated):
        parse("<function=read_file><parameter=limit>\n1")


def test_a_value_that_never_ends_is_not_held_for_ever() -> None:
    with pytest.raises(UpstreamInvalidResponse):
        parse("<function=read_file><parameter=limit>" + "1" * (MOST_HELD + 1), 5000)


TEXT_ONLY = [
    "a < b and c > d",
    "<tool_box> is no tag",
    "the tag <tool_call> is only a word here.",
    "<tool_call",
    "x <",
    "<function name> is how one writes it",
    "`<tool_call>` is a tag",
    f"```xml\n{CALL}\n```\nso",
    "[TOOL",
    "[1] and [2]",
    "<tool_call>\n{not json}\n</tool_call> after",
    '<tool_call>\n{"name": "nope", "arguments": {}}\n</tool_call>',
    "<<tool_call>> <tool_call",
    "a\n\n  b\t\n",
    "<tool_call>" * 5,
    "<|im_end|>",
    "",
]


@pytest.mark.parametrize("size", [None, 1, 2, 3, 7])
@pytest.mark.parametrize("text", TEXT_ONLY)
def test_what_is_no_call_is_text_to_the_letter(text: str, size: int | None) -> None:
    found = parse(text, size)
    assert text_of(found) == text
    assert calls_of(found) == []


def test_text_is_given_out_as_soon_as_it_cannot_be_a_tag() -> None:
    parser = ToolText(TOOLBOX, ids(), most=None)
    for text, told in (("a <", "a "), ("to", ""), ("ols", "<tools"), (" b", " b")):
        assert text_of(parser.feed(text)) == told
    assert text_of(parser.feed("<tool_call> x")) == "<tool_call> x"


FORMS = {
    "hermes": CALL,
    "no line ends": CALL.replace("\n", ""),
    "upper case": CALL.replace("tool_call", "TOOL_CALL"),
    "blanks in the tag": CALL.replace("<tool_call>", "< tool_call >"),
    "brackets": CALL.replace("<tool_call>", "[TOOL_CALL]").replace("</tool_call>", "[/TOOL_CALL]"),
    "another tag": CALL.replace("tool_call", "function_call"),
    "the name in the tag": '<tool_call name="get_weather">{"city": "Paris"}</tool_call>',
    "tool_use": '<tool_use name="get_weather">{"city": "Paris"}</tool_use>',
    "invoke": '<invoke name="get_weather"><parameter name="city">Paris</parameter></invoke>',
    "coder": "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>",
    "arguments first": '<tool_call>{"arguments": {"city": "Paris"}, "name": "get_weather"}'
    "</tool_call>",
    "more fields": '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}, "id": 1}'
    "</tool_call>",
    "other names": '<tool_call>{"tool": "get_weather", "input": {"city": "Paris"}}</tool_call>',
    "another spelling": CALL.replace("get_weather", "getWeather"),
    "single quotes": CALL.replace('"', "'"),
    "a comma too many": CALL.replace('"Paris"', '"Paris",'),
    "a list of one": CALL.replace("{", "[{", 1).replace("}}", "}}]"),
    "wrapped": '<tool_call>{"tool_calls": [{"function": {"name": "get_weather", '
    '"arguments": "{\\"city\\": \\"Paris\\"}"}}]}</tool_call>',
    "a brace short": CALL.replace("}}", "}"),
    "not closed": CALL.removesuffix("\n</tool_call>"),
    "a tool's own answer behind it": f"{CALL}\n<tool_response>\nmade up\n</tool_response> and so",
}


@pytest.mark.parametrize("size", [None, 1, 2, 3, 7])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_a_call_is_read(form: str, size: int | None) -> None:
    found = parse(f"On it. {FORMS[form]}", size)
    assert calls_of(found) == [PARIS]
    assert text_of(found).strip() == "On it."


@pytest.mark.parametrize("size", [None, 1, 2, 7])
@pytest.mark.parametrize("form", [name for name in FORMS if "not closed" not in name])
def test_a_call_of_any_form_may_follow_one_of_any_form(form: str, size: int | None) -> None:
    for other in CALL, FORMS["brackets"], FORMS["coder"]:
        found = parse(f"{other}\n{FORMS[form]}", size)
        assert calls_of(found) == [PARIS, PARIS]
        assert text_of(found).strip() == ""
        if "made up" not in FORMS[form]:
            found = parse(f"{FORMS[form]}\n{other} Done.", size)
            assert calls_of(found) == [PARIS, PARIS]
            assert text_of(found).strip() == "Done."


@pytest.mark.parametrize("size", [None, 1, 3])
def test_several_calls_and_text_around_them(size: int | None) -> None:
    other = '<tool_call>{"name": "get_time", "arguments": {}}</tool_call>'
    found = parse(f"a\n{CALL}\n{other}\n\nb {CALL}", size)
    assert calls_of(found) == [PARIS, ("get_time", {}), PARIS]
    assert text_of(found).split() == ["a", "b"]


def test_only_so_many_calls_are_given_out() -> None:
    found = parse(f"{CALL}\n{CALL}\n{CALL} and more", most=1)
    assert calls_of(found) == [PARIS]
    assert text_of(found) == ""


def test_a_closing_tag_in_a_value_closes_nothing() -> None:
    content = "a </tool_call> b"
    call = {"name": "write_file", "arguments": {"path": "x", "content": content}}
    for size in (None, 1, 5):
        found = parse(f"<tool_call>{json.dumps(call)}</tool_call>", size)
        assert calls_of(found) == [("write_file", call["arguments"])]
    coder = (
        f"<function=write_file><parameter=content>\n{content}</function>\n</parameter></function>"
    )
    assert calls_of(parse(coder)) == [("write_file", {"content": f"{content}</function>"})]


def test_arguments_that_are_no_json_from_the_middle_on_are_an_error() -> None:
    parser = ToolText(TOOLBOX, ids(), most=None)
    parser.feed('<tool_call>{"name": "get_weather", "arguments": {"city": ')
    with pytest.raises(UpstreamInvalidResponse):
        parser.feed("Paris}}")


def test_what_is_held_is_bounded_and_many_tags_are_text() -> None:
    long = "<tool_call>{'a': '" + "x" * (MOST_HELD + 10)
    assert text_of(parse(long, 5000)) == long
    many = '<tool_call>{"x' * (MOST_FALSE_TAGS * 3)
    assert text_of(parse(many, 100)) == many


@pytest.mark.parametrize("end", ["", "</tool_call>" * MOST_FALSE_ENDS])
@pytest.mark.parametrize("opener", ['<tool_call>{"a": true, ', '<tool_call>{"a": "'])
def test_many_tags_before_much_text_hold_nobody_up(opener: str, end: str) -> None:
    """Each tag had all that is behind it looked at anew: 9 seconds, or with many ends, minutes."""
    tags = opener * MOST_FALSE_TAGS
    long = tags + '"x": true, ' * ((MOST_HELD - len(tags) - len(end)) // 11) + end
    begun = time.process_time()
    assert text_of(parse(long)) == long
    assert time.process_time() - begun < 4


def test_many_parameters_at_once_hold_nobody_up() -> None:
    """Each had all that is behind it looked through: a whole answer comes in one piece."""
    many = "".join(f"<parameter=p{n}>\n1\n</parameter>\n" for n in range(12_000))
    begun = time.process_time()
    [(name, arguments)] = calls_of(
        parse(f"<tool_call>\n<function=get_weather>\n{many}</function>x")
    )
    assert time.process_time() - begun < 4
    assert (name, len(arguments)) == ("get_weather", 12_000)


def test_much_that_is_no_call_makes_the_rest_of_an_answer_text() -> None:
    opener = '<tool_call>{"a": true, '
    many = opener * 8 + '"x": true, ' * 20_000
    assert text_of(parse(f"{many}</tool_call>{CALL}")) == f"{many}</tool_call>{CALL}"
    assert calls_of(parse(f"{opener}</tool_call>{CALL}")) == [PARIS]


# Fuzz: any split gives the same; text is kept; what is called can be called.

WORDS = [
    "Hello ",
    "\n",
    "`",
    "```\n",
    "<",
    ">",
    "[",
    "{",
    "}",
    '"',
    ",",
    "<tool_call>",
    "</tool_call>",
    "<function=run>",
    "</function>",
    "<parameter=check>",
    "</parameter>",
    "[TOOL_CALL]",
    "[/TOOL_CALL]",
    "<tool_response>",
    '{"name": "get_time", "arguments": {}}',
    '{"name": "get_weather", "arguments": {"city": "a',
    CALL,
    "true",
    " name=",
    "é",
]


def outcome(parts: list[str]) -> tuple[Any, ...]:
    """Return all that a client could tell two readings apart by."""
    parser = ToolText(TOOLBOX, ids(), most=None)
    found: list[Any] = []
    error = None
    try:
        for part in parts:
            found += parser.feed(part)
        found += parser.close()
    except UpstreamError as exc:
        error = type(exc)
        found += parser.flush()
    answer = fold(found)
    calls = [(call.name, call.arguments) for call in answer.tool_calls]
    return answer.text, calls, error


@settings(max_examples=600, deadline=None, database=None)
@given(words=st.lists(st.sampled_from(WORDS), max_size=14), places=st.lists(st.integers(0, 10**6)))
def test_any_split_gives_the_same(words: list[str], places: list[int]) -> None:
    text = "".join(words)
    whole = outcome([text])
    parts = [part.decode() for part in at(text.encode("ascii", "replace"), places)]
    if text.isascii():
        assert outcome(parts) == whole
    assert outcome(list(text)) == whole


@settings(max_examples=400, deadline=None, database=None)
@given(words=st.lists(st.sampled_from(WORDS), max_size=14))
def test_what_is_called_is_whole_and_text_comes_from_the_text(words: list[str]) -> None:
    text = "".join(words)
    given_text, calls, error = outcome([text])
    done = calls if error is None else calls[:-1]
    for name, arguments in done:
        assert TOOLBOX.find(name) is not None
        assert isinstance(json.loads(arguments), dict)
    if not calls:
        # Nothing was lost: without a call all of it is text.
        assert given_text == text or error is not None
    remaining = iter(text)
    assert all(character in remaining for character in given_text), "in the order it came"


def test_mutilated_calls_never_make_a_broken_one() -> None:
    source = random.Random(7)
    for _ in range(3000):
        text = list(f"Sure. {source.choice(list(FORMS.values()))} Done.")
        for _ in range(source.randint(1, 4)):
            place = source.randrange(len(text))
            match source.randrange(3):
                case 0:
                    del text[place:]
                case 1:
                    del text[place]
                case _:
                    text[place] = source.choice("<>{}[]\"',:\\ax\n")
            if not text:
                break
        mutilated = "".join(text)
        given_text, calls, error = outcome([mutilated])
        assert outcome(list(mutilated)) == (given_text, calls, error)
        for name, arguments in calls if error is None else calls[:-1]:
            assert TOOLBOX.find(name) is not None
            assert isinstance(json.loads(arguments), dict)
        if not calls:
            assert given_text == mutilated or error is not None
