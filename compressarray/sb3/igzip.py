"""gzip by ISA-L, as a numcodecs codec."""

from __future__ import annotations

from typing import Any

import numcodecs
from isal import igzip
from numcodecs.abc import Codec
from numcodecs.compat import ensure_bytes, ndarray_copy


class Igzip(Codec):  # type: ignore[misc]  # numcodecs has no types
    """gzip, compressed by the package isal.

    Parameters
    ----------
    level : int, default 1
        0 to 3.
    """

    codec_id = "compressarray.igzip"

    def __init__(self, level: int = 1) -> None:
        if not 0 <= level <= 3:
            raise ValueError(f"igzip's level={level} must be from 0 to 3")
        self.level = level

    def encode(self, buf: Any) -> bytes:
        """Compress."""
        return bytes(igzip.compress(ensure_bytes(buf), self.level, mtime=0))

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decompress, into `out` if given."""
        pixels = igzip.decompress(ensure_bytes(buf))  # type: ignore[no-untyped-call]
        return pixels if out is None else ndarray_copy(pixels, out)


numcodecs.register_codec(Igzip)
