"""What was measured, by number of workers, target and figure."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass(slots=True)
class Series:
    """The values of one figure, one for each block."""

    values: list[float] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """What a reader must know beside them, each once."""

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def spread(self) -> float:
        """Half of the way from the lowest to the highest value, as a share of the median."""
        if not self.median:
            return 0.0
        return (max(self.values) - min(self.values)) / 2 / abs(self.median)

    def remark(self, words: str) -> None:
        if words not in self.remarks:
            self.remarks.append(words)


@dataclass(slots=True)
class Results:
    """All figures of one run."""

    series: dict[tuple[int, str, str], Series] = field(default_factory=dict)
    """By workers, target and figure."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Targets that were left out, and why."""
    growth: list[dict[str, Any]] = field(default_factory=list)
    soak: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """What the gateway itself did not do."""
    upstream_check: dict[str, float] = field(default_factory=dict)
    """How many times cheaper the upstream is than the gateway, by figure."""

    def of(self, workers: int, target: str, figure: str) -> Series:
        return self.series.setdefault((workers, target, figure), Series())

    def median(self, workers: int, target: str, figure: str) -> float | None:
        series = self.series.get((workers, target, figure))
        return series.median if series is not None and series.values else None

    def targets(self) -> list[str]:
        return list(dict.fromkeys(target for _, target, _ in self.series))

    def workers(self) -> list[int]:
        return sorted({workers for workers, _, _ in self.series})
