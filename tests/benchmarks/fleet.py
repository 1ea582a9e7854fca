"""Several targets under way at once, so that they can take turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tests.benchmarks.figures import Work
from tests.benchmarks.loads import Outcome
from tests.benchmarks.running import Running, direct
from tests.benchmarks.session import FAILURES, Session
from tests.benchmarks.targets import DIRECT


class Fleet:
    """Targets by name; `direct` is always among them."""

    def __init__(self, session: Session, workers: int) -> None:
        self._session = session
        self._workers = workers
        self._stacks: dict[str, ExitStack] = {}
        self._running: dict[str, Running] = {DIRECT: direct(session.upstream)}

    @property
    def names(self) -> Sequence[str]:
        return list(self._running)

    def start(self, name: str) -> None:
        """Start a target, again if it is under way; without it, and with a word, if it fails."""
        self.stop(name)
        stack = self._stacks[name] = ExitStack()
        running = self._session.start(stack, name, self._workers)
        if running is not None:
            self._running[name] = running

    def stop(self, name: str) -> None:
        self._running.pop(name, None)
        self._stacks.pop(name, ExitStack()).close()

    def stop_all(self) -> None:
        for name in list(self._stacks):
            self.stop(name)

    def measure(self, name: str, work: Work) -> Outcome | None:
        """Put a target under a load; None, with a word, if it fails, and then it is started anew.

        Raises WrongAnswer, and whatever goes wrong with no target in between.
        """
        try:
            return self._session.measure(self._running[name], work)
        except FAILURES as exc:
            if name == DIRECT:
                raise
            self._session.failed(name, self._workers, work.name, exc)
            self.start(name)
            return None


@contextmanager
def fleet(session: Session, workers: int, names: Sequence[str]) -> Iterator[Fleet]:
    """Start these targets, and stop them at the block's end."""
    started = Fleet(session, workers)
    try:
        for name in names:
            started.start(name)
        yield started
    finally:
        started.stop_all()
