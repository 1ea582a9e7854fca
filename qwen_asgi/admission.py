"""How many requests are let in at once: in all, and of each client."""

from __future__ import annotations

import threading
from collections.abc import Callable

from qwen_asgi.errors import Overloaded, RateLimited
from qwen_asgi.turns import NoTurn, Turns


class Admission:
    """The chats that are open. `set` says how many may be; those that are there are counted on."""

    def __init__(self) -> None:
        self._turns = Turns()
        self._of_client: dict[str, int] = {}
        """Of those who have any: no client is remembered that has none."""
        self._queued = 0
        self._lock = threading.Lock()
        self._most_of_client: int | None = None
        self._queue = 0
        self._patience = 0.0

    @property
    def open(self) -> int:
        """How many chats are open or wait."""
        with self._lock:
            return sum(self._of_client.values())

    def set(self, *, most: int | None, of_client: int | None, queue: int, patience: float) -> None:
        """Let `most` be open at once in each event loop, and `of_client` of each client; `queue`
        others may wait, `patience` seconds each. None is any number."""
        self._turns.allow(most)
        self._most_of_client = of_client
        self._queue, self._patience = queue, patience

    def enter(self, client: str) -> Place:
        """Give a client's request its turn, or else a place in the queue; `leave` it in any case.

        Raises Overloaded, and RateLimited for one too many of this client.
        """
        with self._lock:
            number = self._of_client.get(client, 0)
            if self._most_of_client is not None and number >= self._most_of_client:
                raise RateLimited(
                    f"{number} requests of yours are open, and no more may be at once",
                    code="too_many_requests",
                    retry_after=1,
                )
            turn = self._turns.take_at_once()
            if turn is None:
                if self._queued >= self._queue:
                    raise _full(f"is busy, and {self._queued} wait for their turn")
                self._queued += 1
            self._of_client[client] = number + 1
        return Place(self, client, turn)

    async def _turn(self) -> Callable[[], None]:
        try:
            turn = await self._turns.take(queue=self._queue, patience=self._patience)
        except NoTurn as why:
            raise _full(str(why)) from None
        with self._lock:
            self._queued -= 1
        return turn

    def _leave(self, client: str, *, from_queue: bool) -> None:
        with self._lock:
            self._queued -= from_queue
            number = self._of_client[client] - 1
            if number:
                self._of_client[client] = number
            else:
                del self._of_client[client]


class Place:
    """A request that is let in, or that waits until it is."""

    __slots__ = ("_admission", "_client", "_give_back")

    def __init__(
        self, admission: Admission, client: str, give_back: Callable[[], None] | None
    ) -> None:
        self._admission = admission
        self._client = client
        self._give_back = give_back

    @property
    def has_turn(self) -> bool:
        return self._give_back is not None

    async def turn(self) -> None:
        """Wait for it. Raises Overloaded."""
        self._give_back = await self._admission._turn()

    def leave(self) -> None:
        if self._give_back is not None:
            self._give_back()
        self._admission._leave(self._client, from_queue=self._give_back is None)


def _full(why: str) -> Overloaded:
    return Overloaded(f"this gateway {why} (QWEN_MAX_REQUESTS, QWEN_QUEUE)", retry_after=1)
