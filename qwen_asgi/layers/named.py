"""Notes on the request which upstream is asked."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from qwen_asgi.chat import Batches, ChatRequest, Upstream


class Named:
    """An `Upstream` with a name, that the answer's headers tell."""

    def __init__(self, upstream: Upstream, name: str) -> None:
        self._upstream = upstream
        self._name = name

    def __call__(self, request: ChatRequest) -> AbstractAsyncContextManager[Batches]:
        notes = request.notes
        notes.upstream = self._name
        # What another upstream ignored is not what this one ignores.
        notes.ignored = ()
        return self._upstream(request)
