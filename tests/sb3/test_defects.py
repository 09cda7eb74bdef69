"""What goes wrong in sb3-extra-buffers 0.5.0, tried here.

Its evaluation and records are tried in `test_evaluation` and `test_recording`.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from compressarray.sb3 import CompressedDictReplayBuffer, CompressedReplayBuffer

ACTIONS = spaces.Discrete(2)


def add(buffer: Any, obs: Any, next_obs: Any) -> None:
    zero = np.zeros(1)
    buffer.add(obs, next_obs, zero, zero, zero, [{}])


def test_floats_are_not_clipped_to_bytes() -> None:
    """(.5, -.5, .25, 1) came back as (0, 0, 0, 1)."""
    values = np.array([[0.5, -0.5, 0.25, 1.0]], np.float32)
    with pytest.warns(UserWarning, match="nothing is gained|no image"):
        buffer = CompressedReplayBuffer(4, spaces.Box(-1, 1, (4,), np.float32), ACTIONS, "cpu")
    add(buffer, values, -values)
    samples = buffer._get_samples(np.array([0]))
    np.testing.assert_array_equal(samples.observations.numpy(), values)
    np.testing.assert_array_equal(samples.next_observations.numpy(), -values)


def test_floats_beside_images_are_not_clipped_either() -> None:
    """(.5, -3, 7.25) of a Dict came back as (0, 253, 7)."""
    space = spaces.Dict(
        {
            "image": spaces.Box(0, 255, (1, 9, 9), np.uint8),
            "vector": spaces.Box(-10, 10, (3,), np.float32),
        }
    )
    vector = np.array([[0.5, -3.0, 7.25]], np.float32)
    obs = {"image": np.full((1, 1, 9, 9), 7, np.uint8), "vector": vector}
    buffer = CompressedDictReplayBuffer(4, space, ACTIONS, "cpu")
    add(buffer, obs, obs)
    samples: Any = buffer._get_samples(np.array([0]))
    np.testing.assert_array_equal(samples.observations["vector"].numpy(), vector)
    np.testing.assert_array_equal(samples.observations["image"].numpy(), obs["image"])


@pytest.mark.parametrize("value", [0, 77])
def test_a_large_image_of_one_value_is_stored(value: int) -> None:
    """Its runs were too long for the run-length coder's own dtype."""
    image = np.full((1, 3, 210, 160), value, np.uint8)
    buffer = CompressedReplayBuffer(
        4, spaces.Box(0, 255, image.shape[1:], np.uint8), ACTIONS, "cpu"
    )
    add(buffer, image, image)
    samples = buffer._get_samples(np.array([0]))
    np.testing.assert_array_equal(samples.observations.numpy(), image)


def test_slots_that_were_never_written_are_read_as_zeros() -> None:
    """A slice with such entries raised."""
    buffer = CompressedReplayBuffer(8, spaces.Box(0, 255, (1, 9, 9), np.uint8), ACTIONS, "cpu")
    image = np.full((1, 1, 9, 9), 5, np.uint8)
    add(buffer, image, image)
    held = np.asarray(buffer.observations[:4])
    assert held.shape == (4, 1, 1, 9, 9)
    assert (held[0] == 5).all()
    assert not held[1:].any()


def test_a_buffer_that_is_deleted_is_gone() -> None:
    """A cache that belonged to the class kept it alive."""
    buffer = CompressedReplayBuffer(8, spaces.Box(0, 255, (1, 9, 9), np.uint8), ACTIONS, "cpu")
    image = np.full((1, 1, 9, 9), 5, np.uint8)
    add(buffer, image, image)
    buffer.sample(4)
    seen = weakref.ref(buffer)
    del buffer
    gc.collect()
    assert seen() is None


def test_bytes_are_those_that_are_held() -> None:
    """Results of zstd kept their worst-case allocation: 28,424 bytes each, 2,575 by its account."""
    shape = (4, 84, 84)
    rng = np.random.default_rng(0)
    buffer = CompressedReplayBuffer(
        200, spaces.Box(0, 255, shape, np.uint8), ACTIONS, "cpu", compression_method="zstd1"
    )
    obs = np.repeat(rng.integers(0, 4, (1, 4, 84, 21), np.uint8), 4, axis=3)
    for _ in range(200):
        after = np.roll(obs, -1, 1)
        after[0, -1, rng.integers(84)] = 255
        add(buffer, obs, after)
        obs = after
    assert buffer.nbytes_stored / 200 < 6_000  # one frame of random columns, and some small change
