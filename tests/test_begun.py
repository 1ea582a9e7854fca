from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qwen_asgi.begun import Begun, guarded

pytestmark = pytest.mark.anyio


async def waiting(future: asyncio.Future[int], steps: int = 2) -> int:
    total = 0
    for _ in range(steps):
        total += await asyncio.shield(future)
        await asyncio.sleep(0)
    return total


class Guard:
    """A guard that counts how often it was entered and left."""

    entered = left = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.entered += 1
        try:
            yield
        finally:
            self.left += 1


async def test_what_need_not_wait_is_over_at_once() -> None:
    async def at_once() -> str:
        return "there"

    begun = Begun(at_once())
    assert (begun.is_over, begun.value) == (True, "there")
    guard = Guard()
    assert await guarded(at_once(), guard()) == "there"
    assert guard.entered == 0


async def test_what_waits_goes_on_where_it_was() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    begun = Begun(waiting(future))
    assert not begun.is_over
    asyncio.get_running_loop().call_later(0.01, future.set_result, 3)
    assert await begun == 6


async def test_an_error_comes_out_where_it_happens() -> None:
    async def fails(wait: float) -> None:
        if wait:
            await asyncio.sleep(wait)
        raise ValueError(wait)

    with pytest.raises(ValueError, match="0"):
        Begun(fails(0))
    begun = Begun(fails(0.01))
    with pytest.raises(ValueError, match=r"0\.01"):
        await begun


async def test_a_cancellation_reaches_what_waits_and_the_guard_is_left() -> None:
    seen: list[str] = []

    async def cleaning() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            # A cancelled task may wait once more, for its cleaning.
            await asyncio.sleep(0)
            seen.append("cleaned")

    guard = Guard()
    task = asyncio.create_task(guarded(cleaning(), guard()))
    await asyncio.sleep(0.01)
    assert (guard.entered, guard.left) == (1, 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cleaned"]
    assert guard.left == 1


async def test_what_swallows_a_cancellation_goes_on() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            return "stays"
        return "never"

    async def goes_on() -> str:
        return await Begun(stubborn())

    task = asyncio.create_task(goes_on())
    await asyncio.sleep(0.01)
    task.cancel()
    assert await task == "stays"


async def test_what_is_left_in_its_wait_is_closed() -> None:
    seen: list[str] = []

    async def held() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            seen.append("closed")

    steps = Begun(held()).__await__()
    next(steps)
    steps.close()
    assert seen == ["closed"]


async def test_timeouts_around_it_and_inside_it() -> None:
    async def in_time() -> str:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)
        return "never"

    with pytest.raises(TimeoutError):
        await guarded(in_time(), Guard()())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await Begun(waiting(asyncio.get_running_loop().create_future()))
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
