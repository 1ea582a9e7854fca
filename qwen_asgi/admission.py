"""How many requests are let in at once: in all, and of each client."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from qwen_asgi.errors import Overloaded, RateLimited
from qwen_asgi.turns import NoTurn, Turns


class Admission:
    """The chats that are open. `set` says how many may be; those that are there are counted on."""

    def __init__(self) -> None:
        self._turns = Turns()
        self._of_client: dict[str, int] = {}
        """Of those who have any: no client is remembered that has none."""
        self._lock = threading.Lock()
        self._most_of_client: int | None = None
        self._queue = 0
        self._patience = 0.0

    @property
    def open(self) -> int:
        """How many chats are open or wait."""
        return self._turns.busy

    def set(self, *, most: int | None, of_client: int | None, queue: int, patience: float) -> None:
        """Let `most` be open at once in each event loop, and `of_client` of each client; `queue`
        others may wait, `patience` seconds each. None is any number."""
        self._turns.allow(most)
        self._most_of_client = of_client
        self._queue, self._patience = queue, patience

    def enter_at_once(self, client: str) -> Callable[[], None] | None:
        """As `enter`, where there is nothing to wait for; None where there is."""
        self._count(client)
        give_back = self._turns.take_at_once()
        if give_back is None:
            self._leave(client)
            return None
        return partial(self._leave, client, give_back)

    async def enter(self, client: str) -> Callable[[], None]:
        """Let a client's request in, and return what is to be called when it is over.

        Raises Overloaded, and RateLimited for one too many of this client.
        """
        self._count(client)
        try:
            give_back = await self._turns.take(queue=self._queue, patience=self._patience)
        except NoTurn as why:
            self._leave(client)
            raise Overloaded(f"this gateway {why}", retry_after=1) from None
        except BaseException:
            self._leave(client)
            raise
        return partial(self._leave, client, give_back)

    def _count(self, client: str) -> None:
        with self._lock:
            number = self._of_client.get(client, 0)
            if self._most_of_client is not None and number >= self._most_of_client:
                raise RateLimited(
                    f"{number} requests of yours are open, and no more may be at once",
                    code="too_many_requests",
                    retry_after=1,
                )
            self._of_client[client] = number + 1

    def _leave(self, client: str, give_back: Callable[[], None] | None = None) -> None:
        if give_back is not None:
            give_back()
        with self._lock:
            number = self._of_client[client] - 1
            if number:
                self._of_client[client] = number
            else:
                del self._of_client[client]
