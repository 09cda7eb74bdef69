"""The command line of experiments; ``python -m experiments --help``."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import NoReturn

from experiments.sweeps import ConfigurationError, Sweep, load_sweep


def fail(message: object) -> NoReturn:
    sys.exit(f"experiments: error: {' '.join(str(message).split())}")


class Parser(argparse.ArgumentParser):
    """Answers what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message}; see {self.prog} --help")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m experiments", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, says: str) -> Parser:
        return commands.add_parser(name, help=says, description=says, allow_abbrev=False)

    def takes_file(sub: Parser) -> None:
        sub.add_argument("file", type=Path, help="configurations, .json or .yaml")
        sub.add_argument(
            "overrides", nargs="*", metavar="key=value",
            help="a key of the file (nested: agent.consod_end=[2,4]), or a flag of its script",
        )  # fmt: skip

    def takes_logs(sub: Parser) -> None:
        sub.add_argument(
            "--logs", type=Path, default=Path("logs"), help="where runs lie (%(default)s)"
        )

    def takes_target(sub: Parser) -> None:
        sub.add_argument("target", type=Path, help="a file of configurations, or a folder of runs")
        takes_logs(sub)

    takes_file(command("count", "say how many configurations a file has"))
    sub = command("show", "print the command that an index stands for")
    takes_file(sub)
    sub.add_argument("--index", type=int, required=True)

    sub = command("run", "run indices of a file; what was cut off is gone on with")
    takes_file(sub)
    takes_logs(sub)
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--index", type=int)
    which.add_argument("--indices", help="as in 1-60, 3,5,9 or 1-300:60")
    sub.add_argument(
        "--runs", type=int, default=1, help="runs of each configuration, without --index"
    )
    sub.add_argument("--jobs", type=int, default=1, help="how many at a time (%(default)s)")
    sub.add_argument(
        "--report-every", type=float, default=30, help="seconds between lines of progress"
    )
    sub.add_argument("--keep-replay", action="store_true", help="of finished runs, too")

    sub = command("status", "list the indices that are not finished")
    takes_file(sub)
    takes_logs(sub)
    sub.add_argument("--runs", type=int, default=1, help="runs of each configuration")
    sub.add_argument(
        "--quiet", action="store_true", help="the indices alone, as --indices takes them"
    )

    takes_target(command("memory", "peak memory of finished runs: figures and a histogram"))
    takes_target(command("time", "minutes that finished runs took: figures and a histogram"))
    takes_target(command("analyze", "CSV of training and evaluation for each configuration"))
    takes_target(command("report", "one self-contained HTML page of an experiment"))

    sub = command("gather", "one long CSV of all runs")
    sub.add_argument("folders", type=Path, nargs="+", help="folders of runs")
    sub.add_argument("--out", type=Path, required=True, help="the CSV")
    sub.add_argument("--which", choices=("Train", "Test"), default="Test")
    sub.add_argument("--best", action="store_true", help="of each agent and game the best settings")

    sub = command("plot", "learning curves by agent and game; several experiments in one picture")
    sub.add_argument("folders", type=Path, nargs="+", help="folders of runs")
    sub.add_argument("--out", type=Path, required=True, help="the picture, .png or .pdf")
    sub.add_argument("--which", choices=("Train", "Test"), default="Test")
    sub.add_argument("--window", type=int, default=20, help="returns smoothed over (%(default)s)")
    sub.add_argument("--estimator", choices=("mean", "median"), default="mean")
    sub.add_argument("--error", choices=("se", "sd"), default="se", help="what is shaded")
    sub.add_argument("--best", action="store_true", help="of each agent and game the best settings")

    for name, says in (
        ("paper", "Tables I and II, Figures 1 to 4 of the paper on compressed observations"),
        ("medqn", "MeDQN's figure, and the memory of its buffers"),
    ):
        sub = command(name, says)
        sub.add_argument(
            "--runs", type=Path, nargs="*", help="folders of runs (none given: small ones are made)"
        )
        sub.add_argument("--out", type=Path, default=Path("logs") / name, help="(%(default)s)")
        sub.add_argument("--jobs", type=int, default=2, help="small runs at a time (%(default)s)")
        if name == "medqn":
            sub.add_argument(
                "--buffers", type=Path,
                help="measurements of full buffers, to be used or gone on with",
            )  # fmt: skip
            sub.add_argument(
                "--transitions", type=int, default=None,
                help="DQN's buffer to be filled (1000000 where --buffers has it, else 20000)",
            )  # fmt: skip
    args, rest = parser.parse_known_args(argv)
    if hasattr(args, "overrides"):
        args.overrides += rest  # those that stand after a flag
        rest = [each for each in rest if each.startswith("-") and "=" not in each]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    for name in ("jobs", "window"):
        if getattr(args, name, 1) < 1:
            parser.error(f"--{name} {getattr(args, name)} must be at least 1")
    if isinstance(getattr(args, "runs", 1), int) and getattr(args, "runs", 1) < 1:
        parser.error(f"--runs {args.runs} must be at least 1")
    return args


def load(args: argparse.Namespace) -> tuple[Sweep, dict]:
    sweep, given = load_sweep(args.file, args.overrides)
    from experiments.scripts import make_job

    for index in range(1, len(sweep) + 1):  # a word that nobody knows is answered at once
        make_job(sweep.name, sweep[index], given)
    return sweep, given


def count(args: argparse.Namespace) -> None:
    sweep, _ = load(args)
    print(f"{sweep.name}: {len(sweep)} configurations")


def show(args: argparse.Namespace) -> None:
    from experiments.scripts import SCRIPTS, make_job

    sweep, given = load(args)
    configuration = sweep[args.index]
    job = make_job(sweep.name, configuration, given)
    print(f"{sweep.name} {args.index}: configuration {configuration.number}, run "
          f"{configuration.run + 1}")  # fmt: skip
    print(shlex.join(["python", SCRIPTS[job.script].file, *job.command_line()]))


def run(args: argparse.Namespace) -> None:
    from experiments.running import Runner, parse_indices

    sweep, given = load(args)
    if args.index is not None:
        indices = [args.index]
    elif args.indices is not None:
        indices = parse_indices(args.indices)
    else:
        indices = list(range(1, args.runs * len(sweep) + 1))
    runner = Runner(sweep, given, args.logs, args.jobs, args.keep_replay, args.report_every)
    outcomes = runner.run_all(indices)
    wrong = [outcome for outcome in outcomes if outcome.state in ("failed", "refused")]
    if len(outcomes) > 1:
        states = [outcome.state for outcome in outcomes]
        counted = ", ".join(f"{states.count(each)} {each}" for each in dict.fromkeys(states))
        print(f"[{sweep.name}] {counted}")
    if wrong:
        sys.exit(1)


def status(args: argparse.Namespace) -> None:
    from experiments.folders import RunFolder

    sweep, _ = load(args)
    unfinished = []
    for index in range(1, args.runs * len(sweep) + 1):
        folder = RunFolder(args.logs / sweep.name / str(index))
        if folder.finished() is not None:
            continue
        unfinished.append(index)
        if args.quiet:
            continue
        last = folder.last_checkpoint()
        pieces = folder.pieces()
        if last is not None:
            said = f"at step {last[1]['global_step']:,}"
        elif pieces:
            said = "begun, without a checkpoint"
        else:
            said = "not begun"
        if pieces and pieces[-1].get("status"):
            said += f", failed with exit status {pieces[-1]['status']}"
        print(f"{index}: {said}")
    if args.quiet:
        print(",".join(map(str, unfinished)))
    else:
        total = args.runs * len(sweep)
        print(f"{sweep.name}: {total - len(unfinished)} of {total} finished")


def load_target(args: argparse.Namespace):
    """The runs of an experiment, its name, and where its analysis goes."""
    from experiments.results import load_runs

    folder = args.target if args.target.is_dir() else args.logs / args.target.stem
    if not folder.is_dir():
        fail(f"{args.target}: there are no runs in {folder}; run it, or give --logs")
    runs = load_runs([folder])
    if not runs:
        fail(f"{folder}: there is no run in it that can be read")
    names = sorted({run.config["experiment"] for run in runs})
    if len(names) > 1:
        fail(f"{folder} holds several experiments, {', '.join(names)}: name the folder of one")
    return folder.name, runs, folder / "0"


def resources(args: argparse.Namespace) -> None:
    from experiments.analysis import memory_and_time
    from experiments.plotting import plot_histogram

    name, runs, out = load_target(args)
    column = {"memory": "Memory (MB)", "time": "Time (minutes)"}[args.command]
    table = memory_and_time(runs)
    values = table[column].dropna()
    if values.empty:
        fail(f"{name}: no run is finished, so there is nothing to show")
    print(f"{name}, {column} of {len(values)} runs: max {values.max():.2f}, "
          f"mean {values.mean():.2f}, min {values.min():.2f}")  # fmt: skip
    picture = out / f"{args.command}_info.png"
    plot_histogram(values, column, picture)
    print(f"written: {picture}")


def analyze(args: argparse.Namespace) -> None:
    from experiments.analysis import analyze, write_csv

    name, runs, out = load_target(args)
    for which in ("Train", "Test"):
        table = analyze(runs, which)
        if table.empty:
            print(f"{name}: no returns of {'evaluations' if which == 'Test' else 'training'}")
            continue
        print(f"written: {write_csv(table, out / f'results_{which}.csv')}")
        print(table.to_string(index=False, float_format="{:.2f}".format))


def report(args: argparse.Namespace) -> None:
    from experiments.reporting import write_report

    name, runs, out = load_target(args)
    write_report(name, runs, out / "report.html")
    print(f"written: {out / 'report.html'}")


def chosen_runs(args: argparse.Namespace):
    from experiments.analysis import best_runs
    from experiments.results import load_runs

    for folder in args.folders:
        if not folder.is_dir():
            fail(f"{folder}: there is no such folder")
    runs = load_runs(args.folders)
    if not any(len(each.returns(args.which)) for each in runs):
        what = "evaluations" if args.which == "Test" else "episodes of training"
        fail(f"{', '.join(map(str, args.folders))}: no run has {what}, so there is nothing to show")
    return best_runs(runs, args.which) if args.best else runs


def gather(args: argparse.Namespace) -> None:
    from experiments.analysis import gather, write_csv

    table = gather(chosen_runs(args), args.which)
    print(f"written: {write_csv(table, args.out)}, {len(table):,} rows")


def plot(args: argparse.Namespace) -> None:
    from experiments.plotting import plot_curves

    runs = chosen_runs(args)
    plot_curves(
        runs, args.out, which=args.which, window=args.window, estimator=args.estimator,
        error=args.error,
    )  # fmt: skip
    print(f"written: {args.out}")


def paper(args: argparse.Namespace) -> None:
    from experiments.paper import make_paper

    make_paper(args.runs, args.out, args.jobs)


def medqn(args: argparse.Namespace) -> None:
    from experiments.medqn import make_medqn

    make_medqn(args.runs, args.out, args.jobs, args.buffers, args.transitions)


COMMANDS = {
    "count": count, "show": show, "run": run, "status": status, "memory": resources,
    "time": resources, "analyze": analyze, "report": report, "gather": gather, "plot": plot,
    "paper": paper, "medqn": medqn,
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    try:
        COMMANDS[args.command](args)
    except ConfigurationError as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit("experiments: interrupted; the same command goes on with what is not finished")
    except BrokenPipeError:  # the reader of our lines has gone
        sys.stderr.close()


if __name__ == "__main__":
    main()
