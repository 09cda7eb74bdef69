"""Buffers and arrays that decode on a device give what they give without, to whoever uses it there.

The device is the host's twin, which does what is asked for when somebody waits for it.
"""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st

from compressarray import (
    DeviceError,
    DiffFrameArray,
    FrameEvictedError,
    ReplayBuffer,
    ReplayEnsemble,
    StaleStreamError,
)
from compressarray.readers.cuda import devices
from compressarray.replay import outputs
from tests.effort import examples
from tests.host_device import HostDevice, There
from tests.naive import assert_same
from tests.strategies import OWN_CODECS, game

HALF = np.float32(0.5)
STACKS = Box(0, 255, (4, 20, 24), np.uint8)


def with_device(buffer: ReplayBuffer, device: HostDevice, decode_on: str | None = None) -> Any:
    buffer._output = outputs.DeviceOutput("cuda:0", decode_on)
    buffer._output._device = device
    return buffer


def steps(n: int, n_envs: int, space: Any, seed: int) -> Any:
    """Steps of environments whose episodes end now and then."""
    rng = np.random.default_rng(seed)
    pictures = np.stack([game(n + 9, (20, 24), seed + i) for i in range(n_envs)], axis=1)
    stack = np.repeat(pictures[0][:, None], 4, axis=1)

    def observed(stack: np.ndarray) -> Any:
        if isinstance(space, Dict):
            return {
                "image": stack.copy(),
                "state": stack[:, :, 0, :3].reshape(n_envs, -1) / np.float32(2),
            }
        return stack.copy()

    for t in range(1, n):
        obs = observed(stack)
        after = np.concatenate([stack[:, 1:], pictures[t][:, None]], axis=1)
        ends = rng.random(n_envs) < 0.08
        begun = np.repeat(pictures[t + 1][:, None], 4, axis=1)
        stack = np.where(ends[:, None, None, None], begun, after)
        action, reward = rng.integers(6, size=n_envs), rng.random(n_envs).astype(np.float32)
        yield (
            obs,
            action,
            reward,
            ends,
            np.zeros(n_envs, bool),
            observed(stack),
            {"final_obs": observed(after)},
        )


def assert_same_batch(one: Any, other: Any) -> None:
    for name, values in one._asdict().items():
        there = getattr(other, name)
        if isinstance(values, dict):
            assert set(values) == set(there)
            for key, each in values.items():
                assert_same_values(each, there[key], name)
        else:
            assert_same_values(values, there, name)


def assert_same_values(here: Any, there: Any, name: str) -> None:
    assert is_there(there) or name == "index", name
    assert_same(np.array(here), np.array(there))


def is_there(frames: Any) -> bool:
    """Whether an array is a view of what stands for a device's memory."""
    while frames is not None and not isinstance(frames, There):
        frames = getattr(frames, "base", None)
    return frames is not None


KINDS: dict[str, dict[str, Any]] = {
    "one step": {},
    "n-step": {"n_step": 3},
    "prioritized": {"prioritized": True},
    "fields": {"fields": {"log_prob": Box(-9, 9, (2,), np.float32)}},
    "small codec": {"codec": "delta-huffman"},
    "raw": {"codec": "raw"},
    "zstd": {"codec": "zstd"},
}


@pytest.mark.parametrize("decode_on", [None, "cpu"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", [STACKS, Dict({"image": STACKS, "state": Box(0, 200, (12,))})],
                         ids=["image", "dict"])  # fmt: skip
def test_the_same_seed_gives_the_same_batches(kind: str, space: Any, decode_on: Any) -> None:
    device = HostDevice()
    made = [
        ReplayBuffer(120, space, Discrete(6), n_envs=2, seed=5, **KINDS[kind]) for _ in range(2)
    ]
    plain, buffer = made[0], with_device(made[1], device, decode_on)
    ahead = [each.batches(8, lookahead=2, thread=i == 1) for i, each in enumerate(made)]
    kept = None
    rng = np.random.default_rng(0)
    for t, (obs, action, reward, ends, no, after, info) in enumerate(steps(150, 2, space, 3)):
        extra = {}
        if "fields" in KINDS[kind]:
            extra["fields"] = {"log_prob": -rng.random((2, 2)).astype(np.float32)}
        for each in made:
            each.add(obs, action, reward, ends, no, after, info, **extra)
        if t < 12 or t % 6:
            continue
        batches = [each.sample(16) for each in made]
        assert_same_batch(*batches)
        if kind == "prioritized":
            for each in made:
                each.update_priorities(batches[0].index, batches[0].reward + 1)
        assert_same_batch(*(next(each) for each in ahead))
        kept = buffer.sample(16, out=kept)
        assert_same_batch(plain.sample(16), kept)
        assert_same_batch(*(each.sample_sequences(4, 5) for each in made))
        assert_same_batch(*(each.get(batches[0].index[:3]) for each in made))
    stats = buffer.stats()
    there = decode_on is None and kind != "zstd"
    assert (stats["nbytes_on_device"] > 0) == there
    assert stats["decode_on"] == ("cpu" if decode_on else "device")
    for each in ahead:
        each.close()
    for each in made:
        each.clear()


def test_a_device_that_is_full_is_done_without_from_then_on() -> None:
    device = HostDevice(most_bytes=3 << 20)
    plain, buffer = (ReplayBuffer(2000, STACKS, Discrete(6), n_envs=2, seed=1) for _ in range(2))
    with_device(buffer, device)
    heard = []
    for t, step in enumerate(steps(300, 2, STACKS, 1)):
        for each in (plain, buffer):
            each.add(*step)
        if t == 150:
            device.most_bytes = device.nbytes + 40_000  # for batches, and no block more
        if t > 20 and t % 10 == 0:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if t == 200:
                    device.most_bytes = 200_000
                batch = buffer.sample(4)
            heard += caught
            if t >= 200:
                device.most_bytes = None
            assert_same_batch(plain.sample(4), batch)
    assert [str(each.message)[:45] for each in heard] == [
        "frames are decoded on the CPU from now on, an"
    ]
    assert buffer.stats()["decode_on"] == "cpu"
    assert buffer.stats()["nbytes_on_device"] == 0


def test_batches_are_whole_only_once_they_have_arrived() -> None:
    """The twin does nothing before somebody waits: this test would see a wait that is left out."""
    device = HostDevice()
    buffer = with_device(ReplayBuffer(200, STACKS, Discrete(6), seed=2), device)
    for step in steps(60, 1, STACKS, 2):
        buffer.add(*step)
    drawn = buffer._draw(8, True, None, None)
    drawn.decode()
    early = np.array(drawn._batch.obs)
    assert (early == 0xAA).all()
    whole = drawn.result()
    assert not (np.array(whole.obs) == 0xAA).all()


def test_what_was_drawn_is_delivered_when_the_ring_has_moved_on() -> None:
    device = HostDevice()
    plain, buffer = (ReplayBuffer(40, STACKS, Discrete(6), seed=3) for _ in range(2))
    with_device(buffer, device)
    ahead = [each.batches(6, lookahead=4, thread=False) for each in (plain, buffer)]
    for t, step in enumerate(steps(200, 1, STACKS, 4)):
        for each in (plain, buffer):
            each.add(*step)
        if t > 30:
            assert_same_batch(*(next(each) for each in ahead))


# -- arrays ------------------------------------------------------------------------------------


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> HostDevice:
    device = HostDevice()
    monkeypatch.setattr(devices, "device_of", lambda _: device)
    return device


@settings(max_examples=examples(40))
@given(
    codec=st.sampled_from(OWN_CODECS),
    stack=st.sampled_from((None, 3)),
    seed=st.integers(0, 2**16),
)
def test_gather_on_a_device_is_gather(codec: str, stack: int | None, seed: int) -> None:
    device = HostDevice()
    rng = np.random.default_rng(seed)
    lead = (30, 2) if stack is None else (30, 2, stack)
    array = DiffFrameArray((*lead, 12, 16), codec=codec)
    frames = game(200, (12, 16), seed)
    original, devices.device_of = devices.device_of, lambda _: device
    try:
        for _ in range(4):
            rows = frames[rng.integers(200, size=int(rng.integers(1, 40)))]
            shape = (len(rows), *lead[1:], 12, 16)
            array.append(np.broadcast_to(rows.reshape(-1, *(1,) * len(lead[1:]), 12, 16), shape))
            counts = array.lane_counts
            first = np.maximum(counts - 30, 0).max()
            held = rng.integers(first * 2, counts.min() * 2, (3, 5))
            got = array.gather(held, device="cuda")
            assert isinstance(got, There)
            assert_same(np.array(got), array.gather(held))
            again = array.gather(held[::-1], out=got)
            assert again is got
            assert_same(np.array(again), array.gather(held[::-1]))
    finally:
        devices.device_of = original


def test_gather_on_a_device_refuses_what_gather_does(host: HostDevice) -> None:
    array = DiffFrameArray((10, 12, 16))
    array.append(game(15, (12, 16)))
    for wrong, error in (([3], FrameEvictedError), ([15], FrameEvictedError), ([0.5], IndexError)):
        with pytest.raises(error):
            array.gather(wrong, device="cuda")
    stream = array.stream
    array.clear()
    array.append(game(3, (12, 16)))
    with pytest.raises(StaleStreamError):
        array.gather([0], stream=stream, device="cuda")
    assert_same(np.array(array.gather([0, 2], device="cuda")), array.gather([0, 2]))
    fits = array.gather([0, 1], device="cuda")
    with pytest.raises(ValueError, match="shape"):
        array.gather([0], out=fits)
    with pytest.raises(TypeError, match="dtype"):
        array.gather([0, 1], out=fits.view(np.int8))
    with pytest.raises(ValueError, match="contiguous"):
        array.gather([0, 1], out=fits.swapaxes(0, 1).copy().view(There).swapaxes(0, 1))
    with pytest.raises(ValueError, match="leave one"):
        array.gather([0, 1], out=np.empty((2, 12, 16), np.uint8), device="cuda")


def test_gather_of_what_no_device_decodes_is_copied(host: HostDevice) -> None:
    for codec in ("zstd", "delta"):
        array = DiffFrameArray((10, 3, 0) if codec == "delta" else (10, 6, 6), codec=codec)
        array.append(np.ones((4, *array.frame_shape), np.uint8))
        got = array.gather([0, 3], device="cuda")
        assert_same(np.array(got), array.gather([0, 3]))


def test_no_memory_for_a_replica_is_said(host: HostDevice) -> None:
    array = DiffFrameArray((10, 12, 16))
    array.append(game(5, (12, 16)))
    host.most_bytes = 1000
    with pytest.raises(DeviceError, match="no room"):
        array.gather([0], device="cuda")
    assert_same(array.gather([0]), np.asarray(array)[:1])
    host.most_bytes = None
    assert_same(np.array(array.gather([0], device="cuda")), array.gather([0]))


def test_copies_and_pickles_begin_anew(host: HostDevice) -> None:
    array = DiffFrameArray((10, 12, 16))
    array.append(game(5, (12, 16)))
    array.gather([0], device="cuda")
    for twin in (array.copy(), pickle.loads(pickle.dumps(array))):
        twin[2] = 7
        assert_same(np.array(twin[2]), np.full((12, 16), 7, np.uint8))
    assert_same(np.array(array.gather([2], device="cuda")), array.gather([2]))


# -- without a GPU -----------------------------------------------------------------------------


def test_devices_that_cannot_be_are_refused_in_one_line() -> None:
    torch = pytest.importorskip("torch")
    array = DiffFrameArray((10, 12, 16))
    array.append(game(5, (12, 16)))
    wrong = ["cpu", "nonsense"] if torch.cuda.is_available() else ["cuda", "cpu", "nonsense"]
    for device in wrong:
        with pytest.raises(ValueError, match="cannot be used here") as caught:
            array.gather([0], device=device)
        assert "\n" not in str(caught.value)
    for device in (None, "cpu"):
        with pytest.raises(ValueError, match="only GPUs of NVIDIA's decode"):
            ReplayBuffer(10, STACKS, Discrete(2), device=device, decode_on="device")
    with pytest.raises(ValueError, match="must be 'cpu', 'device' or None"):
        ReplayBuffer(10, STACKS, Discrete(2), decode_on="gpu")


def test_stats_say_where_pixels_are_decoded() -> None:
    stats = ReplayBuffer(10, STACKS, Discrete(2)).stats()
    assert (stats["decode_on"], stats["nbytes_on_device"]) == ("cpu", 0)


@pytest.mark.parametrize("decode_on", [None, "cpu"])
@pytest.mark.parametrize("n_step", [1, 3])
def test_ensembles_decode_there_too(n_step: int, decode_on: str | None) -> None:
    buffers = {}
    for key in range(3):
        buffer = ReplayBuffer(60, STACKS, Discrete(6), 2, n_step=n_step)
        for step in steps(40 + key, 2, STACKS, key):
            buffer.add(*step)
        buffers[key] = buffer
    here = ReplayEnsemble(buffers, seed=1)
    there: Any = with_device(ReplayEnsemble(buffers, seed=1), HostDevice(), decode_on)
    for _ in range(5):
        assert_same_batch(here.sample(16), there.sample(16))
    one, other = here.sample_sequences(4, 3), there.sample_sequences(4, 3)
    for name in ("obs", "next_obs", "action", "reward"):
        assert_same(np.array(getattr(one, name)), np.array(getattr(other, name)))
