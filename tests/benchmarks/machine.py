"""What a run was made on: the machine, the versions, the commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.processes import ROOT
from tests.benchmarks.targets import Target

_VERSIONS = """
import importlib.metadata, json, platform, sys
versions = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        versions[name] = "-"
print(json.dumps(versions))
"""


def machine() -> dict[str, Any]:
    """Return what this machine is. Memory in GiB; the load is that of the last minute."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "commit": _commit(),
    }


def versions(target: Target, executable: str) -> dict[str, str]:
    """Return the versions of a target and of what it runs on."""
    if not target.modules:
        words = subprocess.run([executable, "-v"], capture_output=True, text=True).stderr.split()
        return {"nginx": words[-1].removeprefix("nginx/") if words else "-"}
    command = [executable, "-c", _VERSIONS, *target.distributions]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(sys.prefix))
    return dict(json.loads(ran.stdout)) if ran.returncode == 0 else {}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "-"
    except OSError:
        return "-"
