"""Runs indices of a sweep, each in a process of its own, and goes on with what was cut off."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from joblib import Parallel, delayed

from experiments.folders import LOG, FolderError, RunFolder
from experiments.scripts import ROOT, SCRIPTS, Job, make_job
from experiments.sweeps import ConfigurationError, Sweep

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Outcome:
    """How a run ended: "finished", "stopped" (a checkpoint is there), "failed", "refused"."""

    index: int
    state: str
    line: str


class Runner:
    """Runs indices of one sweep.

    Parameters
    ----------
    sweep : Sweep
    given : dict
        Flags from the command line.
    logs : Path
        Folders are ``<logs>/<sweep.name>/<index>``.
    jobs : int
        How many at a time.
    keep_replay : bool
        Whether finished runs keep their replay buffer, to be gone on with.
    report_every_s : float
        Seconds between a job's lines of progress.
    """

    def __init__(
        self,
        sweep: Sweep,
        given: dict[str, Any],
        logs: Path,
        jobs: int = 1,
        keep_replay: bool = False,
        report_every_s: float = 30,
    ):
        self.sweep, self.given, self.logs, self.jobs = sweep, given, logs, jobs
        self.keep_replay, self.report_every_s = keep_replay, report_every_s
        self.processes: set[subprocess.Popen[bytes]] = set()
        self.printing = threading.Lock()

    def run_all(self, indices: list[int]) -> list[Outcome]:
        """Run indices; one that fails leaves the others alone."""
        parallel = Parallel(n_jobs=self.jobs, backend="threading", return_as="generator_unordered")
        before = signal.signal(signal.SIGTERM, self.stop)
        try:
            return list(parallel(delayed(self.run)(index) for index in indices))
        finally:
            signal.signal(signal.SIGTERM, before)

    def stop(self, *_: object) -> None:
        """End the scripts that run, and then ourselves: what a cluster's SIGTERM asks for."""
        for process in list(self.processes):
            process.terminate()
        raise KeyboardInterrupt

    def run(self, index: int) -> Outcome:
        """Run one index, or go on with it; says how it ended."""
        folder = RunFolder(self.logs / self.sweep.name / str(index))
        try:
            configuration = self.sweep[index]
            job = make_job(self.sweep.name, configuration, self.given)
            job.settings  # noqa: B018 - what the script would refuse is refused before a folder is
            with locked(folder.path) as lock:
                folder.claim(self.sweep.name, configuration, job)
                outcome = self.run_in(folder, index, job, lock)
        except (ConfigurationError, FolderError) as error:
            outcome = Outcome(index, "refused", str(error))
        self.say(index, f"{outcome.state}: {outcome.line}")
        return outcome

    def run_in(self, folder: RunFolder, index: int, job: Job, lock: IO[str]) -> Outcome:
        finished = folder.finished()
        if finished is not None:
            return Outcome(
                index,
                "finished",
                f"{finished['steps']:,} steps before; remove {folder.path} to repeat",
            )
        total = job.settings.total_timesteps
        last = folder.last_checkpoint()
        resume: list[str] = []
        from_time = None
        if last is not None and not has_replay(*last):
            last = None
        if last is not None:
            path, checkpoint = last
            if checkpoint["global_step"] >= total or is_complete(job, checkpoint):
                return self.finish(folder, index, checkpoint)
            resume = ["--resume", str(path.relative_to(folder.path))]
            from_time = path.stat().st_mtime
        begins = f"goes on at step {last[1]['global_step']:,}" if last else "begins"
        what = f"{job.agent}, {job.env}, seed {job.flags['seed']}"
        self.say(index, f"{what}: {begins}, {total:,} steps")

        first_step = last[1]["global_step"] if last else 0
        folder.note_piece(event="start", time=time.time(), from_time=from_time, step=first_step)
        status, peak = self.execute(folder, index, job, resume, lock)
        last = folder.last_checkpoint()
        step = last[1]["global_step"] if last else 0
        folder.note_piece(
            event="end", time=time.time(), status=status, step=step, peak_rss_bytes=peak,
            steps_per_s=steps_per_s(last[0].parent) if last else None,
        )  # fmt: skip
        if status:
            said = last_line(folder.path / LOG)
            return Outcome(
                index, "failed", f"exit status {status} ({said}); see {folder.path / LOG}"
            )
        assert last is not None
        if step < total and not is_complete(job, last[1]):
            return Outcome(index, "stopped", f"at step {step:,} of {total:,}, to be gone on with")
        return self.finish(folder, index, last[1])

    def execute(
        self, folder: RunFolder, index: int, job: Job, resume: list[str], lock: IO[str]
    ) -> tuple[int, int | None]:
        """Run the script; returns its exit status and the process's peak resident memory."""
        command = [
            sys.executable,
            str(ROOT / SCRIPTS[job.script].file),
            *job.command_line(),
            *resume,
        ]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
        environment = {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
        environment |= os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        inherited = {"pass_fds": (lock.fileno(),)} if fcntl else {}
        with (folder.path / LOG).open("ab") as log:
            process = subprocess.Popen(
                command, cwd=folder.path, stdout=log, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, env=environment, **inherited,
            )  # fmt: skip
        self.processes.add(process)
        peak, reported = None, time.monotonic()
        while process.poll() is None:
            peak = peak_rss_bytes(process.pid) or peak
            if time.monotonic() - reported > self.report_every_s:
                reported = time.monotonic()
                self.say(index, last_line(folder.path / LOG))
            time.sleep(LOOK_EVERY_S)
        self.processes.discard(process)
        return process.returncode, peak

    def finish(self, folder: RunFolder, index: int, checkpoint: dict[str, Any]) -> Outcome:
        finished = folder.finish(checkpoint, self.keep_replay)
        peak = finished["peak_rss_bytes"]
        return Outcome(
            index,
            "finished",
            f"{finished['steps']:,} steps in {finished['elapsed_s'] / 60:.1f} minutes"
            + (f", peak {peak / 1e6:,.0f} MB" if peak else ""),
        )

    def say(self, index: int, text: str) -> None:
        """Print a job's line of progress."""
        with self.printing:
            print(f"[{self.sweep.name} {index}] {text}", flush=True)


@contextmanager
def locked(path: Path) -> Iterator[IO[str]]:
    """Hold a folder while a run is in it; its process holds it too, should we be killed."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / "lock").open("w") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise FolderError(f"{path}: it is running already") from error
        yield lock


def is_complete(job: Job, checkpoint: dict[str, Any]) -> bool:
    """Whether PPO's whole rollouts are done: fewer steps than one may be left over."""
    iterations = getattr(job.settings, "num_iterations", None)
    return iterations is not None and checkpoint.get("iteration", 0) >= iterations


def has_replay(path: Path, checkpoint: dict[str, Any]) -> bool:
    """Whether what a checkpoint needs beside it is there."""
    replay = checkpoint.get("replay")
    return replay is None or path.with_name(replay).exists()


def peak_rss_bytes(pid: int) -> int | None:
    """The highest resident memory that a process has had; None where the system won't say.

    Not from `getrusage`: there a child begins with its parent's peak.
    """
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return 1024 * int(line.split()[1])
    except (OSError, ValueError, UnicodeDecodeError):
        pass
    return None


def last_line(path: Path, length: int = 4000) -> str:
    """What a script said last; its bar of progress writes over one line."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - length))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    return lines[-1] if lines else "nothing said yet"


def steps_per_s(run_dir: Path) -> float | None:
    """Steps per second of training as the script logged them last; evaluations are left out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    try:
        log = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
        log.Reload()
        return float(log.Scalars("charts/SPS")[-1].value)
    except Exception:  # a log that is damaged costs this figure alone
        return None


def parse_indices(text: str) -> list[int]:
    """``1-60``, ``3``, ``1,5,9-12`` and ``1-300:60`` (every 60th) as a list.

    Raises
    ------
    ConfigurationError
    """
    indices: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+)(?::(\d+))?)?\s*", part)
        if not match:
            raise ConfigurationError(f"indices {text!r} must be like 1-60, 3,5,9 or 1-300:60")
        first, last, step = match.groups()
        if int(first) < 1 or (last and int(last) < int(first)) or (step and int(step) < 1):
            raise ConfigurationError(f"indices {part!r} must begin at 1 or more and go upwards")
        indices += range(int(first), int(last or first) + 1, int(step or 1))
    return list(dict.fromkeys(indices))
