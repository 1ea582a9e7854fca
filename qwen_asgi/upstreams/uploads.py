"""Brings the files in a request to an upstream that takes them only before the chat.

Identical files that are under way are brought once, for all who wait for them, and an upload is
known for a while by its content. A failure is nobody's but those who waited for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Literal, Protocol

from qwen_asgi.chat import ChatRequest, Message, Part
from qwen_asgi.errors import (
    UpstreamError,
    UpstreamInvalidResponse,
    UpstreamRefused,
    UpstreamTimeout,
)
from qwen_asgi.transports import Transport
from qwen_asgi.upstreams import AnswerReader, _oss
from qwen_asgi.upstreams._held_files import (
    InlineFile,
    Upload,
    UploadedPart,
    check_kinds,
    has_files,
    held_in,
    part_at,
    size_of,
    with_uploads,
)
from qwen_asgi.upstreams._inline_files import read_file
from qwen_asgi.upstreams._upload_calls import UploadCalls
from qwen_asgi.upstreams.call import ERROR_BODY_LIMIT, Clock, Reached, Timeouts, read_up_to
from qwen_asgi.upstreams.shared_work import SharedWork

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 3
"""Files of one request that are under way at one time."""

LARGE = 256 * 1024
"""Characters of base64 from which on another thread decodes them."""

MOST_KNOWN = 1000
"""Uploads that are remembered; each takes some 2 KiB, most of it its address."""

KNOWN_SECONDS = 1800.0
"""How long one is remembered, unless its address says that it ends sooner."""

MARGIN = 60.0
"""Seconds before that end from which on it is not used any more: the upstream still has to fetch
the file. Captures show addresses that hold for 300 seconds."""

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 2.0
"""Seconds before a document is asked after again; each pause is twice as long as the last."""

UPLOAD_FAILED = "upstream_upload_failed"

Way = Literal["ticket", "multipart"]

_Key = tuple[str, str, bytes]
"""Kind, media type and SHA-256 of a file."""


def _key(file: InlineFile) -> _Key:
    return file.kind, file.media_type, file.digest


class FileReader(AnswerReader, Protocol):
    """How to read what an upstream that takes files answers."""

    uploads: UploadCalls


class Uploads(Reached):
    """The files of one upstream; see `call.Files`."""

    def __init__(
        self,
        dialect: FileReader,
        transport: Transport,
        timeouts: Timeouts,
        *,
        way: Way = "ticket",
        storage: Transport,
        hosts: Sequence[str],
    ) -> None:
        """`storage` leads to wherever tickets say that files go, if that is one of `hosts`."""
        super().__init__(dialect, transport, timeouts)
        self._calls = dialect.uploads
        self._upload = self._by_form if way == "multipart" else self._by_ticket
        self._storage = storage
        self._hosts = hosts
        self._known: dict[_Key, tuple[float, Upload]] = {}
        """Until when, in seconds of the monotonic clock, and what; the oldest first."""
        self._reading: SharedWork[int, InlineFile] = SharedWork()
        """By the `id` of the part that is read: of several answers to one request each is asked for
        on its own, and all have the same parts."""
        self._bringing: SharedWork[_Key, Upload] = SharedWork()

    def are_in(self, messages: Sequence[Message]) -> bool:
        return has_files(messages)

    async def brought(
        self, request: ChatRequest, check: Callable[[ChatRequest], object], clock: Clock
    ) -> ChatRequest:
        name = self.reader.name
        held = held_in(request.messages, name)
        blank = InlineFile("image", "", "", b"", b"")
        # What is refused for anything else is refused before a file is read, or sent.
        check(with_uploads(request, held, [blank] * len(held), [Upload("")] * len(held)))
        parts = [part_at(request.messages, at) for at in held]
        is_large = sum(map(size_of, parts)) > LARGE
        files = [
            await self._read(part, at.where, is_large=is_large)
            for at, part in zip(held, parts, strict=True)
        ]
        check_kinds(files, held, name)
        return with_uploads(request, held, files, await self._all(files, clock))

    def forget(self, request: ChatRequest) -> None:
        """Bring the files of a request anew next time: the upstream may have lost them."""
        for message in request.messages:
            for part in message.content if isinstance(message.content, tuple) else ():
                if isinstance(part, UploadedPart):
                    self._known.pop(_key(part.file), None)

    async def _read(self, part: Part, where: str, *, is_large: bool) -> InlineFile:
        read = partial(read_file, part, where, self._calls.kinds, self.reader.name)
        if not is_large:
            return read()
        return await self._reading.result(id(part), partial(asyncio.to_thread, read))

    async def _all(self, files: Sequence[InlineFile], clock: Clock) -> list[Upload]:
        if len(files) == 1:
            return [await self._one(files[0], clock)]
        slots = asyncio.Semaphore(MOST_AT_ONCE)

        async def in_turn(file: InlineFile) -> Upload:
            async with slots:
                return await self._one(file, clock)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(in_turn(file)) for file in files]
        except BaseExceptionGroup as failed:
            # The first failure ended the others.
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _one(self, file: InlineFile, clock: Clock) -> Upload:
        """Return the upload of a file: known, under way, or begun now."""
        key = _key(file)
        until, known = self._known.get(key, (0.0, Upload("")))
        if time.monotonic() < until:
            return known
        try:
            return await self._bringing.result(key, partial(self._bring, key, file), clock.left())
        except TimeoutError:
            raise clock.named(UpstreamTimeout("the upstream did not take a file in time")) from None

    async def _bring(self, key: _Key, file: InlineFile) -> Upload:
        began = time.monotonic()
        # Whoever began it may leave: what bounds it is not that one's request.
        clock = Clock(Timeouts(first=self.timeouts.first))
        try:
            upload = await self._upload(file, clock)
        except UpstreamError as error:
            error.message = f"a file could not be uploaded: {error.message}"
            raise
        holds = _oss.lifetime(upload.url, time.time())
        lasts = KNOWN_SECONDS if holds is None else min(KNOWN_SECONDS, holds - MARGIN)
        self._remember(key, began + lasts, upload)
        return upload

    def _remember(self, key: _Key, until: float, upload: Upload) -> None:
        known = self._known
        known.pop(key, None)
        while len(known) >= MOST_KNOWN:
            # Another thread's loop may have taken it at this moment.
            with suppress(StopIteration, RuntimeError):
                known.pop(next(iter(known)), None)
        known[key] = (until, upload)

    async def _by_form(self, file: InlineFile, clock: Clock) -> Upload:
        return self._calls.read_form(await self.document(self._calls.form(file), clock))

    async def _by_ticket(self, file: InlineFile, clock: Clock) -> Upload:
        calls = self._calls
        ticket = calls.read_ticket(await self.document(calls.ticket(file), clock))
        await self._put(ticket, file, clock)
        if file.kind == "document":
            await self._parse(ticket.file.id, clock)
        return ticket.file

    async def _put(self, ticket: _oss.Ticket, file: InlineFile, clock: Clock) -> None:
        try:
            await self._put_there(ticket, file, clock)
        except (UpstreamRefused, UpstreamTimeout):
            raise
        except UpstreamError as error:
            # It is the storage's failure: the upstream itself may work well.
            error.code = UPLOAD_FAILED
            raise

    async def _put_there(self, ticket: _oss.Ticket, file: InlineFile, clock: Clock) -> None:
        try:
            url = _oss.object_url(ticket, self._hosts)
        except UpstreamInvalidResponse:
            # A client's answer names no address.
            logger.warning(
                "upstream %s keeps its files at %s (bucket %s), which is none of upload_hosts",
                self.reader.name,
                ticket.endpoint,
                ticket.bucket,
            )
            raise
        call = _oss.signed_put(ticket, url, file, time.time())
        try:
            async with self._storage.open(call, within=clock.left()) as response:
                if response.status != 200:
                    raise _oss.refusal(response.status, await self.error_body(response, clock))
                await read_up_to(ERROR_BODY_LIMIT, response, clock)
        except UpstreamTimeout as error:
            raise clock.named(error) from None

    async def _parse(self, id: str, clock: Clock) -> None:
        calls, pause = self._calls, FIRST_PAUSE
        calls.read_parse(await self.document(calls.parse(id), clock))
        while not calls.read_parse_state(await self.document(calls.parse_state(id), clock)):
            await asyncio.sleep(min(pause, clock.left()))
            pause = min(2 * pause, LONGEST_PAUSE)
