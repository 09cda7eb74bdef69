"""Runners on Ray that stream compressed transitions to one learner, beside dense ones through Ray.

Runners play an Atari game at random, some games at once each; the learner takes what comes and
draws batches meanwhile. Ours send what a change feed says and the learner keeps replicas. The
others send their steps as they are, stacks of observations and of next observations, through Ray's
object store, and the learner keeps them in one array and draws by fancy indexing. A third kind
plays and sends nothing: what the environments give. Kinds take turns.

    python -m benchmarks.bench_ray [--game Pong] [--seconds 8] [--help]

Writes `benchmarks/results/ray.md` and `ray.json`.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import ray
import tyro

from benchmarks.common import RESULTS, machine, make_command
from compressarray import ReplayBuffer
from compressarray.distributed import JointReplay
from compressarray.ray import RayEnvRunner, RayReplay, connect, start_runners

STACK = (4, 84, 84)
BATCH_SIZE = 32
KINDS = ("ours", "dense", "nothing sent")


@dataclass
class Args:
    game: str = "Pong"
    """which of Atari's"""
    runners: tuple[int, ...] = (1, 2, 4)
    """how many play at once"""
    envs: int = 4
    """games of each"""
    steps: int = 32
    """of each game, asked for at once"""
    seconds: float = 3
    """of each measurement"""
    turns: int = 3
    """measurements of each kind; the median counts"""
    capacity: int = 20_000
    """transitions of each runner"""


class Player(RayEnvRunner):
    """Plays at random."""

    def __init__(self, index: int, args: Args, keeps: bool) -> None:
        gym.register_envs(ale_py)
        self.n, self.keeps = args.envs, keeps
        self.envs = gym.make_vec(
            f"ALE/{args.game}-v5",
            num_envs=args.envs,
            num_threads=1,  # a runner has one CPU
            vectorization_mode="vector_entry_point",
            autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
        )
        self.obs, _ = self.envs.reset(seed=index)
        self.rng = np.random.default_rng(index)
        space = self.envs.single_action_space
        self.num_actions = int(space.n)
        if keeps:
            self.buffer = ReplayBuffer(
                args.capacity, self.envs.single_observation_space, space, args.envs
            )

    def play(self) -> tuple[Any, ...]:
        action = self.rng.integers(self.num_actions, size=self.n)
        next_obs, reward, terminated, truncated, info = self.envs.step(action)
        obs, self.obs = self.obs, next_obs
        return obs, action, reward, terminated, truncated, next_obs, info

    def step(self) -> None:
        self.buffer.add(*self.play())

    def dense(self, n_steps: int) -> list[np.ndarray]:
        """Steps as they are: obs, action, reward, terminated, truncated, next_obs."""
        rows = []
        for _ in range(n_steps):
            *row, info = self.play()
            ended = row[3] | row[4]
            if ended.any():
                row[5] = row[5].copy()
                row[5][ended] = np.stack(list(info["final_obs"][ended]))
            rows.append(row)
        return [np.concatenate(each) for each in zip(*rows, strict=True)]

    def nothing(self, n_steps: int) -> int:
        for _ in range(n_steps):
            self.play()
        return n_steps * self.n


class DenseReplay:
    """What an expert would write: steps arrive through the object store, and go into arrays."""

    def __init__(self, handles: dict[str, Any], args: Args) -> None:
        self.handles, self.args = list(handles.values()), args
        n = args.capacity * len(self.handles)
        kinds = [
            (STACK, np.uint8),
            ((), np.int64),
            ((), np.float64),
            ((), bool),
            ((), bool),
            (STACK, np.uint8),
        ]
        self.arrays = [np.zeros((n, *shape), dtype) for shape, dtype in kinds]
        self.inserts, self.bytes = 0, 0
        self.pending = {h.dense.remote(args.steps): h for h in self.handles for _ in range(2)}
        self.rng = np.random.default_rng(0)

    def collect(self) -> None:
        ready, _ = ray.wait(list(self.pending), num_returns=len(self.pending), timeout=0)
        for reference in ready:
            handle = self.pending.pop(reference)
            rows = ray.get(reference)
            self.bytes += sum(row.nbytes for row in rows)
            n = len(rows[0])
            at = (self.inserts + np.arange(n)) % len(self.arrays[0])
            for array, row in zip(self.arrays, rows, strict=True):
                array[at] = row
            self.inserts += n
            self.pending[handle.dense.remote(self.args.steps)] = handle

    def sample(self, n: int) -> list[np.ndarray]:
        rows = self.rng.integers(min(self.inserts, len(self.arrays[0])), size=n)
        return [array[rows] for array in self.arrays]


def measure(kind: str, n: int, args: Args) -> dict[str, float]:
    """Play for a while with ``n`` runners; what came, and how long drawing took."""
    handles = start_runners(Player, n, args, kind == "ours", num_cpus=0.1)
    try:
        if kind == "nothing sent":
            return play_alone(handles, args)
        replay: Any = (
            RayReplay(handles, steps=args.steps, seed=1, poll_s=60)
            if kind == "ours"
            else DenseReplay(handles, args)
        )
        while replay_inserts(replay) < 50 * n * args.envs:  # kernels are there, games have begun
            replay.collect()
            time.sleep(0.005)
        before, sent = replay_inserts(replay), replay_bytes(replay)
        spent, n_batches, start = 0.0, 0, time.perf_counter()
        while (now := time.perf_counter()) - start < args.seconds:
            replay.collect()
            begun = time.perf_counter()
            replay.sample(BATCH_SIZE)  # ours has just looked at what has come: it does not now
            spent += time.perf_counter() - begun
            n_batches += 1
            time.sleep(0.002)  # the learner's network computes elsewhere
        took = now - start
        gained = replay_inserts(replay) - before
        return {
            "transitions_per_s": gained / took,
            "bytes_per_transition": (replay_bytes(replay) - sent) / max(gained, 1),
            "sample_us": spent / n_batches * 1e6,
        }
    finally:
        for handle in handles.values():
            ray.kill(handle)


def play_alone(handles: dict[str, Any], args: Args) -> dict[str, float]:
    ray.get([handle.nothing.remote(50) for handle in handles.values()])
    start, n = time.perf_counter(), 0
    pending = {h.nothing.remote(args.steps): h for h in handles.values() for _ in range(2)}
    while (now := time.perf_counter()) - start < args.seconds:
        ready, _ = ray.wait(list(pending), timeout=1)
        for reference in ready:
            n += ray.get(reference)
            handle = pending.pop(reference)
            pending[handle.nothing.remote(args.steps)] = handle
    return {"transitions_per_s": n / (now - start)}


def replay_inserts(replay: Any) -> int:
    return int(replay.inserts if isinstance(replay, DenseReplay) else replay.limiter.inserts)


def replay_bytes(replay: Any) -> int:
    return int(replay.bytes if isinstance(replay, DenseReplay) else replay.stats()["bytes"])


def quiet_sample_us(args: Args) -> float:
    """Microseconds of our `sample` with as much to draw from, and no runner beside."""
    runner = Player(0, args, True)
    for _ in range(1000):
        runner.step()
    buffer = runner.buffer
    times = []
    for _ in range(1000):
        begun = time.perf_counter()
        buffer.sample(BATCH_SIZE)
        times.append(time.perf_counter() - begun)
        time.sleep(0.002)  # as beside runners: caches are cold
    return float(np.median(times) * 1e6)


def learner_costs(n: int, args: Args) -> dict[str, float]:
    """What a learner spends on ``n`` runners, without Ray: processor time, one thread."""
    per_runner = max(256, 40_000 // n)
    players = [Player(i, replace(args, capacity=per_runner), True) for i in range(min(n, 4))]
    replay = JointReplay(steps=args.steps, seed=1)
    names = [f"runner {i}" for i in range(n)]
    for name in names:  # of four players, each plays several runners to the learner
        player = players[names.index(name) % len(players)]
        for _ in range(2):
            request = replay.request(name)._replace(learner=name)
            replay.take(name, player.collect(*request))
    spent, n_taken = 0.0, 0
    for _ in range(max(2, 200 // n)):
        for i, name in enumerate(names):
            request = replay.request(name)._replace(learner=name)
            delivery = players[i % len(players)].collect(*request)
            begun = time.thread_time()
            n_taken += replay.take(name, delivery)
            spent += time.thread_time() - begun
    costs = {"take_us": spent / n_taken * 1e6}
    for size in (32, 512):
        times = []
        for _ in range(100):
            begun = time.thread_time()
            replay.sample(size)
            times.append(time.thread_time() - begun)
        costs[f"sample_{size}_us"] = float(np.median(times) * 1e6)
    return costs


def main(args: Args) -> None:
    connect(None, num_cpus=16, include_dashboard=False, log_to_driver=False)
    quiet = quiet_sample_us(args)
    costs = {n: learner_costs(n, args) for n in (1, 8, 100)}
    found: dict[int, dict[str, Any]] = {}
    for n in args.runners:
        taken = defaultdict(list)
        for _ in range(args.turns):
            for kind in KINDS:
                taken[kind].append(measure(kind, n, args))
        found[n] = {
            kind: {name: float(np.median([each[name] for each in of_kind])) for name in of_kind[0]}
            for kind, of_kind in taken.items()
        }
        print(n, json.dumps(found[n]), flush=True)
    rows = [
        f"| {n} | {by['nothing sent']['transitions_per_s']:,.0f} "
        f"| {by['ours']['transitions_per_s']:,.0f} | {by['dense']['transitions_per_s']:,.0f} "
        f"| {by['ours']['bytes_per_transition']:,.0f} "
        f"| {by['dense']['bytes_per_transition']:,.0f} "
        f"| {by['dense']['bytes_per_transition'] / by['ours']['bytes_per_transition']:,.0f}x "
        f"| {by['ours']['sample_us']:,.0f} | {by['dense']['sample_us']:,.0f} |"
        for n, by in found.items()
    ]
    path = RESULTS / ("ray" if vars(args) == vars(Args()) else "ray-quick")
    table = "\n".join(
        [
            "| runners | transitions a second: environments alone | ours | dense "
            "| bytes a transition: ours | dense | fewer "
            f"| drawing {BATCH_SIZE} meanwhile, µs: ours | dense |",
            "| --: | --: | --: | --: | --: | --: | --: | --: | --: |",
            *rows,
        ]
    )
    cost_table = "\n".join(
        [
            "| replicas | taking a transition, µs | drawing 32, µs | drawing 512, µs |",
            "| --: | --: | --: | --: |",
            *(
                f"| {n} | {c['take_us']:.1f} | {c['sample_32_us']:,.0f} "
                f"| {c['sample_512_us']:,.0f} |"
                for n, c in costs.items()
            ),
        ]
    )
    path.with_suffix(".md").write_text(
        f"""# Runners on Ray

Made by `{make_command("bench-ray", args)}` on {machine()}, all on one machine.
{args.game}, random play, {args.envs} games a runner, {args.steps} steps of each asked for at once;
medians of {args.turns} turns of {args.seconds:g} s, kinds alternating. Dense: stacks of obs
and next obs through Ray's object store, drawn from one array by fancy indexing. Bytes are
those of what is sent, without Ray's own envelope. With no runner beside, ours draws {BATCH_SIZE} in
{quiet:,.0f} µs.

{table}

What a learner spends on replicas of so many runners, in processor time of one thread, without
Ray. A message brings 128 transitions where there is one replica, and more the more there are, which
makes taking them cheaper: four players stand for all runners.

{cost_table}
"""
    )
    data = {
        "machine": machine(), "quiet_sample_us": quiet, "runners": found, "learner": costs,
    }  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    print(table, cost_table, sep="\n\n")
    print(f"written: {path}.md, {path}.json")


if __name__ == "__main__":
    main(tyro.cli(Args, description=(__doc__ or "").split("\n\n")[0]))
