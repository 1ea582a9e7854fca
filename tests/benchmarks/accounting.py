"""What processes have used, by the kernel's own books. Linux; it needs no privilege."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_CPU_CLOCK_OF_A_PROCESS = 2
"""CPUCLOCK_SCHED of the kernel's `include/linux/posix-timers.h`."""


class ProcessGone(Exception):
    """A process whose use was to be measured has ended."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a tree of processes holds, in bytes."""

    resident: int
    """Each process's resident set, added up: pages that two of them share count twice."""
    proportional: int
    """Shared pages divided among those that share them, other programs included."""


def raise_file_limit() -> int:
    """Let this process, and those it starts, open as many files as it may; return that number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def process_tree(root: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for process, parent, _ in _processes():
        children.setdefault(parent, []).append(process)
    tree = [root]
    for process in tree:
        tree += children.get(process, [])
    return tree


def session_members(session: int) -> list[int]:
    """Return the processes of a session: what its leader has started, also after it has ended."""
    return [process for process, _, of in _processes() if of == session]


def _processes() -> Iterator[tuple[int, int, int]]:
    """Yield every living process with its parent and its session."""
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        with suppress(OSError):
            # The name in parentheses may hold blanks and parentheses itself.
            fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                yield int(entry.name), int(fields[1]), int(fields[3])


def cpu_seconds(processes: Iterable[int]) -> float:
    """Return the CPU time that processes have used since they began, user and system, all threads.

    Read from their CPU clocks: the same account as utime and stime of `/proc/PID/stat`, but in
    nanoseconds, where those count in hundredths of a second. Raises ProcessGone.
    """
    return sum(map(_cpu_nanoseconds, processes)) / 1e9


def _cpu_nanoseconds(process: int) -> int:
    # As glibc's clock_getcpuclockid makes it of a process's number.
    clock = (~process << 3) | _CPU_CLOCK_OF_A_PROCESS
    try:
        return time.clock_gettime_ns(clock)
    except OSError:
        raise ProcessGone(f"process {process} ended while it was measured") from None


def memory(processes: Iterable[int]) -> Memory:
    """Return what processes hold now. Raises ProcessGone."""
    resident = proportional = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            raise ProcessGone(f"process {process} ended while it was measured") from None
        kibibytes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
        resident += kibibytes["Rss"] * 1024
        proportional += kibibytes["Pss"] * 1024
    return Memory(resident, proportional)


def open_files(processes: Iterable[int]) -> int:
    """Return how many files and sockets processes have open."""
    return sum(len(os.listdir(f"/proc/{process}/fd")) for process in processes)
