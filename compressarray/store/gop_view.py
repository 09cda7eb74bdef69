"""Where the arrays of a store of groups lie: the one description that its kernels are called with.

Whoever reads a store, or writes it, from anywhere needs no more than this: see `GopState` and
`ArenaState`. No array holds an address: what lies in one is named by number or by offset, and only
a description says where the arrays lie, for as long as they do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.codecs.codebooks import Codebooks
from compressarray.kernels.attaching import attacher, describe
from compressarray.store.arena import ArenaState
from compressarray.store.gop_layout import GopState


class Attached(NamedTuple):
    """The arrays of a store, and where they lie: replaced together, so that no view is stale."""

    state: GopState
    arena: ArenaState
    view: npt.NDArray[np.int64]
    codebooks: Codebooks | None  # whose tables `state.codebooks` names

    def with_codebooks(self, codebooks: Codebooks) -> Attached:
        """The same groups, to be encoded, or decoded, with other codebooks."""
        return attached(self.state, self.arena, codebooks)


def attached(state: GopState, arena: ArenaState, codebooks: Codebooks | None) -> Attached:
    """Let a store's arrays, and its codebooks where it has any, be found by kernels."""
    if codebooks is not None:
        state = state._replace(codebooks=codebooks.data, encode_table=codebooks.encode_table)
    return Attached(state, arena, view_of(state, arena), codebooks)


def view_of(state: GopState, arena: ArenaState) -> npt.NDArray[np.int64]:
    """Say where everything lies, an array a row; true until an array of `state` is replaced."""
    return describe([*state, *arena])


# (view): the arrays of a store, and those of its arena, in kernels.
state_at: Any = attacher(GopState)
arena_at: Any = attacher(ArenaState, first=len(GopState._fields))
