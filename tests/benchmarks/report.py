"""A run as Markdown for people and as one document for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.benchmarks.figures import Figure
from tests.benchmarks.goals import Goal, Judged, judge
from tests.benchmarks.results import Results, Series
from tests.benchmarks.targets import DIRECT, GATEWAY


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that is told of a run."""

    command: str
    machine: Mapping[str, Any]
    versions: Mapping[str, Mapping[str, str]]
    quick: bool
    figures: Sequence[Figure]
    results: Results

    def document(self) -> dict[str, Any]:
        """Return everything, every block's value included, as JSON can hold it."""
        judged = judge(self.results)
        return {
            "command": self.command,
            "quick": self.quick,
            "machine": dict(self.machine),
            "versions": {name: dict(versions) for name, versions in self.versions.items()},
            "skipped": self.results.skipped,
            "failures": self.results.failures,
            "upstream_check": self.results.upstream_check,
            "units": {figure.name: figure.unit for figure in self.figures},
            "figures": [
                {"workers": workers, "target": target, "figure": figure, **asdict(series)}
                for (workers, target, figure), series in self.results.series.items()
            ],
            "goals": [
                {**asdict(j.goal), "measured": j.measured, "verdict": j.verdict} for j in judged
            ],
            "growth": self.results.growth,
            "soak": self.results.soak,
        }

    def markdown(self) -> str:
        sections = [self._heading()]
        for workers in self.results.workers():
            sections.append(self._table(workers))
        if any(j.measured is not None for j in judge(self.results)):
            sections.append(_goals(judge(self.results), self.figures))
        if self.results.growth:
            sections.append(_growth(self.results.growth))
        if self.results.soak:
            sections.append(_soak(self.results.soak))
        return "\n\n".join(sections) + "\n"

    def _heading(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        lines = ["# Benchmark", "", f"- command: `{self.command}`", f"- machine: {facts}"]
        for name, versions in self.versions.items():
            told = ", ".join(f"{what} {version}" for what, version in versions.items())
            lines.append(f"- {name}: {told}")
        for name, why in self.results.skipped.items():
            lines.append(f"- {name}: not measured, {why}")
        for work, ratio in self.results.upstream_check.items():
            lines.append(f"- the upstream is {ratio:.1f} times cheaper than the gateway ({work})")
        for words in self.results.failures:
            lines.append(f"- THE GATEWAY FAILED: {' '.join(words.split())[:300]}")
        if self.quick:
            lines.append("- a quick run: it shows that all works; its figures mean nothing")
        return "\n".join(lines)

    def _table(self, workers: int) -> str:
        targets = [t for t in (GATEWAY.name, DIRECT) if t in self.results.targets()]
        targets += [t for t in self.results.targets() if t not in targets]
        footnotes: list[str] = []
        rows = []
        for figure in self.figures:
            cells = [self._cell(workers, target, figure, footnotes) for target in targets]
            if any(cells):
                rows.append([f"{figure.title}, {figure.unit}", *(cell or "-" for cell in cells)])
        head = f"## {workers} worker{'s' if workers > 1 else ''}"
        legend = (
            "Medians of blocks, ± half their range; in parentheses how many times the gateway's "
            f"figure it is. `{DIRECT}` is the simulated upstream alone; what is added is added to "
            "its latency. Memory is the resident sets of all its processes together."
        )
        notes = "".join(f"\n[{n}] {words}" for n, words in enumerate(footnotes, 1))
        table = "\n".join(_table(["", *targets], rows))
        return f"{head}\n\n{table}\n\n{legend}\n{notes}".rstrip()

    def _cell(self, workers: int, target: str, figure: Figure, footnotes: list[str]) -> str:
        results = self.results
        series = results.series.get((workers, target, figure.name))
        series = series or results.series.get((workers, target, figure.work)) or Series()
        if not series.values and not series.remarks:
            return ""
        cell = "not measured"
        if series.values:
            cell = f"{series.median:,.{figure.digits}f}"
            if len(series.values) > 1:
                cell += f" ±{series.spread:.0%}"
            ours = results.median(workers, GATEWAY.name, figure.name)
            # What the upstream has of latency is no more or less of what is added to it.
            is_alike = target != GATEWAY.name and not (target == DIRECT and figure.added)
            if ours is not None and ours > 0 and series.median > 0 and is_alike:
                cell += f" ({_ratio(series.median / ours)})"
        for remark in series.remarks:
            words = " ".join(remark.split())[:300]
            if words not in footnotes:
                footnotes.append(words)
            cell += f" [{footnotes.index(words) + 1}]"
        return cell


def _goals(judged: Sequence[Judged], figures: Sequence[Figure]) -> str:
    titles = {figure.name: figure for figure in figures}
    rows = [
        [titles[j.goal.figure].title, f"at most {j.goal.words}", _measured(j), j.verdict]
        for j in judged
    ]
    return "## Goals\n\n" + "\n".join(_table(["figure", "goal", "measured", ""], rows))


def _measured(judged: Judged) -> str:
    value, goal = judged.measured, judged.goal
    if value is None:
        return "-"
    if not _is_ratio(goal):
        return f"{value:.2f}"
    return f"1/{1 / value:.1f}" if goal.factor < 1 and 0 < value < 0.5 else f"{value:.2f} x"


def _is_ratio(goal: Goal) -> bool:
    return bool(goal.rival or goal.own)


def _growth(rows: Sequence[Mapping[str, Any]]) -> str:
    first: dict[tuple[str, str], float] = {}
    cells = []
    for row in rows:
        base = first.setdefault((row["target"], row["of"]), row["median_us"])
        ratio = f"{row['median_us'] / base:.2f} x"
        cost = f"{row['median_us']:,.1f}"
        cells.append([row["target"], f"{row['open']:,}", row["of"], cost, ratio])
    head = ["target", "streams open beside it", "CPU per", "us", "of the first"]
    return "## Growth\n\n" + "\n".join(_table(head, cells))


def _soak(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        f"- {row['target']}: {row['answers']:,} requests and {row['chunks']:,} chunks in "
        f"{row['seconds']:,.0f} s, {row['left']:,} left early; {row['first_mib']:.1f} MiB after "
        f"the first part, {row['last_mib']:.1f} at the end: "
        f"{row['mib_per_100000_answers']:+.2f} MiB per 100,000 requests, "
        f"{row['mib_per_hour']:+.2f} per hour; open files {row['first_files']} and "
        f"{row['last_files']}"
        for row in rows
    ]
    return "## Soak\n\n" + "\n".join(lines)


def _ratio(value: float) -> str:
    """Return how many times one it is: `138x`, `1.4x`, `0.62x`, `1/31`."""
    if value < 0.2:
        return f"1/{_short(1 / value)}"
    return f"{value:.2f}x" if value < 1 else f"{_short(value)}x"


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---' for _ in head)} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"
