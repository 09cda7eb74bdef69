"""Histories long enough for an array to learn tables, change backgrounds and clean its arena."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressarray import DiffFrameArray
from compressarray.kernels.compiling import kernel
from compressarray.kernels.memory import (
    base_of,
    changed_bytes,
    count_bits,
    nonzero_bytes,
    portable_spread_bytes,
    portable_squeeze_bytes,
    portable_widen_mask,
    spread_bytes,
    squeeze_bytes,
    widen_mask,
)
from tests.effort import examples
from tests.naive import assert_same
from tests.strategies import frames, game

FRAME = (32, 32)
CODECS = ("raw", "sparse", "delta", "delta-huffman")


def bank() -> np.ndarray:
    return np.concatenate([game(60, FRAME, seed=1), frames("noise", 40, FRAME)])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("seed", range(3))
def test_appends_among_assignments(codec: str, seed: int) -> None:
    """A group stays open while others of its lane are written."""
    pool = bank()
    array = DiffFrameArray((32, *FRAME), codec=codec)
    dense = np.zeros(array.shape, np.uint8)
    rng = np.random.default_rng(seed)
    count = 0
    for step in range(600):
        how = rng.integers(3)
        if how == 0:
            new = pool[rng.integers(0, len(pool), rng.integers(1, 6))]
            array.append(new)
            dense[(count + np.arange(len(new))) % 32] = new
            count += len(new)
        elif how == 1:
            slots = rng.integers(0, 32, 3)
            array[slots] = dense[slots] = pool[rng.integers(0, len(pool), 3)]
        else:
            first, start = rng.integers(0, 28), rng.integers(0, 56)
            array[first : first + 4] = dense[first : first + 4] = pool[start : start + 4]
        if step % 10 == 0:
            assert_same(np.asarray(array), dense)
    assert_same(np.asarray(array), dense)


@pytest.mark.parametrize("codec", CODECS)
def test_rollouts_of_stacks_with_resets(codec: str) -> None:
    """Rows in time order, episodes that begin anywhere, and single cells that break a stack."""
    pool = bank()
    array = DiffFrameArray((40, 2, 4, *FRAME), codec=codec)
    dense = np.zeros(array.shape, np.uint8)
    rng = np.random.default_rng(5)
    for _ in range(80):
        first = int(rng.integers(0, 28))
        for row in range(first, first + int(rng.integers(1, 12))):
            for lane in range(2):
                start = int(rng.integers(0, 50)) if rng.random() < 0.1 else row
                stack = pool[start : start + 4].copy()
                if rng.random() < 0.1:
                    stack[:2] = 0
                array[row, lane] = dense[row, lane] = stack
                if rng.random() < 0.05:
                    k = int(rng.integers(4))
                    array[row, lane, k] = dense[row, lane, k] = stack[0]
        assert_same(np.asarray(array), dense)


@kernel
def _both(value: int, wide: int) -> tuple[int, int, int, int]:
    return (
        spread_bytes(value, wide),
        portable_spread_bytes(value, wide),
        squeeze_bytes(value, wide),
        portable_squeeze_bytes(value, wide),
    )


@kernel
def _masks(word: int) -> tuple[int, int, int]:
    mask = nonzero_bytes(word)
    return mask, widen_mask(mask), portable_widen_mask(mask)


@kernel
def _changes(first: np.ndarray, second: np.ndarray) -> tuple[int, int]:
    changed = changed_bytes(base_of(first), base_of(second))
    return changed, count_bits(changed)


@settings(max_examples=examples(200))
@given(st.integers(0, 2**64 - 1), st.integers(0, 255))
def test_byte_moves_agree_with_their_portable_forms(value: int, mask: int) -> None:
    wide = sum(0xFF << (8 * i) for i in range(8) if mask >> i & 1)
    spread, portable_spread, squeezed, portable_squeezed = _both(np.uint64(value), np.uint64(wide))
    assert spread == portable_spread
    assert squeezed == portable_squeezed
    data = value.to_bytes(8, "little")
    kept = bytes(data[i] for i in range(8) if mask >> i & 1)
    assert int(squeezed) == int.from_bytes(kept, "little")
    widened = sum(0xFF << (8 * i) for i in range(8) if mask >> i & 1 and data[i])
    assert tuple(map(int, _masks(np.uint64(value & wide)))) == (
        sum(1 << i for i in range(8) if mask >> i & 1 and data[i]),
        widened,
        widened,
    )


@settings(max_examples=examples(200))
@given(st.integers(0, 2**64 - 1), st.integers(0, 7))
def test_changed_bytes_of_a_block(changed: int, start: int) -> None:
    """Blocks may lie anywhere: no alignment is asked for."""
    first = np.arange(72, dtype=np.uint8)
    second = first.copy()
    for i in range(64):
        second[start + i] ^= 0x80 * (changed >> i & 1)
    found, n = _changes(first[start:], second[start:])
    assert int(found) == changed
    assert int(n) == changed.bit_count()
