"""The tokens and the dictionary of one array, in the tables that kernels use."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.codecs.learning import Changes, Learnt, learn, starting_tokens, written_bytes
from compressarray.codecs.words import (
    MAX_WORDS,
    N_NEAR,
    build_tables,
    encode_table_words,
    place_dictionary,
)


class Vocabulary:
    """Decoding tables by number, the encoder's table for the newest, and the dictionary.

    A dictionary only grows, so that every table goes on naming what it named.

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
        self.table = 0
        self.decode_tables: npt.NDArray[np.uint64] = np.zeros((1, 256, 4), np.uint64)
        self.encode_table: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._build(0)

    def consider(self, changes: Changes, repeats: float, gain: float) -> Learnt | None:
        """Learn from changes, if it makes these smaller by a part of ``gain``."""
        if not self._free and len(self.decode_tables) == self._max_tables:
            return None
        if len(self._words) + N_NEAR > MAX_WORDS:
            return None
        now = written_bytes(changes, self._tokens, self._near, self._words)
        learnt = learn(changes, self._words, repeats)
        return learnt if learnt.n_bytes <= (1 - gain) * now else None

    def take(self, learnt: Learnt) -> None:
        """Make what was learnt the newest table."""
        near = np.zeros(N_NEAR if len(learnt.near) else 0, np.uint64)
        near[: len(learnt.near)] = learnt.near
        first_near = len(self._words)
        self._tokens, self._near = learnt.tokens, learnt.near
        self._words = np.concatenate([self._words, near, learnt.far])
        if self._free:
            self.table = self._free.pop()
        else:
            self.table = len(self.decode_tables)
            more = np.zeros((1, 256, 4), np.uint64)
            self.decode_tables = np.concatenate([self.decode_tables, more])
        self._build(first_near)

    def forget_others(self) -> None:
        """Free the tables but the newest: nothing that was written with them is left."""
        self._free = [i for i in range(len(self.decode_tables)) if i != self.table]

    def _build(self, first_near: int) -> None:
        self.encode_table = np.zeros(encode_table_words(len(self._words)), np.uint64)
        build_tables(
            self._tokens, self._words, first_near, self.decode_tables[self.table], self.encode_table
        )
        self._place()

    def _place(self) -> None:
        place_dictionary(self._words, self.decode_tables, self.encode_table)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.decode_tables.nbytes + self.encode_table.nbytes + self._words.nbytes

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._place()
