"""QR-DQN's replay buffer on ten Atari games: memory and speed of the ways to store observations.

For each game: a buffer of 100,000 transitions is filled in every way at once, from one real game
that a random policy plays, and its bytes are counted, beside the QR-DQN column of the paper
(Differentially Encoded Observation Spaces, arXiv 2310.01767, Table II). In the full buffers adding
and sampling are timed by turns, with the network's work left out, and every sampled bit is
compared. Then the whole script trains in short runs by turns, for its agent steps per second.

    python -m benchmarks.bench_replay [--quick] [--games Pong Qbert] [--help]

Writes `benchmarks/results/replay.json` and `replay.md` (`replay-quick.*` with `--quick`). The dense
buffer of 100,000 transitions takes 5.6 GB.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
import tyro
from tqdm import tqdm

from benchmarks.bench_ppo import MIB, RESULTS, machine
from benchmarks.common import by_turns, make_command
from benchmarks.frames import KEEP_ACTION
from cleanrl_scripts import qrdqn_atari

# Table II: MB of the replay buffer under QR-DQN, and how many times smaller than 2694.
PAPER = {
    "Asteroids": (265, 10.2),
    "BeamRider": (552, 4.9),
    "Breakout": (190, 14.2),
    "Enduro": (306, 8.8),
    "MsPacman": (219, 12.3),
    "Pong": (192, 14.0),
    "Qbert": (213, 12.7),
    "RoadRunner": (290, 9.3),
    "Seaquest": (278, 9.7),
    "SpaceInvaders": (227, 11.9),
}
PAPER_MEAN = (273, 9.9)
PAPER_SPS = (821, 579)


class Way(NamedTuple):
    """A way to store observations: two flags of the script."""

    obs_storage: str
    codec: str = "delta"

    def __str__(self) -> str:
        return self.obs_storage if self.obs_storage == "dense" else f"{self[0]} {self[1]}"


DENSE = Way("dense")
WAYS = (
    DENSE,
    Way("compressed", "delta"),
    Way("indexed", "delta"),
    Way("compressed", "delta-huffman"),
    Way("indexed", "delta-huffman"),
)


@dataclass
class Args:
    games: tuple[str, ...] = tuple(PAPER)
    """which of the paper's games"""
    transitions: int = 100_000
    """size of the buffers whose bytes are counted, and in which adding and sampling is timed"""
    updates: int = 500
    """updates (4 transitions added, 32 sampled) that are timed, by turns"""
    repeats: int = 3
    """training runs per game and way, by turns (0: none)"""
    warmup_steps: int = 4000
    """steps of a training run before learning starts"""
    steps: int = 1500
    """steps of a training run after that; the first 250 are left out of the speed"""
    torch_threads: int = 0
    """threads torch computes with (0: torch's own choice)"""
    seed: int = 1
    """seed of the games and of the networks"""
    quick: bool = False
    """two games, small buffers, one short run each: whether it works, not how fast it is"""


def script_args(args: Args, game: str, way: Way, buffer_size: int) -> qrdqn_atari.Args:
    return qrdqn_atari.check_args(
        qrdqn_atari.Args(
            env_id=f"ALE/{game}-v5",
            obs_storage=way.obs_storage,
            codec=way.codec,
            seed=args.seed,
            torch_threads=args.torch_threads,
            buffer_size=buffer_size,
            learning_starts=args.warmup_steps,
            total_timesteps=args.warmup_steps + args.steps,
            checkpoint_every=0,
            quiet=True,
        )
    )


def random_actions(num_envs: int, num_actions: int, seed: int) -> Iterator[np.ndarray]:
    """A random policy that keeps each action for a while: it reaches further into a game."""
    rng = np.random.default_rng(seed)
    actions = np.zeros(num_envs, dtype=np.int64)
    while True:
        new = rng.random(num_envs) > KEEP_ACTION
        actions[new] = rng.integers(num_actions, size=new.sum())
        yield actions


class Relay(gym.vector.VectorEnv):
    """Gives what a game gave last; with `stack_num=1` newest frames only, as ALE does."""

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, envs: gym.vector.VectorEnv, stack_num: int):
        self.num_envs, self.stack_num = envs.num_envs, stack_num
        self.single_observation_space = gym.spaces.Box(0, 255, (stack_num, 84, 84), np.uint8)
        self.observation_space = gym.vector.utils.batch_space(
            self.single_observation_space, self.num_envs
        )
        self.single_action_space, self.action_space = envs.single_action_space, envs.action_space

    def take(self, observations, *outcome) -> None:
        """Take what the game gave, in fresh arrays, as ALE gives it."""
        *signals, info = outcome
        info = dict(info)
        if "final_obs" in info:
            info["final_obs"] = self._newest(info["final_obs"])
        self.given = (self._newest(observations), *signals, info)

    def _newest(self, stacks: np.ndarray) -> np.ndarray:
        return stacks[:, -self.stack_num :].copy()

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        return self.given

    def step(self, actions):  # noqa: ARG002
        return self.given


class Replayed:
    """The script's storing and sampling of transitions, without the network and the game."""

    def __init__(self, args: qrdqn_atari.Args, envs: gym.vector.VectorEnv, first: tuple):
        self.relay = Relay(envs, 1 if args.obs_storage == "indexed" else 4)
        self.storage = qrdqn_atari.make_storage(args, self.relay, torch.device("cpu"))
        self.envs = qrdqn_atari.LearnerSignals(self.storage.envs)
        self.relay.take(*first)
        self.obs, _ = self.envs.reset(seed=args.seed)

    def add(self, actions: np.ndarray, given: tuple) -> float:
        """Add a transition; returns the seconds that storing it and acting on it took."""
        self.relay.take(*given)
        start = time.perf_counter()
        self.storage.to_stacks(self.obs)  # for the action
        next_obs, *outcome = self.envs.step(actions)
        rewards, terminations, truncations, info = outcome
        self.storage.buffer.add(
            self.obs, actions, rewards, terminations, truncations, next_obs, info
        )
        self.obs = next_obs
        return time.perf_counter() - start

    def sample(self, batch_size: int) -> tuple[float, tuple]:
        """Sample a batch; returns the seconds that it took, and the batch."""
        start = time.perf_counter()
        batch = self.storage.buffer.sample(batch_size)
        return time.perf_counter() - start, batch


def measure_storage(args: Args, game: str, bar: tqdm) -> dict[Way, dict]:
    """Bytes of full buffers, and milliseconds that adding and sampling take in them."""
    settings = {way: script_args(args, game, way, args.transitions) for way in WAYS}
    dense = settings[DENSE]
    envs = qrdqn_atari.make_env(dense, 1)
    first = envs.reset(seed=args.seed)
    replayed = {way: Replayed(settings[way], envs, first) for way in WAYS}
    moves = random_actions(1, envs.single_action_space.n, args.seed)
    bar.set_description(f"{game}, filling buffers", refresh=False)
    for _ in range(args.transitions):
        actions = next(moves).copy()
        given = envs.step(actions)
        for way in WAYS:
            replayed[way].add(actions, given)
        bar.update()
    bar.set_description(f"{game}, adding and sampling", refresh=False)
    times: dict[Way, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for update in range(args.updates + 1):
        steps = []
        for _ in range(dense.train_frequency):
            actions = next(moves).copy()
            steps.append((actions, envs.step(actions)))
        batches = {}
        for way in by_turns(WAYS, update):
            adding = sum(replayed[way].add(*step) for step in steps)
            sampling, batches[way] = replayed[way].sample(dense.batch_size)
            times[way].append((adding, sampling))
        for way in WAYS:
            compare(game, way, batches[way], batches[DENSE])
        bar.update(dense.train_frequency)
    envs.close()
    dense_s = [sum(seconds) for seconds in times[DENSE][1:]]
    out = {}
    for way in WAYS:
        seconds = times[way][1:]  # the first update compiles kernels
        stored = replayed[way].storage.buffer.nbytes_stored
        out[way] = {
            "mib": stored / MIB,
            "bytes_per_transition": stored / args.transitions,
            "ratio_to_stacks": args.transitions * qrdqn_atari.STACK_BYTES / stored,
            "adding_ms": 1e3 * statistics.median(a for a, _ in seconds),
            "sampling_ms": 1e3 * statistics.median(s for _, s in seconds),
            "storage_ms": 1e3 * statistics.median(map(sum, seconds)),
            "storage_over_dense": statistics.median(
                sum(s) / d for s, d in zip(seconds, dense_s, strict=True)
            ),
        }
    return out


def compare(game: str, way: Way, batch, dense) -> None:
    for name in dense._fields:
        ours, theirs = getattr(batch, name), getattr(dense, name)
        if not torch.equal(ours.to(theirs.dtype), theirs):
            raise AssertionError(f"{game}: {way} does not sample the {name} that dense samples")


def measure_training(args: Args, game: str, bar: tqdm) -> dict[Way, dict]:
    """Agent steps per second of the whole script, while it learns."""
    sps: dict[Way, list[float]] = {way: [] for way in WAYS}
    weights = {}
    for repeat in range(args.repeats):
        for way in by_turns(WAYS, repeat):
            bar.set_description(f"{game}, {way}, run {repeat + 1}", refresh=False)
            settings = script_args(args, game, way, args.warmup_steps)
            result = qrdqn_atari.train(settings)
            learning = -(-args.steps // qrdqn_atari.LOG_EVERY)  # intervals of the log
            sps[way].append(statistics.median(result["interval_sps"][-learning:][1:]))
            weights[way] = [p.detach().clone() for p in result["q_network"].parameters()]
            bar.update(settings.total_timesteps)
    for way in WAYS:
        if not all(map(torch.equal, weights[DENSE], weights[way])):
            raise AssertionError(f"{game}: {way} did not learn what dense learned")
    return {
        way: {
            "sps": statistics.median(sps[way]),
            "sps_over_dense": statistics.median(
                a / b for a, b in zip(sps[way], sps[DENSE], strict=True)
            ),
        }
        for way in WAYS
    }


def geometric_mean(games: dict, way: Way, what: str) -> float:
    return statistics.geometric_mean(game[way][what] for game in games.values())


def mean_of(games: dict):
    return lambda way, what: geometric_mean(games, way, what)


def memory_row(name: str, paper: tuple[float, float], of) -> list[str]:
    """One line of the table of bytes; `of(way, what)` gives its numbers."""
    return [
        *(name, f"{paper[0]} ({paper[1]})", f"{of(DENSE, 'mib'):,.0f}"),
        *(f"{of(way, 'mib'):.2f} ({of(way, 'ratio_to_stacks'):.0f})" for way in WAYS[1:]),
    ]


def time_row(name: str, of) -> list[str]:
    """One line of the table of milliseconds: adding + sampling, and their sum over dense's."""
    cells = []
    for way in WAYS:
        over = "" if way is DENSE else f" ({of(way, 'storage_over_dense'):.2f})"
        cells.append(f"{of(way, 'adding_ms'):.2f} + {of(way, 'sampling_ms'):.2f}{over}")
    return [name, *cells]


def sps_row(name: str, of) -> list[str]:
    ours = (f"{of(way, 'sps'):.0f} ({of(way, 'sps_over_dense'):.3f})" for way in WAYS[1:])
    return [name, f"{of(DENSE, 'sps'):.0f}", *ours]


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Rows under columns, in Markdown, padded to be read as they are."""
    lines = [columns, *rows]
    widths = [max(len(row[i]) for row in lines) for i in range(len(columns))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        "| " + " | ".join(f"{cell:{'<>'[i > 0]}{widths[i]}}" for i, cell in enumerate(row)) + " |"
        for row in [columns, rule, *rows]
    )


def tables(games: dict) -> dict[str, str]:
    def of(name: str):
        return lambda way, what: games[name][way][what]

    names = list(map(str, WAYS))
    mean = mean_of(games)
    memory = [memory_row(name, PAPER[name], of(name)) for name in games]
    times = [time_row(name, of(name)) for name in games]
    out = {
        "memory": table(
            ["game", "paper MB (x)", "dense, MB", *(f"{name}, MB (x)" for name in names[1:])],
            [*memory, memory_row("mean", PAPER_MEAN, mean)],
        ),
        "times": table(["game", *names], [*times, time_row("mean", mean)]),
    }
    if all("sps" in game[DENSE] for game in games.values()):
        rows = [sps_row(name, of(name)) for name in games]
        out["sps"] = table(["game", *names], [*rows, sps_row("mean", mean)])
    return out


def write(path: Path, command: str, args: Args, games: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    where = machine()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    settings = {name: value for name, value in vars(args).items() if name not in ("games", "quick")}
    data = {
        "machine": where | {"device": device},
        "settings": settings,
        "games": {
            name: {str(way): numbers for way, numbers in game.items()}
            for name, game in games.items()
        },
        "paper": PAPER,
    }
    path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    made = tables(games)
    dense_mib = args.transitions * qrdqn_atari.STACK_BYTES / MIB
    text = f"""# QR-DQN: memory and speed of the replay buffer

Made by `{command}` on {where["cpu"]}, {where["cores"]} cores, {where["system"]}; Python \
{where["python"]}, numpy {where["numpy"]}, torch {where["torch"]} with {where["torch_threads"]} \
threads, {device}. Seed {args.seed}, one environment. Last rows: geometric means, and the paper's \
own average.

## Memory

MB (2^20 bytes, as in the paper) of {args.transitions:,} transitions, everything counted: pixels,
actions, rewards, indices, tables. In brackets how many times smaller than stacks of uint8 stored
once, {dense_mib:,.0f} MB, which is the paper's base too; `dense` holds `obs` and `next_obs`, twice
that. The game was played by a random policy that keeps each action for a while; the paper's column,
its Table II, is over whole trainings.

{made["memory"]}

## Adding and sampling

Milliseconds per update, the game and the network left out: 4 transitions added (and the newest
stack given to the network) + 32 transitions sampled from the full buffer. In brackets the sum over
that of `dense`, the median of paired ratios. Medians of {args.updates} updates by turns; all
sampled bits were compared.

{made["times"]}
"""
    if "sps" in made:
        slower = 100 * (geometric_mean(games, WAYS[1], "sps_over_dense") - 1)
        paper = 100 * (PAPER_SPS[1] / PAPER_SPS[0] - 1)
        text += f"""
## The whole script

Agent steps per second while it learns (an update every 4 steps), medians of {args.repeats} runs by
turns, each of {args.warmup_steps:,} steps to fill the buffer and {args.steps:,} to learn; in
brackets over `dense`, the median of paired ratios. `{WAYS[1]}` is {slower:+.1f} % in the geometric
mean; the paper reports {PAPER_SPS[0]} and {PAPER_SPS[1]} on a GPU, {paper:+.0f} %. Trained weights
were checked to be equal.

{made["sps"]}
"""
    path.with_suffix(".md").write_text(text)


def check(args: Args) -> None:
    unknown = [game for game in args.games if game not in PAPER]
    if unknown or not args.games:
        sys.exit(f"bench_replay.py: error: --games {unknown} must be of {', '.join(PAPER)}")
    least = 2 * qrdqn_atari.LOG_EVERY
    if min(args.transitions, args.updates, args.warmup_steps) < 1 or args.steps < least:
        sys.exit(
            "bench_replay.py: error: --transitions, --updates and --warmup-steps are at least 1, "
            f"--steps {least}"
        )


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    command = make_command("bench-replay", args)
    if args.quick:
        args.games, args.transitions, args.updates = args.games[:2], 4000, 50
        args.repeats, args.warmup_steps, args.steps = 1, 500, 500
    check(args)
    path = RESULTS / ("replay-quick" if args.quick else "replay")
    games: dict[str, dict] = {}
    training = len(WAYS) * args.repeats * (args.warmup_steps + args.steps)
    work = len(args.games) * (args.transitions + 4 * (args.updates + 1) + training)
    every_s = 0.5 if sys.stderr.isatty() else 30
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=work, unit="step", leave=False, mininterval=every_s) as bar,
    ):
        os.chdir(folder)  # the script writes its logs and checkpoints into runs/
        for game in args.games:
            measured = measure_storage(args, game, bar)
            if args.repeats:
                training = measure_training(args, game, bar)
                measured = {way: measured[way] | training[way] for way in WAYS}
            games[game] = measured
            tqdm.write(", ".join(memory_row(game, PAPER[game], lambda w, n, m=measured: m[w][n])))
            write(path, command, args, games)
        os.chdir(RESULTS)  # out of a folder that goes
    print("\n\n".join(tables(games).values()))
    print(f"written: {path}.json, {path}.md")


if __name__ == "__main__":
    main()
