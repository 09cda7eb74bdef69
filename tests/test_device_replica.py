"""A device's replica decodes what the CPU does: the kernels' own source, compiled for the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressarray import CorruptFrameError, DiffFrameArray
from compressarray.errors import DeviceError
from compressarray.format.codebooks import CODEBOOK_BYTES
from compressarray.readers.cuda import blocks as device_blocks
from compressarray.readers.cuda.replica import Replica, can_be_decoded
from compressarray.readers.cuda.source import REASONS
from tests.effort import examples
from tests.host_device import HostDevice
from tests.naive import assert_same
from tests.strategies import CODECS, OWN_CODECS, Layout, camera, frames, game, layouts, noise

# Kinds of frames that between them take every kind of change and of record.
WORLDS = {
    "game": lambda n, shape, seed: game(n, shape, seed),
    "camera": lambda n, shape, seed: camera(n, shape, np.uint8, seed),
    "scrolling": lambda n, shape, seed: frames("scrolling", n, shape, np.uint8, seed),
    "noise": lambda n, shape, seed: frames("noise", n, shape, np.uint8, seed),
    "panned": lambda n, shape, seed: panned(n, shape, seed),
    "panned and noisy": lambda n, shape, seed: panned(n, shape, seed, 3),
}


def panned(n: int, shape: tuple[int, ...], seed: int, sigma: int = 0) -> np.ndarray[Any, Any]:
    """A texture that moves along, perhaps with noise."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (shape[0] + 8, shape[1] + 4 * n)).astype(np.int16)
    smooth = (texture + np.roll(texture, 1, 1) + np.roll(texture, 2, 1)) // 3
    texture = np.where(rng.random(texture.shape) < 0.5, smooth, 77)
    out = np.empty((n, *shape), np.uint8)
    for t in range(n):
        seen = texture[t % 8 : t % 8 + shape[0], 3 * t : 3 * t + shape[1]]
        out[t] = (seen + rng.integers(-sigma, sigma + 1, shape)).clip(0, 255)
    return out


def decode(replica: Replica, cells: np.ndarray, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    device = replica._device
    with device.work():
        frames = device.frames((len(cells), *shape), np.dtype(dtype), None)
    replica.decode(cells, frames)
    return frames


def decoded(replica: Replica, array: DiffFrameArray, cells: np.ndarray) -> np.ndarray:
    shared = array._frames
    got = decode(replica, shared.to_store(cells), shared.frame_shape, shared.dtype)
    replica.check()
    return np.asarray(got)


def assert_in_step(replica: Replica, array: DiffFrameArray, seed: int = 0) -> None:
    """Every cell, in no order, and pinned frames."""
    dense = np.asarray(array)
    flat = dense.reshape(-1, *array.frame_shape)
    cells = np.random.default_rng(seed).permutation(len(flat))
    assert_same(decoded(replica, array, cells), flat[cells])
    store = array._frames.store
    pins = np.arange(-store.n_pins * store._stack, 0)
    if len(pins):
        want = np.empty((len(pins), *array.frame_shape), array.dtype)
        store.read(pins, want)
        assert_same(decoded(replica, array, pins), want)


def follow(replica: Replica, array: DiffFrameArray) -> None:
    with array._frames.writer.lock:
        replica.follow()


@settings(max_examples=examples(60))
@given(
    layout=layouts(codecs=OWN_CODECS, empty=False),
    seeds=st.lists(st.integers(0, 2**16), min_size=1, max_size=4),
    shared_bytes=st.sampled_from((0, 100, 1 << 20)),
    most_warps=st.integers(1, 9),
    descending=st.booleans(),
)
def test_any_array_is_decoded_as_on_the_cpu(
    layout: Layout, seeds: list[int], shared_bytes: int, most_warps: int, descending: bool
) -> None:
    array = layout.build()
    if array._frames.store.describe() is None:
        return
    device = HostDevice(shared_bytes=shared_bytes, most_warps=most_warps, descending=descending)
    replica = Replica(device, array._frames.store)
    follow(replica, array)
    assert_in_step(replica, array)
    for seed in seeds:
        rng = np.random.default_rng(seed)
        kind = rng.choice(["sprites", "noise", "scrolling", "flickering", "one element changed"])
        n = int(rng.integers(1, 2 * layout.shape[0] + 1))
        rows = frames(str(kind), n, layout.shape[1:], layout.dtype, seed)
        if rng.random() < 0.6:
            array.append(rows)
        else:
            row = int(rng.integers(layout.shape[0]))
            array[row] = rows[0]
        if rng.random() < 0.2:
            pinned = np.empty(array._frames.stack_shape + array.frame_shape, array.dtype)
            pinned[...] = rows.reshape(-1)[0]
            array.pin(pinned)
        follow(replica, array)
        assert_in_step(replica, array, seed)


@pytest.mark.usefixtures("learning_early")
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("codec", OWN_CODECS)
@pytest.mark.parametrize("shape", [(26, 30), (11, 9), (48, 60)])
def test_a_ring_that_turns_and_learns_is_followed(
    codec: str, world: str, shape: tuple[int, int]
) -> None:
    array = DiffFrameArray((60, 2, *shape), codec=CODECS[codec]())
    both = [HostDevice(descending=descending) for descending in (False, True)]
    replicas = [Replica(device, array._frames.store) for device in both]
    rows = np.stack([WORLDS[world](150, shape, seed) for seed in (1, 2)], axis=1)
    for t, row in enumerate(rows):
        if t % 5:
            array.append(row)
        else:
            array.append(row[t % 2][None], lanes=[t % 2])
        if t % 6 == 0:
            follow(replicas[t % 12 == 0], array)
        if t % 30 == 29 or t == len(rows) - 1:
            for replica in replicas:
                follow(replica, array)
                assert_in_step(replica, array, t)


@pytest.mark.parametrize("codec", OWN_CODECS)
def test_what_is_sent_is_in_proportion_to_what_changed(codec: str) -> None:
    array = DiffFrameArray((2000, 84, 84), codec=codec)
    array.append(game(1500))
    replica = Replica(HostDevice(), array._frames.store)
    follow(replica, array)
    whole = replica.n_bytes_sent
    launches = replica._device.n_launches
    follow(replica, array)
    assert replica._device.n_launches == launches, "nothing changed, and something was sent"
    for frame in game(20, seed=1):
        array.append(frame[None])
        follow(replica, array)
    assert replica.n_bytes_sent - whole < 20 * 7056 * 1.3 + 20 * 300
    if codec in ("delta", "delta-huffman"):
        assert replica.n_bytes_sent - whole < whole / 10


@pytest.mark.parametrize("codec", OWN_CODECS)
def test_blocks_are_used_again_and_cleaned(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_blocks, "LEAST_BLOCK_BYTES", 1 << 14)
    array = DiffFrameArray((300, 20, 24), codec=codec, gop_length=None)
    replica = Replica(HostDevice(), array._frames.store)
    rng = np.random.default_rng(0)
    for t in range(60):
        if t % 3:
            array.append(noise(rng, (25, 20, 24), np.dtype(np.uint8)))
        else:
            array[int(rng.integers(300))] = rng.integers(256)
        follow(replica, array)
        if t % 7 == 0:
            assert_in_step(replica, array, t)
    assert_in_step(replica, array)
    blocks = replica._blocks
    bound = 1.3 * array.nbytes_stored + 5 * blocks.block_bytes + replica._scratch.nbytes
    assert blocks.nbytes < bound
    array.clear()


def test_chunks_move_out_of_emptying_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_blocks, "LEAST_BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(device_blocks, "GARBAGE_BLOCKS", 0)
    array = DiffFrameArray((400, 2, 10, 12), codec="raw")
    array.append(noise(np.random.default_rng(1), (400, 2, 10, 12), np.dtype(np.uint8)))
    # of frames that several cells share, too
    array[::7] = array[3]
    replica = Replica(HostDevice(), array._frames.store)
    follow(replica, array)
    held = replica._blocks.nbytes
    for start in range(8):
        array[start::8, 0] = start
        follow(replica, array)
        assert_in_step(replica, array, start)
    assert replica._blocks.nbytes < 0.75 * held


@pytest.mark.parametrize("codec", ["delta", "raw"])
def test_a_replica_that_ran_out_of_memory_is_filled_anew(codec: str) -> None:
    array = DiffFrameArray((500, 40, 40), codec=codec)
    device = HostDevice(most_bytes=3 << 20)
    replica = Replica(device, array._frames.store)
    follow(replica, array)
    array.append(noise(np.random.default_rng(2), (100, 40, 40), np.dtype(np.uint8)))
    device.most_bytes = device.nbytes
    with pytest.raises(DeviceError):
        follow(replica, array)
    device.most_bytes = None
    follow(replica, array)
    assert_in_step(replica, array)


@pytest.mark.usefixtures("learning_early")
@settings(max_examples=examples(60))
@given(
    codec=st.sampled_from(OWN_CODECS),
    world=st.sampled_from(sorted(WORLDS)),
    seed=st.integers(0, 2**16),
    descending=st.booleans(),
)
def test_no_bytes_lead_a_kernel_out_of_the_replica(
    codec: str, world: str, seed: int, descending: bool
) -> None:
    """Whatever is spoilt: `HostDevice` counts looks that go where nothing is."""
    rng = np.random.default_rng(seed)
    shape = (26, 30) if seed % 2 else (9, 11)
    array = DiffFrameArray((40, 2, *shape), codec=codec)
    array.append(np.stack([WORLDS[world](60, shape, i) for i in (seed, seed + 1)], axis=1))
    replica = Replica(HostDevice(descending=descending), array._frames.store)
    follow(replica, array)
    replica.check()
    used = [(replica._blocks.memories[0], replica._blocks._used[0])]
    if len(replica._open_sizes):
        used.append((replica._open_bytes, int(replica._open_sizes[0]) + 1))
    for _ in range(12):
        memory, n_used = used[int(rng.integers(len(used)))]
        for _ in range(int(rng.integers(1, 30))):
            at = int(rng.integers(n_used))
            memory.data[at] = rng.choice([0, 1, 2, 127, 128, 254, 255, rng.integers(256)])
        _read_spoilt(replica)
    for memory in (replica._index, replica._open, replica._open_maps):
        values = memory.data[: min(memory.nbytes, 96)]
        values[:] = rng.integers(0, 256, len(values))
        _read_spoilt(replica)
    # and what records are read with, but for where it lies
    begin = CODEBOOK_BYTES * replica._n_books
    if codec.startswith("delta"):
        books = replica._books.data
        n = 400 if seed % 3 else len(books) // 5
        at = rng.integers(begin, len(books), n)
        books[at] = rng.integers(0, 256, n)
        _read_spoilt(replica)


def _read_spoilt(replica: Replica) -> None:
    said = replica._described
    cells = np.arange(said.n_cells + 3)
    decode(replica, cells, (said.frame_bytes,), np.uint8)
    # the last cells are none, so that there is always something wrong
    with pytest.raises(CorruptFrameError, match="|".join(REASONS.values())):
        replica.check()
    replica._status.data[:] = 0


def test_a_corrupt_frame_is_said_and_reads_as_one_that_was_never_written() -> None:
    array = DiffFrameArray((64, 20, 20), fill_value=9)
    array.append(game(64, (20, 20)))
    replica = Replica(HostDevice(), array._frames.store)
    follow(replica, array)
    replica.check()
    replica._blocks.memories[0].data[16:40] = 255
    got = decode(replica, np.arange(64), (20, 20), np.uint8)
    with pytest.raises(CorruptFrameError, match="a device's memory is corrupt"):
        replica.check()
    with pytest.raises(CorruptFrameError, match="a device's memory is corrupt"):
        decode(replica, np.arange(64), (20, 20), np.uint8)
    assert (got[:16] == 9).all(axis=(1, 2)).any()
    assert_same(np.asarray(got)[16:], np.asarray(array)[16:])


def test_frames_that_are_too_large_for_the_kernels_are_left_to_the_cpu() -> None:
    described = DiffFrameArray((64, 20, 20))._frames.store.describe()
    assert can_be_decoded(described)
    assert not can_be_decoded(None)
    assert not can_be_decoded(described._replace(frame_bytes=1 << 28))
    assert not can_be_decoded(described._replace(most_chunk_bytes=1 << 30))


def test_a_replica_follows_when_what_it_lacks_is_asked_for() -> None:
    device = HostDevice()
    array = DiffFrameArray((200, 2, 20, 24))
    frames = np.stack([game(400, (20, 24), seed) for seed in (1, 2)], axis=1)
    indices = array.append(frames[:150])

    def launches(wanted: np.ndarray) -> int:
        """Read and compare; return how many kernels that took."""
        before = device.n_launches
        located = array._locate_there(device, wanted, None)
        with device.work():
            there = device.frames((wanted.size, 20, 24), np.dtype(np.uint8), None)
            located.decode(there)
        array._frames.elsewhere.check()
        assert_same(np.asarray(there), array.gather(wanted.ravel()))
        return device.n_launches - before

    assert launches(indices) > 1
    assert launches(indices) == 1
    new = array.append(frames[150:155])
    assert launches(indices) == 1
    assert launches(new[1:2]) == 2
    assert launches(new) == 1
    array.append(frames[155:200], lanes=None)
    assert launches(indices[50:]) == 1
    array.append(frames[200:230])  # the ring has turned, and the replica is 75 frames behind
    assert launches(indices[50:]) >= 2
    assert launches(indices[50:]) == 1
    pinned = array.pin(np.full((20, 24), 7, np.uint8))
    assert launches(indices[50:]) == 1
    assert launches(np.array([pinned])) == 2
    array[150] = frames[0]  # retires what lived there
    assert launches(indices[50:150]) == 1
    array.clear()
    assert launches(array.append(frames[:20])) > 1


def test_cells_that_are_none_are_said() -> None:
    array = DiffFrameArray((64, 20, 20))
    replica = Replica(HostDevice(), array._frames.store)
    follow(replica, array)
    decode(replica, np.array([64, -1]), (20, 20), np.uint8)
    with pytest.raises(CorruptFrameError, match="not of this store"):
        replica.check()
