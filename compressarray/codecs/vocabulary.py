"""The tokens and the dictionary of one array, in the tables that kernels use."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.codecs.learning import Changes, Learnt, learn, starting_tokens, written_bytes
from compressarray.codecs.words import (
    ESCAPE,
    MAX_WORDS,
    N_NEAR,
    build_tables,
    encode_table_words,
    place_words,
)


class Vocabulary:
    """Decoding tables by number, the encoder's table for the newest, and the dictionary.

    A dictionary only grows, so that every table goes on naming what it named, unless all that
    was written with the older tables is written anew.

    Parameters
    ----------
    row_bytes : int
        Bytes of a frame's row; the tokens to begin with depend on it.
    max_tables : int
        How many decoding tables there may be.
    """

    def __init__(self, row_bytes: int, max_tables: int) -> None:
        self._max_tables = max_tables
        self._free: list[int] = []
        self._tokens = starting_tokens(row_bytes)
        self._near = np.zeros(0, np.uint64)
        self._words = np.zeros(0, np.uint64)
        self._former: npt.NDArray[np.uint64] | None = None  # of the other tables
        self._first_near = 0
        self.table = 0
        self.decode_tables: npt.NDArray[np.uint64] = np.zeros((1, 256, 4), np.uint64)
        self.encode_table: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._build()

    def consider(self, changes: Changes, repeats: float, gain: float, anew: bool) -> Learnt | None:
        """Learn from changes, if it makes these smaller by a part of ``gain``.

        ``anew`` leaves the dictionary out.
        """
        if not self._free and len(self.decode_tables) == self._max_tables:
            return None
        known = self._words[: 0 if anew else None]
        if len(known) + N_NEAR > MAX_WORDS:
            return None
        now = written_bytes(changes, self._tokens, self._near, self._words)
        learnt = learn(changes, known, repeats)
        return learnt if learnt.n_bytes <= (1 - gain) * now else None

    def take(self, learnt: Learnt, anew: bool) -> None:
        """Make what was learnt the newest table.

        With a dictionary ``anew``, `forget_others` is to follow.
        """
        near = np.zeros(N_NEAR if len(learnt.near) else 0, np.uint64)
        near[: len(learnt.near)] = learnt.near
        known = self._words[: 0 if anew else None]
        self._former = self._words if anew else None
        self._first_near = len(known)
        self._tokens, self._near = learnt.tokens, learnt.near
        self._words = np.concatenate([known, near, learnt.far])
        if self._free:
            self.table = self._free.pop()
        else:
            self.table = len(self.decode_tables)
            more = np.zeros((1, 256, 4), np.uint64)
            self.decode_tables = np.concatenate([self.decode_tables, more])
        self._build()

    def forget_others(self) -> None:
        """Free the tables but the newest: nothing that was written with them is left."""
        self._free = [i for i in range(len(self.decode_tables)) if i != self.table]
        self._former = None

    def _build(self) -> None:
        self.encode_table = np.zeros(encode_table_words(len(self._words)), np.uint64)
        build_tables(
            self._tokens,
            self._words,
            self._first_near,
            self.decode_tables[self.table],
            self.encode_table,
        )
        others = self._words if self._former is None else self._former
        place_words(self.decode_tables, others)
        place_words(self.decode_tables[self.table : self.table + 1], self._words)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.decode_tables.nbytes + self.encode_table.nbytes + self._words.nbytes

    def __getstate__(self) -> dict[str, Any]:
        tables = self.decode_tables.copy()
        tables[:, ESCAPE, :2] = 0  # addresses
        state = {**self.__dict__, "decode_tables": tables}
        del state["encode_table"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._build()
