from __future__ import annotations

import pytest

from tests.hardening.__main__ import FULL, SHORT
from tests.hardening.trial import MOST_SHOWN, Trial


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
