"""Bytes that no encoder wrote: refused, or decoded into frames of the right shape, never a crash.

Decoding checks nothing; what came from elsewhere is checked where it comes in. So records that
the check passes are decoded amid guards, which nothing may write to and which may change nothing
that is decoded; and arrays that unpickle at all are read and written in a process whose death
would be noticed.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressarray import CorruptFrameError, DiffFrameArray
from compressarray.codecs import checking, sparse, words
from compressarray.format import codebooks, reasons
from compressarray.format import records as delta
from compressarray.store import gop_learning
from tests.effort import examples
from tests.naive import assert_same
from tests.strategies import camera, game
from tests.test_words import Coder, bytes_of

GUARD = 64
OWN = ["raw", "sparse", "delta", "delta-huffman", "zstd"]


# -- records ---------------------------------------------------------------------------------


def spoil(rng: np.random.Generator, data: np.ndarray) -> np.ndarray:
    """Flip, replace, drop, repeat and add some bytes."""
    data = data.copy()
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(data) + 1))
        n = int(rng.integers(1, 5))
        what = rng.integers(6)
        if what == 0 and len(data):
            data[at % len(data)] ^= 1 << rng.integers(8)
        elif what == 1:
            new = rng.integers(0, 256, n, dtype=np.uint8)
            data[at : at + n] = new[: len(data[at : at + n])]
        elif what == 2:
            data[at : at + n] = rng.choice([0, 1, 127, 128, 254, 255])
        elif what == 3:
            data = data[:at]
        elif what == 4:
            data = np.delete(data, slice(at, at + n))
        else:
            data = np.insert(data, at, rng.integers(0, 256, n, dtype=np.uint8))
    return data


def amid(data: np.ndarray, guard: int) -> np.ndarray:
    """The same data amid ``GUARD`` bytes of a value on either side."""
    room = np.full(data.nbytes + 2 * GUARD, guard, np.uint8)
    room[GUARD : GUARD + data.nbytes] = data.view(np.uint8)
    return room[GUARD : GUARD + data.nbytes].view(data.dtype)


def guards(data: np.ndarray) -> np.ndarray:
    room: Any = data
    while room.base is not None:
        room = room.base
    return np.concatenate([room[:GUARD], room[-GUARD:]])


def tables(
    tokens: np.ndarray, dictionary: np.ndarray, near: int, pixel_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """A decoding table, and a codebook of it, at the end of which the dictionary lies."""
    decode = np.zeros((256, 4), np.uint64)
    encode = np.zeros(words.encode_table_words(len(dictionary)), np.uint64)
    words.build_tables(tokens, dictionary, near, pixel_bytes, 0, decode, encode)
    book = codebooks.Parts(decode, dictionary, None)
    data, _, _ = codebooks.lay_out([book], np.zeros(0, np.uint8))
    assert not len(dictionary) or (data[-dictionary.nbytes :] == dictionary.view(np.uint8)).all()
    return decode, data


@settings(max_examples=examples(400), deadline=None)
@given(
    n_bytes=st.integers(1, 120) | st.sampled_from([1024]),
    row_bytes=st.sampled_from([0, 1, 7, 8, 9, 32]),
    n_words=st.sampled_from([0, 3, 300]),
    pixel_bytes=st.sampled_from([0, 1, 3, 8]),
    seed=st.integers(0, 2**32 - 1),
)
def test_spoilt_delta_records(
    n_bytes: int, row_bytes: int, n_words: int, pixel_bytes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    n_tokens = int(rng.integers(0, 256))
    skips, kinds = rng.geometric(0.3, n_tokens) - 1, rng.integers(0, 10, n_tokens)
    masks = rng.choice([0, 1, 15, 200, 255], n_tokens)
    tokens = np.array(list(map(delta.token_key, np.minimum(skips, 4095), masks, kinds)), np.int64)
    dictionary = rng.integers(0, 2**64, n_words, dtype=np.uint64)
    near = int(rng.integers(0, n_words + 1))
    old, background = (bytes_of(rng, n_bytes, 3, 0.5) for _ in range(2))
    new = np.where(rng.random(n_bytes) < 0.2, bytes_of(rng, n_bytes, 3, 1), old)
    padded = np.resize(background, -(-n_bytes // 8) * 8)
    whole = Coder(n_bytes, row_bytes, tokens, dictionary, near, pixel_bytes)
    whole = whole.encode(new, old, background)[:-8]
    for attempt in range(12):
        if attempt == 0:
            record = whole
        elif attempt < 9:
            record = spoil(rng, whole)
        else:
            record = rng.integers(0, 256, rng.integers(40), dtype=np.uint8)
            record[:1] = rng.integers(0, 4)
        decoded = []
        for guard in (0x00, 0xA7):
            held, behind = amid(old, guard), amid(padded, guard)
            before = np.zeros(n_bytes + 32, np.uint8)
            coded = amid(record, guard)
            decode, codebook = tables(tokens, dictionary, near, pixel_bytes)
            codebook = amid(codebook, guard)
            start, table = coded.ctypes.data, decode.ctypes.data
            end = checking.check_record(
                start, start + len(record), n_bytes, row_bytes, table, n_words
            )
            if end < 0:
                assert end in reasons.REASONS
                assert attempt, f"what the encoder wrote is refused: {reasons.REASONS[end]}"
                break
            assert start < end <= start + len(record)
            assert end == delta.skip_record(start, n_bytes, table)
            assert end == words.apply_record(
                start, held.ctypes.data, behind.ctypes.data, n_bytes, row_bytes,
                codebook.ctypes.data, before.ctypes.data,
            )  # fmt: skip
            assert (guards(held) == guard).all()
            decoded.append(held)
        if decoded:
            assert_same(decoded[0], decoded[1])
            assert attempt or (decoded[0] == new).all()


@settings(max_examples=examples(200), deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)) | st.just((3, 300)),
    seed=st.integers(0, 2**32 - 1),
)
def test_spoilt_sparse_records(shape: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_bytes, row_bytes = shape[0] * shape[1], shape[1]
    key = rng.integers(0, 256, n_bytes, dtype=np.uint8)
    new = np.where(rng.random(n_bytes) < 0.1, rng.integers(0, 256, n_bytes, dtype=np.uint8), key)
    first, out = np.concatenate([[np.uint8(sparse.RAW_TAG)], key]), np.empty(n_bytes + 64, np.uint8)
    start = out.ctypes.data
    end = sparse.encode_sparse(new.ctypes.data, first.ctypes.data, n_bytes, row_bytes, start)
    whole = out[: end - start].copy()
    for attempt in range(12):
        record = spoil(rng, whole) if attempt else whole
        for guard in (0x00, 0xA7):
            held, coded = amid(np.zeros(n_bytes, np.uint8), guard), amid(record, guard)
            start = coded.ctypes.data
            end = checking.check_sparse(start, start + len(record), False, n_bytes, row_bytes)
            if end < 0:
                assert attempt
                break
            assert start < end <= start + len(record)
            assert end == sparse.skip_sparse(start, n_bytes, row_bytes)
            assert end == sparse.apply_sparse(
                start, first.ctypes.data, held.ctypes.data, n_bytes, row_bytes
            )
            assert (guards(held) == guard).all()
            assert attempt or (held == new).all()


# -- arrays ----------------------------------------------------------------------------------

EXTREME = [
    -(2**63),
    -(2**31),
    -2,
    -1,
    0,
    1,
    2,
    3,
    255,
    65535,
    2**20,
    2**31,
    2**40,
    2**62,
    2**63 - 1,
]


def leaves(state: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every number, array and None in a pickled state."""
    if isinstance(state, dict):
        return [leaf for key in state for leaf in leaves(state[key], (*path, key))]
    if isinstance(state, tuple) and state:
        return [leaf for i in range(len(state)) for leaf in leaves(state[i], (*path, i))]
    return [path]


def at(state: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        state = state[key]
    return state


def put(state: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The state with another value at a path."""
    if not path:
        return value
    inner = put(state[path[0]], path[1:], value)
    if isinstance(state, tuple):
        return (*state[: path[0]], inner, *state[path[0] + 1 :])
    return {**state, path[0]: inner}


def spoil_leaf(rng: np.random.Generator, value: Any) -> Any:
    if rng.random() < 0.03:
        return [None, 0, (), {}, "no", np.zeros(3), 1.5, True][rng.integers(8)]
    if isinstance(value, (bool, int, np.integer)):
        change = rng.integers(3)
        if change < 2:
            return int(value) + int(rng.choice([-1, 1, 2, 8]))
        return int(rng.choice(EXTREME))
    if not isinstance(value, np.ndarray):
        return value
    array = value.copy()
    what = rng.integers(10)
    if what == 0:
        return array[: len(array) // 2] if array.ndim else array
    if what == 1:
        return np.concatenate([array, array[:1]])
    if what == 2:
        return array.astype(rng.choice(["int64", "uint8", "float64", "uint32", "bool"]))
    if what < 6 and array.size and array.dtype.kind in "iu":
        flat = array.reshape(-1)
        bounds = np.iinfo(array.dtype)
        for _ in range(rng.integers(1, 4)):
            k = int(rng.integers(flat.size))
            near = int(flat[k]) + int(rng.choice([-1, 1, 1, 3]))
            fresh = near if rng.random() < 0.7 else int(rng.choice(EXTREME))
            flat[k] = min(max(fresh, int(bounds.min)), int(bounds.max))
        return array
    if array.nbytes:
        flat = array.reshape(-1).view(np.uint8)
        for _ in range(rng.integers(1, 6)):
            flat[rng.integers(flat.size)] ^= 1 << rng.integers(8)
    return array


def spoilt_state(rng: np.random.Generator, state: Any) -> Any:
    """Spoil a few leaves; those of streams as often as all others together."""
    paths = leaves(state)
    streams = [p for p in paths if p[-1] in ("bytes", "open_bytes")]
    for _ in range(rng.integers(1, 3)):
        path = paths[rng.integers(len(paths))]
        if streams and rng.random() < 0.5:
            path = streams[rng.integers(len(streams))]
        state = put(state, path, spoil_leaf(rng, at(state, path)))
    return state


def played_arrays(codec: str) -> list[DiffFrameArray]:
    """Arrays with everything that a pickle may hold: open streams, maps, pins, learnt tables."""
    content = game(400, (16, 20))
    ring = DiffFrameArray((150, 16, 20), codec=codec, gop_length=None)
    for frame in (*content, *content):  # what is learnt is written with some groups later
        ring.append(frame)
    ring.pin(content[3])
    ring[70] = content[5]
    lanes = DiffFrameArray((60, 2, 16, 20), codec=codec)
    for t in range(94):
        lanes.append(content[[t, 399 - t]])
    stacks = DiffFrameArray((40, 2, 3, 16, 20), codec=codec)
    stack = np.stack([content[[0, 0, 0]]] * 2)
    for t in range(33):
        stack = np.concatenate([stack[:, 1:], content[[t, 2 * t]][:, None]], axis=1)
        if t in (14, 30):  # an episode begins
            stack[1] = content[77]
        stacks[t] = stack
    words_of = DiffFrameArray((50, 7), np.int16, frame_ndim=1, codec="delta")
    words_of[:31] = np.arange(217).reshape(31, 7) % 5
    view = lanes.reshape(-1, 16, 20)
    large = DiffFrameArray((4, 256, 300), codec=codec)
    for frame in camera(6, (256, 300)):
        large.append(frame)
    arrays = [ring, lanes, stacks, view, large]
    return [*arrays, words_of] if codec == "delta" else arrays


def use(array: DiffFrameArray, rng: np.random.Generator) -> None:
    """Read and write what an array has, whatever it holds."""
    shape, dtype = array.shape, array.dtype
    frame = shape[len(shape) - array.frame_ndim :]
    lead = shape[: len(shape) - array.frame_ndim]

    def look() -> None:
        if array.nbytes < 1 << 24:
            held = np.asarray(array)
            assert held.shape == shape
            assert held.dtype == dtype
        elif min(shape):
            for _ in range(5):
                key = tuple(int(rng.integers(n)) for n in lead)
                assert array[key].shape == frame
        newest = array.lane_counts[:4, None] - 1 - np.arange(4)
        for lane, counts in enumerate(newest):
            for index in counts[counts >= 0] * array.n_lanes + lane:
                try:
                    found = array.gather(index)
                except IndexError:
                    continue
                assert found.shape[found.ndim - array.frame_ndim :] == frame

    look()
    array.stats()
    row = np.zeros(shape[1:], dtype) if np.prod(shape[1:], dtype=float) < 1 << 22 else None
    if row is None or not shape[0]:
        return
    flat = row.reshape(-1).view(np.uint8)
    for k in range(45):
        flat[rng.integers(0, max(len(flat), 1), 5)] = k
        array.append(row)
    look()
    for t in rng.integers(0, shape[0], 6).tolist():
        array[t] = row
    if array.n_lanes:
        array.discard(array.lane_counts - 3)
    look()
    twin = pickle.loads(pickle.dumps(array))
    array.clear()
    array.append(row)
    if twin.nbytes < 1 << 24:
        np.asarray(twin)


def fuzz(codec: str, first: int, n: int) -> None:
    """Spoil pickled arrays, one example a seed; die where an example does."""
    gop_learning.MIN_CHANGES, gop_learning.PACK_AT_BYTES = (
        500,
        1000,
    )  # arrays of a few frames learn too
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36))
    arrays = played_arrays(codec)
    states = [array.__getstate__() for array in arrays]
    if codec in ("delta", "delta-huffman"):
        frames = states[0]["frames"]
        books = frames["codebooks"]["books"]
        newest = books[frames["codebooks"]["newest"]]
        assert len(newest["words"]) > 100
        assert (codec == "delta-huffman") == (newest["packer"] is not None)
        assert sum(state["frames"]["open_mapped"].sum() for state in states) > 0
    outcomes: Counter[str] = Counter()
    for seed in range(first, first + n):
        sys.stderr.write(f"{seed} ")
        rng = np.random.default_rng(seed)
        state = spoilt_state(rng, states[seed % len(states)])
        twin = object.__new__(DiffFrameArray)
        try:
            twin.__setstate__(state)
        except (ValueError, TypeError, OverflowError, MemoryError) as error:
            outcomes[type(error).__name__] += 1
            continue
        outcomes["loaded"] += 1
        try:
            use(twin, rng)
        except (CorruptFrameError, MemoryError, RuntimeError):  # a foreign codec finds out now
            assert twin.codec == "zstd" or twin.nbytes > 1 << 24
    assert outcomes["loaded"] >= n // 20, outcomes
    assert outcomes["CorruptFrameError"] >= n // 8, outcomes
    sys.stdout.write(f"done {dict(outcomes)}\n")


@pytest.mark.parametrize("codec", OWN)
def test_spoilt_pickles(codec: str) -> None:
    if codec == "zstd":
        pytest.importorskip("numcodecs")
    n = examples(250)
    done = subprocess.run(
        [sys.executable, "-c", f"from tests.test_fuzz import fuzz; fuzz({codec!r}, 0, {n})"],
        capture_output=True,
        text=True,
        timeout=60 + n,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p) or "."},
        check=False,
    )
    assert done.returncode == 0, f"code {done.returncode}, after seeds {done.stderr[-2000:]}"
    assert done.stdout.startswith("done")


def test_a_pickle_in_memory_of_others() -> None:
    """Buffers that are handed over beside a pickle may be read-only, and are not written to."""
    content = game(60, (16, 20))
    array = DiffFrameArray((40, 16, 20))
    array.append(content[:35])
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(array, protocol=5, buffer_callback=buffers.append)
    frozen = [bytes(buffer) for buffer in buffers]
    twin = pickle.loads(pickled, buffers=frozen)
    for frame in content[35:]:
        twin.append(frame)
    assert_same(twin.gather(np.arange(20, 60)), content[20:])
    assert frozen == [bytes(buffer) for buffer in buffers]


def test_a_pickle_in_the_middle_of_a_transaction() -> None:
    """What an assignment replaces is kept until it is done, and is no part of a pickle."""
    pytest.importorskip("numcodecs")
    content = game(12, (16, 20))
    array = DiffFrameArray((12, 16, 20), codec="zstd")
    array[...] = content

    def write_and_pickle() -> tuple[DiffFrameArray, np.ndarray]:
        array[2:5] = content[7:10] ^ 1
        return pickle.loads(pickle.dumps(array)), np.asarray(array)

    twin, held = array._frames.writer.run(write_and_pickle)
    assert_same(np.asarray(twin), held)
    twin[2:5] = content[2:5]
    assert_same(np.asarray(twin), content)
