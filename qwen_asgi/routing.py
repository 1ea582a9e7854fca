"""What answers for a model that several upstreams may serve."""

from __future__ import annotations

from collections.abc import Mapping

from qwen_asgi.catalog import ABILITIES, Route
from qwen_asgi.chat import Upstream
from qwen_asgi.layers.breaker import Breaker, Health
from qwen_asgi.layers.choices import Choices
from qwen_asgi.layers.drain import Draining, Drains
from qwen_asgi.layers.fallback import Candidate, Fallback
from qwen_asgi.layers.limit import Limit
from qwen_asgi.layers.named import Named
from qwen_asgi.layers.retry import Retry, RetryBudget
from qwen_asgi.layers.target import Target
from qwen_asgi.settings import Settings
from qwen_asgi.turns import Turns
from qwen_asgi.upstream_settings import RouteSettings, Step, UpstreamSettings


class Guarded:
    """An upstream with the layers that all its models share.

    `before` is the same one by earlier settings: who is there already, and what retries it has
    left, is counted on. Its failures are, too, if it is reached as before: `how` tells. Otherwise
    that may have mended them.
    """

    def __init__(
        self,
        name: str,
        upstream: Upstream,
        its: UpstreamSettings,
        *,
        how: object,
        before: Guarded | None,
    ) -> None:
        self.its = its
        self.how = how
        self.name = name
        self.turns: Turns = before.turns if before else Turns()
        self.budget: RetryBudget = before.budget if before else RetryBudget(its.retry_share)
        self.budget.share = its.retry_share
        self.health: Health = before.health if before and before.how == how else Health()
        self._upstream = self._with_layers(Named(upstream, name))

    def as_target(self, model: str, route: RouteSettings) -> Upstream:
        target: Upstream = Target(
            self._upstream, model=model, defaults=route.defaults, forced=route.forced
        )
        if not self.its.retries:
            return target
        return Retry(target, times=self.its.retries, budget=self.budget, name=self.name)

    def _with_layers(self, upstream: Upstream) -> Upstream:
        its, breaker = self.its, None
        if its.breaker_failures:
            upstream = breaker = Breaker(
                upstream,
                failures=its.breaker_failures,
                seconds=its.breaker_seconds,
                name=self.name,
                health=self.health,
            )
        limit = Limit(
            upstream,
            its.max_concurrent,
            queue=its.queue,
            patience=its.queue_timeout,
            name=self.name,
            turns=self.turns,
        )
        return breaker.ahead_of(limit) if breaker else limit


def as_asked(
    upstream: Upstream, settings: Settings, route: RouteSettings, drains: Drains
) -> Upstream:
    """Return the upstream with what stands around all that is asked for a model."""
    choices = Choices(upstream)
    if (route.on_disconnect or settings.on_disconnect) == "cancel":
        return choices
    return Draining(
        choices,
        drains,
        seconds=route.drain_seconds or settings.drain_seconds,
        tokens=route.drain_tokens or settings.drain_tokens,
    )


class Routing:
    """Makes what answers for a model out of several upstreams."""

    def __init__(self, settings: Settings, guarded: Mapping[str, Guarded], drains: Drains) -> None:
        self._settings = settings
        self._drains = drains
        self._guarded = guarded

    def routes(self) -> dict[str, Route]:
        return {
            model: Route(
                to=tuple(dict.fromkeys(step.upstream for step in route.to)),
                info={
                    name: value
                    for name in ("context", *ABILITIES)
                    if (value := getattr(route, name)) is not None
                },
            )
            for model, route in self._settings.routes.items()
        }

    def serve(self, model: str, names: tuple[str, ...]) -> Upstream:
        route = self._settings.routes.get(model) or RouteSettings()
        steps = route.to or tuple(Step(upstream=name) for name in names)
        candidates = [self._candidate(model, step, route) for step in steps]
        fallback = Fallback(
            candidates,
            choose=route.choose,
            on=route.fallback_on,
            total=self._settings.total_timeout,
        )
        return as_asked(fallback, self._settings, route, self._drains)

    def _candidate(self, model: str, step: Step, route: RouteSettings) -> Candidate:
        guarded = self._guarded[step.upstream]
        its_name = step.model or (route.model if route.to else None) or model
        target = guarded.as_target(its_name, route)
        return Candidate(step.upstream, target, step.weight, lambda: guarded.turns.busy)
