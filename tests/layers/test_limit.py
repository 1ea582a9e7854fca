from __future__ import annotations

import asyncio
import gc
import time
import weakref
from dataclasses import replace
from typing import Any

import pytest

from qwen_asgi.chat import Event, Finish
from qwen_asgi.errors import Overloaded, UpstreamTruncated
from qwen_asgi.layers.limit import Limit
from tests.layers.scripted import ANSWER, CHAT, Scripted, answer

pytestmark = pytest.mark.anyio

SLOW: tuple[Event | float, ...] = (0.05, *ANSWER)


def limit(upstream: Scripted, most: int | None = 2, **options: Any) -> Limit:
    return Limit(upstream, most, **{"queue": 100, "patience": 5.0, "name": "studio", **options})


async def test_so_many_are_let_in_and_the_others_wait_for_their_turn() -> None:
    upstream = Scripted(SLOW)
    layer = limit(upstream)
    answers = await asyncio.gather(*(answer(layer) for _ in range(7)))
    assert [events[-1] for events in answers] == [Finish("stop")] * 7
    assert upstream.most_open == 2
    assert layer.busy == 0


async def test_none_lets_all_in_and_counts_them() -> None:
    upstream = Scripted(SLOW)
    layer = limit(upstream, None)
    waiting = asyncio.gather(*(answer(layer) for _ in range(7)))
    await asyncio.sleep(0.02)
    assert layer.busy == upstream.most_open == 7
    await waiting
    assert layer.busy == 0


async def test_a_full_queue_refuses_at_once() -> None:
    layer = limit(Scripted(SLOW), 1, queue=2)
    first = [asyncio.create_task(answer(layer)) for _ in range(3)]
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded, match="studio is busy, and 2 wait") as caught:
        await answer(layer)
    assert caught.value.retry_after == 1
    assert all(await asyncio.gather(*first))
    # And then there is room again.
    assert await answer(layer)


async def test_no_queue_is_no_queue() -> None:
    layer = limit(Scripted(SLOW), 1, queue=0)
    first = asyncio.create_task(answer(layer))
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded):
        await answer(layer)
    assert await first


@pytest.mark.parametrize("by_deadline", [False, True])
async def test_patience_ends(by_deadline: bool) -> None:
    layer = limit(Scripted([60.0, *ANSWER]), 1, patience=5.0 if by_deadline else 0.1)
    first = asyncio.create_task(answer(layer))
    await asyncio.sleep(0.01)
    request = replace(CHAT, deadline=time.monotonic() + 0.1) if by_deadline else CHAT
    begun = time.monotonic()
    with pytest.raises(Overloaded, match="was busy for"):
        await answer(layer, request)
    assert 0.08 < time.monotonic() - begun < 1
    assert layer.busy == 1
    first.cancel()


async def test_whoever_leaves_gives_the_turn_on() -> None:
    upstream = Scripted([60.0, *ANSWER], ANSWER)
    layer = limit(upstream, 1)
    first, second, third = (asyncio.create_task(answer(layer)) for _ in range(3))
    await asyncio.sleep(0.01)
    # One that waits, then the one that all wait for.
    second.cancel()
    await asyncio.sleep(0)
    first.cancel()
    assert (await third)[-1] == Finish("stop")
    assert (layer.busy, upstream.open) == (0, 0)


async def test_a_failure_gives_the_turn_on() -> None:
    layer = limit(Scripted([*ANSWER[:1], UpstreamTruncated("cut")], ANSWER), 1)
    with pytest.raises(UpstreamTruncated):
        await answer(layer)
    assert await answer(layer)


def test_each_event_loop_has_turns_of_its_own_and_none_is_kept() -> None:
    layer = limit(Scripted(SLOW), 1)
    loops = weakref.WeakSet[asyncio.AbstractEventLoop]()

    async def two() -> None:
        loops.add(asyncio.get_running_loop())
        assert all(await asyncio.gather(answer(layer), answer(layer)))

    for _ in range(3):
        asyncio.run(two())
    gc.collect()
    assert not loops


def test_chats_of_a_loop_that_was_closed_under_them_are_not_there() -> None:
    layer = limit(Scripted([60.0, *ANSWER]), 1)

    async def take_a_turn() -> None:
        layer.turns.here().acquire_on_behalf_of_nowait(object())
        assert layer.busy == 1

    loop = asyncio.new_event_loop()
    loop.run_until_complete(take_a_turn())
    loop.close()
    assert layer.busy == 0


async def test_another_layer_counts_those_who_are_there_already() -> None:
    upstream = Scripted(SLOW)
    before = limit(upstream, 2)
    under_way = [asyncio.create_task(answer(before)) for _ in range(3)]
    await asyncio.sleep(0.01)
    fewer = limit(upstream, 1, turns=before.turns)
    assert fewer.busy == 3
    under_way += [asyncio.create_task(answer(fewer)) for _ in range(3)]
    # One that came first leaves room for one that waits, but two are more than may be there now.
    await asyncio.gather(*under_way)
    assert upstream.most_open == 2
    more = limit(upstream, 5, turns=before.turns)
    await asyncio.gather(*(answer(more) for _ in range(9)))
    assert upstream.most_open == 5
    assert more.busy == 0


@pytest.mark.parametrize("most", [4, None])
async def test_those_who_wait_are_let_in_as_soon_as_more_are(most: int | None) -> None:
    upstream = Scripted([60.0, *ANSWER])
    before = limit(upstream, 1)
    waiting = [asyncio.create_task(answer(before)) for _ in range(4)]
    await asyncio.sleep(0.01)
    assert upstream.open == 1
    # Nobody else need come; another thread may say so.
    await asyncio.to_thread(limit, upstream, most, turns=before.turns)
    await asyncio.sleep(0.01)
    assert upstream.open == 4
    for task in waiting:
        task.cancel()
