"""`qwen-asgi check`: what is configured, whether each upstream answers, and what is wrong.

Each is asked once, for its list of models, which costs nothing.
"""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from qwen_asgi.errors import QwenASGIError
from qwen_asgi.request_log import printable
from qwen_asgi.settings import Settings
from qwen_asgi.upstream_settings import UpstreamSettings
from qwen_asgi.wiring import Wired, wire

MOST_NAMED = 8
"""Models that a line names; of more it says how many."""


@dataclass(slots=True)
class Report:
    """What was found: lines to print, and whether something is wrong."""

    lines: list[str] = field(default_factory=list)
    is_well: bool = True

    def say(self, line: str) -> None:
        self.lines.append(line)

    def wrong(self, line: str) -> None:
        self.lines.append(f"  wrong: {line}")
        self.is_well = False


async def check(settings: Settings) -> Report:
    """Ask each upstream for its models, all at once, and look at the settings beside them."""
    wired = wire(settings)
    try:
        told = await _ask(wired)
    finally:
        await wired.aclose()
    report = Report()
    listed: dict[str, Sequence[str]] = {}
    for name, its in wired.several.items():
        report.say(_head(name, its))
        answer = told[name]
        if isinstance(answer, QwenASGIError):
            report.wrong(f"{answer.message} ({answer.code})")
            continue
        listed[name] = answer
        report.say(f"  it lists {_names(answer)}")
        for problem in _missing(its, answer):
            report.wrong(problem)
    _check_routes(settings, listed, report)
    return report


async def _ask(wired: Wired) -> dict[str, list[str] | QwenASGIError]:
    async def ask(name: str) -> list[str] | QwenASGIError:
        try:
            return [model.name for model in await wired.upstreams[name].models()]
        except QwenASGIError as error:
            return error

    names = list(wired.upstreams)
    return dict(zip(names, await asyncio.gather(*map(ask, names)), strict=True))


def _head(name: str, its: UpstreamSettings) -> str:
    key = "with a credential" if its.api_key else "without a credential"
    return f"{name}: {its.dialect} at {its.base_url}, {key}"


def _missing(its: UpstreamSettings, listed: Sequence[str]) -> Iterator[str]:
    for model in () if its.models == "upstream" else its.models:
        if not fnmatch.filter(listed, model) and model not in listed:
            yield f"it lists nothing like {model!r}"


def _check_routes(settings: Settings, listed: Mapping[str, Sequence[str]], report: Report) -> None:
    for model, route in settings.routes.items():
        steps = [(step.upstream, step.model or route.model or model) for step in route.to]
        way = ", then ".join(f"{name} ({there})" for name, there in steps)
        report.say(f"{model}: {way or 'wherever it is listed'}")
        for name, there in steps:
            if name in listed and there not in listed[name]:
                report.wrong(f"{name} does not list {there!r}")
        if not steps and not _may_be_listed(model, settings, listed):
            report.wrong("no upstream lists it")


def _may_be_listed(model: str, settings: Settings, listed: Mapping[str, Sequence[str]]) -> bool:
    """Whether one of the upstreams serves a model of this name, or could not be asked."""
    for name, its in settings.upstreams.items():
        models = ("*",) if its.models == "upstream" else its.models
        may_have = any(fnmatch.fnmatchcase(model, pattern) for pattern in models)
        if may_have and (name not in listed or model in listed[name]):
            return True
    return False


def _names(models: Sequence[str]) -> str:
    named = ", ".join(printable(model, 100) for model in models[:MOST_NAMED])
    return named if len(models) <= MOST_NAMED else f"{named} and {len(models) - MOST_NAMED} more"
