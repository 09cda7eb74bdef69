"""MeDQN(U) on small observations: DQN that draws states to remember by, and stores almost none.

Paper: Lan et al., "Memory-efficient Reinforcement Learning with Value-based Knowledge
Consolidation", arXiv 2205.10868. Algorithm and settings are those of its published code
(`qlan3/Explorer: agents/MeDQN_Uniform.py, configs/MERL_*.json`): MountainCar, Acrobot, and
MinAtar's games where the `minatar` package is installed. Layout and flags follow `medqn_atari.py`.

Where MeDQN(R) consolidates on states from a small replay buffer, MeDQN(U) keeps the newest 32
transitions and draws states uniformly between the smallest and largest value seen so far in each
dimension; to whole numbers where all values are whole, as in MinAtar. Pixels are not to be had this
way: for those see `medqn_atari.py`. `--algorithm dqn` is DQN with a replay buffer.

Published is a grid of settings for each task (learning rate, updates per step, lambda's end,
gradient steps per update), and not which row of it was best: the defaults are one row of each.

Departures: an episode that is truncated is bootstrapped from its last observation (published: it
counts as terminated); weights are torch's own initialisation.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import sys
import time
from dataclasses import asdict, dataclass
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

LOG_EVERY = 250  # agent steps


@dataclass
class Args:
    exp_name: str = os.path.basename(__file__)[: -len(".py")]
    """the name of this experiment"""
    seed: int = 1
    """seed of the experiment"""
    torch_deterministic: bool = True
    """if toggled, `torch.backends.cudnn.deterministic=True`"""
    torch_threads: int = 1
    """threads torch computes with on the CPU (0: torch's own choice)"""
    cuda: bool = False
    """if toggled, a GPU is used where there is one"""
    track: bool = False
    """if toggled, this experiment is tracked with Weights and Biases"""
    wandb_project_name: str = "compressarray"
    """the wandb's project name"""
    wandb_entity: str | None = None
    """the entity (team) of wandb's project"""
    save_model: bool = False
    """whether to save the model (`runs/{run_name}/{exp_name}.cleanrl_model`)"""
    eval_every: int = 0
    """steps between evaluations (0: none)"""
    eval_episodes: int = 5
    """episodes of an evaluation"""
    eval_epsilon: float = 0
    """the epsilon of evaluations"""
    checkpoint_every: int = 50_000
    """steps between checkpoints (`runs/{run_name}/checkpoint.pt`; 0: only one at the end)"""
    stop_after_minutes: float = 0
    """write a checkpoint and stop after so many minutes, to be resumed (0: train to the end)"""
    resume: str | None = None
    """path of a checkpoint to go on from"""
    quiet: bool = False
    """if toggled, no progress bar, no table and no picture"""

    # Algorithm specific arguments (None: as published for the algorithm and the task)
    algorithm: Literal["medqn", "dqn"] = "medqn"
    """MeDQN(U), or the DQN that it is compared with"""
    env_id: str = "MountainCar-v0"
    """the id of the environment: vectors, or MinAtar/<Game>-v1"""
    total_timesteps: int | None = None
    """total timesteps of the experiment (100,000, MinAtar 5,000,000)"""
    max_episode_steps: int | None = None
    """steps after which an episode is truncated (MountainCar 1,000, else the task's own limit)"""
    learning_rate: float | None = None
    """the learning rate of the optimizer (1e-3, MinAtar 3e-4)"""
    buffer_size: int | None = None
    """the newest transitions that are kept (32, with DQN 10,000, on MinAtar 100,000)"""
    gamma: float = 0.99
    """the discount factor gamma"""
    target_network_frequency: int | None = None
    """the timesteps it takes to update the target network (100, MinAtar 300 or with DQN 1,000)"""
    batch_size: int = 32
    """transitions, and states to consolidate, of a gradient step"""
    start_e: float = 1
    """the starting epsilon for exploration"""
    end_e: float | None = None
    """the ending epsilon for exploration (0.01, MinAtar 0.1)"""
    exploration_steps: int | None = None
    """timesteps it takes from start-e to go to end-e (1,000, MinAtar 100,000)"""
    learning_starts: int | None = None
    """timestep to start learning; until then actions are random (1,000, MinAtar 5,000)"""
    train_frequency: int | None = None
    """timesteps per update (1, MeDQN on MinAtar 4)"""
    max_grad_norm: float | None = None
    """the maximum norm of the gradient (5, MinAtar none: 0)"""
    consod_epochs: int | None = None
    """gradient steps per update, each with new states to consolidate (4, MinAtar 2, with DQN 1)"""
    consod_start: float | None = None
    """the weight lambda of the consolidation at the start (0.01, with DQN 0)"""
    consod_end: float | None = None
    """the weight lambda at the end of `total-timesteps` (2, with DQN 0)"""


# Learning depends on all but these: with the others changed a checkpoint is not gone on from.
MAY_CHANGE = {
    *("exp_name", "torch_threads", "cuda", "track", "wandb_project_name", "wandb_entity"),
    *("save_model", "eval_every", "eval_episodes", "eval_epsilon", "checkpoint_every"),
    *("stop_after_minutes", "resume", "quiet", "total_timesteps"),
}


def fail(message: object) -> None:
    """End the script with one line on stderr and a non-zero exit status."""
    sys.exit(f"medqn_uniform.py: error: {' '.join(str(message).split())}")


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
    """The settings that depend on task and algorithm; any task but MinAtar's counts as control."""
    minatar, dqn = args.env_id.startswith("MinAtar/"), args.algorithm == "dqn"
    task: dict[str, Any] = {
        "total_timesteps": 100_000, "learning_rate": 1e-3, "end_e": 0.01, "max_grad_norm": 5,
        "exploration_steps": 1000, "learning_starts": 1000, "train_frequency": 1,
        "target_network_frequency": 100, "buffer_size": 10_000 if dqn else 32,
        "consod_epochs": 1 if dqn else 4,
    }  # fmt: skip
    if minatar:
        task |= {
            "total_timesteps": 5_000_000, "learning_rate": 3e-4, "end_e": 0.1, "max_grad_norm": 0,
            "exploration_steps": 100_000, "learning_starts": 5000,
            "train_frequency": 1 if dqn else 4,
            "target_network_frequency": 1000 if dqn else 300,
            "buffer_size": 100_000 if dqn else 32, "consod_epochs": 1 if dqn else 2,
        }  # fmt: skip
    if args.env_id.startswith("MountainCar-"):
        task["max_episode_steps"] = 1000
    return task | {"consod_start": 0 if dqn else 0.01, "consod_end": 0 if dqn else 2}


def check_args(args: Args) -> Args:
    """Refuse settings that cannot work and fill in what follows from the others."""
    for name, value in published(args).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    at_least = {
        "batch_size": 1, "buffer_size": 1, "train_frequency": 1, "target_network_frequency": 1,
        "total_timesteps": 1, "eval_episodes": 1, "eval_every": 0, "eval_epsilon": 0,
        "checkpoint_every": 0, "stop_after_minutes": 0, "torch_threads": 0, "seed": 0,
        "learning_rate": 0, "gamma": 0, "start_e": 0, "end_e": 0, "exploration_steps": 0,
        "learning_starts": 1, "max_grad_norm": 0, "consod_epochs": 1, "consod_start": 0,
        "consod_end": 0,
    }  # fmt: skip
    if args.max_episode_steps is not None:
        at_least["max_episode_steps"] = 1
    for name, least in at_least.items():
        if not getattr(args, name) >= least:  # NaN is not either
            flag = "--" + name.replace("_", "-")
            fail(f"{flag} {getattr(args, name)} must be at least {least}")
    for name in ("gamma", "start_e", "end_e", "eval_epsilon"):
        if getattr(args, name) > 1:
            fail(f"--{name.replace('_', '-')} {getattr(args, name)} must be at most 1")
    for name in ("consod_epochs", "consod_start", "consod_end"):
        value = getattr(args, name)
        if args.algorithm == "dqn" and value != published(args)[name]:
            fail(
                f"--{name.replace('_', '-')} {value} is MeDQN's: with --algorithm dqn it is "
                f"{published(args)[name]}; give --algorithm medqn, or leave it out"
            )
    if args.seed >= 2**31:
        fail(f"--seed {args.seed} must be below {2**31}")
    return args


def make_env(args: Args) -> gym.Env:
    """Build the task, its observations as float32, or end with a line that says what is wrong."""
    if args.env_id.startswith("MinAtar/"):
        try:
            from minatar.gym import register_envs
        except ImportError:
            fail(f"--env-id {args.env_id} needs the minatar package: pip install minatar")
        if args.env_id not in gym.registry:
            register_envs()
    try:
        env = gym.make(args.env_id, max_episode_steps=args.max_episode_steps)
    except gym.error.Error as error:
        fail(f"--env-id {args.env_id}: {error}")
    if not isinstance(env.action_space, gym.spaces.Discrete):
        fail(f"--env-id {args.env_id}: its actions are {env.action_space}, and DQN's are discrete")
    return gym.wrappers.DtypeObservation(env, np.float32)


class Batch(NamedTuple):
    """Transitions."""

    obs: torch.Tensor
    action: torch.Tensor
    reward: torch.Tensor
    next_obs: torch.Tensor
    terminated: torch.Tensor


class NewestTransitions:
    """A ring of the newest transitions: all of them serve as a batch, or some are drawn."""

    def __init__(self, capacity: int, shape: tuple[int, ...], device: torch.device):
        self.arrays = Batch(
            torch.zeros(capacity, *shape),
            torch.zeros(capacity, dtype=torch.int64),
            torch.zeros(capacity),
            torch.zeros(capacity, *shape),
            torch.zeros(capacity),
        )
        self.capacity, self.device, self.added = capacity, device, 0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    @property
    def nbytes_stored(self) -> int:
        return sum(array[: len(self)].nbytes for array in self.arrays)

    def add(self, obs, action, reward, next_obs, terminated) -> None:
        slot = self.added % self.capacity
        self.arrays.obs[slot] = torch.from_numpy(obs)
        self.arrays.action[slot] = int(action)
        self.arrays.reward[slot] = float(reward)
        self.arrays.next_obs[slot] = torch.from_numpy(next_obs)
        self.arrays.terminated[slot] = float(terminated)
        self.added += 1

    def batch(self, batch_size: int, rng: np.random.Generator) -> Batch:
        """All transitions where a batch holds them all, else `batch_size` that are drawn."""
        if len(self) <= batch_size:
            chosen = slice(len(self))
        else:
            chosen = torch.from_numpy(rng.integers(len(self), size=batch_size))
        return Batch(*(array[chosen].to(self.device) for array in self.arrays))


class StateSampler:
    """States drawn uniformly between the bounds of those seen so far, each dimension for itself."""

    def __init__(self, shape: tuple[int, ...]):
        self.low, self.high = np.full(shape, np.inf), np.full(shape, -np.inf)
        self.whole = True
        """whether every value seen was a whole number: then such are drawn"""

    def see(self, obs: np.ndarray) -> None:
        np.minimum(self.low, obs, out=self.low)
        np.maximum(self.high, obs, out=self.high)
        self.whole = self.whole and bool((obs == np.rint(obs)).all())

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """(n, *shape) float32."""
        size = (n, *self.low.shape)
        if self.whole:
            low, high = self.low.astype(np.int64), self.high.astype(np.int64)
            return rng.integers(low, high, size, endpoint=True).astype(np.float32)
        return rng.uniform(self.low, self.high, size).astype(np.float32)


class QNetwork(nn.Module):
    """Values of all actions, (batch, num_actions); a convolution first where there are images."""

    def __init__(self, shape: tuple[int, ...], num_actions: int):
        super().__init__()
        self.num_actions = num_actions
        if len(shape) == 3:  # MinAtar: (height, width, channels)
            height, width, channels = shape
            self.network = nn.Sequential(
                nn.Conv2d(channels, 16, 3),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(16 * (height - 2) * (width - 2), 128),
                nn.ReLU(),
                nn.Linear(128, num_actions),
            )
        else:
            self.network = nn.Sequential(
                nn.Flatten(),
                nn.Linear(int(np.prod(shape)), 32),
                nn.ReLU(),
                nn.Linear(32, 32),
                nn.ReLU(),
                nn.Linear(32, num_actions),
            )

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.network(obs.movedim(-1, 1) if obs.ndim == 4 else obs)

    def greedy(self, obs: torch.Tensor) -> torch.Tensor:
        return self(obs).argmax(dim=1)


def make_optimizer(args: Args, q_network: nn.Module) -> optim.Optimizer:
    if args.env_id.startswith("MinAtar/"):
        return optim.RMSprop(
            q_network.parameters(), lr=args.learning_rate, alpha=0.95, eps=0.01, centered=True
        )
    return optim.Adam(q_network.parameters(), lr=args.learning_rate)


def td_loss_of(args: Args, q_values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if args.env_id.startswith("MinAtar/"):
        return F.smooth_l1_loss(q_values, targets)
    return F.mse_loss(q_values, targets)


def linear_schedule(start: float, end: float, duration: float, t: int) -> float:
    fraction = min(t / duration, 1.0) if duration else 1.0
    return start + fraction * (end - start)


def update_network(
    args, q_network, target_network, optimizer, memory, sampler, rng, weight
) -> dict[str, torch.Tensor]:
    """Take the gradient steps of one update; returns what to log.

    `weight` is lambda. One batch of transitions, whose targets are computed once, serves all steps,
    each with new states to consolidate. Where lambda is 0 none are drawn, and what is left is DQN.
    """
    batch = memory.batch(args.batch_size, rng)
    with torch.no_grad():
        bootstrap = args.gamma * (1 - batch.terminated)
        targets = batch.reward + bootstrap * target_network(batch.next_obs).max(dim=1).values
    for _ in range(args.consod_epochs):
        q_values = q_network(batch.obs).gather(1, batch.action[:, None]).squeeze(1)
        loss = td_loss = td_loss_of(args, q_values, targets)
        logs = {"td_loss": td_loss.detach(), "q_values": q_values.detach().mean()}
        if weight > 0:
            states = torch.from_numpy(sampler.sample(args.batch_size, rng)).to(batch.obs.device)
            with torch.no_grad():
                kept = target_network(states)
            consolidation_loss = F.mse_loss(q_network(states), kept)  # over all actions
            loss = td_loss + weight * consolidation_loss
            logs["consolidation_loss"] = consolidation_loss.detach()

        # optimize the model
        optimizer.zero_grad()
        loss.backward()
        if args.max_grad_norm:
            nn.utils.clip_grad_norm_(q_network.parameters(), args.max_grad_norm)
        optimizer.step()
    return logs


def choose_action(q_network, obs, epsilon, rng, device) -> int:
    """Epsilon-greedy."""
    explores = rng.random() < epsilon
    action = int(rng.integers(q_network.num_actions))
    if explores:
        return action
    with torch.no_grad():
        return int(q_network.greedy(torch.from_numpy(obs)[None].to(device)))


CHECKPOINT = {
    *("args", "q_network", "target_network", "optimizer", "random_states", "global_step"),
    *("history", "memory", "sampler"),
}


def save_checkpoint(path, args, q_network, target_network, optimizer, rng, draws, memory, sampler,
                    global_step, history):  # fmt: skip
    """Write everything that going on needs; a crash leaves the checkpoint before."""
    checkpoint = {
        "args": asdict(args),
        "q_network": q_network.state_dict(),
        "target_network": target_network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random_states": {"python": random.getstate(), "torch": torch.get_rng_state(),
                          "numpy": [rng.bit_generator.state, draws.bit_generator.state]},
        "global_step": global_step,
        "history": history,
        "memory": {"arrays": tuple(memory.arrays), "added": memory.added},
        "sampler": {"low": torch.from_numpy(sampler.low), "high": torch.from_numpy(sampler.high),
                    "whole": sampler.whole},
    }  # fmt: skip
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
    return checkpoint


def evaluate(q_network: QNetwork, args: Args, device: torch.device) -> list[float]:
    """Let a network play; returns the returns of `args.eval_episodes` episodes."""
    rng = np.random.default_rng(args.seed)  # its own: learning goes on as if nobody had looked
    returns = []
    with contextlib.closing(make_env(args)) as env:
        for episode in range(args.eval_episodes):
            obs, _ = env.reset(seed=(args.seed + episode) % 2**31)
            episodic_return, over = 0.0, False
            while not over:
                action = choose_action(q_network, obs, args.eval_epsilon, rng, device)
                obs, reward, terminated, truncated, _ = env.step(action)
                episodic_return += float(reward)
                over = terminated or truncated
            returns.append(episodic_return)
    return returns


def name_of(args: Args) -> str:
    return {"medqn": "MeDQN(U)", "dqn": "DQN"}[args.algorithm]


def draw(path: Path, args: Args, history: dict) -> None:
    """The learning curve, as a picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    figure.suptitle(f"{name_of(args)}, {args.env_id}, seed {args.seed}")
    steps, returns = np.array(history["episodes"], dtype=float).reshape(-1, 3).T[:2]
    axes.plot(steps, returns, ".", ms=3, alpha=0.4, label="one episode")
    lately = [returns[max(0, i - 19) : i + 1].mean() for i in range(len(returns))]
    axes.plot(steps, lately, label="mean of the last 20")
    axes.legend()
    axes.set(xlabel="agent steps", ylabel="episodic return")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def train(args: Args) -> dict:
    """Train, log and save; returns what a test or a benchmark may ask about."""
    run_name = f"{args.env_id.replace('/', '-')}__{args.exp_name}__{args.seed}__{int(time.time())}"
    if (Path("runs") / run_name).exists():  # another run began within the same second
        run_name += f"_{time.time_ns() % 1_000_000_000:09d}"
    run_dir = Path("runs") / run_name
    checkpoint = load_checkpoint(args) if args.resume else None

    # seeding
    random.seed(args.seed)
    rng = np.random.default_rng(args.seed)  # explores
    draws = np.random.default_rng([args.seed, 1])  # draws batches and states
    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = args.torch_deterministic
    if args.torch_threads:
        torch.set_num_threads(args.torch_threads)
    device = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu")

    # env and memory setup
    env = make_env(args)
    shape = env.observation_space.shape
    memory, sampler = NewestTransitions(args.buffer_size, shape, device), StateSampler(shape)
    q_network = QNetwork(shape, env.action_space.n).to(device)
    target_network = QNetwork(shape, env.action_space.n).to(device)
    target_network.load_state_dict(q_network.state_dict())
    optimizer = make_optimizer(args, q_network)

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

    # start the task, or go on from a checkpoint with a new episode
    global_step = 0
    history: dict[str, list] = {"episodes": [], "evaluations": [], "memory": []}
    if checkpoint is not None:
        q_network.load_state_dict(checkpoint["q_network"])
        target_network.load_state_dict(checkpoint["target_network"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        states = checkpoint["random_states"]
        random.setstate(states["python"])
        rng.bit_generator.state, draws.bit_generator.state = states["numpy"]
        torch.set_rng_state(states["torch"])
        memory.arrays = Batch(*checkpoint["memory"]["arrays"])
        memory.added = checkpoint["memory"]["added"]
        sampler.low, sampler.high = (checkpoint["sampler"][x].numpy() for x in ("low", "high"))
        sampler.whole = checkpoint["sampler"]["whole"]
        global_step, history = checkpoint["global_step"], checkpoint["history"]
    obs, _ = env.reset(seed=(args.seed + global_step) % 2**31)

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
    episodic_return, episodic_length = 0.0, 0
    losses: dict[str, torch.Tensor] = {}
    stopping = False
    while not stopping:
        global_step += 1

        # ALGO LOGIC: put action logic here
        epsilon = linear_schedule(args.start_e, args.end_e, args.exploration_steps, global_step)
        learning = global_step > args.learning_starts
        action = choose_action(q_network, obs, epsilon if learning else 1.0, rng, device)

        # execute the task, log data, and keep the transition and the bounds
        next_obs, reward, terminated, truncated, _ = env.step(action)
        memory.add(obs, action, reward, next_obs, terminated)
        sampler.see(obs)
        obs = next_obs
        episodic_return += float(reward)
        episodic_length += 1
        if terminated or truncated:
            history["episodes"].append((global_step, episodic_return, episodic_length))
            writer.add_scalar("charts/episodic_return", episodic_return, global_step)
            writer.add_scalar("charts/episodic_length", episodic_length, global_step)
            episodic_return, episodic_length = 0.0, 0
            obs, _ = env.reset()

        # ALGO LOGIC: training.
        weight = linear_schedule(
            args.consod_start, args.consod_end, args.total_timesteps, global_step
        )
        if learning and global_step % args.train_frequency == 0:
            losses = update_network(
                args, q_network, target_network, optimizer, memory, sampler, draws, weight
            )
        if global_step % args.target_network_frequency == 0:
            target_network.load_state_dict(q_network.state_dict())

        bar.update()
        stopping = global_step >= args.total_timesteps or time.time() > stop_time
        if global_step % LOG_EVERY == 0 or stopping:
            sps = (global_step - first_step) / (time.time() - start_time)
            history["memory"].append((global_step, memory.nbytes_stored, len(memory)))
            for name, value in losses.items():
                writer.add_scalar(f"losses/{name}", value.item(), global_step)
            writer.add_scalar("charts/epsilon", epsilon, global_step)
            writer.add_scalar("charts/consolidation_weight", weight, global_step)
            writer.add_scalar("charts/SPS", int(sps), global_step)
            writer.add_scalar("storage/nbytes_stored", memory.nbytes_stored, global_step)
        if args.eval_every and global_step % args.eval_every == 0:
            start_time += evaluate_now()
        every = args.checkpoint_every
        if stopping or (every and global_step % every == 0):
            save_checkpoint(
                run_dir / "checkpoint.pt",
                args,
                q_network,
                target_network,
                optimizer,
                rng,
                draws,
                memory,
                sampler,
                global_step,
                history,
            )
    bar.close()
    env.close()

    if args.save_model:
        model_path = run_dir / f"{args.exp_name}.cleanrl_model"
        torch.save(q_network.state_dict(), model_path)
        tqdm.write(f"model saved to {model_path}")
    if not args.quiet:
        draw(run_dir / "training.png", args, history)
        lately = [episode[1] for episode in history["episodes"][-20:]]
        print(f"{name_of(args)}, {args.env_id}: {sps:,.0f} steps per second")
        print(f"mean return of the last {len(lately)} episodes: {np.mean(lately or np.nan):.1f}")
        print(f"{len(memory):,} transitions in {memory.nbytes_stored:,} bytes")
        print(f"picture, logs, checkpoint: {run_dir}/")
    writer.close()
    return {
        "run_dir": run_dir,
        "q_network": q_network,
        "target_network": target_network,
        "optimizer": optimizer,
        "history": history,
        "memory": memory,
        "sampler": sampler,
    }


def main(argv: list[str] | None = None) -> None:
    try:
        train(parse_args(argv))
    except KeyboardInterrupt:
        sys.exit("medqn_uniform.py: interrupted; --resume goes on from a checkpoint, if any")


if __name__ == "__main__":
    main()
