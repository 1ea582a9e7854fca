"""The command: options in, a table on the standard output, progress on the standard error."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

import tests.benchmarks
from tests.benchmarks.accounting import raise_file_limit
from tests.benchmarks.driver import load_client, simulated_upstream
from tests.benchmarks.figures import FULL, QUICK, figures, works
from tests.benchmarks.growth import measure_growth
from tests.benchmarks.installed import NotInstalled, find
from tests.benchmarks.machine import machine, versions
from tests.benchmarks.report import Report
from tests.benchmarks.results import Results
from tests.benchmarks.session import FAILURES, Session, say
from tests.benchmarks.soak import measure_soak
from tests.benchmarks.targets import BY_NAME, DEFAULT, GATEWAY
from tests.benchmarks.templates import WrongAnswer
from tests.benchmarks.under_load import UpstreamTooSlow, measure_loads
from tests.benchmarks.when_fresh import measure_imports, measure_starts

WORKS = tuple(work.name for work in works(FULL))
LONG = ("growth", "soak")
PARTS = (*WORKS, "starts", "imports", *LONG)
FILES_NEEDED = 5000
"""That a gateway has open with the most streams that are measured."""


def main(arguments: Sequence[str] | None = None) -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stopped)
    options = _parser().parse_args(arguments)
    options.parts = [part for parts in options.parts for part in parts]
    results = Results()
    try:
        report = _run(options, results)
    except (WrongAnswer, UpstreamTooSlow, *FAILURES) as exc:
        say(f"the run failed: {type(exc).__name__}: {exc}")
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130
    print(report.markdown(), end="")
    if options.json is not None:
        options.json.write_text(json.dumps(report.document(), indent=2) + "\n")
    return 1 if results.failures else 0


def _run(options: argparse.Namespace, results: Results) -> Report:
    scale = QUICK if options.quick else FULL
    if options.blocks:
        scale = replace(scale, blocks=options.blocks)
    limit = raise_file_limit()
    if limit < FILES_NEEDED and not options.quick:
        say(f"a process may open {limit} files here: {scale.most} streams are not possible")
        options.parts = [part for part in options.parts if part != "paced-most"]
    machine_ = machine()
    targets = _installed(options, results)
    with simulated_upstream() as upstream, load_client() as driver:
        session = Session(
            scale=scale, targets=targets, upstream=upstream, driver=driver, results=results
        )
        _measure(session, options)
    return Report(
        command=shlex.join(["python", "-m", "tests.benchmarks", *sys.argv[1:]]),
        machine=machine_,
        versions={name: versions(BY_NAME[name], program) for name, program in targets.items()},
        quick=scale.is_quick,
        figures=figures(scale),
        results=results,
    )


def _measure(session: Session, options: argparse.Namespace) -> None:
    loads = [work for work in works(session.scale) if work.name in options.parts]
    for workers in options.workers:
        if loads:
            measure_loads(session, workers, loads, figures(session.scale))
        if "starts" in options.parts:
            measure_starts(session, workers)
    if "imports" in options.parts:
        measure_imports(session)
    if not options.targets:
        # These take minutes of each target, so of rivals only when they are named.
        ours = {name: v for name, v in session.targets.items() if name == GATEWAY.name}
        session = replace(session, targets=ours)
    if "growth" in options.parts:
        measure_growth(session)
    if "soak" in options.parts:
        measure_soak(session)


def _installed(options: argparse.Namespace, results: Results) -> dict[str, str]:
    targets = {}
    for name in options.targets or DEFAULT:
        program = find(BY_NAME[name], dict(options.venv))
        if isinstance(program, NotInstalled):
            results.skipped[name] = program.why
            say(f"{name} is not measured: {program.why}")
        else:
            targets[name] = program
    return targets


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=tests.benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts",
        nargs="*",
        type=_part,
        default=[[part for part in PARTS if part not in LONG]],
        metavar="PART",
        help=f"what to measure: {', '.join(PARTS)}, or all (default: all but the last two)",
    )
    parser.add_argument(
        "--targets",
        type=_targets,
        default=[],
        metavar="NAME,...",
        help=f"what to measure it of: {', '.join(BY_NAME)} (default: {', '.join(DEFAULT)})",
    )
    parser.add_argument(
        "--venv",
        type=_venv,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a target's virtual environment; may be given several times",
    )
    parser.add_argument(
        "--workers",
        type=_workers,
        default=[1, 2],
        metavar="N,...",
        help="numbers of workers to run the targets with (default: 1,2)",
    )
    parser.add_argument("--blocks", type=int, default=0, metavar="N", help="turns at each load")
    parser.add_argument(
        "--quick", action="store_true", help="very little of everything: to see that all works"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value there")
    return parser


def _part(text: str) -> list[str]:
    if text == "all":
        return list(PARTS)
    if text in PARTS:
        return [text]
    raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(PARTS)}, all")


def _targets(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in BY_NAME:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(BY_NAME)}")
    return names


def _venv(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if name not in BY_NAME or not Path(path, "bin", "python").exists():
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=PATH with a Python in PATH/bin")
    return name, Path(path).absolute()


def _workers(text: str) -> list[int]:
    numbers = text.split(",")
    if not all(number.isdecimal() and 1 <= int(number) <= 64 for number in numbers):
        raise argparse.ArgumentTypeError(f"workers are numbers from 1 to 64, not {text!r}")
    return [int(number) for number in numbers]


def _stopped(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
