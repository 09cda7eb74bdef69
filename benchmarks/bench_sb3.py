"""Stable-Baselines3's replay buffer, sb3-extra-buffers' and ours, on the same frames of MsPacman.

Bytes per transition that a process truly holds, seconds to save and load, microseconds to add and
to draw 32. Each buffer is filled in a process of its own, the systems in another order each turn;
times are those of the thread, the least of the turns.

And whole trainings with Stable-Baselines3's buffers and ours, in pairs that take turns: PPO on Pong
and DQN on MsPacman, steps a second by the wall, and whether the weights are equal at the end.

    python -m benchmarks.bench_sb3 [--quick] [--help]

Writes `benchmarks/results/sb3.md`, `sb3.json` and `sb3.png` (`sb3-quick.*` with `--quick`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tyro

from benchmarks.common import RESULTS, by_turns, machine, make_command, resident_bytes
from benchmarks.frames import game_frames

SYSTEMS = ("Stable-Baselines3", "sb3-extra-buffers zstd-3", "sb3-extra-buffers zstd1", "ours")
QUICK_SLOTS = 2_000


@dataclass
class Args:
    game: str = "MsPacman"
    """which game"""
    slots: int = 40_000
    """rows of the buffer"""
    n_envs: int = 4
    """environments"""
    turns: int = 3
    """how often each is measured"""
    quick: bool = False
    """2,000 rows, one turn"""
    pairs: int = 10
    """trainings with each buffer, by turns"""
    train: bool = True
    """train, too"""
    system: str = ""
    """measure this one here, and print JSON"""


def make_buffer(system: str, size: int, n_envs: int) -> Any:
    from gymnasium import spaces

    pixels, actions = spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(9)
    common: dict[str, Any] = {"device": "cpu", "n_envs": n_envs}
    if system == "ours":
        from compressarray.sb3 import CompressedReplayBuffer

        return CompressedReplayBuffer(size, pixels, actions, **common)
    if system == "Stable-Baselines3":
        from stable_baselines3.common.buffers import ReplayBuffer

        return ReplayBuffer(size, pixels, actions, **common)
    from sb3_extra_buffers.compressed import CompressedReplayBuffer as Extra
    from sb3_extra_buffers.compressed import find_buffer_dtypes

    dtypes = find_buffer_dtypes(pixels.shape)
    method = system.rpartition(" ")[2]
    return Extra(size, pixels, actions, **common, dtypes=dtypes, compression_method=method)


def fill(buffer: Any, frames: Any, n_steps: int, n_envs: int) -> float:
    """Add stacks of four; return the thread's seconds for adding alone."""
    offsets = np.arange(n_envs) * (len(frames) // n_envs)
    obs = np.zeros((n_envs, 4, 84, 84), np.uint8)
    zeros, infos, spent = np.zeros(n_envs), [{}] * n_envs, 0.0
    for step in range(n_steps):
        new = frames[(offsets + step) % len(frames)]
        next_obs = np.concatenate([obs[:, 1:], new[:, None]], 1)
        before = time.thread_time()
        buffer.add(obs, next_obs, zeros, zeros, zeros, infos)
        spent += time.thread_time() - before
        obs = next_obs
    return spent


def measure(args: Args) -> dict[str, float]:
    import torch as th
    from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl

    th.set_num_threads(1)  # its threads' waiting for a busy core would be most of a draw

    frames = game_frames(args.game, min(args.slots * args.n_envs, 12288))
    small = make_buffer(args.system, 200 * args.n_envs, args.n_envs)
    fill(small, frames, 220, args.n_envs)  # compiled, and imported, before memory is measured
    small.sample(32)
    del small
    before = resident_bytes()
    buffer = make_buffer(args.system, args.slots * args.n_envs, args.n_envs)
    adding = fill(buffer, frames, args.slots, args.n_envs)
    held = resident_bytes() - before
    np.random.seed(0)  # noqa: NPY002 - what the buffers draw from
    draws = []
    for _ in range(200):
        start = time.thread_time()
        buffer.sample(32)
        draws.append(time.thread_time() - start)
    sampling = float(np.median(draws))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "buffer.pkl"
        start = time.thread_time()
        save_to_pkl(path, buffer)
        saving = time.thread_time() - start
        size = path.stat().st_size
        del buffer
        start = time.thread_time()
        load_from_pkl(path)
        loading = time.thread_time() - start
    transitions = args.slots * args.n_envs
    return {
        "resident_bytes_per_transition": held / transitions,
        "file_bytes_per_transition": size / transitions,
        "add_us": adding / args.slots * 1e6,
        "sample_32_us": sampling * 1e6,
        "save_s": saving,
        "load_s": loading,
    }


# -- trainings ---------------------------------------------------------------------------------


def train(algorithm: str, is_ours: bool, steps: int, seed: int) -> tuple[float, list[bytes]]:
    """Train with the settings of RL Zoo; return steps a second and the weights."""
    import torch as th
    from stable_baselines3 import DQN, PPO
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    from compressarray.sb3 import CompressedReplayBuffer, CompressedRolloutBuffer

    game, n_envs = ("Pong", 8) if algorithm == "PPO" else ("MsPacman", 1)
    env = VecFrameStack(make_atari_env(f"{game}NoFrameskip-v4", n_envs, seed), 4)
    common: dict[str, Any] = {"seed": seed, "device": "cpu"}
    if algorithm == "PPO":
        kind = CompressedRolloutBuffer if is_ours else None
        model: Any = PPO(
            "CnnPolicy", env, n_steps=128, batch_size=256, n_epochs=4, learning_rate=2.5e-4,
            clip_range=0.1, ent_coef=0.01, rollout_buffer_class=kind, **common,
        )  # fmt: skip
    else:
        replay = CompressedReplayBuffer if is_ours else None
        model = DQN(
            "CnnPolicy", env, buffer_size=100_000, learning_rate=1e-4, batch_size=32,
            learning_starts=steps // 4, train_freq=4, target_update_interval=1000,
            replay_buffer_class=replay, **common,
        )  # fmt: skip
    start = time.perf_counter()
    model.learn(steps)
    taken = time.perf_counter() - start
    env.close()
    weights = [each.detach().numpy().tobytes() for each in model.policy.parameters()]
    del model
    th.manual_seed(0)
    return steps / taken, weights


def trainings(pairs: int, *, quick: bool) -> dict[str, dict[str, Any]]:
    """By algorithm, how much faster ours is in each pair, and whether all weights are equal."""
    import ale_py
    import gymnasium as gym

    gym.register_envs(ale_py)
    found = {}
    for algorithm, steps in (("PPO", 2048), ("DQN", 2000)):
        n = 1024 if quick else steps
        for is_ours in (False, True):
            train(algorithm, is_ours, 1024 if algorithm == "PPO" else 400, 0)  # to warm up
        ratios, speeds, equal = [], [], True
        for pair in range(pairs):
            order = (False, True) if pair % 2 else (True, False)
            both = {is_ours: train(algorithm, is_ours, n, pair) for is_ours in order}
            equal &= both[True][1] == both[False][1]
            ratios.append(both[True][0] / both[False][0])
            speeds.append(both[False][0])
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        found[algorithm] = {
            "steps": n, "theirs_steps_per_s": float(np.median(speeds)), "ratio": float(middle),
            "quartiles": [float(low), float(high)], "ratios": ratios, "weights_are_equal": equal,
        }  # fmt: skip
    return found


def training_lines(found: dict[str, dict[str, Any]]) -> list[str]:
    games = {"PPO": "Pong, 8 environments", "DQN": "MsPacman"}
    lines = [
        "",
        "| training | steps | Stable-Baselines3's, steps/s | ours over theirs: median (quartiles) "
        "| equal weights |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for name, r in found.items():
        low, high = r["quartiles"]
        lines.append(
            f"| {name}, {games[name]} | {r['steps']:,} | {r['theirs_steps_per_s']:.0f} | "
            f"{r['ratio']:.3f} ({low:.3f} to {high:.3f}), {len(r['ratios'])} pairs | "
            f"{'yes' if r['weights_are_equal'] else 'no'} |"
        )
    return lines


def draw(best: dict[str, dict[str, float]], path: Path) -> None:
    """Save a picture: bytes and times of each system."""
    shown = {
        "resident_bytes_per_transition": "resident bytes per transition",
        "add_us": "add a row, us",
        "sample_32_us": "sample 32, us",
    }
    figure, axes = plt.subplots(1, len(shown), figsize=(11, 2.6), sharey=True)
    for axis, (name, title) in zip(axes, shown.items(), strict=True):
        values = [best[system][name] for system in SYSTEMS]
        bars = axis.barh(SYSTEMS, values, color=["0.6"] * (len(SYSTEMS) - 1) + ["tab:blue"])
        axis.bar_label(bars, [f"{value:,.0f}" for value in values], padding=3, fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.set_xlim(0, 1.25 * max(values))
        axis.xaxis.set_visible(False)
        axis.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    args = tyro.cli(Args)
    if args.system:
        print(json.dumps(measure(args)))
        return
    slots, turns = (QUICK_SLOTS, 1) if args.quick else (args.slots, args.turns)
    found: dict[str, list[dict[str, float]]] = {system: [] for system in SYSTEMS}
    for turn in range(turns):
        for system in by_turns(SYSTEMS, turn):
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.bench_sb3"]
            command += ["--game", args.game, "--slots", str(slots), "--n-envs", str(args.n_envs)]
            done = subprocess.run(
                [*command, "--system", system], check=True, stdout=subprocess.PIPE, text=True
            )
            found[system].append(json.loads(done.stdout.splitlines()[-1]))
    best = {
        system: {name: min(each[name] for each in runs) for name in runs[0]}
        for system, runs in found.items()
    }
    names = list(best["ours"])
    lines = [
        f"{args.game}, {slots:,} rows of {args.n_envs} environments, "
        f"random play, 12,288 frames of it over and over; {machine()}; "
        f"`{make_command('bench-sb3', args)}`",
        "",
        "| | " + " | ".join(name.replace("_", " ") for name in names) + " |",
        "| --- |" + " ---: |" * len(names),
    ]
    for system, row in best.items():
        lines.append(f"| {system} | " + " | ".join(f"{row[name]:,.4g}" for name in names) + " |")
    trained: dict[str, dict[str, Any]] = {}
    if args.train:
        trained = trainings(2 if args.quick else args.pairs, quick=args.quick)
        lines += training_lines(trained)
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    stem = "sb3-quick" if args.quick else "sb3"
    (RESULTS / f"{stem}.md").write_text("\n".join(lines) + "\n")
    made = {"machine": machine(), "best": best, "trainings": trained}
    (RESULTS / f"{stem}.json").write_text(json.dumps(made, indent=1) + "\n")
    draw(best, RESULTS / f"{stem}.png")


if __name__ == "__main__":
    main()
