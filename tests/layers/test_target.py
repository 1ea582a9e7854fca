from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qwen_asgi.layers.target import Target
from tests.layers.scripted import CHAT, Scripted, answer

pytestmark = pytest.mark.anyio


def target(upstream: Scripted, **options: Any) -> Target:
    return Target(upstream, **{"model": "m", **options})


async def test_the_model_has_its_name_there_and_the_request_stays_the_client_s() -> None:
    upstream = Scripted()
    await answer(target(upstream, model="theirs"))
    assert [request.model for request in upstream.asked] == ["theirs"]
    assert CHAT.model == "m"


async def test_defaults_yield_to_the_client_and_forced_fields_do_not() -> None:
    upstream = Scripted()
    layer = target(
        upstream,
        defaults={"top_p": 0.5, "seed": 1, "temperature": 0.1, "max_tokens": 5},
        forced={"enable_thinking": False, "user": "us"},
    )
    options = {"seed": 2, "enable_thinking": True}
    await answer(layer, replace(CHAT, options=options, temperature=0.9))
    [request] = upstream.asked
    assert request.options == {"top_p": 0.5, "seed": 2, "enable_thinking": False, "user": "us"}
    assert (request.temperature, request.max_tokens) == (0.9, 5)
    assert options == {"seed": 2, "enable_thinking": True}


async def test_the_limit_on_tokens_has_two_names_and_is_one() -> None:
    upstream = Scripted()
    layer = target(upstream, forced={"max_completion_tokens": 7, "temperature": 0})
    await answer(layer, replace(CHAT, max_tokens=100, temperature=1.0))
    [request] = upstream.asked
    assert (request.max_tokens, request.temperature, request.options) == (7, 0, {})


async def test_without_anything_to_change_the_request_goes_on_as_it_is() -> None:
    upstream = Scripted()
    await answer(target(upstream))
    assert upstream.asked == [CHAT]
    assert upstream.asked[0] is CHAT
