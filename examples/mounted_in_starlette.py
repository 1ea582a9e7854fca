"""The gateway beside a Starlette app's own routes, behind the app's own log-in.

    QWEN_API_KEY=... uvicorn examples.mounted_in_starlette:app --port 8000

    curl http://localhost:8000/qwen/v1/chat/completions \
      -H 'Authorization: Bearer anna-token' -H 'Content-Type: application/json' \
      -d '{"model": "qwen-max-latest", "messages": [{"role": "user", "content": "你好"}]}'
"""

from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from qwen_asgi import Gateway, Principal, Settings


class LogIn(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        is_anna = conn.headers.get("authorization") == "Bearer anna-token"
        return (AuthCredentials(["authenticated"]), SimpleUser("anna")) if is_anna else None


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"Hello {request.user.display_name or 'stranger'}")


async def host_user(request: Request) -> Principal | None:
    """Let in whom the app knows; the log line of each chat names them."""
    return Principal(request.user.display_name) if request.user.is_authenticated else None


gateway = Gateway(Settings.from_env(), authenticate=host_user)
routes = [Route("/", hello), Mount("/qwen", app=gateway)]
app = Starlette(routes=routes, lifespan=gateway.lifespan)
app.add_middleware(AuthenticationMiddleware, backend=LogIn())
