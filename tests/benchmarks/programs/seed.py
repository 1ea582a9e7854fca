"""A rival: the program that this project began from, written anew after its document.

    UPSTREAM=http://127.0.0.1:PORT uvicorn seed:app

FastAPI and requests, `json` for every frame, blocking calls in the event loop's threads, and the
log in a file and on the console. It asks for new pieces only, as the gateway does, so that both
turn the same frames into the same chunks.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import requests  # type: ignore[import-untyped]  # In an environment of its own.
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field, ValidationError

logging.basicConfig(
    level=logging.INFO,
    format="%(asctime)s - %(levelname)s - %(message)s",
    handlers=[
        logging.FileHandler("chat_api.log", encoding="utf-8"),
        logging.StreamHandler(sys.stdout),
    ],
)
logger = logging.getLogger(__name__)

AVAILABLE_MODELS = {
    "qwen-max-latest",
    "qwen2.5-14b-instruct-1m",
    "qvq-72b-preview",
    "qwen-plus-latest",
    "qwen2.5-vl-72b-instruct",
}
REMOTE_API_URL = f"{os.environ['UPSTREAM']}/api/chat/completions"
HEADERS = {
    "accept": "*/*",
    "accept-encoding": "identity",
    "authorization": "Bearer benchmark",
    "content-type": "application/json",
    "origin": "https://chat.qwenlm.ai",
    "referer": "https://chat.qwenlm.ai/c/b01c2449-9e27-47d2-a1d6-4e792a22030c",
    "user-agent": "Mozilla/5.0 (Windows NT 10.0; Win64; x64)",
}

app = FastAPI()


class Message(BaseModel):
    role: str
    content: str | list[dict[str, Any]] | dict[str, Any]
    chat_type: str | None = "artifacts"
    extra: dict[str, Any] | None = Field(default_factory=dict)


class ChatCompletionRequest(BaseModel):
    model: str
    messages: list[Message]
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=2)
    max_tokens: int | None = None


@app.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    raw = await request.body()
    logger.info("原始请求: %s", raw.decode())
    try:
        chat = ChatCompletionRequest(**json.loads(raw))
    except (ValueError, ValidationError) as exc:
        raise HTTPException(400, str(exc)) from exc
    if chat.model not in AVAILABLE_MODELS:
        raise HTTPException(400, f"不支持的模型: {chat.model}")
    response = await run_in_threadpool(
        requests.post, REMOTE_API_URL, headers=HEADERS, json=_body(chat), stream=chat.stream
    )
    if response.status_code != 200:
        raise HTTPException(500, response.text)
    head = {"id": f"chatcmpl-{uuid.uuid4()}", "created": int(time.time()), "model": chat.model}
    if chat.stream:
        return StreamingResponse(_stream(response, head), media_type="text/event-stream")
    text = response.json()["choices"][0]["message"]["content"]
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return JSONResponse({**head, "object": "chat.completion", "choices": [choice]})


def _body(chat: ChatCompletionRequest) -> dict[str, Any]:
    return {
        "stream": chat.stream,
        "incremental_output": True,
        "chat_type": "artifacts",
        "model": chat.model,
        "messages": [message.model_dump() for message in chat.messages],
        "session_id": str(uuid.uuid4()),
        "chat_id": str(uuid.uuid4()),
        "id": str(uuid.uuid4()),
        "size": "960*960",
    }


def _stream(response: requests.Response, head: dict[str, Any]) -> Iterator[str]:
    for line in response.iter_lines():
        if not line.startswith(b"data: ") or line == b"data: [DONE]":
            continue
        content = json.loads(line[6:])["choices"][0]["delta"]["content"]
        yield _chunk(head, {"content": content}, None)
    yield _chunk(head, {}, "stop")
    yield "data: [DONE]\n\n"


def _chunk(head: dict[str, Any], delta: dict[str, Any], reason: str | None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    chunk = {**head, "object": "chat.completion.chunk", "choices": [choice]}
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
