"""PPO's rollouts on ten Atari games: memory and speed of the three ways to store observations.

For each game: what the observations of one rollout take up and how many agent steps per second
training makes under `dense`, `compressed` and `indexed`, in short runs by turns, beside the PPO
column of the paper (Differentially Encoded Observation Spaces, arXiv 2310.01767, Table II). Then
the milliseconds per update that storing and reading observations takes with the network's work
left out: one recording of real games is played to the script's own code for each storage, by turns.

    python -m benchmarks.bench_ppo [--quick] [--games Pong Qbert] [--codec delta-huffman] [--help]

Writes `benchmarks/results/ppo.json` and `ppo.md` (`ppo-quick.*` with `--quick`).
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro
from tqdm import tqdm

from benchmarks.common import RESULTS, by_turns
from cleanrl_scripts import ppo_atari

STORAGES = ("dense", "compressed", "indexed")
MIB = 2**20  # the paper's "MB": it gives 27.6 for 1,024 stacks of 28,224 bytes

# Table II: MB of a rollout's observations under PPO, and how many times smaller than 27.6.
PAPER = {
    "Asteroids": (2.6, 10.8),
    "BeamRider": (7.6, 3.6),
    "Breakout": (2.0, 14.2),
    "Enduro": (3.5, 7.9),
    "MsPacman": (2.3, 12.1),
    "Pong": (2.0, 13.9),
    "Qbert": (3.0, 9.1),
    "RoadRunner": (3.0, 9.0),
    "Seaquest": (2.9, 9.6),
    "SpaceInvaders": (2.4, 11.3),
}
PAPER_MEAN = (3.1, 8.9)
PAPER_SPS = (1430, 1363)


@dataclass
class Args:
    games: tuple[str, ...] = tuple(PAPER)
    """which of the paper's games"""
    codec: str = "delta"
    """codec of `compressed` and `indexed`"""
    repeats: int = 3
    """training runs per game and storage, by turns"""
    iterations: int = 4
    """rollouts (of 8 x 128 steps) per training run; the first one is left out of the speed"""
    updates: int = 6
    """updates per game and storage whose storing and reading is timed, by turns"""
    torch_threads: int = 0
    """threads torch computes with (0: torch's own choice)"""
    seed: int = 1
    """seed of the games and of the networks"""
    quick: bool = False
    """two games, one short run each: whether it works, not how fast it is"""


class Recording(gym.vector.VectorEnv):
    """Plays recorded games; with `stack_num=1` gives newest frames only, as ALE does."""

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, stacks: list[np.ndarray], ended: list[np.ndarray], stack_num: int):
        self.observations = [np.ascontiguousarray(stack[:, -stack_num:]) for stack in stacks]
        self.ended = ended
        self.num_envs = len(stacks[0])
        self.single_observation_space = gym.spaces.Box(
            0, 255, self.observations[0].shape[1:], np.uint8
        )
        self.observation_space = gym.vector.utils.batch_space(
            self.single_observation_space, self.num_envs
        )
        self.single_action_space = gym.spaces.Discrete(1)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, self.num_envs)
        self.rewards, self.never = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=bool)

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        self.time = 0
        return self.observations[0], {}

    def step(self, actions):  # noqa: ARG002
        self.time += 1
        return self.observations[self.time], self.rewards, self.ended[self.time], self.never, {}


def record(args: ppo_atari.Args, steps: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Let a random policy, which keeps each action for a while, play a real game."""
    rng = np.random.default_rng(args.seed)
    envs = ppo_atari.make_env(args, args.num_envs)
    stacks, ended = [envs.reset(seed=args.seed)[0]], [np.zeros(args.num_envs, dtype=bool)]
    actions = np.zeros(args.num_envs, dtype=np.int64)
    for _ in range(steps):
        new = rng.random(args.num_envs) < 0.25
        actions[new] = rng.integers(envs.single_action_space.n, size=new.sum())
        stack, _, terminations, truncations, _ = envs.step(actions)
        stacks.append(stack)
        ended.append(terminations | truncations)
    envs.close()
    return stacks, ended


class Replay:
    """The script's storing and reading of observations, without the network and the game."""

    def __init__(self, args: ppo_atari.Args, stacks: list, ended: list):
        self.args = args
        recording = Recording(stacks, ended, 1 if args.obs_storage == "indexed" else 4)
        self.storage = ppo_atari.make_storage(args, recording, torch.device("cpu"))
        self.next_obs = self.storage.receive(self.storage.envs.reset(seed=args.seed)[0])

    def update(self, permutations: list[np.ndarray]) -> tuple[float, float, torch.Tensor]:
        """Seconds that one rollout's storing and its minibatches' reading took, and the last."""
        args, (envs, obs, receive, load, _) = self.args, self.storage
        next_obs = self.next_obs
        start = time.perf_counter()
        for step in range(args.num_steps):
            obs[step] = next_obs
            load(next_obs)  # for the action
            next_obs = receive(envs.step(None)[0])
        load(next_obs)  # for the bootstrap value
        stored = time.perf_counter()
        b_obs = obs.reshape((-1, *obs.shape[2:]))
        for b_inds in permutations:
            for first in range(0, args.batch_size, args.minibatch_size):
                minibatch = load(b_obs[b_inds[first : first + args.minibatch_size]])
        read = time.perf_counter()
        self.next_obs = next_obs
        return stored - start, read - stored, minibatch


def script_args(args: Args, game: str, storage: str) -> ppo_atari.Args:
    return ppo_atari.check_args(
        ppo_atari.Args(
            env_id=f"ALE/{game}-v5",
            obs_storage=storage,
            codec=args.codec,
            seed=args.seed,
            torch_threads=args.torch_threads,
            total_timesteps=args.iterations * 128 * 8,
            checkpoint_every=0,
            quiet=True,
        )
    )


def measure_training(args: Args, game: str, bar: tqdm) -> dict:
    sps: dict[str, list[float]] = {storage: [] for storage in STORAGES}
    mib: dict[str, float] = {}
    weights = {}
    for repeat in range(args.repeats):
        for storage in by_turns(STORAGES, repeat):
            bar.set_description(f"{game}, {storage}, run {repeat + 1}")
            result = ppo_atari.train(script_args(args, game, storage))
            sps[storage].append(8 * 128 / statistics.median(result["iteration_s"][1:]))
            mib[storage] = statistics.mean(n for _, n in result["history"]["memory"]) / MIB
            weights[storage] = [p.detach().clone() for p in result["agent"].parameters()]
            bar.update()
    for storage in STORAGES:
        if not all(map(torch.equal, weights["dense"], weights[storage])):
            raise AssertionError(f"{game}: {storage} did not learn what dense learned")
    return {
        storage: {
            "mib": mib[storage],
            "ratio_to_uint8_stacks": 8 * 128 * ppo_atari.STACK_BYTES / MIB / mib[storage],
            "sps": statistics.median(sps[storage]),
            "sps_over_dense": statistics.median(
                a / b for a, b in zip(sps[storage], sps["dense"], strict=True)
            ),
        }
        for storage in STORAGES
    }


def measure_storage(args: Args, game: str, bar: tqdm) -> dict:
    bar.set_description(f"{game}, storing and reading")
    settings = {storage: script_args(args, game, storage) for storage in STORAGES}
    stacks, ended = record(settings["dense"], (args.updates + 1) * settings["dense"].num_steps)
    replays = {storage: Replay(settings[storage], stacks, ended) for storage in STORAGES}
    rng = np.random.default_rng(args.seed)
    times: dict[str, list[tuple[float, float]]] = {storage: [] for storage in STORAGES}
    for update in range(args.updates + 1):
        epochs = range(settings["dense"].update_epochs)
        permutations = [rng.permutation(settings["dense"].batch_size) for _ in epochs]
        last = {}
        for storage in by_turns(STORAGES, update):
            *seconds, last[storage] = replays[storage].update(permutations)
            times[storage].append(tuple(seconds))
            bar.update()
        for storage in STORAGES:
            if not torch.equal(last["dense"], last[storage]):
                raise AssertionError(f"{game}: {storage} does not give the pixels that dense gives")
    dense = [sum(seconds) for seconds in times["dense"][1:]]
    out = {}
    for storage in STORAGES:
        seconds = times[storage][1:]  # the first update compiles kernels and touches memory
        out[storage] = {
            "storing_ms": 1e3 * statistics.median(s for s, _ in seconds),
            "reading_ms": 1e3 * statistics.median(r for _, r in seconds),
            "storage_ms": 1e3 * statistics.median(map(sum, seconds)),
            "storage_over_dense": statistics.median(
                sum(s) / d for s, d in zip(seconds, dense, strict=True)
            ),
        }
    return out


def geometric_mean(games: dict, storage: str, what: str) -> float:
    return statistics.geometric_mean(game[storage][what] for game in games.values())


COLUMNS = ["game", "paper MB (x)", "dense MB", "compressed MB (x)", "indexed MB (x)",
           "SPS dense", "compressed", "indexed", "ms dense", "compressed", "indexed"]  # fmt: skip


def row(name: str, paper: tuple[float, float], of) -> list[str]:
    """One line of the table; `of(storage, what)` gives its numbers."""
    memory = [f"{of(s, 'mib'):.3f} ({of(s, 'ratio_to_uint8_stacks'):.0f})" for s in STORAGES[1:]]
    return [
        *(name, f"{paper[0]} ({paper[1]})", f"{of('dense', 'mib'):.1f}", *memory),
        f"{of('dense', 'sps'):.0f}",
        *(f"{of(s, 'sps'):.0f} ({of(s, 'sps_over_dense'):.2f})" for s in STORAGES[1:]),
        f"{of('dense', 'storage_ms'):.0f}",
        *(f"{of(s, 'storage_ms'):.0f} ({of(s, 'storage_over_dense'):.2f})" for s in STORAGES[1:]),
    ]


def line(cells: list[str]) -> str:
    widths = [13, 12, 8, 17, 14, 9, 10, 10, 8, 10, 10]
    padded = [f"{cells[0]:<{widths[0]}}"]
    padded += [f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return "| " + " | ".join(padded) + " |"


def header() -> str:
    return line(COLUMNS) + "\n|" + " --- |" + " ---: |" * (len(COLUMNS) - 1)


def mean_row(games: dict) -> list[str]:
    return row("mean", PAPER_MEAN, lambda storage, what: geometric_mean(games, storage, what))


def machine() -> dict:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": model,
        "cores": cores,
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
    }


def write(path: Path, args: Args, games: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    where = machine()
    settings = {"codec": args.codec, "repeats": args.repeats, "iterations": args.iterations,
                "updates": args.updates, "seed": args.seed}  # fmt: skip
    data = {"machine": where, "settings": settings, "games": games, "paper": PAPER}
    path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    table = [line(row(name, PAPER[name], lambda s, w, g=g: g[s][w])) for name, g in games.items()]
    slower = 100 * (geometric_mean(games, "compressed", "sps_over_dense") - 1)
    flags = f' BENCH_ARGS="{" ".join(sys.argv[1:])}"' if sys.argv[1:] else ""
    path.with_suffix(".md").write_text(
        f"""# PPO: memory and speed of a rollout's observations

Made by `make bench-ppo{flags}` on {where["cpu"]}, {where["cores"]} cores, {where["system"]}; \
Python {where["python"]}, numpy {where["numpy"]}, torch {where["torch"]} with \
{where["torch_threads"]} threads, no GPU. Codec `{args.codec}`, seed {args.seed}, \
8 environments x 128 steps, 4 epochs of 4 minibatches.

- **MB** (2^20 bytes, as in the paper) of one rollout's 1,024 observations, everything counted, mean
  over the first {args.iterations} rollouts of training; in brackets how many times smaller than
  uint8 stacks ({1024 * ppo_atari.STACK_BYTES / MIB:.1f} MB). `dense` holds float32 stacks, as
  CleanRL does. The paper's column is its Table II; its sizes are over whole trainings.
- **SPS**: agent steps per second of training, median of {args.repeats} runs by turns; in brackets
  over `dense` (median of paired ratios). `compressed` is {slower:+.1f} % in the geometric mean; the
  paper reports {PAPER_SPS[0]} and {PAPER_SPS[1]}, {100 * (PAPER_SPS[1] / PAPER_SPS[0] - 1):+.1f} %.
- **ms** per update to store a rollout's observations and to read what the network is given, game
  and network left out; in brackets over `dense`. Median of {args.updates} updates by turns over
  the same recorded games. Pixels were checked to be equal, and so were the trained weights.

The last row has geometric means, and the paper's own average.

{header()}
{chr(10).join(table)}
{line(mean_row(games))}
"""
    )


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if args.quick:
        args.games, args.repeats, args.iterations, args.updates = ("Pong", "Breakout"), 1, 2, 2
    unknown = [game for game in args.games if game not in PAPER]
    if unknown or not args.games:
        sys.exit(f"bench_ppo.py: error: --games {unknown} must be of {', '.join(PAPER)}")
    if min(args.repeats, args.updates) < 1 or args.iterations < 2:
        sys.exit("bench_ppo.py: error: --repeats and --updates are at least 1, --iterations 2")
    path = RESULTS / ("ppo-quick" if args.quick else "ppo")
    games: dict[str, dict] = {}
    print(header())
    work = len(STORAGES) * (args.repeats + args.updates + 1) * len(args.games)
    with tempfile.TemporaryDirectory() as folder, tqdm(total=work, leave=False) as bar:
        os.chdir(folder)  # the script writes its logs and checkpoints into runs/
        for game in args.games:
            measured = measure_training(args, game, bar), measure_storage(args, game, bar)
            games[game] = {
                storage: measured[0][storage] | measured[1][storage] for storage in STORAGES
            }
            tqdm.write(line(row(game, PAPER[game], lambda s, w, g=games[game]: g[s][w])))
            write(path, args, games)
        os.chdir(RESULTS)  # out of a folder that goes
    print(line(mean_row(games)))
    print(f"written: {path}.json, {path}.md")


if __name__ == "__main__":
    main()
