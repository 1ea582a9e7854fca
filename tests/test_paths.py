from __future__ import annotations

import pytest

from qwen_asgi.paths import own_paths

MODELS = "/v1/models"

CASES: list[tuple[str, str, list[str]]] = [
    # Alone.
    ("/v1/models", "", ["/v1/models"]),
    ("/v1/models/", "", ["/v1/models"]),
    ("/", "", ["/"]),
    ("", "", ["/"]),
    # Mounted: `path` is whole, as the specification says.
    ("/qwen/v1/models", "/qwen", ["/v1/models", "/qwen/v1/models"]),
    ("/qwen/v1/models/", "/qwen/", ["/v1/models", "/qwen/v1/models"]),
    ("/qwen", "/qwen", ["/", "/qwen"]),
    ("/qwen/", "/qwen", ["/", "/qwen"]),
    # Nested mounts.
    ("/a/b/v1/models", "/a/b", ["/v1/models", "/a/b/v1/models"]),
    # A host behind a proxy, the prefix kept.
    ("/edge/qwen/v1/models", "/edge/qwen", ["/v1/models", "/edge/qwen/v1/models"]),
    # The prefix stripped from `path` and still in `root_path`.
    ("/qwen/v1/models", "/edge/qwen", ["/v1/models", "/qwen/v1/models"]),
    ("/v1/models", "/edge", ["/v1/models"]),
    ("/v1/models", "/edge/deep/", ["/v1/models"]),
    # Mounted at a path that ends as ours begin.
    ("/v1/v1/models", "/v1", ["/v1/models", "/v1/v1/models"]),
    ("/v1/models", "/v1", ["/models", "/v1/models"]),
    # A path that only begins with the same letters is none below the mount.
    ("/qwenish/v1/models", "/qwen", ["/qwenish/v1/models"]),
    # Several suffixes fit.
    ("/a/a/v1/models", "/a/a", ["/v1/models", "/a/v1/models", "/a/a/v1/models"]),
    ("/a/v1/models", "/a/a", ["/v1/models", "/a/v1/models"]),
    # What names a model may hold slashes and anything else.
    (
        "/q/v1/models/org/name:1 字",
        "/q",
        ["/v1/models/org/name:1 字", "/q/v1/models/org/name:1 字"],
    ),
]


@pytest.mark.parametrize(("path", "root_path", "expected"), CASES)
def test_each_end_of_the_root_path_is_tried_the_whole_of_it_first(
    path: str, root_path: str, expected: list[str]
) -> None:
    assert list(own_paths({"type": "http", "path": path, "root_path": root_path})) == expected


def test_a_server_that_knows_no_root_path_may_leave_it_out() -> None:
    assert list(own_paths({"type": "http", "path": MODELS})) == [MODELS]


@pytest.mark.parametrize("root_path", ["", "/edge", "/edge/deep"])
@pytest.mark.parametrize("mount", ["", "/qwen", "/a/b/c"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "stripped"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_path_is_found_under_any_mount_and_root_path(
    root_path: str, mount: str, kept: bool, slash: str
) -> None:
    path = (root_path if kept else "") + mount + MODELS + slash
    scope = {"type": "http", "path": path, "root_path": root_path + mount}
    assert MODELS in own_paths(scope)
