"""The figures of processes that have just begun: start, idle memory, memory of open streams."""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack

from tests.benchmarks.figures import Work
from tests.benchmarks.processes import ROOT, environment
from tests.benchmarks.running import Running
from tests.benchmarks.session import FAILURES, Session, say, turns
from tests.benchmarks.targets import BY_NAME

OPEN_WITHIN = 60.0
"""Seconds that a target has to open the streams whose memory is measured."""

_IMPORT = """
import time
begin = time.perf_counter()
import {modules}
print((time.perf_counter() - begin) * 1000)
"""


def measure_starts(session: Session, workers: int) -> None:
    """Start each target several times, in turns. Raises WrongAnswer."""
    for round in range(session.scale.starts):
        say(f"starts and memory, {workers} worker(s), {round + 1} of {session.scale.starts}")
        for name in turns(list(session.targets), round):
            with ExitStack() as stack:
                running = session.start(stack, name, workers)
                if running is not None:
                    _measure_fresh(session, running)


def _measure_fresh(session: Session, running: Running) -> None:
    results, name, workers = session.results, running.name, running.workers
    results.of(workers, name, "start").values.append(running.started_in)
    time.sleep(session.scale.settle)
    idle = session.memory(running)
    results.of(workers, name, "idle_memory").values.append(idle.resident / 2**20)
    results.of(workers, name, "idle_memory_pss").values.append(idle.proportional / 2**20)
    memory = results.of(workers, name, "stream_memory")
    if memory.remarks:
        # It did not open them the last time.
        return
    try:
        memory.values.append(_stream_memory(session, running) / 1024)
    except FAILURES as exc:
        session.failed(name, workers, "stream_memory", exc)


def _stream_memory(session: Session, running: Running) -> float:
    """Return the bytes by which a process that has worked before grows with each open stream."""
    for frames in (0, 8):
        session.measure(running, Work(name="warm", frames=frames, connections=5))
    before = session.memory(running).resident
    held = session.scale.held
    session.hold(running, held, OPEN_WITHIN)
    time.sleep(session.scale.settle)
    after = session.memory(running).resident
    session.release(running)
    return (after - before) / held


def measure_imports(session: Session) -> None:
    """Measure how long each Python target's packages take to import."""
    say("imports")
    for round in range(session.scale.imports + 1):
        for name in turns(list(session.targets), round):
            modules = BY_NAME[name].modules
            if not modules:
                continue
            milliseconds = _import(session.targets[name], ", ".join(modules))
            # The first may have compiled them.
            if round and milliseconds is not None:
                session.results.of(1, name, "import").values.append(milliseconds)


def _import(python: str, modules: str) -> float | None:
    ran = subprocess.run(
        [python, "-c", _IMPORT.format(modules=modules)],
        env=environment({"PYTHONPATH": str(ROOT), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}),
        capture_output=True,
        text=True,
    )
    return float(ran.stdout.split()[-1]) if ran.returncode == 0 else None
