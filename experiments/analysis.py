"""Tables of experiments: which configuration does best, and all curves in one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from experiments.results import Run, differing, value_of

LAST = {"Train": 10, "Test": 5}  # returns that a run's figure is the mean of

# Random play's and a human's score, by which returns are normalised: as google-deepmind/dqn_zoo has
# them, for the games of MeDQN and of the paper on compressed observations.
SCORES = {
    "Asteroids": (719.1, 47388.7),
    "BattleZone": (2360.0, 37187.5),
    "BeamRider": (363.9, 16926.5),
    "Breakout": (1.7, 30.5),
    "DoubleDunk": (-18.6, -16.4),
    "Enduro": (0.0, 860.5),
    "MsPacman": (307.3, 6951.6),
    "NameThisGame": (2292.3, 8049.0),
    "Phoenix": (761.4, 7242.6),
    "Pong": (-20.7, 14.6),
    "Qbert": (163.9, 13455.0),
    "RoadRunner": (11.5, 7845.0),
    "Seaquest": (68.4, 42054.7),
    "SpaceInvaders": (148.0, 1668.7),
}


def standard_error(values: np.ndarray) -> float:
    """Standard deviation, with n and not n - 1 in it as MeDQN has it, over the root of n."""
    return float(np.std(values) / np.sqrt(len(values)))


def last_mean(run: Run, which: str) -> float:
    """Mean of a run's last returns; NaN where there are none."""
    returns = run.returns(which)["Return"]
    return float(returns.tail(LAST[which]).mean()) if len(returns) else float("nan")


def analyze(runs: list[Run], which: str) -> pd.DataFrame:
    """Return a row for each configuration, the best of each environment first.

    Parameters
    ----------
    runs : list of Run
        Of one experiment.
    which : {"Train", "Test"}

    Returns
    -------
    DataFrame
        Env, Agent, Config Index, Runs; mean, standard error and maximum over its runs of the mean
        of their last five evaluations (ten episodes of training); then the keys swept over.
    """
    keys = differing(runs)
    rows = []
    for number in sorted({run.config["number"] for run in runs}):
        same = [run for run in runs if run.config["number"] == number]
        means = np.array([last_mean(run, which) for run in same])
        means = means[~np.isnan(means)]
        if not len(means):
            continue
        rows.append(
            {
                "Env": same[0].env,
                "Agent": same[0].agent,
                "Config Index": number,
                "Runs": len(means),
                "Return (mean)": means.mean(),
                "Return (se)": standard_error(means),
                "Return (max)": means.max(),
                # Whole numbers stay such, beside configurations without the key.
                **{key: as_text(value_of(same[0], key)) for key in keys},
            }
        )
    columns = ["Env", "Agent", "Config Index", "Runs"]
    columns += ["Return (mean)", "Return (se)", "Return (max)"]
    table = pd.DataFrame(rows, columns=[*columns, *keys])
    by = ["Env", "Return (mean)", "Return (max)"]
    return table.sort_values(by, ascending=[True, False, False], ignore_index=True)


def as_text(value: object) -> str:
    """A setting as a file would write it; nothing for none."""
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def memory_and_time(runs: list[Run]) -> pd.DataFrame:
    """Peak resident memory (MB) and time (minutes) of each finished run, by index."""
    rows = [
        {
            "Index": run.config["index"],
            "Env": run.env,
            "Agent": run.agent,
            "Memory (MB)": (run.details["peak_rss_bytes"] or np.nan) / 1e6,
            "Buffer (MB)": run.memory["Bytes"].iloc[-1] / 1e6 if len(run.memory) else np.nan,
            "Time (minutes)": run.details["elapsed_s"] / 60,
        }
        for run in runs
        if run.state == "finished"
    ]
    columns = ["Index", "Env", "Agent", "Memory (MB)", "Buffer (MB)", "Time (minutes)"]
    return pd.DataFrame(rows, columns=columns)


def snake_case(game: str) -> str:
    """``BattleZone`` is ``battle_zone``."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in game).lstrip("_")


def gather(runs: list[Run], which: str = "Test") -> pd.DataFrame:
    """All curves in one long table, with the columns of the files that MeDQN publishes."""
    tables = []
    for run in runs:
        returns = run.returns(which)
        low, high = SCORES.get(run.env, (np.nan, np.nan))
        tables.append(
            pd.DataFrame(
                {
                    "agent_id": label_within(run, runs),
                    "environment_name": snake_case(run.env),
                    "eval_episode_return": returns["Return"],
                    "frame": run.frames_per_step * returns["Step"],
                    "normalized_return": (returns["Return"] - low) / (high - low),
                    "seed": run.config["run"],
                }
            )
        )
    if not tables:
        return pd.DataFrame(
            columns=["agent_id", "environment_name", "eval_episode_return", "frame",
                     "normalized_return", "seed"]
        )  # fmt: skip
    return pd.concat(tables, ignore_index=True)


# What an agent's name says beside the algorithm where runs in one picture differ in it.
NAMED = {
    "buffer_size": "m", "consod_end": "lambda", "consod_epochs": "E", "train_frequency": "every",
    "learning_rate": "lr", "n_step": "n",
}  # fmt: skip


def label_within(run: Run, runs: list[Run]) -> str:
    """The agent's name, and what tells it from the same agent's other settings on the same game."""
    same = [other for other in runs if (other.agent, other.env) == (run.agent, run.env)]
    told = [run.storage] if len({other.storage for other in same}) > 1 else []
    for name, short in NAMED.items():
        if len({other.settings.get(name) for other in same}) > 1:
            value = run.settings.get(name)
            shown = f"{value:g}" if isinstance(value, float) else f"{value:,}"
            told.append(f"{short} = {shown}")
    return f"{run.agent} ({', '.join(told)})" if told else run.agent


def best_runs(runs: list[Run], which: str) -> list[Run]:
    """Of each agent, buffer size and game the runs of the configuration whose mean is highest."""
    kept: list[Run] = []
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        key = (run.agent, run.env, run.storage, run.settings.get("buffer_size"))
        groups.setdefault(key, []).append(run)
    for group in groups.values():
        by_config: dict[tuple[str, int], list[Run]] = {}
        for run in group:
            by_config.setdefault((run.config["experiment"], run.config["number"]), []).append(run)

        def score(same: list[Run]) -> float:
            means = [last_mean(run, which) for run in same]
            finite = [mean for mean in means if not np.isnan(mean)]
            return float(np.mean(finite)) if finite else -np.inf

        kept += max(by_config.values(), key=score)
    return kept


def write_csv(table: pd.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    return path
