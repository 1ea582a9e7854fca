"""schemathesis over a running gateway: requests made up from its description, and their answers.

The command runs in the environment that `fuzz` speaks of. What it is to check, and what not, stands
in `schemathesis.toml` beside this file: among others that no answer is a bug's, that each has a
status, a type and a schema of the description, that other methods get a 405 with `Allow`, and that
nobody is let in without a key or with a wrong one.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from qwen_asgi import Gateway, Settings
from qwen_asgi.testing import SimulatedQwen, serve
from tests.conftest import DIALECTS
from tests.hardening.api_description import MODELS, description
from tests.hardening.tools import missing, python
from tests.hardening.trial import Trial, check_that_nothing_is_left, served
from tests.programs import environment

KEY = "client-key"
CONFIG = Path(__file__).with_name("schemathesis.toml")


def run(trial: Trial, *, examples: int, dialects: int, seconds: int, seed: int = 1) -> None:
    """`examples` for each operation, over the first so many dialects, each `seconds` at most."""
    trial.not_run = missing("schemathesis")
    if trial.not_run:
        return
    qwen = SimulatedQwen(api_key="k")
    with serve(qwen) as up:
        for dialect, path in list(DIALECTS.items())[:dialects]:
            settings = Settings(
                upstream=dialect,
                base_url=up + path,
                api_key="k",
                models=MODELS,
                client_keys=(KEY,),
            )
            with served(Gateway(settings)) as app:
                before = app.tasks()
                report, said = _report(app.url, examples, seconds, seed)
                _count(trial, dialect, report, said)
                check_that_nothing_is_left(trial, app, qwen, before)


def _report(url: str, examples: int, seconds: int, seed: int) -> tuple[dict[str, Any], str]:
    """Return its report, which is empty if it made none, and what it said."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "openapi.json").write_text(json.dumps(description()), encoding="utf-8")
        command = [
            *(python(), "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"),
            *("openapi.json", "--url", url, "--header", f"Authorization: Bearer {KEY}"),
            *("--max-examples", str(examples), "--seed", str(seed), "--continue-on-failure"),
            # A database of earlier findings would be left in the checkout.
            *("--generation-database", "none", "--no-color", "--warnings", "off"),
            *("--report", "json", "--report-json-path", "report.json"),
        ]
        try:
            ended = subprocess.run(
                command,
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return {"exit_code": "nothing"}, f"not over after {seconds} seconds"
        report = folder / "report.json"
        found = json.loads(report.read_bytes()) if report.exists() else {}
        return {"exit_code": ended.returncode, **found}, ended.stdout


def _count(trial: Trial, dialect: str, report: dict[str, Any], said: str) -> None:
    cases = report.get("test_cases", {}).get("generated", 0)
    trial.tried += cases
    lost = len(trial.lost)
    tested = report.get("operations", {}).get("tested", 0)
    trial.notes.append(f"{dialect}: {cases:,} requests to {tested} operations")
    for failure in report.get("failures", ()):
        operations = ", ".join(failure["operations"])
        trial.lost.append(f"{dialect}: {failure['title']}, {failure['count']} at {operations}")
    has_run = report["exit_code"] == 0 and report.get("complete") and not report.get("errors")
    if not has_run or len(trial.lost) > lost:
        trial.check(
            False, f"{dialect}: schemathesis ended with {report['exit_code']}: {said[-3000:]}"
        )
    operations_described = sum(
        method != "parameters" for path in description()["paths"].values() for method in path
    )
    trial.check(tested == operations_described, f"{dialect}: {tested} operations were tried")
