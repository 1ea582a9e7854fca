"""Work that several wait for at the same time and that is done once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class SharedWork(Generic[_K, _V]):
    """Work under way, by a name. It ends with the last who waits for it; nothing is kept of it."""

    def __init__(self) -> None:
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_K, _Work[_V]]] = (
            WeakKeyDictionary()
        )

    async def result(
        self, name: _K, begin: Callable[[], Coroutine[Any, Any, _V]], within: float | None = None
    ) -> _V:
        """Return what the work of that name brings; it is begun unless it is under way.

        Raises what it raises, and TimeoutError after `within` seconds.
        """
        loop = asyncio.get_running_loop()
        under_way = self._loops.setdefault(loop, {})
        work = under_way.get(name)
        if work is None:
            task = loop.create_task(begin(), name="qwen_asgi shared work")
            work = under_way[name] = _Work(task)
        work.waiting += 1
        try:
            await asyncio.wait({work.task}, timeout=within)
            if not work.task.done():
                raise TimeoutError
            return work.task.result()
        finally:
            work.waiting -= 1
            if not work.waiting:
                # It is done, or of no use to anybody any more; an error that nobody took is then
                # nobody's.
                work.task.cancel()
                if under_way.get(name) is work:
                    del under_way[name]


class _Work(Generic[_V]):
    __slots__ = ("task", "waiting")

    def __init__(self, task: asyncio.Task[_V]) -> None:
        self.task = task
        self.waiting = 0
        """How many wait for it."""
