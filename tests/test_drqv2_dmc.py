"""DrQ-v2's script: the same learning under every storage, and what its flags promise."""

from __future__ import annotations

import pickle
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn as nn
from torch.nn import functional

from cleanrl_scripts import drqv2_dmc
from cleanrl_scripts.drqv2_dmc import DenseReplay
from compressarray import ReplayBuffer

ROOT = Path(__file__).parents[1]
CODECS = ["raw", "sparse", "delta", "delta-huffman", "zstd"]

# Small settings of a real task. Rendering takes most of the time, at any size.
STEPS, EPISODE, BUFFER = 72, 11, 20
SMALL = [
    *("--quiet", "--torch-threads", "1", "--env-id", "finger_spin", "--frame-size", "24"),
    *("--max-episode-steps", str(EPISODE), "--buffer-size", str(BUFFER), "--batch-size", "8"),
    *("--learning-starts", "8", "--random-steps", "20", "--hidden-dim", "16"),
    *("--stddev-steps", "60", "--eval-every", "0", "--no-capture-video"),
]


def train(*flags, steps=STEPS):
    flags = [*SMALL, "--total-timesteps", str(steps), *flags]
    return drqv2_dmc.train(drqv2_dmc.parse_args(flags))


def learned(result):
    """Every bit that learning leaves behind: weights and the optimisers' states."""
    tensors = {f"agent.{name}": t for name, t in result["agent"].state_dict().items()}
    for which, optimizer in result["optimizers"].items():
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{which}.{number}.{name}": t for name, t in state.items()}
    return {name: t.numpy().tobytes() for name, t in tensors.items()}


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Recording(gym.Env):
    """The same images of a real task over and over; the reward depends on the action, too."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, images):
        self.images, self.at = images, 0
        self.observation_space = gym.spaces.Box(0, 255, images.shape[1:], np.uint8)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.at = self.at + 1 if seed is None else seed
        return self.images[self.at % len(self.images)], {}

    def step(self, action):
        self.at += 1
        reward = float(self.at % 3 + action[0])
        return self.images[self.at % len(self.images)], reward, self.at % 29 == 0, False, {}


@pytest.fixture(scope="module")
def images():
    env = drqv2_dmc.make_dm_control("finger_spin", size=24)
    env.action_space.seed(0)
    images = [env.reset(seed=0)[0], *(env.step(env.action_space.sample())[0] for _ in range(40))]
    env.close()
    return np.stack(images)


@pytest.fixture
def recorded(images, monkeypatch):
    """Let tasks play what was recorded, for what needs many runs; some episodes terminate."""

    def make(task, *, gray, max_episode_steps, **_):
        frames = np.ascontiguousarray(images[..., 0]) if gray else images
        return gym.wrappers.TimeLimit(Recording(frames), max_episode_steps)

    monkeypatch.setattr(drqv2_dmc, "make_dm_control", make)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("dense"))
        result = train("--obs-storage", "dense")
    return SimpleNamespace(learned=learned(result), episodes=result["history"]["episodes"])


def test_dense_learns_at_all(dense):
    assert [length for _, _, length in dense.episodes] == [EPISODE] * (STEPS // EPISODE)
    assert STEPS > 3 * BUFFER  # the ring has turned
    torch.manual_seed(1)
    args = drqv2_dmc.parse_args(SMALL)
    fresh = drqv2_dmc.Agent(args, 2).state_dict()
    unchanged = [n for n, t in fresh.items() if dense.learned[f"agent.{n}"] == t.numpy().tobytes()]
    assert unchanged == []


@pytest.mark.parametrize(
    "flags",
    [
        ["--obs-storage", "compressed"],
        ["--obs-storage", "indexed", "--codec", "delta-huffman"],
        ["--half-compress"],
        ["--full-compress"],
    ],
)
def test_the_same_learning_on_a_real_task(flags, dense):
    result = train(*flags)
    assert learned(result) == dense.learned
    assert result["history"]["episodes"] == dense.episodes
    # It was a test only if what was compressed was thrown away again.
    frames = result["replay"].frames
    assert frames.lane_counts[0] > 3 * BUFFER
    assert frames.stats()["gops_closed"] > 0
    assert frames.stats()["frames_held"] < 2 * BUFFER


def test_the_same_learning_in_the_papers_setting():
    flags = ["--env-id", "walker_walk", "--preset", "paper", "--frame-size", "84"]
    flags += ["--batch-size", "4", "--n-step", "3"]
    storages = (["--obs-storage", "dense"], ["--full-compress"], ["--codec", "delta"])
    results = [train(*flags, *storage, steps=28) for storage in storages]
    assert learned(results[1]) == learned(results[0])
    assert learned(results[2]) == learned(results[0])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("storage", ["compressed", "indexed"])
def test_the_same_learning_with_every_codec(storage, codec, recorded):
    dense = train("--obs-storage", "dense")
    result = train("--obs-storage", storage, "--codec", codec)
    assert learned(result) == learned(dense)
    assert result["history"]["episodes"] == dense["history"]["episodes"]


@pytest.mark.parametrize("lookahead", ["0", "1", "3"])
@pytest.mark.parametrize("n_step", ["1", "4"])
def test_the_same_learning_however_far_ahead(n_step, lookahead, recorded):
    flags = ["--n-step", n_step, "--lookahead", lookahead, "--gray"]
    results = [
        train("--obs-storage", storage, *flags) for storage in ("dense", "compressed", "indexed")
    ]
    assert learned(results[1]) == learned(results[0])
    assert learned(results[2]) == learned(results[0])


def test_another_seed_learns_something_else(recorded):
    seeds = (train("--obs-storage", "dense", "--seed", seed) for seed in ("1", "2"))
    assert learned(next(seeds)) != learned(next(seeds))


# ---------------------------------------------------------------- the algorithm


def test_published_settings():
    def of(task, *names):
        args = drqv2_dmc.parse_args(["--env-id", task])
        return [getattr(args, name) for name in names]

    names = ("total_timesteps", "stddev_steps", "n_step", "batch_size")
    assert of("cartpole_balance", *names) == [550_000, 100_000, 3, 256]
    assert of("walker_walk", *names) == [550_000, 100_000, 1, 512]
    assert of("walker_run", *names) == [1_550_000, 500_000, 1, 512]
    assert of("quadruped_walk", *names) == [1_550_000, 500_000, 3, 256]
    assert of("humanoid_walk", *names) == [15_050_000, 2_000_000, 3, 256]
    names = ("learning_rate", "feature_dim", "buffer_size")
    assert of("quadruped_walk", *names) == [1e-4, 50, 1_000_000]
    assert of("quadruped_run", *names) == [1e-4, 50, 100_000]
    assert of("humanoid_run", *names) == [8e-5, 100, 1_000_000]
    args = drqv2_dmc.parse_args(["--env-id", "walker_walk", "--n-step", "3"])
    assert (args.n_step, args.batch_size) == (3, 512)
    # The same for all tasks.
    assert (args.gamma, args.tau, args.hidden_dim) == (0.99, 0.01, 1024)
    assert (args.stddev_start, args.stddev_end, args.stddev_clip) == (1.0, 0.1, 0.3)
    assert (args.random_steps, args.learning_starts, args.train_frequency) == (2000, 2000, 2)
    assert (args.eval_every, args.eval_episodes) == (5000, 10)
    assert (args.frame_size, args.frame_stack, args.action_repeat) == (84, 3, 2)
    easy = "cartpole_balance cartpole_balance_sparse cartpole_swingup cup_catch finger_spin"
    for task in (*easy.split(), "hopper_stand", "pendulum_swingup", "walker_stand", "walker_walk"):
        assert of(task, "total_timesteps", "stddev_steps") == [550_000, 100_000], task
    for task in ("acrobot_swingup", "cartpole_swingup_sparse", "cheetah_run", "finger_turn_hard"):
        assert of(task, "total_timesteps", "stddev_steps") == [1_550_000, 500_000], task


def test_networks_are_the_published_ones():
    agent = drqv2_dmc.Agent(drqv2_dmc.parse_args(["--env-id", "quadruped_walk"]), 12)
    shapes = [tuple(p.shape) for p in agent.encoder.parameters()]
    assert shapes == [(32, 9, 3, 3), (32,), *[(32, 32, 3, 3), (32,)] * 3]
    assert [m.stride for m in agent.encoder.modules() if isinstance(m, nn.Conv2d)] == [
        *((2, 2), (1, 1), (1, 1), (1, 1))
    ]
    assert agent.encoder.features == 39_200
    actor = [tuple(p.shape) for p in agent.actor.parameters()]
    assert actor[:4] == [(50, 39_200), (50,), (50,), (50,)]
    assert actor[4:] == [(1024, 50), (1024,), (1024, 1024), (1024,), (12, 1024), (12,)]
    assert [tuple(p.shape) for p in agent.critic.q1.parameters()][::2] == [
        *((1024, 62), (1024, 1024), (1, 1024))
    ]
    for name, parameter in agent.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif parameter.dim() > 1:  # orthogonal rows or columns; convolutions with ReLU's gain
            flat = parameter.detach().flatten(1)
            flat = flat if len(flat) < flat.shape[1] else flat.T
            gain = 2 if parameter.dim() == 4 else 1
            expected = gain * torch.eye(len(flat))
            torch.testing.assert_close(flat @ flat.T, expected, atol=1e-4, rtol=0)
    targets, critics = agent.critic_target.state_dict(), agent.critic.state_dict()
    assert all(torch.equal(targets[name], critics[name]) for name in critics)


@pytest.mark.parametrize("size", [15, 16, 24, 84])
def test_encoder_of_other_sizes(size):
    encoder = drqv2_dmc.Encoder(3, size)
    x = torch.randint(0, 256, (2, 3, size, size)).float()
    assert encoder(x).shape == (2, encoder.features)
    black = nn.Sequential(*encoder.convnet)(torch.full((1, 3, size, size), -0.5))
    assert torch.equal(encoder(torch.zeros(1, 3, size, size)), black)


def test_channels_are_those_of_the_published_stack():
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 6, 6, 3), np.uint8)
    stacks = torch.from_numpy(frames.reshape(2, 3, 6, 18))
    expected = [np.concatenate([frame.transpose(2, 0, 1) for frame in stack]) for stack in frames]
    assert np.array_equal(drqv2_dmc.to_channels(stacks).numpy(), np.stack(expected))
    gray = torch.from_numpy(frames[..., 0].copy())
    assert torch.equal(drqv2_dmc.to_channels(gray), gray)


def shifts_of(images, shifted, pad):
    """Find each image's shift by trying all: replicate-pad, then crop."""
    for image, result in zip(images, shifted, strict=True):
        padded = np.pad(image, [(0, 0), (pad, pad), (pad, pad)], mode="edge")
        H, W = image.shape[1:]
        found = [
            (y, x)
            for y in range(2 * pad + 1)
            for x in range(2 * pad + 1)
            if np.array_equal(padded[:, y : y + H, x : x + W], result)
        ]
        assert len(found) == 1
        yield found[0]


def test_random_shift_pads_and_crops():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (400, 2, 12, 12), dtype=torch.uint8)
    shifted = drqv2_dmc.random_shift(images)
    assert shifted.dtype == torch.uint8
    shifts = Counter(shifts_of(images.numpy(), shifted.numpy(), 4))
    for axis in (0, 1):  # every offset from 0 to 8, each about as often
        counts = Counter()
        for shift, count in shifts.items():
            counts[shift[axis]] += count
        assert sorted(counts) == list(range(9))
        assert min(counts.values()) > 20
    assert len(shifts) > 70  # of 81: the axes are drawn by themselves


def test_random_shift_is_the_published_grid_sample():
    images = torch.randint(0, 256, (6, 3, 20, 20)).float()
    torch.manual_seed(3)
    shifted = drqv2_dmc.random_shift(images)
    offsets = torch.tensor(list(shifts_of(images.numpy(), shifted.numpy(), 4)))
    padded = functional.pad(images, (4, 4, 4, 4), "replicate")
    size = 28
    pixels = torch.arange(20)
    y, x = ((2 * (pixels + offsets[:, [axis]]) + 1) / size - 1 for axis in (0, 1))
    grid = torch.stack([x[:, None, :].expand(6, 20, 20), y[:, :, None].expand(6, 20, 20)], dim=-1)
    bilinear = functional.grid_sample(padded, grid, padding_mode="zeros", align_corners=False)
    torch.testing.assert_close(bilinear, shifted, atol=1e-2, rtol=0)


def test_truncated_normal():
    mean = torch.tensor([[0.0, 0.9, -0.999]]).repeat(4000, 1).requires_grad_()
    torch.manual_seed(5)
    sample = drqv2_dmc.truncated_normal(mean, 0.5)
    torch.manual_seed(5)
    noise = 0.5 * torch.randn(4000, 3)
    limit = 1 - 1e-6
    for (row, column), value in np.ndenumerate(sample.detach().numpy()):
        free = mean[row, column].item() + noise[row, column].item()
        assert value == pytest.approx(min(max(free, -limit), limit), abs=1e-6)
        assert abs(value) < 1
    sample.sum().backward()
    assert torch.equal(mean.grad, torch.ones_like(mean))  # straight through the limits

    torch.manual_seed(5)
    clipped = drqv2_dmc.truncated_normal(torch.zeros(4000, 3), 0.5, clip=0.3)
    torch.testing.assert_close(clipped, noise.clamp(-0.3, 0.3))
    assert clipped.max() == 0.3
    # What is left of a normal of 0.5 between -0.3 and 0.3, in closed form.
    inside = torch.special.erf(torch.tensor(0.6 / 2**0.5)).item()
    assert (clipped.abs() < 0.3).float().mean().item() == pytest.approx(inside, abs=0.02)


def test_schedule():
    of = [drqv2_dmc.linear_schedule(1.0, 0.1, 100, t) for t in (0, 50, 100, 1000)]
    assert of == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_soft_update_in_closed_form():
    net, target = nn.Linear(3, 2), nn.Linear(3, 2)
    before = [p.detach().clone() for p in target.parameters()]
    for _ in range(7):
        drqv2_dmc.soft_update(net, target, tau=0.1)
    kept = 0.9**7
    for start, now, goal in zip(before, target.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(now, kept * start + (1 - kept) * goal)


def test_losses_against_a_loop(monkeypatch):
    args = drqv2_dmc.parse_args([*SMALL, "--gamma", "0.9"])
    torch.manual_seed(0)
    agent = drqv2_dmc.Agent(args, 2)
    optimizers = {
        name: torch.optim.SGD(getattr(agent, name).parameters(), lr=0.0)
        for name in ("encoder", "actor", "critic")
    }
    monkeypatch.setattr(drqv2_dmc, "random_shift", lambda x: x)
    rng = np.random.default_rng(0)
    B = 5
    batch = drqv2_dmc.Batch(
        rng.integers(0, 256, (B, 3, 24, 72), np.uint8),
        rng.uniform(-1, 1, (B, 2)).astype(np.float32),
        rng.normal(size=B).astype(np.float32),
        rng.integers(0, 256, (B, 3, 24, 72), np.uint8),
        np.float32([0, 1, 0, 0, 1]),
        np.full(B, 0.9**3, np.float32),
    )
    torch.manual_seed(1)
    losses = drqv2_dmc.update(args, agent, optimizers, batch, stddev=0.4)

    torch.manual_seed(1)
    noise, actor_noise = ((0.4 * torch.randn(B, 2)).clamp(-0.3, 0.3) for _ in range(2))
    critic_losses, actor_losses, targets = [], [], []
    for i in range(B):
        stacks = (torch.from_numpy(x[i : i + 1]) for x in (batch.obs, batch.next_obs))
        obs, after = (agent.encoder(drqv2_dmc.to_channels(x).float()) for x in stacks)
        action = (agent.actor(after) + noise[i]).clamp(-1, 1)
        v = min(q.item() for q in agent.critic_target(after, action))
        targets.append(batch.reward[i] + (0.0 if batch.terminated[i] else 0.9**3 * v))
        q1, q2 = agent.critic(obs, torch.from_numpy(batch.action[i : i + 1]))
        critic_losses.append((q1.item() - targets[-1]) ** 2 + (q2.item() - targets[-1]) ** 2)
        sampled = (agent.actor(obs) + actor_noise[i]).clamp(-1, 1)
        actor_losses.append(-min(q.item() for q in agent.critic(obs, sampled)))
    assert losses["target_q"].item() == pytest.approx(np.mean(targets), abs=1e-4)
    assert losses["critic_loss"].item() == pytest.approx(np.mean(critic_losses), rel=1e-3)
    assert losses["actor_loss"].item() == pytest.approx(np.mean(actor_losses), abs=1e-4)
    assert agent.actor.trunk[0].weight.grad.abs().sum() > 0


def test_an_update_shifts_both_observations(monkeypatch):
    """Each by itself, and the network sees what was shifted: here negatives, for a check."""
    args = drqv2_dmc.parse_args(SMALL)
    rng = np.random.default_rng(0)
    B = 5
    stacks = rng.integers(0, 256, (2, B, 3, 24, 72), np.uint8)
    actions = rng.uniform(-1, 1, (B, 2)).astype(np.float32)
    signals = (rng.normal(size=B), np.zeros(B), np.full(B, 0.9))
    reward, terminated, discount = (np.float32(each) for each in signals)

    def losses(obs, next_obs, shift):
        shifted = []
        monkeypatch.setattr(drqv2_dmc, "random_shift", lambda x: shifted.append(x) or shift(x))
        torch.manual_seed(0)
        agent = drqv2_dmc.Agent(args, 2)
        optimizers = {
            name: torch.optim.SGD(getattr(agent, name).parameters(), lr=0.0)
            for name in ("encoder", "actor", "critic")
        }
        batch = drqv2_dmc.Batch(obs, actions, reward, next_obs, terminated, discount)
        of = drqv2_dmc.update(args, agent, optimizers, batch, stddev=0.4)
        return {name: loss.item() for name, loss in of.items()}, shifted

    negative, seen = losses(*stacks, lambda x: 255 - x)
    assert len(seen) == 2
    for images, expected in zip(seen, stacks, strict=True):
        assert torch.equal(
            images.float(), drqv2_dmc.to_channels(torch.from_numpy(expected)).float()
        )
    assert negative == pytest.approx(losses(*(255 - stacks), lambda x: x)[0])
    assert negative != losses(*stacks, lambda x: x)[0]


def test_the_losses_of_a_batch_fall():
    """The critics learn rewards that end episodes; the actor finds actions that they value more."""
    args = drqv2_dmc.parse_args([*SMALL, "--learning-rate", "1e-3"])
    torch.manual_seed(0)
    agent = drqv2_dmc.Agent(args, 2)
    optimizers = {
        name: torch.optim.Adam(getattr(agent, name).parameters(), lr=1e-3)
        for name in ("encoder", "actor", "critic")
    }
    rng = np.random.default_rng(0)
    stacks = np.repeat(rng.integers(0, 256, (2, 16, 1, 1, 1), np.uint8), 3 * 24 * 72, axis=-1)
    stacks = stacks.reshape(2, 16, 3, 24, 72)  # gray areas: shifts do not change them
    actions = rng.uniform(-1, 1, (16, 2)).astype(np.float32)
    reward = actions[:, 0] + 1  # so that the best first number of an action is 1
    batch = drqv2_dmc.Batch(
        stacks[0], actions, reward, stacks[1], np.ones(16, np.float32), np.ones(16, np.float32)
    )
    losses = [drqv2_dmc.update(args, agent, optimizers, batch, stddev=0.1) for _ in range(200)]
    first, last = losses[0], losses[-1]
    assert last["critic_loss"].item() < 0.1 * first["critic_loss"].item()
    assert last["actor_loss"].item() < first["actor_loss"].item() - 0.5
    assert drqv2_dmc.policy(agent, stacks[0], None)[:, 0].min() > 0.5


def test_what_happens_at_which_step(monkeypatch, recorded):
    """Actions are random at first, updates come every so many steps, the noise is annealed."""
    happened = []
    policy, update = drqv2_dmc.policy, drqv2_dmc.update

    def noted_policy(agent, stacks, stddev):
        happened.append(("act", stddev))
        return policy(agent, stacks, stddev)

    def noted_update(args, agent, optimizers, batch, stddev):
        happened.append(("update", stddev))
        return update(args, agent, optimizers, batch, stddev)

    monkeypatch.setattr(drqv2_dmc, "policy", noted_policy)
    monkeypatch.setattr(drqv2_dmc, "update", noted_update)
    flags = ["--random-steps", "12", "--learning-starts", "10", "--train-frequency", "3"]
    flags += ["--stddev-start", "0.9", "--stddev-end", "0.3", "--stddev-steps", "20"]
    train("--obs-storage", "dense", *flags, steps=40)
    expected = []
    for step in range(40):
        stddev = 0.9 - 0.6 * min(step / 20, 1)
        if step >= 12:
            expected.append(("act", pytest.approx(stddev)))
        if step >= 10 and step % 3 == 0:
            expected.append(("update", pytest.approx(stddev)))
    assert happened == expected


# ---------------------------------------------------------------- the dense buffer


def play(n_step, capacity, steps, seed=0, batch_size=64):
    """Fill a DenseReplay with numbers; return it and all that happened, transition by transition.

    Observations are their own names: episode, time.
    """
    rng = np.random.default_rng(seed)
    args = SimpleNamespace(
        buffer_size=capacity, n_step=n_step, gamma=0.9, lookahead=2, train_frequency=1, seed=seed
    )
    envs = SimpleNamespace(
        single_observation_space=gym.spaces.Box(0, 255, (2,), np.uint8),
        single_action_space=gym.spaces.Box(-1, 1, (1,), np.float32),
    )
    replay = DenseReplay(args, envs)
    batches = replay.batches(batch_size, lookahead=2)
    past, sampled = [], []
    episode = time = 0
    for step in range(steps):
        ends = time >= 1 and rng.random() < 0.3
        terminated = bool(ends and rng.random() < 0.5)
        obs, after = np.uint8([[episode, time]]), np.uint8([[episode, time + 1]])
        reward = rng.normal()
        past.append((obs[0], step, reward, after[0], terminated, ends))
        final = np.full(1, None, object)
        final[0] = after[0]
        episode, time = ((episode + 1) % 251, 0) if ends else (episode, time + 1)
        replay.add(
            obs, np.float32([[step]]), np.array([reward]), np.array([terminated]),
            np.array([ends and not terminated]), np.uint8([[episode, time]]),
            {"final_obs": final} if ends else {},
        )  # fmt: skip
        if len(windows(past, n_step, capacity)) > 0:
            sampled.append((step, next(batches)))
    return replay, past, sampled


def windows(past, n_step, capacity):
    """Starts from which n steps lie within one episode, by looking at each."""
    oldest = max(0, len(past) - capacity)
    return [
        start
        for start in range(oldest, len(past) - n_step + 1)
        if not any(past[start + k][5] for k in range(n_step - 1))
    ]


@pytest.mark.parametrize("n_step", [1, 2, 3, 5])
def test_dense_replay_against_a_loop(n_step):
    replay, past, sampled = play(n_step, capacity=20, steps=150)
    assert len(replay) == 20
    drawn = set()
    for _, batch in sampled:
        for i, action in enumerate(batch.action[:, 0]):
            start = int(action)
            last = past[start + n_step - 1]
            assert not any(past[start + k][5] for k in range(n_step - 1))
            assert np.array_equal(batch.obs[i], past[start][0])
            assert np.array_equal(batch.next_obs[i], last[3])
            reward = sum(0.9**k * past[start + k][2] for k in range(n_step))
            assert batch.reward[i] == pytest.approx(reward, abs=1e-6)
            assert batch.terminated[i] == last[4]
            assert batch.discount[i] == np.float32(0.9**n_step)
            drawn.add(start)
    # Whatever could be drawn was drawn, but for a few that were there for a moment only.
    possible = set().union(*(windows(past[:end], n_step, 20) for end in range(1, len(past))))
    assert len(possible - drawn) < 4


@pytest.mark.parametrize("n_step", [1, 3])
def test_dense_replay_numbers_transitions_by_their_place(n_step):
    replay, past, _ = play(n_step, capacity=20, steps=70)
    valid = sorted(windows(past, n_step, 20), key=lambda start: start % 20)
    numbers = pickle.loads(pickle.dumps(replay.rng)).integers(len(valid), size=200)
    starts, *_ = replay.draw(200)
    assert starts.tolist() == [valid[number] for number in numbers]


@pytest.mark.parametrize("capacity", [20, 600])
def test_dense_replay_beside_replay_buffer(capacity):
    dense, past, _ = play(3, capacity, steps=capacity * 5 // 2)
    other = ReplayBuffer(
        *(capacity, gym.spaces.Box(0, 255, (2,), np.uint8), gym.spaces.Box(-1, 1, (1,))),
        n_step=3, gamma=0.9, full_windows=True, seed=dense.rng,
    )  # fmt: skip
    for obs, _, reward, after, terminated, ends in past:
        other.add(
            *(
                obs[None],
                np.zeros((1, 1), np.float32),
                [reward],
                [terminated],
                [ends and not terminated],
            ),
            *(after[None], {"final_obs": after[None]}),
        )
    dense.rng = pickle.loads(pickle.dumps(dense.rng))
    mine, theirs = dense.read(*dense.draw(500)), other.sample(500)
    for name in ("obs", "reward", "next_obs", "terminated", "discount"):
        assert np.array_equal(getattr(mine, name), getattr(theirs, name)), name


def test_dense_replay_survives_a_checkpoint(tmp_path):
    replay, *_ = play(3, capacity=20, steps=12)
    number = replay.checkpoint(tmp_path)
    assert (tmp_path / f"{number}.npz").stat().st_size < 6000
    other = drqv2_dmc.DenseReplay.restore(tmp_path, number)
    for each in (replay, other):
        each.cut()
        each.cut()  # of an episode that is over already: nothing
    first, second = (next(each.batches(50, lookahead=0)) for each in (replay, other))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert other.obs.shape == replay.obs.shape


def test_no_window_crosses_a_cut():
    replay, *_ = play(3, capacity=50, steps=20)
    replay.cut()
    for step in (20, 21, 22):
        obs = np.uint8([[200, step]])
        replay.add(
            obs, np.float32([[step]]), np.zeros(1), np.zeros(1, bool), np.zeros(1, bool), obs, {}
        )
    batch = replay.read(*replay.draw(500))
    assert not {18.0, 19.0} & set(batch.action[:, 0].tolist())
    assert 20.0 in batch.action[:, 0]


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("storage", ["dense", "compressed", "indexed"])
def test_two_resumes_of_one_checkpoint_are_identical(storage, tmp_path, recorded):
    def go_on(checkpoint):
        return train("--obs-storage", storage, "--resume", str(checkpoint), steps=70)

    path = train("--obs-storage", storage, steps=40)["run_dir"] / "checkpoint.pt"
    before = torch.load(path, weights_only=True)
    assert before["global_step"] == 40
    first, second = go_on(path), go_on(path)
    assert learned(first) == learned(second)
    assert first["history"] == second["history"]
    done = len(before["history"]["episodes"])
    assert first["history"]["episodes"][:done] == before["history"]["episodes"]
    assert first["history"]["episodes"][done][2] <= EPISODE  # a new one, not the one left
    assert first["history"]["memory"][-1][0] == 70
    assert torch.load(first["run_dir"] / "checkpoint.pt", weights_only=True)["global_step"] == 70

    # Everything that was saved counts: with any of it changed the resume comes out otherwise.
    for name in ("agent", "optimizers", "random_states"):
        other = torch.load(path, weights_only=True)
        match name:
            case "agent":
                other["agent"]["actor.policy.4.bias"] += 1e-3
            case "optimizers":
                other["optimizers"]["critic"]["state"][0]["exp_avg"] += 1e-3
            case "random_states":
                torch.manual_seed(99)
                other["random_states"] = drqv2_dmc.get_random_states()
        torch.save(other, tmp_path / "other.pt")
        shutil.copytree(path.with_name("replay"), tmp_path / "replay", dirs_exist_ok=True)
        assert learned(go_on(tmp_path / "other.pt")) != learned(first), name


def test_resumes_are_the_same_under_every_storage(recorded):
    results = {}
    for storage in ("dense", "compressed", "indexed"):
        flags = ("--obs-storage", storage)
        path = train(*flags, steps=40)["run_dir"] / "checkpoint.pt"
        results[storage] = learned(train(*flags, "--resume", str(path), steps=70))
    assert results["compressed"] == results["dense"]
    assert results["indexed"] == results["dense"]


def test_random_states_come_back(tmp_path):
    def draws():
        return random.random(), torch.rand(()).item()

    torch.save(drqv2_dmc.get_random_states(), tmp_path / "states.pt")
    then = draws()
    assert draws() != then
    drqv2_dmc.set_random_states(torch.load(tmp_path / "states.pt", weights_only=True))
    assert draws() == then


def test_checkpoints_are_written_at_ends_of_episodes(monkeypatch, recorded):
    saved = []
    monkeypatch.setattr(drqv2_dmc, "save_checkpoint", lambda *args: saved.append(args[-2]))
    result = train("--obs-storage", "dense", "--checkpoint-every", "20", steps=60)
    ends = [step for step, *_ in result["history"]["episodes"]]
    second = next(end for end in ends if end >= 22 + 20)
    assert saved == [22, second, 60]
    saved.clear()
    train("--obs-storage", "dense", "--checkpoint-every", "0", steps=60)
    assert saved == [60]


# ---------------------------------------------------------------- what a run leaves behind


def test_saved_model_logs_picture_and_video(capsys):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = [flag for flag in SMALL if flag not in ("--quiet", "--no-capture-video")]
    flags += ["--eval-every", "40", "--eval-episodes", "2", "--save-model", "--gray"]
    result = drqv2_dmc.train(drqv2_dmc.parse_args([*flags, "--total-timesteps", "50"]))
    run_dir, replay = result["run_dir"], result["replay"]
    assert run_dir.parent == Path("runs")
    assert run_dir.name.startswith("finger_spin__drqv2_dmc__1__")

    state_dict = torch.load(run_dir / "drqv2_dmc.cleanrl_model", weights_only=True)
    assert all(torch.equal(t, result["agent"].state_dict()[k]) for k, t in state_dict.items())
    assert (run_dir / "training.png").read_bytes().startswith(b"\x89PNG")
    videos = sorted(Path("videos", run_dir.name).glob("*.gif"))
    assert [path.name for path in videos] == ["0.gif", "40.gif"]
    with Image.open(videos[0]) as video:
        assert video.size == (24, 24)
        assert video.n_frames > 1
    assert [step for step, _ in result["history"]["evaluations"]] == [0, 40]

    out = capsys.readouterr().out
    each = replay.nbytes_stored / BUFFER
    assert len(replay) == BUFFER
    assert f"{3 * 24 * 24 / each:,.2f} (1,728 B each)" in out
    assert f"{9 * 24 * 24 / each:,.2f} (5,184 B each)" in out
    assert "steps per second (SPS)" in out
    assert "peak RSS" in out

    log = EventAccumulator(str(run_dir))
    log.Reload()
    assert set(log.Tags()["scalars"]) >= {
        *("charts/SPS", "charts/episodic_return", "charts/episodic_length", "charts/stddev"),
        *("losses/critic_loss", "losses/actor_loss", "losses/q1_values", "losses/q2_values"),
        *("storage/nbytes_stored", "storage/compression_ratio", "eval/episodic_return"),
    }
    stored = log.Scalars("storage/nbytes_stored")[-1].value
    # The checkpoint at the end makes it keep in mind what changes.
    assert stored == pytest.approx(replay.nbytes_stored, abs=1024)


def test_evaluations_begin_alike_and_leave_training_alone(recorded):
    flags = ("--obs-storage", "dense", "--learning-starts", "1000")
    plain = train(*flags, steps=30)
    evaluated = train(*flags, "--eval-every", "10", "--eval-episodes", "2", steps=30)
    assert learned(evaluated) == learned(plain)
    assert evaluated["history"]["episodes"] == plain["history"]["episodes"]
    assert len({mean for _, mean in evaluated["history"]["evaluations"]}) == 1


# ---------------------------------------------------------------- bad input


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("checkpoint"))
        return (train("--obs-storage", "dense", steps=20)["run_dir"] / "checkpoint.pt").resolve()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--env-id", "walker_wlak"], "Did you mean walker_walk"),
        (["--camera", "9"], "camera=9 does not exist; there are 0"),
        (["--preset", "paper"], "finger_spin is none of them"),
        (["--frame-size", "14"], "--frame-size 14 must be at least 15"),
        (["--frame-size", "1000"], "size=1000 must be from 1 to 480"),
        (["--codc", "raw"], "did you mean --codec?"),
        (["--obs-storage", "sparse"], "'compressed', 'indexed', 'dense'"),
        (["--obs-storage", "compressed", "--codec", "nosuch"], "--codec nosuch: .*delta"),
        (["--obs-storage", "indexed", "--codec", "nosuch"], "--codec nosuch: .*delta"),
        (["--obs-storage", "compressed", "--codec", "quantize"], "--codec quantize: "),
        (["--half-compress", "--full-compress"], "give one"),
        (
            ["--full-compress"],
            "--full-compress is --obs-storage indexed .* not --obs-storage dense",
        ),
        (["--gamma", "1.01"], "--gamma 1.01 must be at most 1"),
        (["--buffer-size", str(10**9)], "--obs-storage dense: 5,184.0 GB of stacks.*smaller"),
        (["--batch-size", "0"], "--batch-size 0 must be at least 1"),
        (["--n-step", "8", "--max-episode-steps", "7"], "--max-episode-steps 7 must be at least 8"),
        (["--n-step", "9"], "--learning-starts 8 must be at least 9"),
        (["--buffer-size", "5"], "--buffer-size 5 must be at least 6"),
        (["--learning-rate", "nan"], "--learning-rate nan must be at least 0"),
        (["--seed", "-3"], "--seed -3"),
        (["--resume", "nothing.pt"], "nothing.pt: not a checkpoint"),
        (["--resume", str(ROOT / "pyproject.toml")], "not a checkpoint"),
        (["--resume", "CHECKPOINT"], "larger --total-timesteps than 20"),
        (["--resume", "CHECKPOINT", "--gamma", "0.9"], r"--gamma 0.9 \(was 0.99\)"),
        (["--resume", "CHECKPOINT", "--obs-storage", "indexed"], "--obs-storage indexed"),
    ],
)
def test_one_helpful_line(flags, says, checkpoint):
    flags = [str(checkpoint) if flag == "CHECKPOINT" else flag for flag in flags]
    with pytest.raises(SystemExit, match=says) as stop:
        drqv2_dmc.main([*SMALL, "--total-timesteps", "20", "--obs-storage", "dense", *flags])
    assert isinstance(stop.value.code, str)  # printed to stderr; the exit status is 1
    assert "\n" not in stop.value.code
    assert stop.value.code.startswith("drqv2_dmc.py: error: ")
    assert not Path("runs").exists()  # nothing is left behind


def test_resume_without_its_replay_buffer(checkpoint, tmp_path):
    flags = [*SMALL, "--obs-storage", "dense", "--total-timesteps", "30", "--resume"]
    (tmp_path / "checkpoint.pt").write_bytes(checkpoint.read_bytes())
    with pytest.raises(SystemExit, match=r"replay buffer cannot be read .*20\.npz"):
        drqv2_dmc.main([*flags, str(tmp_path / "checkpoint.pt")])


def test_a_crash_while_saving_leaves_the_checkpoint_before(monkeypatch, recorded):
    def out_of_disk(*_):
        raise OSError("No space left on device")

    result = train("--obs-storage", "dense", steps=20)
    folder = result["run_dir"]
    before = torch.load(folder / "checkpoint.pt", weights_only=True)
    monkeypatch.setattr(drqv2_dmc.os, "replace", out_of_disk)
    with pytest.raises(OSError, match="No space"):
        drqv2_dmc.save_checkpoint(
            folder, drqv2_dmc.Args(), result["agent"], {}, result["replay"], 25, {}
        )
    assert (folder / "replay" / f"{before['replay']}.npz").exists()
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["replay"] == before["replay"]


def test_stop_after_minutes(recorded):
    flags = ("--obs-storage", "dense", "--stop-after-minutes", "0.0005")
    result = train(*flags, steps=100_000)
    path = result["run_dir"] / "checkpoint.pt"
    step = torch.load(path, weights_only=True)["global_step"]
    assert 1 <= step < 10_000
    assert result["history"]["memory"][-1][0] == step
    gone_on = train("--obs-storage", "dense", "--resume", str(path), steps=step + 5)
    assert gone_on["history"]["memory"][-1][0] == step + 5


def test_track_without_wandb(monkeypatch, recorded):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit, match="pip install wandb"):
        train("--obs-storage", "dense", "--track")


def test_exit_status_of_the_process():
    script = ROOT / "cleanrl_scripts" / "drqv2_dmc.py"
    done = subprocess.run(
        [sys.executable, script, "--env-id", "no_such_task", "--obs-storage", "dense"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no_such_task" in done.stderr
