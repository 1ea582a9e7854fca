from __future__ import annotations

import asyncio

import pytest

from qwen_asgi.cutoff import Cutoff

pytestmark = pytest.mark.anyio


class Cut(Exception):
    pass


class Made(Cutoff):
    def error(self) -> Exception:
        return Cut()


async def test_what_is_cut_raises_its_error_and_the_task_goes_on() -> None:
    cutoff = Made()

    async def work() -> str:
        with pytest.raises(Cut), cutoff:
            await asyncio.sleep(60)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)
        return "goes on"

    task = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    cutoff.cut()
    assert await task == "goes on"


async def test_a_cancellation_from_elsewhere_stays_one_also_at_the_same_time() -> None:
    for both in False, True:
        cutoff = Made()

        async def work(cutoff: Cutoff) -> None:
            with cutoff:
                await asyncio.sleep(60)

        task = asyncio.create_task(work(cutoff))
        await asyncio.sleep(0.01)
        if both:
            cutoff.cut()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def test_what_is_not_cut_passes_all_through() -> None:
    with Made():
        pass
    with pytest.raises(ZeroDivisionError), Made():
        raise ZeroDivisionError
