"""The calls that bring a file to a web chat, and their recorded answers."""

from __future__ import annotations

import json
from email import message_from_bytes
from email.policy import HTTP
from typing import Any

import pytest

from qwen_asgi.errors import (
    UpstreamAuthenticationFailed,
    UpstreamBlocked,
    UpstreamError,
    UpstreamInvalidResponse,
    UpstreamRefused,
)
from qwen_asgi.upstreams._file_types import Kind
from qwen_asgi.upstreams._held_files import InlineFile
from qwen_asgi.upstreams._upload_calls import UploadCalls
from qwen_asgi.upstreams._words import Secrets
from qwen_asgi.upstreams.qwen_web_v1 import QwenWebV1
from qwen_asgi.upstreams.qwen_web_v2 import QwenWebV2
from tests.wire import sample

V1 = QwenWebV1("https://chat", "canary-key").uploads
V2 = QwenWebV2("https://chat", "canary-key").uploads
ALL_BYTES = bytes(range(256)) + b"\r\n--\r\n"


def file(kind: Kind = "image", name: str = "cat.png", type: str = "image/png") -> InlineFile:
    return InlineFile(kind, type, name, ALL_BYTES, b"")


def test_the_early_call_is_a_form_with_the_file_as_it_is() -> None:
    call = V1.form(file(name='a "b" 猫.png'))
    assert (call.method, call.url) == ("POST", "https://chat/api/v1/files/")
    assert call.headers["authorization"] == "Bearer canary-key"
    head = f"content-type: {call.headers['content-type']}\r\n\r\n".encode()
    [part] = message_from_bytes(head + call.body, policy=HTTP).iter_parts()
    assert part.get_param("name", header="content-disposition") == "file"
    assert part.get_content_type() == "image/png"
    assert part.get_payload(decode=True) == ALL_BYTES
    assert 'filename="a %22b%22 猫.png"'.encode() in call.body


@pytest.mark.parametrize(
    ("kind", "filetype"), [("image", "image"), ("audio", "audio"), ("document", "file")]
)
def test_a_ticket_is_asked_for_with_the_file_s_name_and_size(kind: Kind, filetype: str) -> None:
    for calls, generation in (V1, 1), (V2, 2):
        call = calls.ticket(file(kind))
        assert (call.method, call.url) == (
            "POST",
            f"https://chat/api/v{generation}/files/getstsToken",
        )
        assert call.headers["content-type"] == "application/json"
        assert call.headers["authorization"] == "Bearer canary-key"
        assert json.loads(call.body) == {
            "filename": "cat.png",
            "filesize": len(ALL_BYTES),
            "filetype": filetype,
        }


def test_the_recorded_answers() -> None:
    recorded = sample("web1-upload.json")
    assert V1.read_form(recorded.data).id == recorded.expect["file_id"]
    for calls, name, end in (V1, "web1-sts.json", "cat.png"), (V2, "web2-sts.json", "notes.pdf"):
        recorded = sample(name)
        ticket = calls.read_ticket(recorded.data)
        id = ticket.file.id
        assert id == recorded.expect["file_id"]
        assert ticket.key == f"00000000-0000-4000-8000-000000000001/{id}_{end}"
        assert ticket.file.url.partition("?")[0] == f"https://bucket.example.invalid/{ticket.key}"
        # The signature's region is the storage's without `oss-`.
        assert (ticket.bucket, ticket.region) == ("example-bucket", "ap-southeast-1")
        assert ticket.endpoint == "oss-accelerate.example.invalid"
        assert (ticket.key_id, ticket.key_secret, ticket.token) == (
            "STS.EXAMPLE",
            "EXAMPLE",
            "EXAMPLE",
        )


def changed(**fields: Any) -> bytes:
    document = json.loads(sample("web2-sts.json").data)
    document["data"] |= fields
    return json.dumps(document).encode()


def test_a_ticket_without_an_endpoint_means_its_region_s() -> None:
    assert V2.read_ticket(changed(endpoint=None)).endpoint == "oss-ap-southeast-1.aliyuncs.com"


WRONG: list[tuple[str, Any]] = [
    *((name, None) for name in ("access_key_id", "access_key_secret", "security_token")),
    *((name, "") for name in ("file_url", "file_path", "file_id", "bucketname", "region")),
    ("security_token", "a\r\nx: y"),
    ("access_key_id", "a b"),
    ("file_url", "javascript:x"),
    ("file_path", "a\nb"),
    ("file_path", "../other/a.png"),
    ("file_path", "a/./b"),
    ("bucketname", "a.b/c?d"),
    ("bucketname", "evil.example/"),
    ("endpoint", "user@evil.example"),
    ("endpoint", "evil.example/path"),
    ("endpoint", "evil.example#"),
    ("endpoint", 5),
    ("region", "../x"),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_ticket_that_is_not_right_is_not_used(field: str, value: Any) -> None:
    with pytest.raises(UpstreamInvalidResponse) as raised:
        V2.read_ticket(changed(**{field: value}))
    assert field in str(raised.value)
    assert "EXAMPLE" not in str(raised.value)


def test_a_ticket_that_repeats_the_key_where_it_would_show_is_not_used() -> None:
    calls = UploadCalls("https://chat", {}, Secrets("canary-key"), generation=2)
    with pytest.raises(UpstreamInvalidResponse) as raised:
        calls.read_ticket(changed(endpoint="canary-key.example"))
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (sample("web2-unauthorized-200.json").data, UpstreamAuthenticationFailed),
        (b"<html>", UpstreamBlocked),
        (b"", UpstreamInvalidResponse),
        (b"{}", UpstreamInvalidResponse),
        (b'{"id": 5}', UpstreamInvalidResponse),
    ],
)
def test_what_is_no_such_answer_is_an_error(body: bytes, kind: type[UpstreamError]) -> None:
    for read in V1.read_form, V1.read_ticket, V2.read_ticket:
        with pytest.raises(kind):
            read(body)


def test_a_document_is_parsed_and_asked_after() -> None:
    call, state = V2.parse("an-id"), V2.parse_state("an-id")
    assert call.url == "https://chat/api/v2/files/parse"
    assert json.loads(call.body) == {"file_id": "an-id"}
    assert state.url == "https://chat/api/v2/files/parse/status"
    assert json.loads(state.body) == {"file_id_list": ["an-id"]}


@pytest.mark.parametrize(
    ("data", "is_parsed"),
    [
        ([{"file_id": "x", "status": "success"}], True),
        ({"status": "success"}, True),
        ([{"status": "pending"}], False),
        ([{"status": "parsing"}], False),
        ([], False),
        (None, False),
    ],
)
def test_a_document_s_state(data: Any, is_parsed: bool) -> None:
    body = json.dumps({"success": True, "data": data}).encode()
    assert V2.read_parse_state(body) is is_parsed


def test_a_document_that_cannot_be_parsed_is_refused() -> None:
    with pytest.raises(UpstreamRefused):
        V2.read_parse_state(b'{"success": true, "data": [{"status": "failed"}]}')
    for read in V2.read_parse, V2.read_parse_state:
        with pytest.raises(UpstreamAuthenticationFailed):
            read(sample("web2-unauthorized-200.json").data)
