from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

import pytest

from qwen_asgi import catalog, model_list
from qwen_asgi.catalog import Catalog, Route
from qwen_asgi.chat import Batches, ChatRequest, ModelInfo, Upstream
from qwen_asgi.errors import ModelNotFound, NoSuchModel, UpstreamTimeout
from qwen_asgi.model_list import ModelList
from tests.schemas import check_model, check_models

pytestmark = pytest.mark.anyio


def upstream(request: ChatRequest) -> AbstractAsyncContextManager[Batches]:
    raise AssertionError("a catalog names an upstream and does not call it")


def of(names: Sequence[str] = (), read: List | None = None) -> Catalog:
    """Return the catalog of one upstream, with its names or with what it tells."""
    models = ModelList(names if read is None else ["*"], read)
    return Catalog({"only": models}, lambda model, names: upstream)


class List:
    """A list of models that an upstream tells, or fails to tell."""

    def __init__(self, *answers: Sequence[str] | UpstreamTimeout) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.told = 0
        self.may_tell = asyncio.Event()
        self.may_tell.set()

    async def __call__(self) -> Sequence[ModelInfo]:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await self.may_tell.wait()
        await asyncio.sleep(0)
        self.told += 1
        if isinstance(answer, UpstreamTimeout):
            raise answer
        return [ModelInfo(name) for name in answer]


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop run until `condition` holds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - nobody is there to set an event
            await asyncio.sleep(0)
    await asyncio.sleep(0)


GONE = UpstreamTimeout("the upstream was silent")


async def names(models: Catalog) -> list[str]:
    document = json.loads(await models.document())
    check_models(document)
    return [model["id"] for model in document["data"]]


async def test_a_fixed_list_is_told_as_openai_tells_its_own() -> None:
    models = of(["b", "a", "字"])
    document = json.loads(await models.document())
    check_models(document)
    assert document == {
        "object": "list",
        "data": [
            {"id": id, "object": "model", "created": 0, "owned_by": "qwen"}
            for id in ("b", "a", "字")
        ],
    }


async def test_one_model_is_the_same_entry() -> None:
    models = of(["org/name:1", "b"])
    document = json.loads(await models.model_document("org/name:1"))
    check_model(document)
    assert document == json.loads(await models.document())["data"][0]


async def test_a_known_model_is_served_by_the_upstream() -> None:
    assert await of(["a"]).resolve("a") is upstream


@pytest.mark.parametrize("model", ["b", "A", "a ", "", "x" * 5000, "a\nb", "../a"])
async def test_an_unknown_model_is_400_in_a_chat_and_404_by_its_address(model: str) -> None:
    models = of(["a"])
    with pytest.raises(ModelNotFound) as in_a_chat:
        await models.resolve(model)
    with pytest.raises(NoSuchModel) as by_address:
        await models.model_document(model)
    for raised, status in (in_a_chat, 400), (by_address, 404):
        error = raised.value
        assert (error.status, error.code, error.param) == (status, "model_not_found", "model")
        assert "/v1/models" in str(error)
        assert str(error).isprintable()
        assert len(str(error)) < 300


async def test_a_list_of_the_upstreams_is_asked_for_once_and_kept_for_a_while() -> None:
    read = List(["a", "b", "a"])
    models = of(read=read)
    assert await names(models) == ["a", "b"]
    assert await models.resolve("b") is upstream
    await models.model_document("a")
    assert read.asked == 1
    with pytest.raises(ModelNotFound):
        await models.resolve("unused")


async def test_a_list_that_is_old_serves_on_while_a_new_one_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_list, "FRESH_SECONDS", -1.0)
    read = List(["a"], ["b"])
    models = of(read=read)
    assert await names(models) == ["a"]
    found = await asyncio.gather(*(names(models) for _ in range(5)))
    assert found == [["a"]] * 5
    await until(lambda: read.told == 2)
    assert read.asked == 2
    assert await names(models) == ["b"]
    with pytest.raises(ModelNotFound):
        await models.resolve("a")


async def test_those_who_need_the_first_list_ask_for_it_once_and_together() -> None:
    read = List(["a"])
    models = of(read=read)
    found = await asyncio.gather(*(names(models) for _ in range(5)))
    assert found == [["a"]] * 5
    assert read.asked == 1


async def test_a_client_that_leaves_does_not_take_the_list_from_the_others() -> None:
    read = List(["a"])
    models = of(read=read)
    read.may_tell.clear()
    first, second = (asyncio.create_task(names(models)) for _ in range(2))
    await until(lambda: read.asked == 1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    read.may_tell.set()
    assert await second == ["a"]
    assert read.asked == 1


async def test_without_any_list_the_upstreams_failure_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_list, "FAILED_SECONDS", -1.0)
    read = List(GONE, GONE, ["a"])
    models = of(read=read)
    with pytest.raises(UpstreamTimeout):
        await models.resolve("a")
    with pytest.raises(UpstreamTimeout):
        await models.document()
    assert await names(models) == ["a"]


async def test_an_old_list_serves_on_while_the_upstream_cannot_tell_a_new_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(model_list, "FRESH_SECONDS", -1.0)
    read = List(["a"], GONE)
    models = of(read=read)
    assert await names(models) == ["a"]
    assert await names(models) == ["a"]
    await until(lambda: caplog.records)
    assert await models.resolve("a") is upstream
    # For a while it is not asked for again.
    await until(lambda: read.told == read.asked)
    assert read.asked == 2
    assert [record.getMessage() for record in caplog.records] == [
        "the list of models could not be read, the last one stays: the upstream was silent"
    ]


async def test_a_failure_to_tell_the_first_list_is_told_for_a_moment_without_asking_again() -> None:
    read = List(GONE, ["a"])
    models = of(read=read)
    for _ in range(3):
        with pytest.raises(UpstreamTimeout):
            await models.resolve("a")
    assert read.asked == 1


# Several upstreams.


def serve(model: str, names: tuple[str, ...]) -> Upstream:
    """Stand for what is made of the upstreams: a test reads the names off it."""

    def named(request: ChatRequest) -> AbstractAsyncContextManager[Batches]:
        raise AssertionError

    named.__name__ = f"{model}: {', '.join(names)}"
    return named


async def served(models: Catalog, model: str) -> str:
    found = await models.resolve(model)
    assert await models.resolve(model) is found, "it is made once"
    name: str = found.__name__
    return name


async def test_a_model_is_served_by_all_that_have_it_in_their_order() -> None:
    lists = {"x": ModelList(["a", "b"]), "y": ModelList(["b", "c"]), "z": ModelList(["b"])}
    models = Catalog(lists, serve)
    assert await served(models, "a") == "a: x"
    assert await served(models, "b") == "b: x, y, z"
    assert await names(models) == ["a", "b", "c"]
    with pytest.raises(ModelNotFound):
        await models.resolve("d")


async def test_a_pattern_stands_for_what_the_upstream_tells() -> None:
    read = List(["qwen3-max", "qwen3-8b", "other"])
    lists = {"x": ModelList(["mine", "qwen3-*"], read), "y": ModelList(["other", "qwen3-8b"])}
    models = Catalog(lists, serve)
    assert await served(models, "mine") == "mine: x"
    assert await served(models, "other") == "other: y"
    assert read.asked == 0, "no list need be read for these"
    assert await served(models, "qwen3-max") == "qwen3-max: x"
    assert await served(models, "qwen3-8b") == "qwen3-8b: x, y"
    assert await names(models) == ["mine", "qwen3-max", "qwen3-8b", "other"]
    for unknown in "qwen3-nope", "nope":
        with pytest.raises(ModelNotFound):
            await models.resolve(unknown)
    assert read.asked == 1


async def test_a_name_without_its_like_is_no_pattern_where_nobody_is_asked() -> None:
    models = Catalog({"x": ModelList(["a*"])}, serve)
    assert await served(models, "a*") == "a*: x"


async def test_a_route_leads_where_it_says() -> None:
    routes = {"fast": Route(to=("y", "x")), "b": Route(to=("y",)), "ghost": Route()}
    models = Catalog({"x": ModelList(["a", "b"]), "y": ModelList(["c"])}, serve, routes)
    assert await served(models, "fast") == "fast: y, x"
    assert await served(models, "b") == "b: y"
    assert await names(models) == ["a", "b", "c", "fast"]
    with pytest.raises(ModelNotFound):
        await models.resolve("ghost")
    assert json.loads(await models.model_document("fast"))["id"] == "fast"


async def test_an_upstream_that_cannot_tell_takes_none_of_the_others_down(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lists = {"x": ModelList(["*"], List(GONE)), "y": ModelList(["*"], List(["a"]))}
    models = Catalog(lists, serve)
    assert await served(models, "a") == "a: y"
    assert await names(models) == ["a"]
    assert "lacks those of x: the upstream was silent" in caplog.text
    # Whether it is there, only the one that is gone could say.
    with pytest.raises(UpstreamTimeout):
        await models.resolve("b")


async def test_what_each_can_do_is_told_where_it_is_known() -> None:
    known = ModelInfo("a", context=8192, thinking=True, tools=False, vision=None, stream_only=True)

    async def read() -> Sequence[ModelInfo]:
        return [known, ModelInfo("b")]

    routes = {"b": Route(info={"vision": True}), "c": Route(to=("x",), info={"context": 7})}
    models = Catalog({"x": ModelList(["*"], read)}, serve, routes)
    document = json.loads(await models.document())
    check_models(document)
    a, b, c = document["data"]
    assert a["context_length"] == 8192
    assert a["capabilities"] == {"thinking": True, "tools": False, "stream_only": True}
    assert b["capabilities"] == {"vision": True}
    assert "context_length" not in b
    assert (c["id"], c["context_length"]) == ("c", 7)
    for entry in document["data"]:
        assert json.loads(await models.model_document(entry["id"])) == entry


def of_both(a: List, b: List) -> Catalog:
    lists = {name: ModelList(["*"], read) for name, read in (("a", a), ("b", b))}
    return Catalog(lists, lambda model, names: upstream)


async def test_an_upstream_that_hangs_keeps_nobody_from_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalog, "PATIENCE_SECONDS", 0.05)
    a, b = List(["one"]), List(["two"])
    b.may_tell.clear()
    models = of_both(a, b)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(5):
        assert await models.resolve("one") is upstream
        assert await names(models) == ["one"]
    # It has had its time: nobody waits for it again while it is being read.
    monkeypatch.setattr(catalog, "PATIENCE_SECONDS", 0.01)
    start = loop.time()
    for _ in range(50):
        await models.resolve("one")
    assert loop.time() - start < 0.5
    assert b.asked == 1
    # Who wants what only it can have waits for it.
    waiting = asyncio.create_task(models.resolve("two"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    b.may_tell.set()
    assert await waiting is upstream
    assert await names(models) == ["one", "two"]


async def test_an_upstream_that_is_only_slower_is_told_too() -> None:
    a, b = List(["one"]), List(["one", "two"])
    b.may_tell.clear()
    models = of_both(a, b)
    listed = asyncio.create_task(names(models))
    await until(lambda: a.told)
    b.may_tell.set()
    assert await listed == ["one", "two"]


async def test_a_client_that_leaves_leaves_no_reading_of_its_own_behind() -> None:
    a, b = List(["one"]), List(["two"])
    a.may_tell.clear()
    b.may_tell.clear()
    before = len(asyncio.all_tasks())
    leaving = asyncio.create_task(of_both(a, b).document())
    await until(lambda: a.asked and b.asked)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    a.may_tell.set()
    b.may_tell.set()
    await until(lambda: len(asyncio.all_tasks()) == before)


async def test_one_document_says_of_a_route_what_the_list_says() -> None:
    async def read() -> Sequence[ModelInfo]:
        return [ModelInfo("m", context=1000)]

    lists = {"a": ModelList(["*"], read)}
    models = Catalog(lists, lambda model, names: upstream, {"m": Route(to=("a",))})
    [entry] = json.loads(await models.document())["data"]
    assert entry["context_length"] == 1000
    assert json.loads(await models.model_document("m")) == entry


async def test_a_client_that_leaves_leaves_no_error_unheard() -> None:
    """Here between one that failed and one that hangs, when a first one was told."""
    unheard: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: unheard.append(context["message"]))
    lists = {"a": List(["one"]), "b": List(GONE), "c": List(["two"])}
    lists["b"].may_tell.clear()
    lists["c"].may_tell.clear()
    read = {name: ModelList(["*"], told) for name, told in lists.items()}
    listed = loop.create_task(names(Catalog(read, lambda model, names: upstream)))
    await until(lambda: lists["a"].told)
    await asyncio.sleep(0.01)
    lists["b"].may_tell.set()
    await until(lambda: lists["b"].told)
    await asyncio.sleep(0.01)
    assert not listed.done()
    listed.cancel()
    await asyncio.wait([listed])
    del listed
    gc.collect()
    lists["c"].may_tell.set()
    await until(lambda: lists["c"].told)
    loop.set_exception_handler(None)
    assert not unheard
