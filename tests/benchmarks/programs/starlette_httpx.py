"""A rival: Starlette and httpx passing answers on as they come, as most would write it.

UPSTREAM=http://127.0.0.1:PORT uvicorn starlette_httpx:app
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

client: httpx.AsyncClient


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    global client
    # httpx opens 100 connections at most unless told otherwise, too few for what is measured.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=1000)
    async with httpx.AsyncClient(
        base_url=os.environ["UPSTREAM"], limits=limits, timeout=None, trust_env=False
    ) as client:
        yield


async def pass_on(request: Request) -> StreamingResponse:
    headers = {name: request.headers[name] for name in ("authorization", "content-type")}
    outgoing = client.build_request(
        "POST", request.url.path, headers=headers, content=await request.body()
    )
    response = await client.send(outgoing, stream=True)
    return StreamingResponse(
        response.aiter_raw(),
        status_code=response.status_code,
        media_type=response.headers["content-type"],
        background=BackgroundTask(response.aclose),
    )


app = Starlette(
    routes=[Route("/v1/chat/completions", pass_on, methods=["POST"])], lifespan=lifespan
)
