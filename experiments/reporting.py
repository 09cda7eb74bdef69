"""A page on an experiment: tables, curves and memory in one HTML file that needs nothing beside."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable
from html import escape
from pathlib import Path

import pandas as pd

from benchmarks.common import machine
from experiments.analysis import analyze, label_within, memory_and_time
from experiments.plotting import plot_curves, plot_memory
from experiments.results import Run, differing

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; margin: 1em 0; font-size: 90%; }}
td, th {{ padding: 0.2em 0.8em; border-bottom: 1px solid #ddd; text-align: right; }}
td:nth-child(-n+2), th:nth-child(-n+2) {{ text-align: left; }}
img {{ max-width: 100%; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def write_report(name: str, runs: list[Run], path: Path) -> None:
    """Write the page of one experiment."""
    finished = [run for run in runs if run.state == "finished"]
    parts = [
        f"<p>{len(finished)} of {len(runs)} runs are finished; the others are shown as far as they "
        f"went. Put together on {escape(machine())}.</p>",
        settings(runs),
    ]
    for which, what in (("Test", "evaluations"), ("Train", "episodes of training")):
        table = analyze(runs, which)
        last = {"Test": "five", "Train": "ten"}[which]
        heading = f"<h2>Returns in {what}</h2>"
        if table.empty:
            parts.append(f"{heading}<p>There are none.</p>")
            continue
        parts.append(
            f"{heading}<p>Of each configuration the mean over runs of the mean of their last "
            f"{last}, its standard error, and the highest run's.</p>"
        )
        parts.append(html_table(table))
        parts.append(picture(lambda file, which=which: plot_curves(runs, file, which=which)))
    parts.append("<h2>Memory and time</h2>")
    parts.append(picture(lambda file: plot_memory(runs, file)))
    resources = memory_and_time(runs)
    if not resources.empty:
        parts.append(
            "<p>Memory is the process's peak resident memory, everything in it counted; the buffer "
            "is what it says it holds.</p>"
        )
        parts.append(html_table(resources))
    parts.append("<h2>Runs</h2>")
    parts.append(html_table(runs_table(runs)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PAGE.format(title=escape(name), body="\n".join(filter(None, parts))))


def settings(runs: list[Run]) -> str:
    """What all runs share, of the flags that were given."""
    swept = differing(runs)
    shared = {
        key: value
        for key, value in runs[0].config["flags"].items()
        if all(run.config["flags"].get(key) == value for run in runs)
    }
    said = ", ".join(f"<code>{escape(f'{k}={v}')}</code>" for k, v in shared.items())
    over = ", ".join(f"<code>{escape(key)}</code>" for key in swept) or "nothing"
    return f"<p>Swept over: {over}. Of all runs: {said}.</p>"


def runs_table(runs: list[Run]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "Agent": label_within(run, runs),
                "Env": run.env,
                "Index": run.config["index"],
                "Seed": run.settings["seed"],
                "State": run.state,
                "Steps": run.steps,
            }
            for run in runs
        ]
    )


def html_table(table: pd.DataFrame) -> str:
    return str(table.to_html(index=False, border=0, float_format="{:,.2f}".format, na_rep="-"))


def picture(draw: Callable[[Path], bool]) -> str:
    """What `draw` draws, inside the page; nothing where there is nothing to be drawn."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture.png"
        if not draw(file):
            return ""
        data = base64.b64encode(file.read_bytes()).decode()
    return f'<p><img alt="curves" src="data:image/png;base64,{data}"></p>'
