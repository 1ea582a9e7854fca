from __future__ import annotations

import pytest

from tests.hardening.__main__ import FULL, SHORT
from tests.hardening.soak import line
from tests.hardening.trial import MOST_SHOWN, Trial


# On a machine that has much else to do.
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", SHORT)
def test_nothing_is_lost(name: str) -> None:
    """A short version of each; `python -m tests.hardening` is the whole."""
    trial = Trial(name)
    SHORT[name](trial)
    if trial.not_run:
        pytest.skip(trial.not_run)
    assert trial.tried > 50
    assert trial.lost[:MOST_SHOWN] == []


def test_the_short_version_has_all_trials() -> None:
    assert len(SHORT) == len(FULL)


def test_a_slope_is_as_sure_as_its_samples_are_many() -> None:
    hours = [n / 360 for n in range(36)]
    noise = [(n * 7919 % 13 - 6) / 100 for n in range(36)]
    flat, error = line(hours, [50 + off for off in noise])
    assert abs(flat) < 2 * error < 3
    leak, error = line(
        hours, [50 + 20 * hour + off for hour, off in zip(hours, noise, strict=True)]
    )
    assert leak - 2 * error > 17
    # One step in the middle: nobody can tell how it would go on.
    step, error = line(hours, [50.0] * 18 + [50.1] * 18)
    assert step > 1
    assert step - 2 * error < 1
