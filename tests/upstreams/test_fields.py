from __future__ import annotations

import pytest

from qwen_asgi.chat import Message
from qwen_asgi.errors import InvalidRequest
from qwen_asgi.upstreams._fields import MOST_NAMED, Refused, ignored, refuse

REFUSED = {"n": Refused(lambda value: value != 1, "it gives one choice; set it to 1")}


def test_a_refusal_names_the_field_the_upstream_and_the_way_out() -> None:
    with pytest.raises(InvalidRequest) as raised:
        refuse({"user": "me", "n": 2}, REFUSED, "a-dialect")
    assert raised.value.param == "n"
    assert raised.value.code == "unsupported_parameter"
    assert str(raised.value) == (
        "the upstream 'a-dialect' cannot honour 'n': it gives one choice; set it to 1"
    )


def test_a_harmless_value_of_a_refused_field_passes() -> None:
    refuse({"user": "me", "n": 1}, REFUSED, "a-dialect")


def test_what_is_not_known_is_named_once_and_in_order() -> None:
    messages = (
        Message("user", "hi", {"name": "me", "extra": {}}),
        Message("user", "hi", {"name": "me", "tone": "kind"}),
    )
    options = {"user": "me", "size": "1:1", "top_p": 1}
    assert ignored(options, messages, {"size"}, {"extra"}) == (
        "user",
        "top_p",
        "messages.name",
        "messages.tone",
    )


HOSTILE = [
    "a\r\nset-cookie: x=1",
    "a\nb",
    "a,b",
    "a b",
    "a;b",
    'a"b',
    "a:b",
    "a\x00b",
    "a\x7fb",
    "é",
    "字段",
    "\u2028",
    "\ud800",
    "",
    "x" * 65,
    "seed\n",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_never_gets_into_a_header(name: str) -> None:
    messages = (Message("user", "hi", {name: 1, "fine": 1}),)
    assert ignored({name: 1, "top_p": 1}, messages, set(), set()) == ("top_p", "messages.fine")


def test_the_header_stays_short() -> None:
    names = ignored({f"{i:064d}": i for i in range(10_000)}, (), set(), set())
    assert len(names) == MOST_NAMED
    assert len(", ".join(names)) < 2000
