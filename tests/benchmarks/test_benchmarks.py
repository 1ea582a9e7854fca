"""That the benchmark runs, and finds a wrong answer; nothing here asks how fast anything is."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import emulation
from tests.benchmarks.figures import QUICK, figures
from tests.benchmarks.goals import GOALS
from tests.benchmarks.processes import ROOT
from tests.benchmarks.scenarios import NO_STAMP, plain_body, stream_body
from tests.benchmarks.soak import slope
from tests.benchmarks.templates import WrongAnswer, learn

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the benchmark reads the accounts that Linux keeps"
)

FRAMES = 5


def test_a_quick_run_measures_every_figure_and_finds_every_answer_right(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    command = [sys.executable, "-m", "tests.benchmarks", "all", "--quick", "--workers", "1"]
    command += ["--targets", "qwen_asgi", "--json", str(file)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55)
    assert ran.returncode == 0, ran.stderr
    for figure in figures(QUICK):
        assert f"| {figure.title}, {figure.unit} |" in ran.stdout
    for goal in GOALS:
        assert f"| at most {goal.words} |" in ran.stdout
    run = json.loads(file.read_text())
    values = {(series["target"], series["figure"]): series["values"] for series in run["figures"]}
    for figure in figures(QUICK):
        assert values["qwen_asgi", figure.name], figure.name
        assert not figure.work or values["direct", figure.name], figure.name
    assert {row["open"] for row in run["growth"]} == set(QUICK.growth)
    assert run["soak"][0]["left"] > 0
    assert run["failures"] == []
    assert set(run["upstream_check"]) == {"plain", "burst64"}


def test_an_unknown_part_is_refused() -> None:
    command = [sys.executable, "-m", "tests.benchmarks", "everything"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert ran.returncode == 2
    assert "'everything' is none of plain" in ran.stderr


# What a right answer is.


def stamped(body: bytes, first: int = 7_000_000_000) -> bytes:
    """Return a stream's body with stamps in it, as the upstream would send it."""
    for number in range(FRAMES):
        body = body.replace(NO_STAMP, b"%019d" % (first + number), 1)
    return body


def test_an_answer_with_an_id_and_a_time_of_its_own_is_right() -> None:
    reference = stream_body(FRAMES, "openai")
    template = learn(FRAMES, reference, relayed=False)
    other = reference.replace(b"Benchmark", b"Different").replace(b"1700000000", b"1800000001")
    template.check(other)
    template.check(reference)


def test_stamps_are_read_from_where_they_must_stand() -> None:
    body = stream_body(FRAMES, "openai")
    template = learn(FRAMES, body, relayed=True)
    assert template.check_stamped(stamped(body)) == [7_000_000_000 + n for n in range(FRAMES)]


def test_an_answer_that_was_left_is_right_as_far_as_it_came() -> None:
    body = stream_body(FRAMES, "openai")
    template = learn(FRAMES, body, relayed=False)
    sent = stamped(body)
    for length in range(len(sent)):
        assert len(template.check_stamped(sent[:length], whole=False)) <= FRAMES


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (b"00003 ", b"00002 "),
        (b'"finish_reason":"stop"', b'"finish_reason":"halt"'),
        (b"data: [DONE]\n\n", b""),
        (b"\n\ndata: [DONE]", b"\n\n: keep-alive\n\ndata: [DONE]"),
        ("你".encode(), "我".encode()),
    ],
)
def test_one_wrong_byte_is_found(right: bytes, wrong: bytes) -> None:
    body = stream_body(FRAMES, "openai")
    assert right in body
    template = learn(FRAMES, body, relayed=False)
    with pytest.raises(WrongAnswer):
        template.check(body.replace(right, wrong))
    with pytest.raises(WrongAnswer):
        template.check_stamped(stamped(body).replace(right, wrong))
    with pytest.raises(WrongAnswer):
        learn(FRAMES, body.replace(right, wrong), relayed=True)


def test_an_id_that_changes_within_a_stream_is_wrong() -> None:
    body = stream_body(FRAMES, "openai")
    template = learn(FRAMES, body, relayed=False)
    head, _, tail = body.rpartition(b"chatcmpl-B")
    with pytest.raises(WrongAnswer):
        template.check(head + b"chatcmpl-X" + tail)


def test_frames_out_of_their_order_in_time_are_wrong() -> None:
    body = stream_body(FRAMES, "openai")
    template = learn(FRAMES, body, relayed=True)
    with pytest.raises(WrongAnswer, match="order"):
        template.check_stamped(stamped(body).replace(b"7000000003", b"7000000009"))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (b"chat.completion", b"text_completion"),
        (b"plain answer", b"plain refusal"),
        (b'"stop"', b'"length"'),
        (b'{"id"', b'["id"'),
        (b"qwen-max-latest", b"qwen-min-latest"),
    ],
)
def test_a_reference_must_say_what_the_scenario_says(right: bytes, wrong: bytes) -> None:
    body = plain_body("openai")
    learn(0, body, relayed=False)
    with pytest.raises(WrongAnswer):
        learn(0, body.replace(right, wrong), relayed=False)


def test_a_slope_is_that_of_the_line_through_the_points() -> None:
    assert slope([0, 1, 2], [5, 7, 9]) == 2
    assert slope([3, 3], [1, 2]) == 0


def test_what_the_layers_add_is_measured_for_each_case() -> None:
    found = asyncio.run(emulation.measure(chunks=20, turns=1))
    assert found.keys() == emulation.CASES.keys()
    assert all(plain > 0 and layered > 0 for plain, layered in found.values())
