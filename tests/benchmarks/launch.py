"""How a target is started: what it is told, and the command that comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a target is told when it is started."""

    port: int
    upstream: str
    """The simulated upstream's address."""
    workers: int
    folder: Path
    """A folder of its own, where it runs and may write."""
    executable: str
    """The Python that has what it needs, or the program itself."""


@dataclass(frozen=True, slots=True)
class Launch:
    command: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)
