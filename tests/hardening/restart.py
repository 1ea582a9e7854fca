"""Workers that are started anew under load: a client that retries as clients do loses nothing."""

from __future__ import annotations

import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
from openai import OpenAI

from qwen_asgi.testing import SimulatedQwen, serve
from tests.conftest import MODEL, eventually
from tests.hardening.trial import Trial
from tests.programs import QWEN_ASGI, running
from tests.test_servers import free_port

CLIENTS = 8
REPLY = "abcdefghij" * 4


def run(trial: Trial, *, restarts: int) -> None:
    """Start two workers anew, `restarts` times, while clients ask without a pause."""
    qwen = SimulatedQwen(api_key="k", reply=REPLY, pieces=1, pace=0.005)
    port = free_port()
    command = [*QWEN_ASGI, "--workers", "2", "--port", str(port)]
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(qwen) as up,
        running(
            command,
            Path(folder),
            started="",
            QWEN_API_KEY="k",
            QWEN_BASE_URL=up,
            QWEN_LOG_FILE="-",
            QWEN_LOG_LEVEL="WARNING",
        ) as program,
    ):
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: _is_ready(url), 20)
        is_over = threading.Event()
        with ThreadPoolExecutor(CLIENTS) as pool:
            asking = [pool.submit(_ask, trial, url, is_over) for _ in range(CLIENTS)]
            try:
                for _ in range(restarts):
                    time.sleep(1.0)
                    program.hang_up()
                time.sleep(3.0)
            finally:
                is_over.set()
            for one in asking:
                one.result()
        trial.check(program.end(within=20) in (0, -15), "the program did not end")
    trial.notes.append(f"{restarts} restarts of 2 workers")


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _ask(trial: Trial, url: str, is_over: threading.Event) -> None:
    """Ask over and over, plain and streamed in turns, with the official client's own retries."""
    with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=4, timeout=20) as client:
        create = client.chat.completions.create
        while not is_over.is_set():
            try:
                whole = create(model=MODEL, messages=[{"role": "user", "content": "Hi"}])
                trial.check(whole.choices[0].message.content == REPLY, "another answer")
                chunks = create(
                    model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True
                )
                text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
                trial.check(text == REPLY, f"another text: {text!r}")
            except openai.OpenAIError as error:
                trial.check(False, f"{type(error).__name__}: {error}"[:300])
