"""RLlib's episode replay buffers and ours, fed the same chunks of Pong.

RLlib's own wrappers of Atari give stacks of four in float32, 84x84; a random policy plays, and its
episodes come in chunks as RLlib's runners cut them. Each buffer lives in a process of its own, and
the kinds are run by turns: growth of resident memory with all steps held, and the thread's time to
add a step and to draw 32, as RLlib's DQN does. What is drawn with the same seed is compared, byte
by byte.

    python -m benchmarks.bench_rllib [--quick] [--help]

Writes `benchmarks/results/rllib.md` and `rllib.json` (`rllib-quick.*` with `--quick`).
"""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import tyro

from benchmarks.common import RESULTS, by_turns, machine, make_command, resident_bytes

KINDS = ("RLlib's", "ours", "RLlib's, prioritized", "ours, prioritized")
BATCH_SIZE = 32


@dataclass
class Args:
    game: str = "Pong"
    """which of Atari's"""
    steps: int = 6_000
    """how many are held"""
    chunk: int = 32
    """steps of an episode that come at once"""
    draws: int = 50
    """batches that are drawn"""
    turns: int = 3
    """processes of each kind; the median counts"""
    quick: bool = False
    """a few hundred steps, one process of each kind"""
    kind: str = ""
    """measure this one here, and print JSON"""


def chunks(args: Args, seed: int) -> Iterator[Any]:
    """Play for good, and yield episodes in chunks."""
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode
    from ray.rllib.env.wrappers.atari_wrappers import wrap_atari_for_new_api_stack

    gym.register_envs(ale_py)
    env = gym.make(f"ALE/{args.game}-v5", frameskip=1)
    env = wrap_atari_for_new_api_stack(env, dim=84, framestack=4)
    rng = np.random.default_rng(seed)
    actions = int(env.action_space.n)
    number = 0
    while True:
        number += 1
        episode = SingleAgentEpisode(
            id_=f"{seed}-{number}",
            observation_space=env.observation_space,
            action_space=env.action_space,
        )
        obs, infos = env.reset(seed=seed + number)
        episode.add_env_reset(obs, infos)
        while not episode.is_done:
            for _ in range(args.chunk):
                action = int(rng.integers(actions))
                obs, reward, terminated, truncated, infos = env.step(action)
                episode.add_env_step(
                    obs, action, reward, infos, terminated=terminated, truncated=truncated
                )
                if episode.is_done:
                    break
            after = None if episode.is_done else episode.cut()
            yield episode.to_numpy()
            if after is None:
                break
            episode = after


def make_buffer(kind: str, capacity: int) -> Any:
    from ray.rllib.utils.replay_buffers import EpisodeReplayBuffer, PrioritizedEpisodeReplayBuffer

    from compressarray.ray.rllib import (
        CompressedEpisodeReplayBuffer,
        CompressedPrioritizedEpisodeReplayBuffer,
    )

    ours = kind.startswith("ours")
    if "prioritized" in kind:
        made = CompressedPrioritizedEpisodeReplayBuffer if ours else PrioritizedEpisodeReplayBuffer
        return made(capacity, alpha=0.6)
    return (CompressedEpisodeReplayBuffer if ours else EpisodeReplayBuffer)(capacity)


def draw(buffer: Any, kind: str) -> Any:
    """Draw as RLlib's DQN does: single steps, as episodes."""
    beta = {"beta": 0.4} if "prioritized" in kind else {}
    return buffer.sample(num_items=BATCH_SIZE, n_step=1, gamma=0.99, sample_episodes=True, **beta)


def fill(buffer: Any, args: Args, seed: int, steps: int) -> float:
    """Add so many steps, at least; return the thread's seconds of adding alone."""
    spent, added = 0.0, 0
    for chunk in chunks(args, seed):
        added += len(chunk)
        start = time.thread_time()
        buffer.add(chunk)
        spent += time.thread_time() - start
        del chunk
        if added >= steps:
            return spent / added
    raise AssertionError("games go on for good")


def measure(args: Args) -> dict[str, Any]:
    # What imports, kernels and allocators take once is nobody's.
    small = make_buffer(args.kind, 400)
    fill(small, args, 100, 400)
    draw(small, args.kind)
    del small
    before = resident_bytes()
    buffer = make_buffer(args.kind, 2 * args.steps)
    added = fill(buffer, args, 1, args.steps)
    grown = resident_bytes() - before
    held = buffer.get_num_timesteps()
    buffer.rng = np.random.default_rng(7)
    times, digest = [], hashlib.sha256()
    for _ in range(args.draws):
        start = time.thread_time()
        drawn = draw(buffer, args.kind)
        times.append(time.thread_time() - start)
        for episode in drawn:
            for obs in episode.get_observations():
                digest.update(np.ascontiguousarray(obs).tobytes())
    return {
        "bytes_per_step": grown / held,
        "add_us": added * 1e6,
        "sample_ms": statistics.median(times) * 1e3,
        "drawn": digest.hexdigest(),
    }


def main(args: Args) -> None:
    if args.kind:
        print(json.dumps(measure(args)))
        return
    command = make_command("bench-rllib", args)
    if args.quick:
        args.steps, args.draws, args.turns = 600, 5, 1
    taken: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for turn in range(args.turns):
        for kind in by_turns(KINDS, turn):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.bench_rllib", "--kind", kind,
                 "--game", args.game, "--steps", str(args.steps), "--chunk", str(args.chunk),
                 "--draws", str(args.draws)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                sys.exit(f"bench_rllib.py: error: {kind} failed:\n{done.stderr}")
            taken[kind].append(json.loads(done.stdout.splitlines()[-1]))
            print(kind, taken[kind][-1], flush=True)
    found = {
        kind: {
            what: statistics.median(one[what] for one in of_kind)
            for what in ("bytes_per_step", "add_us", "sample_ms")
        }
        for kind, of_kind in taken.items()
    }
    for theirs, ours in (KINDS[:2], KINDS[2:]):
        if {one["drawn"] for one in taken[theirs]} != {one["drawn"] for one in taken[ours]}:
            sys.exit(f"bench_rllib.py: error: {ours} drew other pixels than {theirs}")
    rows = [
        f"| {kind} | {row['bytes_per_step']:,.0f} | {row['add_us']:,.0f} | {row['sample_ms']:.1f} |"
        for kind, row in found.items()
    ]
    text = "\n".join(
        [
            "# RLlib's replay buffers",
            "",
            f"Made by `{command}` on {machine()}. {args.steps:,} steps of {args.game} under "
            "random play by RLlib's own wrappers (84x84, stacks of four, float32), in chunks of "
            f"{args.chunk}; medians of {args.turns} processes of each kind, by turns; times are "
            "the thread's. What was drawn is the same, byte by byte.",
            "",
            "| buffer | growth of resident memory, bytes a step | `add`, us a step "
            f"| `sample` of {BATCH_SIZE}, ms |",
            "| --- | --: | --: | --: |",
            *rows,
        ]
    )
    stem = "rllib-quick" if args.quick else "rllib"
    (RESULTS / f"{stem}.md").write_text(text + "\n")
    made = {"machine": machine(), "settings": {"steps": args.steps}, "kinds": found}
    (RESULTS / f"{stem}.json").write_text(json.dumps(made, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
