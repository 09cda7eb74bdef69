"""Where the arrays of a store of groups lie: the one description that its kernels are called with.

Whoever reads a store, or writes it, from anywhere needs no more than this: see `GopState`,
`ArenaState` and the layout of groups in `gop_layout`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.kernels.attaching import attacher, describe
from compressarray.store.arena import ArenaState
from compressarray.store.gop_layout import GopState


def view_of(state: GopState, arena: ArenaState) -> npt.NDArray[np.int64]:
    """Say where everything lies, an array a row; true until an array of `state` is replaced."""
    return describe([*state, *arena])


# (view): the arrays of a store, and those of its arena, in kernels.
state_at: Any = attacher(GopState)
arena_at: Any = attacher(ArenaState, first=len(GopState._fields))
