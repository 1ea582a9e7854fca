from __future__ import annotations

import asyncio
import gc

import pytest

from qwen_asgi.upstreams.shared_work import SharedWork

pytestmark = pytest.mark.anyio


class Job:
    """Work that ends when it is let, and tells how often it was begun and how it ended."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.may_end = asyncio.Event()
        self.raises: Exception | None = None

    async def __call__(self) -> int:
        self.begun += 1
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.raises is not None:
            raise self.raises
        return self.begun


async def begun(*waits: asyncio.Task[int]) -> None:
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(wait.done() for wait in waits)


async def test_it_is_done_once_for_all_who_wait_and_again_for_the_next() -> None:
    work: SharedWork[str, int] = SharedWork()
    job = Job()
    waits = [asyncio.create_task(work.result("a", job)) for _ in range(3)]
    await begun(*waits)
    job.may_end.set()
    assert await asyncio.gather(*waits) == [1, 1, 1]
    assert await work.result("a", job) == 2
    assert job.cancelled == 0


async def test_it_has_a_name() -> None:
    work: SharedWork[str, int] = SharedWork()
    one, other = Job(), Job()
    waits = [
        asyncio.create_task(work.result("a", one)),
        asyncio.create_task(work.result("b", other)),
    ]
    await begun(*waits)
    one.may_end.set()
    other.may_end.set()
    await asyncio.gather(*waits)
    assert (one.begun, other.begun) == (1, 1)


async def test_it_goes_on_until_nobody_waits_for_it() -> None:
    work: SharedWork[str, int] = SharedWork()
    job = Job()
    first, second = (asyncio.create_task(work.result("a", job)) for _ in range(2))
    await begun(first, second)
    first.cancel()
    await begun(second)
    assert job.cancelled == 0
    second.cancel()
    await asyncio.wait({first, second})
    # One that comes now begins anew, though the old one has not ended yet.
    job.may_end.set()
    assert await work.result("a", job) == 2
    assert job.cancelled == 1


async def test_a_wait_that_is_over_leaves_the_others() -> None:
    work: SharedWork[str, int] = SharedWork()
    job = Job()
    patient = asyncio.create_task(work.result("a", job))
    await begun(patient)
    with pytest.raises(TimeoutError):
        await work.result("a", job, within=0.01)
    job.may_end.set()
    assert await patient == 1
    with pytest.raises(TimeoutError):
        await work.result("b", Job(), within=0.01)


async def test_a_failure_is_everybody_s_who_waits_and_is_not_kept() -> None:
    work: SharedWork[str, int] = SharedWork()
    job = Job()
    job.raises = ValueError("x")
    waits = [asyncio.create_task(work.result("a", job)) for _ in range(2)]
    await begun(*waits)
    job.may_end.set()
    assert {type(e) for e in await asyncio.gather(*waits, return_exceptions=True)} == {ValueError}
    job.raises = None
    assert await work.result("a", job) == 2


async def test_a_failure_that_nobody_waits_for_is_nobody_s(
    caplog: pytest.LogCaptureFixture,
) -> None:
    work: SharedWork[str, int] = SharedWork()
    job = Job()
    job.raises = ValueError("x")
    wait = asyncio.create_task(work.result("a", job))
    await begun(wait)
    # It fails in the turn in which the last one leaves.
    job.may_end.set()
    wait.cancel()
    await asyncio.wait({wait})
    assert wait.cancelled()
    del wait
    await asyncio.sleep(0)
    gc.collect()
    assert not caplog.records
