"""Every fault of an upstream, over each dialect and lane, plain and streamed.

One process has the gateways, the faulty upstream and the clients: what is counted at the end,
tasks, connections, files and memory, is that of all three. What is to come of each fault stands in
`fault_table` and `cuts`.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, product, zip_longest

from jsonschema import ValidationError

from qwen_asgi.testing.answers import Answer
from tests.benchmarks.accounting import memory, open_files, raise_file_limit
from tests.conftest import CHAT, DIALECTS, MODEL, ask, eventually, http_bytes
from tests.hardening.asking import Broken, exchange, forget
from tests.hardening.cuts import Cut, cuts, expected
from tests.hardening.fault_table import LATER_SECONDS, Row, applies, faults
from tests.hardening.faulty_upstream import Meeting, answer_to
from tests.hardening.gateways import (
    CLOSING,
    HANGING,
    LANES,
    REFUSED,
    RESETTING,
    UP,
    Gateways,
)
from tests.hardening.outcomes import (
    NO_CONNECTION,
    TRUNCATED,
    UNREACHABLE,
    WHOLE,
    Asking,
    Outcome,
    observed,
)
from tests.hardening.trial import Trial

AT_ONCE = 6
"""Chats under way: more of them would wait for the processor, longer than the gateways wait for an
event. Those that wait for a silence's end are all under way at once."""

NOISE_MIB = 32.0
"""What a whole round may leave behind of resident memory, where clients and upstream are in this
process too: the allocator found another place for the same things, and a connection's buffer of
many megabytes goes only when it is used again. 8 to 16 were seen, while Python's own blocks, which
tell more, were 7,000 to 15,000 more. `soak` looks at the gateway alone, and has a bound to tell."""

NOISE_BLOCKS = 20_000
"""The same of Python's blocks of memory, half a block a fault. Clients and upstream are in this
process too, and what they remember levels off slowly; `soak` looks at the gateway alone."""

WRONG = (AssertionError, Broken, KeyError, OSError, TimeoutError, ValidationError, ValueError)
"""What an answer that has no proper form is found by."""


@dataclass(frozen=True, slots=True)
class Case:
    """One fault as one chat meets it."""

    asking: Asking
    name: str
    fault: Row | Cut | None
    """None where it lies in the connection, or where there is none."""
    outcomes: Sequence[Outcome]
    """What may come of it: mostly one."""
    address: str = UP

    def __str__(self) -> str:
        return f"{self.asking}: {self.name}"


ASKINGS = tuple(
    Asking(lane, dialect, is_streamed)
    for lane, dialect, is_streamed in product(LANES, DIALECTS, (False, True))
)
CONNECTING: dict[str, tuple[Outcome, ...]] = {
    REFUSED: (UNREACHABLE,),
    HANGING: (NO_CONNECTION,),
    # Whether it is seen before the request is sent or behind it is chance.
    RESETTING: (UNREACHABLE, TRUNCATED),
    CLOSING: (UNREACHABLE, TRUNCATED),
}


def cases(step: int) -> Iterator[Case]:
    """Yield all, those of each way to ask in turns; an answer is cut at every `step` bytes."""
    rows = list(faults())
    for turn in zip_longest(*(_cases(asking, rows, step) for asking in ASKINGS)):
        yield from filter(None, turn)


def _cases(asking: Asking, rows: Sequence[Row], step: int) -> Iterator[Case]:
    for address, outcomes in CONNECTING.items():
        yield Case(asking, address, None, outcomes, address)
    for row in rows:
        if applies(row, asking):
            yield Case(asking, row.name, row, [asking.of(row.expected)])
    good = _good_answer(asking)
    for cut in cuts(good, step):
        yield Case(asking, str(cut), cut, [expected(cut, good, asking)])


def _good_answer(asking: Asking) -> Answer:
    """Return an answer as long as those that are cut."""
    path = {
        "qwen-web-v1": "/api/chat/completions",
        "qwen-web-v2": "/api/v2/chat/completions?chat_id=00000000-0000-4000-8000-000000000000",
    }.get(asking.dialect, f"{DIALECTS[asking.dialect]}/chat/completions")
    turn = {"role": "user", "content": "Hello", "feature_config": {"output_schema": "phase"}}
    body = {"model": MODEL, "messages": [turn], "stream": not asking.is_document}
    if asking.dialect == "qwen-web-v1":
        del turn["feature_config"]
        body["incremental_output"] = True
    if not asking.is_web:
        body["stream_options"] = {"include_usage": True}
    return answer_to(path, json.dumps(body).encode())


# A round of all faults.


@dataclass
class Round:
    """What came of them."""

    trial: Trial
    gateways: Gateways
    counts: Counter[str] = field(default_factory=Counter)

    async def meet(self, cases: Iterator[Case]) -> None:
        """Meet all of them, those that must be alone at the end."""
        apart: list[Case] = []
        waiting: list[Case] = []

        def together() -> Iterator[Case]:
            for case in cases:
                if isinstance(case.fault, Row) and case.fault.is_alone:
                    apart.append(case)
                elif _is_silent(case):
                    waiting.append(case)
                else:
                    yield case

        left = together()

        async def go() -> None:
            for case in left:
                await self.one(case)

        await asyncio.gather(*(go() for _ in range(AT_ONCE)))
        await asyncio.gather(*map(self.one, waiting))
        for case in apart:
            await self.one(case)
            # What comes a moment later is to meet a connection that rests.
            await asyncio.sleep(LATER_SECONDS * 2)

    async def one(self, case: Case) -> None:
        fault = case.fault
        if fault is None:
            await self._ask(case, None)
            return
        is_opening = isinstance(fault, Row) and fault.is_opening
        with self.gateways.upstream.meeting(fault.play, is_opening=is_opening) as meeting:
            await self._ask(case, meeting)
            self.trial.check(meeting.met == 1, f"{case}: it was met {meeting.met} times")

    async def _ask(self, case: Case, meeting: Meeting | None) -> None:
        asking, text, model = case.asking, "Hello", MODEL
        if meeting is not None and meeting.is_opening:
            model = meeting.name
        elif meeting is not None:
            text = meeting.name
        body = json.dumps(ask(text, model=model, stream=asking.is_streamed)).encode()
        path = f"/{case.address}/{asking.lane}/{asking.dialect}{CHAT}"
        request = http_bytes(body, path=path, connection="close")
        try:
            response = await exchange(self.gateways.url, request)
            got = observed(response, is_streamed=asking.is_streamed)
        except WRONG as exc:
            self.counts["no proper answer"] += 1
            self.trial.check(False, f"{case}: {type(exc).__name__} {exc}"[:400])
            return
        self.counts[str(got)] += 1
        self.trial.check(got in case.outcomes, f"{case}: {got!r}, not {case.outcomes!r}")


def _is_silent(case: Case) -> bool:
    return any("timeout" in (outcome.code or "") for outcome in case.outcomes)


def healthy(name: str) -> Iterator[Case]:
    """Yield a chat without a fault for each."""
    for asking in ASKINGS:
        yield Case(asking, name, None, [WHOLE])


def run(trial: Trial, *, step: int = 1, share: int = 1) -> None:
    """Meet one in `share` of all faults, and measure memory if that is all of them."""
    is_measured = share == 1
    raise_file_limit()
    with Gateways().running():
        # uvloop opens a pipe with its first loop that stays for the life of the process.
        pass
    files = open_files([os.getpid()])
    gateways = Gateways()
    with gateways.running():
        asyncio.run(Round(trial, gateways).meet(healthy("before all")))
        files_open, tasks = open_files([os.getpid()]), gateways.tasks()
        if is_measured:
            # Caches, pools and the allocator's own stock fill in this one.
            asyncio.run(Round(trial, gateways).meet(cases(97)))
            before = _held(trial, gateways, tasks)
        round_ = Round(trial, gateways)
        asyncio.run(round_.meet(islice(cases(step), 0, None, share)))
        after = _held(trial, gateways, tasks)
        if is_measured:
            _check_memory(trial, before, after, round_.counts.total())
        gateways.close_connections()
        _check(trial, "connections of the upstream", lambda: gateways.upstream.torture.open, 0)
        # Those between clients and gateways have ended too.
        _check(trial, "open files", lambda: open_files([os.getpid()]), files_open)
    _check(trial, "open files after all", lambda: open_files([os.getpid()]), files)
    outcomes = ", ".join(f"{n:,} {what}" for what, n in sorted(round_.counts.items()))
    trial.notes.append(f"outcomes: {outcomes}")


def _check(trial: Trial, what: str, count: Callable[[], int], most: int) -> None:
    """Check that there come to be no more of something than there were."""
    try:
        eventually(lambda: count() <= most, 15)
        trial.check(True, what)
    except AssertionError:
        trial.check(False, f"{what}: {count()}, where there should be {most} at most")


def _check_rest(trial: Trial, gateways: Gateways, tasks: int) -> None:
    """Check that nothing goes on."""
    _check(trial, "tasks", gateways.tasks, tasks)
    _check(trial, "chats that are counted as open", gateways.chats, 0)


@dataclass(frozen=True, slots=True)
class _Held:
    """What this process holds."""

    resident: float
    """In MiB, when what was freed was given back to the system: how much of that the allocator
    keeps in stock depends on chance and tells nothing of what is held."""
    blocks: int
    """Python's own."""


def _held(trial: Trial, gateways: Gateways, tasks: int) -> _Held:
    """Return that, once nothing goes on, and chats without a fault have used all connections."""
    _check_rest(trial, gateways, tasks)
    asyncio.run(Round(trial, gateways).meet(healthy("after all")))
    _check_rest(trial, gateways, tasks)
    gateways.upstream.torture.forget()
    forget()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return _Held(memory([os.getpid()]).resident / 2**20, sys.getallocatedblocks())


def _check_memory(trial: Trial, before: _Held, after: _Held, faults: int) -> None:
    grown, blocks = after.resident - before.resident, after.blocks - before.blocks
    trial.check(grown <= NOISE_MIB, f"memory grew by {grown:.1f} MiB in {faults:,} faults")
    trial.check(blocks <= NOISE_BLOCKS, f"{blocks:,} more blocks after {faults:,} faults")
    trial.notes.append(
        f"after {faults:,} faults {grown:+.1f} MiB resident (from {before.resident:.1f}; "
        f"{NOISE_MIB:g} allowed) and {blocks:+,} blocks ({NOISE_BLOCKS:,} allowed)"
    )
