"""Coverage-guided fuzzing: inputs that reach what none before reached are changed further.

Each target of `fuzz_targets` is fuzzed in a process of its own, two at a time. The fuzzer, atheris,
is no requirement of the project: QWEN_TEST_HARDENING names a Python that has what stands in
`requirements.txt` here, as `.ci/run` makes one; by hand:

    python3.11 -m venv /tmp/qwen-hardening
    /tmp/qwen-hardening/bin/pip install -r tests/hardening/requirements.txt -e '.[structured]'
    export QWEN_TEST_HARDENING=/tmp/qwen-hardening/bin/python
    .venv/bin/python -m tests.hardening fuzzed
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.hardening.fuzz_targets import HEAD, TARGETS, Input
from tests.hardening.seeds import WORDS
from tests.hardening.tools import missing, python
from tests.hardening.trial import Trial
from tests.programs import ROOT, environment

AT_ONCE = 2

LONGEST = 4096
"""Bytes of an input."""

SLOW = 5
"""Seconds that no input may take; most take less than a thousandth of one."""

LEAST_COVERAGE = 40
"""Places in the gateway that the least of the targets reaches with its first inputs; less means
that nothing was watched, and the fuzzer was blind."""

_STATUS = re.compile(r"^#\d+\s+\S+\s+cov: (\d+) ft: (\d+)", re.MULTILINE)
_RUNS = re.compile(r"^stat::number_of_executed_units:\s+(\d+)$", re.MULTILINE)
_ERROR = re.compile(
    r"^ *=+ (?:Uncaught Python exception:|Timeout: .*) =+\n(.*?)(?:^==\d+==|^ALARM|\Z)", re.M | re.S
)


@dataclass(frozen=True)
class Fuzzed:
    """What came of one target."""

    name: str
    runs: int
    coverage: int
    """Places reached."""
    features: int
    """The same, told apart by how often."""
    lost: str
    """What went wrong, if anything did; the target was then left there."""


def run(trial: Trial, *, inputs: int, seconds: int, seed: int = 0) -> None:
    """`inputs` for each target, or as many as there are in `seconds`; a seed of 0 is another one
    each time."""
    trial.not_run = missing("atheris")
    if trial.not_run:
        return
    options = (
        f"-runs={inputs}",
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST}",
        f"-timeout={SLOW}",
        f"-seed={seed}",
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
    )
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for fuzzed in pool.map(lambda name: _fuzzed(name, options, seconds), TARGETS):
            trial.tried += fuzzed.runs
            trial.notes.append(
                f"{fuzzed.name} {fuzzed.runs:,} (cov {fuzzed.coverage}, ft {fuzzed.features})"
            )
            if fuzzed.lost:
                trial.lost.append(f"{fuzzed.name}: {fuzzed.lost}")


def _fuzzed(name: str, options: Sequence[str], seconds: int) -> Fuzzed:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        seeds, found, words = folder / "seeds", folder / "found", folder / "words"
        seeds.mkdir()
        found.mkdir()
        for n, data in enumerate(TARGETS[name].seeds()):
            (seeds / str(n)).write_bytes(data)
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in WORDS))
        command = [
            *(python(), "-m", "tests.hardening.fuzz_process", name, *options),
            *(f"-dict={words}", f"-artifact_prefix={found}/", str(seeds)),
        ]
        try:
            ended = subprocess.run(
                command,
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                # It ends by itself, at its own bound.
                timeout=seconds + 120,
            )
        except subprocess.TimeoutExpired:
            return Fuzzed(name, 0, 0, 0, "it did not end by itself")
        return _read(name, ended.returncode, ended.stdout, sorted(found.iterdir()))


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def _read(name: str, status: int, said: str, found: Sequence[Path]) -> Fuzzed:
    """Read what libFuzzer said, and the input that it stopped at."""
    counts = _STATUS.findall(said)
    coverage, features = map(int, counts[-1]) if counts else (0, 0)
    runs = _RUNS.findall(said)
    lost = ""
    if found:
        # Such as crash-…, timeout-… or oom-….
        kind = found[0].name.partition("-")[0]
        lost = f"{kind}: {_shown(found[0].read_bytes())}; {_error_in(said)}"
    elif status != 0 or not runs:
        lost = f"it ended with status {status}: {said[-500:]}"
    elif coverage < LEAST_COVERAGE:
        lost = f"only {coverage} places were reached"
    return Fuzzed(name, int(runs[-1]) if runs else 0, coverage, features, lost)


def _shown(data: bytes) -> str:
    body = Input.of(data).body
    return f"{data[:HEAD]!r} before {body[:600]!r}{'…' if len(body) > 600 else ''}"


def _error_in(said: str) -> str:
    error = _ERROR.search(said)
    return error[1].strip()[:1500] if error else said[-500:]
