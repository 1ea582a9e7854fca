"""One target under the fuzzer: `python -m tests.hardening.fuzz_process TARGET [OPTION...] FOLDER`.

The options are libFuzzer's, and the folder has what inputs begin as. Only the gateway's own code is
watched for what an input reaches. libFuzzer takes the process over, and ends it.
"""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from typing import Any

# It is not among the project's requirements, so its types are not known.
atheris: Any = import_module("atheris")

with atheris.instrument_imports(include=["qwen_asgi"]):
    from tests.hardening.fuzz_targets import TARGETS, Input


def main(arguments: list[str]) -> None:
    target = TARGETS[arguments[1]]

    def check(data: bytes) -> None:
        try:
            target.check(Input.of(data))
        except BaseException:
            # It ends the process, which may take longer than an input may.
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise

    atheris.Setup([arguments[0], *arguments[2:]], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
