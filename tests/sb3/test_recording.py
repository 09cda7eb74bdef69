"""Records hold what was played, show it, count it, and can be learnt from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
)

from compressarray import CorruptFrameError, ReplayBuffer
from compressarray.sb3 import CompressedReplayBuffer
from compressarray.sb3.recording import (
    CountingRecordBuffer,
    Episode,
    FramelessRecordBuffer,
    RecordBuffer,
    VecRecorder,
)
from tests.effort import examples
from tests.sb3.worlds import SIDE, Dot

FEATURES = {"health": spaces.Box(-np.inf, np.inf, (), np.float32), "place": spaces.Discrete(9)}


def made(n_envs: int, stack: int = 1, channels: int = 1, *, first: bool = True) -> VecEnv:
    env = make_vec_env(Dot, n_envs, env_kwargs={"channels": channels})
    if stack > 1:
        env = VecFrameStack(env, stack)
    return VecTransposeImage(env) if first else env


class Listing:
    """The oracle: all that was added, in lists."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []

    def add(self, *row: Any) -> None:
        self.rows.append((*(np.array(each) for each in row[:5]), row[5]))

    def episodes(self, lane: int, n_held: int) -> list[list[int]]:
        """The rows of each episode among the newest ``n_held``."""
        first = max(len(self.rows) - n_held, 0)
        found: list[list[int]] = []
        for t in range(first, len(self.rows)):
            if not found or self.rows[t - 1][4][lane]:
                found.append([])
            found[-1].append(t)
        return found


def played(env: VecEnv, n_steps: int, buffers: list[Any], seed: int = 0) -> None:
    recorder = VecRecorder(env, buffers)
    env.seed(seed)
    recorder.reset()
    rng = np.random.default_rng(seed)
    for _ in range(n_steps):
        recorder.step(rng.integers(0, 4, env.num_envs))


@given(
    n_envs=st.integers(1, 3),
    stack=st.sampled_from([1, 3, 4]),
    channels=st.sampled_from([1, 3]),
    first=st.booleans(),
    n_steps=st.integers(1, 90),
    seed=st.integers(0, 99),
)
@settings(max_examples=examples(12), deadline=None)
def test_a_record_holds_what_was_played(
    n_envs: int, stack: int, channels: int, first: bool, n_steps: int, seed: int
) -> None:
    env = made(n_envs, stack, channels, first=first)
    oracle = Listing()
    # a stack of three gray frames might as well be one of colour
    record = RecordBuffer(
        40 * n_envs, env.observation_space, env.action_space, n_envs,
        frame_channels=channels if stack > 1 else None,
    )  # fmt: skip
    frameless = FramelessRecordBuffer(40 * n_envs, env.action_space, n_envs)
    counting = CountingRecordBuffer()
    played(env, n_steps, [oracle, record, frameless, counting], seed)

    n_held = min(n_steps, 40)
    assert len(record) == len(frameless) == n_held * n_envs
    assert counting.n_steps == n_steps * n_envs
    assert counting.n_episodes == sum(int(row[4].sum()) for row in oracle.rows)
    for lane in range(n_envs):
        expected = oracle.episodes(lane, n_held)
        for each in (record, frameless):
            of_lane = [episode for episode in each.episodes() if episode.lane == lane]
            assert [len(episode.index) for episode in of_lane] == [len(rows) for rows in expected]
        for episode, rows in zip(
            [e for e in record.episodes() if e.lane == lane], expected, strict=True
        ):
            steps = record.buffer.get(episode.index)
            for i, t in enumerate(rows):
                obs, reached, action, reward, done, infos = oracle.rows[t]
                np.testing.assert_array_equal(steps.obs[i], obs[lane])
                np.testing.assert_array_equal(steps.next_obs[i], reached[lane])
                assert steps.action[i] == action[lane]
                assert steps.reward[i] == reward[lane]
                cut = infos[lane].get("TimeLimit.truncated", False)
                assert bool(steps.terminated[i]) == bool(done[lane] and not cut)
            frames = record.frames(episode)
            assert frames.shape[:3] == (len(rows) + 1, SIDE, SIDE)
            assert frames.ndim == (4 if channels == 3 else 3)
            for i, t in enumerate(rows):
                assert (frames[i].reshape(SIDE, SIDE, -1) == newest(oracle.rows[t][0][lane],
                                                                    channels)).all()  # fmt: skip


def newest(obs: np.ndarray[Any, Any], channels: int) -> np.ndarray[Any, Any]:
    if obs.shape[0] < obs.shape[-1]:
        obs = np.moveaxis(obs, 0, -1)
    return obs[..., -channels:]


def test_features_are_kept_beyond_a_turn_of_the_ring(tmp_path: Path) -> None:
    """sb3-extra-buffers 0.5.0 demands features once the ring has turned, and its length falls."""
    env = made(2)
    for kind in ("frames", "frameless"):
        arguments: dict[str, Any] = {"features": FEATURES}
        record: RecordBuffer
        if kind == "frames":
            record = RecordBuffer(60, env.observation_space, env.action_space, 2, **arguments)
        else:
            record = FramelessRecordBuffer(60, env.action_space, 2, **arguments)
        obs = env.reset()
        lengths = []
        for t in range(100):
            action = np.array([t % 4, 1])
            after, reward, done, infos = env.step(action)
            features = {"health": np.array([t, -t], np.float32), "place": np.array([t % 9, 3])}
            reached = after.copy()
            for lane in np.flatnonzero(done):
                reached[lane] = infos[lane]["terminal_observation"]
            record.add(obs, reached, action, reward, done, infos, features)
            lengths.append(len(record))
            obs = after
        assert lengths == sorted(lengths)
        assert lengths[-1] == 60
        path = tmp_path / kind
        record.save(path)
        for each in (record, type(record).load(path)):
            steps = each.buffer.get(each.buffer.newest(60))
            assert steps.fields["health"].tolist() == [
                value for t in range(70, 100) for value in (t, -t)
            ]
            assert [len(e.index) for e in each.episodes()] == [
                len(e.index) for e in record.episodes()
            ]
    with pytest.raises(TypeError, match="must be a mapping with values for health, place"):
        record.add(obs, obs, [0, 0], [0.0, 0.0], [False, False], [{}, {}])


def test_records_take_a_hundredth_of_their_frames(tmp_path: Path) -> None:
    env = made(2, 4)
    record = RecordBuffer(4_000, env.observation_space, env.action_space, 2)
    played(env, 2_000, [record])
    # Stacks of four, before and after; the ground is noise that never changes.
    dense = 4_000 * 2 * 4 * SIDE * SIDE
    assert record.buffer.nbytes_stored < dense / 100
    record.save(tmp_path / "record")
    assert (tmp_path / "record").stat().st_size < dense / 100


def test_a_record_is_an_offline_data_set(tmp_path: Path) -> None:
    env = made(2, 4)
    record = RecordBuffer(500, env.observation_space, env.action_space, 2)
    played(env, 200, [record])
    record.save(tmp_path / "record")
    batch = ReplayBuffer.load(tmp_path / "record", seed=3).sample(16)
    assert batch.obs.shape == (16, 4, SIDE, SIDE)
    learnt = record.to_replay_buffer(n_step=3, prioritized=True, seed=0)
    whole = [episode for episode in record.episodes() if episode.is_whole]
    assert len(learnt) == sum(len(episode.index) for episode in whole) > 200
    at = 0
    for episode in whole:
        steps, again = (
            record.buffer.get(episode.index),
            learnt.get(at + np.arange(len(episode.index))),
        )
        for name in ("obs", "next_obs", "action", "reward", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(steps, name), getattr(again, name))
        at += len(episode.index)
    assert learnt.sample(8).obs.shape == (8, 4, SIDE, SIDE)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("ending", [".gif", ".mp4"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # ffmpeg's pipes
def test_games_can_be_watched(channels: int, ending: str, tmp_path: Path) -> None:
    import imageio.v2 as imageio

    env = made(1, 4, channels)
    record = RecordBuffer(200, env.observation_space, env.action_space)
    played(env, 60, [record])
    episode = record.episodes()[0]
    path = tmp_path / f"game{ending}"
    record.save_video(path, episode, fps=10, scale=2)
    with imageio.get_reader(path) as reader:
        shown = list(reader.iter_data())
    frames = record.frames(episode)
    assert len(shown) == len(frames)
    for image, frame in zip(shown, frames, strict=True):
        assert image.shape[:2] == (2 * SIDE, 2 * SIDE)
        colours = np.asarray(image)[::2, ::2].reshape(SIDE, SIDE, -1)[..., :3].astype(float)
        # GIF has 256 colours, MP4 is lossy
        assert abs(colours - frame.reshape(SIDE, SIDE, -1)).mean() < 12


def test_what_is_normalized_is_recorded_as_it_was() -> None:
    inner = make_vec_env(Dot, 2, env_kwargs={"as_dict": True})
    env = VecNormalize(inner, norm_obs_keys=["place"])
    record = RecordBuffer(200, inner.observation_space, env.action_space, 2)
    played(env, 80, [record])
    steps = record.buffer.get(record.buffer.newest(100))
    place = steps.obs["place"] * 7
    np.testing.assert_allclose(place, np.round(place), atol=1e-4)  # cells and steps
    ends = np.flatnonzero(steps.terminated + steps.truncated)
    assert len(ends)
    reached = steps.next_obs["place"][ends] * 7
    np.testing.assert_allclose(reached, np.round(reached), atol=1e-3)
    assert (np.round(steps.reward * 50, 3) % 1 < 1e-3).all()


def test_bad_input_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = made(2)
    record = RecordBuffer(60, env.observation_space, env.action_space, 2)
    with pytest.raises(ValueError, match=r"n_envs=3 is to be filled from 2 environments"):
        VecRecorder(env, [RecordBuffer(60, env.observation_space, env.action_space, 3)])
    with pytest.raises(ValueError, match="frame_channels=2 does not divide the 3"):
        RecordBuffer(
            60, spaces.Box(0, 255, (3, 9, 9), np.uint8), env.action_space, frame_channels=2
        )
    with pytest.raises(RuntimeError, match="stepped before it was reset"):
        VecRecorder(env, [record]).step(np.zeros(2, int))
    obs = env.reset()
    with pytest.raises(ValueError, match="no final_obs"):
        record.add(obs, obs.copy(), [0, 0], [0.0, 0.0], [True, False], [{}, {}])
    assert len(record) == 0
    played(env, 30, [record])
    path = tmp_path / "record"
    record.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptFrameError, match="it was cut off, or is damaged"):
        RecordBuffer.load(path)
    path.write_bytes(b"a record")
    with pytest.raises(CorruptFrameError, match="no file that this library saves"):
        RecordBuffer.load(path)
    with pytest.raises(IndexError, match="never added"):
        record.frames(Episode(0, np.array([9_999]), True))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "imageio.v2", None)
        with pytest.raises(ImportError, match=r"pip install 'compressarray\[video\]'"):
            record.save_video(tmp_path / "game.gif", record.episodes()[0])


def test_a_replay_buffer_is_filled_as_its_algorithm_fills_it() -> None:
    env = made(2, 4)
    ours = CompressedReplayBuffer(200, env.observation_space, env.action_space, "cpu", n_envs=2)
    oracle = Listing()
    played(env, 70, [ours, oracle])
    for t, (obs, reached, action, reward, done, _) in enumerate(oracle.rows):
        np.testing.assert_array_equal(ours.observations[t], obs)
        np.testing.assert_array_equal(ours.next_observations[t], reached)
        np.testing.assert_array_equal(ours.actions[t, :, 0], action)
        np.testing.assert_array_equal(ours.rewards[t], reward)
        np.testing.assert_array_equal(ours.dones[t], done)
