from __future__ import annotations

from types import ModuleType

import qwen_asgi


def test_all_is_what_is_exported() -> None:
    """Modules come into the namespace by being imported; they are public by their path."""
    found = {
        name
        for name, value in vars(qwen_asgi).items()
        if not name.startswith("_") and name != "annotations" and not isinstance(value, ModuleType)
    }
    assert found | {"__version__"} == set(qwen_asgi.__all__)


def test_all_is_in_order_and_each_name_says_where_it_is_from() -> None:
    assert qwen_asgi.__all__ == sorted(qwen_asgi.__all__)
    for name in set(qwen_asgi.__all__) - {"__version__"}:
        value = getattr(qwen_asgi, name)
        assert value.__name__ == name
        assert value.__module__.startswith("qwen_asgi.")
        assert value.__doc__


def test_the_version_is_a_version() -> None:
    assert [part.isdigit() for part in qwen_asgi.__version__.split(".")] == [True] * 3
