"""One million transitions of a real game in one ReplayBuffer: what the process really takes.

A random policy plays the game, and the buffer is fed the stacks that ALE gives. Along the fill: the
bytes that the buffer says it holds, the growth of the process's resident memory, and how long
adding a transition and sampling 32 take.

    python -m benchmarks.bench_million [--game Pong] [--codec delta-huffman] [--help]

Writes `benchmarks/results/million.json` and `million.md` (other settings than the usual ones: under
another name).
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass

import tyro
from tqdm import tqdm

from benchmarks.bench_ppo import RESULTS, machine
from benchmarks.bench_replay import PAPER, random_actions, table
from benchmarks.common import resident_bytes
from cleanrl_scripts import qrdqn_atari
from compressarray import ReplayBuffer

BATCH_SIZE = 32
SAMPLE_EVERY = 100  # transitions: as often as the script would take longer than the fill


@dataclass
class Args:
    game: str = "Pong"
    """which of the paper's games"""
    codec: str = "delta"
    """how frames are stored"""
    transitions: int = 1_000_000
    """transitions to add"""
    num_envs: int = 1
    """the number of parallel game environments"""
    parts: int = 10
    """lines of the table"""
    seed: int = 1
    """seed of the game, the policy and the sampling"""


def make_buffer(args: Args, envs, capacity: int) -> ReplayBuffer:
    return ReplayBuffer(
        capacity,
        envs.single_observation_space,
        envs.single_action_space,
        args.num_envs,
        codec=args.codec,
        seed=args.seed,
    )


def fill(args: Args, envs, buffer: ReplayBuffer, seed: int):
    """Play and add for good; after each step yields the seconds of `add` and of `sample`."""
    obs, _ = envs.reset(seed=seed)
    for step, actions in enumerate(random_actions(args.num_envs, envs.single_action_space.n, seed)):
        next_obs, rewards, terminations, truncations, infos = envs.step(actions)
        start = time.perf_counter()
        buffer.add(obs, actions, rewards, terminations, truncations, next_obs, infos)
        added = time.perf_counter()
        obs = next_obs
        sampling_s = None
        if step % SAMPLE_EVERY == 0:
            buffer.sample(BATCH_SIZE)
            sampling_s = time.perf_counter() - added
        yield added - start, sampling_s


def measure(args: Args) -> list[dict]:
    script_args = qrdqn_atari.Args(env_id=f"ALE/{args.game}-v5")
    envs = qrdqn_atari.LearnerSignals(qrdqn_atari.make_env(script_args, args.num_envs))
    # Kernels are compiled and the game's memory is there before anything is counted.
    warm_up = fill(args, envs, make_buffer(args, envs, 4000), args.seed + 1)
    for _ in range(2000):
        next(warm_up)
    warm_up.close()
    before = resident_bytes()
    buffer = make_buffer(args, envs, args.transitions)
    filling = fill(args, envs, buffer, args.seed)
    rows = []
    steps = args.transitions // args.num_envs // args.parts
    bar = tqdm(total=args.transitions, unit="transition", leave=False,
               mininterval=0.5 if sys.stderr.isatty() else 30)  # fmt: skip
    for _ in range(args.parts):
        # No list of all times: it would grow beside what is measured.
        adding_s, slowest_s, sampling_s = 0.0, 0.0, []
        start = time.perf_counter()
        for _ in range(steps):
            adding, sampling = next(filling)
            adding_s += adding
            slowest_s = max(slowest_s, adding)
            if sampling is not None:
                sampling_s.append(sampling)
            bar.update(args.num_envs)
        rows.append(
            {
                "transitions": len(buffer),
                "nbytes_stored": buffer.nbytes_stored,
                "rss_growth": resident_bytes() - before,
                "add_us": 1e6 * adding_s / (steps * args.num_envs),
                "add_slowest_ms": 1e3 * slowest_s,
                "sample_us": 1e6 * statistics.median(sampling_s),
                "steps_per_s": steps * args.num_envs / (time.perf_counter() - start),
            }
        )
    bar.close()
    envs.close()
    return rows


def row(r: dict) -> list[str]:
    return [
        f"{r['transitions']:,}",
        f"{r['nbytes_stored'] / 1e6:.1f}",
        f"{r['rss_growth'] / 1e6:.1f}",
        f"{r['nbytes_stored'] / r['transitions']:.1f}",
        f"{qrdqn_atari.STACK_BYTES * r['transitions'] / r['nbytes_stored']:.0f}",
        f"{r['add_us']:.1f}",
        f"{r['add_slowest_ms']:.1f}",
        f"{r['sample_us']:.0f}",
        f"{r['steps_per_s']:,.0f}",
    ]


COLUMNS = ["transitions", "nbytes_stored, MB", "growth of RSS, MB", "bytes each",
           "times smaller than stacks", "add, us", "slowest add, ms", "sample 32, us",
           "steps/s with the game"]  # fmt: skip


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if args.game not in PAPER:
        sys.exit(f"bench_million.py: error: --game {args.game} must be of {', '.join(PAPER)}")
    if args.num_envs < 1 or args.parts < 1 or args.transitions < SAMPLE_EVERY * args.parts:
        sys.exit(
            "bench_million.py: error: --num-envs and --parts are at least 1, --transitions "
            f"{SAMPLE_EVERY} times --parts"
        )
    rows = measure(args)
    peak = qrdqn_atari.peak_rss()
    where = machine()
    dense_gb = qrdqn_atari.STACK_BYTES * rows[-1]["transitions"] / 1e9
    made = table(COLUMNS, list(map(row, rows)))
    print(made)
    print(f"\npeak RSS of the process: {peak}; dense stacks would take {dense_gb:.1f} GB, and "
          f"{2 * dense_gb:.1f} GB with next_obs")  # fmt: skip
    usual = vars(args) == vars(Args())
    name = "million" if usual else f"million-{args.game}-{args.codec}-{args.transitions}"
    path = RESULTS / name
    path.parent.mkdir(exist_ok=True)
    data = {"machine": where, "settings": vars(args), "peak_rss": peak, "rows": rows}
    path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    path.with_suffix(".md").write_text(
        f"""# {rows[-1]["transitions"]:,} transitions in one ReplayBuffer

Made by `make bench-million` on {where["cpu"]}, {where["cores"]} cores, {where["system"]}; Python \
{where["python"]}, numpy {where["numpy"]}. {args.game}, codec `{args.codec}`, {args.num_envs} \
environment(s), a random policy, seed {args.seed}; each {SAMPLE_EVERY}th step was followed by a \
sample of {BATCH_SIZE}.

Peak resident memory of the whole process, torch and the game included: {peak}. Dense stacks would
take {dense_gb:.1f} GB, and {2 * dense_gb:.1f} GB with `next_obs`. Ratios are against stacks stored
once, {qrdqn_atari.STACK_BYTES:,} bytes each.

{made}
"""
    )
    print(f"written: {path}.json, {path}.md")


if __name__ == "__main__":
    main()
