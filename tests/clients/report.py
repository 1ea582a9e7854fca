"""What the programs beside this one print: one JSON document, what each of their scenarios gave."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from traceback import format_exception
from typing import Any


def report(*scenarios: Callable[[], Any]) -> None:
    """Run the scenarios, and print what each returned, or raised, by its name."""
    print(json.dumps({scenario.__name__: _outcome(scenario) for scenario in scenarios}))


def raised(error: Exception) -> dict[str, Any]:
    """Return what an error is: its class with the package that it is from, and what it says."""
    kind = type(error)
    return {
        "raised": f"{kind.__module__.partition('.')[0]}.{kind.__name__}",
        "message": str(error),
        "traceback": "".join(format_exception(error)),
    }


def until_it_breaks(pieces: Iterable[Any]) -> dict[str, Any]:
    """Return the pieces of a stream, and the error that ended it."""
    read: list[Any] = []
    try:
        read.extend(pieces)
    except Exception as error:
        return {"pieces": read, **raised(error)}
    return {"pieces": read}


def _outcome(scenario: Callable[[], Any]) -> Any:
    try:
        return scenario()
    except Exception as error:
        return raised(error)
