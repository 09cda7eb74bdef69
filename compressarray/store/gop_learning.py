"""When a store of groups looks for better codebooks, what it learns them from, and the change-over.

The unit of work is one group: the changes of one are read, one is encoded and its symbols are
counted, one is written with what was learnt. What has been seen is held apart from the store
(`ChangesSeen`, `SymbolsSeen`), and each group that is written anew holds the same frames before and
after: between two groups everything can be read, and whatever was not reached is as good as it was.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from compressarray.codecs.codebooks import Codebooks
from compressarray.codecs.learning import Changes, Learnt, read_changes
from compressarray.codecs.packing import Packer
from compressarray.format.groups import name_codebook, naming, reference_of
from compressarray.format.packed import N_CONTEXTS, N_SYMBOLS
from compressarray.kernels.compiling import kernel
from compressarray.kernels.memory import base_of
from compressarray.store import gop_layout as layout
from compressarray.store.base import Int64s, UInt8s, address_of
from compressarray.store.gop_layout import (
    FRAME_BYTES,
    ROW_BYTES,
    background_at,
    closed_group,
    unroll,
)
from compressarray.store.gop_packing import count_group
from compressarray.store.gop_view import Attached, state_at
from compressarray.store.groups import Groups, Work
from compressarray.store.scratch import trim

# What is held is looked at each time as many groups have been closed as there are, and half as
# many as ever were, and up to MAX_LEARN_PAUSE times later while nothing is learnt: new tokens and
# words are taken where they make records so much smaller, new codes where they do so. A table
# costs 8 KiB, codes up to 100.
LEARN_ON_GOPS = 256
LEARN_AFTER_GOPS = 16
MAX_LEARN_PAUSE = 8
MIN_CHANGES = 2000  # to learn from
# Learning takes some hundred bytes for each change that it looks at.
MOST_CHANGES = 1 << 18
LEAST_CHANGES = 1 << 14
BYTES_A_CHANGE = 16
TOKENS_GAIN, PACKED_TOKENS_GAIN = 0.03, 0.1
RECODE_GOPS = 512  # at thirty microseconds each
# Packing: from so many bytes of records on, a code for so many. On Pong, 16, 24 and 48 codes take
# 17.1, 16.2 and 15.0 bytes a frame, and each takes 1.5 KiB.
PACK_AT_BYTES = 128 * 1024
BYTES_A_CODE = 32 * 1024
MIN_CODES, MAX_CODES = 16, 64
CODES_GAIN = 0.02
_SPREAD = 8  # every eighth group of a sample is read first, in case not all are


# -- when ------------------------------------------------------------------------------------


class Schedule(NamedTuple):
    """When to learn next: once ``at`` groups were closed, and ``pause`` times as late as usual."""

    at: int
    pause: int

    @classmethod
    def beginning(cls) -> Schedule:
        """That of an empty store."""
        return cls(LEARN_AFTER_GOPS, 1)

    def after(self, n_closed: int, n_held: int, *, has_learnt: bool) -> Schedule:
        """What follows a look: where nothing was to be learnt, look less often."""
        pause = 1 if has_learnt else min(2 * self.pause, MAX_LEARN_PAUSE)
        return Schedule(n_closed + max(LEARN_AFTER_GOPS, n_held, n_closed // 2) * pause, pause)


def learn(groups: Groups, schedule: Schedule) -> Schedule:
    """Look for a better codebook, write with it if there is one, and say when to look again."""
    held = groups.table.held()
    found = better_codebooks(groups, held)
    if found is not None:
        change_over(groups, held, found)
    trim()
    n_closed = int(groups.state.meta[layout.N_CLOSED])
    return schedule.after(n_closed, len(held), has_learnt=found is not None)


# -- what ------------------------------------------------------------------------------------


class Found(NamedTuple):
    """Codebooks of which the newest is better than what is written with.

    Attributes
    ----------
    codebooks : Codebooks
    has_tokens : bool
        Whether it has tokens and words of its own, or only codes.
    anew : bool
        Whether all groups are to be written with it, or only those to come.
    """

    codebooks: Codebooks
    has_tokens: bool
    anew: bool


class ChangesSeen:
    """The changes of groups that were read, one group after the other.

    Parameters
    ----------
    frames_a_group, padded : int
        For scratch.
    most : int
        Changes to keep.
    """

    def __init__(self, frames_a_group: int, padded: int, most: int) -> None:
        self.most = most
        self.n = self.n_groups = 0
        self._changes = Changes(
            np.empty(most, np.int64), np.empty(most, np.uint64), np.empty(most, np.uint8)
        )
        self._frames = np.empty((frames_a_group, padded), np.uint8)

    def add(self, at: Attached, closed: UInt8s) -> None:
        """Read one group, unpacked, unless there are enough changes."""
        if self.n < self.most:
            assert at.codebooks is not None
            self.n = collect_changes(
                at.view, address_of(closed), self._frames, at.codebooks.pixel_bytes,
                *self._changes, self.n,
            )  # fmt: skip
            self.n_groups += 1

    def learnt(self, codebooks: Codebooks, repeats: float, *, packs: bool,
               anew: bool) -> Learnt | None:  # fmt: skip
        """Which changes get a token, and which words a place in the dictionary, if it is worth it.

        ``repeats`` is how many times as many changes are to be expected.
        """
        if self.n < MIN_CHANGES:
            return None
        first = not len(codebooks.current.words)
        gain = PACKED_TOKENS_GAIN if packs and not first else TOKENS_GAIN
        keys, words, residuals = self._changes
        changes = Changes(keys[: self.n], words[: self.n], residuals[: self.n])
        return codebooks.consider(changes, repeats, gain, anew)


class SymbolsSeen:
    """How often each symbol was seen in each context, in one group after the other."""

    def __init__(self) -> None:
        self._counts = np.zeros((N_CONTEXTS, N_SYMBOLS), np.int32)

    def add(self, at: Attached, closed: UInt8s) -> None:
        """Count those of one group, unpacked."""
        count_group(at.view, address_of(closed), self._counts)

    def packer(self, codebooks: Codebooks, n_codes: int) -> Packer | None:
        """The codes to pack with, if they are worth it."""
        new, old = Packer(self._counts, n_codes), codebooks.current.packer
        if old is not None:
            saved = old.packed_bits(self._counts) - new.packed_bits(self._counts)
            if saved < CODES_GAIN * old.packed_bits(self._counts):
                return None
        return new


def better_codebooks(groups: Groups, held: Int64s) -> Found | None:
    """Learn from a sample of the groups that are held; nothing is written.

    Parameters
    ----------
    held : ndarray, (n,) int64
        The closed groups, ``gop * n_lanes + lane``.
    """
    at, packs = groups.at, groups.packs
    assert at.codebooks is not None
    sample = held[:: max(1, -(-len(held) // LEARN_ON_GOPS))]
    repeats = len(held) / max(1, len(sample))
    # Only the newest codebook can be written with: open groups change over, and of small
    # arrays all groups, which saves most where most is held and frees the older ones.
    anew = packs or len(held) <= RECODE_GOPS
    books = at.codebooks.only(layout.codebooks_in_use(at.state, at.arena))
    number = books.free_number
    if number is None:
        return None
    sample_groups = [groups.unpacked(index).copy() for index in sample.tolist()]
    learnt = _learn_changes(groups, sample_groups, repeats, anew)
    if learnt is not None:
        books = books.with_learnt(number, learnt, anew)
    packer = None
    if packs:
        after = at.with_codebooks(books)
        if learnt is not None:
            sample_groups = _encoded(groups, sample, after)
        packer = _learn_codes(after, sample_groups, repeats)
        if packer is not None:
            books = books.with_codes(number, packer)
    if learnt is None and packer is None:
        return None
    return Found(books, learnt is not None, anew)


def _learn_changes(
    groups: Groups, sample_groups: list[UInt8s], repeats: float, anew: bool
) -> Learnt | None:
    at = groups.at
    assert at.codebooks is not None
    n_bytes = int(repeats * sum(map(len, sample_groups)))
    most = min(max(LEAST_CHANGES, n_bytes // BYTES_A_CHANGE), MOST_CHANGES)
    seen = ChangesSeen(groups.gop_length * groups.stack, groups.padded, most)
    for first in range(_SPREAD):
        for closed in sample_groups[first::_SPREAD]:
            seen.add(at, closed)
    # the array may hold twice as much when it learns again
    repeats *= 2 * len(sample_groups) / max(1, seen.n_groups)
    return seen.learnt(at.codebooks, repeats, packs=groups.packs, anew=anew)


def _encoded(groups: Groups, indices: Int64s, at: Attached) -> list[UInt8s]:
    """Closed groups as the newest of some codebooks encodes them."""
    work = groups.work()
    sample_groups = []
    for index in indices.tolist():
        gop, lane = divmod(index, groups.n_lanes)
        size = groups.encode(lane, gop, work, groups.n_rows, at=at).size
        sample_groups.append(work.group(size).copy())
    work.give_back()
    return sample_groups


def _learn_codes(at: Attached, sample_groups: list[UInt8s], repeats: float) -> Packer | None:
    n_bytes = int(repeats * sum(map(len, sample_groups)))
    if n_bytes < PACK_AT_BYTES:
        return None
    seen = SymbolsSeen()
    for closed in sample_groups:
        seen.add(at, closed)
    assert at.codebooks is not None
    return seen.packer(at.codebooks, min(max(MIN_CODES, n_bytes // BYTES_A_CODE), MAX_CODES))


@kernel
def collect_changes(view: Any, closed: Any, frames: Any, pixel_bytes: Any, keys: Any,
                    words: Any, residuals: Any, n: Any) -> Any:  # fmt: skip
    """Add the changes of a closed group, as it is coded, to `Changes` from ``n`` on.

    Parameters
    ----------
    closed : address
        With its header, unpacked.
    frames : ndarray, (frames of the group, padded frame) uint8
        Scratch.
    pixel_bytes : int
        0 for no residuals.
    keys, words, residuals : ndarray, (m,) int64, uint64 and uint8

    Returns
    -------
    int
        How many changes there are now.
    """
    state = state_at(view)
    n_bytes, row_bytes = state.meta[FRAME_BYTES], state.meta[ROW_BYTES]
    group = closed_group(state, closed)
    background = background_at(state, group.background)
    held, step = base_of(frames), frames.shape[1]
    unroll(state, group, group.n_frames, held, step)
    for number in range(group.n_frames):
        reference = reference_of(number, group.key)
        old = background if reference < 0 else held + reference * step
        n = read_changes(
            old, held + number * step, background, n_bytes, row_bytes, pixel_bytes, keys, words,
            residuals, n,
        )  # fmt: skip
    return n


# -- the change-over -------------------------------------------------------------------------


def change_over(groups: Groups, held: Int64s, found: Found) -> None:
    """Write with the newest of other codebooks from now on, and let go of those that nothing names.

    Wherever this is cut off, what is held can be read, and the rest changes over when it is written
    again.
    """
    groups.attach(groups.state, found.codebooks)
    work = groups.work()
    if found.anew:
        for index in held.tolist():
            _write_anew(groups, index, found, work)
            groups.arena.tidy()
    if found.has_tokens:
        for lane, place in np.argwhere(groups.state.open_gop != layout.CLOSED).tolist():
            _open_anew(groups, lane, place, work)
    else:  # the same tokens
        open_flags = groups.state.open_flags
        open_flags[...] = naming(open_flags, found.codebooks.newest)
    work.give_back()
    in_use = layout.codebooks_in_use(groups.state, groups.arena.state)
    groups.attach(groups.state, found.codebooks.only(in_use))


def _write_anew(groups: Groups, index: int, found: Found, work: Work) -> None:
    """Write one closed group with the newest codebook."""
    counted = _counted(groups)
    gop, lane = divmod(index, groups.n_lanes)
    if found.has_tokens:
        groups.rebuild(lane, gop, work)
    else:
        closed = groups.unpacked(index).copy()
        name_codebook(closed, found.codebooks.newest)
        groups.put(lane, gop, closed)
    groups.finish()
    groups.state.meta[_UNCOUNTED] = counted


def _open_anew(groups: Groups, lane: int, place: int, work: Work) -> None:
    """Write one open group with the newest codebook."""
    counted = _counted(groups)
    gop = int(groups.state.open_gop[lane, place])
    row = int(groups.state.open_next[lane, place])
    groups.open_as_encoded(lane, gop, row - 1, work)
    groups.finish()
    groups.state.meta[_UNCOUNTED] = counted


# No group is closed or goes by being written anew.
_UNCOUNTED = [layout.N_CLOSED, layout.N_EVICTED]


def _counted(groups: Groups) -> Int64s:
    return groups.state.meta[_UNCOUNTED]
