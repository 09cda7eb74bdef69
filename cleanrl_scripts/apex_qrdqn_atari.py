"""Distributed QR-DQN on Atari games: many runners stream compressed frames to one learner, on Ray.

The architecture is that of Ape-X (Horgan et al., "Distributed Prioritized Experience Replay", arXiv
1803.00933): runners act with exploration of their own, from fixed small to large, and give new
transitions the priorities of their own errors; one learner draws by priority and publishes its
weights. The algorithm is QR-DQN (Dabney et al., arXiv 1710.10044) with double Q-learning and n-step
returns, the network that of `qrdqn_atari.py`; layout and log names follow CleanRL.

Where Ape-X has a replay server, here each runner keeps a `ReplayBuffer`, and the learner a replica
of each, which what is new keeps in step: a hundred-odd bytes a transition. It draws at home.

- two runners on this machine: `python apex_qrdqn_atari.py --num-runners 2`
- on a cluster: the same with `--address auto`, or `--address <head>:6379`, from one of its nodes

Departures from Ape-X: QR-DQN for dueling DQN; games are wrapped as in `qrdqn_atari.py`; Adam; and
runners are held to `--samples-per-insert`, so that they do not run away from a slow learner, where
Ape-X lets them run.
"""

from __future__ import annotations

import os
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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

from compressarray import ReplayBuffer
from compressarray.ray import RayEnvRunner, RayReplay, connect, start_runners


@dataclass
class Args:
    exp_name: str = os.path.basename(__file__)[: -len(".py")]
    """the name of this experiment"""
    seed: int = 1
    """seed of the experiment"""
    cuda: bool = True
    """if toggled, the learner computes on a GPU where there is one"""
    address: str | None = None
    """of a Ray cluster ("auto", "10.0.0.1:6379"); left out, one is begun on this machine"""
    checkpoint_every: int = 0
    """updates between checkpoints (`runs/{run_name}/checkpoint.pt` and `replay/`; 0: none)"""
    resume: str | None = None
    """path of a checkpoint to go on from, its replay memory beside it"""
    save_model: bool = False
    """whether to save the model (`runs/{run_name}/{exp_name}.cleanrl_model`)"""
    quiet: bool = False
    """if toggled, no progress bar and no table"""

    # Algorithm specific arguments
    env_id: str = "ALE/Pong-v5"
    """the id of the environment, any ALE/<Game>-v5"""
    num_runners: int = 2
    """processes that play"""
    envs_per_runner: int = 4
    """games that each of them plays"""
    total_timesteps: int = 10_000_000
    """total timesteps of the experiment, over all runners (four emulator frames each)"""
    buffer_size: int = 1_000_000
    """transitions that are kept, over all runners"""
    learning_rate: float = 1e-4
    """the learning rate of the optimizer"""
    gamma: float = 0.99
    """the discount factor gamma"""
    n_step: int = 3
    """rewards that are summed before the bootstrap value"""
    n_quantiles: int = 200
    """the number of quantiles"""
    batch_size: int = 64
    """the batch size of sample from the replay memory"""
    samples_per_insert: float = 8
    """how often a transition is drawn on average"""
    learning_starts: int = 20_000
    """transitions before learning begins"""
    target_network_frequency: int = 2_500
    """the updates it takes to update the target network"""
    publish_frequency: int = 50
    """the updates it takes to send runners new weights"""
    steps_per_request: int = 32
    """steps of each game that a runner is asked for at once"""
    priority_alpha: float = 0.6
    """exponent of priorities"""
    priority_beta: float = 0.4
    """exponent of importance weights"""
    base_e: float = 0.4
    """runner lane i of N explores with base_e ** (1 + alpha_e * i / (N - 1))"""
    alpha_e: float = 7
    """see base-e"""


def fail(message: object) -> None:
    """End the script with one line on stderr and a non-zero exit status."""
    sys.exit(f"apex_qrdqn_atari.py: error: {' '.join(str(message).split())}")


def check_args(args: Args) -> Args:
    """Refuse settings that cannot work."""
    if not args.env_id.startswith("ALE/"):
        fail(f"--env-id {args.env_id!r} must be an ALE/<Game>-v5, for example ALE/Pong-v5")
    for name in ("num_runners", "envs_per_runner", "total_timesteps", "n_step", "batch_size",
                 "n_quantiles", "learning_starts", "target_network_frequency",
                 "publish_frequency", "steps_per_request"):  # fmt: skip
        if getattr(args, name) < 1:
            fail(f"--{name.replace('_', '-')} {getattr(args, name)} must be at least 1")
    lanes = args.num_runners * args.envs_per_runner
    if args.buffer_size < lanes * args.n_step:
        fail(
            f"--buffer-size {args.buffer_size} must be at least {lanes * args.n_step}, --n-step "
            f"{args.n_step} in each of {lanes} games"
        )
    return args


def make_env(args: Args, seed: int) -> gym.vector.VectorEnv:
    """Build ALE's vector environment, whose observations are stacks of four frames."""
    gym.register_envs(ale_py)  # here: a runner's process has not run this file
    try:
        envs = gym.make_vec(
            args.env_id,
            num_envs=args.envs_per_runner,
            num_threads=1,  # a runner has one CPU
            vectorization_mode="vector_entry_point",
            autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
            repeat_action_probability=0.0,
            reward_clipping=False,
            noop_max=30,
            use_fire_reset=True,
        )
    except (gym.error.Error, OSError, AssertionError) as error:
        raise ValueError(f"--env-id {args.env_id}: {error}") from None
    envs.reset(seed=seed)
    return envs


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
        return self.network(stacks / 255.0).view(-1, self.n_quantiles, self.num_actions)


class AtariRunner(RayEnvRunner):
    """Plays some games at once, each with an epsilon of its own, by the weights published last."""

    def __init__(self, index: int, args: Args):
        torch.set_num_threads(1)
        seed = args.seed + 1000 * index
        self.args, self.rng = args, np.random.default_rng(seed)
        self.envs = make_env(args, seed)
        self.obs, info = self.envs.reset(seed=seed)
        self.lives = info["lives"]
        self.num_actions = int(self.envs.single_action_space.n)
        self.q_network = QNetwork(self.num_actions, args.n_quantiles)
        self.acts_by_network = False
        lanes = args.num_runners * args.envs_per_runner
        lane = np.arange(index * args.envs_per_runner, (index + 1) * args.envs_per_runner)
        self.epsilons = args.base_e ** (1 + args.alpha_e * lane / max(lanes - 1, 1))
        per_runner = args.buffer_size // args.num_runners
        self.buffer = ReplayBuffer(
            per_runner // args.envs_per_runner * args.envs_per_runner,
            self.envs.single_observation_space,
            self.envs.single_action_space,
            args.envs_per_runner,
            n_step=args.n_step,
            gamma=args.gamma,
        )
        # Of each step the value of the action taken, the best value, the reward, and what ended.
        self.values: list[tuple[np.ndarray, ...]] = []
        self.returns = np.zeros(args.envs_per_runner)
        self.finished: list[tuple[int, float]] = []
        self.told = 0

    def set_weights(self, weights: dict[str, np.ndarray]) -> None:
        self.q_network.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.items()})
        self.acts_by_network = True

    def step(self) -> None:
        n = self.args.envs_per_runner
        with torch.no_grad():
            q = self.q_network(torch.from_numpy(self.obs)).mean(dim=1).numpy()
        explores = (self.rng.random(n) < self.epsilons) | (not self.acts_by_network)
        actions = np.where(explores, self.rng.integers(self.num_actions, size=n), q.argmax(axis=1))
        next_obs, rewards, terminated, truncated, info = self.envs.step(actions)
        over = terminated | truncated
        self.returns += rewards
        for lane in np.flatnonzero(over):
            self.finished.append((int(lane), float(self.returns[lane])))
            self.returns[lane] = 0
        # A lost life ends the episode for the learner, while the game goes on.
        lost = (info["lives"] > 0) & (info["lives"] < self.lives) & ~over
        self.lives = info["lives"]
        if lost.any():
            final_obs = next_obs.copy()
            if over.any():
                final_obs[over] = info["final_obs"][over]
            info["final_obs"] = final_obs
        rewards, terminated = np.sign(rewards), terminated | lost
        self.buffer.add(self.obs, actions, rewards, terminated, truncated, next_obs, info)
        taken = q[np.arange(n), actions]
        self.values.append((taken, q.max(axis=1), rewards, terminated | truncated))
        self.obs = next_obs

    def priorities(self) -> tuple[np.ndarray, np.ndarray]:
        """The n-step errors of what can be drawn since the last time, by the values at acting."""
        n, back = self.args.envs_per_runner, self.args.n_step
        t_now = int(self.buffer.position[0])
        first = max(self.told - back, 0)
        taken, best, rewards, ended = (np.stack(each) for each in zip(*self.values, strict=True))
        names, errors = [], []
        for t in range(t_now - first - back):
            target, goes_on = np.zeros(n), np.ones(n, bool)
            for k in range(back):
                target += self.args.gamma**k * rewards[t + k] * goes_on
                goes_on &= ~ended[t + k]
            target += self.args.gamma**back * best[t + back] * goes_on
            names.append((first + t) * n + np.arange(n))
            errors.append(np.abs(target - taken[t]))
        self.told, self.values = t_now, self.values[-back:]
        if not names:
            return np.zeros(0, np.int64), np.zeros(0)
        return np.concatenate(names), np.concatenate(errors)

    def report(self) -> list[tuple[int, float]] | None:
        """Episodes that have ended: lanes and returns, unclipped."""
        finished, self.finished = self.finished, []
        return finished or None


def of_actions(quantiles: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """The quantiles of one action each: (batch, N, num_actions) to (batch, N)."""
    return quantiles[torch.arange(len(quantiles), device=quantiles.device), :, actions]


def errors_of(quantiles: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Equation 10 of the QR-DQN paper with kappa 1, of each transition: (batch,)."""
    N = quantiles.shape[1]
    tau = (torch.arange(N, device=quantiles.device) + 0.5) / N
    u = targets[:, None, :] - quantiles[:, :, None]
    huber = F.huber_loss(u, torch.zeros_like(u), reduction="none", delta=1.0)
    return ((tau[:, None] - (u.detach() < 0).float()).abs() * huber).sum(dim=1).mean(dim=1)


def update_network(
    q_network: QNetwork, target_network: QNetwork, optimizer: optim.Optimizer, batch: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take one gradient step; returns the loss, and the error in the mean of each transition."""
    with torch.no_grad():
        best_actions = q_network(batch.next_obs).mean(dim=1).argmax(dim=1)
        next_quantiles = of_actions(target_network(batch.next_obs), best_actions)
        bootstrap = batch.discount * (1 - batch.terminated)
        targets = batch.reward[:, None] + bootstrap[:, None] * next_quantiles
    quantiles = of_actions(q_network(batch.obs), batch.action)
    loss = (batch.weight * errors_of(quantiles, targets)).mean()

    # optimize the model
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach(), (targets.mean(dim=1) - quantiles.detach().mean(dim=1)).abs()


def weights_of(q_network: QNetwork) -> dict[str, np.ndarray]:
    return {name: value.cpu().numpy() for name, value in q_network.state_dict().items()}


def save_checkpoint(path: Path, args: Args, q_network, target_network, optimizer, replay, updates):
    """Write everything that going on needs; a crash leaves the checkpoint before."""
    checkpoint = {
        "args": asdict(args),
        "q_network": q_network.state_dict(),
        "target_network": target_network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "updates": updates,
        "replay": replay.checkpoint(path.with_name("replay")),
    }
    unfinished = path.with_suffix(".unfinished")
    torch.save(checkpoint, unfinished)
    os.replace(unfinished, path)


def train(args: Args) -> dict[str, Any]:
    """Run the learner; returns what it measured."""
    run_name = f"{args.env_id.replace('/', '_')}__{args.exp_name}__{args.seed}__{int(time.time())}"
    folder = Path("runs") / run_name
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu")

    envs = make_env(args, args.seed)  # for its spaces
    num_actions = int(envs.single_action_space.n)
    envs.close()
    q_network = QNetwork(num_actions, args.n_quantiles).to(device)
    target_network = QNetwork(num_actions, args.n_quantiles).to(device)
    target_network.load_state_dict(q_network.state_dict())
    optimizer = optim.Adam(q_network.parameters(), args.learning_rate, eps=0.01 / args.batch_size)

    runners = start_runners(AtariRunner, args.num_runners, args)
    replay = RayReplay(
        runners,
        steps=args.steps_per_request,
        samples_per_insert=args.samples_per_insert,
        min_size=args.learning_starts,
        prioritized=True,
        alpha=args.priority_alpha,
        beta=args.priority_beta,
        device=device,
        seed=args.seed,
    )
    updates = 0
    if args.resume:
        try:
            held = torch.load(args.resume, map_location=device, weights_only=True)
            replay.restore(Path(args.resume).with_name("replay"), held["replay"])
        except (OSError, LookupError, ValueError) as error:
            fail(f"--resume {args.resume}: {error}")
        for name, part in (("q_network", q_network), ("target_network", target_network),
                           ("optimizer", optimizer)):  # fmt: skip
            part.load_state_dict(held[name])
        updates = held["updates"]
        replay.publish(weights_of(q_network))

    writer = SummaryWriter(str(folder))
    writer.add_text("hyperparameters", "\n".join(f"{k}: {v}" for k, v in asdict(args).items()))
    bar = tqdm(total=args.total_timesteps, unit=" steps", disable=args.quiet)
    start, returns = time.time(), []
    while replay.limiter.inserts < args.total_timesteps:
        batch = replay.sample(args.batch_size)
        loss, errors = update_network(q_network, target_network, optimizer, batch)
        replay.update_priorities(batch.index, errors)
        updates += 1
        if updates % args.target_network_frequency == 0:
            target_network.load_state_dict(q_network.state_dict())
        if updates % args.publish_frequency == 0:
            replay.publish(weights_of(q_network))
        for lane, episodic_return in (each for report in replay.reports for each in report):
            returns.append(episodic_return)
            writer.add_scalar("charts/episodic_return", episodic_return, replay.limiter.inserts)
            del lane
        replay.reports.clear()
        bar.update(replay.limiter.inserts - bar.n)
        if updates % 100 == 0:
            stats, steps = replay.stats(), replay.limiter.inserts
            writer.add_scalar("losses/td_loss", loss.item(), steps)
            writer.add_scalar("charts/SPS", int(steps / (time.time() - start)), steps)
            for name in ("bytes_per_insert", "nbytes_stored", "samples_per_insert", "deaths"):
                writer.add_scalar(f"replay/{name}", stats[name], steps)
        if args.checkpoint_every and updates % args.checkpoint_every == 0:
            save_checkpoint(folder / "checkpoint.pt", args, q_network, target_network, optimizer,
                            replay, updates)  # fmt: skip
    bar.close()
    writer.close()
    if args.save_model:
        torch.save(q_network.state_dict(), folder / f"{args.exp_name}.cleanrl_model")
    stats = replay.stats()
    return {
        **{name: stats[name] for name in ("inserts", "samples", "bytes_per_insert", "deaths")},
        "nbytes_stored": stats["nbytes_stored"],
        "dense_bytes": 2 * 4 * 84 * 84 * stats["transitions"],
        "updates": updates,
        "seconds": time.time() - start,
        "episodes": len(returns),
        "mean_return": float(np.mean(returns[-100:])) if returns else float("nan"),
        "folder": str(folder),
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = check_args(tyro.cli(Args, args=argv, description=(__doc__ or "").split("\n\n")[0]))
    try:
        connect(args.address)
        found = train(args)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        fail(error)
    if not args.quiet:
        print(
            f"{found['inserts']:,} transitions from {args.num_runners} runners in "
            f"{found['seconds']:.0f} s, {found['updates']:,} updates of {args.batch_size}\n"
            f"over the wire   {found['bytes_per_insert']:,.0f} bytes a transition "
            f"(dense stacks: {2 * 4 * 84 * 84:,})\n"
            f"in memory       {found['nbytes_stored'] / 1e6:,.1f} MB "
            f"(dense: {found['dense_bytes'] / 1e6:,.0f} MB)\n"
            f"returns         {found['mean_return']:.1f} on average of the last of "
            f"{found['episodes']} games\n"
            f"logs            {found['folder']}"
        )
    return found


if __name__ == "__main__":
    main()
