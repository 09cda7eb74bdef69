"""MeDQN's figure, and the memory of its replay buffers beside DQN's million in `delta`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from experiments import published as pub
from experiments.analysis import best_runs, last_mean, standard_error
from experiments.full_buffers import GAMES, PLAYED, measure_all, published_buffers
from experiments.paper import make_small_runs, markdown
from experiments.plotting import COLOURS, plot_curves, plt, save
from experiments.results import Run, load_runs

MEASURED = Path(__file__).parent / "results" / "buffers.json"
FRAME_BYTES = pub.SIDE**2
QUICK_TRANSITIONS = 20_000


def label_of(run: Run) -> str:
    """The algorithm and how many transitions its buffer has, as in MeDQN's figure."""
    return f"{run.agent} (m = {run.settings['buffer_size']:,})"


# What `pub.MEDQN_RETURNS` calls an algorithm with so many transitions in its buffer.
PUBLISHED = {("MeDQN(R)", 10**5): "MeDQN(R)", ("DQN", 10**6): "DQN", ("DQN", 10**5): "DQN small"}


def published_as(run: Run) -> str | None:
    """Whose returns a run's stand beside; None where nothing of the kind was published."""
    return PUBLISHED.get((run.agent, run.settings["buffer_size"]))


def caution(runs: Sequence[Run]) -> str:
    """What the picture says of the runs it is from."""
    steps = sorted(run.steps for run in runs)
    if steps[0] >= pub.MEDQN_STEPS:
        return "whole trainings"
    done = f"{steps[0]:,}" if steps[0] == steps[-1] else f"{steps[0]:,} to {steps[-1]:,}"
    said = f"NOT whole trainings: {done} of {pub.MEDQN_STEPS:,} steps"
    shows = ", which show that it works, and nothing of learning"
    return said if steps[-1] >= pub.MEDQN_STEPS / 10 else said + shows


def returns_table(runs: list[Run]) -> str:
    """Their means of the last five evaluations, and ours with buffers of the same size."""
    names = {"MeDQN(R)": "MeDQN(R), 100,000", "DQN": "DQN, 1,000,000", "DQN small": "DQN, 100,000"}
    columns = ["game"]
    for name in names.values():
        columns += [f"{name}: published", "ours"]
    rows = []
    for game in GAMES:
        row = [game]
        for name in names:
            mean, error = pub.MEDQN_RETURNS[game][name]
            row.append(f"{mean:,} ± {error:,}" if error is not None else f"{mean:,}")
            values = [
                value
                for run in runs
                if run.env == game and published_as(run) == name
                and (value := last_mean(run, "Test")) == value
            ]  # fmt: skip
            if not values:
                row.append("-")
                continue
            ours = sum(values) / len(values)
            row.append(f"{ours:,.1f} ± {standard_error(values):,.1f} ({len(values)})")
        rows.append(row)
    return markdown(columns, rows)


def memory_table(rows: list[dict]) -> str:
    """MB of what was measured; a row for each game."""
    games = list(dict.fromkeys(row["game"] for row in rows))
    sizes = sorted({row["transitions"] for row in rows})
    kinds = [("raw", sizes[0]), ("delta", sizes[0]), ("delta", sizes[-1])]
    names = [
        f"{'frames once, raw' if codec == 'raw' else f'`{codec}`'}, {n:,}" for codec, n in kinds
    ]
    columns = ["game", *(f"{name}: growth of RSS, MB (held)" for name in names), "of theirs"]
    table = []
    for game in games:
        cells, grown = [], {}
        for kind in kinds:
            found = [r for r in rows if (r["game"], r["codec"], r["transitions"]) == (game, *kind)]
            if found:
                grown[kind] = found[0]["rss_growth"]
                held = found[0]["nbytes_stored"]
                cells.append(f"{grown[kind] / 1e6:,.1f} ({held / 1e6:,.1f})")
            else:
                cells.append("not measured")
        theirs = FRAME_BYTES * sizes[0]
        part = f"{grown[kinds[2]] / theirs:.1%}" if kinds[2] in grown else "-"
        table.append([game, *cells, part])
    return markdown(columns, table)


def draw_memory(rows: list[dict], path: Path) -> None:
    """Bars of resident memory: what MeDQN's code keeps, and DQN's whole buffer in `delta`."""
    sizes = sorted({row["transitions"] for row in rows})
    small, large = sizes[0], sizes[-1]
    games = list(dict.fromkeys(row["game"] for row in rows))

    def grown(game: str, codec: str, transitions: int) -> float:
        wanted = (game, codec, transitions)
        found = [r for r in rows if (r["game"], r["codec"], r["transitions"]) == wanted]
        return found[0]["rss_growth"] / 1e6 if found else float("nan")

    bars = [
        (
            f"DQN's {large:,}, each frame once (7,056 bytes)",
            [FRAME_BYTES * large / 1e6] * len(games),
        ),
        (f"MeDQN's {small:,}, each frame once, measured", [grown(g, "raw", small) for g in games]),
        (f"DQN's {large:,} in delta, measured", [grown(g, "delta", large) for g in games]),
        (f"MeDQN's {small:,} in delta, measured", [grown(g, "delta", small) for g in games]),
    ]
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    width = 0.2
    for number, (name, values) in enumerate(bars):
        places = [x + (number - 1.5) * width for x in range(len(games))]
        drawn = axes.bar(places, values, width, label=name, color=COLOURS[number + 1])
        labels = [
            "" if value != value else f"{value:,.{0 if value >= 100 else 1}f}" for value in values
        ]
        axes.bar_label(drawn, labels, fontsize=7)
    axes.set_xticks(range(len(games)), games)
    axes.set(ylabel="MB of resident memory", yscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    note = (
        "random play" if large >= 10**6 else f"random play; SMALL buffers, {large:,} for a million"
    )
    figure.suptitle(f"Replay memory on MeDQN's five games ({note})", fontsize=10)
    save(figure, path)


def measured_buffers(buffers: Path | None, transitions: int | None, out: Path) -> tuple[list, str]:
    """What full buffers take: as measured before, or measured now; and on which machine."""
    if transitions is None and buffers is None and MEASURED.exists():
        kept = json.loads(MEASURED.read_text())
        return kept["rows"], kept["machine"]
    transitions = transitions or QUICK_TRANSITIONS
    file = buffers or out / f"buffers-{transitions}.json"
    rows = measure_all(published_buffers(transitions), file)
    measured_on = json.loads(file.read_text())["machine"]
    draw_memory(rows, file.with_suffix(".png"))
    page = memory_page(rows, measured_on, file.with_suffix(".png").name)
    file.with_suffix(".md").write_text(f"# Replay memory on MeDQN's five games\n\n{page}")
    return rows, measured_on


def memory_page(rows: list[dict], measured_on: str, picture: str) -> str:
    """The picture, what it shows, and the table."""
    return f"""![Memory]({picture})

The growth of a process's resident memory while its replay buffer was filled by a random policy,
and in brackets what the buffer says that it holds; larger buffers than {PLAYED:,} got that many
transitions repeatedly. The published claim is 7 GB for DQN's million and 0.7 GB for MeDQN's
100,000, which is each frame once, {FRAME_BYTES:,} bytes. Measured on {measured_on}. **of theirs**:
DQN's whole buffer in `delta`, as a part of MeDQN's frames at {FRAME_BYTES:,} bytes.

{memory_table(rows)}
"""


def make_medqn(
    folders: list[Path] | None,
    out: Path,
    jobs: int,
    buffers: Path | None,
    transitions: int | None,
) -> None:
    """Write ``medqn.md`` and the pictures into `out`, from the runs in `folders`."""
    if not folders:
        print("no --runs: small ones are made, which show the mechanics and nothing of learning")
        make_small_runs(["small_medqn.json"], out, jobs)
        folders = [out / "runs"]
    runs = [run for run in load_runs(folders) if run.env in GAMES and len(run.test)]
    runs = best_runs(runs, "Test")
    out.mkdir(parents=True, exist_ok=True)
    drawn = plot_curves(
        runs, out / "medqn.png", estimator="median", label=label_of, frames=True,
        title="MeDQN's figure: returns of evaluations", note=caution(runs) if runs else "",
    )  # fmt: skip
    rows, measured_on = measured_buffers(buffers, transitions, out)
    draw_memory(rows, out / "memory.png")
    (out / "medqn.md").write_text(
        f"""# MeDQN: its figure, and the memory of its replay buffers

The paper is arXiv 2205.10868. Its means are computed from the files that it publishes.

## Returns

{"![Returns](medqn.png)" if drawn else "There are no runs of DQN or MeDQN(R) on its games."}

Means and standard errors over seeds of the mean of the last five evaluations; in brackets how many
runs. Ours: {caution(runs) if runs else "none"}.

{returns_table(runs)}

## Memory

{memory_page(rows, measured_on, "memory.png")}"""
    )
    print(f"written: {out / 'medqn.md'} and its pictures, from {len(runs)} runs")
