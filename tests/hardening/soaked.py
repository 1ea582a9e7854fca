"""The program of the soak: `python -m tests.hardening.soaked PORT`.

It is the standalone program's own app, in a host that tells how much it has: tasks, Python's blocks
of memory, and who it is. With `LEAK` in the environment it loses so many bytes at each request, to
show that the soak would see it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from qwen_asgi.standalone import create_worker_app

COUNTS = "/counts"


class Host:
    def __init__(self, app: ASGIApp, leak: int) -> None:
        self._app = app
        self._leak = leak
        self._lost: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == COUNTS:
            await self._tell(send)
            return
        if self._leak:
            self._lost.append(os.urandom(self._leak))
        await self._app(scope, receive, send)

    async def _tell(self, send: Send) -> None:
        # What only waits for the collector, which the program runs seldom, is no leak.
        gc.collect()
        counts = {
            "pid": os.getpid(),
            "tasks": len(asyncio.all_tasks()),
            "blocks": sys.getallocatedblocks(),
        }
        body = json.dumps(counts).encode()
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})


def main() -> None:
    host = Host(create_worker_app(), int(os.environ.get("LEAK", "0")))
    uvicorn.run(host, port=int(sys.argv[1]), log_config=None, access_log=False, proxy_headers=False)


if __name__ == "__main__":
    main()
