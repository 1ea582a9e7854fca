"""Which targets are there to be measured, and by which program each runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.processes import ROOT, environment
from tests.benchmarks.targets import PROGRAMS, Target


@dataclass(frozen=True, slots=True)
class NotInstalled:
    """Why a target is left out."""

    why: str


def find(target: Target, venvs: Mapping[str, Path]) -> str | NotInstalled:
    """Return the program that a target runs by: a Python with its modules, or nginx itself.

    `venvs` are virtual environments by the target's name; else `.venv-bench-NAME` is looked for in
    the checkout, and then whether this Python will do.
    """
    if not target.modules:
        nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
        return nginx or NotInstalled("there is no nginx; Debian has it as nginx-light")
    venv = venvs.get(target.name, ROOT / f".venv-bench-{target.name}")
    python = str(venv / "bin" / "python") if venv.exists() else sys.executable
    lacking = _lacking(python, target)
    if lacking is None:
        return NotInstalled(f"{python} does not run")
    if lacking:
        return NotInstalled(f"{python} has no {lacking}; see --help, --venv {target.name}=PATH")
    return python


def _lacking(python: str, target: Target) -> str | None:
    code = (
        "import importlib.util, sys\n"
        "for name in sys.argv[1:]:\n"
        "    if importlib.util.find_spec(name.split('.')[0]) is None: print(name, end=' ')"
    )
    try:
        ran = subprocess.run(
            [python, "-c", code, *target.modules],
            env=environment({"PYTHONPATH": str(ROOT)} if "qwen_asgi" in target.modules else {}),
            cwd=PROGRAMS,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return ran.stdout.strip()
