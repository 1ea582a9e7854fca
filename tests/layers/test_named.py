from __future__ import annotations

from dataclasses import replace

import pytest

from qwen_asgi.chat import Notes
from qwen_asgi.layers.named import Named
from tests.layers.scripted import CHAT, Scripted, answer

pytestmark = pytest.mark.anyio


async def test_it_notes_who_is_asked_and_forgets_what_another_ignored() -> None:
    request = replace(CHAT, notes=Notes(ignored=("seed",), upstream="web", attempts=1))
    await answer(Named(Scripted(), "studio"), request)
    assert request.notes == Notes(ignored=(), upstream="studio", attempts=1)
