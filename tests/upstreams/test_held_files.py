"""Where files stand in a request, and what takes their place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_asgi.apis.openai_chat import OpenAIChat
from qwen_asgi.chat import ChatRequest, Part
from qwen_asgi.errors import InvalidRequest
from qwen_asgi.upstreams._held_files import (
    Upload,
    UploadedPart,
    check_kinds,
    has_files,
    held_in,
    part_at,
    size_of,
    with_uploads,
)
from tests.upstreams.test_inline_files import audio, data_url, document, picture, read


def ask(*contents: Any) -> ChatRequest:
    messages = [{"role": "user", "content": content} for content in contents]
    return OpenAIChat().read(json.dumps({"model": "m", "messages": messages}).encode())


TEXT = {"type": "text", "text": "a"}
LINK = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
PICTURE = {"type": "image_url", "image_url": {"url": data_url()}}
SOUND = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
PDF = {"type": "file", "file": {"file_data": data_url(b"x", "application/pdf")}}


def test_links_and_text_hold_no_files() -> None:
    for content in "a", [TEXT, LINK], [{"type": "image", "image": "an-id"}]:
        request = ask(content)
        assert not has_files(request.messages)
        assert held_in(request.messages, "u") == []
    for part in PICTURE, SOUND, PDF:
        assert has_files(ask("a", [TEXT, part]).messages)


def test_files_are_found_in_their_order_and_replaced() -> None:
    request = ask([LINK, PICTURE, TEXT], "a", [PDF])
    held = held_in(request.messages, "u")
    assert [at.where for at in held] == [
        "messages[0].content[1].image_url",
        "messages[2].content[0].file",
    ]
    files = [read(part_at(request.messages, at)) for at in held]
    brought = with_uploads(request, held, files, [Upload("1"), Upload("2")])
    first, _, last = (message.content for message in brought.messages)
    assert [type(part) for part in first] == [Part, UploadedPart, Part]
    uploaded = [part for part in (*first, *last) if isinstance(part, UploadedPart)]
    assert [(part.file.kind, part.upload.id) for part in uploaded] == [
        ("image", "1"),
        ("document", "2"),
    ]
    assert type(request.messages[0].content[1]) is Part
    assert brought.notes is request.notes


def test_a_turn_has_five_files() -> None:
    held_in(ask([PICTURE] * 4, [SOUND]).messages, "u")
    with pytest.raises(InvalidRequest) as raised:
        held_in(ask([PICTURE] * 3, [PDF] * 3).messages, "u")
    assert (raised.value.param, raised.value.code) == ("messages", "unsupported_parameter")


def test_a_turn_has_one_file_of_sound_however_it_is_sent() -> None:
    song = {"type": "file", "file": {"file_data": "AAAA", "filename": "song.mp3"}}

    def check(*contents: Any) -> None:
        request = ask(*contents)
        held = held_in(request.messages, "u")
        check_kinds([read(part_at(request.messages, at)) for at in held], held, "u")

    check([PICTURE, song, PDF])
    with pytest.raises(InvalidRequest) as raised:
        check([SOUND], [TEXT, song])
    assert raised.value.param == "messages[1].content[1].file"
    assert raised.value.code == "unsupported_parameter"


def test_the_size_of_a_part_is_that_of_what_it_holds() -> None:
    assert size_of(picture("x" * 9)) == 9
    assert size_of(Part("image_url", "", {"image_url": "x" * 8})) == 8
    assert size_of(audio(data="x" * 7, format="wav")) == 7
    assert size_of(document(file_data=5)) == 0
