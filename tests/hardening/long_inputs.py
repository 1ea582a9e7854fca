"""Inputs of which a part is repeated many times: none may take long, for all others wait for it.

A fuzzer's inputs are short, and of a short one nothing takes long.
"""

from __future__ import annotations

import random
import time

from tests.hardening.fuzz_targets import TARGETS, Input, Target
from tests.hardening.seeds import WORDS
from tests.hardening.trial import Trial

LONG = 128 * 1024
"""Bytes that a part grows to."""

MOST_SECONDS = 5.0
"""Of the processor, for an input that is read in one piece and again in three."""


def run(trial: Trial, *, inputs: int) -> None:
    """`inputs` for each target of the fuzzer."""
    slowest, where = 0.0, ""
    for name, target in TARGETS.items():
        source = random.Random(f"{name} {inputs}")
        bodies = [body for body in target.bodies() if body]
        for _ in range(inputs):
            given, part = _grown(source, source.choice(bodies))
            begun = time.process_time()
            error = _error_of(target, given)
            took = time.process_time() - begun
            is_right = took < MOST_SECONDS and not error
            trial.check(is_right, f"{name}: {took:.1f} s, {error}: {part[:200]!r} repeated")
            if took > slowest:
                slowest, where = took, name
    trial.notes.append(f"the slowest took {slowest:.2f} s ({where})")


def _error_of(target: Target, given: Input) -> str:
    """Return the error that is none of the project's own, if one comes of it."""
    try:
        target.check(given)
    except AssertionError:
        # Another split, another outcome: which limit is met first depends on what came together.
        return ""
    except Exception as exc:
        return f"{type(exc).__name__} {exc}"[:300]
    return ""


def _grown(source: random.Random, body: bytes) -> tuple[Input, bytes]:
    """Return an input made of a body, and the part of it that was repeated."""
    start = source.randrange(len(body))
    end = min(len(body), start + source.choice((1, 2, 5, 12, 30, 80, 300)))
    part = source.choice(WORDS) if source.random() < 0.2 else body[start:end]
    grown = body[:start] + part * (LONG // len(part)) + body[end:]
    places = source.randrange(len(grown)), source.randrange(len(grown))
    return Input(source.randrange(4), places, grown), part
