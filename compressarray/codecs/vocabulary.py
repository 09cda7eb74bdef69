"""The tokens and the dictionary of one array, in the tables that kernels use."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compressarray.codecs.learning import (
    Changes,
    Int64s,
    Learnt,
    learn,
    starting_tokens,
    written_bytes,
)
from compressarray.codecs.words import (
    ESCAPE,
    FAR_WORD,
    KIND_MASK,
    MASK_SHIFT,
    MAX_SKIP,
    MAX_WORDS,
    N_NEAR,
    OLD_RESIDUAL,
    SKIP_SHIFT,
    build_tables,
    encode_table_words,
    place_words,
)
from compressarray.errors import CorruptFrameError
from compressarray.snapshots import Snapshot, array_of, int_of


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
    pixel_bytes : int
        Distance to the pixel to the left, for residuals; 0 for none.
    """

    def __init__(self, row_bytes: int, max_tables: int, pixel_bytes: int) -> None:
        self.pixel_bytes = pixel_bytes
        self._max_tables = max_tables
        self._free: list[int] = []
        self._near = np.zeros(0, np.uint64)
        self._words = np.zeros(0, np.uint64)
        self._former: npt.NDArray[np.uint64] | None = None  # of the other tables
        self.table = 0
        self.decode_tables: npt.NDArray[np.uint64] = np.zeros((1, 256, 4), np.uint64)
        self.encode_table: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._build(starting_tokens(row_bytes), 0)

    def consider(self, changes: Changes, repeats: float, gain: float, anew: bool) -> Learnt | None:
        """Learn from changes, if it makes these smaller by a part of ``gain``.

        ``anew`` leaves the dictionary out.
        """
        if not self._free and len(self.decode_tables) == self._max_tables:
            return None
        known = self._words[: 0 if anew else None]
        if len(known) + N_NEAR > MAX_WORDS:
            return None
        now = written_bytes(changes, self._tokens_of(self.table), self._near, self._words)
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
        self._near = learnt.near
        self._words = np.concatenate([known, near, learnt.far])
        if self._free:
            self.table = self._free.pop()
        else:
            self.table = len(self.decode_tables)
            more = np.zeros((1, 256, 4), np.uint64)
            self.decode_tables = np.concatenate([self.decode_tables, more])
        self._build(learnt.tokens, len(known))

    def forget_others(self) -> None:
        """Free the tables but the newest: nothing that was written with them is left."""
        self._former = None
        self.keep(np.zeros(len(self.decode_tables), np.bool_))
        self.decode_tables[self._free] = 0

    def keep(self, used: npt.NDArray[np.bool_]) -> None:
        """Free the tables but the newest that nothing was written with."""
        self._free = [i for i in np.flatnonzero(~used).tolist() if i != self.table]

    def _build(self, tokens: Int64s, first_near: int) -> None:
        """Fill the newest decoding table and the encoder's, and place the dictionary."""
        self.encode_table = np.zeros(encode_table_words(len(self._words)), np.uint64)
        decode_table = self.decode_tables[self.table]
        build_tables(
            tokens, self._words, first_near, self.pixel_bytes, decode_table, self.encode_table
        )
        place_words(self.decode_tables, self._words if self._former is None else self._former)
        place_words(self.decode_tables[self.table : self.table + 1], self._words)

    def _tokens_of(self, table: int) -> Int64s:
        """The `token_key` of each token of a decoding table."""
        entries = self.decode_tables[table, :ESCAPE]
        entries = entries[entries[:, 1] > 0]
        wide = entries[:, :1].copy().view(np.uint8)
        masks = np.packbits(wide > 0, axis=1, bitorder="little")[:, 0].astype(np.int64)
        steps = entries[:, 1].astype(np.int64)
        skips = ((steps & 0xFFFFFFFF) >> 3) - 1
        return skips << SKIP_SHIFT | masks << MASK_SHIFT | steps >> 40

    @property
    def n_words(self) -> int:
        """Words in the dictionary."""
        return len(self._words)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.decode_tables.nbytes + self.encode_table.nbytes + self._words.nbytes

    def snapshot(self) -> Snapshot:
        """What the tables are made from."""
        tokens = [self._tokens_of(table) for table in range(len(self.decode_tables))]
        return {
            "table": self.table,
            "tokens": np.concatenate(tokens),
            "n_tokens": np.array([len(each) for each in tokens]),
            "first_near": self.decode_tables[:, ESCAPE, 2].astype(np.int64),
            "n_near": len(self._near),
            "words": self._words.copy(),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Become what a snapshot was taken of."""
        n_tokens = array_of(snapshot, "n_tokens", np.int64, (None,), 0, ESCAPE)
        tokens = array_of(snapshot, "tokens", np.int64, (int(n_tokens.sum()),), 0)
        kinds = tokens & KIND_MASK
        most = OLD_RESIDUAL if self.pixel_bytes else FAR_WORD
        if (tokens >> SKIP_SHIFT > MAX_SKIP).any() or (kinds > most).any():
            raise CorruptFrameError("a pickled table holds a token that does not exist")
        self._words = array_of(snapshot, "words", np.uint64, (None,))
        n, n_words = len(n_tokens), len(self._words)
        if not 1 <= n <= self._max_tables or n_words > MAX_WORDS:
            raise CorruptFrameError(f"{n} tables of tokens, or {n_words} words, are too many")
        newest = int_of(snapshot, "table", 0, n - 1)
        first_near = array_of(snapshot, "first_near", np.int64, (n,), 0, n_words).tolist()
        n_near = int_of(snapshot, "n_near", 0, min(N_NEAR, n_words - first_near[newest]))
        self._near = self._words[first_near[newest] :][:n_near].copy()
        self.decode_tables = np.zeros((n, 256, 4), np.uint64)
        each = np.split(tokens, np.cumsum(n_tokens)[:-1])
        for self.table in [*range(n), newest]:
            self._build(each[self.table], first_near[self.table])
