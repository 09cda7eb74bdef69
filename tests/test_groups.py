"""The grammar of groups and codebooks: what is written can be found again, wherever it lies."""

from __future__ import annotations

import numpy as np
import pytest

from compressarray.format import codebooks, groups
from compressarray.kernels.compiling import plain
from tests.test_words import Coder, bytes_of


@pytest.mark.parametrize("kind", [groups.DELTA, groups.SPARSE])
@pytest.mark.parametrize("n_frames", [0, 1, 2, 3, 10, 23])
def test_every_frame_is_coded_once_and_behind_its_reference(kind: int, n_frames: int) -> None:
    key = plain(groups.keyframe)(kind, n_frames)
    order = [plain(groups.frame_of_record)(i, key, n_frames) for i in range(n_frames)]
    assert sorted(order) == list(range(n_frames))
    assert (order == sorted(order)) == (kind == groups.SPARSE or n_frames < 2)
    for i, number in enumerate(order):
        assert (number < key) == (i >= n_frames - key)
        reference = plain(groups.reference_of)(number, key)
        assert reference in order[:i] or (reference, i) == (-1, 0)


@pytest.mark.parametrize("flags", [0, 0x87, 0x0C, 0x81])
def test_a_header_is_found_as_it_was_written(flags: int) -> None:
    written = np.full(40, 0xA5, np.uint8)
    at = written.ctypes.data
    groups.write_header(at, flags, 254, 301, 0xFEDCBA98)
    assert (written[8:] == 0xA5).all()
    written[8:32:2], written[9:32:2] = np.arange(12), 1
    group = groups.open_group(groups.DELTA, 12, at)
    assert group == groups.Group(
        flags, 254, 301, 150, 0xFEDCBA98, at + 8, at + 8 + 24 * (flags & 1)
    )
    assert groups.frame_of_cell(group, 5, 4) == (256 + 5 if flags & 1 else 1)
    assert groups.flags_of(written) == flags
    assert groups.n_frames_of(written) == 301
    groups.name_codebook(written, 5)
    assert written[0] == flags & 0xF1 | 5 << 1


def test_codebooks_are_read_wherever_they_lie_and_held_once() -> None:
    rng = np.random.default_rng(0)
    n_bytes = 320
    dictionary = rng.integers(1, 2**64, 300, dtype=np.uint64)
    tokens = np.array([0xFF << 4 | 5, 0xFF << 4 | 6])  # near and far words of the dictionary
    coder = Coder(n_bytes, 40, tokens, dictionary)
    longer = np.concatenate([dictionary, dictionary[:50]])
    table, model = coder.decode_table, rng.integers(0, 256, 64, dtype=np.uint8)
    books = [
        codebooks.Parts(table.copy(), longer, model),
        None,
        codebooks.Parts(table, longer[: len(dictionary)], None),
        codebooks.Parts(table, longer[:0], model),
    ]
    behind = np.arange(3, dtype=np.uint64)
    data, laid_out, n_read_bytes = codebooks.lay_out(books, behind)
    assert n_read_bytes == 4 * 20 + 2 * table.nbytes + longer.nbytes + model.nbytes
    assert (data[n_read_bytes:].view(np.uint64) == behind).all()
    for book, laid in zip(books, laid_out, strict=True):
        assert (book is None) == (laid is None)
        for part, other in zip(book or (), laid or (), strict=True):
            assert (part is None) == (other is None)
            assert part is None or np.array_equal(part, other)
            assert other is None or not other.size or np.shares_memory(other, data)

    # and so they lay out again, no longer than before
    assert len(codebooks.lay_out(laid_out, behind)[0]) == len(data)

    background = np.zeros(n_bytes, np.uint8)
    old = bytes_of(rng, n_bytes, 3, 0.5)
    new = dictionary[rng.integers(0, 300, n_bytes // 8)].view(np.uint8)
    record = coder.encode(new, old, background)
    assert len(record) < n_bytes / 2
    for shift in (0, 8, 4096):
        moved = np.full(shift + n_read_bytes, 0xA5, np.uint8)
        moved[shift:] = data[:n_read_bytes]
        coder.codebook = moved[shift + 2 * codebooks.CODEBOOK_BYTES :]
        assert np.array_equal(coder.decode(record, old, background), new)
        row = codebooks.codebook_at(moved.ctypes.data + shift, 0)
        assert codebooks.model_of(row) > row
        assert codebooks.model_of(codebooks.codebook_at(moved.ctypes.data + shift, 2)) == 0
