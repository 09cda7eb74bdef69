"""DrQ-v2 on the DeepMind Control Suite from pixels, with the replay buffer's frames compressed.

Paper: Yarats et al., "Mastering Visual Continuous Control: Improved Data-Augmented Reinforcement
Learning", arXiv 2107.09645. Settings follow its published code, facebookresearch/drqv2; flags,
layout, log names and the loop follow CleanRL.

Where observations live is a flag, and changes memory and speed only; with one seed and device the
weights come out the same bit for bit:

- `--obs-storage compressed`: `ReplayBuffer` is given stacks and keeps each frame once, compressed;
- `--obs-storage indexed`: `IndexedFrameStack` stores each new frame and emits frame indices, which
  are what the buffer is given. `--half-compress` is this with `--codec raw` and `--full-compress`
  with `--codec sparse`, as in the paper on Differentially Encoded Observation Spaces (arXiv
  2310.01767), whose images are those of `--preset paper`;
- `--obs-storage dense`: a uint8 stack per transition, and no buffer of ours.

Every setting that is published per task (n-step, batch size, exploration schedule, ...) is filled
in from the task's name where no flag says otherwise. Departures:

- a transition can be sampled as soon as its n steps are there, uniformly over transitions
  (published: once its episode is over, by way of a uniform episode, in four loader processes);
- a batch is drawn from all episodes at once (published: by one of the four loaders, which each hold
  a quarter of the episodes and take turns);
- the random shift reads pixels at whole offsets, which is what its bilinear form comes to;
- evaluations begin with the same initial states every time.

A step is one action, which is two frames (`--action-repeat`). Autoreset is SAME_STEP. An episode
that is truncated, as all of the suite's are, is bootstrapped from its last observation.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
import tyro
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from compressarray import DiffFrameArray, ReplayBuffer
from wrappers import make_dm_control
from wrappers.vector import IndexedFrameStack


@dataclass
class Args:
    exp_name: str = os.path.basename(__file__)[: -len(".py")]
    """the name of this experiment"""
    seed: int = 1
    """seed of the experiment"""
    torch_deterministic: bool = True
    """if toggled, `torch.backends.cudnn.deterministic=True`"""
    torch_threads: int = 0
    """threads torch computes with on the CPU (0: torch's own choice)"""
    cuda: bool = True
    """if toggled, a GPU is used where there is one"""
    track: bool = False
    """if toggled, this experiment is tracked with Weights and Biases"""
    wandb_project_name: str = "compressarray"
    """the wandb's project name"""
    wandb_entity: str | None = None
    """the entity (team) of wandb's project"""
    capture_video: bool = True
    """whether to record the first episode of each evaluation (`videos/{run_name}/*.gif`)"""
    save_model: bool = False
    """whether to save the model (`runs/{run_name}/{exp_name}.cleanrl_model`)"""
    checkpoint_every: int = 50_000
    """steps between checkpoints (`runs/{run_name}/checkpoint.pt` and `replay/`; 0: only one
    at the end)"""
    stop_after_minutes: float = 0
    """write a checkpoint and stop after so many minutes, to be resumed (0: train to the end)"""
    resume: str | None = None
    """path of a checkpoint to go on from, its replay buffer beside it"""
    quiet: bool = False
    """if toggled, no progress bar, no table and no picture"""

    # Where observations live
    obs_storage: Literal["compressed", "indexed", "dense"] = "compressed"
    """a ReplayBuffer of stacks, one of frame indices, or dense uint8 stacks"""
    codec: str = "delta"
    """how frames are stored: raw, sparse, delta, delta-huffman, or a numcodecs codec: zstd, ..."""
    half_compress: bool = False
    """the paper's Half: --obs-storage indexed --codec raw"""
    full_compress: bool = False
    """the paper's Full: --obs-storage indexed --codec sparse"""
    count_changed_pixels: bool = False
    """if toggled, the N of arXiv 2310.01767's equation 3 is counted and logged"""
    lookahead: int = 1
    """batches that are decoded ahead, while the learner works (0: none)"""

    # The environment
    env_id: str = "walker_walk"
    """domain_task of the suite, or a manipulation task such as reach_duplo"""
    preset: Literal["suite", "paper"] = "suite"
    """suite: the task as shipped, in RGB; paper: --gray --black-floor"""
    gray: bool = False
    """if toggled, images are gray"""
    black_floor: bool = False
    """if toggled, the floor is black (walker, quadruped and humanoid)"""
    camera: int | None = None
    """number of the camera (None: 2 for quadruped, 0 otherwise)"""
    frame_size: int = 84
    """height and width of the images"""
    frame_stack: int = 3
    """frames in an observation"""
    action_repeat: int = 2
    """frames per action"""
    max_episode_steps: int | None = None
    """steps after which an episode is truncated (None: the task's own limit)"""

    # Algorithm specific arguments (None: as published for the task)
    total_timesteps: int | None = None
    """total timesteps of the experiment: 550,000, 1,550,000 or 15,050,000 by difficulty"""
    learning_rate: float | None = None
    """the learning rate of the three optimizers (1e-4, humanoid 8e-5)"""
    buffer_size: int | None = None
    """transitions that the replay buffer holds (1,000,000, quadruped_run 100,000)"""
    batch_size: int | None = None
    """the batch size of sample from the replay buffer (256, walker 512)"""
    n_step: int | None = None
    """steps of reward before the target is bootstrapped (3, walker 1)"""
    feature_dim: int | None = None
    """features of the actor's and the critics' trunks (50, humanoid 100)"""
    stddev_steps: int | None = None
    """steps over which the noise is annealed: 100,000, 500,000 or 2,000,000 by difficulty"""
    gamma: float = 0.99
    """the discount factor gamma"""
    tau: float = 0.01
    """target smoothing coefficient"""
    hidden_dim: int = 1024
    """units of the hidden layers"""
    stddev_start: float = 1.0
    """standard deviation of the exploration noise at the start"""
    stddev_end: float = 0.1
    """the same, when it has been annealed"""
    stddev_clip: float = 0.3
    """limit of the noise in the updates"""
    random_steps: int = 2000
    """steps of uniformly random actions"""
    learning_starts: int = 2000
    """step at which learning starts"""
    train_frequency: int = 2
    """steps per update"""
    eval_every: int = 5000
    """steps between evaluations (0: none)"""
    eval_episodes: int = 10
    """episodes of an evaluation"""


# Learning depends on all but these: with the others changed a checkpoint is not gone on from.
MAY_CHANGE = {
    *("exp_name", "torch_threads", "cuda", "track", "wandb_project_name", "wandb_entity"),
    *("capture_video", "save_model", "checkpoint_every", "stop_after_minutes", "resume", "quiet"),
    *("count_changed_pixels", "total_timesteps", "eval_every", "eval_episodes"),
}

# Published settings: training length and annealing of the noise in steps, by difficulty.
DIFFICULTY = {
    "easy": {"total_timesteps": 550_000, "stddev_steps": 100_000},
    "medium": {"total_timesteps": 1_550_000, "stddev_steps": 500_000},
    "hard": {"total_timesteps": 15_050_000, "stddev_steps": 2_000_000},
}
EASY = {
    *("cartpole_balance", "cartpole_balance_sparse", "cartpole_swingup", "cup_catch"),
    *("ball_in_cup_catch", "finger_spin", "hopper_stand", "pendulum_swingup"),
    *("walker_stand", "walker_walk"),
}


def published(task: str) -> dict:
    """The settings that depend on the task; one that was not published counts as medium."""
    domain = task.partition("_")[0]
    difficulty = "hard" if domain == "humanoid" else "easy" if task in EASY else "medium"
    return {
        **DIFFICULTY[difficulty],
        "learning_rate": 8e-5 if domain == "humanoid" else 1e-4,
        "buffer_size": 100_000 if task == "quadruped_run" else 1_000_000,
        "batch_size": 512 if domain == "walker" else 256,
        "n_step": 1 if domain == "walker" else 3,
        "feature_dim": 100 if domain == "humanoid" else 50,
    }


def fail(message: object) -> None:
    """End the script with one line on stderr and a non-zero exit status."""
    sys.exit(f"drqv2_dmc.py: error: {' '.join(str(message).split())}")


def parse_args(argv: list[str] | None = None) -> Args:
    """Read the command line; a wrong flag is answered with one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args = tyro.cli(Args, args=argv, description=__doc__.split("\n\n")[0])
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        # tyro draws a box: a title, what is wrong, a ruler, hints.
        lines = [line.strip("│╭╮╰╯ ") for line in said.getvalue().splitlines()]
        wrong = re.split("─{5,}", " ".join(lines[1:]))[0].strip(". ")
        near = [line.split()[0] for line in lines if line.startswith("--")]
        if near and wrong.startswith("Unrecognized"):
            wrong += f" (did you mean {near[0]}?)"
        fail(f"{wrong}; see --help")
    return check_args(args)


def check_args(args: Args) -> Args:
    """Refuse settings that cannot work and fill in what follows from the others."""
    if args.half_compress and args.full_compress:
        fail("--half-compress and --full-compress are two ways to store observations; give one")
    if args.half_compress or args.full_compress:
        flag, codec = ("half", "raw") if args.half_compress else ("full", "sparse")
        for name, value in (("obs_storage", "indexed"), ("codec", codec)):
            if getattr(args, name) not in (value, getattr(Args, name)):
                fail(
                    f"--{flag}-compress is --obs-storage indexed --codec {codec}, and not "
                    f"--{name.replace('_', '-')} {getattr(args, name)}; give one or the other"
                )
        args.obs_storage, args.codec = "indexed", codec
    if args.preset == "paper":
        args.gray = args.black_floor = True
    for name, value in published(args.env_id).items():
        if getattr(args, name) is None:
            setattr(args, name, value)

    at_least = {
        "seed": 0, "torch_threads": 0, "checkpoint_every": 0, "stop_after_minutes": 0,
        "lookahead": 0, "frame_stack": 1,
        "frame_size": SMALLEST_IMAGE, "action_repeat": 1, "total_timesteps": 1,
        "learning_rate": 0, "batch_size": 1, "n_step": 1, "feature_dim": 1, "stddev_steps": 1,
        "gamma": 0, "tau": 0, "hidden_dim": 1, "stddev_start": 0, "stddev_end": 0,
        "stddev_clip": 0, "random_steps": 0, "train_frequency": 1, "eval_every": 0,
        "eval_episodes": 1, "buffer_size": 2 * args.n_step, "learning_starts": args.n_step,
    }  # fmt: skip
    if args.max_episode_steps is not None:
        at_least["max_episode_steps"] = args.n_step  # or there is no window of n steps
    for name, least in at_least.items():
        if not getattr(args, name) >= least:  # NaN is not either
            flag = "--" + name.replace("_", "-")
            fail(f"{flag} {getattr(args, name)} must be at least {least}")
    for name in ("gamma", "tau"):
        if getattr(args, name) > 1:
            fail(f"--{name} {getattr(args, name)} must be at most 1")
    if args.seed >= 2**31:
        fail(f"--seed {args.seed} must be below {2**31}")
    return args


def make_env(args: Args, stacked: bool) -> gym.Env:
    """Build the task; its frames have two axes, an RGB one (84, 3 * 84), as every codec takes."""
    env = make_dm_control(
        args.env_id,
        size=args.frame_size,
        camera=args.camera,
        action_repeat=args.action_repeat,
        gray=args.gray,
        black_floor=args.black_floor,
        max_episode_steps=args.max_episode_steps,
    )
    if not args.gray:
        space = gym.spaces.Box(0, 255, (args.frame_size, 3 * args.frame_size), np.uint8)
        env = gym.wrappers.TransformObservation(env, lambda x: x.reshape(space.shape), space)
    return gym.wrappers.FrameStackObservation(env, args.frame_stack) if stacked else env


def make_envs(args: Args) -> gym.vector.VectorEnv:
    """Build the environment to train in, or end with a line that says what is in the way."""
    try:
        return gym.vector.SyncVectorEnv(
            [partial(make_env, args, args.obs_storage != "indexed")],
            autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
        )
    except (ValueError, ImportError, RuntimeError) as error:
        fail(error)


class ChangedPixels(gym.vector.VectorWrapper):
    """Counts the N of arXiv 2310.01767's equation 3: the changed pixels its scheme would store.

    Of every stack's worth of frames the first is stored raw, and of the others the pixels in which
    they differ from it; N is their number over as many of the newest frames as the buffer has. A
    frame of which more than a quarter changed is raw there, too, and counts as a quarter, whose
    four bytes a pixel come to the frame's.
    """

    def __init__(self, env: gym.vector.VectorEnv, n_frames: int, group: int):
        super().__init__(env)
        self.counts = np.zeros((n_frames, self.num_envs), dtype=np.int32)
        self.group, self.seen, self.now, self.largest = group, 0, 0, 0

    def reset(self, *, seed=None, options=None):
        observations, info = self.env.reset(seed=seed, options=options)
        self.count(observations)
        return observations, info

    def step(self, actions):
        observations, *outcome = self.env.step(actions)
        self.count(observations)
        return observations, *outcome

    def count(self, observations: np.ndarray) -> None:
        H, W = observations.shape[-2:]
        frames = observations.reshape(self.num_envs, -1, H, W)[:, -1]
        changed = np.zeros(self.num_envs, dtype=np.int32)
        if self.seen % self.group == 0:
            self.references = frames.copy()
        else:
            differ = np.count_nonzero(frames != self.references, axis=(1, 2))
            changed[:] = np.minimum(differ, H * W // 4)
        slot = self.seen % len(self.counts)
        self.now += int(changed.sum() - self.counts[slot].sum())
        self.largest = max(self.largest, self.now)
        self.counts[slot] = changed
        self.seen += 1

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs for the count to go on."""
        counts = torch.from_numpy(self.counts[: self.seen].copy())
        return {"counts": counts, "seen": self.seen, "now": self.now, "largest": self.largest}

    def restore(self, state: dict[str, Any]) -> None:
        self.counts[: len(state["counts"])] = state["counts"].numpy()
        self.now, self.largest = state["now"], state["largest"]
        # With the next group of frames: what it is compared with has to be a new one.
        self.seen = -(-state["seen"] // self.group) * self.group


class Batch(NamedTuple):
    """What the learner uses of a sample."""

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_obs: np.ndarray
    terminated: np.ndarray
    discount: np.ndarray


def check_memory(needed: int) -> None:
    """Raise a MemoryError where a machine has fewer bytes: systems promise more than they have."""
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # not on Windows
        return
    if needed > there:
        raise MemoryError(f"{needed / 1e9:,.1f} GB of stacks, and {there / 1e9:,.1f} GB of memory")


class DenseReplay:
    """A uint8 stack per transition, as DrQ-v2 keeps them.

    A batch holds what `ReplayBuffer` draws: transitions from which n steps lie within one episode,
    numbered by their place in the ring.
    """

    ARRAYS = "obs", "actions", "rewards", "terminated", "ended"
    NUMBERS = "capacity", "n_step", "gamma", "rows", "count"

    def __init__(self, args: Args, envs: gym.vector.VectorEnv):
        self.capacity, self.n_step, self.gamma = args.buffer_size, args.n_step, args.gamma
        # A batch may be read while these many more transitions arrive.
        self.rows = args.buffer_size + args.lookahead * args.train_frequency + 1
        self.rng = np.random.default_rng(args.seed)
        stacks = (self.rows, *envs.single_observation_space.shape)
        check_memory(int(np.prod(stacks)))
        # Not touched, and so not resident, before it is needed.
        self.obs = np.empty(stacks, np.uint8)
        self.actions = np.empty((self.rows, *envs.single_action_space.shape), np.float32)
        self.rewards = np.empty(self.rows, np.float32)
        self.terminated = np.empty(self.rows, np.float32)
        self.ended = np.empty(self.rows, bool)
        self.last_obs: dict[int, np.ndarray] = {}  # row that ends an episode -> what came after
        self.next_obs = self.obs[0]  # what came after the newest transition
        self.crossing: list[int] = []  # transitions whose n steps cross an episode's end
        self.count = 0

    def __len__(self):
        return min(self.count, self.capacity)

    @property
    def nbytes_stored(self):
        beside = (self.actions, self.rewards, self.terminated, self.ended)
        stacks = min(self.count, self.rows) + len(self.last_obs)
        return sum(each.nbytes for each in beside) + stacks * self.obs[0].nbytes

    def add(self, obs, action, reward, terminated, truncated, next_obs, info):
        row = self.count % self.rows
        self.last_obs.pop(row, None)
        self.obs[row], self.actions[row], self.rewards[row] = obs[0], action[0], reward[0]
        self.terminated[row] = terminated[0]
        self.ended[row] = terminated[0] or truncated[0]
        self.next_obs = info["final_obs"][0] if self.ended[row] else next_obs[0]
        self.count += 1
        if self.ended[row]:
            self._end_episode()

    def cut(self):
        """Take the newest transition for the last of its episode: the environment was reset."""
        row = (self.count - 1) % self.rows
        if self.count and not self.ended[row]:
            self.ended[row] = True
            self._end_episode()

    def _end_episode(self):
        last = self.count - 1
        self.last_obs[last % self.rows] = self.next_obs
        first = max(last - self.n_step + 2, 0, *(t + 1 for t in self.crossing[-1:]))
        self.crossing.extend(range(first, last + 1))

    def batches(self, batch_size: int, lookahead: int) -> Iterator[Batch]:
        """Batches, of which `lookahead` are read ahead by a thread."""
        with ThreadPoolExecutor(1) as thread:
            ahead: deque[Future[Batch]] = deque()
            while True:
                while len(ahead) <= lookahead:
                    ahead.append(thread.submit(self.read, *self.draw(batch_size)))
                yield ahead.popleft().result()

    def draw(self, batch_size: int) -> tuple[np.ndarray, int, np.ndarray]:
        """Draw transitions; with them, how many there are now and what came after the newest."""
        oldest, newest = self.count - len(self), self.count - 1
        self.crossing = [t for t in self.crossing if t >= oldest]
        unfinished = range(max(self.count - self.n_step + 1, oldest), self.count)
        left_out = sorted(t % self.capacity for t in {*self.crossing, *unfinished})
        numbers = self.rng.integers(len(self) - len(left_out), size=batch_size)
        # A place's number is how many precede it, less those among them that are left out.
        gaps = np.array(left_out, np.int64) - np.arange(len(left_out))
        places = numbers + np.searchsorted(gaps, numbers, "right")
        return newest - (newest - places) % self.capacity, self.count, self.next_obs

    def read(self, starts: np.ndarray, count: int, newest_obs: np.ndarray) -> Batch:
        rewards = np.zeros(len(starts))
        for k in range(self.n_step):
            rewards += self.gamma**k * self.rewards[(starts + k) % self.rows].astype(np.float64)
        after = starts + self.n_step
        last = (after - 1) % self.rows
        next_obs = self.obs[after % self.rows]
        for i in np.flatnonzero(self.ended[last]):
            next_obs[i] = self.last_obs[last[i]]
        next_obs[(after == count) & ~self.ended[last]] = newest_obs
        rows = starts % self.rows
        return Batch(
            self.obs[rows],
            self.actions[rows],
            rewards.astype(np.float32),
            next_obs,
            self.terminated[last],
            np.full(len(starts), self.gamma**self.n_step, np.float32),
        )

    def checkpoint(self, path: Path) -> int:
        """Write everything, of the arrays the rows written so far; the last two files stay."""
        path.mkdir(exist_ok=True)
        used = min(self.count, self.rows)
        arrays = {name: getattr(self, name)[:used] for name in self.ARRAYS}
        numbers = {name: getattr(self, name) for name in self.NUMBERS}
        ends = np.array(list(self.last_obs), np.int64)
        last_obs = np.array(list(self.last_obs.values()), np.uint8)
        rng = json.dumps(self.rng.bit_generator.state)
        np.savez(
            path / "unfinished.npz", rng=rng, ends=ends, last_obs=last_obs, next_obs=self.next_obs,
            crossing=np.array(self.crossing, np.int64), **numbers, **arrays,
        )  # fmt: skip
        os.replace(path / "unfinished.npz", path / f"{self.count}.npz")
        for old in sorted(path.glob("[0-9]*.npz"), key=lambda file: int(file.stem))[:-2]:
            old.unlink()
        return self.count

    @classmethod
    def restore(cls, path: Path, at: int) -> DenseReplay:
        replay = object.__new__(cls)
        with np.load(path / f"{at}.npz", allow_pickle=False) as file:
            held = dict(file)
        for name in cls.NUMBERS:
            setattr(replay, name, held[name].item())
        for name in cls.ARRAYS:
            used = held[name]
            whole = np.empty((replay.rows, *used.shape[1:]), used.dtype)
            whole[: len(used)] = used
            setattr(replay, name, whole)
        replay.rng = np.random.default_rng()
        replay.rng.bit_generator.state = json.loads(str(held["rng"]))
        replay.last_obs = dict(zip(held["ends"].tolist(), held["last_obs"], strict=True))
        replay.next_obs, replay.crossing = held["next_obs"], held["crossing"].tolist()
        return replay


class Storage(NamedTuple):
    """What holds the observations, and the way from one to the network's input."""

    envs: gym.vector.VectorEnv
    """one environment, which `indexed` wraps"""
    replay: DenseReplay | ReplayBuffer
    stacks: Callable
    """from what the environment returns to stacks of pixels"""


def make_storage(
    args: Args, envs: gym.vector.VectorEnv, replay: DenseReplay | ReplayBuffer | None = None
) -> Storage:
    """Build the replay buffer, or take over the one of a checkpoint."""
    if args.obs_storage == "dense":
        try:
            replay = DenseReplay(args, envs) if replay is None else replay
        except MemoryError as error:
            fail(f"--obs-storage dense: {error}; give a smaller --buffer-size or compress")
        return Storage(envs, replay, lambda obs: obs)

    # One frame through the codec: numcodecs has some that want other data or lose bits.
    shape = envs.single_observation_space.shape[-2:]
    frame = (np.arange(np.prod(shape)) % 251).astype(np.uint8).reshape(shape)
    try:
        probe = DiffFrameArray((4, *shape), codec=args.codec)
        stored = probe.gather(probe.append(frame))
    except Exception as error:
        fail(f"--codec {args.codec}: {error}")
    if not np.array_equal(stored, frame):
        fail(f"--codec {args.codec}: it is not lossless")

    indexed = args.obs_storage == "indexed"
    if indexed:
        envs = IndexedFrameStack(
            envs,
            stack_size=args.frame_stack,
            # An episode that ends costs two frames; the buffer drops those it does not need.
            capacity=2 * args.buffer_size + args.frame_stack,
            codec=args.codec,
        )
    if replay is None:
        replay = ReplayBuffer(
            args.buffer_size,
            envs.single_observation_space,
            envs.single_action_space,
            frames=envs.frames if indexed else None,
            codec=args.codec,
            n_step=args.n_step,
            gamma=args.gamma,
            full_windows=True,
            seed=args.seed,
        )
    elif indexed:
        envs.go_on_from(replay.frames)
    return Storage(envs, replay, envs.frames.gather if indexed else lambda obs: obs)


# ALGO LOGIC: networks
SMALLEST_IMAGE = 15  # four convolutions leave one pixel of it


def layer_init(layer, std=1.0):
    nn.init.orthogonal_(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


class Encoder(nn.Module):
    def __init__(self, channels: int, image_size: int):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, stride in ((channels, 2), (32, 1), (32, 1), (32, 1)):
            layers += [layer_init(nn.Conv2d(inputs, 32, 3, stride), std=2**0.5), nn.ReLU()]
        self.convnet = nn.Sequential(*layers, nn.Flatten())
        self.features = 32 * ((image_size - 3) // 2 + 1 - 6) ** 2

    def forward(self, x):
        return self.convnet(x / 255.0 - 0.5)


def make_trunk(inputs: int, feature_dim: int):
    linear = layer_init(nn.Linear(inputs, feature_dim))
    return nn.Sequential(linear, nn.LayerNorm(feature_dim), nn.Tanh())


def make_mlp(inputs: int, hidden_dim: int, outputs: int):
    return nn.Sequential(
        layer_init(nn.Linear(inputs, hidden_dim)),
        nn.ReLU(),
        layer_init(nn.Linear(hidden_dim, hidden_dim)),
        nn.ReLU(),
        layer_init(nn.Linear(hidden_dim, outputs)),
    )


class Actor(nn.Module):
    def __init__(self, inputs: int, action_dim: int, feature_dim: int, hidden_dim: int):
        super().__init__()
        self.trunk = make_trunk(inputs, feature_dim)
        self.policy = make_mlp(feature_dim, hidden_dim, action_dim)

    def forward(self, x):
        return torch.tanh(self.policy(self.trunk(x)))


class Critic(nn.Module):
    def __init__(self, inputs: int, action_dim: int, feature_dim: int, hidden_dim: int):
        super().__init__()
        self.trunk = make_trunk(inputs, feature_dim)
        self.q1 = make_mlp(feature_dim + action_dim, hidden_dim, 1)
        self.q2 = make_mlp(feature_dim + action_dim, hidden_dim, 1)

    def forward(self, x, action):
        x = torch.cat([self.trunk(x), action], dim=1)
        return self.q1(x).flatten(), self.q2(x).flatten()


class Agent(nn.Module):
    def __init__(self, args: Args, action_dim: int):
        super().__init__()
        channels = args.frame_stack * (1 if args.gray else 3)
        self.encoder = Encoder(channels, args.frame_size)
        sizes = self.encoder.features, action_dim, args.feature_dim, args.hidden_dim
        self.actor, self.critic, self.critic_target = Actor(*sizes), Critic(*sizes), Critic(*sizes)
        self.critic_target.load_state_dict(self.critic.state_dict())


def to_channels(stacks: torch.Tensor) -> torch.Tensor:
    """Stacks as the buffer gives them, (B, F, H, C * W) with C innermost, as (B, F * C, H, W)."""
    B, F, H, _ = stacks.shape
    return stacks.reshape(B, F, H, H, -1).permute(0, 1, 4, 2, 3).reshape(B, -1, H, H)


def random_shift(x: torch.Tensor, pad: int = 4) -> torch.Tensor:
    """Shift each image by up to `pad` pixels on each axis, its border repeated."""
    n, channels, H, W = x.shape
    down, right = torch.randint(-pad, pad + 1, (2, n, 1), device=x.device)
    rows = (torch.arange(H, device=x.device) + down).clamp(0, H - 1)
    columns = (torch.arange(W, device=x.device) + right).clamp(0, W - 1)
    images = torch.arange(n, device=x.device)[:, None, None, None]
    planes = torch.arange(channels, device=x.device)[:, None, None]
    return x[images, planes, rows[:, None, :, None], columns[:, None, None, :]]


def truncated_normal(mean: torch.Tensor, stddev: float, clip: float | None = None) -> torch.Tensor:
    """Sample around `mean`, the noise limited to `clip`, and keep within (-1, 1).

    The gradient passes straight through both limits.
    """
    noise = torch.randn_like(mean) * stddev
    if clip is not None:
        noise = noise.clamp(-clip, clip)
    action = mean + noise
    return action - action.detach() + action.detach().clamp(-1 + 1e-6, 1 - 1e-6)


def linear_schedule(start: float, end: float, duration: int, t: int) -> float:
    part = min(t / duration, 1.0)
    return (1 - part) * start + part * end


def soft_update(net: nn.Module, target: nn.Module, tau: float) -> None:
    with torch.no_grad():
        for param, target_param in zip(net.parameters(), target.parameters(), strict=True):
            target_param.copy_(tau * param + (1 - tau) * target_param)


def update(args: Args, agent: Agent, optimizers: dict, batch: Batch, stddev: float) -> dict:
    """Optimise encoder, critic and actor on one batch; returns what is to be logged, as tensors."""
    device = agent.encoder.convnet[0].weight.device
    obs, action, reward, next_obs, terminated, discount = (
        torch.as_tensor(array).to(device, non_blocking=True) for array in batch
    )
    obs = agent.encoder(random_shift(to_channels(obs)).float())
    with torch.no_grad():
        next_obs = agent.encoder(random_shift(to_channels(next_obs)).float())
        next_action = truncated_normal(agent.actor(next_obs), stddev, args.stddev_clip)
        target_v = torch.min(*agent.critic_target(next_obs, next_action))
        target_q = reward + discount * (1 - terminated) * target_v

    q1, q2 = agent.critic(obs, action)
    critic_loss = F.mse_loss(q1, target_q) + F.mse_loss(q2, target_q)
    optimizers["encoder"].zero_grad()
    optimizers["critic"].zero_grad()
    critic_loss.backward()
    optimizers["critic"].step()
    optimizers["encoder"].step()

    obs = obs.detach()
    sampled = truncated_normal(agent.actor(obs), stddev, args.stddev_clip)
    actor_loss = -torch.min(*agent.critic(obs, sampled)).mean()
    optimizers["actor"].zero_grad()
    actor_loss.backward()
    optimizers["actor"].step()

    soft_update(agent.critic, agent.critic_target, args.tau)
    return {
        "critic_loss": critic_loss,
        "actor_loss": actor_loss,
        "q1_values": q1.mean(),
        "q2_values": q2.mean(),
        "target_q": target_q.mean(),
        "batch_reward": reward.mean(),
    }


@torch.no_grad()
def policy(agent: Agent, stacks: np.ndarray, stddev: float | None) -> np.ndarray:
    """Actions for stacks of pixels; the mean ones where `stddev` is None."""
    device = agent.encoder.convnet[0].weight.device
    pixels = to_channels(torch.from_numpy(stacks).to(device)).float()
    mean = agent.actor(agent.encoder(pixels))
    return (mean if stddev is None else truncated_normal(mean, stddev)).cpu().numpy()


def evaluate(args: Args, agent: Agent, env: gym.Env, video: Path | None) -> list[float]:
    """Let the mean actions play `args.eval_episodes` episodes; returns their returns."""
    returns = []
    for episode in range(args.eval_episodes):
        obs, _ = env.reset(seed=args.seed + 1_000_000 + episode)  # not the training's first
        frames, episodic_return, over = [obs[-1]], 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(policy(agent, obs[None], None)[0])
            episodic_return += reward
            over = terminated or truncated
            frames.append(obs[-1])
        returns.append(float(episodic_return))
        if video is not None and episode == 0:
            save_video(video, frames)
    return returns


def save_video(path: Path, frames: list[np.ndarray]) -> None:
    """What the agent saw, as a GIF."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    size = len(frames[0])
    shape = (size, size) if frames[0].shape[1] == size else (size, size, 3)
    images = [Image.fromarray(frame.reshape(shape)) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=50, loop=0)


def get_random_states() -> dict:
    """The states of what draws actions, noise and shifts; the replay buffer keeps its own."""
    return {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict) -> None:
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


CHECKPOINT = {
    *("args", "agent", "optimizers", "random_states", "global_step", "history", "replay"),
}


def save_checkpoint(run_dir, args, agent, optimizers, replay, global_step, history):
    """Write everything that going on needs; a crash leaves the checkpoint before.

    The replay buffer, its own generator included, keeps its last two checkpoints in a directory
    beside: the old pair is whole until the new one is.
    """
    checkpoint = {
        "args": asdict(args),
        "agent": agent.state_dict(),
        "optimizers": {name: each.state_dict() for name, each in optimizers.items()},
        "random_states": get_random_states(),
        "global_step": global_step,
        "history": history,
        "replay": replay.checkpoint(run_dir / "replay"),
    }
    torch.save(checkpoint, run_dir / "checkpoint.unfinished")
    os.replace(run_dir / "checkpoint.unfinished", run_dir / "checkpoint.pt")


def load_checkpoint(args: Args) -> dict:
    """Read `--resume`'s checkpoint, or end with a line that says why it cannot be gone on from."""
    try:
        checkpoint = torch.load(args.resume, map_location="cpu", weights_only=True)
        missing = CHECKPOINT - checkpoint.keys()
    except Exception as error:
        fail(f"--resume {args.resume}: not a checkpoint of this script ({error})".split("\n")[0])
    if missing:
        fail(f"--resume {args.resume}: not a checkpoint of this script (it lacks {missing})")
    then = checkpoint["args"]
    changed = [
        f"--{name.replace('_', '-')} {now} (was {then.get(name)})"
        for name, now in vars(args).items()
        if name not in MAY_CHANGE and now != then.get(name)
    ]
    if changed:
        fail(f"--resume {args.resume}: made with other settings: {', '.join(changed)}")
    if checkpoint["global_step"] >= args.total_timesteps:
        fail(
            f"--resume {args.resume}: it has {checkpoint['global_step']} steps already; give a "
            f"larger --total-timesteps than {args.total_timesteps}"
        )
    try:
        kind = DenseReplay if args.obs_storage == "dense" else ReplayBuffer
        checkpoint["replay"] = kind.restore(
            Path(args.resume).with_name("replay"), checkpoint["replay"]
        )
    except Exception as error:
        fail(f"--resume {args.resume}: its replay buffer cannot be read ({error})")
    return checkpoint


def where(args: Args) -> str:
    return "dense" if args.obs_storage == "dense" else f"{args.obs_storage} ({args.codec})"


def stack_bytes(args: Args, channels: int) -> int:
    """Bytes of one observation as a uint8 stack, gray (1) or RGB (3)."""
    return args.frame_stack * channels * args.frame_size**2


def draw(path: Path, args: Args, history: dict) -> None:
    """The learning curve and the memory over time, as one picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    figure.suptitle(f"DrQ-v2, {args.env_id}, seed {args.seed}, observations {where(args)}")
    steps, returns = np.array(history["episodes"], dtype=float).reshape(-1, 3).T[:2]
    left.plot(steps, returns, ".", ms=3, alpha=0.4, label="one episode of training")
    steps, returns = np.array(history["evaluations"], dtype=float).reshape(-1, 2).T
    left.plot(steps, returns, "o-", ms=3, label=f"mean of {args.eval_episodes} evaluations")
    left.legend()
    left.set(xlabel="agent steps", ylabel="episodic return")
    steps, held, stored = np.array(history["memory"], dtype=float).reshape(-1, 3).T
    right.plot(steps, stored / 1e6, label=f"this run, {where(args)}")
    own = stack_bytes(args, 1 if args.gray else 3)
    right.plot(steps, held * own / 1e6, "--", color="gray", label="uint8 stacks")
    right.set(xlabel="agent steps", ylabel="MB of the replay buffer", yscale="log")
    right.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def peak_rss() -> str:
    """The highest resident memory of this process so far."""
    try:
        import resource
    except ImportError:  # not on Windows
        return "unknown here"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6:,.0f} MB"


def table(args: Args, sps: float, held: int, stored_bytes: int) -> str:
    each = stored_bytes / held
    gray, rgb = stack_bytes(args, 1), stack_bytes(args, 3)
    rows = [
        ("observations", where(args)),
        ("steps per second (SPS)", f"{sps:,.1f}"),
        ("bytes per transition", f"{each:,.1f}"),
        ("times smaller than RGB stacks", f"{rgb / each:,.2f} ({rgb:,} B each)"),
        *([("than gray stacks", f"{gray / each:,.2f} ({gray:,} B each)")] if args.gray else []),
        ("replay buffer", f"{stored_bytes / 1e6:,.3f} MB for {held:,}"),
        ("a million transitions", f"{each / 1e3:,.3f} GB"),
        ("peak RSS of the process", peak_rss()),
    ]
    return "\n".join(f"{name:<32}  {value}" for name, value in rows)


def train(args: Args) -> dict:
    """Train, log and save; returns what a test or a benchmark may ask about."""
    run_name = f"{args.env_id}__{args.exp_name}__{args.seed}__{int(time.time())}"
    if (Path("runs") / run_name).exists():  # another run began within the same second
        run_name += f"_{time.time_ns() % 1_000_000_000:09d}"
    run_dir = Path("runs") / run_name
    checkpoint = load_checkpoint(args) if args.resume else None

    # TRY NOT TO MODIFY: seeding
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = args.torch_deterministic
    if args.torch_threads:
        torch.set_num_threads(args.torch_threads)
    device = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu")

    # env and replay buffer setup
    with contextlib.ExitStack() as stack:  # OpenGL contexts complain where they are left open
        envs = stack.enter_context(contextlib.closing(make_envs(args)))
        counter = None
        if args.count_changed_pixels:
            envs = counter = ChangedPixels(envs, args.buffer_size, args.frame_stack)
        eval_env = None
        if args.eval_every:
            eval_env = stack.enter_context(contextlib.closing(make_env(args, stacked=True)))
        storage = make_storage(args, envs, checkpoint["replay"] if checkpoint else None)
        return run(args, run_dir, device, checkpoint, storage, eval_env, counter)


def run(args, run_dir, device, checkpoint, storage, eval_env, counter=None) -> dict:
    envs, replay, stacks = storage
    if device.type == "cuda" and isinstance(replay, ReplayBuffer):
        replay.device = device  # batches are decoded there
    agent = Agent(args, envs.single_action_space.shape[0]).to(device)
    optimizers = {
        name: optim.Adam(getattr(agent, name).parameters(), lr=args.learning_rate)
        for name in ("encoder", "actor", "critic")
    }

    if args.track:
        try:
            import wandb
        except ImportError:
            fail("--track needs the wandb package: pip install wandb")
        wandb.init(
            project=args.wandb_project_name,
            entity=args.wandb_entity,
            sync_tensorboard=True,
            config=vars(args),
            name=run_dir.name,
            save_code=True,
        )
    writer = SummaryWriter(str(run_dir))
    settings = "\n".join(f"|{key}|{value}|" for key, value in vars(args).items())
    writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{settings}")

    # start the task, or go on from a checkpoint with a new episode
    first_step = 0
    history: dict[str, Any] = {"episodes": [], "evaluations": [], "memory": []}
    every_lane = {}
    if checkpoint is not None:
        agent.load_state_dict(checkpoint["agent"])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(checkpoint["optimizers"][name])
        set_random_states(checkpoint["random_states"])
        first_step, history = checkpoint["global_step"], checkpoint["history"]
        if counter is not None and "changed_pixels" in history:
            counter.restore(history["changed_pixels"])
        replay.cut()
        # Resets by name of their lanes leave the frames of a stream where they are.
        every_lane = {"options": {"reset_mask": np.ones(1, dtype=bool)}}
    obs, _ = envs.reset(seed=[(args.seed + first_step) % 2**31], **every_lane)
    batches = replay.batches(args.batch_size, lookahead=args.lookahead)

    def remember(step):
        history["memory"].append((step, len(replay), replay.nbytes_stored))
        _, held, stored = history["memory"][-1]
        writer.add_scalar("storage/nbytes_stored", stored, step)
        dense = held * stack_bytes(args, 1 if args.gray else 3)
        writer.add_scalar("storage/compression_ratio", dense / stored, step)
        if counter is not None:
            history["changed_pixels"] = counter.state()
            writer.add_scalar("storage/changed_pixels", counter.now, step)

    bar = tqdm(
        total=args.total_timesteps,
        initial=first_step,
        unit="step",
        disable=args.quiet,
        mininterval=0.5 if sys.stderr.isatty() else 10,
    )
    episodic_return, episodic_length, saved_step = 0.0, 0, first_step
    n_updates, update_ends = 0, deque(maxlen=1000)
    start_time, steps_done = time.time(), first_step
    stop_time = start_time + 60 * args.stop_after_minutes if args.stop_after_minutes else np.inf
    for global_step in range(first_step, args.total_timesteps):
        if args.eval_every and global_step % args.eval_every == 0:
            video = Path("videos") / run_dir.name / f"{global_step}.gif"
            returns = evaluate(args, agent, eval_env, video if args.capture_video else None)
            history["evaluations"].append((global_step, float(np.mean(returns))))
            writer.add_scalar("eval/episodic_return", np.mean(returns), global_step)

        # ALGO LOGIC: action logic
        stddev = linear_schedule(args.stddev_start, args.stddev_end, args.stddev_steps, global_step)
        if global_step < args.random_steps:
            actions = torch.empty(1, *envs.single_action_space.shape).uniform_(-1, 1).numpy()
        else:
            actions = policy(agent, stacks(obs), stddev)

        # ALGO LOGIC: training
        if global_step >= args.learning_starts and global_step % args.train_frequency == 0:
            batch = next(batches)
            sample = Batch(*(getattr(batch, name) for name in Batch._fields))
            losses = update(args, agent, optimizers, sample, stddev)
            update_ends.append((global_step, time.perf_counter()))
            n_updates += 1
            if n_updates % 100 == 1:  # reading them waits for a GPU
                for name, loss in losses.items():
                    writer.add_scalar(f"losses/{name}", loss.item(), global_step)
                writer.add_scalar("charts/stddev", stddev, global_step)

        # TRY NOT TO MODIFY: execute the task and log data
        next_obs, rewards, terminations, truncations, infos = envs.step(actions)
        replay.add(obs, actions, rewards, terminations, truncations, next_obs, infos)
        obs = next_obs
        episodic_return += float(rewards[0])
        episodic_length += 1
        bar.update()
        steps_done = global_step + 1
        if terminations[0] or truncations[0]:
            sps = (steps_done - first_step) / (time.time() - start_time)
            history["episodes"].append((steps_done, episodic_return, episodic_length))
            writer.add_scalar("charts/episodic_return", episodic_return, steps_done)
            writer.add_scalar("charts/episodic_length", episodic_length, steps_done)
            writer.add_scalar("charts/SPS", sps, steps_done)
            remember(steps_done)
            bar.set_postfix_str(
                f"SPS {sps:.0f}, return {episodic_return:.1f}, "
                f"buffer {replay.nbytes_stored / 1e6:.2f} MB",
                refresh=False,
            )
            episodic_return, episodic_length = 0.0, 0
            # At an episode's end, so that going on begins where this run went on.
            if args.checkpoint_every and steps_done - saved_step >= args.checkpoint_every:
                save_checkpoint(run_dir, args, agent, optimizers, replay, steps_done, history)
                saved_step = steps_done
        if time.time() > stop_time:
            break
    bar.close()
    batches.close()
    sps = (steps_done - first_step) / (time.time() - start_time)
    remember(steps_done)
    save_checkpoint(run_dir, args, agent, optimizers, replay, steps_done, history)

    if args.save_model:
        model_path = run_dir / f"{args.exp_name}.cleanrl_model"
        torch.save(agent.state_dict(), model_path)
        tqdm.write(f"model saved to {model_path}")
    if not args.quiet:
        draw(run_dir / "training.png", args, history)
        print(table(args, sps, len(replay), replay.nbytes_stored))
        print(f"picture, logs, checkpoint: {run_dir}/")
    writer.close()
    return {
        "run_dir": run_dir,
        "agent": agent,
        "optimizers": optimizers,
        "history": history,
        "replay": replay,
        "update_ends": list(update_ends),
    }


def main(argv: list[str] | None = None) -> None:
    try:
        train(parse_args(argv))
    except KeyboardInterrupt:
        sys.exit("drqv2_dmc.py: interrupted; --resume goes on from a checkpoint, if there is one")


if __name__ == "__main__":
    main()
