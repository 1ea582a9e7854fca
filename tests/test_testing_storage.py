"""The simulated storage: its answers have the recorded ones' fields, and it takes no wrong call."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from qwen_asgi.testing import Fault, SimulatedQwen, serve
from qwen_asgi.testing.storage import BUCKET, MOST_FILES, Storage, signature
from tests.wire import sample

V1, V2 = "/api/v1/files/getstsToken", "/api/v2/files/getstsToken"
ASKED = {"filename": "猫 a.png", "filesize": 4, "filetype": "image"}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[SimulatedQwen, httpx.Client]]:
    qwen = SimulatedQwen()
    with serve(qwen) as url, httpx.Client(base_url=url, trust_env=False) as client:
        yield qwen, client


@pytest.fixture
def client(served: tuple[SimulatedQwen, httpx.Client]) -> httpx.Client:
    return served[1]


@pytest.fixture
def qwen(served: tuple[SimulatedQwen, httpx.Client]) -> SimulatedQwen:
    qwen = served[0]
    qwen.wait_for(lambda qwen: qwen.open == 0)
    qwen.__init__()  # type: ignore[misc]
    return qwen


def post(client: httpx.Client, path: str, **fields: Any) -> Any:
    return client.post(path, json=fields, headers={"authorization": "Bearer key"}).json()


def signed(ticket: dict[str, str], **changes: str) -> dict[str, str]:
    """Return the headers of the right call, or of one that is wrong in the changed one."""
    headers = {
        "content-type": "image/png",
        "x-oss-content-sha256": "UNSIGNED-PAYLOAD",
        "x-oss-date": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
        "x-oss-security-token": ticket["security_token"],
        **{name: value for name, value in changes.items() if name.startswith("x-oss-")},
    }
    region = changes.get("region", "ap-southeast-1")
    secret = changes.get("secret", ticket["access_key_secret"])
    found = signature(secret, f"/{BUCKET}/{ticket['file_path']}", headers, region)
    scope = f"{headers['x-oss-date'][:8]}/{region}/oss/aliyun_v4_request"
    id = changes.get("id", ticket["access_key_id"])
    headers["authorization"] = f"OSS4-HMAC-SHA256 Credential={id}/{scope},Signature={found}"
    return headers


def put(client: httpx.Client, ticket: dict[str, str], headers: dict[str, str]) -> httpx.Response:
    return client.put(f"/{BUCKET}/{ticket['file_path']}", content=b"data", headers=headers)


@pytest.mark.parametrize("path", [V1, V2])
def test_a_ticket_has_the_recorded_fields(
    client: httpx.Client, qwen: SimulatedQwen, path: str
) -> None:
    found, recorded = (
        post(client, path, **ASKED),
        json.loads(sample("web1-sts.json" if path == V1 else "web2-sts.json").data),
    )
    assert found.keys() == recorded.keys()
    if path == V2:
        found, recorded = found["data"], recorded["data"]
    assert found.keys() == recorded.keys()
    assert {type(value) for value in found.values()} == {str}
    assert found["file_path"].endswith(f"{found['file_id']}_猫 a.png")


def test_a_file_is_stored_that_is_put_with_its_ticket(
    client: httpx.Client, qwen: SimulatedQwen
) -> None:
    ticket = post(client, V1, **ASKED)
    assert put(client, ticket, signed(ticket)).status_code == 200
    [file] = qwen.storage.stored
    assert (file.data, file.media_type, file.name) == (b"data", "image/png", "猫 a.png")


WRONG: list[tuple[dict[str, str], str]] = [
    ({"secret": "x"}, "SignatureDoesNotMatch"),
    ({"region": "oss-ap-southeast-1"}, "SignatureDoesNotMatch"),
    ({"id": "STS.other"}, "InvalidAccessKeyId"),
    ({"x-oss-security-token": "x"}, "InvalidSecurityToken"),
    ({"x-oss-date": "20200101T000000Z"}, "RequestTimeTooSkewed"),
    ({"x-oss-date": "yesterday"}, "AccessDenied"),
]


@pytest.mark.parametrize(("changes", "code"), WRONG)
def test_a_file_is_not_stored_that_is_signed_wrongly(
    client: httpx.Client, qwen: SimulatedQwen, changes: dict[str, str], code: str
) -> None:
    ticket = post(client, V1, **ASKED)
    refused = put(client, ticket, signed(ticket, **changes))
    assert refused.status_code == 403
    assert f"<Code>{code}</Code>" in refused.text
    assert not qwen.storage.stored


def test_what_was_signed_cannot_be_changed(client: httpx.Client, qwen: SimulatedQwen) -> None:
    ticket, other = post(client, V1, **ASKED), post(client, V1, **ASKED)
    for headers in (
        {**signed(ticket), "content-type": "text/plain"},
        {**signed(ticket), "x-oss-acl": "public"},
        {**signed(ticket), "authorization": "Bearer key"},
    ):
        assert put(client, ticket, headers).status_code == 403
    assert put(client, other, signed(ticket)).status_code == 403
    assert not qwen.storage.stored


def test_a_form_is_read_to_the_byte(client: httpx.Client, qwen: SimulatedQwen) -> None:
    data = bytes(range(256)) + b"\r\n--\r\n\n\r"
    headers = {"authorization": "Bearer key"}
    files = {"file": ("猫.png", data, "image/png")}
    made = client.post("/api/v1/files/", files=files, headers=headers).json()
    assert made.keys() == json.loads(sample("web1-upload.json").data).keys()
    [file] = qwen.storage.stored
    assert (file.id, file.data, file.media_type) == (made["id"], data, "image/png")
    wrong = client.post("/api/v1/files/", files={"a": b"x"}, headers=headers)
    assert wrong.status_code == 422


def test_a_document_is_parsed_after_a_while(client: httpx.Client, qwen: SimulatedQwen) -> None:
    ticket = post(client, V2, **{**ASKED, "filetype": "file"})["data"]
    id = ticket["file_id"]
    assert post(client, "/api/v2/files/parse", file_id=id)["success"] is False
    put(client, ticket, signed(ticket))
    assert post(client, "/api/v2/files/parse", file_id=id)["success"] is True
    states = [
        post(client, "/api/v2/files/parse/status", file_id_list=[id])["data"][0]["status"]
        for _ in range(3)
    ]
    assert states == ["pending", "success", "success"]
    qwen.storage.unreadable = True
    failed = post(client, "/api/v2/files/parse/status", file_id_list=[id])
    assert failed["data"][0]["status"] == "failed"
    assert post(client, "/api/v2/files/parse/status", file_id_list=["x"])["success"] is False


def test_a_document_that_is_not_parsed_is_not_read(
    client: httpx.Client, qwen: SimulatedQwen
) -> None:
    storage = qwen.storage
    ticket = post(client, V2, **{**ASKED, "filetype": "file"})["data"]
    turn = {"files": [{"id": ticket["file_id"]}, {"id": "a link's"}]}
    assert storage.refusal(turn) is not None
    put(client, ticket, signed(ticket))
    assert storage.refusal(turn) is not None
    storage.files[ticket["file_id"]].parsed = True
    assert storage.refusal(turn) is None


def test_uploads_need_a_credential_and_right_fields(
    client: httpx.Client, qwen: SimulatedQwen
) -> None:
    assert client.post(V2, json=ASKED).status_code == 401
    for wrong in {"filetype": "zip"}, {"filesize": "4"}, {"filename": None}:
        assert post(client, V2, **{**ASKED, **wrong})["success"] is False
    assert not qwen.storage.files


def test_a_fault_meets_the_step_that_it_is_for(client: httpx.Client, qwen: SimulatedQwen) -> None:
    qwen.fail(Fault.status(503), upload="put")
    qwen.fail(Fault.status(504))
    ticket = post(client, V1, **ASKED)
    assert put(client, ticket, signed(ticket)).status_code == 503
    assert put(client, ticket, signed(ticket)).status_code == 200
    assert client.get("/api/models").status_code == 504


def test_only_so_many_files_are_kept() -> None:
    storage = Storage()
    for n in range(MOST_FILES + 1):
        storage.give_ticket({**ASKED, "filename": str(n)}, "host", wrapped=True)
    assert [file.name for file in storage.files.values()][:1] == ["1"]
    assert len(storage.files) == MOST_FILES
