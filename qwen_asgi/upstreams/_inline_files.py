"""Files that stand in a request itself: found, decoded strictly, and held to the bounds.

A picture is a data URL in `image_url`; sound is `input_audio`, a document `file`, both base64 with
or without the head of a data URL. Links stay what they are. What the bounds are is fact W2-33.
"""

from __future__ import annotations

import hashlib
import re
from binascii import a2b_base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from qwen_asgi.chat import ChatRequest, Message, Part
from qwen_asgi.errors import InvalidRequest
from qwen_asgi.upstreams._file_types import (
    Kind,
    audio_type,
    extension_of,
    kind_of,
    media_type_of,
    picture_type,
    told,
)

MOST_FILES = 5
"""Files in one turn."""

MOST_AUDIO = 1

MOST_BYTES = 20 * 1024 * 1024
"""Of one file."""

PIECE = 256 * 1024
"""Characters that are decoded in one go, during which no other thread runs."""

LONGEST_NAME = 100

_ONLY_PICTURES: tuple[Kind, ...] = ("image",)
_ONLY_AUDIO: tuple[Kind, ...] = ("audio",)

_HEAD = re.compile(r"data:([^,;]{0,200})((?:;[^,;]{0,200}){0,10});base64,", re.IGNORECASE)
_LONGEST_HEAD = 2048


@dataclass(frozen=True, slots=True)
class InlineFile:
    """A file out of a request."""

    kind: Kind
    media_type: str
    name: str
    data: bytes = field(repr=False)
    digest: bytes = field(repr=False)
    """SHA-256 of `data`."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file as the upstream has it."""

    id: str
    url: str = field(default="", repr=False)
    """Where it lies, for whoever has this address; empty where its id alone is known."""


@dataclass(slots=True)
class UploadedPart(Part):
    """A part of a message, whose file the upstream has."""

    file: InlineFile
    upload: Upload


class Held(NamedTuple):
    """Where in a request a file stands."""

    message: int
    part: int
    kind: str
    """The part's."""

    @property
    def where(self) -> str:
        return f"messages[{self.message}].content[{self.part}].{self.kind}"


def holds_file(part: Part) -> bool:
    """Whether a part holds a file, or should: of pictures only those that are no link."""
    if part.kind == "image_url":
        url = _picture_url(part.data)
        return isinstance(url, str) and url[:5].lower() == "data:"
    return part.kind in ("input_audio", "file")


def has_files(messages: Sequence[Message]) -> bool:
    """Whether any is held; asked of every chat."""
    for message in messages:
        content = message.content
        if not isinstance(content, str) and any(holds_file(part) for part in content):
            return True
    return False


def held_in(messages: Sequence[Message], upstream: str) -> list[Held]:
    """Return where files are held. Raises InvalidRequest for more than a turn may have."""
    held = [
        Held(m, p, part.kind)
        for m, message in enumerate(messages)
        if not isinstance(message.content, str)
        for p, part in enumerate(message.content)
        if holds_file(part)
    ]
    if len(held) > MOST_FILES:
        raise _unfit(
            f"the upstream {upstream!r} takes {MOST_FILES} files in a request, not {len(held)}",
            "messages",
        )
    return held


def part_at(messages: Sequence[Message], held: Held) -> Part:
    part = messages[held.message].content[held.part]
    assert isinstance(part, Part)
    return part


def size_of(part: Part) -> int:
    """Return about how many characters of a part are to be decoded."""
    inner = part.data.get(part.kind)
    values = inner.values() if isinstance(inner, Mapping) else (inner,)
    return max((len(value) for value in values if isinstance(value, str)), default=0)


def with_uploads(
    request: ChatRequest,
    held: Sequence[Held],
    files: Sequence[InlineFile],
    uploads: Sequence[Upload],
) -> ChatRequest:
    """Return the request with the upstream's files in the place of its own."""
    contents: dict[int, list[Part]] = {}
    for at, file, upload in zip(held, files, uploads, strict=True):
        content = request.messages[at.message].content
        assert not isinstance(content, str)
        parts = contents.setdefault(at.message, list(content))
        parts[at.part] = UploadedPart(at.kind, "", {}, file, upload)
    messages = tuple(
        replace(message, content=tuple(contents[n])) if n in contents else message
        for n, message in enumerate(request.messages)
    )
    return replace(request, messages=messages)


def read_file(part: Part, where: str, kinds: Collection[Kind], upstream: str) -> InlineFile:
    """Return the file that a part holds. Raises InvalidRequest, `where` being its name.

    `kinds` are those that the upstream takes.
    """
    if part.kind == "input_audio" and "audio" not in kinds:
        raise _unfit(f"{where}: the upstream {upstream!r} takes {told(kinds)}", where)
    encoded = _encoded(part, where)
    kind = kind_of(encoded.media_type)
    if kind is None or kind not in kinds or (part.kind == "image_url" and kind != "image"):
        listed = told(_ONLY_PICTURES if part.kind == "image_url" else kinds)
        raise _unfit(
            f"{where} is {_named(encoded.media_type)}; the upstream {upstream!r} takes {listed}",
            where,
        )
    data = _decoded(encoded, where)
    media_type = encoded.media_type
    if kind == "image":
        # What the bytes say counts: many clients label all pictures alike.
        found = picture_type(data)
        if found is None:
            raise InvalidRequest(
                f"{where} is labelled {media_type} but does not begin as a picture does; send "
                f"{told(_ONLY_PICTURES)}",
                param=where,
            )
        media_type = found
    name = _plain_name(encoded.name, kind, media_type)
    return InlineFile(kind, media_type, name, data, hashlib.sha256(data).digest())


def check_kinds(files: Sequence[InlineFile], held: Sequence[Held], upstream: str) -> None:
    """Raise InvalidRequest for more files of a kind than a turn may have."""
    audio = [at for file, at in zip(files, held, strict=True) if file.kind == "audio"]
    if len(audio) > MOST_AUDIO:
        raise _unfit(
            f"the upstream {upstream!r} takes {MOST_AUDIO} audio file in a request, "
            f"not {len(audio)}",
            audio[MOST_AUDIO].where,
        )


def _unfit(message: str, param: str) -> InvalidRequest:
    """Return the error for what this upstream does not take, and another one may."""
    return InvalidRequest(message, code="unsupported_parameter", param=param)


def _named(media_type: str) -> str:
    return f"of the type {media_type[:100]!r}" if media_type else "of a type that is not told"


class _Encoded(NamedTuple):
    """A file as the request holds it: its base64 is `text` from `start` on."""

    text: str
    start: int
    media_type: str
    name: str


def _encoded(part: Part, where: str) -> _Encoded:
    match part.kind:
        case "image_url":
            url = str(_picture_url(part.data))
            return _Encoded(url, *_data_url(url, where), "")
        case "input_audio":
            return _audio(_fields(part, where), where)
    return _document(_fields(part, where), where)


def _picture_url(data: Mapping[str, Any]) -> Any:
    link = data.get("image_url")
    return link.get("url") if isinstance(link, Mapping) else link


def _fields(part: Part, where: str) -> Mapping[str, Any]:
    fields = part.data.get(part.kind)
    if not isinstance(fields, Mapping):
        raise InvalidRequest(f"{where} should be an object", param=where)
    return fields


def _audio(fields: Mapping[str, Any], where: str) -> _Encoded:
    data, format = fields.get("data"), fields.get("format")
    if not isinstance(data, str):
        raise InvalidRequest(f"{where}.data should be base64", param=f"{where}.data")
    media_type = audio_type(format) if isinstance(format, str) else None
    if media_type is None:
        raise InvalidRequest(
            f"{where}.format should be one of those of {told(_ONLY_AUDIO)}", param=f"{where}.format"
        )
    # Model Studio has its clients write the head of a data URL, which may say no type.
    start = _data_url(data, where)[0] if _is_data_url(data) else 0
    return _Encoded(data, start, media_type, "")


def _document(fields: Mapping[str, Any], where: str) -> _Encoded:
    if fields.get("file_id") is not None:
        raise InvalidRequest(
            f"{where}.file_id names a file that was uploaded before, which this gateway does not "
            "know; send the file itself as file_data",
            code="unsupported_parameter",
            param=f"{where}.file_id",
        )
    data, name = fields.get("file_data"), fields.get("filename")
    if not isinstance(data, str):
        raise InvalidRequest(
            f"{where}.file_data should be the file as a data URL or as base64",
            param=f"{where}.file_data",
        )
    if name is not None and not isinstance(name, str):
        raise InvalidRequest(f"{where}.filename should be a string", param=f"{where}.filename")
    start, declared = _data_url(data, where) if _is_data_url(data) else (0, "")
    return _Encoded(data, start, media_type_of(declared, name or ""), name or "")


def _is_data_url(text: str) -> bool:
    return text[:5].lower() == "data:"


def _data_url(text: str, where: str) -> tuple[int, str]:
    """Return where the base64 of a data URL begins, and the media type before it."""
    head = _HEAD.match(text[:_LONGEST_HEAD])
    if head is None:
        raise InvalidRequest(
            f"{where} should be a data URL of the form data:image/png;base64,...", param=where
        )
    return head.end(), media_type_of(head[1], "")


def _decoded(encoded: _Encoded, where: str) -> bytes:
    text, start = encoded.text, encoded.start
    size = (len(text) - start) // 4 * 3
    # Up to two of these bytes are none.
    if size - 2 > MOST_BYTES:
        raise _unfit(
            f"{where} holds about {size} bytes; at most {MOST_BYTES} are taken: send a smaller "
            "file, or of a picture a link",
            where,
        )
    pieces = [_piece(text[at : at + PIECE], where) for at in range(start, len(text), PIECE)]
    if any(len(piece) < PIECE // 4 * 3 for piece in pieces[:-1]):
        # It was padded in the middle.
        raise _not_base64(where)
    data = b"".join(pieces)
    if not data:
        raise InvalidRequest(f"{where} holds an empty file", param=where)
    if len(data) > MOST_BYTES:
        raise _unfit(f"{where} holds {len(data)} bytes; at most {MOST_BYTES} are taken", where)
    return data


def _piece(text: str, where: str) -> bytes:
    try:
        data = a2b_base64(text, strict_mode=True)
    except ValueError:
        raise _not_base64(where) from None
    # Python 3.11 takes any number of signs that only pad.
    if len(text) % 4 or len(data) < len(text) // 4 * 3 - 2:
        raise _not_base64(where)
    return data


def _not_base64(where: str) -> InvalidRequest:
    return InvalidRequest(
        f"{where} is not base64: it should be of A-Z, a-z, 0-9, + and /, padded with =, without "
        "line breaks",
        param=where,
    )


def _plain_name(name: str, kind: Kind, media_type: str) -> str:
    """Return the last step of a file's name, or one that is made up; its end tells its type."""
    extension = extension_of(media_type)
    last = re.split(r"[/\\]", name)[-1]
    plain = "".join(c for c in last if c.isprintable()).strip().strip(".")
    stem, dot, end = plain.rpartition(".")
    if dot and stem and media_type_of("", plain) == media_type:
        return f"{stem[:LONGEST_NAME]}.{end}"
    return f"{(plain or kind)[:LONGEST_NAME]}.{extension}"
