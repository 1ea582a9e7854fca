"""Mixed traffic for some minutes: whether memory, tasks or sockets grow, and every answer is right.

Three in ten clients leave early, three in ten meet a fault of the upstream. At the end of each
slice of the traffic all rests for a moment, and then it is counted: so what is under way does not
blur what stays. The allocator is left as it is: no variable tunes it, nothing is trimmed, and what
it keeps in stock counts. Only the cycle collector is run before, which the program does seldom.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.benchmarks.accounting import memory, open_files
from tests.benchmarks.soak import slope
from tests.conftest import CHAT, DIALECTS, ask, error_of, eventually, http_bytes
from tests.hardening.asking import exchange, read_stream
from tests.hardening.fault_matrix import WRONG
from tests.hardening.fault_table import Row, applies, faults
from tests.hardening.faulty_upstream import CALLED, FaultyUpstream, paced
from tests.hardening.outcomes import WHOLE, Asking, Outcome, observed
from tests.hardening.soaked import COUNTS
from tests.hardening.trial import Trial
from tests.programs import running
from tests.schemas import check_models
from tests.test_servers import free_port

CLIENTS = 4
SLICE_SECONDS = 10.0
MODELS = {dialect: f"a-model-of-{dialect}" for dialect in DIALECTS}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

MOST_MIB_AN_HOUR = 1.0
MOST_BLOCKS = 0.05
"""Blocks of Python's memory that may stay of a request: a leak leaves one at least."""


def run(trial: Trial, *, seconds: float, warm: float, leak: int = 0) -> None:
    """Soak for that many seconds behind a warm-up; what grows is judged where it takes minutes."""
    upstream = FaultyUpstream()
    with upstream.running() as up, _program(up, leak) as url:
        soak = Soak(trial, upstream, url)
        asyncio.run(soak.traffic(warm))
        samples = [soak.sample()]
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 1:
            asyncio.run(soak.traffic(min(left, SLICE_SECONDS)))
            samples.append(soak.sample())
    _judge(trial, samples, is_long=seconds >= 60)
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(soak.kinds.items()))
    trial.notes.append(f"{soak.asked:,} requests: {kinds}")


@contextmanager
def _program(up: str, leak: int) -> Iterator[str]:
    port = free_port()
    upstreams = [
        f'[upstreams."{dialect}"]\ndialect = "{dialect}"\nbase_url = "{up}{path}"\n'
        f'api_key = "k"\nmodels = ["{MODELS[dialect]}"]\nbreaker_failures = 0\n'
        for dialect, path in DIALECTS.items()
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "gateway.toml").write_text("\n".join(upstreams))
        variables = {"QWEN_CONFIG": "gateway.toml", "QWEN_LOG_FILE": "-", "LEAK": str(leak)}
        command = [sys.executable, "-m", "tests.hardening.soaked", str(port)]
        with running(command, folder, started="", QWEN_LOG_LEVEL="ERROR", **variables) as program:
            url = f"http://127.0.0.1:{port}"
            eventually(lambda: _is_ready(url), 20)
            yield url
            program.end(within=20)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@dataclass(frozen=True, slots=True)
class Sample:
    """What the program holds at a quiet moment."""

    seconds: float
    asked: int
    resident: float
    """In MiB; as it is, with all that the allocator keeps in stock."""
    blocks: int
    tasks: int
    files: int
    """All that is open but connections to the upstream, which rest in a pool for a while."""


class Soak:
    """The traffic, and what can be seen of the program."""

    def __init__(self, trial: Trial, upstream: FaultyUpstream, url: str) -> None:
        self._trial = trial
        self._upstream = upstream
        self._url = url
        self._source = random.Random(7)
        self._rows = [row for row in faults() if not row.is_alone and not _is_slow(row)]
        self.asked = 0
        self.kinds: dict[str, int] = {}

    def sample(self) -> Sample:
        """Wait until all rests, and count."""
        eventually(lambda: self._counts()["tasks"] <= 8, 20)
        time.sleep(0.2)
        counts = self._counts()
        return Sample(
            time.monotonic(),
            self.asked,
            memory([counts["pid"]]).resident / 2**20,
            counts["blocks"],
            counts["tasks"],
            open_files([counts["pid"]]) - self._upstream.torture.open,
        )

    def _counts(self) -> dict[str, int]:
        return dict(httpx.get(self._url + COUNTS, trust_env=False).json())

    async def traffic(self, seconds: float) -> None:
        ends = time.monotonic() + seconds

        async def client() -> None:
            while time.monotonic() < ends:
                await self._one()

        await asyncio.gather(*(client() for _ in range(CLIENTS)))

    async def _one(self) -> None:
        chance = self._source.random()
        asking = Asking("direct", self._source.choice(list(DIALECTS)), self._source.random() < 0.5)
        kind = (
            "left" if chance < 0.3 else "fault" if chance < 0.6 else self._source.choice(ORDINARY)
        )
        self.asked += 1
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        try:
            await getattr(self, f"_{kind}")(asking)
        except WRONG as exc:
            self._trial.check(False, f"{kind} {asking}: {type(exc).__name__} {exc}"[:400])

    async def _ask(self, asking: Asking, text: str = "Hello", **fields: Any) -> httpx.Response:
        body = ask(
            text, **{"model": MODELS[asking.dialect], "stream": asking.is_streamed, **fields}
        )
        return await exchange(self._url, _request(body))

    # What clients do.

    async def _left(self, asking: Asking) -> None:
        """Leave after a while; the answer takes some 15 ms."""
        with self._upstream.meeting(paced) as meeting:
            body = ask(meeting.name, model=MODELS[asking.dialect], stream=asking.is_streamed)
            address = urlsplit(self._url)
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            try:
                writer.write(_request(body))
                async with asyncio.timeout(self._source.random() * 0.015):
                    data = await reader.read()
                self._trial.check(data.startswith(b"HTTP/1.1 200"), f"{asking}: {data[:200]!r}")
            except TimeoutError:
                self._trial.check(True, "left")
            finally:
                writer.transport.abort()
            # A request of its may still be on its way.
            await asyncio.sleep(0.01)

    async def _fault(self, asking: Asking) -> None:
        row = self._source.choice(self._rows)
        with self._upstream.meeting(row.play) as meeting:
            response = await self._ask(asking, meeting.name)
        got = observed(response, is_streamed=asking.is_streamed)
        expected = asking.of(row.expected)
        self._trial.check(got == expected, f"{asking}: {row.name}: {got!r}, not {expected!r}")

    async def _answer(self, asking: Asking) -> None:
        got = observed(await self._ask(asking), is_streamed=asking.is_streamed)
        self._trial.check(got == WHOLE, f"{asking}: {got!r}")

    async def _tool(self, asking: Asking) -> None:
        response = await self._ask(asking, tools=[TOOL])
        assert response.status_code == 200, response.text
        if asking.is_streamed:
            chunks = read_stream(response).chunks
            deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
            calls = [call["function"] for d in deltas for call in d.get("tool_calls") or ()]
        else:
            message = response.json()["choices"][0]["message"]
            calls = [call["function"] for call in message["tool_calls"]]
        name = "".join(call.get("name") or "" for call in calls)
        arguments = json.loads("".join(call.get("arguments") or "" for call in calls))
        self._trial.check((name, arguments) == CALLED, f"{asking}: {response.text[-300:]}")

    async def _models(self, asking: Asking) -> None:
        request = http_bytes(method="GET", path="/v1/models", connection="close")
        document = (await exchange(self._url, request)).json()
        check_models(document)
        listed = {model["id"] for model in document["data"]}
        self._trial.check(listed == set(MODELS.values()), f"{listed}")

    async def _mistake(self, asking: Asking) -> None:
        """Each is told what is wrong."""
        request, status = self._source.choice(
            [
                (http_bytes(b"{", connection="close"), 400),
                (_request(ask(model="unknown")), 400),
                (_request(ask(model=MODELS[asking.dialect], messages=[])), 400),
                (http_bytes(b"{}", path="/v1/none", connection="close"), 404),
                (http_bytes(method="GET", connection="close"), 405),
            ]
        )
        response = await exchange(self._url, request)
        self._trial.check(error_of(response, status), "a mistake")


ORDINARY = ("answer", "answer", "answer", "tool", "models", "mistake")


def _is_slow(row: Row) -> bool:
    """Whether it takes until a deadline, or is of a call that is not a chat's."""
    expected = row.expected
    outcomes = [expected] if isinstance(expected, Outcome) else [o for _, o in expected]
    waits = any("timeout" in (outcome.code or "") for outcome in outcomes)
    return row.is_opening or waits or not applies(row, Asking("direct", "openai", False))


def _request(body: Any) -> bytes:
    return http_bytes(json.dumps(body).encode(), path=CHAT, connection="close")


# What the samples tell.


def _judge(trial: Trial, samples: Sequence[Sample], *, is_long: bool) -> None:
    first, last = samples[0], samples[-1]
    trial.check(last.tasks <= first.tasks, f"tasks: {first.tasks}, then {last.tasks}")
    trial.check(last.files <= first.files + 1, f"files: {first.files}, then {last.files}")
    hours = [sample.seconds / 3600 for sample in samples]
    resident = [sample.resident for sample in samples]
    mib, mib_error = line(hours, resident)
    blocks, blocks_error = line([s.asked for s in samples], [float(s.blocks) for s in samples])
    if is_long:
        # More than is allowed, and not by the chance in where the allocator finds its room.
        is_leak = mib - 2 * mib_error > MOST_MIB_AN_HOUR
        grows = f"memory grows by {mib:.2f} ± {mib_error:.2f} MiB an hour"
        trial.check(not is_leak, grows)
        stays = f"{blocks:.4f} ± {blocks_error:.4f} blocks stay of a request"
        trial.check(blocks - 2 * blocks_error <= MOST_BLOCKS, stays)
    trial.notes.append(
        f"resident {resident[0]:.2f} to {resident[-1]:.2f} MiB, {min(resident):.2f} to "
        f"{max(resident):.2f} between: {mib:+.2f} ± {mib_error:.2f} MiB an hour; "
        f"{blocks:+.4f} ± {blocks_error:.4f} blocks a request; "
        f"tasks {first.tasks} to {last.tasks}, files {first.files} to {last.files}, "
        f"in {len(samples)} samples"
    )


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Return the slope of the line with the least squares, and its standard error.

    Memory grows in steps, so what one sample is off the line by, the next one mostly is too: they
    tell less than as many that have nothing to do with each other, by the usual correction for
    that (of the first order).
    """
    rise = slope(x, y)
    if len(x) < 4:
        return rise, math.inf
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    rests = [b - mean_y - rise * (a - mean_x) for a, b in zip(x, y, strict=True)]
    square = sum(rest * rest for rest in rests)
    if not square:
        return rise, 0.0
    alike = sum(a * b for a, b in pairwise(rests)) / square
    alike = min(max(alike, 0.0), 0.95)
    spread = sum((a - mean_x) ** 2 for a in x)
    error = math.sqrt(square / (len(x) - 2) / spread)
    return rise, error * math.sqrt((1 + alike) / (1 - alike))
