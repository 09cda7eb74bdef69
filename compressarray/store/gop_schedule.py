"""When a store of groups learns: beside the writes, and in slices of about a millisecond.

Once enough groups were closed a sample of them is copied, and a thread learns from it. What it has
found is taken when so many more were closed, whether it took long or not, so that the same writes
always lead to the same bytes. From then on all is written with the new codebook, and what was
written before changes over, a few groups each time that one is closed. Each group that is written
anew holds the same frames before and after: between two groups everything can be read, and whatever
was not reached is as good as it was.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import Any

from compressarray.format.groups import codebook_of, flags_of, name_codebook
from compressarray.kernels.compiling import plain
from compressarray.store import gop_layout as layout
from compressarray.store.base import Int64s
from compressarray.store.gop_learning import Found, Sample, better_codebooks, sample_of
from compressarray.store.groups import Groups, Work
from compressarray.store.scratch import trim
from compressarray.store.workers import n_threads

# What is held is looked at each time half as many groups more were closed as ever were, and up to
# MAX_LEARN_PAUSE times later while nothing is learnt.
LEARN_AFTER_GOPS = 16
MAX_LEARN_PAUSE = 8
# What is found is taken once a quarter more were closed, at most of so many frames: 40 of one
# environment at first. Learning takes up to 0.3 s, and playing so many frames as a rule longer.
LEAD_SHIFT = 2
MAX_LEAD_FRAMES = 1280
# Groups that change over for each one that is closed: at thirty microseconds each, or two hundred
# where they are packed. Until all have, both codebooks are held.
CHANGED_AT_ONCE, CHANGED_AT_ONCE_PACKED = 8, 4


class Learning:
    """How far a store has come with its learning.

    Attributes
    ----------
    at : int
        How many groups have to be closed, ever, before it learns next.
    pause : int
        How many times as late as usual that is.
    """

    def __init__(self, at: int = LEARN_AFTER_GOPS, pause: int = 1) -> None:
        self.at = at
        self.pause = pause
        self._look: _Look | None = None
        self._newest: Found | None = None
        self._left: list[int] = []  # groups that have yet to change over to it
        self._n_closed = 0  # when it went on last

    def go_on(self, groups: Groups) -> None:
        """Do the slice that is due after a write that has closed groups."""
        n_closed = int(groups.state.meta[layout.N_CLOSED])
        n_new, self._n_closed = max(1, n_closed - self._n_closed), n_closed
        if self._look is None and not self._left and n_closed >= self.at:
            due = self.at + min(self.at >> LEAD_SHIFT, MAX_LEAD_FRAMES // groups.gop_length)
            sample = sample_of(groups)
            self._look = _Look(sample, due, groups.codebooks, is_due=n_closed >= due)
        look = self._look
        if look is not None and n_closed >= look.due:
            found = look.found() if look.since is groups.codebooks else None
            held = groups.table.held()
            if found is not None:  # noted first: what is cut off here goes on with the next slice
                self._newest, self._left = found, held.tolist() if found.anew else []
                _adopt(groups, found)
            # Where nothing was to be learnt, look less often.
            self.pause = 1 if found is not None else min(2 * self.pause, MAX_LEARN_PAUSE)
            self.at = n_closed + max(LEARN_AFTER_GOPS, n_closed // 2) * self.pause
            self._look = None
        if self._newest is not None:
            most = CHANGED_AT_ONCE_PACKED if groups.packs else CHANGED_AT_ONCE
            self._change_over(groups, self._newest, most * n_new)

    def _change_over(self, groups: Groups, found: Found, most: int) -> None:
        """Write some of what is left with the newest codebook; then let go of the others."""
        work = groups.work()
        while self._left and most > 0:
            most -= _write_anew(groups, self._left[-1], found, work)
            groups.arena.tidy()
            self._left.pop()
        work.give_back()
        if not self._left:
            assert groups.codebooks is not None
            in_use = layout.codebooks_in_use(groups.state, groups.arena.state)
            groups.attach(groups.state, groups.codebooks.only(in_use))
            self._newest = None


class _Look:
    """A look for better codebooks, beside whatever goes on.

    Parameters
    ----------
    sample : Sample or None
        Held until something was learnt from it: of a small array it is all that there is.
    due : int
        How many groups will have been closed when its result is taken.
    since : Codebooks
        Those that were written with when it began.
    is_due : bool
        Whether that is so already.
    """

    def __init__(self, sample: Sample | None, due: int, since: Any, *, is_due: bool) -> None:
        self.due = due
        self.since = since
        self._sample = sample
        self._found: Found | None = None
        self._process = os.getpid()
        self._future: Future[None] | None = None
        if not is_due and n_threads() > 1:
            try:
                self._future = _learner().submit(self._learn)
                return
            except RuntimeError:  # no thread can be started, or the interpreter ends
                _learner.cache_clear()
        self._learn()

    def _learn(self) -> None:
        if self._sample is not None:
            self._found = better_codebooks(self._sample)
            self._sample = None
            trim()

    def found(self) -> Found | None:
        """What was found, waited for if need be."""
        if self._future is not None and self._process == os.getpid():
            wait([self._future])  # whatever went wrong there goes wrong here
        self._learn()
        return self._found


def wait_until_idle() -> None:
    """Wait until no thread of this process learns any more, nor holds the memory for it."""
    _learner().submit(trim).result()


@cache
def _learner() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "compressarray-learner")


# A child made by fork has none of its parent's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_learner.cache_clear)


def _adopt(groups: Groups, found: Found) -> None:
    """Write with the newest of other codebooks from now on."""
    counted = _counted(groups)
    groups.is_renewed = False
    groups.attach(groups.state, found.codebooks)
    groups.renew_open()
    groups.finish()
    groups.state.meta[_UNCOUNTED] = counted


def _write_anew(groups: Groups, index: int, found: Found, work: Work) -> bool:
    """Write one closed group with the newest codebook, if it is there and names another one."""
    entry = int(groups.state.gop_chunk[index])
    newest = found.codebooks.newest
    named = int(plain(codebook_of)(flags_of(groups.arena.view(entry)))) if entry else newest
    if named == newest:
        return False
    counted = _counted(groups)
    gop, lane = divmod(index, groups.n_lanes)
    # A copy that was made in the midst of a change-over has groups of older codebooks, too.
    if found.has_tokens or named != found.before:
        groups.rebuild(lane, gop, work)
    else:
        closed = groups.unpacked(index).copy()
        name_codebook(closed, newest)
        groups.put(lane, gop, closed)
    groups.finish()
    groups.state.meta[_UNCOUNTED] = counted
    return True


# No group is closed or goes by being written anew.
_UNCOUNTED = [layout.N_CLOSED, layout.N_EVICTED]


def _counted(groups: Groups) -> Int64s:
    return groups.state.meta[_UNCOUNTED]
