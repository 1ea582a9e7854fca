"""Names for answers, requests and conversations."""

from __future__ import annotations

import os
from itertools import count


class IdSource:
    """Short unique names: a random prefix of the process and a counter.

    Unique across workers and restarts, and cheaper than a UUID for each; not for what must not be
    guessed. A forked worker draws a prefix of its own.
    """

    def __init__(self) -> None:
        self._drawn = (0, "", count())
        """For which process, its prefix, and the numbers behind it: replaced as one, so that
        threads that both find it to be another process's draw two prefixes and not half of each.
        """

    def next(self) -> str:
        """Return 24 characters of `[0-9a-f]`."""
        pid, prefix, numbers = self._drawn
        if pid != os.getpid():
            prefix, numbers = os.urandom(8).hex(), count()
            self._drawn = (os.getpid(), prefix, numbers)
        return f"{prefix}{next(numbers):08x}"


_VARIANTS = dict(zip("0123456789abcdef", 4 * "89ab", strict=True))


def fresh_uuids(number: int) -> list[str]:
    """Return random UUIDs (version 4), made from one read of the system's randomness."""
    entropy = os.urandom(16 * number).hex()
    return [_uuid4(entropy[start : start + 32]) for start in range(0, 32 * number, 32)]


def _uuid4(digits: str) -> str:
    variant = _VARIANTS[digits[16]]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
