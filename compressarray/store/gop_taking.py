"""A store of groups takes the changes of the one that it is a replica of: see `gop_feed`."""

from __future__ import annotations

import numpy as np

from compressarray.errors import CorruptFrameError
from compressarray.format.groups import CODEBOOK_MASK, CODEBOOK_SHIFT, MAP_FLAG
from compressarray.format.messages import Items
from compressarray.store import gop_feed as feed
from compressarray.store import gop_journal as journal
from compressarray.store import gop_layout as layout
from compressarray.store.arena import take_chunks
from compressarray.store.base import Int64s
from compressarray.store.gop_checking import check_chunks, check_open
from compressarray.store.gop_layout import GopState
from compressarray.store.groups import GUARD_BYTES, MAX_BACKGROUNDS, Groups

_OPEN_FLAGS = MAP_FLAG | CODEBOOK_MASK << CODEBOOK_SHIFT


def take_changes(groups: Groups, items: Items) -> None:
    """Take what `gop_feed` has put, a step of a write.

    Raises
    ------
    CorruptFrameError
        If it is none of such a store; what was taken is then to be rolled back.
    MemoryError
    """
    if len(groups.state.head) == 0:
        groups.have_open()
    groups.is_renewed = False
    groups.taken_from = groups.at, int(groups.state.meta[layout.BACKGROUND])
    if groups.codebooks is not None:
        groups.attach(groups.state, groups.codebooks.taken(items, packs=groups.packs))
    _take_backgrounds(groups, items)
    _take_closed(groups, items)
    _take_open(groups, items)


def _take_backgrounds(groups: Groups, items: Items) -> None:
    said = items.ints(least=0)
    if not len(said):
        return
    state, padded = groups.state, groups.padded
    n, newest, *changed = said.tolist()
    if not 1 <= n <= MAX_BACKGROUNDS or n < len(state.backgrounds):
        raise CorruptFrameError(f"there cannot be {n} backgrounds")
    if newest >= n or min(changed, default=1) < 1 or max(changed, default=0) >= n:
        raise CorruptFrameError(f"a message names backgrounds that are none of {n}")
    held = len(state.backgrounds)
    backgrounds = np.zeros((n, padded), np.uint8)
    backgrounds[:held] = state.backgrounds
    given = items.octets(len(changed) * padded)
    backgrounds[changed] = given.reshape(-1, padded)
    numbers = np.zeros(n, np.int64)
    numbers[:held] = state.background_number
    meta = state.meta
    numbers[changed] = meta[layout.N_BACKGROUNDS] + 1 + np.arange(len(changed))
    meta[layout.N_BACKGROUNDS] += len(changed)
    meta[layout.BACKGROUND] = newest
    uses = np.zeros(n, np.int64)
    uses[:held] = state.background_uses
    groups.attach(
        state._replace(backgrounds=backgrounds, background_uses=uses, background_number=numbers)
    )


def _take_closed(groups: Groups, items: Items) -> None:
    given = take_chunks(items, groups.n_gops * groups.n_lanes)
    if given is None:
        return
    indices, chunks, sizes, data = given
    check_chunks(groups.state, data, sizes, groups.n_words)
    groups.have_log(len(indices) * journal.WORDS_A_GROUP)
    if not feed.put_groups(groups.at.view, indices, chunks, sizes, data):
        raise MemoryError("the arena is full")


def _take_open(groups: Groups, items: Items) -> None:
    given = items.ints()
    if len(given) % feed.N_COLUMNS:
        raise CorruptFrameError(f"{len(given)} numbers are no table of open groups")
    table = given.reshape(feed.N_COLUMNS, -1)
    maps, records = items.octets(), items.octets()
    n = table.shape[1]
    if not n:
        return
    slots, size = table[feed.SLOT], table[feed.SIZE]
    is_open = table[feed.GROUP] != layout.CLOSED
    _check_table(groups.state, table, is_open, maps.nbytes, len(records))
    room = int(size.max()) + GUARD_BYTES
    while groups.state.open_bytes.shape[1] < room:
        groups.grow_open(room)
    kept = journal.WORDS_A_GROUP + int(journal.open_records_room(groups.at.view))
    groups.have_log(n * kept)
    held = np.zeros(len(records) + GUARD_BYTES, np.uint8)
    held[: len(records)] = records
    feed.put_open(groups.at.view, table, maps.copy().view(np.uint16), held)
    check_open(groups.state, slots[is_open], groups.n_words)


def _check_table(
    state: GopState, table: Int64s, is_open: Int64s, map_bytes: int, record_bytes: int
) -> None:
    """Check that open groups which a message goes on with are those that are held."""
    slots, start, size = table[feed.SLOT], table[feed.START], table[feed.SIZE]
    if (slots < 0).any() or (np.diff(slots) <= 0).any() or slots[-1] >= state.open_gop.size:
        raise CorruptFrameError("a message names open groups that do not exist")
    goes_on = (state.open_gop.ravel()[slots] == table[feed.GROUP]) & (
        state.open_size.ravel()[slots] == start
    )
    n_maps = int(np.count_nonzero(table[feed.FLAGS] & MAP_FLAG))
    if (
        ((start > 0) & ~goes_on).any()
        or (size < start).any()
        or (start < 0).any()
        or int((size - start).sum()) != record_bytes
        or map_bytes != 2 * n_maps * state.open_map.shape[2]
        or (n_maps > 0 and not state.open_map.shape[2])
        or (table[feed.CHOSEN] < 0).any()
        or (table[feed.CHOSEN] >= len(state.backgrounds)).any()
        or (table[feed.FLAGS] & ~_OPEN_FLAGS).any()
        or (size[~is_open] > 0).any()
    ):
        raise CorruptFrameError("a message does not go on from the open groups that are held")
