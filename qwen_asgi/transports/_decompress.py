"""Bodies that an upstream compressed although it was asked not to."""

from __future__ import annotations

import zlib

from qwen_asgi.errors import UpstreamInvalidResponse

_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}

_GZIP = b"\x1f\x8b"

LARGEST_PIECE = 1024 * 1024
"""Bytes that one step unpacks at most, so that a small body cannot fill the memory."""


class Decompressor:
    """Unpacks a body in pieces: `feed` what arrived, then `take` until it gives nothing."""

    def __init__(self, encoding: str) -> None:
        """Raises UpstreamInvalidResponse for an encoding that is not known."""
        window = _WINDOW.get(encoding.strip().lower())
        if window is None:
            raise UpstreamInvalidResponse("the upstream compressed its answer in an unknown way")
        self._window = window
        self._unpacker = zlib.decompressobj(window)
        self._packed = b""
        self._begun = False
        self._is_over = False
        """Whether something came behind the packed data that is none of it."""

    def feed(self, data: bytes) -> None:
        if not data or self._is_over:
            return
        is_deflate = self._window == zlib.MAX_WBITS
        if is_deflate and not self._begun and data[0] & 0x0F != 8:
            # Some servers leave out the frame that the name stands for (RFC 9110, 8.4.1.2).
            self._unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        self._packed += data
        self._begun = True

    def take(self) -> bytes:
        """Return the next piece; nothing when more has to be fed first."""
        while self._packed:
            if self._unpacker.eof and not self._begin_next():
                return b""
            try:
                piece = self._unpacker.decompress(self._packed, LARGEST_PIECE)
            except zlib.error:
                raise UpstreamInvalidResponse("the upstream's answer cannot be unpacked") from None
            # One of the two is empty: what does not fit into a piece, or what comes after the end.
            self._packed = self._unpacker.unconsumed_tail or self._unpacker.unused_data
            if piece:
                return piece
        return b""

    def _begin_next(self) -> bool:
        """Go on with another member of a gzip file; what is none is not of the body, and is
        dropped with all behind it."""
        if self._window == zlib.MAX_WBITS or not self._packed.startswith(
            _GZIP[: len(self._packed)]
        ):
            self._packed = b""
            self._is_over = True
            return False
        if len(self._packed) < len(_GZIP):
            return False
        self._unpacker = zlib.decompressobj(self._window)
        return True

    @property
    def is_cut(self) -> bool:
        """Whether the packed data did not come to its own end."""
        return self._begun and not self._unpacker.eof
