"""From record to record of a group, of whichever kind they are."""

from __future__ import annotations

from typing import Any, NamedTuple

from compressarray.codecs.sparse import apply_sparse, skip_sparse
from compressarray.codecs.unpacking import begin_again, next_record, read_until, unpacking_bytes
from compressarray.codecs.words import apply_record
from compressarray.format.groups import PACKED, SPARSE, frame_of_record, reference_of
from compressarray.kernels.compiling import inlined, kernel
from compressarray.kernels.memory import copy_bytes


class Walk(NamedTuple):
    """What it takes to walk along a group's records, in kernels: numbers, and addresses."""

    kind: int  # DELTA, PACKED or SPARSE
    n_bytes: int  # of a frame
    row_bytes: int
    records: int  # the first one
    background: int
    codebook: int
    scratch: int  # of `walking_bytes`


@inlined
def walking_bytes(n_bytes: Any, packed: Any) -> Any:
    """Bytes of scratch to walk: a frame, and to unpack."""
    return n_bytes + 32 + (unpacking_bytes(n_bytes) if packed else 0)


@inlined
def unpacking_at(scratch: Any, n_bytes: Any) -> Any:
    """The address of `unpacking_bytes` in the scratch of a walk along packed records."""
    return scratch + walking_bytes(n_bytes, False)


@inlined
def walk_from(walk: Any, record: Any) -> Any:
    """Begin a walk at a first record, or a run's, once more if need be; return it."""
    if walk.kind == PACKED:
        begin_again(record)
    return record


@kernel
def walk_on(walk: Any, record: Any, n: Any, frame: Any) -> Any:
    """Walk ``n`` records on, at least one; leave the last one's frame at ``frame``.

    Delta records change the frame that is there. Returns where the next record is: of packed ones,
    the run that says so.
    """
    n_bytes, row_bytes, scratch = walk.n_bytes, walk.row_bytes, walk.scratch
    if walk.kind == SPARSE:
        for _ in range(n - 1):
            record = skip_sparse(record, n_bytes, row_bytes)
        return apply_sparse(record, walk.records, frame, n_bytes, row_bytes)
    plain = record
    for _ in range(n):
        if walk.kind == PACKED:
            plain = next_record(record, n_bytes, unpacking_at(scratch, n_bytes))
        plain = apply_record(
            plain, frame, walk.background, n_bytes, row_bytes, walk.codebook, scratch
        )
        if walk.kind == PACKED:
            read_until(record, plain)
    return record if walk.kind == PACKED else plain


@kernel
def decode_all(walk: Any, key: Any, n_frames: Any, frames: Any, step: Any) -> Any:
    """Decode all frames of a group to ``frames + number * step``; return where its records end."""
    record = walk.records
    for i in range(n_frames):
        number = frame_of_record(i, key, n_frames)
        frame, reference = frames + number * step, reference_of(number, key)
        before = walk.background if reference < 0 else frames + reference * step
        copy_bytes(frame, before, walk.n_bytes)
        record = walk_on(walk, record, 1, frame)
    return record
