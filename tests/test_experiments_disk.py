"""DrQ-v2's published replay from files: what is drawn, by which reader, and that it trains."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import drqv2_disk

ROOT = Path(__file__).parents[1]
N_STEP, GAMMA = 3, 0.9


def make_replay(folder, lengths, capacity=1000):
    """Episodes whose stacks name them: pixel 0 the episode, pixel 1 the step."""
    args = SimpleNamespace(buffer_size=capacity, n_step=N_STEP, gamma=GAMMA, seed=3)
    replay = drqv2_disk.EpisodesOnDisk(args, folder)
    for episode, length in enumerate(lengths):
        stacks = np.zeros((length + 1, 1, 3, 2, 2), np.uint8)
        stacks[..., 0, 0], stacks[..., 0, 1] = episode, np.arange(length + 1)[:, None, None]
        for t in range(length):
            last = t == length - 1
            replay.add(
                stacks[t], np.array([[t / 10]], np.float32), np.array([episode + t / 100]),
                np.array([False]), np.array([last]),
                stacks[0] if last else stacks[t + 1], {"final_obs": stacks[t + 1]},
            )  # fmt: skip
    return replay


def test_batches_against_the_episodes(tmp_path, monkeypatch):
    monkeypatch.setattr(drqv2_disk, "N_WORKERS", 0)
    lengths = [4, 7, 2, 5]  # the third is shorter than n steps
    replay = make_replay(tmp_path, lengths)
    assert len(replay) == sum(lengths)
    assert replay.nbytes_stored == sum(p.stat().st_size for p in tmp_path.glob("*.npz")) > 0
    seen = {}
    for batch in itertools.islice(replay.batches(16, lookahead=1), 60):
        assert batch.obs.shape == (16, 3, 2, 2)
        assert batch.obs.dtype == np.uint8
        for k in range(16):
            episode, start = batch.obs[k, 0, 0, 0], int(batch.obs[k, 0, 0, 1])
            seen.setdefault(int(episode), []).append(start)
            total, discount = 0.0, 1.0
            for t in range(start, start + N_STEP):
                total += discount * (int(episode) + t / 100)
                discount *= GAMMA
            assert batch.reward[k] == pytest.approx(total, rel=1e-5)
            assert batch.discount[k] == pytest.approx(discount, rel=1e-6)
            assert batch.action[k] == pytest.approx(start / 10)
            assert batch.next_obs[k, 0, 0].tolist() == [episode, start + N_STEP]
            assert batch.terminated[k] == 0
    assert {episode: set(starts) for episode, starts in seen.items()} == {
        0: {0, 1}, 1: {0, 1, 2, 3, 4}, 3: {0, 1, 2},
    }  # fmt: skip
    counts = [len(starts) for starts in seen.values()]
    assert max(counts) / min(counts) < 1.3  # by episodes, however long


def test_readers_share_the_episodes_and_let_go_of_old_ones(tmp_path):
    make_replay(tmp_path, [5] * 8)
    reader = drqv2_disk.EpisodeReader(tmp_path, 20, N_STEP, GAMMA, seed=1)
    held = {}
    for worker in (0, 1):
        reader.fetch(held.setdefault(worker, {}), worker, 2)
    # Each has room for ten steps: its two newest of four.
    assert {worker: sorted(each) for worker, each in held.items()} == {0: [4, 6], 1: [5, 7]}
    for number in (8, 9):
        with (tmp_path / f"{number:08d}-5.npz").open("wb") as file:
            np.savez(file, reward=np.zeros(5, np.float32))
    reader.fetch(held[0], 0, 2)
    assert sorted(held[0]) == [6, 8]


def test_the_running_episode_is_dropped_by_a_cut(tmp_path):
    replay = make_replay(tmp_path, [5])
    no = np.array([False])
    stack = np.zeros((1, 3, 2, 2), np.uint8)
    replay.add(stack, np.zeros((1, 1), np.float32), np.zeros(1), no, no, stack, {})
    assert len(replay) == 6
    replay.cut()
    assert (len(replay), len(list(tmp_path.glob("*.npz")))) == (5, 1)


def test_a_reader_without_episodes_says_what_to_do(tmp_path):
    reader = drqv2_disk.EpisodeReader(tmp_path, 20, N_STEP, GAMMA, seed=1)
    with pytest.raises(RuntimeError, match="--learning-starts that comes after 1 episodes"):
        next(iter(reader))


def test_it_trains(tmp_path):
    pytest.importorskip("dm_control", exc_type=ImportError)
    flags = ["--env-id", "cartpole_balance", "--quiet", "--no-capture-video", "--eval-every", "0"]
    flags += ["--total-timesteps", "56", "--learning-starts", "42", "--random-steps", "42"]
    flags += ["--max-episode-steps", "10", "--batch-size", "4", "--torch-threads", "1"]
    done = subprocess.run(
        [sys.executable, ROOT / "experiments" / "drqv2_disk.py", *flags],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "episodes").glob("*.npz"))) == 5
    assert len(list(tmp_path.glob("runs/*/checkpoint.pt"))) == 1
