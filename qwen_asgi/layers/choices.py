"""Several answers to one request (`n`), each asked for on its own, all at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import reduce
from operator import add

from qwen_asgi.chat import Batches, ChatRequest, Choice, Event, Upstream, Usage
from qwen_asgi.errors import InvalidRequest

MOST_CHOICES = 16
"""Answers that one request may ask for: each is a call to an upstream."""

MOST_HELD = 256
"""Batches of events that wait for their client."""


class Choices:
    """An `Upstream` that gives `n` answers by asking another one `n` times.

    Entering waits until all of them have begun, so that a refusal of any is the whole request's;
    but no longer than there is room for what those say that have.
    """

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    def __call__(self, request: ChatRequest) -> AbstractAsyncContextManager[Batches]:
        if "n" not in request.options:
            return self._upstream(request)
        options = dict(request.options)
        number = options.pop("n")
        request = replace(request, options=options)
        return self._upstream(request) if number == 1 else self._several(request, number)

    @asynccontextmanager
    async def _several(self, request: ChatRequest, number: int) -> AsyncIterator[Batches]:
        if number > MOST_CHOICES:
            raise InvalidRequest(f"n should be at most {MOST_CHOICES} here", param="n")
        answers = _Answers(self._upstream, request, number)
        try:
            await answers.begin()
            yield answers.batches()
        finally:
            await answers.aclose()


class _Answers:
    """Calls that go on at the same time, and what they said that was not taken yet."""

    def __init__(self, upstream: Upstream, request: ChatRequest, number: int) -> None:
        self._upstream = upstream
        self._request = request
        self._number = number
        self._begun = 0
        self._said: asyncio.Queue[list[Event] | Exception | None] = asyncio.Queue(MOST_HELD)
        """Batches, an error, or the end of one answer."""
        self._is_time = asyncio.Event()
        """All have begun, one has failed, or there is no room."""
        self._failure: Exception | None = None
        self._usages: list[Usage] = []
        self._calls: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Begin to ask. Raises what one of them raises before its answer."""
        loop = asyncio.get_running_loop()
        for index in range(self._number):
            call = loop.create_task(self._ask(index), name=f"qwen_asgi choice {index}")
            self._calls.append(call)
            # A long prompt takes a while to write each time: others are served in between.
            await asyncio.sleep(0)
            if self._failure is not None:
                break
        await self._is_time.wait()
        if self._failure is not None and self._begun < self._number:
            raise self._failure

    async def batches(self) -> Batches:
        left = self._number
        while left:
            said = await self._said.get()
            if isinstance(said, Exception):
                raise said
            if said is None:
                left -= 1
            else:
                yield said
        if len(self._usages) == self._number:
            usages, self._usages = self._usages, []
            yield [reduce(add, usages)]

    async def aclose(self) -> None:
        """End the calls that still go on."""
        for call in self._calls:
            call.cancel()
        await asyncio.wait(self._calls)
        for usage in self._usages:
            self._request.notes.leave(usage)

    async def _ask(self, index: int) -> None:
        try:
            async with self._upstream(self._request) as batches:
                self._begun += 1
                if self._begun == self._number:
                    self._is_time.set()
                async for batch in batches:
                    await self._say([Choice(index), *self._without_usage(batch)])
            await self._say(None)
        except Exception as error:
            self._failure = self._failure or error
            self._is_time.set()
            await self._say(error)

    def _without_usage(self, batch: Sequence[Event]) -> list[Event]:
        self._usages += [event for event in batch if type(event) is Usage]
        return [event for event in batch if type(event) is not Usage]

    async def _say(self, said: list[Event] | Exception | None) -> None:
        if self._said.full():
            self._is_time.set()
        await self._said.put(said)
