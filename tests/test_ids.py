from __future__ import annotations

import re
import subprocess
import sys
import threading
from uuid import UUID

import pytest

from qwen_asgi.ids import IdSource, fresh_uuids


def test_ids_are_short_plain_and_never_the_same() -> None:
    source = IdSource()
    ids = [source.next() for _ in range(10_000)]
    assert len(set(ids)) == 10_000
    assert all(re.fullmatch("[0-9a-f]{24}", id) for id in ids)


def test_two_sources_do_not_meet() -> None:
    first, second = IdSource(), IdSource()
    assert not {first.next() for _ in range(100)} & {second.next() for _ in range(100)}


def test_threads_that_share_a_source_get_ids_of_their_own() -> None:
    source = IdSource()
    found: list[list[str]] = []

    def take() -> None:
        found.append([source.next() for _ in range(2000)])

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id for ids in found for id in ids}) == 8000


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_worker_draws_a_prefix_of_its_own() -> None:
    program = """
import os
from qwen_asgi.ids import IdSource

source = IdSource()
os.write(1, source.next().encode() + b"\\n")
child = os.fork()
os.write(1, source.next().encode() + b"\\n")
if child:
    os.waitpid(child, 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    before, *after = done.stdout.split()
    assert len({before, *after}) == 3
    assert sorted(id[:16] == before[:16] for id in after) == [False, True]


def test_uuids_are_valid_random_and_as_many_as_asked_for() -> None:
    ids = [id for _ in range(500) for id in fresh_uuids(3)]
    assert len(set(ids)) == 1500
    for id in ids:
        uuid = UUID(id)
        assert str(uuid) == id
        assert uuid.version == 4
        assert uuid.variant == "specified in RFC 4122"
    assert {id[19] for id in ids} == set("89ab")
    assert fresh_uuids(0) == []
