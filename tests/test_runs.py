"""Runs of stacks say of each transition what a table of all of them says."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from compressarray.errors import CorruptFrameError
from compressarray.replay.runs import APART, LANE, PINNED, Runs, cell_dtype, trimmed
from tests.effort import examples

STACK = 4


def runs_of(n_lanes: int, n_slots: int) -> tuple[Runs, np.ndarray[Any, Any]]:
    lanes = np.zeros(n_lanes, LANE)
    lanes["at"] = -1
    return Runs(lanes, n_slots, STACK), lanes


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, tuple[int, int, int, int]]]]:
    """Lanes, slots, and transitions: which lane adds what."""
    n_lanes, n_slots = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 5, 63, 64, 65, 130]))
    n = draw(st.integers(0, 300))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    p_begin, p_apart = draw(st.sampled_from([0.0, 0.02, 0.5])), draw(st.sampled_from([0, 0.05, 1]))
    base = draw(st.sampled_from([0, 2**32 - 90]))
    newest, age, marks = [base] * n_lanes, [0] * n_lanes, [0] * n_lanes
    added = []
    for _ in range(n):
        k = int(rng.integers(n_lanes))
        step = 1
        if rng.random() < p_begin:
            newest[k] += int(rng.integers(1, 6))
            age[k], marks[k] = 0, PINNED * int(rng.integers(2))
        apart = 0
        if rng.random() < p_apart:
            apart, step = APART, int(rng.integers(1, STACK + 1))
        added.append((k, (newest[k], age[k], step, marks[k] | apart)))
        newest[k] += step
        age[k] = step - 1 if apart else min(age[k] + 1, STACK - 1)
    return n_lanes, n_slots, added


def put(runs: Runs, lanes: np.ndarray[Any, Any], k: int, what: tuple[int, int, int, int]) -> None:
    cells = np.zeros(1, cell_dtype(STACK))
    cells[0] = (what[0] & 0xFFFFFFFF, *what[1:])
    runs.put(np.array([k * runs.n_slots]), cells)
    lanes["at"][k] = what[0] + what[2]


def check(
    runs: Runs, lanes: np.ndarray[Any, Any], seen: list[list[tuple[int, int, int, int]]]
) -> None:
    for k, of_lane in enumerate(seen):
        times = np.arange(max(0, len(of_lane) - runs.n_slots), len(of_lane))
        cells = runs.cells(k * runs.n_slots + times % runs.n_slots)
        expected = [(t[0] & 0xFFFFFFFF, *t[1:]) for t in (of_lane[i] for i in times)]
        assert cells.tolist() == expected


@settings(max_examples=examples(150), deadline=None)
@given(histories())
def test_runs_are_the_transitions(history: Any) -> None:
    n_lanes, n_slots, added = history
    runs, lanes = runs_of(n_lanes, n_slots)
    seen: list[list[tuple[int, int, int, int]]] = [[] for _ in range(n_lanes)]
    for i, (k, what) in enumerate(added):
        put(runs, lanes, k, what)
        seen[k].append(what)
        if i % 37 == 0:
            check(runs, lanes, seen)
    check(runs, lanes, seen)

    counts = np.array([len(of_lane) for of_lane in seen])
    oldest = np.maximum(counts - n_slots, 0)
    saved = runs.snapshot(oldest)
    twin, others = runs_of(n_lanes, n_slots)
    others["at"] = lanes["at"]
    twin.restore(saved, oldest, counts)
    check(twin, others, seen)
    for k, what in added[:100]:  # they go on alike
        for each, of_each in ((runs, lanes), (twin, others)):
            put(each, of_each, k, (what[0] + 2**20, *what[1:]))
    for k in range(n_lanes):
        held = np.arange(k * n_slots, k * n_slots + min(n_slots, int(lanes["count"][k])))
        assert runs.cells(held).tolist() == twin.cells(held).tolist()

    later = np.minimum(oldest + 3, counts)  # as in a smaller ring
    fewer = trimmed(saved, later, counts)
    smaller, of_smaller = runs_of(n_lanes, max(n_slots - 3, 1))
    of_smaller["at"] = others["at"]
    smaller.restore(fewer, later, counts)


def test_what_runs_cost() -> None:
    runs, lanes = runs_of(2, 100_000)
    for begin in range(0, 100_000, 1000):
        for k in range(2):
            cells = np.zeros(1000, cell_dtype(STACK))
            cells["newest"] = begin + begin // 1000 + np.arange(1000)
            cells["age"] = np.minimum(np.arange(1000), STACK - 1)
            cells["step"] = 1
            runs.put(np.full(1000, k * 100_000), cells)
            lanes["at"][k] = begin + begin // 1000 + 1000
    assert lanes["n_runs"].tolist() == [100, 100]
    assert runs.nbytes < 0.25 * 200_000


@pytest.mark.parametrize("name", ["counts", "times", "newest", "age", "step", "marks"])
def test_runs_of_other_transitions_are_refused(name: str) -> None:
    runs, lanes = runs_of(1, 8)
    for t in range(12):
        put(runs, lanes, 0, (t if t < 9 else t + 5, min(t, 3), 1, 0))
    saved = runs.snapshot(np.array([4]))
    wrong = saved[name].copy()
    wrong[-1] = 200
    other = {**saved, name: wrong[:-1] if name == "newest" else wrong}
    with pytest.raises(CorruptFrameError):
        runs_of(1, 8)[0].restore(other, np.array([4]), np.array([12]))
