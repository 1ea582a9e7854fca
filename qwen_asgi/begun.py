"""Going as far as one can without waiting, which mostly is to the end.

What guards a wait, such as a timer, takes longer to set up than most of what it guards: it is for
the wait that there really is.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Begun(Generic[T]):
    """A coroutine that has run, here and now, up to its first wait: `is_over`, or to be awaited.

    What it raises before that comes out of making this.
    """

    __slots__ = ("_coroutine", "_waits_for", "is_over", "value")

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self.is_over = False
        try:
            self._waits_for = coroutine.send(None)
        except StopIteration as end:
            self.is_over = True
            self.value: T = end.value

    def __await__(self) -> Generator[Any, Any, T]:
        """Go on with it; in the task that has begun it, and at once."""
        coroutine, waits_for = self._coroutine, self._waits_for
        # What `yield from` does, which can only be had from the start.
        while True:
            try:
                try:
                    sent = yield waits_for
                except GeneratorExit:
                    coroutine.close()
                    raise
                except BaseException as exc:
                    waits_for = coroutine.throw(exc)
                else:
                    waits_for = coroutine.send(sent)
            except StopIteration as end:
                value: T = end.value
                return value


async def guarded(coroutine: Coroutine[Any, Any, T], guard: AbstractContextManager[object]) -> T:
    """Await a coroutine inside `guard`, which is entered only if there is something to wait for."""
    begun = Begun(coroutine)
    if begun.is_over:
        return begun.value
    with guard:
        return await begun
