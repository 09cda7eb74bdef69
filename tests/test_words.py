"""The delta record by itself: every frame comes back, whatever the tables and what lies around."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from compressarray import DiffFrameArray
from compressarray.codecs import words
from compressarray.store import gop_layout, gop_reading, gop_writing
from tests.effort import examples

GUARD = 64


def padded(frame: np.ndarray) -> np.ndarray:
    return np.concatenate([frame, np.full(GUARD, 0xA5, np.uint8)])


class Coder:
    """Records of frames of one size, with one table of tokens."""

    def __init__(self, n_bytes: int, row_bytes: int, tokens: np.ndarray) -> None:
        self.n_bytes, self.row_bytes = n_bytes, row_bytes
        self.decode_table = np.zeros((256, 5), np.uint64)
        self.encode_table = np.zeros(1024, np.uint32)
        words.build_tables(tokens, self.decode_table, self.encode_table)
        n_words = -(-n_bytes // 8)
        self.scratch = np.zeros(17 * n_words + GUARD, np.uint8)
        self.n_words = n_words

    def encode(self, new: np.ndarray, old: np.ndarray, background: np.ndarray) -> np.ndarray:
        out = np.full(self.n_bytes + 8 + GUARD, 0x5A, np.uint8)
        state, new, background = padded(old), padded(new), padded(background)
        coding = self.scratch.ctypes.data
        end = words.encode_record(
            new.ctypes.data, state.ctypes.data, background.ctypes.data, self.n_bytes,
            self.row_bytes, self.encode_table.ctypes.data, coding, coding + self.n_words,
            out.ctypes.data,
        )  # fmt: skip
        n = end - out.ctypes.data
        assert n <= self.n_bytes + 8
        assert np.all(out[self.n_bytes + 8 :] == 0x5A)
        assert np.array_equal(state, new), "the coder's state is the new frame"
        return out[: n + 8].copy()  # a decoder may look eight bytes further

    def decode(self, record: np.ndarray, old: np.ndarray, background: np.ndarray) -> np.ndarray:
        state, background = padded(old), padded(background)
        end = words.apply_record(
            record.ctypes.data, state.ctypes.data, background.ctypes.data, self.n_bytes,
            self.row_bytes, self.decode_table.ctypes.data,
        )  # fmt: skip
        assert end == record.ctypes.data + len(record) - 8, "all of the record was used"
        assert np.all(state[self.n_bytes :] == 0xA5)
        return state[: self.n_bytes]

    def keys(self, record: np.ndarray) -> np.ndarray:
        keys = np.zeros(self.n_words + 1, np.int32)
        n = words.read_tokens(record.ctypes.data, 1, self.n_bytes, self.decode_table, keys, 0)
        return keys[:n].astype(np.int64)


def bytes_of(rng: np.random.Generator, n: int, n_values: int, part: float) -> np.ndarray:
    return (rng.integers(0, n_values, n) * (rng.random(n) < part)).astype(np.uint8)


@settings(max_examples=examples(300), deadline=None)
@given(
    n_bytes=st.integers(1, 200) | st.sampled_from([1024, 7056]),
    row_bytes=st.sampled_from([0, 1, 7, 8, 9, 32, 84]),
    seed=st.integers(0, 2**32 - 1),
    n_values=st.sampled_from([2, 3, 256]),
    parts=st.tuples(*[st.sampled_from([0.0, 0.02, 0.2, 0.7, 1.0])] * 3),
)
def test_records_round_trip(
    n_bytes: int, row_bytes: int, seed: int, n_values: int, parts: tuple[float, float, float]
) -> None:
    """With the tokens to begin with, with none at all, and with those learnt from the record."""
    rng = np.random.default_rng(seed)
    old, background = (bytes_of(rng, n_bytes, n_values, part) for part in parts[:2])
    new = np.where(rng.random(n_bytes) < parts[2], bytes_of(rng, n_bytes, n_values, 0.5), old)
    if rng.random() < 0.5:  # what moved on shows the background
        new = np.where(rng.random(n_bytes) < 0.1, background, new)
    new = new.astype(np.uint8)
    tokens = words.starting_tokens(row_bytes)
    for _ in range(2):
        coder = Coder(n_bytes, row_bytes, tokens)
        record = coder.encode(new, old, background)
        assert np.array_equal(coder.decode(record, old, background), new)
        keys, counts = np.unique(coder.keys(record), return_counts=True)
        if len(keys) == 0:
            return
        tokens = words.choose_tokens(keys, counts)
    bare = Coder(n_bytes, row_bytes, np.zeros(0, np.int64))
    record = bare.encode(new, old, background)
    assert np.array_equal(bare.decode(record, old, background), new)


def test_chosen_tokens_write_a_record_in_fewer_bytes() -> None:
    """More than 255 different changes: a table of whole ones and of parts is the smaller."""
    rng = np.random.default_rng(0)
    skips, masks = rng.integers(0, 30, 4000), rng.integers(1, 40, 4000)
    keys, counts = np.unique((skips << 11) | (masks << 3) | words.LITERAL, return_counts=True)
    assert len(keys) > 4 * 255
    tokens = words.choose_tokens(keys, counts)
    assert len(tokens) <= 255
    assert len(np.unique(tokens)) == len(tokens)
    most_frequent = keys[np.argsort(-counts)[:255]]
    least = words.token_bytes(tokens, keys, counts)
    assert least < 0.75 * words.token_bytes(most_frequent, keys, counts)
    assert least >= counts.sum()


def test_a_change_of_two_tokens_is_learnt_as_one() -> None:
    """Reading tokens joins what the coder had to split."""
    parts = np.array([(9 << 11) | words.LITERAL, (0x0F << 3) | words.LITERAL], np.int64)
    coder = Coder(1024, 32, parts)
    old = np.zeros(1024, np.uint8)
    new = old.copy()
    new[80:84] = [1, 2, 3, 4]  # the eleventh word: skip ten, and change its first four bytes
    record = coder.encode(new, old, np.full(1024, 9, np.uint8))
    assert np.array_equal(coder.decode(record, old, np.full(1024, 9, np.uint8)), new)
    assert record[0] == 2
    assert coder.keys(record).tolist() == [(10 << 11) | (0x0F << 3) | words.LITERAL]


def test_kernels_compute_in_integers_only() -> None:
    """Mixing signed and unsigned makes numba compute addresses in floats."""
    for codec in ("delta", "sparse"):
        array = DiffFrameArray((40, 2, 16, 16), codec=codec, stack_axis=1)
        array[3:9] = np.random.default_rng(0).integers(0, 9, (6, 2, 16, 16)).astype(np.uint8)
        array[:, 0] = array[:, 1]
        assert array[5].shape == (2, 16, 16)
    checked = 0
    for module in (words, gop_layout, gop_reading, gop_writing):
        for name, function in vars(module).items():
            for signature in getattr(function, "signatures", ()):
                assert "float" not in str(signature), f"{module.__name__}.{name}{signature}"
                checked += 1
    assert checked > 20
