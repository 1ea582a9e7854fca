"""Files in a request: where they stand, and what takes their place once the upstream has them.

A picture is an `image_url` that is no link; sound is `input_audio`, a document `file`. How many
there may be is fact W2-33.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from qwen_asgi.chat import ChatRequest, Message, Part
from qwen_asgi.errors import InvalidRequest
from qwen_asgi.upstreams._file_types import Kind

MOST_FILES = 5
"""Files in one turn."""

MOST_AUDIO = 1
"""Of these files, those that are sound."""


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
    where: str
    """How the client names it."""


def holds_file(part: Part) -> bool:
    """Whether a part holds a file, or should: of pictures only those that are no link."""
    if part.kind == "image_url":
        url = picture_url(part.data)
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
        Held(m, p, part.kind, f"{message.where(m)}.content[{p}].{part.kind}")
        for m, message in enumerate(messages)
        if not isinstance(message.content, str)
        for p, part in enumerate(message.content)
        if holds_file(part)
    ]
    if len(held) > MOST_FILES:
        raise unfit(
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


def check_kinds(files: Sequence[InlineFile], held: Sequence[Held], upstream: str) -> None:
    """Raise InvalidRequest for more files of a kind than a turn may have."""
    audio = [at for file, at in zip(files, held, strict=True) if file.kind == "audio"]
    if len(audio) > MOST_AUDIO:
        raise unfit(
            f"the upstream {upstream!r} takes {MOST_AUDIO} audio file in a request, "
            f"not {len(audio)}",
            audio[MOST_AUDIO].where,
        )


def picture_url(data: Mapping[str, Any]) -> Any:
    link = data.get("image_url")
    return link.get("url") if isinstance(link, Mapping) else link


def unfit(message: str, param: str) -> InvalidRequest:
    """Return the error for what this upstream does not take, and another one may."""
    return InvalidRequest(message, code="unsupported_parameter", param=param)
