"""How a group of pictures is written: a header, a map, and records, the keyframe's first.

    flags u8 | background u8 | n_frames u16 | earlier u32 | map u16 * cells, where flagged | records

Delta records begin with the keyframe, which is the middle one, ``n_frames // 2``, coded against the
group's background. The later frames follow, each coded against the one before it, and then,
``earlier`` bytes after the first record (bits, where records are packed), the earlier ones
backwards, each against the one after it. A read so walks a quarter of its group in the mean, not
half of it, and the group costs no byte more. Sparse records are in time order, and so are those of
open groups, which have their parts in arrays and no header.

Without a map, cell ``i`` has frame ``i // stack``. With one (episodes that begin inside the group,
or cells that are no stacks) it has frame ``map[i]``, `NO_FRAME` if it was never written.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.kernels.compiling import inlined
from compressarray.kernels.memory import load8, load16, load32, store8, store16, store32

UInt8s = npt.NDArray[np.uint8]

HEADER_BYTES = 8
MAP_FLAG = 1
CODEBOOK_SHIFT, CODEBOOK_MASK = 1, 7
PACKED_FLAG = 128  # the records are packed
ALL_FLAGS = MAP_FLAG | CODEBOOK_MASK << CODEBOOK_SHIFT | PACKED_FLAG
NO_FRAME = 65535

DELTA, SPARSE = 0, 1
PACKED = 2  # delta records that went through an entropy coder


class Group(NamedTuple):
    """The parts of a group, in kernels."""

    flags: int
    background: int  # its number
    n_frames: int
    key: int  # the number of the frame that the first record is of
    earlier: int  # from the first record to that of the frame before the keyframe
    map: int  # address of the map, where flagged
    records: int  # address of the first record


@inlined
def open_group(kind: Any, n_cells: Any, group: Any) -> Any:
    """Find the parts of a group at an address; see `Group`.

    Parameters
    ----------
    kind : int
        `DELTA`, packed or not, or `SPARSE`.
    n_cells : int
        Cells in a map.
    """
    flags, n_frames = flags_at(group), np.int64(load16(group + 2))
    cells = group + HEADER_BYTES
    return Group(
        flags,
        background_number(group),
        n_frames,
        keyframe(kind, n_frames),
        np.int64(load32(group + 4)),
        cells,
        cells + map_bytes(flags, n_cells),
    )


@inlined
def flags_at(group: Any) -> Any:
    """The flags of a group at an address."""
    return np.int64(load8(group))


@inlined
def background_number(group: Any) -> Any:
    """The number of the background of a group at an address."""
    return np.int64(load8(group + 1))


@inlined
def write_header(group: Any, flags: Any, background: Any, n_frames: Any, earlier: Any) -> None:
    """Write a group's header."""
    store8(group, np.uint8(flags))
    store8(group + 1, np.uint8(background))
    store16(group + 2, np.uint16(n_frames))
    store32(group + 4, np.uint32(earlier))


@inlined
def map_bytes(flags: Any, n_cells: Any) -> Any:
    """Bytes of a group's map: none, if it is not flagged."""
    return 2 * n_cells * (flags & MAP_FLAG)


@inlined
def codebook_of(flags: Any) -> Any:
    """Number of the codebook that a group's flags name."""
    return (flags >> CODEBOOK_SHIFT) & CODEBOOK_MASK


@inlined
def frame_of_cell(group: Any, cell: Any, stack: Any) -> Any:
    """Number of the frame that a cell of a group has; `NO_FRAME`, or one too many, for none."""
    return np.int64(load16(group.map + 2 * cell)) if group.flags & MAP_FLAG else cell // stack


# -- for Python -----------------------------------------------------------------------------


def flags_of(group: UInt8s) -> int:
    """The flags of a group."""
    return int(group[0])


def n_frames_of(group: UInt8s) -> int:
    """How many frames a group has."""
    return int(group[2]) | int(group[3]) << 8


def name_codebook(group: UInt8s, number: int) -> None:
    """Let a group name another codebook, of the same tokens and words."""
    group[0] = naming(flags_of(group), number)


def naming(flags: Any, number: int) -> Any:
    """The same flags, or an array of them, with another codebook's number."""
    return flags & ~(CODEBOOK_MASK << CODEBOOK_SHIFT) | number << CODEBOOK_SHIFT


# -- the order of records --------------------------------------------------------------------


@inlined
def keyframe(kind: Any, n_frames: Any) -> Any:
    """Number of the frame that a closed group begins with."""
    return n_frames >> 1 if kind != SPARSE else 0


@inlined
def frame_of_record(i: Any, key: Any, n_frames: Any) -> Any:
    """Number of the frame that the ``i``-th record is of: later ones rise, earlier ones fall.

    Record ``n_frames - key`` is the first of an earlier frame.
    """
    return key + i if i < n_frames - key else n_frames - 1 - i


@inlined
def reference_of(number: Any, key: Any) -> Any:
    """Number of the frame that a frame is coded against; -1 for the background, of the keyframe."""
    return number - 1 if number > key else -1 if number == key else number + 1
