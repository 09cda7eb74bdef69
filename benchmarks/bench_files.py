"""Files and checkpoints of a million transitions, beside what other replay buffers write.

A random policy plays; the buffer is fed newest frames, stacks of four. Each row is measured in a
process of its own: bytes on disk, seconds to save and to load, memory beside the buffer at the
peak, a checkpoint after 1,000 more transitions, and the time from loading a mapped file to the
first batch. The others hold fewer transitions, for theirs are dense.

    python -m benchmarks.bench_files [--games Pong] [--transitions 100000] [--help]

Buffers are filled once and kept in `benchmarks/.cache`. Writes `benchmarks/results/files.md` and
`files.json`. Linux only, for the peak of memory is the kernel's.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from gymnasium.spaces import Box, Discrete
from tqdm import tqdm

from benchmarks.common import RESULTS, geometric_mean, machine, make_command
from benchmarks.frames import CACHE, _play, play_through
from compressarray import ReplayBuffer

STACK = 4
MORE = 1000  # transitions between two checkpoints
BATCH_SIZE = 32
STACKS = Box(0, 255, (STACK, 84, 84), np.uint8)


@dataclass
class Args:
    games: tuple[str, ...] = ("Pong", "MsPacman", "Enduro")
    """which of Atari's"""
    transitions: int = 1_000_000
    """in our buffer"""
    peers_transitions: int = 100_000
    """in the others'"""
    codec: str = "delta"
    """how our frames are stored"""
    fill_only: bool = False
    """fill our buffers, and measure nothing"""
    measure: tuple[str, ...] = field(default=(), metadata={"help": "what this process measures"})
    """what this process measures: the benchmark calls itself so"""


def peak_since(call: Callable[[], Any]) -> tuple[float, int]:
    """Seconds that a call took, and how far the process's memory grew beyond what it had."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    start = time.perf_counter()
    kept = call()
    took = time.perf_counter() - start
    peak = _status("VmHWM") - before
    del kept
    return took, peak


def _status(name: str) -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith(name))


def bytes_under(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(each.stat().st_size for each in files if each.is_file())


# -- ours ------------------------------------------------------------------------------------


def filled(game: str, args: Args) -> Path:
    """The file of a full buffer; played for and saved the first time."""
    path = CACHE / f"{game}-{args.codec}-{args.transitions}.buffer"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        buffer: ReplayBuffer | None = None
        steps = tqdm(range(args.transitions), desc=f"playing {game}", leave=False,
                     mininterval=0.5 if sys.stderr.isatty() else 60)  # fmt: skip
        for _, step in zip(steps, _play(game, 0), strict=False):
            if buffer is None:
                buffer = ReplayBuffer(
                    args.transitions, Box(0, 255, (84, 84), np.uint8), Discrete(step.n_actions),
                    stack_size=STACK, codec=args.codec, seed=0,
                )  # fmt: skip
            add(buffer, step)
        assert buffer is not None
        buffer.save(path)
    return path


def add(buffer: ReplayBuffer, step: Any) -> None:
    ends = np.array([step.terminated]), np.array([step.truncated])
    final = np.full(1, None, object)
    final[0] = step.next_obs
    buffer.add(
        step.obs[None], [step.action], [0.0], *ends, step.next_obs[None], {"final_obs": final}
    )


def measure_ours(game: str, args: Args) -> dict[str, float]:
    path = filled(game, args)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        warm_up(Path(folder))
        found["load_s"], found["load_peak"] = peak_since(lambda: ReplayBuffer.load(path))
        start = time.perf_counter()
        mapped = ReplayBuffer.load(path, mmap_mode="r")
        mapped.sample(BATCH_SIZE)
        found["mapped_s"] = time.perf_counter() - start
        del mapped
        buffer = ReplayBuffer.load(path)
        found["nbytes_stored"] = buffer.nbytes_stored
        target = Path(folder, "buffer")
        found["save_s"], found["save_peak"] = peak_since(lambda: buffer.save(target))
        found["file"] = target.stat().st_size
        target.unlink()
        log = Path(folder, "log")
        found["first_s"], _ = peak_since(lambda: buffer.checkpoint(log))
        times, sizes = [], []
        steps = _play(game, 1)
        for _ in range(5):
            for _, step in zip(range(MORE), steps, strict=False):
                add(buffer, step)
            held = bytes_under(log)
            start = time.perf_counter()
            buffer.checkpoint(log)
            times.append(time.perf_counter() - start)
            sizes.append(bytes_under(log) - held)
        found["more_s"], found["more_bytes"] = float(np.median(times)), float(np.median(sizes))
    return found


def warm_up(folder: Path) -> None:
    """Compile, or load from the cache of kernels, whatever is measured."""
    buffer = ReplayBuffer(
        2000, Box(0, 255, (84, 84), np.uint8), Discrete(18), stack_size=STACK, seed=0
    )
    for _, step in zip(range(300), _play("Pong", 2), strict=False):
        add(buffer, step)
    buffer.save(folder / "warm")
    ReplayBuffer.load(folder / "warm").sample(BATCH_SIZE)
    ReplayBuffer.load(folder / "warm", mmap_mode="r").sample(BATCH_SIZE)
    buffer.checkpoint(folder / "warm-log")
    ReplayBuffer.restore(folder / "warm-log")


# -- others ----------------------------------------------------------------------------------


@dataclass
class Play:
    """What the others are filled with."""

    frames: Any
    obs: Callable[[Any], Any]
    next_obs: Callable[[Any], Any]
    n: int

    def blocks(self, size: int = 1000) -> Iterator[np.ndarray]:
        for start in range(0, self.n, size):
            yield np.arange(start, min(start + size, self.n))


class Savez:
    """`numpy.savez` of the frame ring that an expert would keep, with all beside it."""

    module, name, file = "numpy", "`numpy.savez` of a ring of frames", "ring.npz"

    def build(self, play: Play) -> Any:
        beside = ("newest", "age", "action", "reward")
        arrays = {name: np.zeros(play.n, np.int32) for name in beside}
        return {"frames": np.array(play.frames), **arrays}

    def save(self, held: Any, path: Path) -> None:
        np.savez(path, **held)

    def load(self, path: Path, n: int) -> Any:
        del n
        with np.load(path) as held:
            return {name: held[name] for name in held.files}


class StableBaselines3:
    """Its dense buffer, pickled as `save_replay_buffer` does."""

    module, name, file = "stable_baselines3", "Stable-Baselines3, pickle", "replay.pkl"

    def build(self, play: Play) -> Any:
        from stable_baselines3.common.buffers import ReplayBuffer as Dense

        dense = Dense(play.n, STACKS, Discrete(18), "cpu", handle_timeout_termination=False)
        for block in play.blocks():
            dense.observations[block, 0] = play.obs(block)
            dense.next_observations[block, 0] = play.next_obs(block)
        dense.pos, dense.full = 0, True
        return dense

    def save(self, held: Any, path: Path) -> None:
        from stable_baselines3.common.save_util import save_to_pkl

        save_to_pkl(path, held)

    def load(self, path: Path, n: int) -> Any:
        from stable_baselines3.common.save_util import load_from_pkl

        del n
        return load_from_pkl(path)


class Tianshou:
    """Its buffer of single frames that makes the stacks itself, in HDF5."""

    module, name, file = "tianshou", "Tianshou, HDF5", "replay.hdf5"

    def build(self, play: Play) -> Any:
        from tianshou.data import Batch
        from tianshou.data import ReplayBuffer as Stacking

        held = Stacking(play.n, stack_num=STACK, ignore_obs_next=True, save_only_last_obs=True)
        for block in play.blocks():
            for obs in play.obs(block):
                step = Batch(obs=obs, act=0, rew=0.0, terminated=False, truncated=False, info={})
                held.add(step)
        return held

    def save(self, held: Any, path: Path) -> None:
        held.save_hdf5(str(path))

    def load(self, path: Path, n: int) -> Any:
        from tianshou.data import ReplayBuffer as Stacking

        del n
        return Stacking.load_hdf5(str(path))


class TorchRL:
    """Its dense tensors, by `dumps`."""

    module, name, file = "torchrl", "TorchRL, `dumps`", "replay"

    def build(self, play: Play) -> Any:
        import torch
        from tensordict import TensorDict

        held = self._empty(play.n)
        for block in play.blocks():
            stacks = {"obs": play.obs(block), "next_obs": play.next_obs(block)}
            tensors = {name: torch.from_numpy(each) for name, each in stacks.items()}
            held.extend(TensorDict(tensors, [len(block)]))
        return held

    def save(self, held: Any, path: Path) -> None:
        held.dumps(path)

    def load(self, path: Path, n: int) -> Any:
        held = self._empty(n)
        held.loads(path)
        return held

    def _empty(self, n: int) -> Any:
        from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

        return TensorDictReplayBuffer(storage=LazyTensorStorage(n), batch_size=BATCH_SIZE)


PEERS = {"savez": Savez(), "sb3": StableBaselines3(), "tianshou": Tianshou(), "torchrl": TorchRL()}


def measure_peer(name: str, game: str, args: Args) -> dict[str, float]:
    peer, through = PEERS[name], play_through(game, args.peers_transitions)
    play = Play(through.frames, through.obs, through.next_obs, args.peers_transitions)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        path = Path(folder, peer.file)

        def save() -> tuple[float, int]:
            held = peer.build(play)
            return peak_since(lambda: peer.save(held, path))

        save_s, save_peak = save()
        load_s, load_peak = peak_since(lambda: peer.load(path, play.n))
        return {
            "file": bytes_under(path), "save_s": save_s, "save_peak": save_peak,
            "load_s": load_s, "load_peak": load_peak,
        }  # fmt: skip


# -- the table -------------------------------------------------------------------------------


def measured(args: Args, *what: str) -> dict[str, float]:
    """Measure in a process of its own, with what is to be written on disk already."""
    os.sync()
    command = [sys.executable, "-m", "benchmarks.bench_files", "--transitions",
               str(args.transitions), "--peers-transitions", str(args.peers_transitions),
               "--codec", args.codec, "--measure", *what]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"bench_files.py: error: {' '.join(what)}: {done.stderr.strip()[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def our_table(games: dict[str, dict[str, float]], n: int) -> str:
    columns = ["", "MB on disk", "bytes a transition", "save, s", "load, s", "MB/s, both",
               "memory to save, %", "to load, %", "mapped to first batch, ms",
               f"checkpoint after {MORE:,} more, ms", "its KB"]  # fmt: skip
    lines = [row(columns), row(["---"] * len(columns))]
    for game, r in games.items():
        lines.append(
            row([
                game, f"{r['file'] / 1e6:.1f}", f"{r['file'] / n:.0f}", f"{r['save_s']:.2f}",
                f"{r['load_s']:.2f}",
                f"{r['file'] / r['save_s'] / 1e6:.0f}, {r['file'] / r['load_s'] / 1e6:.0f}",
                f"{100 * r['save_peak'] / r['nbytes_stored']:.1f}",
                f"{100 * (r['load_peak'] / r['nbytes_stored'] - 1):.1f}",
                f"{1e3 * r['mapped_s']:.0f}", f"{1e3 * r['more_s']:.1f}",
                f"{r['more_bytes'] / 1e3:.0f}",
            ])
        )  # fmt: skip
    return "\n".join(lines)


def peer_table(
    ours: dict[str, dict[str, float]], peers: dict[str, dict[str, dict[str, float]]], args: Args
) -> str:
    lines = [row(["", "transitions", "bytes a transition on disk", "save, us each", "load, us each",
                  "memory to save, bytes each"]), row(["---"] * 6)]  # fmt: skip

    def line(name: str, n: int, games: dict[str, dict[str, float]]) -> str:
        mean = {key: geometric_mean([max(r[key], 1) / n for r in games.values()])
                for key in ("file", "save_peak")}  # fmt: skip
        took = {key: 1e6 * geometric_mean([r[key] / n for r in games.values()])
                for key in ("save_s", "load_s")}  # fmt: skip
        return row([name, f"{n:,}", f"{mean['file']:,.0f}", f"{took['save_s']:.2f}",
                    f"{took['load_s']:.2f}", f"{mean['save_peak']:,.1f}"])  # fmt: skip

    lines.append(line(f"ours, `{args.codec}`", args.transitions, ours))
    for name, games in peers.items():
        lines.append(line(PEERS[name].name, args.peers_transitions, games))
    return "\n".join(lines)


def main(args: Args) -> None:
    if args.measure:
        what, game = args.measure
        found = measure_ours(game, args) if what == "ours" else measure_peer(what, game, args)
        print(json.dumps(found))
        return
    for game in args.games:
        filled(game, args)
    if args.fill_only:
        return
    ours = {game: measured(args, "ours", game) for game in args.games}
    there = [name for name, peer in PEERS.items() if importlib.util.find_spec(peer.module)]
    missing = [PEERS[name].name.split(",")[0] for name in PEERS if name not in there]
    peers = {name: {game: measured(args, name, game) for game in args.games} for name in there}
    usual = vars(args) == vars(Args())
    path = RESULTS / ("files" if usual else "files-quick")
    tables = our_table(ours, args.transitions), peer_table(ours, peers, args)
    path.with_suffix(".json").write_text(
        json.dumps({"machine": machine(), "ours": ours, "peers": peers}, indent=1) + "\n"
    )
    absent = f" Not installed: {', '.join(missing)}." if missing else ""
    path.with_suffix(".md").write_text(
        f"""# Files and checkpoints

Made by `{make_command("bench-files", args)}` on {machine()}. {args.transitions:,} transitions of \
random play, newest frames, stacks of {STACK}, codec `{args.codec}`; all of it synced to disk, and
read from the system's cache of files. Memory: what the process takes at the peak, beside the
buffer, in parts of `nbytes_stored`.

{tables[0]}

Beside others, the geometric mean of the games; theirs are filled with fewer transitions, since
they are dense.{absent}

{tables[1]}
"""
    )
    print("\n\n".join(tables))
    print(f"written: {path}.md, {path}.json")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
