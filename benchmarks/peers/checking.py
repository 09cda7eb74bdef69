"""Whether what a system returns is what the agent saw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.frames import PlayThrough
from benchmarks.peers.base import Drawn, System, steps

# A small ring that turns, and is looked at where its seam lies elsewhere each time: the few
# transitions beside the seam hardly ever come up in a large one.
RING = 512
STAGES = (RING // 2, RING + 64, 2 * RING, 3 * RING + 1)
BATCH = 256


@dataclass
class Verdict:
    """How many of the transitions that were drawn had wrong pixels.

    A number that names no transition of the ring counts as both.
    """

    drawn: int = 0
    wrong_obs: int = 0
    wrong_next_obs: int = 0

    def add(self, drawn: Drawn, play: PlayThrough, live: range) -> None:
        known = (drawn.number >= live.start) & (drawn.number < live.stop)
        number = np.where(known, drawn.number, live.start)
        self.drawn += len(number)
        self.wrong_obs += _n_wrong(drawn.obs, play.obs(number), known)
        self.wrong_next_obs += _n_wrong(drawn.next_obs, play.next_obs(number), known)


def _n_wrong(given: np.ndarray, seen: np.ndarray, known: np.ndarray) -> int:
    if given.shape != seen.shape or given.dtype != seen.dtype:
        return len(seen)
    return int((~known | (given != seen).any((1, 2, 3))).sum())


def check(
    system: System, play: PlayThrough, live: range, draws: int, verdict: Verdict | None = None
) -> Verdict:
    """Draw in each of a system's ways, and compare."""
    verdict = Verdict() if verdict is None else verdict
    for way in system.ways().values():
        for _ in range(-(-draws // BATCH)):
            verdict.add(system.drawn(way(BATCH)), play, live)
    return verdict


def check_small_ring(kind: type[System], play: PlayThrough, times: int) -> Verdict:
    """Check a small ring at several places of its seam, before it is full too.

    Each time, each of its transitions is drawn so many times in the mean.
    """
    system, verdict, added = kind(RING, play.n_actions), Verdict(), 0
    for stage in (min(stage, len(play)) for stage in STAGES):
        for step in steps(play, added, stage):
            system.add(step)
        added = stage
        check(system, play, range(max(added - RING, 0), added), times * RING, verdict)
    return verdict
