"""Which of an app's own paths a request means, whatever stands before it."""

from __future__ import annotations

from collections.abc import Iterator

from starlette.types import Scope


def own_paths(scope: Scope) -> Iterator[str]:
    """Yield what the request's path may be below the mount, likeliest first, without end slash.

    `path` holds the whole path and `root_path` what stands before the app in it: so says the ASGI
    specification. But behind a proxy that strips a prefix, `root_path` names that prefix while
    `path` lacks it, and a mount then adds its own path to both or to one. So each end of
    `root_path`, from the whole to nothing, is tried as what to take off.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    while root:
        if path == root or path.startswith(root + "/"):
            yield path[len(root) :].rstrip("/") or "/"
        cut = root.find("/", 1)
        root = root[cut:] if cut > 0 else ""
    yield path.rstrip("/") or "/"
