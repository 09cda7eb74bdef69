"""Kernels of `Stacks`: how stacks go on, what is written down of them, which frames they are of.

Arguments are named as the attributes of `Stacks` and `Plan`, where all of them are explained.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.codecs.memory import base_of, copy_bytes, same_bytes
from compressarray.jit import inlined, kernel

# Bits of `marks`: padding is the lane's pinned frame; the successor stands apart; its padding is
# the pinned frame.
PINNED, APART, NEXT_PINNED = 1, 2, 4
# What may be wrong with frame indices.
FINE, NO_STACK, NO_NEXT_STACK, NOT_NEXT, NOT_HELD = range(5)
_UINT32 = 2**32 - 1
# Indices from here on name pinned frames.
_LOWEST_PIN = 2**62


# -- planning --------------------------------------------------------------------------------


@kernel
def is_current(stack: Any, current: Any, oldest: Any, lane: Any) -> Any:
    """Say whether the stack at an address is a lane's last successor."""
    size, frame_bytes = current.shape[1], current.shape[2]
    kept = base_of(current) + lane * size * frame_bytes
    for k in range(size):
        slot = (oldest[lane] + k) % size
        if not same_bytes(stack + k * frame_bytes, kept + slot * frame_bytes, frame_bytes):
            return False
    return True


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
def plan_stacks(obs: Any, successor: Any, current: Any, oldest: Any, zeros: Any, live: Any,
                known: Any, counts: Any, at: Any, lane_age: Any, lane_marks: Any, same: Any,
                newest: Any, age: Any, step: Any, marks: Any, n_enter: Any) -> Any:  # fmt: skip
    """Fill a `Plan` for the stacks of all lanes, flat bytes.

    Returns
    -------
    bool
        Whether each lane stores its successor's newest frame and nothing else: all of them live,
        nothing enters, no stack stands apart or is torn (see `_StoredStacks._mend`).
    """
    stack_size, frame_bytes = current.shape[1], current.shape[2]
    stack_bytes = stack_size * frame_bytes
    is_plain = True
    for lane in range(len(live)):
        same[lane], step[lane], n_enter[lane] = False, 0, 0
        if known[lane] and counts[lane] != at[lane] + 1:
            is_plain = False
        if not live[lane]:
            is_plain = False
            continue
        stack = base_of(obs) + lane * stack_bytes
        after = base_of(successor) + lane * stack_bytes
        if known[lane] and is_current(stack, current, oldest, lane):
            same[lane] = True
            age[lane] = lane_age[lane]
            mark = np.int64(lane_marks[lane])
        else:
            age[lane], mark = padding_of(stack, frame_bytes, stack_size, base_of(zeros))
            n_enter[lane] = age[lane] + 1
        step[lane] = 1
        if not same_bytes(stack + frame_bytes, after, stack_bytes - frame_bytes):
            next_age, next_mark = padding_of(after, frame_bytes, stack_size, base_of(zeros))
            step[lane] = next_age + 1
            mark |= APART | (NEXT_PINNED if next_mark else 0)
        marks[lane] = mark
        newest[lane] = counts[lane] + n_enter[lane] - 1
        if n_enter[lane] != 0 or step[lane] != 1:
            is_plain = False
    return is_plain


@kernel
def plan_newest(obs: Any, current: Any, oldest: Any, live: Any, known: Any, counts: Any, at: Any,
                lane_age: Any, same: Any, newest: Any, age: Any, step: Any,
                n_enter: Any) -> Any:  # fmt: skip
    """Fill a `Plan` for newest frames, as if no episode began; returns as `plan_stacks` does."""
    is_plain = True
    for lane in range(len(live)):
        stack = base_of(obs) + lane * current.shape[2]
        same[lane] = live[lane] and known[lane] and is_current(stack, current, oldest, lane)
        age[lane] = lane_age[lane]
        step[lane] = live[lane]
        n_enter[lane] = live[lane] and not same[lane]
        newest[lane] = counts[lane] + n_enter[lane] - 1
        if not same[lane] or counts[lane] != at[lane] + 1:
            is_plain = False
    return is_plain


@kernel
def join(live: Any, running: Any, same: Any, begins: Any) -> Any:
    """Note in ``begins`` the lanes whose episode does not go on with the same observation.

    Returns
    -------
    bool
        Whether one of them lives and its last episode had not ended.
    """
    breaks = False
    for lane in range(len(live)):
        if not (running[lane] and same[lane]):
            begins[lane] = True
            if live[lane] and running[lane]:
                breaks = True
    return breaks


@kernel
def read_stack(stack: Any, lane: Any, n_lanes: Any, pads: Any) -> Any:
    """Take a stack of frame indices apart, and note its padding frame.

    Returns
    -------
    newest, age, mark : int
        As in `Plan`; ``newest`` is -1 where the indices are no stack.
    """
    size = len(stack)
    last = stack[size - 1]
    if last < 0 or last >= _LOWEST_PIN or last % n_lanes != lane:
        return -1, 0, 0
    k = size - 1
    while k > 0 and stack[k - 1] == stack[k] - n_lanes and stack[k - 1] >= 0:
        k -= 1
    newest, age = last // n_lanes, size - 1 - k
    if k == 0:
        return newest, age, 0
    pad = stack[0]
    for i in range(k):
        if stack[i] != pad:
            return -1, 0, 0
    if pad < _LOWEST_PIN:
        return (newest if pad == stack[k] else -1), age, 0
    if pads[lane] not in (-1, pad):
        return -1, 0, 0
    pads[lane] = pad
    return newest, age, PINNED


@kernel
def plan_indices(obs: Any, successor: Any, current: Any, live: Any, known: Any, pads: Any,
                 counts: Any, n_rows: Any, first: Any, same: Any, newest: Any, age: Any, step: Any,
                 marks: Any) -> Any:  # fmt: skip
    """Fill a `Plan` for stacks of frame indices, and ``pads`` with their padding.

    Returns
    -------
    problem, lane : int
        What is wrong with the indices of which lane.
    """
    n_lanes, size = obs.shape
    for lane in range(n_lanes):
        same[lane] = False
        if not live[lane]:
            continue
        newest[lane], age[lane], marks[lane] = read_stack(obs[lane], lane, n_lanes, pads)
        step[lane] = 1
        if newest[lane] < 0:
            return NO_STACK, lane
        next_newest, next_age, _ = read_stack(successor[lane], lane, n_lanes, pads)
        if next_newest < 0:
            return NO_NEXT_STACK, lane
        if next_newest != newest[lane] + 1 or next_age != min(age[lane] + 1, size - 1):
            return NOT_NEXT, lane
        kept = max(counts[lane] - n_rows, first[lane])
        if next_newest >= counts[lane] or newest[lane] - age[lane] < kept:
            return NOT_HELD, lane
        if known[lane]:
            same[lane] = True
            for k in range(size):
                if obs[lane, k] != current[lane, k]:
                    same[lane] = False
    return FINE, -1


# -- writing down ----------------------------------------------------------------------------


@kernel
def write_down(live: Any, counts: Any, n_slots: Any, newest: Any, age: Any, step: Any, marks: Any,
               newest_column: Any, age_column: Any, step_column: Any, marks_column: Any,
               stack_size: Any, known: Any, at: Any, lane_age: Any, lane_marks: Any,
               ) -> Any:  # fmt: skip
    """Write a `Plan` into the columns, and where its successors leave the lanes."""
    for lane in range(len(live)):
        if not live[lane]:
            continue
        cell = lane * n_slots + counts[lane] % n_slots
        newest_column[cell] = newest[lane] & _UINT32
        age_column[cell] = age[lane]
        step_column[cell] = step[lane]
        marks_column[cell] = marks[lane]
        known[lane] = True
        at[lane] = newest[lane] + step[lane]
        if marks[lane] & APART:
            lane_age[lane] = step[lane] - 1
            lane_marks[lane] = PINNED if marks[lane] & NEXT_PINNED else 0
        else:
            lane_age[lane] = min(age[lane] + 1, stack_size - 1)
            lane_marks[lane] = marks[lane] & PINNED


@kernel
def keep_stacks(successor: Any, live: Any, same: Any, marks: Any, current: Any,
                oldest: Any) -> Any:  # fmt: skip
    """Copy successors, flat bytes, into the rings of ``current``."""
    size, frame_bytes = current.shape[1], current.shape[2]
    for lane in range(len(live)):
        if not live[lane]:
            continue
        stack = base_of(successor) + lane * size * frame_bytes
        kept = base_of(current) + lane * size * frame_bytes
        slot = oldest[lane]
        if same[lane] and not marks[lane] & APART:
            # All but the newest frame are there already.
            copy_bytes(kept + slot * frame_bytes, stack + (size - 1) * frame_bytes, frame_bytes)
            oldest[lane] = (slot + 1) % size
        else:
            copy_bytes(kept, stack, size * frame_bytes)
            oldest[lane] = 0


@kernel
def find_needed(counts: Any, n_slots: Any, newest: Any, age: Any, at: Any, lane_age: Any,
                first: Any) -> Any:  # fmt: skip
    """Fill ``first``, of each lane the count of the first frame that is needed.

    Returns
    -------
    bool
        Whether any transition has been replaced; before that there is nothing to fill.
    """
    if (counts <= n_slots).all():
        return False
    for lane in range(len(counts)):
        needed = at[lane] - lane_age[lane]
        if counts[lane] > 0:
            cell = lane * n_slots + max(counts[lane] - n_slots, 0) % n_slots
            needed = count_of(cell, at[lane], newest) - age[cell]
        first[lane] = max(needed, 0)
    return True


# -- reading ---------------------------------------------------------------------------------


@inlined
def count_of(cell: Any, at: Any, newest: Any) -> Any:
    """Return the count of a transition's newest frame; ``at`` is the lane's newest."""
    return at - ((at - np.int64(newest[cell])) & _UINT32)


@kernel
def fill_stack(count: Any, age: Any, mark: Any, lane: Any, pads: Any, out: Any) -> Any:
    """Fill ``out``, ``(stack_size,)``, with the frame indices of one stack."""
    n_lanes = len(pads)
    size = len(out)
    for k in range(size):
        back = size - 1 - k
        if back > age and mark & PINNED:
            out[k] = pads[lane]
        else:
            out[k] = (count - min(back, age)) * n_lanes + lane


@kernel
def fill_stacks(cells: Any, after: Any, newest: Any, age: Any, step: Any, marks: Any, at: Any,
                pads: Any, n_slots: Any, stack_size: Any, out: Any) -> Any:  # fmt: skip
    """See `Stacks.stack_indices`."""
    for i in range(len(cells)):
        cell = cells[i]
        lane = cell // n_slots
        count = count_of(cell, at[lane], newest)
        first = np.int64(age[cell])
        mark = np.int64(marks[cell])
        if after:
            count += step[cell]
            if mark & APART:
                first = np.int64(step[cell]) - 1
                mark = PINNED if mark & NEXT_PINNED else 0
            else:
                first = min(first + 1, stack_size - 1)
        fill_stack(count, first, mark, lane, pads, out[i])


@kernel
def fill_windows(cells: Any, newest: Any, age: Any, step: Any, marks: Any, at: Any, pads: Any,
                 n_slots: Any, stack_size: Any, out: Any) -> Any:  # fmt: skip
    """See `Stacks.window_indices`; return whether there are windows of all cells."""
    n_lanes = len(pads)
    for i in range(len(cells)):
        cell = cells[i, 0]
        lane = cell // n_slots
        count = count_of(cell, at[lane], newest)
        fill_stack(count, age[cell], marks[cell], lane, pads, out[i, :stack_size])
        for t in range(cells.shape[1]):
            cell = cells[i, t]
            if marks[cell] & APART:
                return False
            count = count_of(cell, at[lane], newest) + step[cell]
            out[i, stack_size + t] = count * n_lanes + lane
    return True
