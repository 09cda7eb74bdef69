"""Codecs by name or object, and what each asks of the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Measured on full rings of 32,768 frames of ten Atari games (84x84 gray), geometric means of bytes
# a frame: groups of 8 take 122, of 10 118, of 12 114, of 16 110. A read walks a quarter of a group.
DELTA_GOP_LENGTH = 10
# Packed, groups of 16 take 79, of 24 75, of 32 74.
PACKED_GOP_LENGTH = 24
# The paper keeps every n_stack-th frame raw, and stacks are of 4.
SPARSE_GOP_LENGTH = 4
_GOP_LENGTHS = {
    "sparse": SPARSE_GOP_LENGTH,
    "delta": DELTA_GOP_LENGTH,
    "delta-huffman": PACKED_GOP_LENGTH,
}
NAMES = ("raw", "sparse", "delta", "delta-huffman")


@dataclass(frozen=True)
class Codec:
    """A codec, resolved.

    Attributes
    ----------
    name : str
    foreign : object or None
        A numcodecs codec that codes each frame alone.
    gop_length : int
        Frames of a GOP; 1 for codecs that code each frame alone.
    """

    name: str
    foreign: Any
    gop_length: int

    @property
    def groups(self) -> bool:
        """Whether frames are coded in groups, against each other."""
        return self.name in ("sparse", "delta", "delta-huffman")


def resolve(codec: object, gop_length: int | None) -> Codec:
    """Find a codec by its name, its numcodecs id or configuration, or take it as an object.

    Raises
    ------
    ValueError
        For a name that nobody knows, or a ``gop_length`` that the codec cannot have.
    TypeError
        For an object that is no codec.
    """
    if gop_length is not None and (int(gop_length) != gop_length or not 1 <= gop_length <= 1024):
        raise ValueError(
            f"gop_length={gop_length!r} must be a whole number from 1 to 1024; "
            "1 stores every frame whole"
        )
    if isinstance(codec, str) and codec in NAMES:
        if codec == "raw":
            return Codec(codec, None, 1)
        return Codec(codec, None, _GOP_LENGTHS[codec] if gop_length is None else int(gop_length))
    if isinstance(codec, (str, Mapping)):
        foreign = _from_numcodecs(codec)
    elif callable(getattr(codec, "encode", None)) and callable(getattr(codec, "decode", None)):
        foreign = codec
    else:
        raise TypeError(
            f"codec={codec!r} is neither a name ({', '.join(NAMES)}, or a numcodecs id such as "
            "'zstd') nor an object with encode and decode"
        )
    return Codec(str(getattr(foreign, "codec_id", type(foreign).__name__)), foreign, 1)


def _from_numcodecs(codec: str | Mapping[str, Any]) -> Any:
    known = f"known are {', '.join(NAMES)}"
    try:
        import numcodecs
    except ImportError:
        raise ValueError(
            f"unknown codec {codec!r}: {known}; for numcodecs' codecs install numcodecs"
        ) from None
    config = {"id": codec} if isinstance(codec, str) else dict(codec)
    try:
        return numcodecs.get_codec(config)
    except Exception as error:
        raise ValueError(
            f"unknown codec {codec!r} ({error}): {known}, and the ids of numcodecs, such as "
            "'zstd', 'lz4', 'blosc' or 'gzip'"
        ) from None
