"""Clients that leave at random moments, against a small pool of connections."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any
from urllib.parse import urlsplit

import httpx

from qwen_asgi import Gateway, Settings, anonymous
from qwen_asgi.testing import SimulatedQwen, serve
from tests.conftest import CHAT, MODEL, ask, http_bytes
from tests.hardening.trial import Trial, check_that_nothing_is_left, served

CONNECTIONS = 10
"""The pool; there are three times as many clients."""

PLAIN = http_bytes(json.dumps(ask()).encode(), connection="close")
STREAM = http_bytes(json.dumps(ask(stream=True)).encode(), connection="close")


def run(trial: Trial, lane: str, *, requests: int) -> None:
    qwen = SimulatedQwen(api_key="k", reply="abcdefghij" * 3, pieces=3, pace=0.001)
    with serve(qwen) as up:
        client = None
        if lane == "httpx":
            limits = httpx.Limits(max_connections=CONNECTIONS)
            client = httpx.AsyncClient(trust_env=False, limits=limits)
        pool: dict[str, Any] = {"max_connections": CONNECTIONS, "connect_timeout": 5}
        settings = Settings(base_url=up, api_key="k", models=(MODEL,), **pool)
        gateway = Gateway(settings, http_client=client, authenticate=anonymous)
        with served(gateway, client) as app, httpx.Client(trust_env=False, timeout=30) as http:
            before = _plain_seconds(trial, app.url, http, "before")
            tasks = app.tasks()
            asyncio.run(_all(trial, app.url, requests))
            check_that_nothing_is_left(trial, app, qwen, tasks)
            after = _plain_seconds(trial, app.url, http, "after")
            took = f"a request took {before * 1e3:.1f} ms before, {after * 1e3:.1f} after"
            trial.notes.append(took)
            # The whole pool serves, and none of it is lost.
            trial.check(after < 3 * before + 0.05, f"{lane}: slow after: {after:.3f} s")
            asyncio.run(_all_at_once(trial, app.url))


def _plain_seconds(trial: Trial, url: str, http: httpx.Client, when: str) -> float:
    """Return the median time of a request."""
    took = []
    for _ in range(30):
        begun = time.perf_counter()
        response = http.post(url + CHAT, json=ask())
        took.append(time.perf_counter() - begun)
        trial.check(response.status_code == 200, f"{when}: {response.status_code}")
    return sorted(took)[len(took) // 2]


async def _all(trial: Trial, url: str, requests: int) -> None:
    left = iter(range(requests))
    source = random.Random(7)

    async def client() -> None:
        for _ in left:
            await _one(trial, url, source)

    await asyncio.gather(*(client() for _ in range(3 * CONNECTIONS)))


async def _one(trial: Trial, url: str, source: random.Random) -> None:
    """Ask, and leave after a while that may be shorter than the answer takes."""
    stays = source.random() < 0.3
    patience = 20.0 if stays else source.expovariate(1 / 0.01)
    body = STREAM if source.random() < 0.5 else PLAIN
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(body)
        async with asyncio.timeout(patience):
            answer = await reader.read()
        is_whole = answer.startswith(b"HTTP/1.1 200") and (
            b"[DONE]" in answer if body is STREAM else answer.endswith(b"}")
        )
        trial.check(is_whole or (not stays and not answer), f"{answer[:200]!r}")
    except TimeoutError:
        trial.check(not stays, "no answer within 20 seconds")
    finally:
        writer.transport.abort()


async def _all_at_once(trial: Trial, url: str) -> None:
    """Take the whole pool at the same time: a connection that is lost would be missed."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        asked = [http.post(url + CHAT, json=ask()) for _ in range(CONNECTIONS)]
        for response in await asyncio.gather(*asked):
            trial.check(response.status_code == 200, f"all at once: {response.status_code}")
