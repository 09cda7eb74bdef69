"""Size against sampling time, every system a labelled point."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers.base import DENSE_BYTES


class Point(NamedTuple):
    label: str
    size: float  # bytes per transition
    us: float
    wrong: bool  # returns wrong pixels
    ours: bool  # comes with this project


def plot(points: list[Point], subtitle: str, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(11, 7.5), dpi=130, layout="constrained")
    for point in points:
        colour = "tab:red" if point.wrong else "tab:blue" if point.ours else "dimgray"
        axes.plot(
            point.us, point.size, "o", color=colour, mfc="none" if point.wrong else colour, ms=7
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="microseconds to sample 32 transitions (obs and next_obs)",
        ylabel="bytes per transition, resident",
    )
    axes.margins(x=0.25, y=0.12)
    axes.axhline(DENSE_BYTES, color="lightgray", zorder=0)
    axes.set_title(
        "Replay memory of Atari stacks: smaller is lower, faster is further left\n"
        f"gray line: dense, {DENSE_BYTES:,} bytes; hollow: returns wrong pixels\n{subtitle}",
        fontsize=10,
    )
    axes.grid(which="major", alpha=0.3)
    figure.canvas.draw()  # labels are placed in pixels
    place_labels(axes, points)
    figure.savefig(path)
    plt.close(figure)


def place_labels(axes, points: list[Point]) -> None:
    """Put each label where it covers the fewest points and labels, as near as it can be."""
    canvas = axes.figure.canvas.get_renderer()
    at = {point: axes.transData.transform((point.us, point.size)) for point in points}
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in at.values()]
    frame = axes.get_window_extent()
    for point in sorted(points, key=lambda point: -at[point][1]):
        measured = axes.text(0, 0, point.label, fontsize=8)
        box = measured.get_window_extent(canvas)
        measured.remove()
        best = None
        for far, side, up in product(range(12), (1, 0, -1), (0, 1, -1)):
            # right of the point, above or below it, left of it; from near to far
            x = {1: 10 + 6 * far, 0: -box.width / 2, -1: -box.width - 10 - 6 * far}[side]
            y = up * (14 + 12 * far)
            left, middle = at[point] + (x, y)
            area = (left, middle - box.height / 2, left + box.width, middle + box.height / 2)
            inside = frame.x0 < area[0] and area[2] < frame.x1
            inside &= frame.y0 < area[1] and area[3] < frame.y1
            covered = sum(overlap(area, other) for other in taken)
            cost = 10 * far + 2 * abs(up) + 400 * covered + 4000 * (not inside)
            if best is None or cost < best[0]:
                best = cost, (x, y), area, ((1 - side) / 2, (1 - up) / 2 if side == 0 else 0.5)
        _, offset, area, nearest = best
        taken.append(area)
        axes.annotate(
            point.label,
            (point.us, point.size),
            offset,
            textcoords="offset pixels",
            fontsize=8,
            va="center",
            arrowprops={
                "arrowstyle": "-", "color": "silver", "lw": 0.6,
                "relpos": nearest, "shrinkA": 0, "shrinkB": 3,
            },
        )  # fmt: skip


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
