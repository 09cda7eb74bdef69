"""Tables I and II and Figures 1 to 4 of the paper on compressed observations, ours beside its own.

From whatever runs are at hand. Each of our figures says what it is from: whole trainings, a policy
trained for a while, or (nearly) random play.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from benchmarks.common import machine
from experiments import published as pub
from experiments.plotting import COLOURS, draw_legend, draw_panel, plt, save
from experiments.results import Run, load_runs, warn
from experiments.running import Runner
from experiments.sweeps import load_sweep

CONFIGS = Path(__file__).parent / "configs"
SMALL = ("small_paper_atari.yaml", "small_paper_dmc.yaml")
TRAINED_PART = 0.1  # of the published steps, from which on a policy counts as trained
MARKS = {"w": "whole trainings", "t": "a trained policy, not to the end", "r": "random play"}
NAMES = {"dense": "none", "disk": "none (disk)", "raw": "Half", "sparse": "Full"}


def mark_of(run: Run) -> str:
    """What a run's figures are from: w, t or r."""
    done = run.steps / published_steps(run)
    return "w" if done >= 1 else "t" if done >= TRAINED_PART else "r"


def published_steps(run: Run) -> int:
    """Agent steps of a whole training as published."""
    if run.agent != "DrQ-v2":
        return pub.ATARI_STEPS
    from cleanrl_scripts import drqv2_dmc

    steps: int = drqv2_dmc.published(run.env)["total_timesteps"]
    return steps


def weakest(marks: Iterable[str]) -> str:
    """The mark of what is put together from figures with these marks; empty for none."""
    return max(marks, key="wtr".index, default="")


class Cell(NamedTuple):
    """A figure of ours, and what it is from; without a value, a dash."""

    value: float | None = None
    mark: str = ""

    @classmethod
    def of(
        cls,
        runs: Sequence[Run],
        figure: Callable[[Run], float | None],
        put_together: Callable[[list[float]], float] = statistics.fmean,
    ) -> Cell:
        """The mean over runs, or their largest with ``put_together=max``."""
        found = [(run, value) for run in runs if (value := figure(run)) is not None]
        if not found:
            return cls()
        mark = weakest(mark_of(run) for run, _ in found)
        return cls(float(put_together([value for _, value in found])), mark)

    @classmethod
    def average(cls, cells: Iterable[Cell]) -> Cell:
        """The mean of what there is."""
        there = [cell for cell in cells if cell.value is not None]
        if not there:
            return cls()
        return cls(statistics.fmean(cell.value for cell in there), weakest(c.mark for c in there))

    def changed(self, change: Callable[[float], float]) -> Cell:
        """Another figure that follows from this one."""
        return Cell() if self.value is None else Cell(change(self.value), self.mark)

    def number(self, form: str = ",.0f") -> str:
        return "-" if self.value is None else f"{format(self.value, form)} {self.mark}".strip()

    def size(self, base: float, unit: float) -> str:
        """Bytes in a unit, and how many times smaller than the base."""
        if self.value is None:
            return "-"
        return f"{self.value / unit:,.3g} ({base / self.value:,.1f}) {self.mark}".strip()


def steps_per_s(run: Run) -> float | None:
    return run.details.get("steps_per_s")


def peak_mb(run: Run) -> float | None:
    peak = run.details.get("peak_rss_bytes")
    return peak / 1e6 if peak else None


def bytes_each(run: Run) -> float | None:
    """Bytes that the buffer holds for each observation, all counted."""
    if run.memory.empty:
        return None
    if run.agent == "PPO":  # every rollout is a full buffer: the largest, as N is
        return float(run.memory["Bytes"].max()) / run.settings["batch_size"]
    last = run.memory.iloc[-1]
    return float(last["Bytes"] / last["Transitions"]) if last["Transitions"] else None


def changed_each(run: Run) -> float | None:
    """N of equation 3, the largest in training, for each observation that the buffer has."""
    changed = run.details.get("changed_pixels")
    if changed is None:
        return None
    held = run.settings["batch_size"] if run.agent == "PPO" else run.settings["buffer_size"]
    seen = min(held, run.steps)
    return float(changed / seen)


def pick(runs: list[Run], agent: str, env: str, storage: str | None = None) -> list[Run]:
    return [
        run for run in runs
        if run.agent == agent and run.env == env and storage in (None, run.storage)
    ]  # fmt: skip


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table_2(runs: list[Run], agent: str) -> str:
    """Table II of one algorithm: the paper's columns, then ours."""
    stacks, theirs = pub.TABLE_2_STACKS[agent], pub.TABLE_2[agent]
    base = float(stacks * 4 * pub.SIDE**2)
    columns = [
        "game", "paper: FPS", f"MB of {pub.TABLE_2_BASE_MB[agent]:,} (x)",
        "ours: FPS none", "Full", "delta",
        f"equation 3, MB of {base / pub.MIB:,.1f} (x)", "`sparse` holds", "`delta` holds",
        "process MB none", "Full", "delta",
    ]  # fmt: skip
    ours = {}
    for game in pub.GAMES:
        ways = [pick(runs, agent, game, storage) for storage in ("dense", "sparse", "delta")]
        changed = Cell.of(pick(runs, agent, game), changed_each, max)
        ours[game] = [
            *(Cell.of(way, steps_per_s) for way in ways),
            changed.changed(lambda each: pub.equation_3(stacks, 4, stacks * each)),
            *(
                Cell.of(way, bytes_each, max).changed(lambda each: stacks * each)
                for way in ways[1:]
            ),
            *(Cell.of(way, peak_mb) for way in ways),
        ]
    # Factors are those of the average size, as in the paper.
    ours["average"] = [Cell.average(column) for column in zip(*ours.values(), strict=True)]
    rows = [
        [
            *(game, f"{theirs[game].fps_base}, {theirs[game].fps}"),
            f"{theirs[game].mb} ({theirs[game].factor})",
            *(cell.number() for cell in cells[:3]),
            *(cell.size(base, pub.MIB) for cell in cells[3:6]),
            *(cell.number() for cell in cells[6:]),
        ]
        for game, cells in ours.items()
    ]
    return markdown(columns, rows)


def table_1(runs: list[Run]) -> str:
    """Table I: the paper's columns, then ours, `delta` as one more way to compress."""
    stacks = pub.TABLE_1_STACKS
    base = float(stacks * pub.RGB_STACK_BYTES)
    columns = [
        "compression", "task", "paper: frames/s base, ours", "GB of 63.5 (x)",
        "ours: frames/s base (disk)", "compressed", "equation 3, GB of 63.5 (x)", "holds, GB (x)",
        "process MB base", "compressed",
    ]  # fmt: skip
    rows = []
    for name, storage in (("Half", "raw"), ("Full", "sparse"), ("delta", "delta")):
        ours = {}
        for task in pub.TASKS:
            plain, mine = (pick(runs, "DrQ-v2", task, each) for each in ("disk", storage))
            formula = Cell()
            if name == "Half":  # each frame once and the indices: nothing that training decides
                formula = Cell(float(stacks * (pub.SIDE**2 + 4 * 3)))
            elif name == "Full":
                changed = Cell.of(pick(runs, "DrQ-v2", task), changed_each, max)
                formula = changed.changed(lambda each: pub.equation_3(stacks, 3, stacks * each))
            ours[task] = [
                Cell.of(plain, frames_per_s),
                Cell.of(mine, frames_per_s),
                formula,
                Cell.of(mine, bytes_each, max).changed(lambda each: stacks * each),
                Cell.of(plain, peak_mb),
                Cell.of(mine, peak_mb),
            ]
        ours["average"] = [Cell.average(column) for column in zip(*ours.values(), strict=True)]
        for task, cells in ours.items():
            paper = pub.TABLE_1.get(name, {}).get(task)
            rows.append(
                [
                    *(name, task),
                    f"{paper.fps_base}, {paper.fps}" if paper else "-",
                    f"{paper.gb} ({paper.factor})" if paper else "-",
                    *(cell.number(",.1f") for cell in cells[:2]),
                    *(cell.size(base, pub.GB) for cell in cells[2:4]),
                    *(cell.number() for cell in cells[4:]),
                ]
            )
    return markdown(columns, rows)


def frames_per_s(run: Run) -> float | None:
    """Simulator frames a second, as DrQ-v2 counts: a step is two."""
    speed = steps_per_s(run)
    return speed * run.frames_per_step if speed is not None else None


def breakout_frames(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two successive images of a real game in which something moves."""
    import ale_py

    gym.register_envs(ale_py)
    envs = gym.make_vec("ALE/Breakout-v5", num_envs=1, stack_num=1, use_fire_reset=True)
    rng = np.random.default_rng(seed)
    before = envs.reset(seed=seed)[0][0, 0]
    for _ in range(200):
        after = envs.step(rng.integers(4, size=1))[0][0, 0]
        changed = np.count_nonzero(before != after)
        if 10 < changed < 200:
            break
        before = after
    envs.close()
    return before, after


def figure_1(path: Path) -> None:
    before, after = breakout_frames()
    difference = after.astype(int) - before
    n = np.count_nonzero(difference)
    figure, axes = plt.subplots(1, 3, figsize=(8, 3.3), layout="constrained")
    for place, image, title in zip(
        axes,
        (before, after, difference),
        ("A", "B", f"B - A: {n} pixels, {4 * n} of {pub.SIDE**2:,} bytes"),
        strict=True,
    ):
        place.imshow(image, cmap="gray")
        place.set_title(title, fontsize=9)
        place.set_axis_off()
    figure.suptitle("Figure 1: two images of Breakout and their difference", fontsize=10)
    save(figure, path)


def figure_2(runs: list[Run], path: Path) -> None:
    sizes = np.arange(2, 11)
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for colour, share in zip(COLOURS, (0.01, 0.05, 0.1, 0.15, 0.2, 0.25), strict=False):
        factors = [pub.factor_of_share(int(f), share) for f in sizes]
        axes.plot(sizes, factors, color=colour, label=f"{share:.0%} of pixels")
    for agent, marker, place in (("PPO", "x", -0.08), ("QR-DQN", "+", 0.08)):
        points = [Cell.of(pick(runs, agent, game), changed_each, max) for game in pub.GAMES]
        factors = [pub.equation_4(1, 4, cell.value) for cell in points if cell.value is not None]
        if factors:
            marks = ", ".join(sorted({cell.mark for cell in points if cell.mark}))
            axes.plot([4 + place] * len(factors), factors, marker, color="#666666", ms=6,
                      label=f"our {agent}, a mark a game ({marks})")  # fmt: skip
    axes.axhline(10, color="#bbbbbb", lw=0.8, zorder=0)
    axes.set(xlabel="frames in a stack, f", ylabel="times smaller than gray stacks")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="upper left")
    figure.suptitle("Figure 2: equation 4, by the share of pixels that change", fontsize=10)
    save(figure, path)


def storage_name(run: Run) -> str:
    return NAMES.get(run.storage, run.storage)


def curves(
    runs: list[Run], agents: Sequence[str], envs: Sequence[str], which: str, columns: int,
    title: str, path: Path,
) -> bool:  # fmt: skip
    """Panels of all games of each algorithm; False where there is nothing to be drawn."""
    drawn = [run for run in runs if run.agent in agents and len(run.returns(which))]
    if not drawn:
        return False
    order = [*NAMES.values(), *sorted({storage_name(run) for run in drawn})]
    labels = sorted({storage_name(run) for run in drawn}, key=order.index)
    panels = [(agent, env) for agent in agents for env in envs]
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.1 * columns, 2.5 * rows + 1), squeeze=False, layout="constrained"
    )
    for place, (agent, env) in zip(axes.flat, panels, strict=False):
        here = pick(drawn, agent, env)
        if here:
            draw_panel(place, here, labels, storage_name, which, 20, "mean", "sd", nested=True)
        else:
            said = "no episode has ended" if pick(runs, agent, env) else "no runs"
            place.text(0.5, 0.5, said, ha="center", transform=place.transAxes, fontsize=9)
            place.set_axis_off()
        place.set_title(f"{agent}, {env}", fontsize=9)
    draw_legend(figure, labels)
    said = textwrap.fill(caution(drawn), 46 * columns)
    figure.suptitle(f"{title}\n{said}", fontsize=9)
    save(figure, path)
    return True


def caution(runs: list[Run]) -> str:
    """What a picture says of the runs it is from."""
    seeds = len({run.settings["seed"] for run in runs})
    over = f"{seeds} seeds" if seeds > 1 else "one seed"
    said = f"mean, shaded: one standard deviation, over {over}"
    marks = {mark_of(run) for run in runs}
    if marks == {"w"}:
        return f"{said}; whole trainings"
    longest = max(runs, key=lambda run: run.steps / published_steps(run))
    return (
        f"{said}; NOT whole trainings: at most {longest.steps:,} of {published_steps(longest):,} "
        "steps" + ("" if "t" in marks else ", which show that it works, and nothing of learning")
    )


def make_small_runs(names: Sequence[str], out: Path, jobs: int) -> None:
    """Run the small configurations that are shipped, or go on with them."""
    for name in names:
        sweep, given = load_sweep(CONFIGS / name)
        outcomes = Runner(sweep, given, out / "runs", jobs).run_all(list(range(1, len(sweep) + 1)))
        for outcome in outcomes:
            if outcome.state != "finished":
                warn(f"{sweep.name} {outcome.index}: {outcome.line}")


def make_paper(folders: list[Path] | None, out: Path, jobs: int) -> None:
    """Write ``paper.md`` and the figures into `out`, from the runs in `folders`."""
    if not folders:
        print("no --runs: small ones are made, which show the mechanics and nothing of learning")
        make_small_runs(SMALL, out, jobs)
        folders = [out / "runs"]
    runs = load_runs(folders)
    out.mkdir(parents=True, exist_ok=True)
    figure_1(out / "figure1.png")
    figure_2(runs, out / "figure2.png")
    drawn = {
        3: curves(runs, ["DrQ-v2"], pub.TASKS, "Test", 2,
                  "Figure 3: DrQ-v2, mean of evaluations", out / "figure3.png"),
        4: curves(runs, ["PPO", "QR-DQN"], pub.GAMES, "Train", 5,
                  "Figure 4: PPO (top) and QR-DQN (bottom), returns in training",
                  out / "figure4.png"),
    }  # fmt: skip
    write_page(runs, drawn, out / "paper.md")
    print(f"written: {out / 'paper.md'} and its figures, from {len(runs)} runs")


def write_page(runs: list[Run], drawn: dict[int, bool], path: Path) -> None:
    counted = {mark: sum(mark_of(run) == mark for run in runs) for mark in MARKS}
    said = ", ".join(f"{n} of {MARKS[mark]} ({mark})" for mark, n in counted.items() if n)
    pictures = {
        3: "![Figure 3](figure3.png)" if drawn[3] else "Figure 3: no runs of DrQ-v2.",
        4: "![Figure 4](figure4.png)" if drawn[4] else "Figure 4: no runs of PPO or QR-DQN.",
    }
    page: dict[str, Any] = {"machine": machine(), "said": said or "none", **pictures}
    path.write_text(
        f"""# Differentially Encoded Observation Spaces: its tables and figures, ours beside them

The paper is arXiv 2310.01767; its machine had an i9-12900K and an RTX 4090. Put together from
{len(runs)} runs: {page["said"]}. This machine: {page["machine"]}.

- After each of our figures stands what it is from: **w** whole trainings as long as published,
  **t** a policy trained for at least {TRAINED_PART:.0%} of that, **r** less: random play or nearly.
- **equation 3** is the paper's formula for its own scheme. Its N is the largest number of changed
  pixels that was counted in training, over all our runs, whatever they stored; the paper's MB are
  from the same formula. **holds** is what `nbytes_stored` says of our arrays, everything counted:
  of PPO the largest rollout, of replay buffers the last. Both are taken for each observation and
  scaled to the paper's number of observations. In brackets how many times smaller than the base.
- **process MB** is the highest resident memory of the whole process, torch and game included.
- FPS are agent steps a second over a run's whole length, evaluations left out; means over seeds.
- Averages are over the games that there are.

## Table I: DrQ-v2

Base: RGB stacks, 63,504 bytes for each of a million steps, and the published replay, which reads
episodes from files in four processes (`experiments/drqv2_disk.py`); the memory of those four is not
in "process MB base". The paper's 32 % in speed is Half against that replay.

{table_1(runs)}

## Table II: PPO

Base: 1,024 stacks of 28,224 bytes. MB are 2^20 bytes.

{table_2(runs, "PPO")}

## Table II: QR-DQN

Base: 100,000 stacks of 28,224 bytes, stored once. MB are 2^20 bytes.

{table_2(runs, "QR-DQN")}

## Figures

![Figure 1](figure1.png)

![Figure 2](figure2.png)

The paper's Figure 2 draws its equation 5, which as printed leaves out the indices; this is equation
4 with them.

{page[3]}

{page[4]}
"""
    )
