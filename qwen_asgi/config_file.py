"""The TOML file that holds what does not fit into variables, and where in it a mistake is."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

MOST_BYTES = 1024 * 1024
REFERENCE = "env:"


class ConfigError(Exception):
    """The file cannot be used; the message names it, and the line at fault."""


class ConfigFile:
    """A file that was read: `fields` is what it holds."""

    def __init__(self, path: str | Path) -> None:
        """Raises ConfigError."""
        self.path = Path(path)
        self._put_in: dict[str, str] = {}
        """What was put in the place of a reference, with the name of its variable."""
        try:
            with self.path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
            if len(data) > MOST_BYTES:
                raise ConfigError(f"{self.path}: is longer than {MOST_BYTES} bytes")
            self._text = data.decode("utf-8-sig").replace("\r\n", "\n")
            self.fields: dict[str, Any] = tomllib.loads(self._text)
        except OSError as exc:
            raise ConfigError(f"{self.path}: cannot be read: {exc.strerror}") from None
        except UnicodeError:
            raise ConfigError(f"{self.path}: is not UTF-8 text") from None
        except RecursionError:
            raise ConfigError(f"{self.path}: is nested too deep") from None
        except tomllib.TOMLDecodeError as exc:
            # It ends with the line and the column.
            raise ConfigError(f"{self.path}: is not TOML: {exc}") from None

    def resolve(self, variable: Callable[[str], str]) -> None:
        """Put the value of the variable NAME in the place of each text `env:NAME`; of a header's
        text, in the place of its end.

        Raises ConfigError for a variable that is not set.
        """
        self.fields = self._resolved(self.fields, (), variable)

    def error(self, path: Sequence[str | int], message: str) -> ConfigError:
        """Return the error that names the line in which what stands at `path` begins."""
        known = list(path)
        while known and not _has(self.fields, known):
            known.pop()
        line = self._line(known) if known else None
        where = f"{self.path}, line {line}" if line else str(self.path)
        name = ".".join(str(step) for step in path)
        for value, variable in self._put_in.items():
            # It may be a secret that stands in the wrong place.
            message = message.replace(repr(value), f"the value of {variable}")
        return ConfigError(f"{where}: {name}: {message}" if name else f"{where}: {message}")

    def _resolved(
        self, value: Any, path: tuple[str | int, ...], variable: Callable[[str], str]
    ) -> Any:
        if isinstance(value, dict):
            return {k: self._resolved(v, (*path, k), variable) for k, v in value.items()}
        if isinstance(value, list):
            return [self._resolved(v, (*path, n), variable) for n, v in enumerate(value)]
        scheme, name = _reference(value, in_header=path[-2:-1] == ("headers",))
        if not name:
            return value
        found = variable(name)
        if not found:
            raise self.error(path, f"the variable {name} is not set")
        self._put_in[scheme + found] = name
        return scheme + found

    def _line(self, path: Sequence[str | int]) -> int:
        """Return the number of the line in which the statement of `path` begins, which is there.

        The parser itself tells: what stands in the first lines that are TOML and hold the path, and
        not in those before, is that statement. It is found by halving.
        """
        lines = self._text.split("\n")
        # The most lines known to lack it, the fewest known to hold it, and where to look.
        lacking, holding, until = 0, len(lines), len(lines)
        while lacking + 1 < until:
            middle = (lacking + until) // 2
            end, fields = _whole(lines, middle, until)
            if fields is None or _has(fields, path):
                holding = holding if fields is None else end
                until = middle
            else:
                lacking = end
        written = (n for n in range(lacking, holding) if not _is_blank(lines[n]))
        return next(written, lacking) + 1


_WITH_SCHEME = re.compile(r"([A-Za-z][\w-]* )env:([A-Za-z_]\w*)")


def _reference(value: Any, *, in_header: bool) -> tuple[str, str]:
    """Return the variable that a text stands for, and what stands before it; two empty texts for
    one that is meant as it is."""
    if not isinstance(value, str):
        return "", ""
    if value.startswith(REFERENCE):
        return "", value.removeprefix(REFERENCE)
    found = _WITH_SCHEME.fullmatch(value) if in_header else None
    return (found[1], found[2]) if found else ("", "")


def _whole(lines: Sequence[str], start: int, end: int) -> tuple[int, dict[str, Any] | None]:
    """Return how many lines, from `start` on and less than `end`, are TOML; and what they hold."""
    for number in range(start, end):
        try:
            return number, tomllib.loads("\n".join(lines[:number]))
        except tomllib.TOMLDecodeError:
            continue
    return end, None


def _has(fields: Any, path: Sequence[str | int]) -> bool:
    for step in path:
        if isinstance(step, int):
            if not isinstance(fields, list) or step >= len(fields):
                return False
        elif not isinstance(fields, Mapping) or step not in fields:
            return False
        fields = fields[step]
    return True


def _is_blank(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")
