"""The gateway served alone, by a program of your own; the qwen-asgi command does more.

    QWEN_API_KEY=... python examples/alone.py

    curl http://localhost:8008/v1/chat/completions -H 'Content-Type: application/json' \
      -d '{"model": "qwen-max-latest", "messages": [{"role": "user", "content": "你好"}]}'
"""

import uvicorn

from qwen_asgi import Gateway, Settings, anonymous

# What the environment does not say otherwise.
settings = Settings.from_env(models=("qwen-max-latest", "qwen-plus-latest"), idle_timeout=300)

if __name__ == "__main__":
    # Everybody is let in: it listens on this machine only.
    uvicorn.run(Gateway(settings, authenticate=anonymous), host="127.0.0.1", port=8008)
