"""Pictures: learning curves by agent and game, and histograms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd

from experiments.analysis import label_within
from experiments.results import Run

mpl.use("Agg")
import matplotlib.pyplot as plt

POINTS = 200  # of a curve whose runs have their returns at different steps
# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")

ESTIMATORS: dict[str, Callable[..., np.ndarray]] = {"mean": np.nanmean, "median": np.nanmedian}


def smoothed(returns: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values, or of all there are so far."""
    return pd.Series(returns).rolling(window, min_periods=1).mean().to_numpy()


def curve(
    runs: list[Run], which: str, window: int, estimator: str, error: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return steps, middle and half-width of the shading over the runs of one agent on one game.

    Runs that stopped earlier than others count as far as they went. `error` is "se" or "sd".
    """
    each, ends = [], []
    for run in runs:
        returns = run.returns(which)
        if len(returns):
            values = pd.Series(smoothed(returns["Return"].to_numpy(float), window), returns["Step"])
            values = values.groupby(level=0).last()  # episodes of several lanes that end at once
            each.append((values.index.to_numpy(float), values.to_numpy()))
            ends.append(max(run.steps, returns["Step"].iloc[-1]))
    if not each:
        return np.empty(0), np.empty(0), np.empty(0)
    if len({tuple(steps) for steps, _ in each}) == 1:
        steps = each[0][0]
        values = np.stack([values for _, values in each])
    else:
        first, last = min(s[0] for s, _ in each), max(s[-1] for s, _ in each)
        steps = np.linspace(first, last, POINTS)
        values = np.stack([np.interp(steps, s, v, left=np.nan) for s, v in each])
        values[steps > np.array(ends)[:, None]] = np.nan  # a run's last return stands to its end
        steps, values = steps[~np.isnan(values).all(0)], values[:, ~np.isnan(values).all(0)]
    middle = ESTIMATORS[estimator](values, axis=0)
    spread = np.nanstd(values, axis=0)
    if error == "se":
        spread = spread / np.sqrt((~np.isnan(values)).sum(axis=0))
    return steps, middle, spread


def plot_curves(
    runs: list[Run],
    path: Path,
    *,
    which: str = "Test",
    window: int = 20,
    estimator: str = "mean",
    error: str = "se",
    columns: int = 3,
    title: str = "",
    note: str = "",
    label: Callable[[Run], str] | None = None,
    frames: bool = False,
) -> bool:
    """Draw a panel for each game and in it a curve for each agent; False where there is nothing.

    `note` stands below the picture; `frames` puts millions of frames on the horizontal axis.
    """
    name = label or (lambda run: label_within(run, runs))
    drawn = [run for run in runs if len(run.returns(which))]
    if not drawn:
        return False
    envs = list(dict.fromkeys(run.env for run in drawn))
    labels = list(dict.fromkeys(name(run) for run in drawn))
    columns = min(columns, len(envs))
    rows = -(-len(envs) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4 * columns + 0.6, 2.9 * rows + 1.1), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for place, env in zip(axes.flat, envs, strict=False):
        here = [run for run in drawn if run.env == env]
        draw_panel(place, here, labels, name, which, window, estimator, error, frames)
        place.set_title(env, fontsize=10)
    for place in axes.flat[len(envs) :]:
        place.set_visible(False)
    kind = "evaluation" if which == "Test" else "training"
    axes[0, 0].set_ylabel(f"return in {kind}", fontsize=8)
    draw_legend(figure, labels)
    said = [title, f"{estimator}, shaded: {error}, over runs; smoothed over {window}", note]
    figure.suptitle("\n".join(filter(None, said)), fontsize=9)
    save(figure, path)
    return True


def draw_panel(
    place: plt.Axes,
    runs: list[Run],
    labels: list[str],
    name: Callable[[Run], str],
    which: str,
    window: int,
    estimator: str,
    error: str,
    frames: bool = False,
    nested: bool = False,
) -> None:
    """Draw a curve for each label that runs of one game have.

    `nested` ones are the thinner the later they come: those equal bit for bit can all be seen.
    """
    for number, (colour, label) in enumerate(zip(COLOURS * len(labels), labels, strict=False)):
        same = [run for run in runs if name(run) == label and len(run.returns(which))]
        if not same:
            continue
        steps, middle, spread = curve(same, which, window, estimator, error)
        x = steps * same[0].frames_per_step / 1e6 if frames else steps
        width = 1.2 + (1.6 * (len(labels) - 1 - number) if nested else 0)
        marker = "." if len(x) < 30 else None
        place.plot(x, middle, color=colour, marker=marker, ms=width + 3, lw=width)
        place.fill_between(x, middle - spread, middle + spread, color=colour, alpha=0.2, lw=0)
    place.set_xlabel("frames (millions)" if frames else "agent steps", fontsize=8)
    place.tick_params(labelsize=8)
    place.spines[["top", "right"]].set_visible(False)


def draw_legend(figure: plt.Figure, labels: list[str]) -> None:
    handles = [
        mpl.lines.Line2D([], [], color=colour, label=label)
        for colour, label in zip(COLOURS * len(labels), labels, strict=False)
    ]
    columns = min(3 if max(map(len, labels)) > 12 else 6, len(labels))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8)


def plot_histogram(values: pd.Series, name: str, path: Path) -> None:
    """Draw how a figure is distributed over runs, in ten bins."""
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    axes.hist(values.dropna(), bins=10, color=COLOURS[1])
    axes.set(xlabel=name, ylabel="runs")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def plot_memory(runs: list[Run], path: Path) -> bool:
    """Draw the buffers' bytes over the steps, a line for each run; False where there is nothing."""
    drawn = [run for run in runs if len(run.memory)]
    if not drawn:
        return False
    labels = list(dict.fromkeys(f"{label_within(run, runs)}, {run.env}" for run in drawn))
    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    for run in drawn:
        name = f"{label_within(run, runs)}, {run.env}"
        number = labels.index(name)
        axes.plot(
            run.memory["Step"], run.memory["Bytes"] / 1e6, label=name,
            color=COLOURS[number % len(COLOURS)],
            linestyle=("-", "--", ":", "-.")[number // len(COLOURS) % 4],
        )  # fmt: skip
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles.keys(), fontsize=7, loc="center left",
                bbox_to_anchor=(1, 0.5))  # fmt: skip
    axes.set(xlabel="agent steps", ylabel="MB of the buffer", yscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
    return True


def save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
