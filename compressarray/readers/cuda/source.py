"""The source of the kernels, and the numbers that it shares with the rest of the library."""

from __future__ import annotations

from pathlib import Path

from compressarray.format import (
    codebooks,
    copies,
    groups,
    numbers,
    packed,
    reasons,
    records,
    sparse,
)
from compressarray.store import description

# A request, 64 bits each, and behind it the cells that are wanted. Addresses are the device's.
FIELDS = (
    "N_WANTED",  # cells
    "OUT",  # where their frames go, one behind the other
    "SCRATCH",  # of each warp, `SCRATCH_BYTES`
    "SCRATCH_BYTES",
    "IS_SHARED",  # whether a warp's frame lies in shared memory, or in its scratch, too
    "STATUS",  # where to say what was wrong with a cell
    "RECORD_KIND",
    "N_CELLS",  # that there are
    "STACK",
    "N_LANES",
    "GOP",
    "OPEN_PER_LANE",
    "FRAME_BYTES",
    "ROW_BYTES",
    "PADDED",  # bytes from one frame to the next, in shared memory, of backgrounds and of pins
    "RECORD_ROOM",  # bytes of an unpacked record, 0 where none is packed
    "INDEX",  # of each group or cell: 0, or 1 and where its chunk lies in the blocks, over 8
    "BLOCKS",  # addresses of blocks of chunks
    "N_BLOCKS",
    "BLOCK_SHIFT",  # log2 of their bytes
    "OPEN",  # of each open group, `OPEN_FIELDS`
    "OPEN_MAPS",  # its map, of so many cells
    "MAP_CELLS",
    "OPEN_BYTES",  # and its records, in so many bytes
    "OPEN_ROOM",
    "BACKGROUNDS",
    "N_BACKGROUNDS",
    "PINS",
    "N_PINS",
    "BOOKS",  # codebooks, as `format.codebooks` says
    "N_BOOKS",
)
OPEN_FIELDS = (
    "OPEN_GOP",
    "OPEN_NEXT",
    "OPEN_FRAMES",
    "OPEN_FLAGS",
    "OPEN_BACKGROUND",
    "OPEN_SIZE",
)
# What `format.groups` says of groups, and one kind more: frames as they are.
RAW = description.RAW
# What may be wrong with a cell, besides what may be wrong with a record.
NO_CELL, NO_BOOK = -18, -19
REASONS = reasons.REASONS | {
    NO_CELL: "it is not of this store, or names a background that does not exist",
    NO_BOOK: "it names a codebook, or codes, that do not exist",
}
# 32 steps of that many, and a byte's place in a frame, are less than 2**31.
MAX_WORDS_IN_FRAME = 1 << 25
# Room to look, but not to use, behind whatever is read word by word.
GUARD_BYTES = 64

_SHARED = {
    records: (
        "LITERAL", "UNIFORM", "BACKGROUND", "LEFT", "ABOVE", "NEAR_WORD", "FAR_WORD",
        "LEFT_RESIDUAL", "ABOVE_RESIDUAL", "OLD_RESIDUAL", "RESIDUAL", "ESCAPE", "MIN_ROW_BYTES",
        "N_VALUES",
    ),
    copies: (
        "AGAIN", "UNMOVED", "MOVED", "HERE", "MIN_SPAN", "MORE_LITERALS", "MORE_SPAN",
        "SOURCE_SHIFT", "SPAN_SHIFT", "N_NUMBERS",
    ),
    packed: (
        "TOKEN_MAP", "FIRST_MAP", "NEXT_MAP", "START_CODE", "COUNT_CODE", "KIND_CODE", "MASK_CODE",
        "SKIP_CODE", "FIRST_RESIDUAL_MAP", "RESIDUAL_MAP", "COPY_MAP", "NUMBER_CODE",
        "LITERALS_CODE", "SPAN_CODE", "MOVED_CODE", "HERE_CODE", "RESIDUAL_TABLES_AT", "TABLES_AT",
        "CODE_BITS", "TAKEN", "IS_ESCAPE", "SYMBOL_SHIFT", "CODE_MASK", "LONG_COUNT", "COPIED",
    ),
    numbers: ("MAX_NUMBER_BYTES",),
    sparse: ("RAW_TAG",),
    codebooks: (
        "CODEBOOK_BYTES", "TABLE_AT", "DICTIONARY_AT", "N_WORDS_AT", "MODEL_AT", "MODEL_BYTES_AT",
    ),
    groups: (
        "MAP_FLAG", "PACKED_FLAG", "CODEBOOK_SHIFT", "CODEBOOK_MASK", "NO_FRAME", "DELTA", "SPARSE",
    ),
    reasons: (
        "SHORT", "TOO_LONG", "NO_COUNT", "NO_TOKEN", "NO_KIND", "OUTSIDE", "NO_SOURCE", "NO_WORD",
    ),
}  # fmt: skip


def _numbers() -> dict[str, int]:
    """Every number that the source does not define itself, by name."""
    found = {
        name: int(getattr(module, name)) for module, names in _SHARED.items() for name in names
    }
    found["SPARSE_HEADER_BYTES"] = sparse.HEADER_BYTES
    found["CHUNK_HEADER_BYTES"] = groups.HEADER_BYTES
    found |= {"RAW": RAW, "NO_CELL": NO_CELL, "NO_BOOK": NO_BOOK, "GUARD_BYTES": GUARD_BYTES}
    found["MAX_WORDS_IN_FRAME"] = MAX_WORDS_IN_FRAME
    for fields, count in (
        (FIELDS, "N_FIELDS"),
        (OPEN_FIELDS, "N_OPEN_FIELDS"),
    ):
        found |= {name: i for i, name in enumerate(fields)}
        found[count] = len(fields)
    return found


def source() -> str:
    """The kernels' source: C++ for a CUDA compiler, or for one of the host."""
    defined = "".join(f"#define {name} ({number}ll)\n" for name, number in _numbers().items())
    return defined + Path(__file__).with_name("decode.cu").read_text(encoding="utf-8")
