"""The rule of `_snapshots`: what was asked for is believed until the frames prove otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_asgi.upstreams._snapshots import LONGEST_DOUBT, Contradiction, TextReader

thorough = settings(max_examples=150, deadline=None, database=None)

POEM = (
    "静夜思\n\n床前明月光，疑是地上霜。\n举头望明月，低头思故乡。\n\nThe moonlight before my bed, "
    "I took it for frost on the ground. I raise my head and look at the bright moon; I lower it "
    "and think of home. — 🌕 — a moon, a moon, a moon."
)


def read(frames: Sequence[str], incremental: bool) -> list[str]:
    """Return what comes out after each frame, and at last what comes out at the end."""
    reader = TextReader(incremental)
    return [*(reader.feed(frame) for frame in frames), reader.close()]


def prefixes(text: str, step: int = 1) -> list[str]:
    return [text[:end] for end in range(step, len(text) + step, step)]


# Pieces, where pieces were asked for.

HONEST_PIECES = {
    "the recorded repetitions": ["ha", "ha", "haha", "hahaha!", "\n", "\n", "11", "111"],
    "ha, haha": ["ha", "haha"],
    "ha, haha, hahaha, hahahaha": ["ha", "haha", "hahaha", "hahahaha"],
    "dashes that double": ["-", "--", "----", "--------", "-" * 16, "-" * 32, "-" * 64],
    "dashes that grow": ["-" * n for n in range(1, 40)],
    "equal dashes": ["-"] * 200,
    "rows of aaaa": ["aaaa", "aaaa", "aaaaaaaa", "aaaa"],
    "two-letter periods": ["ab", "abab", "ababab", "abababab", "ababababab"],
    "blank lines": ["\n", "\n\n", "\n\n\n", "\n\n\n\n", "\n\n\n\n\n", "x"],
    "growing once": ["a", "ab"],
    "growing twice": ["a", "ab", "abc"],
    "growing twice by much": [
        "Yes",
        "Yes, and the moon was bright",
        "Yes, and the moon was bright as frost on the ground",
    ],
    "growing thrice by little": ["a", "ab", "abc", "abcd"],
    "the beginnings of a word": ["a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg"],
    "the beginnings of a Chinese sentence": ["疑", "疑是", "疑是地", "疑是地上"],
    "growing, then another": ["T", "The", "Then", "Thenc", "x"],
    "growing from the second on": ["x", "a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg"],
    "one": ["whole answer"],
    "the first word again and again": ["no", "no", "no", " ", "no"],
    "a triangle of digits": ["1\n", "12\n", "123\n", "1234\n", "12345\n"],
    "a word and its longer kin": ["work", "worker", "workers", ", ", "workers' "],
    "empty frames between": ["", "ha", "", "haha", "", "", "ha", ""],
}


@pytest.mark.parametrize("name", HONEST_PIECES)
def test_no_letter_of_honest_pieces_is_lost_or_repeated(name: str) -> None:
    frames = HONEST_PIECES[name]
    said = "".join(frames)
    so_far = ""
    for new in read(frames, incremental=True):
        so_far += new
        assert said.startswith(so_far)
    assert so_far == said


@thorough
@given(
    unit=st.text(min_size=1, max_size=4),
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=90),
    rising=st.booleans(),
)
def test_a_unit_that_is_repeated_is_never_taken_for_snapshots(
    unit: str, counts: list[int], rising: bool
) -> None:
    if rising:
        counts = list(accumulate(counts))[:30]
    frames = [unit * count for count in counts]
    assert "".join(read(frames, incremental=True)) == "".join(frames)


@thorough
@given(frames=st.lists(st.text(alphabet="ab-", max_size=5), max_size=12))
def test_pieces_that_are_no_growing_chain_are_exact(frames: list[str]) -> None:
    """The alphabet is small, so that frames often begin with the one before.

    A chain that grows thrice may be either; then it must be read wholly as the one or the other.
    """
    out = "".join(read(frames, incremental=True))
    said = [frame for frame in frames if frame]
    chain = all(b.startswith(a) for a, b in pairwise(said))
    grown = sum(len(b) > len(a) for a, b in pairwise(said))
    if chain and grown >= 3:
        assert out in ("".join(said), said[-1])
    else:
        assert out == "".join(said)


@given(text=st.text(min_size=1, max_size=30), rest=st.text(max_size=30))
def test_an_ordinary_stream_is_settled_by_its_second_frame(text: str, rest: str) -> None:
    second = f"{'x' if text[0] != 'x' else 'y'}{rest}"
    reader = TextReader(incremental=True)
    assert reader.feed(text) == text
    assert reader.feed(second) == second
    assert reader.feed(text) == text
    assert reader.close() == ""


def test_what_is_held_back_is_bounded() -> None:
    """Of a stream that stays undecided, nothing is held beyond the longest doubt."""
    reader = TextReader(incremental=True)
    said = given_out = 0
    for _ in range(LONGEST_DOUBT - 1):
        said += 2
        given_out += len(reader.feed("--"))
    assert given_out < said
    for _ in range(100):
        said += 2
        given_out += len(reader.feed("--"))
        assert given_out == said


# Snapshots, where pieces were asked for.


@pytest.mark.parametrize("step", [1, 2, 3, 7, 20, 50])
def test_an_upstream_that_ignores_the_flag_is_recognised(step: int) -> None:
    so_far = ""
    for new in read(prefixes(POEM, step), incremental=True):
        so_far += new
        assert POEM.startswith(so_far)
    assert so_far == POEM


@pytest.mark.parametrize("step", [1, 3, 20])
def test_repeated_frames_and_empty_ones_do_not_hide_that_the_flag_was_ignored(step: int) -> None:
    frames = [frame for whole in prefixes(POEM, step) for frame in (whole, "", whole)]
    assert "".join(read(frames, incremental=True)) == POEM


def test_it_tells_what_it_found_out_against_what_was_asked_for() -> None:
    def found(frames: Sequence[str], incremental: bool) -> bool | None:
        reader = TextReader(incremental)
        for frame in frames:
            reader.feed(frame)
        reader.close()
        return reader.proven_incremental

    assert found(prefixes(POEM, 5), incremental=True) is False
    assert found(["The ", "answer"], incremental=True) is None
    assert found(["The ", "answer"], incremental=False) is True
    assert found(prefixes(POEM, 5), incremental=False) is None
    assert found([], incremental=True) is None


def test_what_was_recognised_flows_again_and_is_not_kept_to_the_end() -> None:
    out = read(prefixes(POEM, 3), incremental=True)
    assert len("".join(out[:16])) == 48
    assert all(len(new) == 3 for new in out[16:60])


def test_once_recognised_a_shorter_snapshot_takes_nothing_back() -> None:
    frames = [*prefixes(POEM, 10), POEM[:30], "", POEM[:5], POEM]
    assert "".join(read(frames, incremental=True)) == POEM


def test_once_recognised_a_text_that_was_changed_is_a_contradiction() -> None:
    reader = TextReader(incremental=True)
    for frame in prefixes(POEM, 10):
        reader.feed(frame)
    with pytest.raises(Contradiction):
        reader.feed("another text")


@thorough
@given(
    first=st.sampled_from(["Q", "Q ", "Question: "]),
    words=st.lists(st.text(alphabet="abc \n你", min_size=3, max_size=9), min_size=5, max_size=40),
)
def test_any_text_whose_beginning_does_not_come_again_is_recognised(
    first: str, words: list[str]
) -> None:
    frames = list(accumulate([first, *words]))
    so_far = ""
    for new in read(frames, incremental=True):
        so_far += new
        assert frames[-1].startswith(so_far)
    assert so_far == frames[-1]


# Snapshots, where snapshots were asked for.


@thorough
@given(data=st.data(), text=st.one_of(st.text(max_size=40), st.text(alphabet="a-", max_size=40)))
def test_snapshots_that_were_asked_for_give_their_text_at_once(
    data: st.DataObject, text: str
) -> None:
    ends = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=80)))
    reader = TextReader(incremental=False)
    out = ""
    for end in [*ends, len(text)]:
        out += reader.feed(text[:end])
        assert out == text[:end]
        shorter = text[: data.draw(st.integers(0, end))]
        assert reader.feed(shorter) == ""
    assert reader.close() == ""


def test_snapshots_are_read_beyond_the_longest_doubt() -> None:
    frames = prefixes("-" * 3 * LONGEST_DOUBT)
    assert read(frames, incremental=False) == ["-"] * len(frames) + [""]


# Pieces, where snapshots were asked for.


def test_pieces_that_cannot_be_snapshots_are_recognised() -> None:
    assert "".join(read(["The ", "answer ", "is ", "ha", "haha"], False)) == "The answer is hahaha"


def test_a_piece_that_looked_like_a_shorter_snapshot_is_not_lost() -> None:
    assert "".join(read(["The ", "T", "hen"], incremental=False)) == "The Then"


def test_what_cannot_be_either_any_more_is_a_contradiction() -> None:
    reader = TextReader(incremental=False)
    assert reader.feed("ha") == "ha"
    assert reader.feed("hat") == "t"
    with pytest.raises(Contradiction):
        reader.feed(" says")


@thorough
@given(frames=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=10))
def test_pieces_are_read_whole_or_as_the_snapshots_that_they_could_be(frames: list[str]) -> None:
    longest = max(frames, key=len)
    try:
        out = "".join(read(frames, incremental=False))
    except Contradiction:
        assert not all(longest.startswith(frame) for frame in frames)
    else:
        are_snapshots = all(longest.startswith(frame) for frame in frames)
        assert out == (longest if are_snapshots else "".join(frames))


# Cost.


def test_a_long_text_is_not_compared_letter_by_letter() -> None:
    """Half a minute if it were; a host's event loop would stand still for it."""
    megabytes = "The answer. " * 700_000
    assert "".join(read([megabytes] * 5, incremental=True)) == megabytes * 5
    assert "".join(read(prefixes(megabytes, 1_400_000), incremental=True)) == megabytes
