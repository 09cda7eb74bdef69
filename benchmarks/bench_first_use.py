"""The first minute: seconds and memory until something was done for the first time.

With an empty and with a filled kernel cache, each in a process of its own: what Python takes to
import the library, an array's first `append` and `gather`, a buffer's first `add` and `sample`
(Atari's stacks, two environments), and `make run` until its progress bar has moved.

    python -m benchmarks.bench_first_use [--help]

Writes `benchmarks/results/first_use.md`.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import tyro
from tqdm import tqdm

from benchmarks.common import RESULTS, machine

SCRIPT = "cleanrl_scripts/ppo_atari.py"
FLAGS = ("--env-id", "ALE/Pong-v5", "--total-timesteps", "2048")


@dataclass
class Args:
    run: bool = True
    """measure `make run` too"""


def peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure_here(what: str) -> None:
    """Print steps, their seconds and the peak of memory after each, in a fresh process."""
    began = time.perf_counter()

    def tell(step: str) -> None:
        nonlocal began
        print(step, time.perf_counter() - began, peak_bytes(), sep="\t")
        began = time.perf_counter()

    import compressarray

    tell("import")
    rng = np.random.default_rng(0)
    if what == "array":
        array = compressarray.DiffFrameArray((1000, 84, 84))
        frame = rng.integers(0, 256, (84, 84), np.uint8)
        began = time.perf_counter()
        array.append(frame)
        tell("append")
        array.gather(np.zeros(1, np.int64))
        tell("gather")
        return
    import gymnasium as gym

    buffer = compressarray.ReplayBuffer(
        10_000, gym.spaces.Box(0, 255, (4, 84, 84), np.uint8), gym.spaces.Discrete(6), n_envs=2
    )
    frames = rng.integers(0, 256, (2, 8, 84, 84), np.uint8)
    steps = [np.ascontiguousarray(frames[:, t : t + 4]) for t in range(5)]
    zeros, no = np.zeros(2), np.zeros(2, np.bool_)
    began = time.perf_counter()
    buffer.add(steps[0], zeros.astype(np.int64), zeros, no, no, steps[1])
    tell("add")
    for before, after in pairwise(steps[1:]):
        buffer.add(before, zeros.astype(np.int64), zeros, no, no, after)
    tell("the next three of `add`")
    buffer.sample(2)
    tell("sample")


def measure(what: str, cache: str) -> list[tuple[str, float, float]]:
    """Measure in a process of its own: steps, seconds, megabytes at the peak."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_first_use", "--measure", what],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "NUMBA_CACHE_DIR": cache},
    )
    rows = (line.split("\t") for line in done.stdout.splitlines())
    return [(step, float(seconds), float(peak) / 1e6) for step, seconds, peak in rows]


def measure_run(cache: str) -> list[tuple[str, float, float]]:
    """Start the script that `make run` starts; wait for its progress bar, and for that to move."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache, "PYTHONPATH": os.getcwd()}
        script = subprocess.Popen(
            [sys.executable, os.path.abspath(SCRIPT), *FLAGS],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
        )
        assert script.stdout is not None
        said, shown = b"", 0.0
        while piece := os.read(script.stdout.fileno(), 4096):
            said += piece
            if not shown and b"0%|" in said:
                shown = time.perf_counter() - began
            if re.search(rb"[1-9]\d*%\|", said):
                break
        else:
            raise RuntimeError(f"the bar never moved: {said.decode()}")
        moved = time.perf_counter() - began
        with open(f"/proc/{script.pid}/status", encoding="ascii") as status:
            peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        script.kill()
        script.wait()
        script.stdout.close()
    return [
        ("`make run`: progress bar", shown, float("nan")),
        ("`make run`: first rollout trained on", moved, peak * 1024 / 1e6),
    ]


def main(args: Args) -> None:
    rows: dict[str, list[tuple[float, float]]] = {}
    for what in tqdm(["array", "buffer", *(["run"] if args.run else [])], unit="case"):
        with tempfile.TemporaryDirectory() as cache:
            for _ in ("empty", "filled"):
                measured = measure_run(cache) if what == "run" else measure(what, cache)
                for step, seconds, peak in measured:
                    if step == "import" and what == "buffer":
                        continue
                    rows.setdefault(step, []).append((seconds, peak))
    lines = [
        "| for the first time | empty cache: s | MB at the peak | filled: s | MB at the peak |",
        "|---|---|---|---|---|",
    ]
    for step, cells in rows.items():
        told = (
            f"{seconds:.2f} | {'' if np.isnan(peak) else f'{peak:,.0f}'}" for seconds, peak in cells
        )
        lines.append(f"| {step} | {' | '.join(told)} |")
    text = "\n".join(lines) + f"\n\nMeasured on {machine()}.\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "first_use.md").write_text(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure_here(sys.argv[2])
    else:
        main(tyro.cli(Args, description=__doc__))
