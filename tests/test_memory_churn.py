"""Bytes that are given back, bytes that are shared, and accounts that agree with the machine.

Everything is compared in bytes that the array reports, and what it reports with the resident
memory of a process of its own. Nothing here is timed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest

from compressarray import DiffFrameArray
from tests.effort import examples
from tests.naive import assert_same
from tests.strategies import CODECS, frames, game

KIB, MIB = 1024, 1024 * 1024
TURNS = 1000
REWRITES = min(1000, examples(60))
GOP = 16

OWN = ["raw", "sparse", "delta", "delta-huffman"]


def build(codec: str, shape: tuple[int, ...]) -> DiffFrameArray:
    options: dict[str, Any] = {"gop_length": GOP} if codec in ("delta", "delta-huffman") else {}
    return DiffFrameArray(shape, codec=CODECS[codec](), **options)


def most_bytes(fresh: DiffFrameArray) -> float:
    """10 % more than in time order, and one open GOP for each lane.

    Arrays here are megabytes where frames are noise. Dictionaries and tables that one array has
    learnt and the other has not, and pages begun, may differ by tens of kilobytes.
    """
    open_gops = fresh.n_lanes * GOP * int(np.prod(fresh.frame_shape)) * fresh.itemsize
    return 1.1 * fresh.nbytes_stored + open_gops + 64 * KIB


def in_time_order(array: DiffFrameArray, codec: str) -> DiffFrameArray:
    """A new array that was assigned the same content row by row."""
    fresh = build(codec, array.shape)
    for t in range(array.shape[0]):
        fresh[t] = array[t]
    return fresh


# --------------------------------------------------------------------------- rings that turn

# Content -> (frame, slots, lanes): about a mebibyte coded, so that open GOPs and whole pages
# matter little beside it.
RINGS = {
    "noise": ((32, 32), 512, 2),
    "game": ((40, 40), 384, 2),
    "flashes": ((32, 32), 512, 2),  # frames that cost nothing and frames that cost all, mixed
}


def moving_content(kind: str, n: int, frame: tuple[int, int], seed: int) -> np.ndarray[Any, Any]:
    if kind == "noise":
        return frames("noise", n, frame, np.uint8, seed)
    if kind == "game":
        return game(n, frame, seed)
    out = game(n, frame, seed)
    loud = np.random.default_rng(seed).random(n) < 0.3
    out[loud] = frames("noise", int(loud.sum()), frame, np.uint8, seed + 1)
    return out


@pytest.mark.parametrize("codec", OWN)
@pytest.mark.parametrize("kind", RINGS)
def test_a_ring_that_turned_a_thousand_times(kind: str, codec: str) -> None:
    """Blocks of drawn lengths, so that GOPs never line up with the ring's seam."""
    frame, n_slots, n_lanes = RINGS[kind]
    n_turns = TURNS if codec in ("raw", "delta") else TURNS // 5
    pool = np.stack(
        [moving_content(kind, 4 * n_slots + 17, frame, seed) for seed in range(n_lanes)], axis=1
    )
    rng = np.random.default_rng(0)
    array = build(codec, (n_slots, n_lanes, *frame))
    appended, next_check, checks = 0, n_slots, 0
    recent: list[np.ndarray[Any, Any]] = []
    total = n_turns * n_slots
    while appended < total:
        start = appended % len(pool)
        stop = min(start + int(rng.integers(1, 2 * n_slots)), len(pool), start + total - appended)
        array.append(pool[start:stop])
        appended += stop - start
        recent = [*recent, pool[start:stop]][-n_slots:]
        if appended >= next_check or appended == total:
            last = np.concatenate(recent)[-n_slots:]
            fresh = build(codec, array.shape)
            fresh.append(last)
            assert array.nbytes_stored <= most_bytes(fresh), f"after {appended} rows"
            next_check, checks = max(2 * next_check, appended + n_slots), checks + 1
    assert checks >= 5
    assert array.lane_counts.tolist() == [total] * n_lanes
    order = np.arange(total - n_slots, total) % n_slots
    assert_same(array[order], last)
    live = (np.arange(total - n_slots, total)[:, None] * n_lanes) + np.arange(n_lanes)
    assert_same(array.gather(live), last)


@pytest.mark.parametrize("codec", ["raw", "delta", "delta-huffman"])
def test_a_ring_of_lanes_that_turn_at_their_own_pace(codec: str) -> None:
    """One lane turns a hundred times while others wait, and then the next one does."""
    n_slots, n_lanes, frame = 256, 3, (32, 32)
    array = build(codec, (n_slots, n_lanes, *frame))
    for lane in (0, 1, 2, 0):
        content = moving_content("flashes", 1000, frame, lane)[:, None]
        for _ in range(26):
            array.append(content, lanes=[lane])
    fresh = in_time_order(array, codec)
    assert array.nbytes_stored <= most_bytes(fresh)
    assert_same(np.asarray(array), np.asarray(fresh))


@pytest.mark.parametrize("codec", ["raw", "delta", "delta-huffman"])
def test_rollouts_of_stacks_again_and_again(codec: str) -> None:
    """A PPO buffer of stacks: assigned from its first row to its last, a thousand times."""
    n_time, n_lanes, frame = 64, 2, (24, 24)
    pool = np.stack([moving_content("flashes", 501, frame, k) for k in range(n_lanes)], axis=1)
    array = build(codec, (n_time, n_lanes, 4, *frame))
    for rollout in range(300):
        first = rollout * 7 % (501 - n_time - 4)
        for t in range(n_time):
            array[t] = pool[first + t : first + t + 4].swapaxes(0, 1)
    fresh = in_time_order(array, codec)
    assert array.nbytes_stored <= most_bytes(fresh)
    assert_same(np.asarray(array), np.asarray(fresh))


# --------------------------------------------------------------------------- random places


@pytest.mark.parametrize("codec", OWN)
@pytest.mark.parametrize("kind", RINGS)
def test_an_array_overwritten_at_random_places(kind: str, codec: str) -> None:
    """Single writes, batches, stretches of time and rows: every frame hundreds of times."""
    frame, n_slots, n_lanes = RINGS[kind][0], 768, 2
    n_writes = n_slots * n_lanes * (REWRITES if codec in ("raw", "delta") else REWRITES // 5)
    pool = moving_content(kind, 1024, frame, 5)
    rng = np.random.default_rng(1)
    array = build(codec, (n_slots, n_lanes, *frame))
    flat = array.reshape(-1, *frame)
    dense = np.zeros(flat.shape, np.uint8)
    written, next_check = 0, n_slots
    while written < n_writes:
        how = rng.integers(4)
        if how == 0:
            cells = rng.integers(0, len(flat), 1)
            flat[int(cells[0])] = dense[cells] = pool[rng.integers(len(pool), size=1)]
        elif how == 1:
            cells = rng.choice(len(flat), int(rng.integers(2, 64)), replace=False)
            flat[cells] = dense[cells] = pool[rng.integers(len(pool), size=cells.size)]
        elif how == 2:  # a stretch of time, in order, in one lane
            first = int(rng.integers(0, n_slots - 40))
            lane = int(rng.integers(n_lanes))
            start = int(rng.integers(0, len(pool) - 40))
            cells = (first + np.arange(40)) * n_lanes + lane
            array[first : first + 40, lane] = dense[cells] = pool[start : start + 40]
        else:  # rows of all lanes
            first = int(rng.integers(0, n_slots - 8))
            cells = np.arange(first * n_lanes, (first + 8) * n_lanes)
            content = pool[rng.integers(len(pool), size=cells.size)]
            dense[cells] = content
            array[first : first + 8] = content.reshape(8, n_lanes, *frame)
        written += cells.size
        if written >= next_check:
            next_check *= 3
            assert array.nbytes_stored <= most_bytes(in_time_order(array, codec)), f"at {written}"
    assert_same(np.asarray(flat), dense)
    assert array.nbytes_stored <= most_bytes(in_time_order(array, codec))


@pytest.mark.parametrize("codec", OWN)
def test_disorder_heals(codec: str) -> None:
    """Frames that follow each other in time are coded so, in whatever order they came."""
    n_slots, frame = 1024, (48, 48)
    content = game(n_slots, frame, seed=2)
    array = build(codec, (n_slots, *frame))
    rng = np.random.default_rng(3)
    for _ in range(3):
        for t in rng.permutation(n_slots):
            array[t] = content[t - 100]
        for t in rng.permutation(n_slots):
            array[t] = content[t]
    assert_same(np.asarray(array), content)
    assert array.nbytes_stored <= most_bytes(in_time_order(array, codec))


@pytest.mark.parametrize("how", ["assigned at once", "row by row", "appended"])
@pytest.mark.parametrize("codec", OWN)
def test_what_was_there_before_leaves_no_mark(codec: str, how: str) -> None:
    """Whatever a codec learnt from frames that are gone must not spoil those that came."""
    n_slots, frame = 3072, (48, 48)
    content = game(n_slots, frame, seed=2)
    array = build(codec, (n_slots, *frame))
    noise = frames("noise", n_slots, frame, np.uint8, 9)
    array.append(noise)
    if how == "appended":
        for _ in range(4):
            array.append(content)
    elif how == "assigned at once":
        for _ in range(2):
            array[...] = content
    else:
        for _ in range(2):
            for t in range(n_slots):
                array[t] = content[t]
    assert_same(np.asarray(array), content)
    assert array.nbytes_stored <= most_bytes(in_time_order(array, codec))


@pytest.mark.parametrize("codec", OWN)
def test_pixels_overwritten_one_by_one(codec: str) -> None:
    array = build(codec, (128, 32, 32))
    content = game(128, (32, 32), seed=4)
    array[...] = content
    rng = np.random.default_rng(5)
    for _ in range(4000):
        t, y, x = rng.integers(128), rng.integers(32), rng.integers(32)
        content[t, y, x] ^= 1 << rng.integers(8)
        array[t, y, x] = content[t, y, x]
    assert_same(np.asarray(array), content)
    assert array.nbytes_stored <= most_bytes(in_time_order(array, codec))


@pytest.mark.parametrize("codec", OWN)
def test_what_is_emptied_is_given_back(codec: str) -> None:
    empty = build(codec, (1024, 40, 40)).nbytes_stored
    array = build(codec, (1024, 40, 40))
    array[...] = frames("noise", 1024, (40, 40))
    assert array.nbytes_stored >= 1024 * 1600
    array.clear()
    assert array.nbytes_stored <= empty + 64 * KIB
    array.append(frames("noise", 1024, (40, 40)))
    assert array.nbytes_stored >= 1024 * 1600
    array[...] = 7
    assert array.nbytes_stored <= empty + 64 * KIB + GOP * 1600


# --------------------------------------------------------------------------- noise


@pytest.mark.parametrize("how", ["append", "assign", "rows"])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("n", "frame"), [(1024, (84, 84)), (8192, (24, 24)), (40_000, (7, 9))])
def test_noise_costs_its_own_size(n: int, frame: tuple[int, int], codec: str, how: str) -> None:
    """And at most 16 bytes a frame, in an arena whose slack is small beside megabytes."""
    if how == "rows" and n > 1024:
        n = 4096
    content = frames("noise", n, frame, np.uint8, n)
    array = DiffFrameArray((n, *frame), codec=CODECS[codec]())
    if how == "append":
        array.append(content)
    elif how == "assign":
        array[...] = content
    else:
        for t in range(n):
            array[t] = content[t]
    assert array.nbytes_stored <= content.nbytes + 16 * n + 256 * KIB
    assert array.nbytes_stored >= content.nbytes
    picked = np.random.default_rng(0).integers(0, n, 64)
    assert_same(array[picked], content[picked])


@pytest.mark.parametrize("codec", ["raw", "delta", "delta-huffman", "numcodecs.Blosc"])
def test_noise_of_floats_costs_its_own_size(codec: str) -> None:
    content = frames("noise", 1024, (30, 31), np.float32)
    array = DiffFrameArray(content.shape, np.float32, codec=CODECS[codec]())
    array[...] = content
    assert content.nbytes <= array.nbytes_stored <= content.nbytes + 16 * 1024 + 256 * KIB


# --------------------------------------------------------------------------- sharing


def stacks_of(content: np.ndarray[Any, Any], stack: int) -> np.ndarray[Any, Any]:
    """(T, n, ...) frames to (T, n, stack, ...) stacks, padded with zeros."""
    out = np.zeros((content.shape[0], content.shape[1], stack, *content.shape[2:]), np.uint8)
    for k in range(stack):
        out[stack - 1 - k :, :, k] = content[: len(content) - (stack - 1 - k)]
    return out


@pytest.mark.parametrize("how", ["append", "append a block", "assign", "rows", "lanes"])
@pytest.mark.parametrize("codec", ["raw", "sparse", "delta"])
def test_stacks_cost_one_frame_a_step(codec: str, how: str) -> None:
    """Noise, of which no codec saves a byte: what is not stored twice is all that is saved."""
    n_time, n_lanes, frame = 256, 2, (40, 40)
    content = frames("noise", n_time * n_lanes, frame).reshape(n_time, n_lanes, *frame)
    stacks = stacks_of(content, 4)
    array = build(codec, stacks.shape)
    if how == "append":
        for row in stacks:
            array.append(row)
    elif how == "append a block":
        array.append(stacks)
    elif how == "assign":
        array[...] = stacks
    elif how == "rows":
        for t, row in enumerate(stacks):
            array[t] = row
    else:
        for lane in range(n_lanes):
            for t in range(n_time):
                array[t, lane] = stacks[t, lane]
    n_distinct = n_time * n_lanes + n_lanes  # and the zeros that pad
    small = 16 * n_time * n_lanes * 4 + 128 * KIB
    assert array.nbytes_stored <= n_distinct * (1600 + 16) + small
    assert_same(np.asarray(array), stacks)


@pytest.mark.parametrize("codec", ["raw", "sparse", "delta", "delta-huffman", "numcodecs.Zstd"])
def test_a_constant_is_stored_once(codec: str) -> None:
    still = frames("noise", 1, (60, 60))[0]
    array = build(codec, (500, 4, 60, 60))
    empty = array.nbytes_stored
    for value in (7, still, np.broadcast_to(still, (500, 4, 60, 60))):
        array[...] = value
        assert_same(array[77, 2], np.broadcast_to(np.uint8(value), array.shape)[77, 2].copy())
        grown = array.nbytes_stored - empty
        # A few copies where the implementation keeps lanes or GOPs apart; never one a frame.
        assert grown <= 16 * 500 * 4 + 64 * KIB + 4 * GOP * 3600


@pytest.mark.parametrize("codec", ["raw", "delta"])
def test_a_still_lane_is_stored_once(codec: str) -> None:
    """A paused game: each frame equals the one in its lane's previous row."""
    still = frames("noise", 2, (60, 60))
    array = build(codec, (2000, 2, 60, 60))
    empty = array.nbytes_stored
    for _ in range(5000):
        array.append(still)
    assert array.nbytes_stored - empty <= 16 * 2000 * 2 + 64 * KIB + 2 * GOP * 3600
    assert_same(array[1234], still)


def test_sharing_survives_overwriting() -> None:
    """A frame shared by four stacks stays as long as one of them does."""
    content = frames("noise", 128, (16, 16)).reshape(128, 1, 16, 16)
    stacks = stacks_of(content, 4)
    array = build("raw", stacks.shape)
    array[...] = stacks
    rng = np.random.default_rng(0)
    for _ in range(2000):
        t, k = int(rng.integers(128)), int(rng.integers(4))
        stacks[t, 0, k] = rng.integers(0, 256, (16, 16))
        array[t, 0, k] = stacks[t, 0, k]
        if rng.random() < 0.3:
            t = int(rng.integers(0, 127))
            stacks[t + 1] = stacks[t]
            array[t + 1] = stacks[t]
    assert_same(np.asarray(array), stacks)
    n_distinct = len({f.tobytes() for f in stacks.reshape(-1, 16, 16)})
    assert array.nbytes_stored <= 1.1 * (n_distinct * (256 + 16) + 16 * 512 + 128 * KIB)


# --------------------------------------------------------------------------- resident memory

GROWTH = """
    import json, os, sys
    import numpy as np
    from compressarray import DiffFrameArray
    from tests.memory import resident_bytes
    from tests.strategies import frames, game

    codec, kind, height, width, n_frames = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    n_chunk = 1000
    rng = np.random.default_rng(0)
    if kind == "game":
        pool = game(8 * n_chunk, (height, width)).reshape(8, n_chunk, height, width)
    chunk = np.zeros((n_chunk, height, width), np.uint8)

    def next_chunk(k):
        if kind == "game":
            chunk[...] = pool[k % 8]
            for frame in chunk:  # what moves and cannot be foreseen, as in games with many parts
                places = rng.integers(0, frame.size, 24)
                frame.reshape(-1)[places] = rng.integers(0, 256, 24, np.uint8)
            chunk[:, 0, :4] = np.arange(k * n_chunk, (k + 1) * n_chunk, dtype=">u4")[:, None].view(
                np.uint8
            )
        else:
            for frame in chunk:
                frame[...] = np.frombuffer(rng.bytes(frame.size), np.uint8).reshape(frame.shape)
        return chunk

    def fill(array, n):
        for k in range(n // n_chunk):
            array.append(next_chunk(k))
        array.gather(np.arange(array.lane_counts[0] - 50, array.lane_counts[0]))

    # Warm enough to have compiled and trained all there is to compile and train, so that the
    # allocator keeps before what it would keep after.
    warm = DiffFrameArray((n_frames // 2, height, width), codec=codec)
    fill(warm, n_frames // 2)
    del warm
    accounts = []
    array = DiffFrameArray((n_frames, height, width), codec=codec)
    stored_before, resident_before = array.nbytes_stored, resident_bytes()
    for part in range(2):
        fill(array, n_frames // 2)
        accounts.append(
            (array.nbytes_stored - stored_before, resident_bytes() - resident_before)
        )
    fill(array, n_frames // 2)  # the ring turns: what is given back is used again
    accounts.append((array.nbytes_stored - stored_before, resident_bytes() - resident_before))
    assert array[5].tobytes() == array.gather(n_frames + 5).tobytes()
    print(json.dumps(accounts))
"""


@pytest.mark.parametrize(
    ("codec", "kind", "frame"),
    [
        ("delta", "game", (84, 84)),
        ("delta-huffman", "game", (84, 84)),
        ("sparse", "game", (48, 48)),
        ("raw", "noise", (48, 48)),
        ("delta", "noise", (48, 48)),
        ("delta-huffman", "noise", (32, 32)),
        ("zstd", "game", (24, 24)),
    ],
)
def test_resident_memory_grows_by_what_is_reported(
    codec: str, kind: str, frame: tuple[int, int]
) -> None:
    """100,000 appended frames in a fresh process: both accounts within 10 % of each other."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(GROWTH), codec, kind, *map(str, frame), "100000"],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p) or ".",
            "NUMBA_NUM_THREADS": "1",  # no thread that learns is at it when memory is looked at
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for stored, resident in json.loads(done.stdout):
        assert stored > MIB
        # Beside 10 %: what an allocator and an interpreter round up to, a few pages here and there.
        assert abs(resident - stored) <= 0.1 * stored + 512 * KIB, (stored, resident)
