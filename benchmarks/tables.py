"""Make all tables of `benchmarks/results` anew, one benchmark after the other.

Says beforehand what will run and for how long. A benchmark that has finished is not run again for
the same code, so that a run that was cut off goes on with what is missing. What each prints goes
into a log, and `benchmarks/results/made.json` and `docs/results.md` say of which commit, and of
what day, each table is.

    python -m benchmarks.tables [--list] [--only codecs rllib] [--quick] [--help]

With `--quick`, every benchmark runs with its smallest setting, to see that it works; the results
are then written beside the logs, into `build/tables-quick`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MADE = RESULTS / "made.json"
PAGE = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- made by benchmarks/tables.py -->\n", "<!-- end -->\n"
# What tables depend on. Results and pages do not, so that they can be committed between two runs.
CODE = ("compressarray", "wrappers", "cleanrl_scripts", "benchmarks", ":!benchmarks/results")


@dataclass(frozen=True)
class Table:
    """What one command makes.

    Attributes
    ----------
    name : str
        What `--only` knows it by, and the name of its first file in `benchmarks/results`.
    target : str
        Of the Makefile.
    shows : str
    minutes : float
        An estimate, until it was run here: on two cores, packages installed, games played already.
    args, quick : str
        Settings for the table, and the smallest ones, as BENCH_ARGS.
    measures : bool
        Whether it measures this code; otherwise its entry in `made.json` stays as it is.
    """

    name: str
    target: str
    shows: str
    minutes: float
    args: str = ""
    quick: str = "--quick"
    measures: bool = True

    def command(self, *, quick: bool = False) -> list[str]:
        given = self.quick if quick else self.args
        arguments = [f"BENCH_ARGS={given}"] if given else []
        return ["make", "--no-print-directory", self.target, *arguments]


# The quick ones first: what does not work is found early.
TABLES = (
    Table(
        "learning",
        "learning",
        "learning curves of one training on a GPU, drawn from what it logged",
        minutes=0.2,
        quick="",
        measures=False,
    ),
    Table(
        "zstd-objects",
        "bench-zstd-objects",
        "memory of the objects that zstd's bindings return",
        minutes=0.5,
    ),
    Table(
        "first_use",
        "bench-first-use",
        "seconds and megabytes of first use, with an empty and a filled kernel cache",
        minutes=4,
        quick="--no-run",
    ),
    Table(
        "ray",
        "bench-ray",
        "runners on Ray: bytes over the wire, transitions a second, drawing meanwhile",
        minutes=5,
        quick="--runners 1 --seconds 1 --turns 1 --capacity 2000",
    ),
    Table(
        "rllib",
        "bench-rllib",
        "RLlib's episode replay buffers and ours: memory, adding, sampling",
        minutes=10,
    ),
    Table(
        "memory",
        "bench-memory",
        "growth of the process's resident memory beside `nbytes_stored`",
        minutes=8,
        quick="--games Pong --codecs delta --counts 20000",
    ),
    Table(
        "codecs",
        "bench-codecs",
        "bytes per frame, microseconds to append and to gather, per codec, on ten games",
        minutes=12,
        quick="--games Pong --capacity 2048 --repeats 1 --appends 64",
    ),
    Table(
        "worlds",
        "bench-worlds",
        "bytes per frame of worlds that scroll, turn or are noisy, beside zstd and lossless video",
        minutes=10,
    ),
    Table(
        "sb3-methods",
        "report-sb3",
        "memory and speed by method and kind of picture, beside sb3-extra-buffers",
        minutes=10,
    ),
    Table(
        "million",
        "bench-million",
        "a million transitions in one buffer: resident memory, adding, sampling",
        minutes=12,
        quick="--transitions 2000 --parts 2",
    ),
    Table(
        "sb3",
        "bench-sb3",
        "Stable-Baselines3's buffers and ours: memory, files, times, whole trainings",
        minutes=20,
    ),
    Table(
        "files",
        "bench-files",
        "files and checkpoints of a million transitions, beside other libraries'",
        minutes=40,
        quick="--games Pong --transitions 4000 --peers-transitions 2000",
    ),
    Table(
        "ppo",
        "bench-ppo",
        "PPO's rollout memory and speed, dense, compressed and indexed, on ten games",
        minutes=25,
        args="--repeats 2",
    ),
    Table(
        "replay",
        "bench-replay",
        "QR-DQN's replay memory and speed, dense, compressed and indexed, on ten games",
        minutes=60,
        args="--repeats 2 --warmup-steps 2000 --steps 750",
    ),
    Table(
        "peers",
        "bench",
        "size, speed and right pixels beside other replay buffers, on ten games",
        minutes=45,
    ),
    Table(
        "dmc",
        "bench-dmc",
        "DrQ-v2's replay memory and speed, beside the paper's, on walker and quadruped walk",
        minutes=60,
        args="--repeats 2 --steps 20",
    ),
)
# Made on another machine, one by one, and noted in `made.json` by whoever brings them home.
ELSEWHERE = (
    Table("cuda", "bench-cuda", "batches on a GPU: time until one is there, and memory", minutes=3),
    Table(
        "cuda_scripts", "bench-cuda-scripts", "trainings on a GPU: speed, equal weights", minutes=4
    ),
)


@dataclass
class Args:
    only: tuple[str, ...] = ()
    """which tables, by name (all)"""
    list: bool = False
    """say what would run, and run nothing"""
    again: bool = False
    """run what has finished for this code, too"""
    quick: bool = False
    """the smallest settings, into build/tables-quick: whether all work, not how fast they are"""
    allow_changes: bool = False
    """run though the code has changes that are not committed; the tables will say so"""


class Runner:
    """Runs what is missing, and keeps account.

    Parameters
    ----------
    folder : Path
        Where logs and `state.json` go: for each revision of the code and each command when it has
        finished, and after how many minutes.
    revision : str
        Of the code.
    """

    def __init__(self, folder: Path, revision: str) -> None:
        self.folder, self.revision = folder, revision
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "state.json"
        self.state: dict[str, dict[str, Any]] = load(self.path)

    def is_finished(self, command: Sequence[str]) -> bool:
        return shlex.join(command) in self.state.get(self.revision, {})

    def minutes(self, command: Sequence[str]) -> float | None:
        """Return how long a command took when it last ran here, for whatever code."""
        taken = [of.get(shlex.join(command)) for of in self.state.values()]
        return next((each["minutes"] for each in reversed(taken) if each), None)

    def run(self, name: str, command: Sequence[str], environment: dict[str, str]) -> bool:
        """Run a command to its end; whether it succeeded.

        The lock goes with the command: even if this process is killed, no second benchmark begins
        while that one is running.
        """
        begun = time.monotonic()
        with (
            locked(self.folder / "lock") as lock,
            (self.folder / f"{name}.log").open("wb") as log,
        ):
            log.write(f"{shlex.join(command)}\n".encode())
            log.flush()
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[lock],
                check=False,
            )
        if done.returncode:
            return False
        minutes = (time.monotonic() - begun) / 60
        finished = {"finished": date.today().isoformat(), "minutes": round(minutes, 2)}
        self.state.setdefault(self.revision, {})[shlex.join(command)] = finished
        save(self.path, self.state)
        return True


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold a lock file; its descriptor is what holds it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(
                f"tables.py: error: a benchmark is running already ({path} is held). Two at once "
                "measure each other; wait for it, or end it."
            )
        yield file.fileno()


def load(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else {}


def save(path: Path, data: Any) -> None:
    """Write JSON whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(data, indent=1) + "\n")
    new.replace(path)


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def revision_of_code() -> tuple[str, bool]:
    """Return the last commit that changed what tables depend on, and if there are changes since."""
    return git("log", "-1", "--format=%h", "--", *CODE), bool(git("status", "--short", "--", *CODE))


def markdown(
    made: dict[str, dict[str, Any]], tables: Sequence[Table] = (*TABLES, *ELSEWHERE)
) -> str:
    """Return the table of tables, for the page of results."""
    lines = [
        "| table | command | shows | minutes | code of | made on |",
        "| --- | --- | --- | --: | --- | --- |",
    ]
    for table in sorted(tables, key=lambda table: table.name):
        of = made.get(table.name, {})
        name = f"[{table.name}](../benchmarks/results/{table.name}.md)" if of else table.name
        given = f' BENCH_ARGS="{table.args}"' if table.args else ""
        row = (
            name,
            f"`make {table.target}{given}`",
            table.shows,
            f"{of['minutes']:.0f}" if of.get("minutes") else "",
            of.get("commit", "not made yet"),
            of.get("date", ""),
        )
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def tell(table: Table, commit: str, minutes: float) -> None:
    """Note of which code a table is, in the record and on the page."""
    made = load(MADE)
    made[table.name] = {"commit": commit, "date": date.today().isoformat(), "minutes": minutes}
    save(MADE, dict(sorted(made.items())))
    PAGE.write_text(with_table(PAGE.read_text(), made))


def with_table(page: str, made: dict[str, dict[str, Any]]) -> str:
    head, _, rest = page.partition(BEGIN)
    return head + BEGIN + "\n" + markdown(made) + "\n" + END + rest.partition(END)[2]


def chosen(names: Sequence[str]) -> list[Table]:
    known = {table.name: table for table in TABLES}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"tables.py: error: --only {' '.join(unknown)} must be of {', '.join(known)}")
    return [known[name] for name in names] if names else list(TABLES)


def show(tables: Sequence[Table], runner: Runner, *, quick: bool, again: bool) -> list[Table]:
    """Print the plan; return what is left of it."""
    left, total = [], 0.0
    made = {} if quick else load(MADE)
    for table in tables:
        command = table.command(quick=quick)
        of = made.get(table.name, {})
        # The record goes from clone to clone, what has finished here does not.
        is_made = runner.is_finished(command) or of.get("commit") == runner.revision
        if is_made and not again:
            print(f"{'finished':>16}  {shlex.join(command)}")
            continue
        taken = runner.minutes(command)
        taken = of.get("minutes") if taken is None else taken
        guess = (1 if quick else table.minutes) if taken is None else taken
        how = "estimated" if taken is None else "last time"
        print(f"{guess:5.1f} min {how}  {shlex.join(command)}")
        left.append(table)
        total += guess
    hours, minutes = divmod(round(total), 60)
    print(
        f"{len(left)} of {len(tables)} to run, about {hours} h {minutes:02} min, one at a time. "
        "Let nothing else run beside them."
    )
    return left


def main(args: Args) -> int:
    revision, changed = revision_of_code()
    commit = f"{revision} with changes" if changed else revision
    folder = ROOT / "build" / ("tables-quick" if args.quick else "tables")
    runner = Runner(folder, commit)
    print(f"Code of {commit}; logs and what has finished: {folder.relative_to(ROOT)}/")
    tables = chosen(args.only)
    left = show(tables, runner, quick=args.quick, again=args.again or changed)
    if args.list or not left:
        return 0
    if changed and not (args.quick or args.allow_changes):
        print(
            "tables.py: error: the code has changes that are not committed, and tables are to name "
            "theirs. Commit them, or pass --allow-changes.",
            file=sys.stderr,
        )
        return 1
    environment = dict(os.environ)
    if args.quick:
        environment["BENCH_RESULTS"] = str(folder)
    failed = []
    for number, table in enumerate(left, 1):
        command = table.command(quick=args.quick)
        print(f"{number} of {len(left)}: {table.name} ...", flush=True)
        try:
            succeeded = runner.run(table.name, command, environment)
        except KeyboardInterrupt:
            print(f"cut off in {table.name}; the same command goes on with what is missing")
            return 130
        if not succeeded:
            failed.append(table.name)
            print(f"failed: see {(folder / table.name).relative_to(ROOT)}.log", flush=True)
        elif table.measures and not args.quick:
            tell(table, commit, runner.minutes(command) or 0.0)
    if failed:
        print(f"tables.py: error: failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
