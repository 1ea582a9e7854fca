from __future__ import annotations

import asyncio

import pytest

from qwen_asgi.background import Background, end

pytestmark = pytest.mark.anyio


def sleeping() -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(asyncio.sleep(60))


async def test_there_is_room_for_so_many_and_again_when_they_are_over() -> None:
    background = Background(2)
    tasks = [sleeping(), sleeping()]
    background.keep(tasks[0])
    assert background.has_room()
    background.keep(tasks[1])
    assert not background.has_room()
    assert background.here() == {*tasks}
    await end({*tasks})
    await asyncio.sleep(0)
    assert all(task.cancelled() for task in tasks)
    assert background.has_room()
    assert not background.here()


async def test_to_end_nothing_is_no_wait() -> None:
    await end(set())


def test_those_of_a_loop_that_has_ended_take_no_room_and_are_nowhere() -> None:
    background = Background(1)

    async def leave() -> None:
        background.keep(sleeping())

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    assert not background.has_room()

    async def look_elsewhere() -> None:
        assert not background.here()

    asyncio.run(look_elsewhere())
    left = asyncio.all_tasks(loop)
    loop.run_until_complete(end(left))
    loop.close()
    assert background.has_room()
