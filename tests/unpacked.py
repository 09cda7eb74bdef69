"""Packed records unpacked in runs, and compared with what was packed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compressarray.codecs import unpacking
from compressarray.codecs.packing import Packer
from compressarray.format import codebooks
from compressarray.format.records import record_room

GUARD = 64


def assert_unpack(
    packed: np.ndarray,
    ends: Sequence[int],
    records: Sequence[np.ndarray],
    n_bytes: int,
    table: np.ndarray,
    packer: Packer,
    side_by_side: Sequence[int] = (1, 2, 3, 7),
) -> None:
    """Unpack records alone, in so many runs side by side, and with room for one at a time.

    Parameters
    ----------
    packed : (m,) uint8
    ends : sequence of int
        The bit after each record.
    records : sequence of (k,) uint8
        What was packed, and nothing behind it.
    """
    book = codebooks.Parts(table, np.zeros(0, np.uint64), packer.model)
    codebook, _, _ = codebooks.lay_out([book], np.zeros(0, np.uint8))
    scratch = np.full(unpacking.unpacking_bytes(n_bytes), 0x5A, np.uint8)
    # what was packed is not always what an encoder writes, which is shorter
    room = max(record_room(n_bytes), *map(len, records)) + 8
    starts = [0, *ends]
    for n_runs in side_by_side:
        for n_at_once in (1, 3):
            rooms = np.full((n_runs, n_at_once * room + GUARD), 0xA5, np.uint8)
            runs = np.zeros((n_runs, unpacking.RUN_BYTES), np.uint8)
            parts = np.array_split(np.arange(len(records)), n_runs)
            for run, its_room, part in zip(runs, rooms, parts, strict=True):
                first = starts[part[0]] if len(part) else 0
                unpacking.begin_run(
                    run.ctypes.data, 8 * packed.ctypes.data + first, len(part), n_bytes,
                    codebook.ctypes.data, its_room.ctypes.data,
                    its_room[n_at_once * room :].ctypes.data,
                )  # fmt: skip
            unpacking.unpack_runs(runs.ctypes.data, n_runs, n_bytes, scratch.ctypes.data)
            for run, its_room, part in zip(runs, rooms, parts, strict=True):
                begin = its_room.ctypes.data
                for i in [*part[:1], *part]:  # the first one twice
                    if i == part[0]:
                        unpacking.begin_again(run.ctypes.data)
                    at = unpacking.next_record(run.ctypes.data, n_bytes, scratch.ctypes.data)
                    found = its_room[at - begin : at - begin + len(records[i])]
                    assert np.array_equal(found, records[i])
                    unpacking.read_until(run.ctypes.data, at + len(records[i]))
                if len(part):
                    after = unpacking.get(run.ctypes.data, unpacking.POS)
                    assert after == 8 * packed.ctypes.data + ends[part[-1]]
            assert (rooms[:, n_at_once * room :] == 0xA5).all()
