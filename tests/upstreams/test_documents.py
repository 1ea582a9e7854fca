from __future__ import annotations

from typing import Any

import pytest

from qwen_asgi.errors import UpstreamInvalidResponse
from qwen_asgi.upstreams._documents import LONGEST_NAME, listed_models

GOOD = ["qwen-max", "org/model:7b @q4", "通义千问", "m" * LONGEST_NAME]
BAD: list[Any] = [
    "m\n2026-01-01 00:00:00,000 - INFO - chat forged",
    "m\rforged",
    "m\x1b[2J",
    "m\x00",
    "m\u2028forged",
    "m\u202eforged",
    "m\ud800",
    "m" * (LONGEST_NAME + 1),
    "",
    7,
    None,
]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_a_log_should_not_be_given_is_no_model(name: Any) -> None:
    listed = [{"id": model} for model in [*GOOD, name]]
    assert [model["id"] for model in listed_models({"data": listed})] == GOOD
    with pytest.raises(UpstreamInvalidResponse):
        listed_models({"data": [{"id": name}]})
