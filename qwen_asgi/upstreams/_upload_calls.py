"""The calls by which a web chat takes a file, of both generations.

Early programs post it as a form (W1-33). Later ones ask for a ticket, put the file into object
storage with it (W1-34, W2-07), and have a document parsed before they use it (W2-08); how the state
of that is asked for is read out of public programs and a capture of August 2026.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic_core import to_json

from qwen_asgi.errors import UpstreamInvalidResponse, UpstreamRefused
from qwen_asgi.ids import fresh_uuids
from qwen_asgi.transports import UpstreamRequest
from qwen_asgi.upstreams._file_types import Kind
from qwen_asgi.upstreams._held_files import InlineFile, Upload
from qwen_asgi.upstreams._oss import Ticket
from qwen_asgi.upstreams._web_errors import good_document
from qwen_asgi.upstreams._words import Secrets

_FILETYPES: Mapping[Kind, str] = {"image": "image", "audio": "audio", "document": "file"}

_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_ENDPOINT = re.compile(r"(https?://)?([a-z0-9.-]{1,200}|\[[0-9a-f:.]{2,45}\])(:[0-9]{1,5})?")
_REGION = re.compile(r"[a-z0-9-]{1,64}")
_LINE = re.compile(r"[\x21-\x7e]{1,8192}")
_KEY = re.compile(r"[^\x00-\x1f\x7f]{1,1024}")
_ADDRESS = re.compile(r"https?://[\x21-\x7e]{1,16384}")

_FAILED = {"error", "fail", "failed"}


class UploadCalls:
    """One web chat's calls, and how their answers are read. Reading raises UpstreamError."""

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        secrets: Secrets,
        *,
        generation: Literal[1, 2],
    ) -> None:
        self._files = f"{base_url}/api/v{generation}/files"
        self._headers = headers
        self._form_headers = {k: v for k, v in headers.items() if k != "content-type"}
        self._secrets = secrets
        self.kinds: tuple[Kind, ...] = (
            # There is a form for pictures and for nothing else (W1-04).
            ("image",) if generation == 1 else ("image", "audio", "document")
        )
        """The kinds of file that a chat can hold."""

    def form(self, file: InlineFile) -> UpstreamRequest:
        """Return the early call: the file as the field `file` of a form."""
        (boundary,) = fresh_uuids(1)
        name = file.name.replace('"', "%22")
        head = (
            f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\n'
            f"content-type: {file.media_type}\r\n\r\n"
        )
        return UpstreamRequest(
            method="POST",
            url=f"{self._files}/",
            headers={
                **self._form_headers,
                "content-type": f"multipart/form-data; boundary={boundary}",
            },
            body=b"%b%b\r\n--%b--\r\n" % (head.encode(), file.data, boundary.encode()),
        )

    def read_form(self, body: bytes) -> Upload:
        document = good_document(body, secrets=self._secrets)
        return Upload(_text(document, "id", _LINE))

    def ticket(self, file: InlineFile) -> UpstreamRequest:
        document = {
            "filename": file.name,
            "filesize": len(file.data),
            "filetype": _FILETYPES[file.kind],
        }
        return self._post("getstsToken", document)

    def read_ticket(self, body: bytes) -> Ticket:
        """The first generation's is flat, the second's in `data`."""
        document = good_document(body, secrets=self._secrets)
        inner = document.get("data")
        fields = inner if isinstance(inner, Mapping) else document
        region = _text(fields, "region", _REGION)
        if fields.get("endpoint"):
            endpoint = _text(fields, "endpoint", _ENDPOINT)
        else:
            endpoint = f"{region}.aliyuncs.com"
        ticket = Ticket(
            file=Upload(_text(fields, "file_id", _LINE), _text(fields, "file_url", _ADDRESS)),
            bucket=_text(fields, "bucketname", _BUCKET),
            key=_text(fields, "file_path", _KEY),
            endpoint=endpoint,
            region=region.removeprefix("oss-"),
            key_id=_text(fields, "access_key_id", _LINE),
            key_secret=_text(fields, "access_key_secret", _LINE),
            token=_text(fields, "security_token", _LINE),
        )
        place = f"{ticket.bucket}.{endpoint}"
        if {".", ".."} & set(ticket.key.split("/")) or self._secrets.struck(place) != place:
            raise _unreadable("file_path")
        return ticket

    def parse(self, id: str) -> UpstreamRequest:
        """Return the call that has a document parsed."""
        return self._post("parse", {"file_id": id})

    def read_parse(self, body: bytes) -> None:
        good_document(body, secrets=self._secrets)

    def parse_state(self, id: str) -> UpstreamRequest:
        return self._post("parse/status", {"file_id_list": [id]})

    def read_parse_state(self, body: bytes) -> bool:
        """Return whether the document is parsed; False while it is being parsed."""
        data = good_document(body, secrets=self._secrets).get("data")
        state = data[0] if isinstance(data, list) and data else data
        status = state.get("status") if isinstance(state, Mapping) else None
        if status in _FAILED:
            raise UpstreamRefused("the upstream cannot read this document; send it as text")
        return bool(status == "success")

    def _post(self, path: str, document: Mapping[str, Any]) -> UpstreamRequest:
        return UpstreamRequest(
            method="POST",
            url=f"{self._files}/{path}",
            headers=self._headers,
            body=to_json(document),
        )


def _text(fields: Mapping[str, Any], name: str, form: re.Pattern[str]) -> str:
    value = fields.get(name)
    if isinstance(value, str) and form.fullmatch(value):
        return value
    raise _unreadable(name)


def _unreadable(name: str) -> UpstreamInvalidResponse:
    return UpstreamInvalidResponse(f"the upstream's answer about a file has no right {name!r}")
