"""An upstream that answers within a chat that it stores: made for each request, and removed again.

A chat that stayed would show in the account's history, and an answer that nobody reads any more
would go on being written in it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
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
from qwen_asgi.upstreams.call import Call, Clock, Reached, Timeouts

logger = logging.getLogger(__name__)

MOST_REMOVALS = 100
"""Chats that are being removed at one time; of more than these the rest stay, with a warning."""

REMOVAL_SECONDS = 10.0
"""Longest wait for each of the calls that stop an answer and remove its chat."""

CLOSING_SECONDS = 2.0
"""How long the end of a gateway may wait for chats to be removed."""


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


class StoredChats(Reached):
    """An `Upstream` that makes a chat for each request; `keep` leaves them in the account."""

    def __init__(
        self,
        dialect: StoredChatDialect,
        transport: Transport,
        timeouts: Timeouts,
        *,
        keep: bool = False,
    ) -> None:
        super().__init__(dialect, transport, timeouts)
        self.chats = dialect
        self._keep = keep
        self._removals: set[asyncio.Task[None]] = set()

    def __call__(self, request: ChatRequest) -> _ChatCall:
        return _ChatCall(self, request)

    def leave(self, chat_id: str, *, is_over: bool) -> None:
        """Be done with a chat, without a wait: its answer is stopped first unless it is over."""
        if self._keep and is_over:
            return
        if len(self._removals) >= MOST_REMOVALS:
            logger.warning("a chat stays in the upstream's account: too many are being removed")
            return
        calls = [] if is_over else [self.chats.encode_stop(chat_id)]
        if not self._keep:
            calls.append(self.chats.encode_removal(chat_id))
        removal = asyncio.get_running_loop().create_task(self._send(calls), name="qwen_asgi chat")
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)

    async def aclose(self) -> None:
        """Give the removals of this loop a moment, then end them."""
        loop = asyncio.get_running_loop()
        here = {task for task in self._removals if task.get_loop() is loop}
        if here:
            _, late = await asyncio.wait(here, timeout=CLOSING_SECONDS)
            for task in late:
                task.cancel()

    async def _send(self, calls: list[UpstreamRequest]) -> None:
        for call in calls:
            try:
                await self.document(call, Clock(Timeouts(first=REMOVAL_SECONDS)))
            except QwenASGIError as error:
                logger.info("a chat may stay in the upstream's account: %s", error)


class _ChatCall(Call):
    """One call: a chat is made, asked in, and left when the call is over."""

    __slots__ = ("_chat_id", "_chats")

    def __init__(self, chats: StoredChats, request: ChatRequest) -> None:
        super().__init__(chats, request)
        self._chats = chats

    async def __aenter__(self) -> Batches:
        chats = self._chats
        opening = chats.chats.encode_opening(self._request)
        self._request.notes.attempts += 1
        clock = Clock(chats.timeouts, self._request.deadline)
        # A client that leaves meanwhile leaves a chat behind whose name nobody knows; it is empty.
        self._chat_id = chats.chats.decode_opening(await chats.document(opening.call, clock))
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
