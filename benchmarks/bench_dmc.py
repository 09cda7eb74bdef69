"""DrQ-v2's replay buffer on the DeepMind Control Suite: memory and speed of three storages.

Walker walk and quadruped walk, in the paper's setting (gray images, black floor) and as shipped, in
RGB, beside Table I of the paper (Differentially Encoded Observation Spaces, arXiv 2310.01767):

- gigabytes of a million transitions, projected from those of `--transitions` steps of real episodes
  under random actions (and of buffers that really hold a million, the episodes over and over);
- milliseconds per update to add and to sample, task and network left out: the recorded episodes
  are played to the script's own buffers, by turns;
- steps per second of the whole script, in short runs by turns.

    python -m benchmarks.bench_dmc [--quick] [--tasks walker_walk] [--codec delta-huffman] [--help]

Writes `benchmarks/results/dmc.json` and `dmc.md` (`dmc-quick.*` with `--quick`).
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

from benchmarks.common import RESULTS, by_turns, make_command
from cleanrl_scripts import drqv2_dmc
from compressarray.replay.footprint import memory_bytes
from compressarray.store.workers import n_threads

CACHE = Path(__file__).parent / ".cache"
STORAGES = ("dense", "compressed", "indexed")
PACKED = "indexed delta-huffman"  # timed beside these, without training
RGB_STACK, GRAY_STACK = 3 * 3 * 84 * 84, 3 * 84 * 84  # 63,504 and 21,168 bytes
MILLION = 1_000_000

# Ways to hold the pixels whose size is given: the script's flags for each. Half and Full are the
# paper's.
SIZED = {
    "half": ["--half-compress"],
    "full": ["--full-compress"],
    "delta": ["--codec", "delta"],
    "delta-huffman": ["--codec", "delta-huffman"],
}

FILLED = "delta-huffman"  # of which a million are held

# Table I, in the paper's setting: GB and times smaller than 63.5 GB of RGB stacks, and frames per
# second before and after.
PAPER = {
    "walker_walk": {"half": (7.1, 8.9, 119, 142), "full": (3.8, 16.7, 119, 73)},
    "quadruped_walk": {"half": (7.1, 9.0, 184, 243), "full": (4.1, 15.5, 184, 135)},
}
PRESETS = ("paper", "suite")
ACTION_DIMS = {"walker_walk": 6, "quadruped_walk": 12}


@dataclass
class Args:
    tasks: tuple[str, ...] = tuple(PAPER)
    """which tasks"""
    presets: tuple[str, ...] = PRESETS
    """paper: gray, black floor; suite: RGB as shipped"""
    codec: str = "delta"
    """codec of `compressed` and `indexed` where speed is measured"""
    transitions: int = 20_000
    """transitions that are recorded and held"""
    fill: tuple[str, ...] = ("paper",)
    """settings in which a buffer of a million transitions is filled, too, if memory allows it"""
    updates: int = 60
    """updates whose adding and sampling is timed, by turns"""
    batch_size: int = 256
    """the batch size"""
    n_step: int = 3
    """steps of reward"""
    repeats: int = 3
    """training runs per storage, by turns (0: none)"""
    steps: int = 40
    """steps of a training run in which an update is made every other step"""
    torch_threads: int = 0
    """threads torch computes with (0: torch's own choice)"""
    seed: int = 1
    """seed of the tasks and of the networks"""
    quick: bool = False
    """a little of everything: whether it works, not how fast it is"""


def script_args(args: Args, task: str, preset: str, *flags: str) -> drqv2_dmc.Args:
    settings = [
        *("--quiet", "--env-id", task, "--preset", preset, "--seed", str(args.seed)),
        *("--batch-size", str(args.batch_size), "--n-step", str(args.n_step)),
        *("--buffer-size", str(args.transitions), "--torch-threads", str(args.torch_threads)),
        *("--eval-every", "0", "--checkpoint-every", "0", "--lookahead", "0"),
    ]
    return drqv2_dmc.parse_args([*settings, *flags])


def record(args: Args, task: str, preset: str) -> tuple[np.ndarray, np.ndarray]:
    """Frames of whole episodes under random actions, and which of them begin one; cached."""
    path = CACHE / f"{task}-{preset}-{args.seed}-{args.transitions}.npz"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        env = drqv2_dmc.make_env(script_args(args, task, preset), stacked=False)
        rng = np.random.default_rng(args.seed)
        frames, begins = [env.reset(seed=args.seed)[0]], [True]
        over = False
        with tqdm(total=args.transitions, desc=f"{task}, {preset}, recording", leave=False) as bar:
            while bar.n < args.transitions or not over:
                action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
                frame, _, terminated, truncated, _ = env.step(action)
                frames.append(frame)
                begins.append(False)
                bar.update()
                over = terminated or truncated or (args.quick and bar.n >= args.transitions)
                if over and bar.n < args.transitions:
                    frames.append(env.reset()[0])
                    begins.append(True)
        env.close()
        np.savez(path, frames=np.stack(frames), begins=np.array(begins))
    with np.load(path) as file:
        return file["frames"], file["begins"]


class Recording(gym.vector.VectorEnv):
    """Plays recorded episodes over and over, SAME_STEP; in stacks or frame by frame."""

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}  # noqa: RUF012
    num_envs = 1

    def __init__(self, frames: np.ndarray, begins: np.ndarray, action_dim: int, stack: int):
        self.frames, self.begins, self.stack = frames, begins, stack
        shape = (stack, *frames.shape[1:]) if stack else frames.shape[1:]
        self.single_observation_space = gym.spaces.Box(0, 255, shape, np.uint8)
        self.single_action_space = gym.spaces.Box(-1, 1, (action_dim,), np.float32)
        spaces = (self.single_observation_space, self.single_action_space)
        self.observation_space, self.action_space = (
            gym.vector.utils.batch_space(space, 1) for space in spaces
        )
        self.first = np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))

    def observe(self, at: int) -> np.ndarray:
        if not self.stack:
            return self.frames[at]
        return self.frames[np.maximum(np.arange(at - self.stack + 1, at + 1), self.first[at])]

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        self.at = 0
        return self.observe(0)[None], {}

    def step(self, actions):  # noqa: ARG002
        self.at += 1
        after = (self.at + 1) % len(self.frames)
        over, info = bool(self.begins[after]), {}
        if over:
            final = np.empty(1, dtype=object)
            final[0] = self.observe(self.at)
            info = {"final_obs": final, "_final_obs": np.array([True])}
            self.at = after
        truncated = np.array([over])
        return self.observe(self.at)[None], np.ones(1), np.zeros(1, bool), truncated, info


class Player:
    """The script's buffer, fed with a recording."""

    def __init__(self, args: drqv2_dmc.Args, recording: tuple[np.ndarray, np.ndarray]):
        stack = 0 if args.obs_storage == "indexed" else args.frame_stack
        action_dim = ACTION_DIMS[args.env_id]
        self.args, envs = args, Recording(*recording, action_dim, stack)
        self.storage = drqv2_dmc.make_storage(args, envs)
        self.obs, _ = self.storage.envs.reset(seed=args.seed)
        self.batches = self.storage.replay.batches(args.batch_size, lookahead=args.lookahead)
        self.actions = np.random.default_rng(0).uniform(-1, 1, (1, action_dim)).astype(np.float32)

    def add(self, steps: int) -> None:
        envs, replay, stacks = self.storage
        for _ in range(steps):
            stacks(self.obs)  # for the action
            next_obs, rewards, terminations, truncations, infos = envs.step(None)
            replay.add(self.obs, self.actions, rewards, terminations, truncations, next_obs, infos)
            self.obs = next_obs

    def update(self) -> tuple[float, float, drqv2_dmc.Batch]:
        """Milliseconds to add an update's steps and to sample for it, and the sample."""
        start = time.perf_counter()
        self.add(self.args.train_frequency)
        added = time.perf_counter()
        batch = next(self.batches)
        return 1e3 * (added - start), 1e3 * (time.perf_counter() - added), batch


def measure_sizes(args: Args, task: str, preset: str, recording, bar: tqdm) -> dict:
    sizes = {}
    for name, flags in SIZED.items():
        bar.set_description(f"{task}, {preset}, filling {name}")
        player = Player(script_args(args, task, preset, *flags), recording)
        player.add(args.transitions)
        replay = player.storage.replay
        sizes[name] = size(replay.nbytes_stored / len(replay))
        bar.update()
    if preset in args.fill:
        bar.set_description(f"{task}, {preset}, a million of {FILLED}")
        there = memory_bytes()
        if there is None or sizes[FILLED]["gb_per_million"] * 1e9 < there / 2:
            flags = [*SIZED[FILLED], "--buffer-size", str(MILLION)]
            player = Player(script_args(args, task, preset, *flags), recording)
            player.add(MILLION)
            sizes["million"] = size(player.storage.replay.nbytes_stored / MILLION)
        bar.update()
    return sizes


def size(each: float) -> dict:
    return {
        "bytes_per_transition": each,
        "gb_per_million": each * MILLION / 1e9,
        "times_smaller_than_rgb": RGB_STACK / each,
        "times_smaller_than_gray": GRAY_STACK / each,
    }


def storage_flags(args: Args, storage: str) -> list[str]:
    if storage == PACKED:
        return ["--obs-storage", "indexed", "--codec", "delta-huffman"]
    return ["--obs-storage", storage, "--codec", args.codec]


def measure_storage(args: Args, task: str, preset: str, recording, bar: tqdm) -> dict:
    storages = (*STORAGES, PACKED)
    players = {}
    for storage in storages:
        bar.set_description(f"{task}, {preset}, filling {storage}")
        flags = storage_flags(args, storage)
        players[storage] = Player(script_args(args, task, preset, *flags), recording)
        players[storage].add(args.transitions)
    times: dict[str, list[tuple[float, float]]] = {storage: [] for storage in storages}
    bar.set_description(f"{task}, {preset}, adding and sampling")
    for number in range(args.updates + 1):
        last = {}
        for storage in by_turns(storages, number):
            *ms, last[storage] = players[storage].update()
            times[storage].append(tuple(ms))
        for storage in storages:
            pairs = zip(last["dense"], last[storage], strict=False)
            if not all(np.array_equal(a, b) for a, b in pairs):
                raise AssertionError(f"{task}: {storage} does not give what dense gives")
    bar.update()
    dense = [sum(ms) for ms in times["dense"][1:]]
    out = {}
    for storage in storages:
        ms = times[storage][1:]  # the first update compiles kernels and touches memory
        out[storage] = {
            "adding_ms": statistics.median(added for added, _ in ms),
            "sampling_ms": statistics.median(sampled for _, sampled in ms),
            "storage_ms": statistics.median(map(sum, ms)),
            "storage_over_dense": statistics.median(
                sum(each) / d for each, d in zip(ms, dense, strict=True)
            ),
        }
    return out


def measure_training(args: Args, task: str, preset: str, bar: tqdm) -> dict:
    sps: dict[str, list[float]] = {storage: [] for storage in STORAGES}
    start = max(args.n_step, 300)  # a batch has something to choose from
    flags = ["--learning-starts", str(start), "--random-steps", str(start)]
    flags += ["--total-timesteps", str(start + args.steps), "--lookahead", "1"]
    weights = {}
    for repeat in range(args.repeats):
        for storage in by_turns(STORAGES, repeat):
            bar.set_description(f"{task}, {preset}, {storage}, run {repeat + 1}")
            options = [*flags, *storage_flags(args, storage)]
            result = drqv2_dmc.train(script_args(args, task, preset, *options))
            # The first updates compile kernels and touch memory.
            (first, began), *_, (last, ended) = result["update_ends"][2:]
            sps[storage].append((last - first) / (ended - began))
            weights[storage] = [p.detach().clone() for p in result["agent"].parameters()]
            bar.update()
    for storage in weights:
        if not all(map(torch.equal, weights["dense"], weights[storage])):
            raise AssertionError(f"{task}: {storage} did not learn what dense learned")
    return {
        storage: {
            "sps": statistics.median(sps[storage]),
            "sps_over_dense": statistics.median(
                a / b for a, b in zip(sps[storage], sps["dense"], strict=True)
            ),
        }
        for storage in weights
    }


def markdown(rows: list[list[str]]) -> str:
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + " --- |" * 2 + " ---: |" * (len(rows[0]) - 2), *body])


def size_table(results: dict) -> str:
    rows = [["task", "setting", "paper's Half, Full", "GB half", "full", "delta", "delta-huffman"]]
    for key, result in results.items():
        task, preset = key.split("/")
        paper = PAPER.get(task, {}) if preset == "paper" else {}
        cells = [", ".join(f"{gb} ({x}x)" for gb, x, *_ in paper.values()) or "-"]
        for name in SIZED:
            each = result["sizes"][name]
            gray = f", {each['times_smaller_than_gray']:.1f}x" if preset == "paper" else ""
            ratio = f"{each['times_smaller_than_rgb']:.1f}x{gray}"
            cells.append(f"{each['gb_per_million']:.2f} ({ratio})")
        rows.append([task, preset, *cells])
    for preset in PRESETS:
        of = [each["sizes"] for key, each in results.items() if key.endswith(preset)]
        if of:
            means = [
                statistics.mean(each[name]["times_smaller_than_rgb"] for each in of)
                for name in SIZED
            ]
            paper = "9.0x, 15.9x" if preset == "paper" else "-"  # its own row
            # gray stacks are a third of RGB ones
            cells = [f"{x:.1f}x" + (f", {x / 3:.1f}x" if preset == "paper" else "") for x in means]
            rows.append(["mean", preset, paper, *cells])
    return markdown(rows)


def speed_table(results: dict) -> str:
    timed = [f"ms {name}" for name in (*STORAGES, PACKED)]
    rows = [["task", "setting", *timed, *(f"steps/s {name}" for name in STORAGES)]]
    rows[0].append("paper's frames/s before, after: Half; Full")
    for key, result in results.items():
        cells = [
            f"{each['storage_ms']:.1f} ({each['storage_over_dense']:.2f})"
            for each in result["storage"].values()
        ]
        cells += [
            f"{each['sps']:.2f} ({each['sps_over_dense']:.2f})"
            for each in result["training"].values()
        ] or ["-"] * len(STORAGES)
        task, preset = key.split("/")
        paper = PAPER.get(task, {}) if preset == "paper" else {}
        rates = [f"{before}, {after}" for _, _, before, after in paper.values()]
        rows.append([task, preset, *cells, "; ".join(rates) or "-"])
    return markdown(rows)


def machine() -> dict:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "cpu": model,
        "cores": cores,
        "gpu": gpu,
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
    }


def write(path: Path, command: str, args: Args, results: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    where = machine()
    data = {"machine": where, "settings": vars(args), "results": results, "paper": PAPER}
    path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    filled = "".join(
        f"\n- A buffer that really held a million transitions, {key.replace('/', ', ')}, "
        f"`{FILLED}`, those over and over: {result['sizes']['million']['gb_per_million']:.2f} GB."
        for key, result in results.items()
        if "million" in result["sizes"]
    )
    path.with_suffix(".md").write_text(
        f"""# DrQ-v2: memory and speed of the replay buffer

Made by `{command}` on {where["cpu"]}, {where["cores"]} cores, {where["system"]}; Python \
{where["python"]}, numpy {where["numpy"]}, torch {where["torch"]} with {where["torch_threads"]} \
threads, {where["gpu"]}. Seed {args.seed}, 84x84, stacks of 3, {args.n_step}-step, batches of \
{args.batch_size}. `paper`: gray images, black floor. `suite`: RGB as shipped.

## Gigabytes of a million transitions

Everything counted, projected from {args.transitions:,} transitions of real episodes under random
actions. In brackets how many times smaller than RGB stacks, {RGB_STACK:,} bytes each, and in the
gray setting than gray ones, {GRAY_STACK:,} bytes each. The paper's columns are its Table I.
{filled}

{size_table(results)}

## Speed

- **ms** per update to add two steps (and give their stacks to the network) and to sample, task
  and network left out, in brackets over
  `dense`: medians of {args.updates} updates by turns, nothing read ahead. What was sampled was
  checked to be equal.
- **steps/s** of the whole script, rendering and learning, in brackets over `dense`: medians of
  {args.repeats} runs by turns, after their first 300 steps. The trained weights were checked to be
  equal. As published, walker is trained with batches of 512 and rewards of one step; here all tasks
  are timed alike.
- `compressed` and `indexed` with codec `{args.codec}`, which decodes a batch in
  {n_threads()} threads; `dense` holds a uint8 stack per transition, which numpy copies in one.

{speed_table(results)}
"""
    )


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    command = make_command("bench-dmc", args)
    if args.quick:
        args.transitions, args.updates, args.repeats, args.steps = 600, 3, 1, 12
        args.batch_size, args.presets, args.fill = 32, ("paper",), ()
    if not set(args.tasks) <= set(ACTION_DIMS):
        sys.exit(f"bench_dmc.py: error: --tasks {args.tasks} must be of {', '.join(ACTION_DIMS)}")
    if not {*args.presets, *args.fill} <= set(PRESETS):
        sys.exit(
            f"bench_dmc.py: error: --presets {args.presets} and --fill {args.fill} must be of "
            f"{', '.join(PRESETS)}"
        )
    if min(args.transitions, args.updates) < 1 or args.repeats < 0 or args.steps < 8:
        sys.exit(
            "bench_dmc.py: error: --transitions, --updates are at least 1, --repeats 0, --steps 8"
        )
    path = RESULTS / ("dmc-quick" if args.quick else "dmc")
    settings = [(task, preset) for preset in args.presets for task in args.tasks]
    results: dict[str, dict] = {}
    filled = sum(preset in args.fill for _, preset in settings)
    work = len(settings) * (len(SIZED) + 1 + len(STORAGES) * args.repeats) + filled
    with tempfile.TemporaryDirectory() as folder, tqdm(total=work, leave=False) as bar:
        os.chdir(folder)  # the script writes its logs and checkpoints into runs/
        for task, preset in settings:
            recording = record(args, task, preset)
            results[f"{task}/{preset}"] = {
                "sizes": measure_sizes(args, task, preset, recording, bar),
                "storage": measure_storage(args, task, preset, recording, bar),
                "training": measure_training(args, task, preset, bar),
            }
            write(path, command, args, results)
        os.chdir(RESULTS)  # out of a folder that goes
    print(f"{size_table(results)}\n\n{speed_table(results)}\n\nwritten: {path}.json, {path}.md")


if __name__ == "__main__":
    main()
