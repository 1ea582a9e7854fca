"""A file that stands in a request itself: decoded strictly, and held to the bounds.

A picture is a data URL; sound and documents are base64 with or without the head of one. How large
one may be is fact W2-33.
"""

from __future__ import annotations

import hashlib
import re
from binascii import a2b_base64
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from qwen_asgi.chat import Part
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
from qwen_asgi.upstreams._held_files import InlineFile, picture_url, unfit

MOST_BYTES = 20 * 1024 * 1024
"""Of one file."""

PIECE = 256 * 1024
"""Characters that are decoded in one go, during which no other thread runs."""

LONGEST_NAME = 100

_ONLY_PICTURES: tuple[Kind, ...] = ("image",)
_ONLY_AUDIO: tuple[Kind, ...] = ("audio",)

_HEAD = re.compile(r"data:([^,;]{0,200})((?:;[^,;]{0,200}){0,10});base64,", re.IGNORECASE)
_LONGEST_HEAD = 2048


def read_file(part: Part, where: str, kinds: Collection[Kind], upstream: str) -> InlineFile:
    """Return the file that a part holds. Raises InvalidRequest, `where` being its name.

    `kinds` are those that the upstream takes.
    """
    if part.kind == "input_audio" and "audio" not in kinds:
        raise unfit(f"{where}: the upstream {upstream!r} takes {told(kinds)}", where)
    encoded = _encoded(part, where)
    kind = kind_of(encoded.media_type)
    if kind is None or kind not in kinds or (part.kind == "image_url" and kind != "image"):
        listed = told(_ONLY_PICTURES if part.kind == "image_url" else kinds)
        raise unfit(
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
            url = str(picture_url(part.data))
            return _Encoded(url, *_data_url(url, where), "")
        case "input_audio":
            return _audio(_fields(part, where), where)
    return _document(_fields(part, where), where)


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
        raise unfit(
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
        raise unfit(f"{where} holds {len(data)} bytes; at most {MOST_BYTES} are taken", where)
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
