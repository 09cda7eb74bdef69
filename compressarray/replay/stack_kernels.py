"""Kernels of `Stacks`: how stacks go on, what is written down of them, which frames they are of."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.kernels.compiling import inlined, kernel
from compressarray.kernels.memory import base_of, copy_bytes, same_bytes
from compressarray.replay.runs import (
    APART,
    NEXT_PINNED,
    PINNED,
    has_room,
    put_cell,
    runs_at,
    stack_of,
    time_in,
)
from compressarray.replay.windows import FIRST

# What may be wrong with frame indices.
FINE, NO_STACK, NO_NEXT_STACK, NOT_NEXT, NOT_HELD, GOES_BACK = range(6)
_UINT32 = 2**32 - 1
# Indices from here on name pinned frames.
_LOWEST_PIN = 2**62

# Frames of a lane that go together: letting go takes several microseconds, a tenth of adding a
# transition, and memory comes back by groups of as many.
LET_GO_AT = 16

# What one step brings to each lane; nothing that counts where it adds no transition.
Plan = npt.NDArray[np.void]
PLAN = np.dtype(
    [
        ("newest", np.int64),  # count of the observation's newest frame, once it is stored
        ("age", np.int64),
        ("step", np.int64),  # from there to the successor's newest frame, 0 without a transition
        ("marks", np.int64),
        ("n_enter", np.int64),  # frames to be stored for the observation itself
        ("pad", np.int64),  # index of the padding frame
        ("same", np.bool_),  # the observation is the lane's last successor
    ],
    align=True,
)


# -- planning --------------------------------------------------------------------------------


@kernel
def padding_of(stack: Any, frame_bytes: Any, stack_size: Any, zeros: Any) -> Any:
    """Find the padding that a stack begins with.

    Parameters
    ----------
    stack, zeros : int
        Addresses of the stack, and of a frame of zeros.

    Returns
    -------
    age : int
        Frames from the oldest one that has to be stored to the newest one.
    mark : int
        PINNED where frames of zeros stand before it, 0 where it is repeated.
    """
    n_zeros = 0
    while n_zeros < stack_size - 1 and same_bytes(
        stack + n_zeros * frame_bytes, zeros, frame_bytes
    ):
        n_zeros += 1
    if n_zeros:
        return stack_size - 1 - n_zeros, PINNED
    n_equal = 1
    while n_equal < stack_size and same_bytes(stack + n_equal * frame_bytes, stack, frame_bytes):
        n_equal += 1
    return stack_size - n_equal, 0


@kernel
def plan_stacks(obs: Any, successor: Any, current: Any, zeros: Any, live: Any, counts: Any,
                lanes: Any, plan: Any) -> Any:  # fmt: skip
    """Fill a plan for the stacks of all lanes, flat bytes.

    Parameters
    ----------
    counts : ndarray, (n_lanes,) int64
        Frames that each lane has had.

    Returns
    -------
    bool
        Whether each lane stores its successor's newest frame and nothing else: all of them live,
        nothing enters, no stack stands apart, and no frame is left over from a step that failed.
    """
    stack_size, frame_bytes = current.shape[1], current.shape[2]
    stack_bytes = stack_size * frame_bytes
    is_plain = True
    for k in range(len(live)):
        lane, ours = lanes[k], plan[k]
        ours.same, ours.step, ours.n_enter = False, 0, 0
        if counts[k] != lane.at + 1:
            is_plain = False
        if not live[k]:
            is_plain = False
            continue
        stack = base_of(obs) + k * stack_bytes
        after = base_of(successor) + k * stack_bytes
        kept = base_of(current) + k * stack_bytes
        same, follows = lane.known, True
        # Frame by frame, so that each is still in the first cache when it is looked at again.
        for i in range(stack_size):
            frame = stack + i * frame_bytes
            if same:
                slot = (lane.oldest + i) % stack_size
                same = same_bytes(frame, kept + slot * frame_bytes, frame_bytes)
            if i > 0 and follows:
                follows = same_bytes(frame, after + (i - 1) * frame_bytes, frame_bytes)
        if same:
            ours.same = True
            ours.age = lane.age
            mark = lane.marks
        else:
            ours.age, mark = padding_of(stack, frame_bytes, stack_size, base_of(zeros))
            ours.n_enter = ours.age + 1
        ours.newest = counts[k] + ours.n_enter - 1
        ours.step = 1
        if not follows:
            next_age, next_mark = padding_of(after, frame_bytes, stack_size, base_of(zeros))
            ours.step = next_age + 1
            mark |= APART | (NEXT_PINNED if next_mark else 0)
        ours.marks = mark
        if ours.n_enter != 0 or ours.step != 1:
            is_plain = False
    return is_plain


@kernel
def plan_newest(obs: Any, current: Any, live: Any, counts: Any, lanes: Any,
                plan: Any) -> Any:  # fmt: skip
    """Fill a plan for newest frames, as if no episode began; returns as `plan_stacks` does."""
    is_plain = True
    for k in range(len(live)):
        lane, ours = lanes[k], plan[k]
        offset = k * current.shape[2]
        ours.same = (
            live[k]
            and lane.known
            and same_bytes(base_of(obs) + offset, base_of(current) + offset, current.shape[2])
        )
        ours.age = lane.age
        ours.step = 1 if live[k] else 0
        ours.n_enter = 1 if live[k] and not ours.same else 0
        ours.newest = counts[k] + ours.n_enter - 1
        if not ours.same or counts[k] != lane.at + 1:
            is_plain = False
    return is_plain


@kernel
def join(live: Any, running: Any, plan: Any, lanes: Any, begins: Any) -> Any:
    """Note in ``begins`` the lanes whose observation is not what the last step led to.

    Returns
    -------
    n_begin, n_break : int
        Lanes in ``begins``, and those of them that live and whose last episode had not ended.
    n_unknown : int
        Lanes that live and of which this entry has no stack to compare with, as after `clear`.
    """
    n_begin = n_break = n_unknown = 0
    for k in range(len(live)):
        if not lanes[k].known:
            n_unknown += live[k]
        elif not plan[k].same:
            begins[k] = True
        n_begin += begins[k]
        n_break += begins[k] and live[k] and running[k]
    return n_begin, n_break, n_unknown


@kernel
def read_stack(stack: Any, k: Any, n_lanes: Any, plan: Any) -> Any:
    """Take a stack of frame indices of lane ``k`` apart, and note its padding frame.

    Returns
    -------
    newest, age, mark : int
        As in a plan; ``newest`` is -1 where the indices are no stack.
    """
    size = len(stack)
    last = stack[size - 1]
    if last < 0 or last >= _LOWEST_PIN or last % n_lanes != k:
        return -1, 0, 0
    first = size - 1
    while first > 0 and stack[first - 1] == stack[first] - n_lanes and stack[first - 1] >= 0:
        first -= 1
    newest, age = last // n_lanes, size - 1 - first
    if first == 0:
        return newest, age, 0
    pad = stack[0]
    for i in range(first):
        if stack[i] != pad:
            return -1, 0, 0
    if pad < _LOWEST_PIN:
        return (newest if pad == stack[first] else -1), age, 0
    if plan[k].pad not in (-1, pad):
        return -1, 0, 0
    plan[k].pad = pad
    return newest, age, PINNED


@kernel
def plan_indices(obs: Any, successor: Any, current: Any, live: Any, counts: Any, n_rows: Any,
                 lanes: Any, plan: Any) -> Any:  # fmt: skip
    """Fill a plan for stacks of frame indices, and note padding frames if nothing is wrong.

    Parameters
    ----------
    counts : ndarray, (n_lanes,) int64
        Frames that each lane has had.
    n_rows : int
        Frames that each lane keeps.

    Returns
    -------
    problem, lane : int
        What is wrong with the indices of which lane.
    """
    n_lanes, size = obs.shape
    for k in range(n_lanes):
        lane, ours = lanes[k], plan[k]
        ours.same = False
        ours.pad = lane.pad
        if not live[k]:
            continue
        ours.step = 1
        ours.newest, ours.age, ours.marks = read_stack(obs[k], k, n_lanes, plan)
        if ours.newest < 0:
            return NO_STACK, k
        next_newest, next_age, _ = read_stack(successor[k], k, n_lanes, plan)
        if next_newest < 0:
            return NO_NEXT_STACK, k
        if next_newest != ours.newest + 1 or next_age != min(ours.age + 1, size - 1):
            return NOT_NEXT, k
        if ours.newest < lane.at:
            return GOES_BACK, k
        kept = max(counts[k] - n_rows, lane.first)
        if next_newest >= counts[k] or ours.newest - ours.age < kept:
            return NOT_HELD, k
        if lane.known:
            ours.same = True
            for i in range(size):
                if obs[k, i] != current[k, i]:
                    ours.same = False
    for k in range(n_lanes):
        lanes[k].pad = plan[k].pad
    return FINE, -1


# -- writing down ----------------------------------------------------------------------------


@kernel
def runs_fit(live: Any, counts: Any, plan: Any, runs: Any) -> Any:
    """Whether there is room for the runs that may begin with a plan."""
    for k in range(len(live)):
        ours = plan[k]
        if live[k] and not has_room(k, counts[k], ours.newest, ours.age, ours.marks, runs):
            return False
    return True


@kernel
def write_down(live: Any, counts: Any, plan: Any, view: Any) -> Any:
    """Write a plan into the runs, and where its successors leave the lanes.

    Parameters
    ----------
    counts : ndarray, (n_lanes,) int64
        Transitions that each lane had before.
    view : ndarray, int64
        Of `RunArrays`.

    Returns
    -------
    bool
        Whether there was room; otherwise nothing was written.
    """
    return write_runs(live, counts, plan, runs_at(view))


@kernel
def write_runs(live: Any, counts: Any, plan: Any, runs: Any) -> Any:
    """Do what `write_down` does."""
    if not runs_fit(live, counts, plan, runs):
        return False
    for k in range(len(live)):
        if not live[k]:
            continue
        lane, ours = runs.lanes[k], plan[k]
        put_cell(k, counts[k], ours.newest, ours.age, ours.step, ours.marks, runs)
        lane.known = True
        lane.at = ours.newest + ours.step
        if ours.marks & APART:
            lane.age = ours.step - 1
            lane.marks = PINNED if ours.marks & NEXT_PINNED else 0
        else:
            lane.age = min(ours.age + 1, runs.sizes[0] - 1)
            lane.marks = ours.marks & PINNED
    return True


@kernel
def keep_stacks(successor: Any, live: Any, plan: Any, current: Any, lanes: Any) -> Any:
    """Copy successors, flat bytes, into the rings of ``current``."""
    size, frame_bytes = current.shape[1], current.shape[2]
    for k in range(len(live)):
        if not live[k]:
            continue
        lane, ours = lanes[k], plan[k]
        stack = base_of(successor) + k * size * frame_bytes
        kept = base_of(current) + k * size * frame_bytes
        if ours.same and not ours.marks & APART:
            # All but the newest frame are there already.
            newest = stack + (size - 1) * frame_bytes
            copy_bytes(kept + lane.oldest * frame_bytes, newest, frame_bytes)
            lane.oldest = (lane.oldest + 1) % size
        else:
            copy_bytes(kept, stack, size * frame_bytes)
            lane.oldest = 0


@kernel
def find_needed(counts: Any, since: Any, view: Any, least: Any) -> Any:
    """Find of each lane the first frame that a transition needs.

    Parameters
    ----------
    counts : ndarray, (n_lanes,) int64
        Transitions that each lane has had.
    since : ndarray, (n_lanes,) int64
        The first of them that there may be.
    view : ndarray, int64
        Of `RunArrays`.
    least : int
        Frames that have to be free in a lane before any of them is worth letting go.

    Returns
    -------
    bool
        Whether they are; then ``first`` of all lanes has moved on.
    """
    return find_needed_of(counts, since, runs_at(view), least)


@kernel
def find_needed_of(counts: Any, since: Any, runs: Any, least: Any) -> Any:
    """Do what `find_needed` does."""
    lanes = runs.lanes
    is_worth_it = False
    for k in range(len(counts)):
        if needed_of(k, counts[k], since[k], runs) >= lanes[k].first + least:
            is_worth_it = True
            break
    if is_worth_it:
        for k in range(len(counts)):
            lanes[k].first = needed_of(k, counts[k], since[k], runs)
    return is_worth_it


@kernel
def needed_of(k: Any, count: Any, since: Any, runs: Any) -> Any:
    """Return the count of the first frame that lane ``k`` of ``count`` transitions needs."""
    first = runs.lanes[k].first
    if count == since:
        return first
    newest, age, _, _ = stack_of(k, max(count - runs.sizes[1], since), runs)
    return max(newest - age, first)


# -- checking --------------------------------------------------------------------------------


@kernel
def find_wrong(since: Any, counts: Any, flags: Any, cells: Any, lanes: Any, oldest: Any,
               n_frames: Any, stack_size: Any, in_order: Any) -> Any:  # fmt: skip
    """Find the first lane of which cells and lanes from elsewhere do not say what was written down.

    Numbers are in the bounds of their own already.

    Parameters
    ----------
    since, counts : ndarray, (n_lanes,) int64
        The oldest transition that each lane holds, and how many it has had.
    flags : ndarray, (n_lanes, n_slots) uint8
        Of the transitions: a step that begins no episode goes on from where the last one led to.
    oldest, n_frames : ndarray, (n_lanes,) int64
        Counts of each lane's first frame that may be named, and of the first one that may not.
    in_order : bool
        Whether no transition needs frames before those that the one before it needs.

    Returns
    -------
    int
        The lane, or -1.
    """
    n_slots = len(cells) // len(lanes)
    for k in range(len(lanes)):
        lane = lanes[k]
        if lane.marks & PINNED and lane.pad < 0:
            return k
        if not lane.known:
            if counts[k] > 0 or lane.at != -1:
                return k
            continue
        if lane.at - lane.age < oldest[k] or lane.at >= n_frames[k]:
            return k
        first, start = oldest[k], since[k]
        at, at_age, at_marks = lane.at, lane.age, lane.marks
        for t in range(start, counts[k]):
            cell = cells[k * n_slots + t % n_slots]
            count, age, step = count_of(cell, lane), np.int64(cell.age), np.int64(cell.step)
            marks = np.int64(cell.marks)
            if step < 1 or (not marks & APART and (step > 1 or marks & NEXT_PINNED)):
                return k
            if marks & (PINNED | NEXT_PINNED) and lane.pad < 0:
                return k
            if count - age < first or count + step >= n_frames[k]:
                return k
            if t > start and not flags[k, t % n_slots] & FIRST:
                # Of a stack without padding nothing tells what padding it had.
                is_padded = age < stack_size - 1
                if count != at or age != at_age or (is_padded and marks & PINNED != at_marks):
                    return k
            if in_order:
                first = count - age
                if count + step > lane.at:
                    return k
            at, at_age, at_marks = count + step, min(age + 1, stack_size - 1), marks & PINNED
            if marks & APART:
                at_age, at_marks = step - 1, PINNED if marks & NEXT_PINNED else 0
        if lane.at != at or lane.age != at_age or lane.marks != at_marks:
            return k  # the newest one has left the lane as it is
    return -1


# -- reading ---------------------------------------------------------------------------------


@inlined
def count_of(cell: Any, lane: Any) -> Any:
    """Return the count of a transition's newest frame."""
    return lane.at - ((lane.at - np.int64(cell.newest)) & _UINT32)


@kernel
def fill_stack(count: Any, age: Any, mark: Any, k: Any, lanes: Any, out: Any) -> Any:
    """Fill ``out``, ``(stack_size,)``, with the frame indices of one stack of lane ``k``."""
    n_lanes = len(lanes)
    size = len(out)
    for i in range(size):
        back = size - 1 - i
        if back > age and mark & PINNED:
            out[i] = lanes[k].pad
        else:
            out[i] = (count - min(back, age)) * n_lanes + k


@kernel
def fill_stacks(numbers: Any, after: Any, view: Any, out: Any) -> Any:
    """See `Stacks.stack_indices`."""
    runs = runs_at(view)
    size, n_slots = runs.sizes[0], runs.sizes[1]
    for i in range(len(numbers)):
        k = numbers[i] // n_slots
        time = time_in(runs.lanes[k], numbers[i] - k * n_slots, n_slots)
        count, age, step, mark = stack_of(k, time, runs)
        if after:
            count += step
            if mark & APART:
                age = step - 1
                mark = PINNED if mark & NEXT_PINNED else 0
            else:
                age = min(age + 1, size - 1)
        fill_stack(count, age, mark, k, runs.lanes, out[i])


@kernel
def fill_windows(numbers: Any, view: Any, out: Any) -> Any:
    """See `Stacks.window_indices`; return whether there are windows of all cells."""
    return fill_windows_of(numbers, runs_at(view), out)


@kernel
def fill_windows_of(numbers: Any, runs: Any, out: Any) -> Any:
    """Do what `fill_windows` does."""
    stack_size, n_slots, n_lanes = runs.sizes[0], runs.sizes[1], len(runs.lanes)
    for i in range(len(numbers)):
        k = numbers[i, 0] // n_slots
        time = time_in(runs.lanes[k], numbers[i, 0] - k * n_slots, n_slots)
        for t in range(numbers.shape[1]):
            count, age, step, mark = stack_of(k, time + t, runs)
            if mark & APART:
                return False
            if t == 0:
                fill_stack(count, age, mark, k, runs.lanes, out[i, :stack_size])
            out[i, stack_size + t] = (count + step) * n_lanes + k
    return True
