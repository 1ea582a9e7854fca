"""Ways into a host app, beside mounting the gateway like any other ASGI app."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen_asgi.app import Gateway
from qwen_asgi.paths import own_paths

Lifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]


def combine_lifespans(*lifespans: Lifespan) -> Callable[[Any], Any]:
    """Return one lifespan for a host that has several: entered in order, left in reverse.

        FastAPI(lifespan=combine_lifespans(gateway.lifespan, own))

    What they yield is merged into the host's state, the later over the earlier.
    """

    @asynccontextmanager
    async def combined(app: Any) -> AsyncIterator[dict[str, Any]]:
        state: dict[str, Any] = {}
        async with AsyncExitStack() as stack:
            for lifespan in lifespans:
                yielded: Mapping[str, Any] | None = await stack.enter_async_context(lifespan(app))
                state.update(yielded or {})
            yield state

    return combined


class GatewayMiddleware:
    """Answers what is below `path` with the gateway, and leaves the rest to the host.

        app.add_middleware(GatewayMiddleware, gateway=gateway, path="/qwen")

    It opens and closes the gateway with the host's lifespan. What stands before it in the host's
    list of middleware applies to the gateway too.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway, path: str = "/qwen") -> None:
        if not path.startswith("/") or path.endswith("/"):
            raise ValueError(f"path should start with a slash and not end with one, not {path!r}")
        self.app = app
        self.gateway = gateway
        self.path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._with_the_host(scope, receive, send)
        elif scope["type"] in ("http", "websocket") and self._is_below(scope):
            inner = {**scope, "root_path": scope.get("root_path", "").rstrip("/") + self.path}
            await self.gateway(inner, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _with_the_host(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.gateway.lifespan())

            async def closing_first(message: Message) -> None:
                # Once this is out, a server may stop without waiting for anything else.
                if message["type"].startswith("lifespan.shutdown."):
                    await stack.aclose()
                await send(message)

            await self.app(scope, receive, closing_first)

    def _is_below(self, scope: Scope) -> bool:
        # Only the likeliest reading: behind a `root_path` that is called as the gateway is, another
        # one would take the host's own routes from it.
        return f"{next(own_paths(scope))}/".startswith(f"{self.path}/")
