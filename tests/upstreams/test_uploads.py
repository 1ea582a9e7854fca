"""Files in a request, over real sockets: uploaded before the chat, to both web chats."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import httpx
import pytest

from qwen_asgi import Gateway, Settings, anonymous
from qwen_asgi.testing import Fault, SimulatedQwen, StoredFile
from qwen_asgi.testing.answers import whole_answer
from qwen_asgi.upstreams import _inline_files, uploads
from tests.conftest import (
    CHAT,
    MODEL,
    UPSTREAM_KEY,
    GatewayURL,
    answer_of,
    error_of,
    streamed,
)

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
TICKET_1, TICKET_2 = "/api/v1/files/getstsToken", "/api/v2/files/getstsToken"
NEW, CHAT_1, CHAT_2 = "/api/v2/chats/new", "/api/chat/completions", "/api/v2/chat/completions"
PARSE, STATE = "/api/v2/files/parse", "/api/v2/files/parse/status"


@pytest.fixture
def dialect() -> str:
    return "qwen-web-v2"


class URL(Protocol):
    def __call__(self, **options: Any) -> str: ...


@pytest.fixture
def url(gateway_url: GatewayURL, qwen_url: str) -> URL:
    """Returns the address of a gateway that may put files where the simulated Qwen keeps them."""
    return lambda **options: gateway_url(**{"upload_hosts": (qwen_url,), **options}) + CHAT


V1 = {"upstream": "qwen-web-v1"}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def picture(data: bytes = PNG, type: str = "image/png") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:{type};base64,{b64(data)}"}}


def sound(data: bytes = b"sound") -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": b64(data), "format": "wav"}}


def document(data: bytes = b"words", name: str = "notes.txt") -> dict[str, Any]:
    return {"type": "file", "file": {"file_data": b64(data), "filename": name}}


LINK = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}


def ask(*parts: Any, **fields: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": "What is it?"}, *parts]
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}


def paths(qwen: SimulatedQwen) -> list[str]:
    """Return what was asked of the upstream, a put as `PUT`, without the removals of chats."""
    asked = [r for r in qwen.requests if r.method != "DELETE"]
    return ["PUT" if r.method == "PUT" else r.path for r in asked]


def turn(qwen: SimulatedQwen) -> dict[str, Any]:
    """Return the last message that was sent."""
    [*_, last] = [r.body for r in qwen.requests if r.is_chat]
    message: dict[str, Any] = last["messages"][-1]
    return message


# The three ways.


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_picture_is_put_into_storage_before_the_chat(
    url: URL, http: httpx.Client, qwen: SimulatedQwen, stream: bool
) -> None:
    response = http.post(url(), json=ask(picture(), stream=stream))
    assert streamed(response).is_whole if stream else answer_of(response)
    assert paths(qwen) == [TICKET_2, "PUT", NEW, CHAT_2]
    [stored] = qwen.storage.stored
    assert (stored.data, stored.media_type, stored.filetype) == (PNG, "image/png", "image")
    [file] = turn(qwen)["files"]
    assert file["url"].startswith("http://127.0.0.1:")
    assert "x-oss-signature" in file["url"]
    expected = {
        "type": "image",
        "id": stored.id,
        "name": "image.png",
        "status": "uploaded",
        "size": len(PNG),
        "file_type": "image/png",
        "showType": "image",
        "file_class": "vision",
    }
    assert {name: file[name] for name in expected} == expected
    assert file["file"]["meta"] == {
        "name": "image.png",
        "size": len(PNG),
        "content_type": "image/png",
    }
    assert turn(qwen)["content"] == "What is it?"


def test_a_file_has_the_fields_of_the_web_client_s_captures(
    url: URL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    """W2-33, and the rest as the capture of an upload in March 2026 has it."""
    answer_of(http.post(url(), json=ask(picture())))
    [file] = turn(qwen)["files"]
    fields = (
        "type file id url name collection_name progress status greenNet size error itemId "
        "file_type showType file_class uploadTaskId"
    )
    assert " ".join(file) == fields
    assert " ".join(file["file"]) == "created_at data filename hash id meta update_at"


def test_the_first_generation_s_picture_is_its_address(
    url: URL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    answer_of(http.post(url(**V1), json=ask(picture())))
    assert paths(qwen) == [TICKET_1, "PUT", CHAT_1]
    [stored] = qwen.storage.stored
    assert stored.data == PNG
    text, image = turn(qwen)["content"]
    assert text["text"] == "What is it?"
    assert image.pop("image").partition("?")[0].endswith(f"/{stored.id}_image.png")
    assert image == {"type": "image", "chat_type": "artifacts"}


def test_the_early_way_is_a_form_and_an_id(
    url: URL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    answer_of(http.post(url(**V1, uploads="multipart"), json=ask(picture())))
    assert paths(qwen) == ["/api/v1/files/", CHAT_1]
    [stored] = qwen.storage.stored
    assert (stored.data, stored.media_type, stored.name) == (PNG, "image/png", "image.png")
    image = turn(qwen)["content"][1]
    assert image == {"type": "image", "image": stored.id, "chat_type": "artifacts"}


def test_sound_and_documents_go_along_and_documents_are_parsed_first(
    url: URL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    qwen.storage.parse_takes = 2
    answer_of(http.post(url(), json=ask(sound(), document(name="猫 notes.md"))))
    assert sorted(paths(qwen)) == sorted(
        [TICKET_2, TICKET_2, "PUT", "PUT", PARSE, STATE, STATE, STATE, NEW, CHAT_2]
    )
    assert paths(qwen)[-2:] == [NEW, CHAT_2]
    heard, read = turn(qwen)["files"]
    assert (heard["type"], heard["showType"], heard["file_class"]) == ("audio", "audio", "audio")
    assert (heard["file_type"], heard["name"]) == ("audio/wav", "audio.wav")
    assert (read["type"], read["showType"], read["file_class"]) == ("file", "file", "document")
    assert (read["file_type"], read["name"]) == ("text/markdown", "猫 notes.md")
    assert read["file"]["meta"]["parse_meta"] == {"parse_status": "success"}
    by_type = {file.filetype: file for file in qwen.storage.stored}
    assert {name: file.data for name, file in by_type.items()} == {
        "audio": b"sound",
        "file": b"words",
    }


@pytest.mark.parametrize("options", [{}, V1], ids=["v2", "v1"])
def test_a_link_stays_one_and_nothing_is_uploaded(
    url: URL, http: httpx.Client, qwen: SimulatedQwen, options: dict[str, str]
) -> None:
    answer_of(http.post(url(**options), json=ask(LINK)))
    assert not qwen.storage.files
    told = turn(qwen)
    link = told["content"][1]["image"] if options else told["files"][0]["url"]
    assert link == LINK["image_url"]["url"]  # type: ignore[index]


@pytest.mark.parametrize(
    "options", [{}, V1, {**V1, "uploads": "multipart"}], ids=["v2", "v1", "form"]
)
def test_several_pictures_of_several_turns_keep_their_order(
    url: URL, http: httpx.Client, qwen: SimulatedQwen, options: dict[str, str]
) -> None:
    messages = [
        {"role": "user", "content": [picture(PNG + b"1"), LINK, picture(PNG + b"2")]},
        {"role": "assistant", "content": "Cats."},
        {"role": "user", "content": [picture(PNG + b"3"), {"type": "text", "text": "And?"}]},
    ]
    answer_of(http.post(url(**options), json={"model": MODEL, "messages": messages}))
    sent = next(r.body for r in qwen.requests if r.is_chat)["messages"]
    if options:
        parts = [part for message in sent for part in message["content"] if type(part) is dict]
        named = [part["image"] for part in parts if part["type"] == "image"]
    else:
        named = [file["url"] for file in sent[0]["files"]]
    by_end = {file.data[-1:]: file.id for file in qwen.storage.stored if file.data}
    for id, name in zip((by_end[b"1"], "a.png", by_end[b"2"], by_end[b"3"]), named, strict=True):
        assert id in name


def test_the_put_has_no_credential_of_the_upstream(
    url: URL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    own = {"cookie": "canary-cookie", "x-own": "canary-header"}
    answer_of(http.post(url(headers=own), json=ask(picture())))
    ticket, put = qwen.requests[0], qwen.requests[1]
    assert ticket.headers["cookie"] == "canary-cookie"
    assert ticket.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    told = str(dict(put.headers))
    assert put.method == "PUT"
    assert "canary" not in told
    assert UPSTREAM_KEY not in told


@pytest.mark.parametrize("size", [300_000, 3_000_000])
def test_a_large_picture_comes_whole(
    url: URL, http: httpx.Client, qwen: SimulatedQwen, size: int
) -> None:
    data = PNG + b"x" * size
    answer_of(http.post(url(), json=ask(picture(data))))
    assert qwen.storage.stored[0].data == data


# Once.


@pytest.mark.parametrize("options", [{}, {**V1, "uploads": "multipart"}], ids=["ticket", "form"])
def test_what_is_known_is_not_uploaded_again(
    url: URL, http: httpx.Client, qwen: SimulatedQwen, options: dict[str, str]
) -> None:
    address = url(**options)
    for _ in range(3):
        answer_of(http.post(address, json=ask(picture())))
    assert len(qwen.storage.files) == 1
    answer_of(http.post(address, json=ask(picture(PNG + b"x"))))
    assert len(qwen.storage.files) == 2


def test_the_same_bytes_as_another_kind_are_another_file(
    url: URL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    address = url()
    for part in sound(b"same"), document(b"same"), document(b"same", "a.md"), sound(b"same"):
        answer_of(http.post(address, json=ask(part)))
    assert [file.filetype for file in qwen.storage.stored] == ["audio", "file", "file"]


@pytest.mark.parametrize(
    ("holds", "margin", "uploaded"), [(300, 60.0, 1), (60, 60.0, 2), (10, 9.9, 2)]
)
def test_an_upload_is_known_only_as_long_as_its_address_holds(
    url: URL,
    http: httpx.Client,
    qwen: SimulatedQwen,
    monkeypatch: pytest.MonkeyPatch,
    holds: int,
    margin: float,
    uploaded: int,
) -> None:
    qwen.storage.url_holds = holds
    monkeypatch.setattr(uploads, "MARGIN", margin)
    address = url()
    answer_of(http.post(address, json=ask(picture())))
    time.sleep(0.15 if margin == 9.9 else 0)
    answer_of(http.post(address, json=ask(picture())))
    assert len(qwen.storage.files) == uploaded


def test_an_upload_is_not_known_for_ever(
    url: URL, http: httpx.Client, qwen: SimulatedQwen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "KNOWN_SECONDS", 0.0)
    address = url()
    for _ in range(2):
        answer_of(http.post(address, json=ask(picture())))
    assert len(qwen.storage.files) == 2


def test_the_oldest_of_too_many_is_forgotten(
    url: URL, http: httpx.Client, qwen: SimulatedQwen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MOST_KNOWN", 2)
    address = url()
    for end in b"1", b"2", b"3", b"3", b"2", b"1":
        answer_of(http.post(address, json=ask(picture(PNG + end))))
    ends = [file.data[-1:] for file in qwen.storage.stored if file.data]
    assert ends == [b"1", b"2", b"3", b"1"]


def test_identical_files_of_one_request_are_uploaded_once(
    url: URL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    answer_of(http.post(url(), json=ask(picture(), picture(), picture())))
    assert len(qwen.storage.files) == 1
    ids = {file["id"] for file in turn(qwen)["files"]}
    assert ids == {*qwen.storage.files}
    assert len(turn(qwen)["files"]) == 3


def test_identical_files_of_several_clients_are_uploaded_once(
    url: URL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    qwen.fail(Fault.stall(None, 0.5), upload="put")
    address = url()
    with ThreadPoolExecutor(4) as pool:
        for response in pool.map(lambda _: http.post(address, json=ask(picture())), range(4)):
            answer_of(response)
    assert paths(qwen).count(TICKET_2) == 1
    assert paths(qwen).count(CHAT_2) == 4


def test_a_failure_is_not_remembered(url: URL, http: httpx.Client, qwen: SimulatedQwen) -> None:
    address = url()
    qwen.fail(Fault.status(503), upload="put")
    error_of(http.post(address, json=ask(picture())), 500)
    answer_of(http.post(address, json=ask(picture())))
    assert paths(qwen) == [TICKET_2, "PUT", TICKET_2, "PUT", NEW, CHAT_2]


# At the same time.


def overlapping(qwen: SimulatedQwen) -> int:
    """Return how many files were promised before the first was put."""
    return paths(qwen).index("PUT")


def test_several_files_are_under_way_at_once_and_not_all(
    url: URL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    qwen.fail(Fault.stall(None, 0.3), upload="ticket", times=uploads.MOST_AT_ONCE)
    parts = [picture(PNG + bytes([n])) for n in range(5)]
    began = time.monotonic()
    answer_of(http.post(url(), json=ask(*parts)))
    assert time.monotonic() - began < 0.8
    assert overlapping(qwen) == uploads.MOST_AT_ONCE
    assert len(qwen.storage.stored) == 5


def test_the_first_failure_ends_the_others(
    url: URL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    qwen.fail(Fault.stall(None, 60), Fault.status(503), upload="put")
    response = http.post(url(), json=ask(picture(PNG + b"1"), picture(PNG + b"2")))
    assert "HTTP 503" in error_of(response, 500)["message"]
    qwen.wait_for(lambda qwen: qwen.open == 0)
    assert qwen.hung_up == 1
    assert NEW not in paths(qwen)


# A client that leaves.


STEPS = ["ticket", "put", "parse", "parse_status"]


@pytest.mark.parametrize("step", STEPS)
def test_a_client_that_leaves_ends_the_upload(
    url: URL, http: httpx.Client, qwen: SimulatedQwen, step: Any
) -> None:
    qwen.fail(Fault.stall(None, 60), upload=step)
    with pytest.raises(httpx.ReadTimeout):
        http.post(url(), json=ask(document()), timeout=0.4)
    qwen.wait_for(lambda qwen: qwen.hung_up == 1 and qwen.open == 0)
    assert NEW not in paths(qwen)


def test_a_client_that_leaves_ends_nobody_else_s_upload(
    url: URL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    qwen.fail(Fault.stall(None, 0.8), upload="put")
    address = url()
    with ThreadPoolExecutor(1) as pool:
        # One begins the upload, and another one waits for it when that goes.
        waiting = pool.submit(_later, 0.2, lambda: http.post(address, json=ask(picture())))
        with pytest.raises(httpx.ReadTimeout):
            http.post(address, json=ask(picture()), timeout=0.4)
        answer_of(waiting.result())
    assert paths(qwen).count(TICKET_2) == 1
    assert qwen.hung_up == 0


def _later(seconds: float, call: Callable[[], httpx.Response]) -> httpx.Response:
    time.sleep(seconds)
    return call()


# What goes wrong.

CUT = Fault("cut", lambda _: Fault.truncate(5).change(whole_answer(b"0123456789")))

ERRORS: list[tuple[Any, Fault, int, str, str]] = [
    ("ticket", Fault.failure("Unauthorized", "no"), 500, "upstream_authentication", ""),
    ("ticket", Fault.failure("RateLimited", "no", num=3), 429, "RateLimited", ""),
    ("ticket", Fault.block_page(), 500, "upstream_blocked", ""),
    ("ticket", Fault.status(500), 500, "upstream_failed", ""),
    ("ticket", Fault.truncate(20), 500, "upstream_truncated", ""),
    ("ticket", Fault.bare_json({"success": True, "data": {}}), 500, "upstream_invalid_response",
     "'region'"),
    ("put", Fault.status(403, b"<Error><Code>AccessDenied</Code></Error>"), 500,
     "upstream_upload_failed", "(HTTP 403, AccessDenied)"),
    ("put", Fault.status(400, b"<Code>EntityTooLarge</Code>"), 400, "upstream_refused",
     "this large"),
    ("put", Fault.status(302, headers={"location": "http://127.0.0.1:9/"}), 500,
     "upstream_upload_failed", "elsewhere"),
    ("put", Fault.status(500), 500, "upstream_upload_failed", "(HTTP 500)"),
    ("put", CUT, 500, "upstream_upload_failed", ""),
    ("parse", Fault.failure("Bad_Request", "no"), 400, "Bad_Request", ""),
    ("parse_status", Fault.block_page(), 500, "upstream_blocked", ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("step", "fault", "status", "code", "says"),
    ERRORS,
    ids=[f"{step}-{fault.name}" for step, fault, *_ in ERRORS],
)
def test_an_upload_that_fails_is_the_request_s_error(
    url: URL,
    http: httpx.Client,
    qwen: SimulatedQwen,
    step: Any,
    fault: Fault,
    status: int,
    code: str,
    says: str,
) -> None:
    qwen.fail(fault, upload=step)
    error = error_of(http.post(url(), json=ask(document())), status)
    assert error["code"] == code
    assert error["message"].startswith("a file could not be uploaded: ")
    assert says in error["message"]
    assert NEW not in paths(qwen)


def test_a_form_that_fails_is_the_request_s_error(
    url: URL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    qwen.fail(Fault.refusal(401), upload="multipart")
    response = http.post(url(**V1, uploads="multipart"), json=ask(picture()))
    assert error_of(response, 500)["code"] == "upstream_authentication"
    assert CHAT_1 not in paths(qwen)


def test_a_document_that_the_upstream_cannot_read_is_refused(
    url: URL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    qwen.storage.unreadable = True
    error = error_of(http.post(url(), json=ask(document())), 400)
    assert "cannot read this document" in error["message"]


@pytest.mark.parametrize("step", STEPS)
def test_the_first_timeout_holds_for_uploads_too(
    url: URL, http: httpx.Client, qwen: SimulatedQwen, step: Any
) -> None:
    qwen.fail(Fault.stall(None, 60), upload=step)
    error = error_of(http.post(url(first_timeout=0.4), json=ask(document())), 500)
    assert error["code"] == "upstream_first_timeout"
    qwen.wait_for(lambda qwen: qwen.open == 0)
    assert NEW not in paths(qwen)


@pytest.mark.parametrize("options", [{}, V1], ids=["v2", "v1"])
def test_the_first_timeout_holds_for_uploads_and_chat_together(
    url: URL, http: httpx.Client, qwen: SimulatedQwen, options: dict[str, str]
) -> None:
    qwen.fail(Fault.stall(None, 0.4), upload="ticket")
    qwen.fail(Fault.stall(None, 0.4))
    response = http.post(url(first_timeout=0.6, **options), json=ask(picture()))
    assert error_of(response, 500)["code"] == "upstream_first_timeout"
    assert (CHAT_1 if options else CHAT_2) in paths(qwen)


def test_who_waits_for_another_s_upload_has_its_timeout_too(
    url: URL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    qwen.fail(Fault.stall(None, 60), upload="put")
    address = url(first_timeout=0.5)
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(_later, 0.2, lambda: http.post(address, json=ask(picture())))
        for response in http.post(address, json=ask(picture())), later.result():
            assert error_of(response, 500)["code"] == "upstream_first_timeout"
    assert paths(qwen) == [TICKET_2, "PUT"]


def test_a_document_that_is_never_parsed_is_waited_for_so_long(
    url: URL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    qwen.storage.parse_takes = 10_000
    error = error_of(http.post(url(first_timeout=0.5), json=ask(document())), 500)
    assert error["code"] == "upstream_first_timeout"
    assert 2 <= paths(qwen).count(STATE) <= 4


# Of several upstreams.


class Several(Protocol):
    def __call__(self, *upstreams: dict[str, Any], **settings: Any) -> str: ...


@pytest.fixture
def several(gateway_url: GatewayURL, qwen_url: str) -> Several:
    """Returns the address of a gateway with upstreams `a`, `b`..., all at the simulated one."""

    def several(*upstreams: dict[str, Any], **settings: Any) -> str:
        usual = {"base_url": qwen_url, "api_key": UPSTREAM_KEY, "models": [MODEL]}
        named = {name: {**usual, **its} for name, its in zip("abc", upstreams, strict=False)}
        gateway = Gateway(Settings(upstreams=named, **settings), authenticate=anonymous)
        return gateway_url(gateway) + CHAT

    return several


def test_a_file_that_one_upstream_does_not_take_goes_to_the_next(
    several: Several, http: httpx.Client, qwen: SimulatedQwen, qwen_url: str
) -> None:
    address = several(
        {"dialect": "qwen-web-v1"}, {"dialect": "qwen-web-v2"}, upload_hosts=(qwen_url,)
    )
    response = http.post(address, json=ask(document()))
    answer_of(response)
    assert response.headers["x-qwen-asgi-upstream"] == "b"
    assert response.headers["x-qwen-asgi-attempts"] == "1"
    [stored] = qwen.storage.stored
    assert stored.filetype == "file"


def test_an_upload_that_fails_counts_as_an_attempt(
    several: Several, http: httpx.Client, qwen: SimulatedQwen, qwen_url: str
) -> None:
    v2 = {"dialect": "qwen-web-v2"}
    address = several(v2, {**v2, "upload_hosts": (qwen_url,)})
    response = http.post(address, json=ask(picture()))
    answer_of(response)
    assert response.headers["x-qwen-asgi-upstream"] == "b"
    assert response.headers["x-qwen-asgi-attempts"] == "2"


def test_the_time_for_all_attempts_holds_for_uploads_too(
    several: Several, http: httpx.Client, qwen: SimulatedQwen, qwen_url: str
) -> None:
    qwen.fail(Fault.stall(None, 60), upload="put")
    address = several({"dialect": "qwen-web-v2"}, upload_hosts=(qwen_url,), total_timeout=0.4)
    error = error_of(http.post(address, json=ask(picture())), 500)
    assert error["code"] == "upstream_total_timeout"


# Where files go.


def test_a_file_is_put_nowhere_but_where_the_settings_say(
    url: URL,
    http: httpx.Client,
    qwen: SimulatedQwen,
    qwen_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = qwen_url.removeprefix("http://")
    for hosts in ("*.aliyuncs.com",), ("http://127.0.0.1:9",):
        error = error_of(http.post(url(upload_hosts=hosts), json=ask(picture())), 500)
        assert error["code"] == "upstream_upload_failed"
        assert "QWEN_UPLOAD_HOSTS" in error["message"]
        assert place not in error["message"]
    assert f"keeps its files at {place} (bucket simulated-bucket)" in caplog.text
    assert paths(qwen) == [TICKET_2, TICKET_2]


# What is refused before anything is sent.


REFUSED: list[tuple[dict[str, Any], list[Any], dict[str, Any], str]] = [
    (V1, [document()], {}, "messages[0].content[1].file"),
    (V1, [LINK, sound()], {}, "messages[0].content[2].input_audio"),
    ({}, [{"type": "file", "file": {"file_id": "file-1"}}], {},
     "messages[0].content[1].file.file_id"),
    ({}, [picture(type="image/tiff")], {}, "messages[0].content[1].image_url"),
    ({}, [picture(b"%PDF")], {}, "messages[0].content[1].image_url"),
    ({}, [picture()] * 6, {}, "messages"),
    ({}, [*[LINK] * 3, *[picture()] * 3], {}, "messages"),
    ({}, [sound(), sound()], {}, "messages[0].content[2].input_audio"),
    ({}, [picture()], {"chat_type": "t2v"}, "chat_type"),
    ({}, [picture()], {"logprobs": True}, "logprobs"),
    ({"uploads": "off"}, [picture()], {}, "messages[0].content[1].image_url"),
    ({"uploads": "off"}, [document()], {}, "messages[0].content[1].type"),
    ({**V1, "uploads": "off"}, [picture()], {}, "messages[0].content[1].image_url"),
    ({**V1, "uploads": "off"}, [sound()], {}, "messages[0].content[1].type"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "parts", "fields", "param"), REFUSED)
def test_what_is_refused_is_refused_before_anything_is_sent(
    url: URL,
    http: httpx.Client,
    qwen: SimulatedQwen,
    options: dict[str, Any],
    parts: list[Any],
    fields: dict[str, Any],
    param: str,
) -> None:
    error = error_of(http.post(url(**options), json=ask(*parts, **fields)), 400)
    assert error["param"] == param
    assert not qwen.requests


def test_a_file_that_is_too_large_is_refused(
    url: URL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    data = PNG + bytes(_inline_files.MOST_BYTES)
    error = error_of(http.post(url(), json=ask(picture(data))), 400)
    assert error["param"] == "messages[0].content[1].image_url"
    assert "at most 20971520 are taken" in error["message"]
    assert not qwen.requests


# Others are served meanwhile.


def test_decoding_a_large_file_does_not_stop_the_loop() -> None:
    """Each piece of it is short, and between two of them the loop has its turn."""
    from qwen_asgi.chat import Part

    text = "data:image/png;base64," + b64(PNG + bytes(15_000_000))
    part = Part("image_url", "", {"image_url": {"url": text}})
    kinds: Any = ("image",)
    began = time.perf_counter()
    _inline_files.read_file(part, "here", kinds, "u")
    alone = time.perf_counter() - began

    async def longest_gap() -> float:
        task = asyncio.create_task(
            asyncio.to_thread(_inline_files.read_file, part, "here", kinds, "u")
        )
        longest, last = 0.0, time.perf_counter()
        while not task.done():
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        return longest

    gaps = [asyncio.run(longest_gap()) for _ in range(5)]
    assert min(gaps) < max(alone / 2, 0.01)


def test_a_large_file_is_decoded_in_another_thread_and_a_small_one_here(
    url: URL, http: httpx.Client, qwen: SimulatedQwen, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    read = _inline_files.read_file

    def noted(*arguments: Any) -> Any:
        threads.append(threading.get_ident())
        return read(*arguments)

    monkeypatch.setattr(uploads, "read_file", noted)
    address = url()
    for size in 100, 400_000, 100:
        answer_of(http.post(address, json=ask(picture(PNG + b"x" * size))))
    small, large, again = threads
    assert small == again != large


def test_a_large_file_is_decoded_once_for_several_answers(
    url: URL, http: httpx.Client, qwen: SimulatedQwen, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    read = _inline_files.read_file

    def noted(part: Any, where: str, *arguments: Any) -> Any:
        decoded.append(where)
        time.sleep(0.05)
        return read(part, where, *arguments)

    monkeypatch.setattr(uploads, "read_file", noted)
    answer = answer_of(http.post(url(), json=ask(picture(PNG + bytes(400_000)), n=4)))
    assert len(answer["choices"]) == 4
    assert len(decoded) == 1
    assert len(qwen.storage.files) == 1


# Secrets.


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """All that any logger writes, httpx's and httpcore's among them."""
    sink = io.StringIO()
    handler = logging.StreamHandler(sink)
    handler.addFilter(lambda record: not record.name.startswith("httpcore"))
    handler.setFormatter(logging.Formatter("%(name)s %(message)s %(args)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield sink
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def given_client(gateway_loop: Callable[[Any], Any]) -> Iterator[httpx.AsyncClient]:
    """A client that is closed after the gateway which it is given to; so it stands first."""
    client = httpx.AsyncClient()
    yield client
    gateway_loop(client.aclose())


def secrets_of(file: StoredFile) -> list[str]:
    return [file.key_id, file.key_secret, file.token]


ECHOES = {
    "none": None,
    "403": lambda file: Fault.status(403, f"<Error><Code>{file.token}</Code>".encode()),
    "500": lambda file: Fault.status(500, " ".join(secrets_of(file)).encode(), "text/plain"),
    "302": lambda file: Fault.status(302, headers={"location": f"http://h/?{file.token}"}),
    "garbage": lambda file: Fault.garbage(),
}


@pytest.mark.parametrize("lane", ["direct", "httpx"])
@pytest.mark.parametrize("echo", ECHOES)
def test_a_ticket_s_secrets_come_out_nowhere(
    given_client: httpx.AsyncClient,
    url: URL,
    http: httpx.Client,
    qwen: SimulatedQwen,
    log: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
    echo: str,
    lane: str,
) -> None:
    """The storage repeats them in what it says; and the signed address is a secret too."""
    given = qwen.storage.put
    fault = ECHOES[echo]

    def put(path: str, headers: Any, raw: bytes, now: float | None = None) -> Any:
        answer = given(path, headers, raw, now)
        [file] = qwen.storage.files.values()
        return fault(file).change(answer) if fault else answer

    monkeypatch.setattr(qwen.storage, "put", put)
    client = {"http_client": given_client} if lane == "httpx" else {}
    response = http.post(url(log_bodies=True, **client), json=ask(picture()))
    assert (response.status_code == 200) is (echo in ("none", "garbage"))
    [file] = qwen.storage.files.values()
    signature = qwen.requests[1].headers["authorization"].rpartition("Signature=")[2]
    assert len(signature) == 64
    told = f"{response.headers!r} {response.text} {log.getvalue()}"
    assert "chat req-" in told
    for secret in (*secrets_of(file), signature, "x-oss-signature", "OSS4-HMAC"):
        assert secret
        assert secret not in told


@pytest.mark.parametrize("options", [{}, V1], ids=["v2", "v1"])
def test_a_signed_address_that_the_upstream_repeats_comes_out_nowhere(
    url: URL, http: httpx.Client, qwen: SimulatedQwen, log: io.StringIO, options: dict[str, str]
) -> None:
    def repeated(answer: Any) -> Any:
        address = turn(qwen)["content"][1]["image"] if options else turn(qwen)["files"][0]["url"]
        assert "x-oss-signature" in address
        return Fault.failure("Bad_Request", f"cannot fetch {address} now").change(answer)

    qwen.fail(Fault("repeats the address", repeated))
    error = error_of(http.post(url(log_bodies=True, **options), json=ask(picture())), 400)
    assert "cannot fetch (address) now" in error["message"]
    assert "x-oss-signature" not in f"{error} {log.getvalue()}"


def test_a_file_of_a_chat_that_was_refused_is_brought_anew(
    url: URL, http: httpx.Client, qwen: SimulatedQwen
) -> None:
    """The upstream may have lost it."""
    address = url()
    assert http.post(address, json=ask(picture())).status_code == 200
    qwen.fail(Fault.status(400, b'{"detail": "The file is not ready."}'))
    assert http.post(address, json=ask(picture())).status_code == 400
    assert paths(qwen).count("PUT") == 1
    assert http.post(address, json=ask(picture())).status_code == 200
    assert paths(qwen).count("PUT") == 2
    assert http.post(address, json=ask(picture())).status_code == 200
    assert paths(qwen).count("PUT") == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
    ],
    ids=["structured", "tools"],
)
def test_a_wrong_file_is_named_as_the_client_has_it(
    url: URL, http: httpx.Client, fields: dict[str, Any]
) -> None:
    """Though the gateway has put a turn of its own before the client's."""
    wrong = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    error = error_of(http.post(url(), json=ask(wrong, **fields)), 400)
    assert error["param"].startswith("messages[0].content[")
