"""A run's folder: what was asked for, how far it has come, and its results."""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from experiments.scripts import SCRIPTS, Job
from experiments.sweeps import Configuration

CONFIG, LOG, PIECES, FINISHED = "config.json", "log.txt", "pieces.jsonl", "finished.json"
CONFIG_KEYS = {
    *("experiment", "index", "number", "run", "script", "agent", "env", "flags", "settings"),
    "values",
}
FINISHED_KEYS = {"steps", "elapsed_s", "peak_rss_bytes", "steps_per_s", "changed_pixels"}
RESULTS = {"Train": "result_Train.csv", "Test": "result_Test.csv", "Memory": "memory.csv"}


class FolderError(Exception):
    """A run's folder that cannot be used or read; one line says why."""


def write_json(path: Path, data: Any) -> None:
    """Write all of it or nothing."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(unfinished, path)


@dataclass(frozen=True)
class RunFolder:
    """The folder of one index of an experiment, ``<logs>/<experiment>/<index>``.

    It holds ``config.json``, ``log.txt`` (what the script said), ``pieces.jsonl`` (a line at the
    start and the end of each process), ``runs/`` (the script's own, checkpoints among it), and once
    all steps are done ``finished.json`` and the results as CSV.
    """

    path: Path

    def claim(self, name: str, configuration: Configuration, job: Job) -> None:
        """Write down what is to be run here, or see that it is what was run here before.

        Raises
        ------
        FolderError
            If the folder holds a run with other settings.
        """
        asked = {
            "experiment": name,
            "index": configuration.index,
            "number": configuration.number,
            "run": configuration.run,
            "script": job.script,
            "agent": job.agent,
            "env": job.env,
            "flags": job.flags,
            "settings": {k: v for k, v in vars(job.settings).items() if k not in ("resume",)},
            "values": configuration.values,
        }
        if (self.path / CONFIG).exists():
            there = self.config()
            for key in ("experiment", "script"):
                if there.get(key) != asked[key]:
                    raise FolderError(
                        f"{self.path} holds a run of another {key}, {there.get(key)!r}, not of "
                        f"{asked[key]!r}; give another --logs, or remove it"
                    )
            free = self.may_change(job)
            then = json.loads(json.dumps(there["settings"]))
            for key, value in json.loads(json.dumps(asked["settings"])).items():
                if key not in free and then.get(key) != value:
                    raise FolderError(
                        f"{self.path} holds a run with {key} {then.get(key)!r}, not {value!r}; "
                        "give another --logs, or remove it"
                    )
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / CONFIG, asked)

    @staticmethod
    def may_change(job: Job) -> set[str]:
        """Settings that a run may go on with changed."""
        changeable: set[str] = importlib.import_module(SCRIPTS[job.script].module).MAY_CHANGE
        return changeable

    def config(self) -> dict[str, Any]:
        """What was asked for.

        Raises
        ------
        FolderError
            If it cannot be read.
        """
        try:
            config: dict[str, Any] = json.loads((self.path / CONFIG).read_text())
            if missing := CONFIG_KEYS - config.keys():
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            if config["script"] not in SCRIPTS:
                raise ValueError(f"script {config['script']!r} is unknown")
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise FolderError(f"{self.path / CONFIG} cannot be read ({error})") from error
        return config

    def checkpoints(self) -> list[Path]:
        """Checkpoints, newest first."""
        found = list(self.path.glob("runs/*/checkpoint.pt"))
        return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)

    def last_checkpoint(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is whole; damaged ones are passed over."""
        for path in self.checkpoints():
            try:
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
                if {"global_step", "history"} <= checkpoint.keys():
                    return path, checkpoint
            except Exception:  # whatever a damaged file makes torch raise
                continue
        return None

    def finished(self) -> dict[str, Any] | None:
        """What `finish` wrote, or None."""
        try:
            finished: dict[str, Any] = json.loads((self.path / FINISHED).read_text())
            return finished if finished.keys() >= FINISHED_KEYS else None
        except (OSError, ValueError, AttributeError):
            return None

    def note_piece(self, **what: Any) -> None:
        """Add a line on a process that ran here."""
        with (self.path / PIECES).open("a") as file:
            file.write(json.dumps(what) + "\n")

    def pieces(self) -> list[dict[str, Any]]:
        """Lines of `note_piece`; what a crash cut off is left out."""
        try:
            lines = (self.path / PIECES).read_text().splitlines()
        except OSError:
            return []
        pieces = []
        for line in lines:
            try:
                piece = json.loads(line)
            except ValueError:
                continue
            if isinstance(piece, dict) and {"event", "time"} <= piece.keys():
                pieces.append(piece)
        return pieces

    def tables(self, history: dict[str, Any], config: dict[str, Any]) -> dict[str, pd.DataFrame]:
        """A checkpoint's history as tables: Step and Return, and the buffer's Bytes."""
        named = {"Env": config["env"], "Agent": config["agent"]}

        def returns(rows: list[tuple[float, ...]]) -> pd.DataFrame:
            table = pd.DataFrame([row[:2] for row in rows], columns=["Step", "Return"])
            return table.assign(**named)[["Env", "Agent", "Step", "Return"]]

        columns = list(SCRIPTS[config["script"]].memory)
        return {
            "Train": returns(history.get("episodes", [])),
            "Test": returns(history.get("evaluations", [])),
            "Memory": pd.DataFrame(history.get("memory", []), columns=columns),
        }

    def finish(self, checkpoint: dict[str, Any], keep_replay: bool) -> dict[str, Any]:
        """Write the results of a run whose steps are done; returns what ``finished.json`` has."""
        config, pieces = self.config(), self.pieces()
        for name, table in self.tables(checkpoint["history"], config).items():
            table.to_csv(self.path / RESULTS[name], index=False)
        ends = [piece for piece in pieces if piece["event"] == "end"]
        peaks = [piece["peak_rss_bytes"] for piece in ends if piece.get("peak_rss_bytes")]
        changed = checkpoint["history"].get("changed_pixels")
        finished = {
            "steps": checkpoint["global_step"],
            "elapsed_s": elapsed_s(pieces),
            "pieces": sum(piece["event"] == "start" for piece in pieces),
            "peak_rss_bytes": max(peaks, default=None),
            "steps_per_s": ends[-1].get("steps_per_s") if ends else None,
            "changed_pixels": changed["largest"] if changed else None,
        }
        if not keep_replay:
            for replay in self.path.glob("runs/*/replay-*.pkl"):
                replay.unlink()
        with (self.path / LOG).open("a") as log:
            memory = (finished["peak_rss_bytes"] or 0) / 1e6
            log.write(f"\nMemory usage: {memory:.2f} MB\n")
            log.write(f"Time elapsed: {finished['elapsed_s'] / 60:.2f} minutes\n")
        write_json(self.path / FINISHED, finished)
        return finished


def elapsed_s(pieces: list[dict[str, Any]]) -> float:
    """Seconds that all processes of a run took; of one that was killed, those to its checkpoint."""
    total, started = 0.0, None
    for piece in pieces:
        if piece["event"] == "start":
            if started is not None:
                total += max(0.0, (piece.get("from_time") or started) - started)
            started = piece["time"]
        elif started is not None:
            total, started = total + piece["time"] - started, None
    return total
