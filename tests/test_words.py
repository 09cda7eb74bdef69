"""The delta record by itself: every frame comes back, whatever the tables and what lies around."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressarray import DiffFrameArray
from compressarray.codecs import checking, entropy, learning, packing, unpacking, words
from compressarray.format import codebooks
from compressarray.format import packed as packed_records
from compressarray.format import records as delta
from compressarray.store import (
    gop_checking,
    gop_layout,
    gop_packing,
    gop_reading,
    gop_writing,
)
from tests.effort import examples
from tests.unpacked import assert_unpack

GUARD = 64


def padded(frame: np.ndarray) -> np.ndarray:
    return np.concatenate([frame, np.full(GUARD, 0xA5, np.uint8)])


class Coder:
    """Records of frames of one size, with one table of tokens, a dictionary and codes."""

    def __init__(
        self,
        n_bytes: int,
        row_bytes: int,
        tokens: np.ndarray,
        dictionary: np.ndarray | None = None,
        first_near: int = 0,
        pixel_bytes: int = 0,
    ) -> None:
        self.n_bytes, self.row_bytes = n_bytes, row_bytes
        self.room = delta.record_bytes(n_bytes, pixel_bytes) + 8
        self.dictionary = np.zeros(0, np.uint64) if dictionary is None else dictionary
        self.decode_table = np.zeros((256, 4), np.uint64)
        n_dictionary = len(self.dictionary)
        self.encode_table = np.zeros(words.encode_table_words(n_dictionary), np.uint64)
        words.build_tables(
            tokens, self.dictionary, first_near, pixel_bytes, 3, self.decode_table,
            self.encode_table,
        )  # fmt: skip
        assert words.codebook_number(self.encode_table.ctypes.data) == 3
        book = codebooks.Parts(self.decode_table, self.dictionary, None)
        self.codebook, _, _ = codebooks.lay_out([book], np.zeros(0, np.uint8))
        n_words = -(-n_bytes // 8)
        self.old = np.zeros(n_bytes + 32, np.uint8)
        self.scratch = np.zeros(17 * n_words + GUARD, np.uint8)
        self.n_words = n_words

    def encode(self, new: np.ndarray, old: np.ndarray, background: np.ndarray) -> np.ndarray:
        out = np.full(self.room + GUARD, 0x5A, np.uint8)
        state, new, background = padded(old), padded(new), padded(background)
        coding = self.scratch.ctypes.data
        end, _ = words.encode_words(
            new.ctypes.data, state.ctypes.data, background.ctypes.data, self.n_bytes,
            self.row_bytes, self.encode_table.ctypes.data, coding, coding + self.n_words,
            out.ctypes.data,
        )  # fmt: skip
        n = end - out.ctypes.data
        assert n <= self.room
        assert np.all(out[self.room :] == 0x5A)
        assert np.array_equal(state, new), "the coder's state is the new frame"
        return out[: n + 8].copy()  # a decoder may look eight bytes further

    def decode(self, record: np.ndarray, old: np.ndarray, background: np.ndarray) -> np.ndarray:
        state, background = padded(old), padded(background)
        end = words.apply_record(
            record.ctypes.data, state.ctypes.data, background.ctypes.data, self.n_bytes,
            self.row_bytes, self.codebook.ctypes.data, self.old.ctypes.data,
        )  # fmt: skip
        assert end == record.ctypes.data + len(record) - 8, "all of the record was used"
        assert np.all(state[self.n_bytes :] == 0xA5)
        return state[: self.n_bytes]

    def is_raw(self, record: np.ndarray) -> bool:
        n_tokens, shift = 0, 0
        for byte in record.tolist():
            n_tokens |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        return n_tokens > self.n_words

    def pack(self, records: list[np.ndarray], side_by_side: tuple[int, ...] = (1, 2, 3, 7)) -> None:
        """Records go through codes learnt from them, and come back in so many runs."""
        counts = np.zeros((packed_records.N_CONTEXTS, 256), np.int32)
        for record in records:
            end = entropy.count_symbols(
                record.ctypes.data, 1, self.n_bytes, self.decode_table.ctypes.data, counts
            )
            assert end == record.ctypes.data + len(record) - 8
        # and through codes learnt when there were no residuals, and codes that name nothing
        early = counts.copy()
        early[packed_records.FIRST_RESIDUAL_MAP :] = 0
        for counted in (counts, early, np.zeros_like(counts)):
            packer = packing.Packer(counted, 8)
            model, encode = packer.model.ctypes.data, packer.encode.ctypes.data
            packed = np.full(sum(2 * len(record) + 8 for record in records) + 64, 0xFF, np.uint8)
            pos, ends = 0, []
            for record in records:
                end, pos = entropy.pack_record(
                    record.ctypes.data, self.n_bytes, self.decode_table.ctypes.data, model,
                    encode, packed.ctypes.data, pos,
                )  # fmt: skip
                assert end == record.ctypes.data + len(record) - 8
                ends.append(pos)
            if counted is counts:
                n_long = int(counts[packed_records.COUNT_CODE, packed_records.LONG_COUNT])
                raw = any(self.is_raw(record) for record in records)
                assert raw or packer.packed_bits(counts) + 24 * n_long == pos
            plain = [record[:-8] for record in records]
            assert_unpack(
                packed, ends, plain, self.n_bytes, self.decode_table, packer, side_by_side
            )


def changes_of(
    new: np.ndarray,
    old: np.ndarray,
    background: np.ndarray,
    row_bytes: int,
    pixel_bytes: int = 0,
) -> learning.Changes:
    n_bytes = len(new)
    keys, found = np.zeros(n_bytes, np.int64), np.zeros(n_bytes, np.uint64)
    residuals = np.zeros(n_bytes, np.uint8)
    new, old, background = padded(new), padded(old), padded(background)
    n = learning.read_changes(
        old.ctypes.data, new.ctypes.data, background.ctypes.data, n_bytes, row_bytes,
        pixel_bytes, keys, found, residuals, 0,
    )  # fmt: skip
    return learning.Changes(keys[:n], found[:n], residuals[:n])


def bytes_of(rng: np.random.Generator, n: int, n_values: int, part: float) -> np.ndarray:
    return (rng.integers(0, n_values, n) * (rng.random(n) < part)).astype(np.uint8)


@settings(max_examples=examples(150), deadline=None)
@given(
    n_bytes=st.integers(1, 200) | st.sampled_from([1024, 7056]),
    row_bytes=st.sampled_from([0, 1, 7, 8, 9, 32, 84]),
    pixel_bytes=st.integers(0, 8),
    seed=st.integers(0, 2**32 - 1),
    n_values=st.sampled_from([2, 3, 256]),
    parts=st.tuples(*[st.sampled_from([0.0, 0.02, 0.2, 0.7, 1.0])] * 3),
)
def test_records_round_trip(
    n_bytes: int,
    row_bytes: int,
    pixel_bytes: int,
    seed: int,
    n_values: int,
    parts: tuple[float, float, float],
) -> None:
    """With the tokens to begin with, with none at all, and with those learnt from the record."""
    rng = np.random.default_rng(seed)
    old, background = (bytes_of(rng, n_bytes, n_values, part) for part in parts[:2])
    new = np.where(rng.random(n_bytes) < parts[2], bytes_of(rng, n_bytes, n_values, 0.5), old)
    if rng.random() < 0.5:  # what moved on shows the background
        new = np.where(rng.random(n_bytes) < 0.1, background, new)
    if rng.random() < 0.5:  # colours that run into each other
        new = new + np.cumsum(rng.integers(-2, 3, n_bytes)) * (rng.random() < 0.5)
    new = new.astype(np.uint8)
    tokens = learning.starting_tokens(row_bytes)
    none = np.zeros(0, np.uint64)
    coder = Coder(n_bytes, row_bytes, tokens, pixel_bytes=pixel_bytes)
    first = coder.encode(new, old, background)
    assert np.array_equal(coder.decode(first, old, background), new)
    changes = changes_of(new, old, background, row_bytes, pixel_bytes)
    if len(changes.keys):
        known = rng.choice(changes.words, len(changes.words) // 2)
        learnt = learning.learn(changes, known[known != 0], 100.0)
        near = np.zeros(delta.N_NEAR, np.uint64)
        near[: len(learnt.near)] = learnt.near
        dictionary = np.concatenate([known[known != 0], near, learnt.far])
        first_near = int(np.count_nonzero(known))
        taught = Coder(n_bytes, row_bytes, learnt.tokens, dictionary, first_near, pixel_bytes)
        record = taught.encode(new, old, background)
        assert np.array_equal(taught.decode(record, old, background), new)
        taught.pack([record, record])
        coder.pack([first])
        now = learning.written_bytes(changes, tokens, none, none)
        assert learnt.n_bytes <= now
    bare = Coder(n_bytes, row_bytes, np.zeros(0, np.int64), pixel_bytes=pixel_bytes)
    record = bare.encode(new, old, background)
    assert np.array_equal(bare.decode(record, old, background), new)
    bare.pack([record])


def test_chosen_tokens_write_a_record_in_fewer_bytes() -> None:
    """More than 255 different changes: a table of whole ones and of parts is the smaller."""
    rng = np.random.default_rng(0)
    skips, masks = rng.integers(0, 30, 4000), rng.integers(1, 40, 4000)
    pairs = zip(skips, masks, strict=True)
    seen = [delta.token_key(skip, mask, delta.LITERAL) for skip, mask in pairs]
    keys, counts = np.unique(seen, return_counts=True)
    assert len(keys) > 4 * 255
    tokens = learning.choose_tokens(keys, counts)
    assert len(tokens) <= 255
    assert len(np.unique(tokens)) == len(tokens)
    most_frequent = keys[np.argsort(-counts)[:255]]
    least = learning.token_bytes(tokens, keys, counts)
    assert least < 0.75 * learning.token_bytes(most_frequent, keys, counts)
    assert least >= counts.sum()


def test_a_change_may_take_two_tokens() -> None:
    """One that skips and one that changes, where no token does both."""
    parts = np.array(
        [delta.token_key(9, 0, delta.LITERAL), delta.token_key(0, 0x0F, delta.LITERAL)], np.int64
    )
    coder = Coder(1024, 32, parts)
    old = np.zeros(1024, np.uint8)
    new = old.copy()
    new[80:84] = [1, 2, 3, 4]  # the eleventh word: skip ten, and change its first four bytes
    background = np.full(1024, 9, np.uint8)
    record = coder.encode(new, old, background)
    assert np.array_equal(coder.decode(record, old, background), new)
    assert record[0] == 2
    keys = changes_of(new, old, background, 32).keys
    assert keys.tolist() == [delta.token_key(10, 0x0F, delta.LITERAL)]


def test_runs_of_large_frames_are_unpacked_one_after_the_other() -> None:
    """Frames above 16 MiB have one reader: see `unpacking_bytes`."""
    n_bytes = (1 << 24) + 8
    per_reader = unpacking.unpacking_bytes(n_bytes - 8) // 3
    assert per_reader <= unpacking.unpacking_bytes(n_bytes) < 2 * per_reader
    old = np.zeros(n_bytes, np.uint8)
    new = old.copy()
    new[:4000:7] = 3
    new[-9:] = 5
    token = np.array([delta.token_key(0, 0x0F, delta.LITERAL)], np.int64)
    coder = Coder(n_bytes, 4096, token)
    record = coder.encode(new, old, old)
    assert np.array_equal(coder.decode(record, old, old), new)
    coder.pack([record] * 3, side_by_side=(1, 2))


def test_words_that_come_again_are_named() -> None:
    """A near word takes one byte, a far one two, and eight bytes without a dictionary."""
    rng = np.random.default_rng(0)
    sprites = rng.integers(0, 2**63, 300).astype(np.uint64)
    old = np.zeros(8 * 64, np.uint64)
    new = old.copy()
    new[:64:2] = rng.choice(sprites[:200], 32)
    new[1:64:2] = rng.choice(sprites[256:], 32)
    tokens = np.array([delta.token_key(0, 0xFF, kind) for kind in delta.KINDS], np.int64)
    old, new = old.view(np.uint8), new.view(np.uint8)
    sizes = []
    for dictionary in (None, sprites):
        coder = Coder(len(new), 64, tokens, dictionary)
        record = coder.encode(new, old, np.full_like(old, 9))
        assert np.array_equal(coder.decode(record, old, np.full_like(old, 9)), new)
        coder.pack([record])
        sizes.append(len(record) - 8)
    assert sizes == [1 + 64 + 8 * 64, 1 + 64 + 32 + 2 * 32]


@pytest.mark.parametrize("pixel_bytes", range(1, 9))
def test_residuals_are_what_is_left_of_a_neighbour(pixel_bytes: int) -> None:
    """Against loops over bytes: the frame before, the row above, the pixel to the left."""
    rng = np.random.default_rng(pixel_bytes)
    row_bytes, n_bytes = 48, 48 * 6
    background = np.full(n_bytes, 7, np.uint8)
    noise = rng.integers(0, 256, n_bytes, dtype=np.uint8)
    small = rng.integers(0, 3, n_bytes, dtype=np.uint8)
    left, above = noise.copy(), noise.copy()
    for i in range(8, n_bytes):
        left[i] = (int(left[i - pixel_bytes]) + int(small[i])) % 256
    for i in range(row_bytes, n_bytes):
        above[i] = (int(above[i - row_bytes]) + int(small[i])) % 256
    old = rng.integers(0, 256, n_bytes, dtype=np.uint8)
    for kind, new, first in (
        (delta.LEFT_RESIDUAL, left, 1),
        (delta.ABOVE_RESIDUAL, above, row_bytes // 8),
        (delta.OLD_RESIDUAL, old + small + np.uint8(1), 0),
    ):
        keys = [delta.token_key(0, 0xFF, delta.LITERAL), delta.token_key(0, 0xFF, kind)]
        coder = Coder(n_bytes, row_bytes, np.array(keys), pixel_bytes=pixel_bytes)
        record = coder.encode(new, old, background)
        assert np.array_equal(coder.decode(record, old, background), new)
        n_tokens = n_bytes // 8
        assert record[0] == n_tokens
        assert record[1 : 1 + n_tokens].tolist() == [0] * first + [1] * (n_tokens - first)
        values = record[1 + n_tokens + 8 * first : -8]
        expected = small[8 * first :] + np.uint8(kind == delta.OLD_RESIDUAL)
        assert np.array_equal(values, expected)
        coder.pack([record, record])


def test_kernels_compute_in_integers_only() -> None:
    """Mixing signed and unsigned makes numba compute addresses in floats."""
    for codec in ("delta", "sparse"):
        array = DiffFrameArray((40, 2, 16, 16), codec=codec, stack_axis=1)
        array[3:9] = np.random.default_rng(0).integers(0, 9, (6, 2, 16, 16)).astype(np.uint8)
        array[:, 0] = array[:, 1]
        assert pickle.loads(pickle.dumps(array))[5].shape == (2, 16, 16)
    checked = 0
    codecs = checking, entropy, learning, words
    for module in (*codecs, gop_checking, gop_layout, gop_packing, gop_reading, gop_writing):
        for name, function in vars(module).items():
            part = getattr(function, "part", function)  # as other kernels call it
            for signature in [
                *getattr(function, "signatures", ()),
                *getattr(part, "signatures", ()),
            ]:
                assert "float" not in str(signature), f"{module.__name__}.{name}{signature}"
                checked += 1
    assert checked > 20
