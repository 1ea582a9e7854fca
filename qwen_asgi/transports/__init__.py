"""The seam to the network: what an upstream call needs of a transport, and nothing more.

The transports themselves are the files beside this one; they alone touch sockets.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(slots=True, kw_only=True)
class UpstreamRequest:
    """One HTTP request to an upstream, as it goes out."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    """Lower-case names; they hold the credential."""
    body: bytes = field(default=b"", repr=False)
    """Holds the prompt."""


class UpstreamResponse(Protocol):
    """The head of an upstream's answer, and its body as it comes."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Lower-case names."""

    @property
    def ends_by_close(self) -> bool:
        """Whether only the end of the connection ends the body, so that a cut looks like an end."""

    async def read(self, within: float) -> bytes:
        """Return all of the body that has arrived, waiting up to `within` seconds for some.

        `b""` is the body's whole and proper end. Raises UpstreamTimeout, UpstreamTruncated when
        the connection broke before the end, or another UpstreamError.
        """


class Transport(Protocol):
    """Sends requests. One serves any number of event loops; what it opens, it opens lazily."""

    def open(
        self, request: UpstreamRequest, *, within: float
    ) -> AbstractAsyncContextManager[UpstreamResponse]:
        """Send `request` and enter with the head of the answer, after `within` seconds at most.

        Leaving gives the connection back, or closes it when the body was not read to its end.
        Raises UpstreamUnreachable, UpstreamTimeout, UpstreamTruncated or Overloaded.
        """

    async def aclose(self) -> None:
        """Close what is open in the running loop. A later `open` starts anew."""
