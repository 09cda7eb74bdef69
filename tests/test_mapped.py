"""Mapped files give what loaded ones do, are checked where they are read, and stay as they are."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressarray import CorruptFrameError, DiffFrameArray, ReplayBuffer
from compressarray.format import container
from tests.effort import examples
from tests.naive import assert_same
from tests.replay_worlds import FEEDS, Setting, World, assert_same_content, assert_same_runs
from tests.strategies import CODECS, Layout, filled, frames, game, layouts

FRAME = (24, 32)


def saved(path: Path, codec: str, n: int = 700) -> DiffFrameArray:
    array = DiffFrameArray((500, 2, *FRAME), codec=CODECS[codec]())
    array.append(np.stack([game(n, FRAME), frames("noise", n, FRAME, np.uint8, 1)], axis=1))
    array.save(path)
    return array


@settings(max_examples=examples(60), deadline=None)
@given(st.data(), layouts())
def test_any_array_and_key(data: st.DataObject, layout: Layout) -> None:
    array = layout.build()
    array[...] = data.draw(filled(layout))
    memory = np.frombuffer(container.dumps("x", array._file_tree()), np.uint8)
    tree = container.Contents(memory.copy(), "x", "it", lazily=True).verify().tree
    mapped = DiffFrameArray._from_tree(tree)
    assert_same(np.asarray(mapped), np.asarray(array))
    twin = copy.deepcopy(mapped)
    twin[...] = array[::-1] if array.ndim else array
    assert_same(np.asarray(mapped), np.asarray(array))


@pytest.mark.parametrize("codec", CODECS)
def test_copies_of_a_mapped_array_can_be_written_to(codec: str, tmp_path: Path) -> None:
    array = saved(tmp_path / "a", codec)
    mapped = DiffFrameArray.load(tmp_path / "a", mmap_mode="r")
    row = np.stack([game(1, FRAME)[0], game(2, FRAME)[1]])
    for twin in (copy.copy(mapped), pickle.loads(pickle.dumps(mapped))):
        for each in (twin, array_copy := copy.copy(array)):
            each.append(row)
            each[3] = 7
        assert_same(np.asarray(twin), np.asarray(array_copy))
    mapped.save(tmp_path / "b")
    assert_same(np.asarray(DiffFrameArray.load(tmp_path / "b")), np.asarray(array))


@pytest.mark.parametrize("codec", CODECS)
def test_nothing_is_written_to_a_mapped_array(codec: str, tmp_path: Path) -> None:
    saved(tmp_path / "a", codec)
    before = (tmp_path / "a").read_bytes()
    mapped = DiffFrameArray.load(tmp_path / "a", mmap_mode="r")
    dense = np.asarray(mapped)
    writes: list[Any] = [
        lambda: mapped.append(np.zeros((2, *FRAME), np.uint8)),
        lambda: mapped.__setitem__(3, 1),
        lambda: mapped.__iadd__(1),
        lambda: mapped.fill(3),
        lambda: mapped.discard(np.array([690, 690])),
        mapped.clear,
        lambda: np.copyto(mapped, 0),
        lambda: mapped.reshape(1000, *FRAME).__setitem__(0, 1),
    ]
    for write in writes:
        with pytest.raises(ValueError, match="read-only: it was loaded with mmap_mode='r'"):
            write()
        assert_same(np.asarray(mapped), dense)
    assert (tmp_path / "a").read_bytes() == before


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("prioritized", [False, True])
def test_buffers(feed: str, prioritized: bool, tmp_path: Path) -> None:
    world = World(Setting(feed, 2, 40, n_step=2, prioritized=prioritized, resets=300))
    for _ in range(90):
        world.step(0.1, 0.1)
    buffer = world.buffer
    buffer.save(tmp_path / "b")
    mapped = ReplayBuffer.load(tmp_path / "b", mmap_mode="r")
    for _ in range(5):
        ours, theirs = mapped.sample(20), buffer.sample(20)
        assert_same(ours.index, theirs.index)
        assert_same(ours.weight, theirs.weight)
    assert_same_content(mapped, world.oracle)
    assert_same_runs(mapped, world.oracle, 3, burn_in=1)
    for refused in (lambda: world_step(world, mapped), mapped.clear,
                    lambda: mapped.set_rewards([100], [1.0])):  # fmt: skip
        with pytest.raises(ValueError, match="read-only"):
            refused()
    if prioritized:
        mapped.update_priorities(ours.index, np.ones(20))
    with pytest.raises(ValueError, match="Leave one of them out"):
        ReplayBuffer.load(tmp_path / "b", mmap_mode="r", capacity=100)
    with pytest.raises(ValueError, match="mmap_mode='w' must be None or 'r'"):
        ReplayBuffer.load(tmp_path / "b", mmap_mode="w")  # type: ignore[arg-type]
    world.buffer = mapped.copy()
    if world.frames is not None:
        world.frames = world.buffer.frames
    for _ in range(60):
        world.step(0.1, 0.1)
    assert_same_content(world.buffer, world.oracle)


def world_step(world: World, mapped: ReplayBuffer) -> None:
    zeros = np.zeros(world.setting.n_envs)
    no = zeros.astype(bool)
    given_obs = world.given()
    mapped.add(given_obs, zeros.astype(int), zeros, no, no, copy.deepcopy(given_obs))


@pytest.mark.parametrize("codec", ["raw", "delta", "delta-huffman"])
def test_only_what_is_read_is_looked_at(codec: str, tmp_path: Path) -> None:
    """A damaged block is found by whoever reads a frame in it, and by nobody else."""
    array = saved(tmp_path / "a", codec, 500)
    data = bytearray((tmp_path / "a").read_bytes())
    n_header = int.from_bytes(data[16:24], "little")
    start = 64 + -(-n_header // 64) * 64
    sound = 0
    n_blocks = -(-int.from_bytes(data[24:32], "little") // container.BLOCK_BYTES)
    for block in range(n_blocks):
        place = start + block * container.BLOCK_BYTES + 30_000
        if block == n_blocks - 1 or place >= len(data):
            continue
        data[place] ^= 4
        (tmp_path / "b").write_bytes(data)
        data[place] ^= 4
        with pytest.raises(CorruptFrameError, match="is damaged: block"):
            DiffFrameArray.load(tmp_path / "b")
        try:
            mapped = DiffFrameArray.load(tmp_path / "b", mmap_mode="r")
        except CorruptFrameError:
            continue  # in what is read at once
        n_bad = 0
        for t in range(0, 500, 9):
            try:
                assert_same(mapped[t], array[t])
                sound += 1
            except CorruptFrameError:
                n_bad += 1
        with pytest.raises(CorruptFrameError, match="is damaged: block"):
            np.asarray(mapped)
        with pytest.raises(CorruptFrameError):
            pickle.dumps(mapped)
        assert n_bad < 56
    assert sound > 0


def test_flipped_bits_are_detected_or_change_nothing(tmp_path: Path) -> None:
    array = saved(tmp_path / "a", "delta", 200)
    data, dense = bytearray((tmp_path / "a").read_bytes()), np.asarray(array)
    rng = np.random.default_rng(1)
    for _ in range(examples(150)):
        place, bit = int(rng.integers(len(data))), 1 << int(rng.integers(8))
        data[place] ^= bit
        (tmp_path / "b").write_bytes(data)
        data[place] ^= bit
        with contextlib.suppress(ValueError):  # CorruptFrameError is one
            assert_same(np.asarray(DiffFrameArray.load(tmp_path / "b", mmap_mode="r")), dense)


def test_chunks_that_nobody_encodes_are_refused_where_they_are_read(tmp_path: Path) -> None:
    """With checksums that are right: somebody has made them."""
    array = DiffFrameArray((500, *FRAME))
    array.append(game(400, FRAME))
    array.save(tmp_path / "a")
    data = bytearray((tmp_path / "a").read_bytes())
    n_header, n_data = (int.from_bytes(data[i : i + 8], "little") for i in (16, 24))
    start = 64 + -(-n_header // 64) * 64
    rng = np.random.default_rng(2)
    n_refused = 0
    for _ in range(examples(60)):
        spoiled = bytearray(data)
        place = start + int(rng.integers(n_data))
        spoiled[place : place + 4] = rng.bytes(4)
        blocks = [
            spoiled[start + at : min(start + at + container.BLOCK_BYTES, start + n_data)]
            for at in range(0, n_data, container.BLOCK_BYTES)
        ]
        table = b"".join(zlib.crc32(block).to_bytes(4, "little") for block in blocks)
        spoiled[start + n_data :] = table + zlib.crc32(table).to_bytes(4, "little")
        (tmp_path / "b").write_bytes(spoiled)
        try:
            np.asarray(DiffFrameArray.load(tmp_path / "b", mmap_mode="r"))
        except ValueError:
            n_refused += 1
    assert n_refused > 0


def test_a_file_that_is_saved_over_leaves_a_mapped_one_as_it_was(tmp_path: Path) -> None:
    array = saved(tmp_path / "a", "delta")
    mapped, dense = DiffFrameArray.load(tmp_path / "a", mmap_mode="r"), np.asarray(array)
    array[...] = 3
    array.save(tmp_path / "a")
    assert_same(np.asarray(mapped), dense)
    os.remove(tmp_path / "a")
    assert_same(mapped.gather(np.arange(1300, 1320)), dense.reshape(-1, *FRAME)[300:320])
