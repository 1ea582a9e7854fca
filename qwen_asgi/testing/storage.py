"""The simulated object storage of the web chat, and the calls by which files come to it.

W1 and W2 numbers are those of the wire notes. The storage checks a signature by Alibaba's rules for
`OSS4-HMAC-SHA256` from what came in alone, so that it is a witness for whoever signs.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from calendar import timegm
from collections.abc import Mapping
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from email.policy import HTTP
from time import strptime, time
from typing import Any, Literal
from urllib.parse import quote
from uuid import uuid4

from qwen_asgi.testing.answers import Answer, dump, whole_answer
from qwen_asgi.testing.web import failed, succeeded

UploadStep = Literal["multipart", "ticket", "put", "parse", "parse_status"]
"""The calls of an upload, that `SimulatedQwen.fail` can name."""

MOST_FILES = 100
"""Files that are kept; of more the oldest are forgotten."""

BUCKET = "simulated-bucket"
REGION = "oss-ap-southeast-1"
SIGNED_FOR = 900
"""Seconds by which the time of a signature may be off."""

_AUTHORIZATION = re.compile(
    r"OSS4-HMAC-SHA256 Credential=(?P<id>[^/,]+)/(?P<date>\d{8})/(?P<region>[^/,]+)/oss/"
    r"aliyun_v4_request,Signature=(?P<signature>[0-9a-f]{64})"
)


@dataclass(slots=True)
class StoredFile:
    """A file that was promised, and what has become of it."""

    id: str
    name: str
    filetype: str
    key: str
    size: int
    data: bytes | None = None
    """None until it was put."""
    media_type: str = ""
    key_id: str = ""
    key_secret: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    asked: int = 0
    """How often it was asked whether it is parsed."""
    parsed: bool = False


class Storage:
    """What was uploaded, by the names of the files."""

    def __init__(self) -> None:
        self.files: dict[str, StoredFile] = {}
        self.parse_takes = 1
        """How often a document says that it is still being parsed."""
        self.unreadable = False
        """Whether documents fail to be parsed."""
        self.url_holds = 300
        """Seconds for which an address is signed, as captures have it."""

    @property
    def stored(self) -> list[StoredFile]:
        """Those whose content is there, in the order of their promises."""
        return [file for file in self.files.values() if file.data is not None]

    def take_form(self, content_type: str, raw: bytes) -> Answer:
        """Take a file in the early way (W1-33)."""
        head = f"content-type: {content_type}\r\n\r\n".encode()
        form = message_from_bytes(head + raw, policy=HTTP)
        for part in form.get_payload() if form.is_multipart() else []:
            assert isinstance(part, Message)
            if part.get_param("name", header="content-disposition") == "file":
                file = self._promise(part.get_filename() or "", "image", 0)
                data = part.get_payload(decode=True)
                assert isinstance(data, bytes)
                file.data, file.media_type = data, part.get_content_type()
                return whole_answer(dump({"id": file.id}))
        return whole_answer(dump({"detail": "file: Field required"}), status=422)

    def give_ticket(self, body: Any, host: str, *, wrapped: bool) -> Answer:
        """Give leave to put a file (W1-34, W2-07)."""
        match body:
            case {
                "filename": str(name),
                "filesize": int(size),
                "filetype": "image" | "video" | "audio" | "file" as filetype,
            }:
                file = self._promise(name, filetype, size)
                ticket = self._ticket(file, host)
                return succeeded(ticket) if wrapped else whole_answer(dump(ticket))
        return failed("Bad_Request", "Invalid input: filename, filesize and filetype are required.")

    def put(
        self, path: str, headers: Mapping[str, str], raw: bytes, now: float | None = None
    ) -> Answer:
        """Store an object, if the request is signed by a ticket for it."""
        key = path.removeprefix(f"/{BUCKET}/")
        file = next((file for file in self.files.values() if file.key == key), None)
        wrong = _wrong_with(file, key, headers, time() if now is None else now)
        if wrong or file is None:
            text = f'<?xml version="1.0"?><Error><Code>{wrong}</Code><Message>no</Message></Error>'
            return whole_answer(text.encode(), "application/xml", 403)
        if file.size != len(raw):
            return whole_answer(b"<Error><Code>InvalidArgument</Code></Error>", status=400)
        file.data, file.media_type = raw, headers.get("content-type", "")
        return whole_answer(b"", "application/xml")

    def parse(self, body: Any) -> Answer:
        """Begin to parse a document (W2-08)."""
        file = self.files.get(str(body.get("file_id"))) if isinstance(body, Mapping) else None
        if file is None or file.data is None:
            return failed("Not_Found", "The file does not exist.")
        return succeeded({"file_id": file.id})

    def parse_status(self, body: Any) -> Answer:
        match body:
            case {"file_id_list": [str(id)]} if id in self.files:
                file = self.files[id]
                file.asked += 1
                file.parsed = not self.unreadable and file.asked > self.parse_takes
                status = "failed" if self.unreadable else "success" if file.parsed else "pending"
                return succeeded([{"file_id": id, "status": status}])
        return failed("Bad_Request", "Invalid input.")

    def refusal(self, turn: Mapping[str, Any]) -> Answer | None:
        """Return why a turn of generation 2 cannot use the files that it names; None if it can."""
        for named in turn.get("files", []):
            file = self.files.get(named.get("id"))
            # One that is not known is a link, which is fetched from wherever it leads.
            if file is not None and (file.data is None or (_is_document(file) != file.parsed)):
                return failed("Bad_Request", "The file is not ready.")
        return None

    def _promise(self, name: str, filetype: str, size: int) -> StoredFile:
        while len(self.files) >= MOST_FILES:
            del self.files[next(iter(self.files))]
        id = str(uuid4())
        key = f"00000000-0000-4000-8000-000000000001/{id}_{name}"
        file = self.files[id] = StoredFile(id, name, filetype, key, size)
        return file

    def _ticket(self, file: StoredFile, host: str) -> dict[str, str]:
        file.key_id = f"STS.{secrets.token_urlsafe(12)}"
        file.key_secret, file.token = secrets.token_urlsafe(24), secrets.token_urlsafe(96)
        signed = f"x-oss-expires={self.url_holds}&x-oss-signature={secrets.token_hex(32)}"
        return {
            "access_key_id": file.key_id,
            "access_key_secret": file.key_secret,
            "security_token": file.token,
            "file_url": f"http://{host}/{BUCKET}/{quote(file.key)}?{signed}",
            "file_path": file.key,
            "file_id": file.id,
            "bucketname": BUCKET,
            "region": REGION,
            "endpoint": host,
        }


def _is_document(file: StoredFile) -> bool:
    return file.filetype == "file"


def _wrong_with(
    file: StoredFile | None, key: str, headers: Mapping[str, str], now: float
) -> str | None:
    """Return Alibaba's code for what is wrong with a signed request; None if nothing is."""
    found = _AUTHORIZATION.fullmatch(headers.get("authorization", ""))
    stamp = headers.get("x-oss-date", "")
    if found is None or not re.fullmatch(r"\d{8}T\d{6}Z", stamp):
        return "AccessDenied"
    if file is None or found["id"] != file.key_id:
        return "InvalidAccessKeyId"
    if headers.get("x-oss-security-token") != file.token:
        return "InvalidSecurityToken"
    if abs(timegm(strptime(stamp, "%Y%m%dT%H%M%SZ")) - now) > SIGNED_FOR:
        return "RequestTimeTooSkewed"
    right_scope = found["region"] == REGION[4:] and found["date"] == stamp[:8]
    expected = signature(file.key_secret, f"/{BUCKET}/{key}", headers, found["region"])
    if not right_scope or not hmac.compare_digest(found["signature"], expected):
        return "SignatureDoesNotMatch"
    return None


def signature(secret: str, resource: str, headers: Mapping[str, str], region: str) -> str:
    """Return what a PUT with these headers is signed with."""
    lower = {name.lower(): value for name, value in headers.items()}
    canonical = ["PUT", quote(resource, safe="/"), ""]
    signed = (n for n in lower if n.startswith("x-oss-") or n in ("content-type", "content-md5"))
    canonical += [f"{name}:{lower[name].strip()}" for name in sorted(signed)]
    canonical += ["", "", lower.get("x-oss-content-sha256", "")]
    stamp = lower["x-oss-date"]
    scope = [stamp[:8], region, "oss", "aliyun_v4_request"]
    whole = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    to_sign = "\n".join(["OSS4-HMAC-SHA256", stamp, "/".join(scope), whole])
    key = b"aliyun_v4" + secret.encode()
    for step in [*scope, to_sign]:
        key = hmac.new(key, step.encode(), hashlib.sha256).digest()
    return key.hex()
