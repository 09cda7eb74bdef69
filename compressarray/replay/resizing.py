"""A saved buffer with another capacity: its newest transitions, under the names that they have."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.array import DiffFrameArray
from compressarray.errors import CorruptFrameError
from compressarray.replay.checks import checked_int
from compressarray.replay.fields import Fields, spaces_of
from compressarray.replay.layout import Layout, read_layouts
from compressarray.replay.observations import rows_of_frames, rows_of_given_frames
from compressarray.replay.priorities import GROUP
from compressarray.replay.runs import trimmed
from compressarray.snapshots import Snapshot, array_of, int_of, part_of

Int64s = npt.NDArray[np.int64]
_FRAMES_AT_ONCE = 256


class _Move:
    """Where the transitions that stay lie in the old rings and in the new ones."""

    def __init__(self, transitions: Snapshot, n_lanes: int, n_old: int, n_new: int) -> None:
        counts = array_of(transitions, "counts", np.int64, (n_lanes,), 0)
        first = array_of(transitions, "first", np.int64, (n_lanes,), 0)
        self.counts = counts
        self.oldest: Int64s = np.maximum(np.maximum(counts - n_old, first), counts - n_new)
        if (self.oldest > counts).any():
            raise CorruptFrameError(f"stored first is {first}, past the counts {counts}")
        lanes = np.repeat(np.arange(n_lanes), counts - self.oldest)
        times = np.concatenate([np.arange(*span) for span in zip(self.oldest, counts, strict=True)])
        self.n_cells = n_lanes * n_new
        self.source: Int64s = lanes * n_old + times % n_old
        self.target: Int64s = lanes * n_new + times % n_new

    def __call__(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Move what cells hold, ``(old cells, ...)``."""
        moved = np.zeros((self.n_cells, *values.shape[1:]), values.dtype)
        moved[self.target] = values[self.source]
        return moved


def resized(state: Snapshot, capacity: Any) -> Snapshot:
    """What `ReplayBuffer.__setstate__` takes, of a buffer of another capacity.

    Frames are stored anew: some ten microseconds each.

    Raises
    ------
    ValueError
        If it keeps no transition of each lane, or fewer than ``n_step``.
    CorruptFrameError
        If the state is that of no buffer.
    """
    arguments, transitions = part_of(state, "arguments"), part_of(state, "transitions")
    n_lanes = int_of(arguments, "n_envs", 1)
    n_old = int_of(arguments, "capacity", n_lanes) // n_lanes
    n_new = checked_int("capacity", capacity, n_lanes) // n_lanes
    n_step = int_of(arguments, "n_step", 1)
    if n_step > n_new:
        raise ValueError(
            f"capacity={capacity} keeps {n_new} transitions of each of {n_lanes} lanes, and "
            f"n_step={n_step} needs as many: load it with {n_lanes * n_step} or more"
        )
    move = _Move(transitions, n_lanes, n_old, n_new)
    n_cells = n_lanes * n_old
    flags = array_of(transitions, "flags", np.uint8, (n_lanes, n_old)).reshape(-1)
    rewards = part_of(transitions, "rewards")
    of_cells = "codes" if len(array_of(rewards, "codes", np.uint8, (None,))) else "values"
    kind = np.uint8 if of_cells == "codes" else np.float32
    actions = part_of(transitions, "actions")
    if not isinstance(actions, np.ndarray) or len(actions) != n_cells:
        raise CorruptFrameError(f"stored actions are not those of {n_cells} transitions")
    held = part_of(transitions, "fields")
    fields = Fields(spaces_of(arguments), 1).values
    return {
        **state,
        "arguments": {**arguments, "capacity": n_lanes * n_new},
        "transitions": {
            **transitions,
            "first": move.oldest,
            "flags": move(flags).reshape(n_lanes, n_new),
            "rewards": {**rewards, of_cells: move(array_of(rewards, of_cells, kind, (n_cells,)))},
            "actions": move(actions),
            "fields": {
                name: move(array_of(held, name, values.dtype, (n_cells, *values.shape[1:])))
                for name, values in fields.items()
            },
        },
        "priorities": _moved_priorities(part_of(state, "priorities"), move, n_cells),
        "observations": _moved_observations(
            part_of(state, "observations"), arguments, move, n_lanes, n_new
        ),
    }


def _moved_priorities(priorities: Snapshot, move: _Move, n_cells: int) -> Snapshot:
    leaves = part_of(priorities, "leaves")
    if not len(leaves):
        return priorities
    n_leaves = -(-n_cells // GROUP) * GROUP
    moved = move(array_of(priorities, "leaves", np.float64, (n_leaves,)))
    padded = np.zeros(-(-len(moved) // GROUP) * GROUP)
    padded[: len(moved)] = moved
    return {**priorities, "leaves": padded}


def _moved_observations(
    observations: Snapshot, arguments: Snapshot, move: _Move, n_lanes: int, n_new: int
) -> Snapshot:
    entries = part_of(observations, "entries")
    given = int_of(observations, "given", -1, len(entries) - 1)
    layouts = read_layouts(
        part_of(arguments, "observation_space"),
        frames=None if given < 0 else part_of(entries[given], "frames"),
        stack_size=part_of(arguments, "stack_size"),
        stack_axis=part_of(arguments, "stack_axis"),
        frame_channels=part_of(arguments, "frame_channels"),
    )
    if len(layouts) != len(entries):
        raise CorruptFrameError(f"stored entries are {len(entries)}, not {len(layouts)}")
    return {
        **observations,
        "entries": tuple(
            _moved_entry(entry, layout, move, n_lanes, n_new)
            for entry, layout in zip(entries, layouts, strict=True)
        ),
    }


def _moved_entry(
    entry: Snapshot, layout: Layout, move: _Move, n_lanes: int, n_new: int
) -> Snapshot:
    stacks, frames = part_of(entry, "stacks"), part_of(entry, "frames")
    lanes = part_of(stacks, "lanes")
    runs = trimmed(part_of(stacks, "runs"), move.oldest, move.counts)
    if isinstance(frames, DiffFrameArray):
        first = array_of(lanes, "first", np.int64, (n_lanes,), 0)
        at = array_of(lanes, "at", np.int64, (n_lanes,))
        needed = first.copy()
        has_any = runs["counts"] > 0
        begin = (np.cumsum(runs["counts"]) - runs["counts"])[has_any]
        done = move.oldest[has_any] - runs["times"][begin]
        newest = runs["newest"][begin].astype(np.int64) + done
        newest = at[has_any] - ((at[has_any] - newest) & 0xFFFFFFFF)
        age = np.minimum(runs["age"][begin].astype(np.int64) + done, layout.stack_size - 1)
        needed[has_any] = newest - age
        if layout.feed == "indices":
            needed = first  # the wrapper's own array gets longer, never shorter
            n_rows = max(frames.shape[0], rows_of_given_frames(layout, n_new))
        else:
            n_rows = rows_of_frames(layout, n_new)
        frames = with_rows(frames, n_rows, np.maximum(needed, first))
        lanes = {**lanes, "first": np.maximum(needed, first)}
    return {"frames": frames, "stacks": {**stacks, "runs": runs, "lanes": lanes}}


def with_rows(frames: DiffFrameArray, n_rows: int, first: Int64s) -> DiffFrameArray:
    """Return an array of another length with the same frames under the same indices.

    Parameters
    ----------
    frames : DiffFrameArray
        That frames were appended to, and not assigned. One of this length is returned itself.
    n_rows : int
    first : ndarray, (n_lanes,) int64
        The counts of the frames that are needed, of each lane from these on.
    """
    if frames.shape[0] == n_rows:
        return frames
    shared, n_lanes = frames._frames, frames.n_lanes
    if shared.ring.was_assigned:
        raise CorruptFrameError("stored frames were assigned to, and not only appended")
    twin = frames._like_with_rows(n_rows)
    counts, oldest = frames.lane_counts, np.maximum(shared.ring.oldest, first)
    oldest = np.maximum(oldest, counts - n_rows)
    twin._frames.begin_at(shared, oldest)
    for lane in range(n_lanes):
        for start in range(int(oldest[lane]), int(counts[lane]), _FRAMES_AT_ONCE):
            end = min(start + _FRAMES_AT_ONCE, int(counts[lane]))
            rows = frames.gather(np.arange(start, end) * n_lanes + lane)
            twin.append(rows[:, None], lanes=[lane])
    return twin
