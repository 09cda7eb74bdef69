"""Records of copies: frames that scroll, turn, flicker and are noisy come back bit for bit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressarray import DiffFrameArray
from compressarray.codecs import copies, encoding, entropy, packing, words
from compressarray.format import packed as packed_records
from compressarray.format import reasons
from tests.effort import examples
from tests.unpacked import assert_unpack

GUARD = 64


def guarded(content: np.ndarray, guard: int = 0xA5) -> np.ndarray:
    return np.concatenate([content, np.full(GUARD, guard, np.uint8)])


def encode(new: np.ndarray, old: np.ndarray, row_bytes: int, pixel_bytes: int) -> np.ndarray:
    """The record, without anything behind it; empty where copies cost as much as the frame."""
    n = len(new)
    scratch = np.zeros(copies.ENCODING_BYTES + copies.ENCODING_BYTES_A_BYTE * n + GUARD, np.uint8)
    scratch[-GUARD:] = 0x5A
    out = np.full(n + copies.HEADER_BYTES + GUARD, 0x5A, np.uint8)
    held, before = guarded(new), guarded(old)
    end, _ = copies.encode_copies(
        held.ctypes.data, before.ctypes.data, n, row_bytes, pixel_bytes, n, scratch.ctypes.data,
        out.ctypes.data,
    )  # fmt: skip
    assert (scratch[-GUARD:] == 0x5A).all()
    assert (out[-GUARD:] == 0x5A).all()
    return out[: end - out.ctypes.data].copy()


def decode(record: np.ndarray, old: np.ndarray, row_bytes: int, pixel_bytes: int) -> np.ndarray:
    n = len(old)
    state, held = guarded(old), guarded(record)
    scratch = guarded(np.zeros(n + 32, np.uint8))
    end = copies.apply_copies(
        held.ctypes.data, state.ctypes.data, scratch.ctypes.data, n, row_bytes, pixel_bytes
    )
    assert end == held.ctypes.data + len(record)
    assert (state[n:] == 0xA5).all()
    assert (scratch[n + 32 :] == 0xA5).all()
    return state[:n]


def check(record: np.ndarray, n: int, pixel_bytes: int) -> int:
    """Bytes of the record, or what there is against it."""
    held = guarded(record)
    start = held.ctypes.data
    end = copies.check_copies(start, start + len(record), n, pixel_bytes)
    return int(end if end < 0 else end - start)


def naive_decode(
    record: np.ndarray, old: np.ndarray, row_bytes: int, pixel_bytes: int
) -> np.ndarray:
    """The format's words, byte by byte: see docs/format.md."""
    n, at = len(old), 0

    def number(place: int) -> tuple[int, int]:
        value, shift = 0, 0
        while True:
            byte = int(record[place])
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value, place

    n_tokens, at = number(at)
    n_extras, at = number(at)
    n_literals, at = number(at)
    predictor, at = number(at)
    tokens = record[at : at + n_tokens].tolist()
    extras = at + n_tokens
    literals = record[extras + n_extras :][:n_literals].tolist()
    wide = 2 if n <= 65536 else 4
    shift = predictor // 2 if predictor % 2 else -(predictor // 2)
    window = [*old.tolist()]  # the frame before, and then the new one

    def put_literals(count: int) -> None:
        for _ in range(count):
            value = literals.pop(0)
            p = len(window) - n
            if predictor:
                before = int(old[p + shift]) if 0 <= p + shift < n else int(old[p])
                left = window[-pixel_bytes] if p >= pixel_bytes else before
                above = window[-row_bytes] if 0 < row_bytes <= p else left
                value = (value + sorted([left, above, before])[1]) % 256
            window.append(value)

    back = n
    for token in tokens:
        count = token % 4
        if count == 3:
            more, extras = number(extras)
            count += more
        put_literals(count)
        length = token // 16
        if length == 15:
            more, extras = number(extras)
            length += more
        source = token // 4 % 4
        if source == 1:
            back = n
        elif source:
            place = int.from_bytes(record[extras : extras + wide].tobytes(), "little")
            extras += wide
            p = len(window) - n
            back = place if source == 3 else n + p - (p - place) % 256**wide
        for _ in range(length + 2):
            window.append(window[-back])
    put_literals(len(literals))
    return np.array(window[n:], np.uint8)


class World:
    """Frames of one size, drawn from a seed, that do what their kind says."""

    def __init__(self, seed: int, height: int, width: int, channels: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.height, self.width, self.channels = height, width, channels
        smooth = self.rng.integers(-4, 5, (3 * height, 3 * width, channels)).cumsum(0).cumsum(1)
        tile = self.rng.integers(0, 256, (7, 5, channels))
        self.texture = (smooth if seed % 2 else np.tile(tile, (height, width, 1))) % 256
        self.place = np.array([height, width])
        self.palette = self.rng.permutation(256)

    def view(self, zoom: int = 1) -> np.ndarray:
        rows, columns = (
            (np.arange(size) // zoom + start) % end
            for size, start, end in zip(
                (self.height, self.width), self.place, self.texture.shape, strict=False
            )
        )
        return self.texture[rows][:, columns]

    def frame(self, kind: str, t: int) -> np.ndarray:
        if kind == "scroll":
            self.place = self.place + self.rng.integers(-9, 10, 2)
            image = self.view()
        elif kind == "zoom":
            image = self.view(1 + t % 4)
        elif kind == "palette":
            self.palette = np.roll(self.palette, 1)
            image = self.palette[self.view()]
        elif kind == "blink":
            image = self.view() if t % 2 else 255 - self.view()
        elif kind == "tiles":
            image = self.view().copy()
            cell = image[:4, :4].copy()
            for _ in range(6):
                row, column = self.rng.integers(0, (self.height - 3, self.width - 3))
                image[row : row + 4, column : column + 4] = cell
        elif kind == "noise":
            strength = [0, 0.6, 2, 9, 90][int(self.rng.integers(5))]
            self.place = self.place + self.rng.integers(-2, 3, 2)
            image = np.rint(self.view() + strength * self.rng.standard_normal(self.view().shape))
        else:  # a cut
            self.place = self.rng.integers(0, self.texture.shape[:2])
            image = self.view()
        return (image % 256).astype(np.uint8)


KINDS = ("scroll", "zoom", "palette", "blink", "tiles", "noise", "cut")
worlds = st.builds(
    World,
    st.integers(0, 2**32 - 1),
    st.integers(4, 40),
    st.integers(4, 40),
    st.sampled_from([1, 3, 4]),
)


@settings(max_examples=examples(150), deadline=None)
@given(world=worlds, kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=4))
def test_records_of_copies_round_trip(world: World, kinds: list[str]) -> None:
    """By themselves, by an oracle that reads the format's words, and packed."""
    row_bytes = world.width * world.channels
    n = world.height * row_bytes
    frames = [world.frame(kind, t).ravel() for t, kind in enumerate(kinds)]
    table = np.zeros((256, 4), np.uint64)
    for pixel_bytes in (0, world.channels):
        written = []
        for old, new in pairwise(frames):
            record = encode(new, old, row_bytes, pixel_bytes)
            if len(record):
                assert np.array_equal(decode(record, old, row_bytes, pixel_bytes), new)
                assert np.array_equal(naive_decode(record, old, row_bytes, pixel_bytes), new)
                assert check(record, n, pixel_bytes) == len(record)
                written.append(np.concatenate([leb128(-(-n // 8) + 2), record]))
        counts = np.zeros((packed_records.N_CONTEXTS, 256), np.int32)
        for record in written:
            held = guarded(record)
            end = entropy.count_symbols(held.ctypes.data, 1, n, table.ctypes.data, counts)
            assert end == held.ctypes.data + len(record)
        for counted in (counts, np.zeros_like(counts)):
            packer = packing.Packer(counted, 16)
            packed = np.full(3 * n * len(written) + 4096, 0xFF, np.uint8)
            pos, ends = 0, []
            for record in written:
                held = guarded(record)
                _, pos = entropy.pack_record(
                    held.ctypes.data, n, table.ctypes.data, packer.model.ctypes.data,
                    packer.encode.ctypes.data, packed.ctypes.data, pos,
                )  # fmt: skip
                ends.append(pos)
            if counted is counts:
                assert packer.packed_bits(counts) == pos
            if written:
                assert_unpack(packed, ends, written, n, table, packer)


def leb128(value: int) -> np.ndarray:
    digits = []
    while value >= 0x80:
        digits.append(value % 0x80 + 0x80)
        value //= 0x80
    return np.array([*digits, value], np.uint8)


@settings(max_examples=examples(200), deadline=None)
@given(world=worlds, kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1))
def test_spoilt_records_of_copies(world: World, kind: str, seed: int) -> None:
    """Are refused, or read and write nothing but what is theirs, whatever lies around it."""
    rng = np.random.default_rng(seed)
    row_bytes = world.width * world.channels
    n = world.height * row_bytes
    old, new = (world.frame(kind, t).ravel() for t in range(2))
    record = encode(new, old, row_bytes, world.channels)
    for _ in range(8):
        spoilt = record.copy()
        if len(spoilt):
            for _ in range(int(rng.integers(1, 4))):
                place = min(int(rng.exponential(8)), len(spoilt) - 1)
                spoilt[place] = rng.integers(0, 256)
        end = check(spoilt, n, world.channels)
        if end < 0:
            assert end in reasons.REASONS
            continue
        spoilt = spoilt[:end]
        decoded = decode(spoilt, old, row_bytes, world.channels)
        assert np.array_equal(decoded, naive_decode(spoilt, old, row_bytes, world.channels))


@settings(max_examples=examples(40), deadline=None)
@given(
    world=worlds,
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=60),
    codec=st.sampled_from(["delta", "delta-huffman"]),
    gop_length=st.integers(1, 12),
)
def test_arrays_of_moving_worlds_are_lossless(
    world: World, kinds: list[str], codec: str, gop_length: int
) -> None:
    frames = np.stack([world.frame(kind, t) for t, kind in enumerate(kinds)])
    array = DiffFrameArray(frames.shape, frame_ndim=3, codec=codec, gop_length=gop_length)
    for start in range(0, len(frames), 7):
        array.append(frames[start : start + 7])
    assert np.array_equal(array, frames)
    array[::3] = frames[::-1][::3]
    frames[::3] = frames[::-1][::3].copy()
    assert np.array_equal(array, frames)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64, np.complex128])
@pytest.mark.parametrize("codec", ["delta", "delta-huffman"])
def test_any_dtype_scrolls(dtype: type, codec: str) -> None:
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((60, 260)) * 100
    content = np.stack([wide[t % 7 : t % 7 + 40, 2 * t : 2 * t + 50] for t in range(100)])
    frames = content.astype(np.int64).astype(dtype) if dtype == np.uint8 else content.astype(dtype)
    array = DiffFrameArray(frames.shape, dtype, codec=codec)
    for frame in frames:
        array.append(frame[None])
    assert np.array_equal(array[:], frames)
    assert array.nbytes_stored < frames.nbytes / 3


def test_what_scrolls_takes_what_is_new() -> None:
    """A texture that no word names, moved by whole pixels: the border alone is new."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (84, 84 + 400, 3), dtype=np.uint8)
    frames = np.stack([texture[:, 2 * t : 2 * t + 84] for t in range(200)])
    array = DiffFrameArray(frames.shape, frame_ndim=3, codec="delta", gop_length=50)
    array.append(frames)
    assert np.array_equal(array[:], frames)
    fresh = 2 * 84 * 3
    whole = 200 / 50 + 4  # keyframes, and what is held for the frames to come
    assert array.nbytes_stored < whole * frames[0].nbytes + 200 * 1.7 * fresh


def test_noise_takes_what_the_median_leaves() -> None:
    rng = np.random.default_rng(0)
    smooth = 100 + 60 * np.sin(np.arange(84) / 20)[:, None, None] * np.ones((84, 84, 3))
    noisy = smooth + 2 * rng.standard_normal((600, 84, 84, 3))
    frames = np.rint(noisy).astype(np.uint8)
    array = DiffFrameArray(frames.shape, frame_ndim=3, codec="delta-huffman")
    array.append(frames)
    assert np.array_equal(array[:], frames)
    # Noise of sigma 2 alone has 3.05 bits, 0.38 bytes, and what it is told from is noisy, too.
    assert array.nbytes_stored / len(frames) < 0.48 * frames[0].nbytes


@pytest.mark.parametrize("side", [8, 250, 300])
def test_places_of_small_and_large_frames(side: int) -> None:
    """A place takes two bytes up to 65,536 of a frame, and four beyond."""
    rng = np.random.default_rng(side)
    old = rng.integers(0, 256, (side, side), dtype=np.uint8)
    for new in (np.roll(old, (3, -5), (0, 1)), old[::-1], np.zeros_like(old)):
        new = np.ascontiguousarray(new)
        record = encode(new.ravel(), old.ravel(), side, 0)
        if side > 8:
            assert 0 < len(record) < old.size / 10
            assert check(record, old.size, 0) == len(record)
            assert np.array_equal(decode(record, old.ravel(), side, 0), new.ravel())
            assert np.array_equal(naive_decode(record, old.ravel(), side, 0), new.ravel())


def test_looking_for_copies_in_vain_is_given_up() -> None:
    """And taken up again: the numbers that say so count down and grow."""
    rng = np.random.default_rng(0)
    n = 4096
    table = np.zeros(words.encode_table_words(0), np.uint64)
    decode_table = np.zeros((256, 4), np.uint64)
    none = np.zeros(0, np.int64)
    words.build_tables(none, np.zeros(0, np.uint64), 0, 0, 0, decode_table, table)
    coding = np.zeros(encoding.encoding_bytes(n) + GUARD, np.uint8)
    patience = np.zeros(encoding.PATIENCE_WORDS, np.int64)
    waits = []
    for _ in range(100):
        old, new = (guarded(rng.integers(0, 256, n, dtype=np.uint8)) for _ in range(2))
        out = np.zeros(2 * n, np.uint8)
        encoding.encode(
            new.ctypes.data, old.ctypes.data, new.ctypes.data, n, 64, table.ctypes.data,
            coding.ctypes.data, patience.ctypes.data, out.ctypes.data,
        )  # fmt: skip
        waits.append(int(patience[0]))
    assert waits[:8] == [1, 0, 3, 2, 1, 0, 7, 6]
    assert max(waits) == 15
