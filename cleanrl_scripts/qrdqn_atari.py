"""QR-DQN on Atari games, with the replay buffer's observations compressed.

Paper: Dabney et al., "Distributional Reinforcement Learning with Quantile Regression", arXiv
1710.10044. Settings are RL-Zoo's for Atari (`DLR-RM/rl-baselines3-zoo: hyperparams/qrdqn.yml`),
the algorithm is that of `sb3_contrib/qrdqn`; layout, log names and the loop follow CleanRL's
`c51_atari.py`.

Where observations live is a flag, and changes memory and speed only; with one seed and device the
weights come out the same bit for bit:

- `--obs-storage compressed`: a `ReplayBuffer` takes the place of the arrays of stacks, and is fed
  the stacks that they were fed;
- `--obs-storage indexed`: `IndexedFrameStack` stores each new frame once and emits frame indices,
  which are what the buffer is fed. With `--codec raw` this is the paper's "Half", with
  `--codec sparse` its "Full" (Differentially Encoded Observation Spaces, arXiv 2310.01767);
- `--obs-storage dense`: arrays of uint8 stacks, one for `obs` and one for `next_obs`, as in
  CleanRL, and nothing of ours near them.

The games run in ALE's own vector environment, autoreset SAME_STEP. Next to RL-Zoo's wrappers:

- the same: no-ops at reset (30), frame skip 4 with max over the last two, FIRE at reset, gray
  before it is resized, a new game's stack padded with zeros, rewards by sign, no sticky actions, a
  lost life ends the episode for the learner while the game goes on, and episodic returns are those
  of whole games with unclipped rewards;
- departures: at a lost life nothing is reset or pressed, so the stack runs on and the agent has to
  press FIRE itself. At a game's start ALE presses FIRE for one frame and then takes its no-ops;
  RL-Zoo's wrappers take their no-ops first and then press FIRE and action 2 for four frames each.

Departures from `sb3_contrib` beside the games: the target network is copied after the update of
its step, not before it, and agents are evaluated with the last epsilon of the exploration, not with
none (`--eval-epsilon 0`).

`--preset paper` is the QR-DQN of the paper on compressed observations: a buffer of 100,000, and
every 50,000 steps three games without exploration.

A truncated episode is bootstrapped from its last observation, one that terminated is not.
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
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import ale_py
import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
import tyro
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

if TYPE_CHECKING:
    from compressarray import ReplayBuffer

gym.register_envs(ale_py)

STACK = (4, 84, 84)  # one observation
STACK_BYTES = 4 * 84 * 84  # as uint8; a transition's dense pixels are two of them
LOG_EVERY = 250  # agent steps


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
    capture_video: bool = False
    """whether to record what the first environment's agent sees (`videos/{run_name}/*.gif`)"""
    save_model: bool = False
    """whether to save the model (`runs/{run_name}/{exp_name}.cleanrl_model`) and evaluate it"""
    eval_every: int | None = None
    """steps between evaluations (0: only of the saved model; None: 50,000 in the paper, else 0)"""
    eval_episodes: int | None = None
    """games of an evaluation (None: 3 in the paper, else 10)"""
    eval_epsilon: float | None = None
    """the epsilon of evaluations (None: 0 in the paper, else end-e)"""
    checkpoint_every: int = 1_000_000
    """steps between checkpoints (`runs/{run_name}/checkpoint.pt` and `replay/`; 0: only
    one at the end)"""
    stop_after_minutes: float = 0
    """write a checkpoint and stop after so many minutes, to be resumed (0: train to the end)"""
    resume: str | None = None
    """path of a checkpoint to go on from, its replay buffer beside it; exploration is a part of
    --total-timesteps, so more of these explore for longer"""
    quiet: bool = False
    """if toggled, no progress bar, no table and no picture"""

    # Where observations live
    obs_storage: Literal["compressed", "indexed", "dense"] = "compressed"
    """a ReplayBuffer fed with stacks, one fed with frame indices, or plain arrays of stacks"""
    codec: str = "delta"
    """how frames are stored: raw, sparse, delta, delta-huffman, or a numcodecs codec: zstd, ..."""
    count_changed_pixels: bool = False
    """if toggled, the N of arXiv 2310.01767's equation 3 is counted and logged"""

    # Algorithm specific arguments
    preset: Literal["zoo", "paper"] = "zoo"
    """RL-Zoo's settings, or those of the paper on compressed observations (arXiv 2310.01767)"""
    env_id: str = "ALE/Pong-v5"
    """the id of the environment, any ALE/<Game>-v5"""
    total_timesteps: int = 10_000_000
    """total timesteps of the experiments, in agent steps (four emulator frames each)"""
    learning_rate: float = 5e-5
    """the learning rate of the optimizer"""
    num_envs: int = 1
    """the number of parallel game environments"""
    max_episode_frames: int = 108_000
    """emulator frames after which a game is truncated"""
    buffer_size: int | None = None
    """the replay memory buffer size, in transitions (None: 1,000,000, in the paper 100,000)"""
    gamma: float = 0.99
    """the discount factor gamma"""
    n_step: int = 1
    """rewards that are summed before the bootstrap value"""
    n_quantiles: int = 200
    """the number of quantiles"""
    target_network_frequency: int = 10_000
    """the timesteps it takes to update the target network"""
    batch_size: int = 32
    """the batch size of sample from the replay memory"""
    start_e: float = 1
    """the starting epsilon for exploration"""
    end_e: float = 0.01
    """the ending epsilon for exploration"""
    exploration_fraction: float = 0.025
    """the fraction of `total-timesteps` it takes from start-e to go end-e"""
    learning_starts: int = 50_000
    """timestep to start learning; until then actions are random"""
    train_frequency: int = 4
    """the frequency of training, in timesteps of all environments together"""


# Learning depends on all but these: with the others changed a checkpoint is not gone on from. The
# buffer comes back in the form it had, so that --obs-storage and --codec stay.
MAY_CHANGE = {
    *("exp_name", "torch_threads", "cuda", "track", "wandb_project_name", "wandb_entity"),
    *("capture_video", "save_model", "eval_every", "eval_episodes", "eval_epsilon"),
    *("count_changed_pixels", "checkpoint_every", "stop_after_minutes", "resume", "quiet"),
    *("preset", "total_timesteps"),
}


def fail(message: object) -> None:
    """End the script with one line on stderr and a non-zero exit status."""
    sys.exit(f"qrdqn_atari.py: error: {' '.join(str(message).split())}")


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


def published(args: Args) -> dict[str, Any]:
    """The settings in which the paper on compressed observations differs from RL-Zoo."""
    if args.preset == "paper":
        return {"buffer_size": 100_000, "eval_every": 50_000, "eval_episodes": 3, "eval_epsilon": 0}
    return {
        "buffer_size": 1_000_000, "eval_every": 0, "eval_episodes": 10, "eval_epsilon": args.end_e
    }  # fmt: skip


def check_args(args: Args) -> Args:
    """Refuse settings that cannot work and fill in what follows from the others."""
    for name, value in published(args).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    at_least = {
        "num_envs": 1, "n_step": 1, "n_quantiles": 1, "batch_size": 1, "train_frequency": 1,
        "target_network_frequency": 1, "total_timesteps": 1, "max_episode_frames": 4,
        "eval_episodes": 1, "eval_every": 0, "eval_epsilon": 0, "checkpoint_every": 0,
        "stop_after_minutes": 0, "torch_threads": 0, "seed": 0, "learning_rate": 0, "gamma": 0,
        "start_e": 0, "end_e": 0, "exploration_fraction": 0,
    }  # fmt: skip
    for name, least in at_least.items():
        if not getattr(args, name) >= least:  # NaN is not either
            flag = "--" + name.replace("_", "-")
            fail(f"{flag} {getattr(args, name)} must be at least {least}")
    for name in ("gamma", "start_e", "end_e", "eval_epsilon"):
        if getattr(args, name) > 1:
            fail(f"--{name.replace('_', '-')} {getattr(args, name)} must be at most 1")
    if args.seed >= 2**31:
        fail(f"--seed {args.seed} must be below {2**31}, the largest that ALE takes")
    # One whole window of n steps in each lane: without it there would be nothing to sample.
    window = args.n_step * args.num_envs
    for name in ("buffer_size", "learning_starts"):
        if getattr(args, name) < window:
            fail(
                f"--{name.replace('_', '-')} {getattr(args, name)} must be at least {window}, "
                f"--n-step {args.n_step} times --num-envs {args.num_envs}"
            )
    return args


class LearnerSignals(gym.vector.VectorWrapper):
    """Rewards by sign, a lost life as an end, and the statistics of whole games in `info`."""

    def reset(self, *, seed=None, options=None):
        observations, info = self.env.reset(seed=seed, options=options)
        self.returns = np.zeros(self.num_envs)
        self.lengths = np.zeros(self.num_envs, dtype=np.int64)
        self.lives = info["lives"]
        return observations, info

    def step(self, actions):
        observations, rewards, terminations, truncations, info = self.env.step(actions)
        self.returns += rewards
        self.lengths += 1
        over = terminations | truncations
        info["episode"] = {"r": self.returns.copy(), "l": self.lengths.copy()}
        info["_episode"] = over
        self.returns[over] = 0
        self.lengths[over] = 0
        # Some games show no lives left for a while before they are over: that end comes by itself.
        life_lost = (info["lives"] > 0) & (info["lives"] < self.lives) & ~over
        self.lives = info["lives"]
        if life_lost.any():
            # Where the game goes on, the observation is itself the one that ended the episode.
            final_obs = observations.copy()
            if over.any():
                final_obs[over] = info["final_obs"][over]
            info["final_obs"] = final_obs
        return observations, np.sign(rewards), terminations | life_lost, truncations, info


class ChangedPixels(gym.vector.VectorWrapper):
    """Counts the N of arXiv 2310.01767's equation 3: the changed pixels its scheme would store.

    Of every four frames of a lane the first is stored raw, and of the others the pixels in which
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


def make_env(args: Args, num_envs: int, stack_num: int = 4) -> gym.vector.VectorEnv:
    """Build ALE's vector environment for one game."""
    if not re.fullmatch(r"ALE/\w+-v5", args.env_id):
        fail(f"--env-id {args.env_id!r} must be an ALE/<Game>-v5, for example ALE/Pong-v5")
    try:
        return gym.make_vec(
            args.env_id,
            num_envs=num_envs,
            vectorization_mode="vector_entry_point",
            autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
            stack_num=stack_num,
            max_num_frames_per_episode=args.max_episode_frames,
            repeat_action_probability=0.0,
            reward_clipping=False,  # LearnerSignals clips: episodic returns are unclipped
            noop_max=30,
            use_fire_reset=True,
        )
    except gym.error.Error as error:
        fail(f"--env-id {args.env_id}: {error}")
    except (OSError, AssertionError) as error:
        fail(f"--env-id {args.env_id}: its ROM is missing or damaged ({error}); see ALE_ROMS_DIR")


class Batch(NamedTuple):
    """Sampled transitions, with the names that `ReplayBuffer` gives them."""

    obs: torch.Tensor
    action: torch.Tensor
    reward: torch.Tensor
    """discounted and summed over the n steps, or the fewer that an episode's end left"""
    next_obs: torch.Tensor
    terminated: torch.Tensor
    discount: torch.Tensor
    """gamma to the number of rewards summed"""


class DenseReplayBuffer:
    """Plain arrays of stacks, which draw what `ReplayBuffer` draws from the same generator.

    Both number the transitions that may be sampled lane by lane, within a lane by their slots in
    the ring, and draw `rng.integers(how many there are, size=batch_size)`.
    """

    def __init__(self, args: Args, device: torch.device, rng: np.random.Generator):
        rows = (args.buffer_size // args.num_envs, args.num_envs)  # a slot for each step
        self.obs = np.zeros((*rows, *STACK), dtype=np.uint8)
        self.next_obs = np.zeros((*rows, *STACK), dtype=np.uint8)
        self.actions = np.zeros(rows, dtype=np.int64)
        self.rewards = np.zeros(rows, dtype=np.float32)
        self.terminations = np.zeros(rows, dtype=bool)
        self.truncations = np.zeros(rows, dtype=bool)
        self.n_step, self.gamma = args.n_step, args.gamma
        self.device, self.rng = device, rng
        self.added = 0  # steps; step t lies in slot t % len(self.obs)

    def __len__(self) -> int:
        slots, num_envs = self.actions.shape
        return min(self.added, slots) * num_envs

    @property
    def nbytes_stored(self) -> int:
        """Bytes of the slots written so far: the system gives no memory to the others."""
        return sum(array[: self.added].nbytes for array in self._arrays().values())

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    def add(self, obs, action, reward, terminated, truncated, next_obs, info) -> None:
        slot = self.added % len(self.obs)
        self.obs[slot] = obs
        self.next_obs[slot] = next_obs
        ended = terminated | truncated
        if ended.any():
            self.next_obs[slot, ended] = info["final_obs"][ended]
        self.actions[slot] = action
        self.rewards[slot] = reward
        self.terminations[slot] = terminated
        self.truncations[slot] = truncated
        self.added += 1

    def cut(self) -> None:
        """Cut the episodes that are running: what is added next comes from new ones."""
        newest = (self.added - 1) % len(self.obs)
        self.truncations[newest] |= ~self.terminations[newest]

    def sample(self, batch_size: int) -> Batch:
        slots, num_envs = self.actions.shape
        held = min(self.added, slots)
        # Of the newest n - 1 steps only those can be drawn whose episode has ended since.
        newest = np.arange(self.added - min(self.n_step - 1, held), self.added) % slots
        ended = self.terminations[newest] | self.truncations[newest]
        late, lanes = np.nonzero(~np.logical_or.accumulate(ended[::-1])[::-1])
        withheld = np.sort(lanes * held + newest[late])
        starts = self.rng.integers(num_envs * held - len(withheld), size=batch_size)
        for number in withheld:  # from the lowest on: what comes after it moves up by one
            starts[starts >= number] += 1
        lanes, first = np.divmod(starts, held)

        rewards = np.zeros(batch_size)
        steps = np.zeros(batch_size, dtype=np.int64)
        going_on = np.ones(batch_size, dtype=bool)
        for k in range(self.n_step):
            step = (first + k) % slots, lanes
            rewards += np.where(going_on, self.gamma**k * self.rewards[step].astype(float), 0)
            steps += going_on
            going_on &= ~(self.terminations[step] | self.truncations[step])
        last = (first + steps - 1) % slots
        discounts = np.array([self.gamma**k for k in range(self.n_step + 1)], dtype=np.float32)
        arrays = (
            self.obs[first, lanes],
            self.actions[first, lanes],
            rewards.astype(np.float32),
            self.next_obs[last, lanes],
            self.terminations[last, lanes],
            discounts[steps],
        )
        return Batch(*(torch.from_numpy(array).to(self.device) for array in arrays))

    def checkpoint(self, path: Path) -> int:
        """Write everything, of the arrays the slots written so far; the last two files stay."""
        path.mkdir(exist_ok=True)
        written = {name: array[: self.added] for name, array in self._arrays().items()}
        numbers = {"slots": len(self.obs), "n_step": self.n_step, "gamma": self.gamma}
        rng = json.dumps(self.rng.bit_generator.state)
        np.savez(path / "unfinished.npz", rng=rng, added=self.added, **numbers, **written)
        os.replace(path / "unfinished.npz", path / f"{self.added}.npz")
        for old in sorted(path.glob("[0-9]*.npz"), key=lambda file: int(file.stem))[:-2]:
            old.unlink()
        return self.added

    @classmethod
    def restore(cls, path: Path, at: int) -> DenseReplayBuffer:
        """Be what a checkpoint was written of; whoever calls this says where to compute."""
        buffer = object.__new__(cls)
        with np.load(path / f"{at}.npz", allow_pickle=False) as file:
            held = dict(file)
        slots, buffer.added = int(held.pop("slots")), int(held.pop("added"))
        buffer.n_step, buffer.gamma = int(held.pop("n_step")), float(held.pop("gamma"))
        buffer.rng = np.random.default_rng()
        buffer.rng.bit_generator.state = json.loads(str(held.pop("rng")))
        for name, written in held.items():
            array = np.zeros((slots, *written.shape[1:]), dtype=written.dtype)
            array[: len(written)] = written
            setattr(buffer, name, array)
        return buffer


class Storage(NamedTuple):
    """What holds the transitions, and what the environments need around them for it."""

    envs: gym.vector.VectorEnv
    """the environments, which `indexed` wraps"""
    buffer: ReplayBuffer | DenseReplayBuffer
    to_stacks: Callable[[np.ndarray], np.ndarray]
    """from what the environments return to the pixels of stacks"""


def make_storage(
    args: Args,
    envs: gym.vector.VectorEnv,
    device: torch.device,
    restored: ReplayBuffer | DenseReplayBuffer | None = None,
) -> Storage:
    """Build the replay buffer, or put one from a checkpoint in its place."""
    # A generator of its own: what is drawn does not hang on how often the agent explores.
    rng = np.random.default_rng([args.seed, 1])
    if restored is not None:
        restored.device = device
        restored.cut()
    if args.obs_storage == "dense":
        buffer = make_dense_buffer(args, device, rng) if restored is None else restored
        return Storage(envs, buffer, lambda obs: obs)

    # Imported here, so that a dense run has none of it in memory.
    try:
        from compressarray import DiffFrameArray, ReplayBuffer
        from wrappers.vector import IndexedFrameStack
    except ModuleNotFoundError as error:
        fail(f"--obs-storage {args.obs_storage}: {error}; in the repository: pip install -e .")

    # One frame through the codec: numcodecs has some that want other data or lose bits.
    frame = (np.arange(84 * 84) % 251).astype(np.uint8).reshape(STACK[1:])
    try:
        probe = DiffFrameArray((4, *STACK[1:]), codec=args.codec)
        stored = probe.gather(probe.append(frame))
    except Exception as error:
        fail(f"--codec {args.codec}: {error}")
    if not np.array_equal(stored, frame):
        fail(f"--codec {args.codec}: it is not lossless")

    frames, to_stacks = None, lambda obs: obs
    if args.obs_storage == "indexed":
        envs = IndexedFrameStack(
            envs,
            stack_size=STACK[0],
            # An episode that ends costs a lane two frames in one step.
            capacity=2 * (args.buffer_size // args.num_envs) + STACK[0],
            padding_type="zero",
            codec=args.codec,
            squeeze=True,
        )
        if restored is not None:
            envs.go_on_from(restored.frames)
        frames, to_stacks = envs.frames, envs.frames.gather
    buffer = restored
    if buffer is None:
        buffer = ReplayBuffer(
            args.buffer_size,
            envs.single_observation_space,
            envs.single_action_space,
            args.num_envs,
            frames=frames,
            codec=args.codec,
            n_step=args.n_step,
            gamma=args.gamma,
            device=device,
            seed=rng,
        )
    return Storage(envs, buffer, to_stacks)


def make_dense_buffer(
    args: Args, device: torch.device, rng: np.random.Generator
) -> DenseReplayBuffer:
    """Allocate arrays of stacks, or say how much memory they would need."""
    needed = 2 * STACK_BYTES * args.buffer_size
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # not on Windows
        memory = needed
    try:
        if needed > memory:
            raise MemoryError
        return DenseReplayBuffer(args, device, rng)
    except MemoryError:
        fail(
            f"--buffer-size {args.buffer_size}: dense stacks of that many transitions take "
            f"{needed / 1e9:,.1f} GB, more than this machine has; give a smaller --buffer-size or "
            "another --obs-storage than dense"
        )


class QNetwork(nn.Module):
    """Quantiles of the return of each action, (batch, n_quantiles, num_actions)."""

    def __init__(self, num_actions: int, n_quantiles: int):
        super().__init__()
        self.num_actions, self.n_quantiles = num_actions, n_quantiles
        self.network = nn.Sequential(
            nn.Conv2d(4, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 512),
            nn.ReLU(),
            nn.Linear(512, n_quantiles * num_actions),
        )

    def forward(self, stacks: torch.Tensor) -> torch.Tensor:
        # Stacks come as bytes, and become floats where the network is.
        return self.network(stacks / 255.0).view(-1, self.n_quantiles, self.num_actions)

    def greedy(self, stacks: torch.Tensor) -> torch.Tensor:
        return self(stacks).mean(dim=1).argmax(dim=1)


def linear_schedule(start_e: float, end_e: float, duration: float, t: int) -> float:
    fraction = min(t / duration, 1.0) if duration else 1.0
    return start_e + fraction * (end_e - start_e)


def quantile_huber_loss(quantiles: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Equation 10 of the paper with kappa 1: sum over quantiles, mean over targets and batch.

    `quantiles` are theta_i, (batch, N), `targets` y_j, (batch, M).
    """
    N = quantiles.shape[1]
    tau = (torch.arange(N, device=quantiles.device) + 0.5) / N
    u = targets[:, None, :] - quantiles[:, :, None]  # (batch, i, j)
    # |tau_i - 1[u_ij < 0]| * H(u_ij), H(u) = u^2 / 2 if |u| <= 1 else |u| - 1/2
    huber = F.huber_loss(u, torch.zeros_like(u), reduction="none", delta=1.0)
    rho = (tau[:, None] - (u.detach() < 0).float()).abs() * huber
    return rho.sum(dim=1).mean()


def due(every: int, global_step: int, args: Args) -> int:
    """How often in this step of all lanes something is to happen that happens `every` steps."""
    return global_step // every - (global_step - args.num_envs) // every


def of_actions(quantiles: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """The quantiles of one action each: (batch, N, num_actions) to (batch, N)."""
    return quantiles[torch.arange(len(quantiles), device=quantiles.device), :, actions]


def update_network(
    q_network, target_network, optimizer, batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take one gradient step; returns the loss and the Q-values of the actions taken."""
    with torch.no_grad():
        next_quantiles = target_network(batch.next_obs)
        best_actions = next_quantiles.mean(dim=1).argmax(dim=1)
        bootstrap = batch.discount * (1 - batch.terminated.float())
        targets = batch.reward[:, None] + bootstrap[:, None] * of_actions(
            next_quantiles, best_actions
        )
    quantiles = of_actions(q_network(batch.obs), batch.action)
    loss = quantile_huber_loss(quantiles, targets)

    # optimize the model
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach(), quantiles.detach().mean(dim=1)


def get_random_states(rng: np.random.Generator) -> dict:
    return {
        "python": random.getstate(),
        "numpy": rng.bit_generator.state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(rng: np.random.Generator, states: dict) -> None:
    random.setstate(states["python"])
    rng.bit_generator.state = states["numpy"]
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def restore_replay(args: Args, path: Path, at: int):
    if args.obs_storage == "dense":
        return DenseReplayBuffer.restore(path, at)
    from compressarray import ReplayBuffer

    return ReplayBuffer.restore(path, at, device=None)


CHECKPOINT = {
    *("args", "q_network", "target_network", "optimizer", "random_states", "global_step"),
    *("history", "replay"),
}


def save_checkpoint(path, args, q_network, target_network, optimizer, rng, buffer, global_step,
                    history):  # fmt: skip
    """Write everything that going on needs; a crash leaves the checkpoint before.

    The replay buffer, its own generator included, keeps its last two checkpoints in a directory
    beside: the old pair is whole until the new one is.
    """
    checkpoint = {
        "args": asdict(args),
        "q_network": q_network.state_dict(),
        "target_network": target_network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random_states": get_random_states(rng),
        "global_step": global_step,
        "history": history,
        "replay": buffer.checkpoint(path.with_name("replay")),
    }
    unfinished = path.with_suffix(".unfinished")
    torch.save(checkpoint, unfinished)
    os.replace(unfinished, path)


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
        number = checkpoint["replay"]
        checkpoint["replay"] = restore_replay(args, Path(args.resume).with_name("replay"), number)
    except Exception as error:
        fail(f"--resume {args.resume}: its replay buffer cannot be read ({error})")
    return checkpoint


class VideoRecorder:
    """What the first lane's agent sees, as GIFs of episodes 0, 1, 8, 27, ... 1000, 2000, ..."""

    def __init__(self, folder: Path):
        self.folder, self.episode, self.frames = folder, 0, []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, frame: np.ndarray) -> None:
        k = self.episode
        if k % 1000 == 0 or (k < 1000 and round(k ** (1 / 3)) ** 3 == k):
            self.frames.append(zlib.compress(frame.tobytes(), 1))

    def end_episode(self) -> None:
        if self.frames:
            from PIL import Image

            images = (
                Image.fromarray(np.frombuffer(zlib.decompress(f), np.uint8).reshape(STACK[1:]))
                for f in self.frames
            )
            path = self.folder / f"rl-video-episode-{self.episode}.gif"
            # 15 agent steps are a second of the game.
            next(images).save(path, save_all=True, append_images=images, duration=67, loop=0)
        self.episode, self.frames = self.episode + 1, []


def choose_actions(q_network, obs, to_stacks, epsilon, rng, device) -> np.ndarray:
    """Epsilon-greedy, each lane for itself; lanes that explore need no pixels."""
    explores = rng.random(len(obs)) < epsilon
    actions = rng.integers(q_network.num_actions, size=len(obs))
    if not explores.all():
        stacks = torch.from_numpy(to_stacks(obs[~explores])).to(device)
        with torch.no_grad():
            actions[~explores] = q_network.greedy(stacks).cpu().numpy()
    return actions


def evaluate(q_network: QNetwork, args: Args, device: torch.device) -> list[float]:
    """Let a network play; returns the episodic returns of `args.eval_episodes` games."""
    # Each lane has its share to play: the first games to end would be the short ones.
    num_envs = min(args.eval_episodes, 8)
    share = np.full(num_envs, args.eval_episodes // num_envs)
    share[: args.eval_episodes % num_envs] += 1
    envs = LearnerSignals(make_env(args, num_envs))
    rng = np.random.default_rng(args.seed)  # its own: learning goes on as if nobody had looked
    episodic_returns: list[float] = []
    obs, _ = envs.reset(seed=args.seed)
    while share.any():
        actions = choose_actions(q_network, obs, lambda x: x, args.eval_epsilon, rng, device)
        obs, _, _, _, infos = envs.step(actions)
        for lane in np.flatnonzero(infos["_episode"] & (share > 0)):
            share[lane] -= 1
            episodic_returns.append(float(infos["episode"]["r"][lane]))
    envs.close()
    return episodic_returns


def where(args: Args) -> str:
    return "dense" if args.obs_storage == "dense" else f"{args.obs_storage} ({args.codec})"


def draw(path: Path, args: Args, history: dict) -> None:
    """The learning curve and the memory over time, as one picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    figure.suptitle(f"QR-DQN, {args.env_id}, seed {args.seed}, observations {where(args)}")
    steps, returns = np.array(history["episodes"], dtype=float).reshape(-1, 4).T[:2]
    left.plot(steps, returns, ".", ms=3, alpha=0.4, label="one game")
    lately = [returns[max(0, i - 19) : i + 1].mean() for i in range(len(returns))]
    left.plot(steps, lately, label="mean of the last 20")
    if history["evaluations"]:
        label = f"mean of {args.eval_episodes} evaluations"
        left.plot(*np.array(history["evaluations"], dtype=float).T, "o-", ms=3, label=label)
    left.legend()
    left.set(xlabel="agent steps", ylabel="episodic return")
    steps, stored, transitions = np.array(history["memory"], dtype=float).reshape(-1, 3).T
    right.plot(steps, stored / 1e6, label=f"this run, {where(args)}")
    right.plot(steps, transitions * STACK_BYTES / 1e6, "--", color="gray", label="obs as stacks")
    right.plot(
        steps, 2 * transitions * STACK_BYTES / 1e6, ":", color="gray", label="obs and next_obs"
    )
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


def table(args: Args, sps: float, stored_bytes: int, transitions: int) -> str:
    each = stored_bytes / transitions
    rows = [
        ("observations", where(args)),
        ("steps per second (SPS)", f"{sps:,.0f}"),
        ("bytes per transition", f"{each:,.1f}"),
        ("times smaller than stacks", f"{STACK_BYTES / each:,.2f} ({STACK_BYTES:,} B each)"),
        (
            "than obs and next_obs",
            f"{2 * STACK_BYTES / each:,.2f} ({2 * STACK_BYTES:,} B each)",
        ),
        ("replay buffer", f"{stored_bytes / 1e6:,.3f} MB for {transitions:,} transitions"),
        ("peak RSS of the process", peak_rss()),
    ]
    return "\n".join(f"{name:<32}  {value}" for name, value in rows)


def train(args: Args) -> dict:
    """Train, log and save; returns what a test or a benchmark may ask about."""
    run_name = f"{args.env_id.replace('/', '-')}__{args.exp_name}__{args.seed}__{int(time.time())}"
    if (Path("runs") / run_name).exists():  # another run began within the same second
        run_name += f"_{time.time_ns() % 1_000_000_000:09d}"
    run_dir = Path("runs") / run_name
    checkpoint = load_checkpoint(args) if args.resume else None

    # TRY NOT TO MODIFY: seeding
    random.seed(args.seed)
    rng = np.random.default_rng(args.seed)  # explores
    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = args.torch_deterministic
    if args.torch_threads:
        torch.set_num_threads(args.torch_threads)
    device = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu")

    # env and replay buffer setup
    stack_num = 1 if args.obs_storage == "indexed" else STACK[0]
    games = make_env(args, args.num_envs, stack_num)
    counter = None
    if args.count_changed_pixels:
        games = counter = ChangedPixels(games, args.buffer_size // args.num_envs, STACK[0])
    storage = make_storage(
        args,
        games,
        device,
        restored=checkpoint["replay"] if checkpoint is not None else None,
    )
    rb, to_stacks = storage.buffer, storage.to_stacks
    envs = LearnerSignals(storage.envs)

    q_network = QNetwork(envs.single_action_space.n, args.n_quantiles).to(device)
    target_network = QNetwork(envs.single_action_space.n, args.n_quantiles).to(device)
    target_network.load_state_dict(q_network.state_dict())
    optimizer = optim.Adam(
        q_network.parameters(), lr=args.learning_rate, eps=0.01 / args.batch_size
    )

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
            name=run_name,
            save_code=True,
        )
    writer = SummaryWriter(str(run_dir))
    settings = "\n".join(f"|{key}|{value}|" for key, value in vars(args).items())
    writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{settings}")
    video = VideoRecorder(Path("videos") / run_name) if args.capture_video else None

    # start the game, or go on from a checkpoint with new games
    global_step = 0
    history: dict[str, Any] = {"episodes": [], "evaluations": [], "memory": []}
    options = None
    if checkpoint is not None:
        q_network.load_state_dict(checkpoint["q_network"])
        target_network.load_state_dict(checkpoint["target_network"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        set_random_states(rng, checkpoint["random_states"])
        global_step = checkpoint["global_step"]
        history |= checkpoint["history"]
        if counter is not None and "changed_pixels" in history:
            counter.restore(history["changed_pixels"])
        # A plain reset with a seed would make the wrapper forget the frames that the buffer holds.
        options = {"reset_mask": np.ones(args.num_envs, dtype=bool)}
    # One run's lanes never share a seed: global_step grows by at least as many as there are lanes.
    seed = (args.seed + global_step) % (2**31 - args.num_envs)
    obs, _ = envs.reset(seed=seed, options=options)

    def evaluate_now() -> float:
        """Evaluate and log; returns the seconds that it took, which are not training's."""
        start = time.perf_counter()
        evaluation = float(np.mean(evaluate(q_network, args, device)))
        history["evaluations"].append((global_step, evaluation))
        writer.add_scalar("charts/evaluation_return", evaluation, global_step)
        return time.perf_counter() - start

    if args.eval_every and global_step == 0:
        evaluate_now()
    bar = tqdm(
        total=args.total_timesteps,
        initial=global_step,
        unit="step",
        disable=args.quiet,
        mininterval=0.5 if sys.stderr.isatty() else 10,
    )
    first_step, start_time = global_step, time.time()
    stop_time = start_time + 60 * args.stop_after_minutes if args.stop_after_minutes else np.inf
    interval_start, interval_sps = (global_step, time.perf_counter()), []
    losses: tuple[torch.Tensor, torch.Tensor] | None = None
    stopping = False
    while not stopping:
        global_step += args.num_envs

        # ALGO LOGIC: put action logic here
        epsilon = linear_schedule(
            args.start_e, args.end_e, args.exploration_fraction * args.total_timesteps, global_step
        )
        actions = choose_actions(
            q_network,
            obs,
            to_stacks,
            epsilon if global_step > args.learning_starts else 1.0,
            rng,
            device,
        )
        if video is not None:
            video.add(to_stacks(obs[:1])[0, -1])

        # TRY NOT TO MODIFY: execute the game and log data.
        next_obs, rewards, terminations, truncations, infos = envs.step(actions)
        for lane in np.flatnonzero(infos["_episode"]):
            episodic_return = float(infos["episode"]["r"][lane])
            episodic_length = int(infos["episode"]["l"][lane])
            history["episodes"].append((global_step, episodic_return, episodic_length, int(lane)))
            writer.add_scalar("charts/episodic_return", episodic_return, global_step)
            writer.add_scalar("charts/episodic_length", episodic_length, global_step)
            if video is not None and lane == 0:
                video.end_episode()

        # TRY NOT TO MODIFY: save data to replay buffer; `infos` has what ended an episode
        rb.add(obs, actions, rewards, terminations, truncations, next_obs, infos)
        obs = next_obs

        # ALGO LOGIC: training.
        if global_step > args.learning_starts:
            for _ in range(due(args.train_frequency, global_step, args)):
                losses = update_network(
                    q_network, target_network, optimizer, rb.sample(args.batch_size)
                )
        if due(args.target_network_frequency, global_step, args):
            target_network.load_state_dict(q_network.state_dict())

        bar.update(args.num_envs)
        stopping = global_step >= args.total_timesteps or time.time() > stop_time
        if due(LOG_EVERY, global_step, args) or stopping:
            now = time.perf_counter()
            interval_sps.append((global_step - interval_start[0]) / (now - interval_start[1]))
            interval_start = global_step, now
            sps = (global_step - first_step) / (time.time() - start_time)
            nbytes_stored = rb.nbytes_stored
            history["memory"].append((global_step, nbytes_stored, len(rb)))
            if losses is not None:
                writer.add_scalar("losses/td_loss", losses[0].item(), global_step)
                writer.add_scalar("losses/q_values", losses[1].mean().item(), global_step)
            writer.add_scalar("charts/epsilon", epsilon, global_step)
            writer.add_scalar("charts/SPS", int(sps), global_step)
            writer.add_scalar("storage/nbytes_stored", nbytes_stored, global_step)
            ratio = len(rb) * STACK_BYTES / nbytes_stored
            writer.add_scalar("storage/compression_ratio", ratio, global_step)
            if counter is not None:
                writer.add_scalar("storage/changed_pixels", counter.now, global_step)
            lately = [episode[1] for episode in history["episodes"][-20:]]
            bar.set_postfix_str(
                f"SPS {sps:.0f}, return {np.mean(lately) if lately else np.nan:.1f}, "
                f"buffer {nbytes_stored / 1e6:.2f} MB",
                refresh=False,
            )
        if args.eval_every and due(args.eval_every, global_step, args):
            evaluation_s = evaluate_now()
            start_time += evaluation_s
            interval_start = interval_start[0], interval_start[1] + evaluation_s
        if stopping or (args.checkpoint_every and due(args.checkpoint_every, global_step, args)):
            if counter is not None:
                history["changed_pixels"] = counter.state()
            save_checkpoint(
                run_dir / "checkpoint.pt",
                args,
                q_network,
                target_network,
                optimizer,
                rng,
                rb,
                global_step,
                history,
            )
    bar.close()
    envs.close()
    if video is not None:
        video.end_episode()

    eval_returns = None
    if args.save_model:
        model_path = run_dir / f"{args.exp_name}.cleanrl_model"
        torch.save(q_network.state_dict(), model_path)
        tqdm.write(f"model saved to {model_path}")
        q_network.load_state_dict(torch.load(model_path, map_location=device, weights_only=True))
        eval_returns = evaluate(q_network, args, device)
        for number, episodic_return in enumerate(eval_returns):
            tqdm.write(f"eval_episode={number}, episodic_return={episodic_return}")
            writer.add_scalar("eval/episodic_return", episodic_return, number)
    if not args.quiet:
        draw(run_dir / "training.png", args, history)
        print(f"{table(args, sps, nbytes_stored, len(rb))}\npicture, logs, checkpoint: {run_dir}/")
    writer.close()
    return {
        "run_dir": run_dir,
        "q_network": q_network,
        "target_network": target_network,
        "optimizer": optimizer,
        "history": history,
        "buffer": rb,
        "nbytes_stored": nbytes_stored,
        "interval_sps": interval_sps,
        "eval_returns": eval_returns,
    }


def main(argv: list[str] | None = None) -> None:
    try:
        train(parse_args(argv))
    except KeyboardInterrupt:
        sys.exit("qrdqn_atari.py: interrupted; --resume goes on from a checkpoint, if there is one")


if __name__ == "__main__":
    main()
