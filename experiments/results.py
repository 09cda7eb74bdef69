"""What runs have left, as tables: finished ones, and those that run still or were cut off."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.folders import CONFIG, RESULTS, FolderError, RunFolder
from experiments.scripts import SCRIPTS
from experiments.sweeps import flatten


def warn(message: object) -> None:
    """Say in one line what is left out, and go on."""
    print(f"left out: {' '.join(str(message).split())}", file=sys.stderr)


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes
    ----------
    config : dict
        What its folder's ``config.json`` has.
    state : {"finished", "unfinished"}
    train, test : DataFrame
        Env, Agent, Step and Return: of each episode of training, of each evaluation.
    memory : DataFrame
        Step and Bytes of the buffer; Transitions where it is not always full.
    steps : int
        Agent steps done.
    details : dict
        Of a finished run what ``finished.json`` has, of another what is known of it.
    """

    path: Path
    config: dict[str, Any]
    state: str
    train: pd.DataFrame
    test: pd.DataFrame
    memory: pd.DataFrame
    steps: int
    details: dict[str, Any]

    @property
    def env(self) -> str:
        return str(self.config["env"])

    @property
    def agent(self) -> str:
        return str(self.config["agent"])

    @property
    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = self.config["settings"]
        return settings

    @property
    def frames_per_step(self) -> int:
        return SCRIPTS[self.config["script"]].frames_per_step

    @property
    def storage(self) -> str:
        """Where its observations were: dense, disk, or the codec."""
        if self.config["script"] == "drqv2_disk":
            return "disk"
        if self.settings.get("obs_storage", "dense") == "dense":
            return "dense"
        return str(self.settings["codec"])

    def returns(self, which: str) -> pd.DataFrame:
        """Evaluations ("Test") or episodes of training ("Train")."""
        return {"Train": self.train, "Test": self.test}[which]


def find_folders(roots: Iterable[Path]) -> Iterator[RunFolder]:
    """Yield the folders of runs at and below some folders, in the order of their indices."""
    found = {path.parent for root in roots for path in root.rglob(CONFIG)}

    def order(path: Path) -> tuple[str, int, str]:
        return str(path.parent), int(path.name) if path.name.isdigit() else 0, path.name

    yield from map(RunFolder, sorted(found, key=order))


def load_run(folder: RunFolder) -> Run:
    """Read one run.

    Raises
    ------
    FolderError
        If nothing can be read of it.
    """
    config, finished = folder.config(), folder.finished()
    if finished is not None:
        try:
            tables = {name: pd.read_csv(folder.path / file) for name, file in RESULTS.items()}
            for name in ("Train", "Test"):
                tables[name] = tables[name].astype({"Step": int, "Return": float})
            tables["Memory"] = tables["Memory"].astype({"Step": int, "Bytes": int})
        except (OSError, ValueError, KeyError) as error:
            raise FolderError(f"{folder.path}: its results cannot be read ({error})") from error
        return Run(
            folder.path, config, "finished", tables["Train"], tables["Test"], tables["Memory"],
            int(finished["steps"]), finished,
        )  # fmt: skip
    last = folder.last_checkpoint()
    history = last[1]["history"] if last else {}
    steps = int(last[1]["global_step"]) if last else 0
    tables = folder.tables(history, config)
    ends = [piece for piece in folder.pieces() if piece["event"] == "end"]
    peaks = [piece["peak_rss_bytes"] for piece in ends if piece.get("peak_rss_bytes")]
    changed = history.get("changed_pixels")
    details = {
        "peak_rss_bytes": max(peaks, default=None),
        "steps_per_s": ends[-1].get("steps_per_s") if ends else None,
        "changed_pixels": changed["largest"] if changed else None,
    }
    return Run(
        folder.path, config, "unfinished", tables["Train"], tables["Test"], tables["Memory"],
        steps, details,
    )  # fmt: skip


def load_runs(roots: Iterable[Path]) -> list[Run]:
    """Read all runs at and below some folders; those that cannot be read are named and left out."""
    runs = []
    for folder in find_folders(roots):
        try:
            runs.append(load_run(folder))
        except FolderError as error:
            warn(error)
    return runs


def differing(runs: list[Run]) -> list[str]:
    """Keys of configurations, nested ones joined by ``/``, in which runs differ; seeds do not."""
    leaves = [dict(flatten(run.config["values"])) for run in runs]
    keys = dict.fromkeys(key for each in leaves for key in each)
    # Of configurations that depend on one another some lack a key: that is a difference, too.
    values = {key: {json.dumps(each.get(key, "no such key")) for each in leaves} for key in keys}
    return [key for key in keys if len(values[key]) > 1 and key not in ("seed", "seeds")]


def value_of(run: Run, key: str) -> Any:
    """A configuration's value; None where this one has no such key."""
    return dict(flatten(run.config["values"])).get(key)
