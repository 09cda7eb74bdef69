"""Files of every version of the format that was kept give what went into them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compressarray import DiffFrameArray, ReplayBuffer
from compressarray.format import container
from tests import golden
from tests.naive import assert_same

VERSIONS = sorted(path for path in golden.FIXTURES.iterdir() if path.is_dir())


def test_this_version_is_kept() -> None:
    assert str(container.VERSION) in [path.name for path in VERSIONS]


@pytest.mark.parametrize("mmap_mode", [None, "r"])
@pytest.mark.parametrize("codec", golden.CODECS)
@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_arrays(folder: Path, codec: str, mmap_mode: None) -> None:
    array = DiffFrameArray.load(folder / f"array-{codec}", mmap_mode)
    expected = golden.frames()
    assert_same(array.lane_counts, np.full(2, golden.N_FRAMES))
    kept = np.arange(golden.N_FRAMES - golden.N_ROWS, golden.N_FRAMES)
    assert_same(array.gather(kept[:, None] * 2 + [0, 1]), expected[kept])
    assert (np.asarray(array.gather(2**63 - 2)) == 7).all()


@pytest.mark.parametrize("mmap_mode", [None, "r"])
@pytest.mark.parametrize("codec", ["delta", "delta-huffman"])
@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_moving_worlds(folder: Path, codec: str, mmap_mode: None) -> None:
    array = DiffFrameArray.load(folder / f"moving-{codec}", mmap_mode)
    assert len(array) >= 80
    assert_same(array[:], golden.moving_frames()[: len(array)])


def assert_holds(buffer: ReplayBuffer, n: int) -> None:
    """Compare all that may be drawn with what `golden.add` gave."""
    images = golden.frames(1)
    assert len(buffer) == 2 * n
    batch = buffer.sample(buffer.n_samplable, replace=False)
    drawn = {divmod(int(name), 2): row for row, name in enumerate(batch.index)}
    # The newest step of a lane lacks its second one, unless its episode has ended.
    assert set(drawn) == {
        (t, lane) for t in range(n) for lane in range(2) if t < n - 1 or golden.ends(t, lane)
    }
    for (t, lane), row in drawn.items():
        begun = t // 17 * 17 if lane == 0 else 0
        last = t if golden.ends(t, lane) else t + 1
        rewards = [(k / 4, -k)[lane] * 0.5 ** (k - t) for k in range(t, last + 1)]
        assert batch.reward[row] == np.float32(sum(rewards))
        assert batch.terminated[row] == golden.ends(last, lane)
        assert batch.discount[row] == 0.5 ** (last - t + 1)
        assert batch.fields["step"][row] == t
        assert batch.action[row] == (t % 5, 1)[lane]
        before = [images[max(k, begun), lane] for k in range(t - 2, t + 1)]
        assert_same(np.array(batch.obs["image"][row]), np.stack(before))
        after = [images[max(k, begun), lane] for k in range(last - 1, last + 1)]
        stack = np.stack([*after, golden.final(last, lane)])
        assert_same(np.array(batch.next_obs["image"][row]), stack)
        assert (batch.obs["speed"][row] == t).all()
        speed = -last if golden.ends(last, lane) else last + 1
        assert (batch.next_obs["speed"][row] == speed).all()
    highest = max(t / 7 for t in range(11, n))
    assert buffer._tree.top == pytest.approx((highest + 1e-6) ** 0.6)


@pytest.mark.parametrize("mmap_mode", [None, "r"])
@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_buffers(folder: Path, mmap_mode: None) -> None:
    assert_holds(ReplayBuffer.load(folder / "buffer", mmap_mode=mmap_mode), 60)


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_checkpoints(folder: Path) -> None:
    for number, n in ((1, 60), (2, 64)):
        assert_holds(ReplayBuffer.restore(folder / "checkpoints", number), n)
