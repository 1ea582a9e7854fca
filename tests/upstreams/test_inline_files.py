"""Files that stand in a request: what is taken, and what is said of what is not."""

from __future__ import annotations

import base64
from hashlib import sha256
from typing import Any

import pytest

from qwen_asgi.chat import Part
from qwen_asgi.errors import InvalidRequest
from qwen_asgi.upstreams import _inline_files
from qwen_asgi.upstreams._file_types import BY_KIND, Kind
from qwen_asgi.upstreams._held_files import InlineFile, Upload
from qwen_asgi.upstreams._inline_files import read_file

EVERY_KIND: tuple[Kind, ...] = ("image", "audio", "document")
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def data_url(data: bytes = PNG, type: str = "image/png") -> str:
    return f"data:{type};base64,{b64(data)}"


def picture(url: Any) -> Part:
    return Part("image_url", "", {"type": "image_url", "image_url": {"url": url}})


def audio(**fields: Any) -> Part:
    return Part("input_audio", "", {"type": "input_audio", "input_audio": fields})


def document(**fields: Any) -> Part:
    return Part("file", "", {"type": "file", "file": fields})


def read(part: Part, kinds: tuple[Kind, ...] = EVERY_KIND) -> InlineFile:
    return read_file(part, "here", kinds, "an-upstream")


def refused(part: Part, kinds: tuple[Kind, ...] = EVERY_KIND) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        read(part, kinds)
    return raised.value


# What is taken.

STARTS = {
    "image/png": PNG,
    "image/jpeg": b"\xff\xd8\xff\xe0rest",
    "image/gif": b"GIF89arest",
    "image/webp": b"RIFF\x00\x00\x00\x00WEBPVP8 ",
    "image/bmp": b"BMrest",
}


@pytest.mark.parametrize("media_type", STARTS)
@pytest.mark.parametrize("label", [*STARTS, "IMAGE/PNG", "image/jpg", "image/png;charset=x"])
def test_a_picture_is_what_its_bytes_say(media_type: str, label: str) -> None:
    data = STARTS[media_type]
    found = read(picture(data_url(data, label)))
    extension = BY_KIND["image"][media_type]
    assert found == InlineFile(
        "image", media_type, f"image.{extension}", data, sha256(data).digest()
    )


def test_a_picture_may_stand_in_the_short_form() -> None:
    part = Part("image_url", "", {"type": "image_url", "image_url": data_url()})
    assert read(part).data == PNG


@pytest.mark.parametrize(
    ("format", "media_type", "name"),
    [
        ("wav", "audio/wav", "audio.wav"),
        ("MP3", "audio/mpeg", "audio.mp3"),
        ("flac", "audio/flac", "audio.flac"),
        ("ogg", "audio/ogg", "audio.ogg"),
    ],
)
@pytest.mark.parametrize("head", ["", "data:;base64,", "data:audio/wav;base64,"])
def test_sound_is_of_its_format(format: str, media_type: str, name: str, head: str) -> None:
    found = read(audio(data=head + b64(b"sound"), format=format))
    assert (found.kind, found.media_type, found.name) == ("audio", media_type, name)
    assert found.data == b"sound"


@pytest.mark.parametrize(
    ("fields", "kind", "media_type", "name"),
    [
        ({"file_data": data_url(b"x", "application/pdf")}, "document", "application/pdf",
         "document.pdf"),
        ({"file_data": data_url(b"x", "application/pdf"), "filename": "a.pdf"}, "document",
         "application/pdf", "a.pdf"),
        ({"file_data": b64(b"x"), "filename": "notes.MD"}, "document", "text/markdown",
         "notes.MD"),
        ({"file_data": data_url(b"x", "text/csv"), "filename": "a.b"}, "document", "text/csv",
         "a.b.csv"),
        ({"file_data": data_url(b"x", "application/octet-stream"), "filename": "a.docx"},
         "document", "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
         "a.docx"),
        ({"file_data": data_url(b"x", ""), "filename": "a.txt"}, "document", "text/plain",
         "a.txt"),
        ({"file_data": b64(b"x"), "filename": "../../etc/x\x00\r\ny.txt"}, "document",
         "text/plain", "xy.txt"),
        ({"file_data": b64(b"x"), "filename": "C:\\a\\猫.txt"}, "document", "text/plain",
         "猫.txt"),
        ({"file_data": b64(b"x"), "filename": "a" * 500 + ".txt"}, "document", "text/plain",
         "a" * 100 + ".txt"),
        ({"file_data": data_url(b"x", "text/plain"), "filename": ".."}, "document",
         "text/plain", "document.txt"),
        ({"file_data": data_url(), "filename": "cat.png"}, "image", "image/png", "cat.png"),
        ({"file_data": b64(b"x"), "filename": "a.mp3", "file_id": None}, "audio", "audio/mpeg",
         "a.mp3"),
    ],
)  # fmt: skip
def test_a_file_is_of_its_label_or_its_name(
    fields: dict[str, Any], kind: str, media_type: str, name: str
) -> None:
    found = read(document(**fields))
    assert (found.kind, found.media_type, found.name) == (kind, media_type, name)


# What is not.

NOT_BASE64 = {
    "a blank": "AAAA AAAA",
    "a line break": "AAAA\nAAAA",
    "no padding": "AAA",
    "url-safe": "AA-_",
    "percent": "AA%3D%3D",
    "padding in the middle": "AA==AAAA",
    "a letter too many": "AAAAA",
    "padding too much": "AAAA====",
    "a sign of padding too much": "AAAA=",
    "padding alone": "====",
    "another script": "猫猫猫猫",
}


@pytest.mark.parametrize("name", NOT_BASE64)
def test_what_is_not_base64_is_refused(name: str) -> None:
    for part in (
        picture("data:image/png;base64," + NOT_BASE64[name]),
        audio(data=NOT_BASE64[name], format="wav"),
        document(file_data=NOT_BASE64[name], filename="a.txt"),
    ):
        error = refused(part)
        assert error.param == "here"
        assert "is not base64" in str(error)


def test_padding_at_the_end_of_a_piece_is_seen_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_inline_files, "PIECE", 8)
    data = PNG * 3
    assert read(picture(data_url(data))).data == data
    for text in "AAAAAA==AAAA", "AAAAAAA=AAAAAAAA", "AAAAAAAAA":
        assert "is not base64" in str(refused(audio(data=text, format="wav")))


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png,AAAA",
        "data:image/png;base64",
        "data:",
        "data:,x",
        "data:image/png;base64;AAAA",
        f"data:{'x' * 3000};base64,AAAA",
    ],
)
def test_a_data_url_that_is_none_is_refused(url: str) -> None:
    error = refused(picture(url))
    assert error.param == "here"
    assert "data:image/png;base64,..." in str(error)


@pytest.mark.parametrize(
    ("part", "kinds", "says"),
    [
        (picture(data_url(type="image/svg+xml")), EVERY_KIND, "of the type 'image/svg+xml'"),
        (picture(data_url(type="text/plain")), EVERY_KIND, "takes pictures (png, jpg, "),
        (picture(data_url(type="")), EVERY_KIND, "a type that is not told"),
        (document(file_data=data_url(type="application/zip")), EVERY_KIND, "documents (pdf, "),
        (document(file_data=b64(b"x"), filename="a.exe"), EVERY_KIND, "that is not told"),
        (document(file_data=b64(b"x")), EVERY_KIND, "that is not told"),
        (document(file_data=b64(b"x"), filename="a.pdf"), ("image",), "takes pictures (png, "),
        (audio(data=b64(b"x"), format="wav"), ("image",), "takes pictures (png, "),
        (document(file_data=b64(b"x"), filename="a.wav"), ("image",), "takes pictures (png, "),
    ],
)
def test_a_type_that_is_not_taken_is_refused_with_those_that_are(
    part: Part, kinds: tuple[Kind, ...], says: str
) -> None:
    error = refused(part, kinds)
    assert says in str(error)
    assert "'an-upstream'" in str(error)
    # So that another upstream may be asked.
    assert (error.param, error.code) == ("here", "unsupported_parameter")


def test_a_picture_that_is_none_is_refused() -> None:
    error = refused(picture(data_url(b"%PDF-1.7")))
    assert "does not begin as a picture does" in str(error)
    assert error.param == "here"


@pytest.mark.parametrize(
    ("part", "param"),
    [
        (audio(format="wav"), "here.data"),
        (audio(data=5, format="wav"), "here.data"),
        (audio(data="AAAA"), "here.format"),
        (audio(data="AAAA", format="png"), "here.format"),
        (audio(data="AAAA", format=5), "here.format"),
        (Part("input_audio", "", {"input_audio": "AAAA"}), "here"),
        (Part("file", "", {}), "here"),
        (document(filename="a.pdf"), "here.file_data"),
        (document(file_data=5), "here.file_data"),
        (document(file_data="AAAA", filename=5), "here.filename"),
        (document(file_id="file-1"), "here.file_id"),
        (document(file_id="file-1", file_data="AAAA", filename="a.pdf"), "here.file_id"),
        (document(file_data="", filename="a.pdf"), "here"),
        (document(file_data="data:application/pdf;base64,"), "here"),
    ],
)
def test_what_is_missing_or_wrong_is_named(part: Part, param: str) -> None:
    error = refused(part)
    assert error.param == param
    assert str(error).startswith(param)


def test_a_file_may_have_so_many_bytes_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_inline_files, "MOST_BYTES", 1000)
    for size in 998, 999, 1000:
        assert len(read(audio(data=b64(b"x" * size), format="wav")).data) == size
    for size in 1001, 1002, 1003, 5000:
        error = refused(audio(data=b64(b"x" * size), format="wav"))
        assert "at most 1000 are taken" in str(error)
        assert error.code == "unsupported_parameter"


def test_nothing_of_a_file_is_shown() -> None:
    shown = repr(read(audio(data=b64(b"canary" * 9), format="wav")))
    assert "canary" not in shown
    assert "canary" not in repr(Upload("id", "https://h/canary"))
