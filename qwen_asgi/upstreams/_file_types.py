"""The kinds of file that a web chat takes, their media types, and what a picture begins with.

Nobody has written down a full list; these are the ones that programs for the web chat send.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

Kind = Literal["image", "audio", "document"]

PICTURES = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/bmp": "bmp",
}
AUDIO = {
    "audio/wav": "wav",
    "audio/mpeg": "mp3",
    "audio/mp4": "m4a",
    "audio/aac": "aac",
    "audio/flac": "flac",
    "audio/ogg": "ogg",
}
_OFFICE = "application/vnd.openxmlformats-officedocument"
DOCUMENTS = {
    "application/pdf": "pdf",
    "text/plain": "txt",
    "text/markdown": "md",
    "text/csv": "csv",
    "text/html": "html",
    "application/json": "json",
    f"{_OFFICE}.wordprocessingml.document": "docx",
    f"{_OFFICE}.spreadsheetml.sheet": "xlsx",
    f"{_OFFICE}.presentationml.presentation": "pptx",
}
BY_KIND: Mapping[Kind, Mapping[str, str]] = {
    "image": PICTURES,
    "audio": AUDIO,
    "document": DOCUMENTS,
}
"""Of each kind the media types, each with the end of its files' names."""

_KINDS: Mapping[str, Kind] = {type: kind for kind, types in BY_KIND.items() for type in types}
_BY_EXTENSION = {end: type for types in BY_KIND.values() for type, end in types.items()}
_BY_EXTENSION |= {"jpeg": "image/jpeg", "markdown": "text/markdown", "htm": "text/html"}
_OTHER_NAMES = {
    "image/jpg": "image/jpeg",
    "image/x-ms-bmp": "image/bmp",
    "audio/mp3": "audio/mpeg",
    "audio/wave": "audio/wav",
    "audio/x-wav": "audio/wav",
    "audio/m4a": "audio/mp4",
    "audio/x-m4a": "audio/mp4",
    "audio/x-flac": "audio/flac",
    "text/x-markdown": "text/markdown",
    "application/csv": "text/csv",
}
_UNTOLD = {"", "application/octet-stream"}
_WORDS = {"image": "pictures", "audio": "audio", "document": "documents"}


def media_type_of(declared: str, name: str) -> str:
    """Return the media type that a file has by its label, or, where that says nothing, by the end
    of its name; empty if neither tells."""
    declared = declared.strip().lower()
    if declared in _UNTOLD:
        return _BY_EXTENSION.get(name.rpartition(".")[2].lower(), "")
    return _OTHER_NAMES.get(declared, declared)


def kind_of(media_type: str) -> Kind | None:
    return _KINDS.get(media_type)


def extension_of(media_type: str) -> str:
    return BY_KIND[_KINDS[media_type]][media_type]


def audio_type(format: str) -> str | None:
    """Return the media type of what OpenAI's `input_audio.format` names."""
    media_type = _BY_EXTENSION.get(format.lower())
    return media_type if media_type in AUDIO else None


def told(kinds: Collection[Kind]) -> str:
    """Return the kinds in words, each with its types: what an error says may be sent."""
    listed = (kind for kind in BY_KIND if kind in kinds)
    return ", ".join(f"{_WORDS[kind]} ({', '.join(BY_KIND[kind].values())})" for kind in listed)


def picture_type(data: bytes) -> str | None:
    """Return the media type of the picture that `data` begins; None if it begins none of these."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    return "image/bmp" if data.startswith(b"BM") else None
