"""The replay buffers of other libraries beside ours: size, speed, and whether the pixels are right.

Every system holds the same transitions of real games, fed in the best way that it offers, in a
process of its own that idles unless it is its turn. For each: the memory that the process has grown
by with its ring full, microseconds to add and to sample `obs` and `next_obs`, and the share of
samples that are not what the agent saw. Stable-Baselines3's dense buffer and the numpy ring hold
each game, too, and take their turns with all others.

    python -m benchmarks.bench_peers [--games Pong Qbert] [--systems compressarray numpy] [--quick]

Writes `benchmarks/results/peers.json`, `peers.md` and `peers.png` (`peers-quick.*` with `--quick`).
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from benchmarks.common import RESULTS, available_bytes, flags
from benchmarks.frames import CACHE, GAMES, PlayThrough, play_through
from benchmarks.peers import BASES, SYSTEMS
from benchmarks.peers.base import System
from benchmarks.peers.process import PeerError, Process, one_thread
from benchmarks.peers.report import write
from benchmarks.peers.scale import cost_against_size
from benchmarks.peers.worker import BATCHES

PROCESS_BYTES = 0.4e9  # of a process with torch in it, before it holds anything


@dataclass
class Args:
    games: tuple[str, ...] = GAMES
    """which of the ten games"""
    transitions: int = 100_000
    """capacity of a ring"""
    slow_transitions: int = 10_000
    """capacity of a ring that compresses one by one in Python: it would take minutes to fill"""
    systems: tuple[str, ...] = ()
    """which systems, by parts of their names (all)"""
    fixed_game: str = "Breakout"
    """the game on which systems are measured that return wrong pixels, whatever these are"""
    rounds: int = 8
    """turns of each system"""
    repeats: int = 10
    """batches of each size in a turn"""
    adds: int = 96
    """transitions that are added in a turn"""
    draws: int = 10_240
    """transitions of a full ring that are drawn and compared, in each way to draw"""
    seam_draws: int = 8
    """times over that a small ring is drawn and compared, at each position of its seam"""
    many_frames: int = 1_000_000
    """frames of the array whose reading is compared with one of a hundredth (0: not done)"""
    seed: int = 0
    """seed of the games, and of whose turn it is"""
    cache: Path = CACHE
    """where play-throughs are kept"""
    out: Path = RESULTS
    """where results are written"""
    quick: bool = False
    """a little of everything: whether it works, not how fast it is"""

    @property
    def transitions_played(self) -> int:
        return self.transitions + self.transitions // 8 + self.rounds * self.adds


def quick(args: Args) -> Args:
    games = args.games if args.games != GAMES else ("Breakout", "Pong")
    return replace(
        args,
        games=games,
        transitions=min(args.transitions, 4000),
        slow_transitions=min(args.slow_transitions, 2000),
        rounds=2,
        draws=1024,
        seam_draws=4,
        many_frames=min(args.many_frames, 100_000),
    )


def chosen(args: Args) -> dict[str, type[System]]:
    wanted = [part.lower() for part in args.systems]
    return {
        name: kind
        for name, kind in SYSTEMS.items()
        if not wanted or any(part in name.lower() for part in wanted)
    }


class Benchmark:
    """Runs the systems, and gathers what is written."""

    def __init__(self, args: Args, bar: tqdm) -> None:
        self.args, self.bar = args, bar
        self.rng = random.Random(args.seed)
        # system -> game -> what was measured
        self.measured: dict[str, dict[str, Any]] = defaultdict(dict)
        self.failed: dict[str, str] = {}
        self.bases: list[Process] = []

    def run(self, game: str, kinds: list[type[System]]) -> None:
        """Measure systems on a game, as many at once as memory takes."""
        args = self.args
        play = play_through(game, args.transitions_played, args.seed, args.cache)
        bases = [kind for kind in kinds if kind.name in BASES]
        self.bases = fresh = self.start_all(bases, play, game)
        others = [kind for kind in kinds if kind.name not in BASES]
        for wave in waves(others, args):
            started = self.start_all(wave, play, game)
            self.take_turns(game, started, adding=[*started, *fresh])
            fresh = []  # their play-through has an end
            for process in started:
                process.stop()
        for process in self.bases:
            process.stop()

    def say(self, what: str) -> None:
        self.bar.set_description(what, refresh=sys.stderr.isatty())

    def start_all(self, kinds: list[type[System]], play: PlayThrough, game: str) -> list[Process]:
        """Fill and check systems, as many at once as there are cores: nothing is timed yet."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            started = pool.map(lambda kind: self.start(kind, play, game), kinds)
            return [process for process in started if process is not None]

    def start(self, kind: type[System], play: PlayThrough, game: str) -> Process | None:
        """Fill a system and check it; None if it does not work."""
        self.say(f"{game}, filling {kind.name}")
        process = Process(kind, play.path, capacity_of(kind, self.args))
        try:
            entry = process.ask("fill")
            self.say(f"{game}, checking {kind.name}")
            entry |= process.ask("check", self.args.draws, self.args.seam_draws)
        except PeerError as error:
            self.fail(kind.name, game, error)
            process.stop()
            return None
        self.measured[kind.name][game] = entry
        self.bar.update()
        return process

    def take_turns(self, game: str, started: list[Process], adding: list[Process]) -> None:
        """Time systems and the bases, one at a time, in rounds of another order each."""
        self.say(f"{game}, taking turns")
        times: dict[tuple[str, str, int], list[float]] = defaultdict(list)
        adds: dict[str, list[float]] = defaultdict(list)
        turns = [*started, *self.bases]
        for _ in range(self.args.rounds):
            self.rng.shuffle(turns)
            for process in list(turns):
                name = process.kind.name
                try:
                    draws = list(product(process.ask("ways"), BATCHES))
                    taken = [times[name, way, batch] for way, batch in draws]
                    # In another order each time: who comes first finds the caches cold.
                    for i in self.rng.sample(range(len(draws)), len(draws)):
                        taken[i] += process.ask("sample", *draws[i], self.args.repeats)
                    if process in adding:
                        adds[name].append(process.ask("add", self.args.adds))
                except PeerError as error:
                    self.fail(name, game, error)
                    turns.remove(process)
                    self.bases = [base for base in self.bases if base is not process]
        medians = {key: statistics.median(values) for key, values in times.items()}
        for process in turns:
            self.record(game, process.kind.name, medians, adds)

    def record(
        self,
        game: str,
        name: str,
        medians: dict[tuple[str, str, int], float],
        adds: dict[str, list[float]],
    ) -> None:
        entry = self.measured[name].setdefault(game, {})
        if name in adds:
            entry["add"] = statistics.median(adds[name])
        ways = dict.fromkeys(way for system, way, _ in medians if system == name)
        # Of a base that took its turns more than once on a game, the last turns.
        entry["ways"] = {
            way: {
                "us": {str(batch): medians[name, way, batch] for batch in BATCHES},
                "times_as_fast_as": {
                    base: {
                        str(batch): medians[base, base_way, batch] / medians[name, way, batch]
                        for batch in BATCHES
                    }
                    for base, base_way in BASES.items()
                    if (base, base_way, BATCHES[0]) in medians
                },
            }
            for way in ways
        }
        size = f"{entry['bytes']:,.0f} bytes a transition, " if "bytes" in entry else ""
        for way, timed in entry["ways"].items():
            sampling = " and ".join(f"{us:,.0f}" for us in timed["us"].values())
            tqdm.write(f"{game}: {name}{way and f', {way}'}: {size}sampling {sampling} us")

    def fail(self, name: str, game: str, error: PeerError) -> None:
        tqdm.write(f"{game}: {name} failed:\n{error}", file=sys.stderr)
        self.failed[name] = f"failed on {game}: {str(error).strip().splitlines()[-1]}"


def capacity_of(kind: type[System], args: Args) -> int:
    return min(args.transitions, args.slow_transitions) if kind.slow else args.transitions


def waves(kinds: list[type[System]], args: Args) -> Iterator[list[type[System]]]:
    """Split systems into lots that fit into the memory that there is; at least one lot."""
    there = 0.75 * available_bytes()
    lot: list[type[System]] = []
    left = there
    for kind in kinds:
        takes = PROCESS_BYTES + kind.bytes_expected * capacity_of(kind, args)
        if lot and takes > left:
            yield lot
            lot, left = [], there
        lot.append(kind)
        left -= takes
    yield lot


def main(args: Args) -> int:
    command = flags(args)
    if args.quick:
        args = quick(args)
    kinds = chosen(args)
    absent = {name: kind.missing() for name, kind in kinds.items() if kind.missing()}
    kinds = {name: kind for name, kind in kinds.items() if name not in absent}
    fixed_game = args.fixed_game if args.fixed_game in args.games else args.games[0]
    games = sorted(args.games, key=lambda game: game != fixed_game)
    work = {
        game: [k for k in kinds.values() if k.every_game or game == fixed_game] for game in games
    }
    begun = time.perf_counter()
    mininterval = 0.5 if sys.stderr.isatty() else 30
    total = sum(map(len, work.values()))
    with one_thread(), tqdm(total=total, unit="system", mininterval=mininterval) as bar:
        benchmark = Benchmark(args, bar)
        for game, of_game in work.items():
            benchmark.run(game, [kind for kind in of_game if kind.name not in benchmark.failed])
        scale = None
        if args.many_frames:
            benchmark.say("cost against size")
            game = "Pong" if "Pong" in games else games[0]
            play = play_through(game, args.transitions_played, args.seed, args.cache)
            scale = {"game": game, **cost_against_size(play, args.many_frames)}
    record = {
        "flags": command,
        "settings": {
            **{name: value for name, value in vars(args).items() if name not in ("cache", "out")},
            "transitions_played": args.transitions_played,
        },
        "fixed_game": fixed_game,
        "minutes": (time.perf_counter() - begun) / 60,
        "not_installed": {name: SYSTEMS[name].package for name in absent},
        "failed": benchmark.failed,
        "systems": benchmark.measured,
        "cost_against_size": scale,
    }
    print(write(record, args.out, "peers-quick" if args.quick else "peers"))
    return 1 if benchmark.failed else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
