"""The README's table of fields, made of the one in code: `python -m tests.fields` prints it."""

from __future__ import annotations

from qwen_asgi.upstreams.field_policy import DIALECTS, FIELDS, MESSAGE_FIELDS, OTHERS, Cell, Row


def table() -> str:
    """Return it as Markdown; fields with the same fate everywhere share a row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, row in _all():
        rows.setdefault(tuple(map(_shown, row)), []).append(name)
    head = ["field", *(f"`{name}`" for name in DIALECTS)]
    lines = [head, ["---"] * len(head)]
    lines += [[", ".join(names), *fates] for fates, names in rows.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _all() -> list[tuple[str, Row]]:
    return [
        *((f"`{name}`", row) for name, row in FIELDS.items()),
        *((f"`messages[].{name}`", row) for name, row in MESSAGE_FIELDS.items()),
        ("any other", OTHERS),
    ]


def _shown(cell: Cell) -> str:
    return cell if isinstance(cell, str) else "refused"


if __name__ == "__main__":
    print(table(), end="")
