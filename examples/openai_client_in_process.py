"""The official client talks to the gateway in the same process, without a socket between them.

    pip install openai
    QWEN_API_KEY=... python examples/openai_client_in_process.py 你好

httpx2, which that client uses, hands a streamed answer over when it is whole, not as it comes.
"""

import asyncio
import sys

from httpx2 import ASGITransport, AsyncClient
from openai import AsyncOpenAI

from qwen_asgi import Gateway, Settings, anonymous


async def main(question: str) -> None:
    gateway = Gateway(Settings.from_env(), authenticate=anonymous)
    http = AsyncClient(transport=ASGITransport(gateway))
    url = "http://gateway/v1"  # Never looked up: only its path counts.
    async with (
        gateway.lifespan(),
        AsyncOpenAI(base_url=url, api_key="unused", http_client=http) as client,
    ):
        answer = await client.chat.completions.create(
            model="qwen-max-latest", messages=[{"role": "user", "content": question}]
        )
        print(answer.choices[0].message.content)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
