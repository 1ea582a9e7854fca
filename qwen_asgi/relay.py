"""One chat's journey: open the upstream, then fold its events into one body or stream them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable

from qwen_asgi.apis import ClientAPI
from qwen_asgi.chat import ChatRequest, Fold, Upstream
from qwen_asgi.disconnect import ClientLeft, ClientWatch
from qwen_asgi.errors import (
    InternalError,
    QwenASGIError,
    UpstreamError,
    UpstreamInvalidResponse,
)
from qwen_asgi.exchange import Exchange
from qwen_asgi.http import JSON, EventStream, RawHeaders, Response
from qwen_asgi.shutdown import Work

logger = logging.getLogger(__name__)

LONGEST_ANSWER = 64 * 1024 * 1024
"""Characters of an answer that is collected for a client that does not stream."""


def relay(
    chat: ChatRequest,
    upstream: Upstream,
    api: ClientAPI,
    watch: ClientWatch,
    response: Response,
    exchange: Exchange,
    *,
    heartbeat: float,
    work: Work,
) -> Awaitable[None]:
    """Answer `chat` from `upstream`, and note on `exchange` how it went.

    Runs inside `watch`, which ends it and so the upstream call when the client leaves, and inside
    `work` as long as the upstream is asked. Raises
    QwenASGIError while nothing was sent; afterwards an error is the last event of the stream.
    """
    if chat.stream:
        return _stream(chat, upstream, api, response, exchange, watch, heartbeat, work)
    return _whole(chat, upstream, api, response, exchange, watch, work)


async def _whole(
    chat: ChatRequest,
    upstream: Upstream,
    api: ClientAPI,
    response: Response,
    exchange: Exchange,
    watch: ClientWatch,
    work: Work,
) -> None:
    whole = Fold()
    try:
        with work:
            async with upstream(chat) as batches:
                exchange.begun()
                async for batch in batches:
                    whole.add(batch)
                    if whole.size > LONGEST_ANSWER:
                        raise UpstreamInvalidResponse(
                            f"the upstream's answer is longer than {LONGEST_ANSWER} characters; "
                            "stream it",
                            code="upstream_answer_too_long",
                        )
    finally:
        exchange.usage = whole.usage
    # The upstream is free again before a slow client has taken the answer.
    answer = whole.answer()
    watch.stop()
    await response.whole(200, api.answer(chat, answer), [JSON, *_noted(chat)])
    exchange.done()


async def _stream(
    chat: ChatRequest,
    upstream: Upstream,
    api: ClientAPI,
    response: Response,
    exchange: Exchange,
    watch: ClientWatch,
    heartbeat: float,
    work: Work,
) -> None:
    writer = api.stream(chat)
    stream = EventStream(response, heartbeat, lambda: _noted(chat), watch.end)
    try:
        with work:
            async with upstream(chat) as batches:
                exchange.begun()
                async for batch in batches:
                    data = writer.write(batch)
                    if data:
                        await stream.write(data)
                watch.stop()
                await stream.end(writer.finish())
                exchange.done()
    except QwenASGIError as error:
        if exchange.reason == "done":
            # All of it had gone out; what came of the upstream's connection is nobody's matter.
            return
        if stream.ended or not stream.started:
            raise
        exchange.failed(error)
        if isinstance(error, UpstreamError):
            logger.warning(
                "request %s: upstream: %s (%s)", exchange.request_id, error.message, error.code
            )
        watch.stop()
        await stream.end(writer.fail(error))
    except ClientLeft:
        raise
    except Exception:
        if stream.ended or not stream.started:
            raise
        logger.exception("a bug ended the stream of request %s", exchange.request_id)
        bug = InternalError(f"an internal error ended request {exchange.request_id}")
        exchange.failed(bug)
        watch.stop()
        await stream.end(writer.fail(bug))
    finally:
        exchange.usage = writer.usage
        stream.close()


def _noted(chat: ChatRequest) -> RawHeaders:
    """Return what was found out on the way down, as headers of the answer."""
    notes = chat.notes
    headers: RawHeaders = []
    if notes.ignored:
        headers.append((b"x-qwen-asgi-ignored", ", ".join(notes.ignored).encode("ascii")))
    if notes.upstream:
        headers.append((b"x-qwen-asgi-upstream", notes.upstream.encode("ascii")))
        headers.append((b"x-qwen-asgi-attempts", b"%d" % notes.attempts))
    return headers
