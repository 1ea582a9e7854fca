"""An upstream that answers within a chat that it stores: made for each request, and removed again.

A chat that stayed would show in the account's history, and an answer that nobody reads any more
would go on being written in it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Protocol

from qwen_asgi.chat import Batches, ChatRequest
from qwen_asgi.errors import (
    QwenASGIError,
    UpstreamError,
    UpstreamTimeout,
    UpstreamTruncated,
)
from qwen_asgi.transports import Transport, UpstreamRequest
from qwen_asgi.upstreams import AnswerReader
from qwen_asgi.upstreams.call import CLOSING_SECONDS, Call, Clock, Files, Reached, Timeouts
from qwen_asgi.upstreams.removals import Removals

logger = logging.getLogger(__name__)

REMOVAL_SECONDS = 10.0
"""Longest wait for each of the calls that stop an answer and remove its chat, and for the name of a
chat that nobody waits for any more."""


@dataclass(frozen=True, slots=True)
class Opening:
    """The call that makes a chat, and the one that asks in it once it has a name."""

    call: UpstreamRequest
    ask: Callable[[str], UpstreamRequest]


class StoredChatDialect(AnswerReader, Protocol):
    """How to ask an upstream that stores its chats."""

    def encode_opening(self, request: ChatRequest) -> Opening:
        """Return the calls that ask for `request`, and note on it what had to be ignored.

        Raises InvalidRequest for what this dialect cannot honour.
        """

    def decode_opening(self, body: bytes) -> str:
        """Return the name of the chat that was made. Raises UpstreamError."""

    def encode_stop(self, chat_id: str) -> UpstreamRequest:
        """Return the call that ends an answer under way."""

    def encode_removal(self, chat_id: str) -> UpstreamRequest:
        """Return the call that removes a chat."""

    def check_removal(self, body: bytes) -> None:
        """Raise UpstreamError if a stop or a removal was refused with this answer."""


class StoredChats(Reached):
    """An `Upstream` that makes a chat for each request; `keep` leaves them in the account."""

    def __init__(
        self,
        dialect: StoredChatDialect,
        transport: Transport,
        timeouts: Timeouts,
        *,
        keep: bool = False,
        files: Files | None = None,
    ) -> None:
        super().__init__(dialect, transport, timeouts, files=files)
        self.chats = dialect
        self._keep = keep
        self._removals = Removals()

    def __call__(self, request: ChatRequest) -> _ChatCall:
        return _ChatCall(self, request)

    def leave(self, chat_id: str, *, is_over: bool) -> None:
        """Be done with a chat, without a wait: its answer is stopped first unless it is over."""
        if self._keep and is_over:
            return
        self._removals.add(partial(self._remove, chat_id, is_over))

    async def open(self, call: UpstreamRequest, clock: Clock) -> str:
        """Make a chat and return its name. Raises UpstreamError.

        A chat that is being made when its client leaves, or when the time is over, is made; so its
        name is waited for behind the request's back, and then it is left.
        """
        within = clock.left()
        task = asyncio.get_running_loop().create_task(self._made(call, within + REMOVAL_SECONDS))
        try:
            await asyncio.wait({task}, timeout=within)
        except asyncio.CancelledError:
            self._abandon(task)
            raise
        if not task.done():
            self._abandon(task)
            raise clock.named(UpstreamTimeout("the upstream did not make a chat in time"))
        return task.result()

    async def aclose(self, within: float = CLOSING_SECONDS) -> None:
        """Give the removals of this loop a moment, then end them."""
        await self._removals.aclose(within)

    async def _made(self, call: UpstreamRequest, within: float) -> str:
        body = await self.document(call, Clock(Timeouts(first=within)))
        return self.chats.decode_opening(body)

    def _abandon(self, making: asyncio.Task[str]) -> None:
        """Leave the chat once it has a name, if there is room to wait for that."""
        if not self._removals.has_room():
            making.add_done_callback(_hear)
            making.cancel()
            return
        loop = asyncio.get_running_loop()
        self._removals.keep(loop.create_task(self._leave_made(making), name="qwen_asgi chat"))

    async def _leave_made(self, making: asyncio.Task[str]) -> None:
        try:
            async with asyncio.timeout(REMOVAL_SECONDS):
                chat_id = await making
        except (QwenASGIError, TimeoutError):
            # There is none, or none that is known.
            return
        # No answer runs in it, and nobody asked to keep an empty one.
        self._removals.add(partial(self._removed, self.chats.encode_removal(chat_id)))

    async def _remove(self, chat_id: str, is_over: bool) -> None:
        if not is_over:
            try:
                await self._removed(self.chats.encode_stop(chat_id))
            except QwenASGIError as error:
                logger.info("an answer may go on being written at the upstream: %s", error)
        if not self._keep:
            await self._removed(self.chats.encode_removal(chat_id))

    async def _removed(self, call: UpstreamRequest) -> None:
        """Send a call and hear its answer; once more after a moment, where that is asked for."""
        try:
            await self._send(call)
        except UpstreamError as error:
            if error.retry_after is None or error.retry_after > REMOVAL_SECONDS:
                raise
            await asyncio.sleep(error.retry_after)
            await self._send(call)

    async def _send(self, call: UpstreamRequest) -> None:
        self.chats.check_removal(await self.document(call, Clock(Timeouts(first=REMOVAL_SECONDS))))


def _hear(making: asyncio.Task[str]) -> None:
    """Take a task's error, so that nobody is told that it was not taken."""
    if not making.cancelled():
        making.exception()


class _ChatCall(Call):
    """One call: a chat is made, asked in, and left when the call is over."""

    __slots__ = ("_chat_id", "_chats")

    def __init__(self, chats: StoredChats, request: ChatRequest) -> None:
        super().__init__(chats, request)
        self._chats = chats

    async def __aenter__(self) -> Batches:
        chats = self._chats
        clock = Clock(chats.timeouts, self._request.deadline)
        opening = await self._encoded(chats.chats.encode_opening, clock)
        self._chat_id = await chats.open(opening.call, clock)
        try:
            return await self._enter(opening.ask(self._chat_id), clock)
        except BaseException as exc:
            is_refused = isinstance(exc, UpstreamError) and not isinstance(
                exc, UpstreamTimeout | UpstreamTruncated
            )
            chats.leave(self._chat_id, is_over=is_refused)
            raise

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await super().__aexit__(exc_type, exc, traceback)
        finally:
            # A layer that has heard enough leaves before the end, without an error.
            is_over = exc_type is None and self._answer.is_whole
            self._chats.leave(self._chat_id, is_over=is_over)
