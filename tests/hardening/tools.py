"""The Python whose environment has the tools of some trials, which the project does not require."""

from __future__ import annotations

import os
import subprocess
import sys


def python() -> str:
    """Return the Python that QWEN_TEST_HARDENING names, or else this one."""
    return os.environ.get("QWEN_TEST_HARDENING") or sys.executable


def missing(package: str) -> str:
    """Return why a package is not to be used; nothing if it is there."""
    found = subprocess.run(
        [python(), "-c", f"import {package}"], stdin=subprocess.DEVNULL, capture_output=True
    )
    if found.returncode == 0:
        return ""
    return f"{package} is not installed: see tests/hardening/fuzz.py"
