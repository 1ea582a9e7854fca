"""The command: all trials at their full length, and one table."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

from tests.hardening import (
    canary,
    churn,
    client_faults,
    fault_matrix,
    fuzz,
    long_inputs,
    loop_lag,
    mutations,
    restart,
    schemathesis_run,
    slow_clients,
    soak,
)
from tests.hardening.trial import MOST_SHOWN, Trial, table

FULL: dict[str, Callable[[Trial], None]] = {
    "faults of the upstream, a stream cut at every byte": fault_matrix.run,
    "faults of the client": client_faults.run,
    "bodies that hold up the others": loop_lag.run,
    "clients that are slow": lambda t: slow_clients.run(t, clients=400),
    "secrets that are looked for": canary.run,
    "clients that leave, direct lane": lambda t: churn.run(t, "direct", requests=100_000),
    "clients that leave, httpx lane": lambda t: churn.run(t, "httpx", requests=100_000),
    "mutated answers": lambda t: mutations.run_decoders(t, inputs=1_000_000),
    "mutated requests": lambda t: mutations.run_requests(t, inputs=1_000_000),
    "fuzzed, guided by coverage": lambda t: fuzz.run(t, inputs=1_000_000, seconds=900),
    "inputs made long": lambda t: long_inputs.run(t, inputs=500),
    "requests made up by schemathesis": lambda t: schemathesis_run.run(
        t, examples=500, dialects=4, seconds=1800
    ),
    "workers started anew under load": lambda t: restart.run(t, restarts=20),
    "mixed traffic for eight minutes": lambda t: soak.run(t, seconds=360, warm=120),
}
SHORT: dict[str, Callable[[Trial], None]] = {
    "faults of the upstream": lambda t: fault_matrix.run(t, step=1009, share=7),
    "faults of the client": lambda t: client_faults.run(t, is_short=True),
    "bodies that hold up the others": lambda t: loop_lag.run(t, is_short=True),
    "clients that are slow": lambda t: slow_clients.run(t, clients=60),
    "secrets that are looked for": lambda t: canary.run(t, is_short=True),
    "clients that leave, direct lane": lambda t: churn.run(t, "direct", requests=600),
    "clients that leave, httpx lane": lambda t: churn.run(t, "httpx", requests=400),
    "mutated answers": lambda t: mutations.run_decoders(t, inputs=1500),
    "mutated requests": lambda t: mutations.run_requests(t, inputs=3000),
    "fuzzed, guided by coverage": lambda t: fuzz.run(t, inputs=5_000, seconds=1, seed=1),
    "inputs made long": lambda t: long_inputs.run(t, inputs=10),
    "requests made up by schemathesis": lambda t: schemathesis_run.run(
        t, examples=5, dialects=1, seconds=50
    ),
    "workers started anew under load": lambda t: restart.run(t, restarts=2),
    "mixed traffic": lambda t: soak.run(t, seconds=4, warm=2),
}


def main(arguments: list[str]) -> int:
    # What was wrong with each of so many is not read line by line.
    logging.getLogger("qwen_asgi").setLevel(logging.CRITICAL)
    short = "--short" in arguments
    named = [word for word in arguments if not word.startswith("-")]
    trials = []
    for name, run in (SHORT if short else FULL).items():
        if named and not any(word in name for word in named):
            continue
        trial = Trial(name)
        begun = time.monotonic()
        run(trial)
        trial.notes.append(f"{time.monotonic() - begun:.0f} s")
        trials.append(trial)
        for what in trial.lost[:MOST_SHOWN]:
            print(f"lost: {name}: {what}", file=sys.stderr)
    print(table(trials), end="")
    return 1 if any(trial.lost for trial in trials) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
