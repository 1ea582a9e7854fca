"""What all parts of a run share: the helpers, the targets, and how one measures a target."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.benchmarks.accounting import Memory, ProcessGone, memory
from tests.benchmarks.driver import Driver, Upstream
from tests.benchmarks.figures import Scale, Work
from tests.benchmarks.loads import Load, Outcome, Stuck
from tests.benchmarks.results import Results
from tests.benchmarks.running import Running, running
from tests.benchmarks.targets import BY_NAME, GATEWAY
from tests.benchmarks.templates import WrongAnswer

FAILURES = (Stuck, ProcessGone)
"""What a target may do without the rest of the run being worthless."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One run of the benchmark."""

    scale: Scale
    targets: Mapping[str, str]
    """What is measured, by name, and what it runs by."""
    upstream: Upstream
    driver: Driver
    results: Results

    def start(self, stack: ExitStack, name: str, workers: int) -> Running | None:
        """Start a target; None, and a word in the results, if it does not."""
        try:
            with blamed(name, "start"):
                return stack.enter_context(
                    running(BY_NAME[name], self.targets[name], self.upstream, workers)
                )
        except FAILURES as exc:
            self.failed(name, workers, "start", exc)
            return None

    def measure(self, target: Running, work: Work) -> Outcome:
        """Put a target under a load. Raises WrongAnswer, Stuck, ProcessGone."""
        processes = target.processes()
        load = Load(
            port=target.port,
            relayed=target.relayed,
            processes=processes,
            upstream=[self.upstream.process],
            frames=work.frames,
            pace_ms=work.pace_ms,
            apart=work.apart,
            connections=work.connections,
            warm=self.scale.warm,
            window=self.scale.window,
        )
        with blamed(target.name, work.name):
            outcome = self.driver.measure(load)
        if set(target.processes()) != set(processes):
            raise ProcessGone("its processes changed while it was measured")
        return outcome

    def hold(self, target: Running, streams: int, within: float) -> None:
        """Keep streams of a target open until `release`. Raises WrongAnswer, Stuck."""
        with blamed(target.name, "streams held open"):
            self.driver.hold(target.port, streams, relayed=target.relayed, within=within)

    def release(self, target: Running) -> None:
        """Raises WrongAnswer or Stuck if one of them was not right all the while."""
        with blamed(target.name, "streams held open"):
            self.driver.release()

    def memory(self, target: Running) -> Memory:
        return memory(target.processes())

    def failed(self, name: str, workers: int, figure: str, exc: Exception) -> None:
        """Note that a target did not do what it was asked for. Of the gateway it fails the run,
        though at its end, so that the rest is known."""
        words = str(exc)
        say(f"  {name}, {figure}: {words.splitlines()[0][:200]}")
        self.results.of(workers, name, figure).remark(words)
        if name == GATEWAY.name:
            failure = f"{figure}, {workers} worker(s): {words}"
            self.results.failures += [failure] if failure not in self.results.failures else []


@contextmanager
def blamed(name: str, what: str) -> Iterator[None]:
    """Let a WrongAnswer say whose it is, and to what."""
    try:
        yield
    except WrongAnswer as exc:
        raise WrongAnswer(f"{name}, {what}: {exc}") from exc


def say(words: str) -> None:
    """Tell how far the run is; the table alone goes to the standard output."""
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def turns(names: Sequence[str], first: int) -> list[str]:
    """Return the names in their order, beginning with another one each time."""
    first %= len(names)
    return [*names[first:], *names[:first]]
