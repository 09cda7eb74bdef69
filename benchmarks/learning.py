"""Learning curves of one training on a GPU, drawn from what it logged.

`benchmarks/measured/` has what was measured, with its command, machine and commit; nothing
is measured here.

    python -m benchmarks.learning

Writes `benchmarks/results/learning.md` and `learning.png`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.common import RESULTS

MEASURED = Path(__file__).parent / "measured" / "drqv2-cartpole-balance-h100.json"
TRAINING, EVALUATION = "charts/episodic_return", "eval/episodic_return"
Curve = list[list[float]]  # steps of the agent, return


def equal_points(one: Curve, other: Curve) -> int:
    """Return how many points the curves have in common; refuse those that differ."""
    both = min(len(one), len(other))
    if one[:both] != other[:both]:
        at = next(a[0] for a, b in zip(one, other, strict=False) if a != b)
        raise ValueError(f"the curves differ at step {at:.0f}; the page says that they are equal")
    return both


def markdown(measured: dict[str, Any]) -> str:
    runs, sizes = measured["runs"], measured["bytes_per_transition"]
    ours, dense = runs["indexed delta"], runs["dense"]
    n_training = equal_points(ours[TRAINING], dense[TRAINING])
    n_evaluations = equal_points(ours[EVALUATION], dense[EVALUATION])
    lines = [
        "# Learning with and without compression",
        "",
        f"{measured['what']}. Measured on {measured['machine']}, with the code of "
        f"{measured['commit']}, by",
        "",
        f"    {measured['command']}",
        "",
        "Drawn by `make learning`, which measures nothing.",
        "",
        f"The first {n_training} returns of training and all {n_evaluations} evaluations are equal "
        "in both runs, to every digit that was logged.",
        "",
        "| storage | bytes per transition | peak resident memory, MB | evaluated: steps, return |",
        "| --- | --: | --: | --- |",
    ]
    for name, run in runs.items():
        told = "; ".join(f"{step:,.0f}, {value:.0f}" for step, value in run[EVALUATION])
        lines.append(
            f"| {name} | {sizes[name]:,.0f} | {measured['peak_rss_mb'][name]:,} | {told} |"
        )
    return "\n".join(lines) + "\n"


def draw(measured: dict[str, Any], path: Path) -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=130, layout="constrained")
    # One line under the other: the wider one shows on both sides of it.
    styles = {"dense": ("silver", 6), "indexed delta": ("tab:blue", 1.8)}
    for name, (colour, width) in styles.items():
        run, size = measured["runs"][name], measured["bytes_per_transition"][name]
        steps, returns = zip(*run[TRAINING], strict=True)
        axes.plot(
            steps, returns, color=colour, lw=width, label=f"{name}, {size:,.0f} bytes a transition"
        )
        steps, returns = zip(*run[EVALUATION], strict=True)
        axes.plot(steps, returns, "o", color=colour, ms=2.5 * width**0.5 + 3, mec="black", mew=0.5)
    axes.set(xlabel="steps of the agent", ylabel="return", ylim=(0, 1050))
    axes.set_title(
        "DrQ-v2, cartpole balance, one seed: training (lines) and evaluation (points)\n"
        "one NVIDIA H100; both storages give the same numbers",
        fontsize=10,
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    measured = json.loads(MEASURED.read_text())
    (RESULTS / "learning.md").write_text(markdown(measured))
    draw(measured, RESULTS / "learning.png")
    print(f"written: {RESULTS / 'learning.md'}, {RESULTS / 'learning.png'}")


if __name__ == "__main__":
    main()
