"""The two lanes, on the loops they run on, and the server that tortures them."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.transports.exchanges import Lane
from tests.transports.torture import TortureServer


@pytest.fixture(scope="package", autouse=True)
def _quick_collections() -> Iterator[None]:
    """Let each test's collection look at what the tests themselves made, not at all of Python."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(params=["direct", "direct-uvloop", "httpx"])
def lane_and_loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    use_uvloop = False
    if "lane_and_loop" in request.fixturenames:
        use_uvloop = request.getfixturevalue("lane_and_loop").endswith("uvloop")
    return "asyncio", {"use_uvloop": use_uvloop}


@pytest.fixture
def torture() -> Iterator[TortureServer]:
    with TortureServer().running() as server:
        yield server
        # No request may be sent again after the server saw it.
        seen = Counter(request.body for request in server.requests if request.body)
        assert not [body for body, times in seen.items() if times > 1]


@pytest.fixture
async def lane(lane_and_loop: str, torture: TortureServer) -> AsyncIterator[Lane]:
    """Makes transports, closes them, and looks for what they left behind."""
    lane = Lane(lane_and_loop.removesuffix("-uvloop"))
    yield lane
    for transport in lane.made:
        await transport.aclose()
    await torture.until(lambda: torture.open == 0)
    await torture.until(lambda: not _tasks())
    # A socket left open is reported when it is collected; warnings are errors here.
    gc.collect()


def _tasks() -> list[str]:
    """Return which tasks there are besides those that anyio runs the test in."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return [name for name in names if not name.startswith("TestRunner.")]
