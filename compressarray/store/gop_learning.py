"""What a store of groups learns from a sample of them: better codebooks, if there are any.

The sample is all that is looked at, and nobody writes to it: so this may be done beside the writes
that go on meanwhile, see `gop_schedule`. What has been seen is held in `ChangesSeen` and
`SymbolsSeen`, one group after the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from compressarray.codecs.codebooks import Codebooks
from compressarray.codecs.learning import Changes, Learnt, read_changes
from compressarray.codecs.packing import Packer
from compressarray.format.groups import reference_of
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
from compressarray.store.gop_view import Attached, attached, state_at
from compressarray.store.groups import GUARD_BYTES, Groups

# New tokens and words are taken where they make records so much smaller, new codes where they do
# so. A table costs 8 KiB, codes up to 67.
LEARN_ON_GOPS = 256
MIN_CHANGES = 2000  # to learn from
# Learning takes some hundred bytes for each change that it looks at.
MOST_CHANGES = 1 << 18
LEAST_CHANGES = 1 << 14
BYTES_A_CHANGE = 16
TOKENS_GAIN, PACKED_TOKENS_GAIN = 0.03, 0.1
RECODE_GOPS = 512  # at thirty microseconds each
# Packing: from so many bytes of records on, a code for so many, each of which takes 1 KiB. With a
# code for 32, 20 and 16 KiB, 32,768 frames take 96.6, 96.6 and 96.4 bytes each in MsPacman, 21.1,
# 20.8 and 21.0 in Pong, 340, 328 and 331 in Enduro, 216, 218 and 218 in Asteroids.
PACK_AT_BYTES = 128 * 1024
BYTES_A_CODE = 20 * 1024
MIN_CODES, MAX_CODES = 16, 64
CODES_GAIN = 0.02
_SPREAD = 8  # every eighth group of a sample is read first, in case not all are


class Sample(NamedTuple):
    """Groups to learn from, as they were.

    Attributes
    ----------
    groups : Groups
        For what never changes of a store, and for scratch.
    at : Attached
        What the groups are read with: copies of all that a writer changes.
    number : int
        A codebook's that is free.
    indices : ndarray, (n,) int64
        The groups, ``gop * n_lanes + lane``.
    chunks : list of ndarray of uint8
        And their content, with room to look behind it.
    repeats : float
        How many times as many are held.
    anew : bool
        Whether all groups are to be written with what is learnt, or only those to come.
    """

    groups: Groups
    at: Attached
    number: int
    indices: Int64s
    chunks: list[UInt8s]
    repeats: float
    anew: bool


def sample_of(groups: Groups) -> Sample | None:
    """Take a sample of the closed groups; None where no codebook's number is free."""
    held = groups.table.held()
    state, codebooks = groups.state, groups.codebooks
    assert codebooks is not None
    books = codebooks.only(layout.codebooks_in_use(state, groups.arena.state))
    if books.free_number is None:
        return None
    indices = held[:: max(1, -(-len(held) // LEARN_ON_GOPS))]
    chunks = groups.arena.copies(state.gop_chunk[indices])
    still = state._replace(
        meta=state.meta.copy(),
        backgrounds=state.backgrounds.copy(),
        open_gop=np.full_like(state.open_gop, layout.CLOSED),
    )
    return Sample(
        groups,
        attached(still, groups.arena.state, books),
        books.free_number,
        indices,
        chunks,
        len(held) / max(1, len(indices)),
        # Only the newest codebook can be written with: open groups change over, and of small
        # arrays all groups, which saves most where most is held and frees the older ones.
        groups.packs or len(held) <= RECODE_GOPS,
    )


class Found(NamedTuple):
    """Codebooks of which the newest is better than what is written with.

    Attributes
    ----------
    codebooks : Codebooks
    has_tokens : bool
        Whether it has tokens and words of its own, or only codes.
    before : int
        Number of the one that it was learnt beside, whose tokens and words it has otherwise.
    anew : bool
        Whether all groups are to be written with it, or only those to come.
    """

    codebooks: Codebooks
    has_tokens: bool
    before: int
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


def _copy_of(closed: UInt8s) -> UInt8s:
    """A copy, with room to look behind it."""
    copied = np.zeros(len(closed) + GUARD_BYTES, np.uint8)
    copied[: len(closed)] = closed
    return copied[: len(closed)]


def better_codebooks(sample: Sample) -> Found | None:
    """Learn from a sample."""
    groups, at = sample.groups, sample.at
    assert at.codebooks is not None
    books, repeats = at.codebooks, sample.repeats
    unpacked = [_copy_of(groups.unpacked_chunk(chunk, at)) for chunk in sample.chunks]
    learnt = _learn_changes(sample, unpacked)
    if learnt is not None:
        books = books.with_learnt(sample.number, learnt, sample.anew)
    packer = None
    if groups.packs:
        after = at.with_codebooks(books)
        if learnt is not None:
            unpacked = _encoded(sample, unpacked, after)
        packer = _learn_codes(after, unpacked, repeats)
        if packer is not None:
            books = books.with_codes(sample.number, packer)
    if learnt is None and packer is None:
        return None
    return Found(books, learnt is not None, at.codebooks.newest, sample.anew)


def _learn_changes(sample: Sample, unpacked: list[UInt8s]) -> Learnt | None:
    groups, at, repeats = sample.groups, sample.at, sample.repeats
    assert at.codebooks is not None
    n_bytes = int(repeats * sum(map(len, unpacked)))
    most = min(max(LEAST_CHANGES, n_bytes // BYTES_A_CHANGE), MOST_CHANGES)
    seen = ChangesSeen(groups.gop_length * groups.stack, groups.padded, most)
    for first in range(_SPREAD):
        for closed in unpacked[first::_SPREAD]:
            seen.add(at, closed)
    # the array may hold twice as much when it learns again
    repeats *= 2 * len(unpacked) / max(1, seen.n_groups)
    return seen.learnt(at.codebooks, repeats, packs=groups.packs, anew=sample.anew)


def _encoded(sample: Sample, unpacked: list[UInt8s], at: Attached) -> list[UInt8s]:
    """The sample as the newest of some codebooks encodes them."""
    groups = sample.groups
    work = groups.work()
    encoded = []
    for index, closed in zip(sample.indices.tolist(), unpacked, strict=True):
        gop, lane = divmod(index, groups.n_lanes)
        size = groups.encode(lane, gop, work, groups.n_rows, at=at, old=closed).size
        encoded.append(_copy_of(work.group(size)))
    work.give_back()
    return encoded


def _learn_codes(at: Attached, unpacked: list[UInt8s], repeats: float) -> Packer | None:
    n_bytes = int(repeats * sum(map(len, unpacked)))
    if n_bytes < PACK_AT_BYTES:
        return None
    seen = SymbolsSeen()
    for closed in unpacked:
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
