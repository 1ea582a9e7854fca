"""The gateway in a FastAPI app, below /qwen.

    pip install fastapi
    QWEN_API_KEY=... QWEN_CLIENT_KEYS=secret uvicorn examples.mounted_in_fastapi:app --port 8000

    curl http://localhost:8000/qwen/v1/chat/completions \
      -H 'Authorization: Bearer secret' -H 'Content-Type: application/json' \
      -d '{"model": "qwen-max-latest", "messages": [{"role": "user", "content": "你好"}]}'
"""

from fastapi import FastAPI

from qwen_asgi import Gateway, Settings

gateway = Gateway(Settings.from_env())
app = FastAPI(lifespan=gateway.lifespan)
# Dependencies of the FastAPI app do not reach what is mounted in it, so the gateway asks for a key.
app.mount("/qwen", gateway)


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}
