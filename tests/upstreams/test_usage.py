from __future__ import annotations

from typing import Any

import pytest

from qwen_asgi.chat import Usage
from qwen_asgi.upstreams._usage import RunningUsage

FRAMES: dict[str, tuple[list[dict[str, Any]], Usage | None]] = {
    "nothing": ([], None),
    "empty": ([{}], None),
    "the upstream's names": (
        [{"input_tokens": 24, "output_tokens": 15, "total_tokens": 39}],
        Usage(24, 15, 39),
    ),
    "OpenAI's names": (
        [{"prompt_tokens": 24, "completion_tokens": 15, "total_tokens": 39}],
        Usage(24, 15, 39),
    ),
    "the last total, not the sum": (
        [{"input_tokens": 24, "output_tokens": n} for n in (3, 8, 15)],
        Usage(24, 15, 39),
    ),
    "an empty one changes nothing": (
        [{"input_tokens": 24, "output_tokens": 15}, {}, {"input_tokens": None}],
        Usage(24, 15, 39),
    ),
    "parts in several frames": ([{"input_tokens": 24}, {"output_tokens": 15}], Usage(24, 15, 39)),
    "a total of an earlier frame does not stand": (
        [{"input_tokens": 24, "output_tokens": 3, "total_tokens": 27}, {"output_tokens": 15}],
        Usage(24, 15, 39),
    ),
    "a total that is its own": (
        [{"input_tokens": 24, "output_tokens": 15, "total_tokens": 45}],
        Usage(24, 15, 45),
    ),
    "prompt from the other two": ([{"output_tokens": 15, "total_tokens": 39}], Usage(24, 15, 39)),
    "output from the other two": ([{"input_tokens": 24, "total_tokens": 39}], Usage(24, 15, 39)),
    "zero is a count": ([{"input_tokens": 0, "output_tokens": 0}], Usage(0, 0, 0)),
    "one alone is not told in full": ([{"input_tokens": 24}], None),
    "a total alone is not told in full": ([{"total_tokens": 39}], None),
    "a total below its parts tells nothing": ([{"input_tokens": 24, "total_tokens": 3}], None),
    "no count": (
        [{"input_tokens": -1, "output_tokens": -1, "total_tokens": -1}],
        None,
    ),
    "of other types": (
        [{"input_tokens": "24", "output_tokens": 1.5, "total_tokens": True}],
        None,
    ),
    "details": (
        [
            {
                "input_tokens": 24,
                "output_tokens": 15,
                "output_tokens_details": {"text_tokens": 6, "reasoning_tokens": 9},
                "input_tokens_details": {"text_tokens": 24, "cached_tokens": 8},
            }
        ],
        Usage(24, 15, 39, 9, 8),
    ),
    "OpenAI's details": (
        [
            {
                "prompt_tokens": 24,
                "completion_tokens": 15,
                "completion_tokens_details": {"reasoning_tokens": 9},
                "prompt_tokens_details": {"cached_tokens": 8},
            }
        ],
        Usage(24, 15, 39, 9, 8),
    ),
    "details of other types": (
        [
            {
                "input_tokens": 24,
                "output_tokens": 15,
                "output_tokens_details": [9],
                "input_tokens_details": {"cached_tokens": "8"},
            }
        ],
        Usage(24, 15, 39),
    ),
}


@pytest.mark.parametrize("name", FRAMES)
def test_usage_is_what_the_last_counts_say_and_nothing_is_invented(name: str) -> None:
    frames, expected = FRAMES[name]
    usage = RunningUsage()
    for frame in frames:
        usage.update(frame)
    assert usage.total() == expected
