"""The gateway worn as middleware: it answers below /qwen and leaves the rest to the app.

    QWEN_API_KEY=... QWEN_CLIENT_KEYS=secret uvicorn examples.as_middleware:app --port 8000

    curl http://localhost:8000/qwen/v1/chat/completions \
      -H 'Authorization: Bearer secret' -H 'Content-Type: application/json' \
      -d '{"model": "qwen-max-latest", "messages": [{"role": "user", "content": "你好"}]}'
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from qwen_asgi import Gateway, GatewayMiddleware, Settings


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("Hello")


app = Starlette()
app.add_route("/", hello)
# It opens and closes with the app's lifespan by itself.
app.add_middleware(GatewayMiddleware, gateway=Gateway(Settings.from_env()), path="/qwen")
