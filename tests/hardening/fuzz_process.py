"""One target under the fuzzer: `python -m tests.hardening.fuzz_process TARGET [OPTION...] FOLDER`.

The options are libFuzzer's, and the folder has what inputs begin as. Only the gateway's own code is
watched for what an input reaches. libFuzzer takes the process over, and ends it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

# It is not among the project's requirements, so its types are not known.
atheris: Any = import_module("atheris")

with atheris.instrument_imports(include=["qwen_asgi"]):
    from tests.hardening.fuzz_targets import TARGETS, Input


def main(arguments: list[str]) -> None:
    target = TARGETS[arguments[1]]
    atheris.Setup([arguments[0], *arguments[2:]], lambda data: target.check(Input.of(data)))
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
