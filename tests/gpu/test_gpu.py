"""On a real GPU: what is decoded there is what the CPU decodes. Run by `make test-cuda`."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from compressarray import CorruptFrameError, DeviceError, DiffFrameArray, ReplayBuffer
from compressarray.readers.cuda.gpu import gpu_of
from tests.strategies import OWN_CODECS, frames, game
from tests.test_device_buffers import KINDS, STACKS, steps
from tests.test_device_replica import WORLDS

FRAME = (20, 24)


def on_cpu(values: Any) -> np.ndarray:
    return values.cpu().numpy()


def assert_same_batch(here: Any, there: Any) -> None:
    for name, values in here._asdict().items():
        other = getattr(there, name)
        for key, each in values.items() if isinstance(values, dict) else [(None, values)]:
            given = other if key is None else other[key]
            if name == "index":
                assert np.array_equal(each, given)
                continue
            assert given.is_cuda, name
            assert np.array_equal(np.asarray(each), on_cpu(given)), name


@pytest.mark.usefixtures("learning_early")
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("codec", OWN_CODECS)
@pytest.mark.parametrize("shape", [(26, 30), (11, 9), (84, 84)])
def test_a_ring_that_turns_and_learns(codec: str, world: str, shape: tuple[int, int]) -> None:
    array = DiffFrameArray((60, 2, *shape), codec=codec)
    rows = np.stack([WORLDS[world](150, shape, seed) for seed in (1, 2)], axis=1)
    for t, row in enumerate(rows):
        index = array.append(row)
        if t % 10 == 9:
            held = np.arange(max(0, int(index.max()) + 1 - 120), int(index.max()) + 1)
            held = np.random.default_rng(t).permutation(held)
            assert np.array_equal(on_cpu(array.gather(held, device="cuda")), array.gather(held))
    array._frames.elsewhere.check()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((224, 224, 3), "u1"),
        ((70_000,), "u1"),
        ((96, 96, 3), "f4"),
        ((7, 3), "u1"),
        ((300, 301), "i2"),
    ],
)
@pytest.mark.parametrize("codec", ["raw", "delta", "delta-huffman"])
def test_frames_of_any_size_and_dtype(codec: str, shape: tuple[int, ...], dtype: str) -> None:
    array = DiffFrameArray((20, *shape), dtype, frame_ndim=len(shape), codec=codec)
    for kind in ("sprites", "scrolling", "noise"):
        index = array.append(frames(kind, 18, shape, np.dtype(dtype), 3))
        got = on_cpu(array.gather(index, device="cuda"))
        assert got.tobytes() == array.gather(index).tobytes()
    array._frames.elsewhere.check()


@pytest.mark.parametrize("decode_on", ["device", "cpu"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_batches(kind: str, decode_on: str) -> None:
    given = KINDS[kind]
    plain = ReplayBuffer(120, STACKS, Discrete(6), n_envs=2, seed=5, **given)
    buffer = ReplayBuffer(
        120, STACKS, Discrete(6), n_envs=2, seed=5, device="cuda", decode_on=decode_on, **given
    )
    made = (plain, buffer)
    ahead = [each.batches(8, lookahead=2) for each in made]
    kept = None
    side = torch.cuda.Stream()
    rng = np.random.default_rng(0)
    for t, step in enumerate(steps(150, 2, STACKS, 3)):
        extra = {}
        if "fields" in given:
            extra["fields"] = {"log_prob": -rng.random((2, 2)).astype(np.float32)}
        for each in made:
            each.add(*step, **extra)
        if t < 12 or t % 6:
            continue
        # under any current stream
        with torch.cuda.stream(side if t % 4 else torch.cuda.default_stream()):
            assert_same_batch(*(each.sample(16) for each in made))
            assert_same_batch(*(next(each) for each in ahead))
            kept = buffer.sample(16, out=kept)
            assert_same_batch(plain.sample(16), kept)
            assert_same_batch(*(each.sample_sequences(4, 5) for each in made))
    stats = buffer.stats()
    assert stats["decode_on"] == decode_on
    assert (stats["nbytes_on_device"] > 0) == (decode_on == "device" and kind != "zstd")
    for each in ahead:
        each.close()


def test_batches_keep_what_they_hold_while_others_are_drawn() -> None:
    plain, buffer = (
        ReplayBuffer(2000, STACKS, Discrete(6), n_envs=4, seed=1, device=device)
        for device in (None, "cuda")
    )
    for step in steps(400, 4, STACKS, 1):
        for each in (plain, buffer):
            each.add(*step)
    pairs = [(plain.sample(64), buffer.sample(64)) for _ in range(40)]
    # memory of batches that are gone is used again under the learner's unfinished work
    for here, there in pairs:
        work = there.obs.float() @ torch.ones(24, device="cuda")
        assert_same_batch(here, there)
        del work


def test_several_threads_draw_and_gather() -> None:
    array = DiffFrameArray((500, *FRAME))
    index = array.append(game(500, FRAME))
    want = array.gather(index)
    wrong: list[int] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                some = rng.integers(500, size=40)
                if not np.array_equal(on_cpu(array.gather(index[some], device="cuda")), want[some]):
                    wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_spoilt_bytes_lead_nowhere_and_are_said() -> None:
    array = DiffFrameArray((200, *FRAME), codec="delta-huffman")
    index = array.append(game(200, FRAME))
    array.gather(index, device="cuda")
    replica = array._frames.elsewhere._held[gpu_of("cuda").name].replica
    block = replica._blocks.memories[0].tensor
    used = replica._blocks._used[0]
    rng = torch.Generator(device="cuda").manual_seed(0)
    torch.cuda.synchronize()
    at = torch.randint(used, (used // 8,), generator=rng, device="cuda")
    block[at] = torch.randint(256, at.shape, generator=rng, device="cuda", dtype=torch.uint8)
    torch.cuda.synchronize()
    array.gather(index, device="cuda")
    with pytest.raises(CorruptFrameError, match="a device's memory is corrupt"):
        array._frames.elsewhere.check()
    torch.cuda.synchronize()  # no illegal access
    array.clear()


def test_a_gpu_that_is_full_is_done_without() -> None:
    buffer = ReplayBuffer(60_000, Box(0, 255, (84, 84), np.uint8), Discrete(6), seed=1,
                          codec="raw", device="cuda")  # fmt: skip
    frame = np.zeros((1, 84, 84), np.uint8)
    before = frame
    for t in range(20):
        after = frame + np.uint8(t)
        buffer.add(before, [0], [0.0], [False], [False], after, None)
        before = after
    free, _ = torch.cuda.mem_get_info()
    torch.cuda.empty_cache()
    hog = torch.empty(free - (96 << 20), dtype=torch.uint8, device="cuda")
    try:
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, (torch.cuda.memory_reserved() + (2 << 20)) / torch.cuda.mem_get_info()[1])
        )
        rng = np.random.default_rng(0)

        def fill(before: np.ndarray) -> None:
            for t in range(4000):
                noise = rng.integers(256, size=frame.shape).astype(np.uint8)
                buffer.add(before, [0], [0.0], [False], [False], noise, None)
                before = noise
                if t % 200 == 0:
                    buffer.sample(2)

        with pytest.warns(UserWarning, match="decoded on the CPU from now on"):
            fill(before)
        assert buffer.sample(2).obs.is_cuda
        assert buffer.stats()["decode_on"] == "cpu"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        del hog
        torch.cuda.empty_cache()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_is_told() -> None:
    array = DiffFrameArray((50, *FRAME))
    index = array.append(game(50, FRAME))
    array.gather(index, device="cuda")
    child = os.fork()
    if child == 0:
        answer = 1
        try:
            array.gather(index, device="cuda")
        except (DeviceError, ValueError):
            answer = 0 if np.array_equal(array.gather(index), np.asarray(array)) else 2
        os._exit(answer)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_two_gpus_have_a_replica_each() -> None:
    array = DiffFrameArray((50, *FRAME))
    index = array.append(game(50, FRAME))
    for device in ("cuda:0", "cuda:1"):
        got = array.gather(index, device=device)
        assert str(got.device) == device
        assert np.array_equal(on_cpu(got), array.gather(index))
