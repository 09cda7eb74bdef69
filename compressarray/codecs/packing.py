"""The Huffman codes of one array: learning them from its records, and the tables of kernels."""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from compressarray.codecs.entropy import (
    CODE_BITS,
    COUNT_CODE,
    ENCODE_ENTRIES,
    ESCAPED,
    FIRST_MAP,
    KIND_CODE,
    MASK_CODE,
    MAX_CODES,
    N_SYMBOLS,
    NEXT_MAP,
    SKIP_CODE,
    START_CODE,
    TABLE_BYTES,
    TABLES_AT,
    TOKEN_MAP,
    build_decoding,
)
from compressarray.errors import CorruptFrameError
from compressarray.snapshots import Snapshot, array_of, int_of

Counts = npt.NDArray[np.int64]

N_CONTEXTS = 773
_ROUNDS = 6  # of grouping contexts; more gain less than a thousandth
# A symbol without a code of its own costs the escape and eight bits.
_ESCAPED_BITS = 8


class Packer:
    """Static codes for the symbols of each context.

    Parameters
    ----------
    counts : ndarray, (773, 256) int64
        From `entropy.count_symbols`.
    max_codes : int
        How many codes there may be, at least 4. Each takes 1.5 KiB.
    """

    def __init__(self, counts: Counts, max_codes: int) -> None:
        tokens = np.r_[TOKEN_MAP : TOKEN_MAP + 256, START_CODE]
        values = np.r_[
            FIRST_MAP : FIRST_MAP + 256, NEXT_MAP : NEXT_MAP + 256, KIND_CODE, MASK_CODE, SKIP_CODE
        ]
        n_token_codes = max(1, (max_codes - 1) * 2 // 5)
        token_codes, token_groups = _group(counts[tokens], n_token_codes)
        value_codes, value_groups = _group(counts[values], max_codes - 1 - n_token_codes)
        sums = np.concatenate([token_groups, value_groups, counts[COUNT_CODE][None]])
        lengths = np.array([code_lengths(each) for each in sums], np.uint8)
        codes = np.zeros(N_CONTEXTS, np.uint8)
        codes[tokens] = token_codes
        codes[values] = len(token_groups) + value_codes
        codes[COUNT_CODE] = len(sums) - 1
        self._build(lengths, codes, len(token_groups))

    def _build(
        self, lengths: npt.NDArray[np.uint8], codes: npt.NDArray[np.uint8], n_token_codes: int
    ) -> None:
        self._n_token_codes = n_token_codes
        self.model = np.zeros(TABLES_AT + len(lengths) * TABLE_BYTES, np.uint8)
        self.model[:N_CONTEXTS] = codes
        self.encode = np.zeros((len(lengths), ENCODE_ENTRIES), np.uint16)
        build_decoding(lengths, n_token_codes, self.model, self.encode)

    def snapshot(self) -> Snapshot:
        """What the tables are made from."""
        return {
            "lengths": (self.encode >> 8).astype(np.uint8),
            "codes": self.model[:N_CONTEXTS].copy(),
            "n_token_codes": self._n_token_codes,
        }

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot) -> Packer:
        """Build the codes that a snapshot was taken of."""
        lengths = array_of(snapshot, "lengths", np.uint8, (None, ENCODE_ENTRIES), 0, CODE_BITS)
        n = len(lengths)
        if not 1 <= n <= MAX_CODES:
            raise CorruptFrameError(f"there cannot be {n} codes")
        # Whatever the bits, a complete code names a symbol, and so every look at them moves on.
        shares = np.where(lengths > 0, (1 << CODE_BITS) >> lengths.astype(np.int64), 0)
        if (shares.sum(axis=1) != 1 << CODE_BITS).any() or not lengths[:, ESCAPED].all():
            raise CorruptFrameError("a pickled code is not complete, or has no escape")
        codes = array_of(snapshot, "codes", np.uint8, (N_CONTEXTS,), 0, n - 1)
        packer = cls.__new__(cls)
        packer._build(lengths, codes, int_of(snapshot, "n_token_codes", 0, n))
        return packer

    def packed_bits(self, counts: Counts) -> int:
        """Bits that symbols take, seen so often each."""
        lengths = (self.encode >> 8)[self.model[:N_CONTEXTS]].astype(np.int64)
        own, escape = lengths[:, :N_SYMBOLS], lengths[:, ESCAPED:]
        return int((counts * np.where(own > 0, own, escape + _ESCAPED_BITS)).sum())

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.model.nbytes + self.encode.nbytes


def _group(counts: Counts, n_groups: int) -> tuple[npt.NDArray[np.intp], Counts]:
    """Put contexts into groups that share a code: which one each is in, and the groups' counts.

    k-means with a code's length for distance, from the most frequent contexts on.
    """
    totals = counts.sum(axis=1)
    seeds = np.argsort(-totals, kind="stable")[:n_groups]
    sums = counts[seeds[totals[seeds] > 0]]
    if not len(sums):
        sums = np.zeros((1, N_SYMBOLS), np.int64)
    groups = np.zeros(len(counts), np.intp)
    for _ in range(_ROUNDS):
        # half a count for what a group has not seen
        bits = -np.log2((sums + 0.5) / (sums + 0.5).sum(axis=1, keepdims=True))
        groups = np.argmin(counts @ bits.T, axis=1)
        used, groups = np.unique(groups, return_inverse=True)
        sums = np.zeros((len(used), N_SYMBOLS), np.int64)
        np.add.at(sums, groups, counts)
    return groups, sums


def code_lengths(counts: Counts) -> list[int]:
    """Bits of a Huffman code for 256 symbols and the escape, 0 for those that are escaped.

    Rare symbols go under the escape: a code of `CODE_BITS` is the longest there is.
    """
    counts = counts.astype(np.int64)
    # not all 256: with the escape they would be too many for codes so short
    least = np.sort(counts)[1 - (1 << CODE_BITS)] if CODE_BITS < 9 else 0
    named = (counts << CODE_BITS > counts.sum()) & (counts > least)
    rare = max(1, int(counts[~named].sum()))
    weights = {symbol: int(counts[symbol]) for symbol in np.flatnonzero(named).tolist()}
    weights[ESCAPED] = rare
    if len(weights) == 1:
        weights[0] = 1  # a code of no bits would be read for ever
    longest = CODE_BITS + 1
    while longest > CODE_BITS:
        lengths = _huffman(weights)
        longest = max(lengths.values())
        # flatter weights make shorter codes
        weights = {symbol: 1 + weight // 2 for symbol, weight in weights.items()}
    return [lengths.get(symbol, 0) for symbol in range(N_SYMBOLS + 1)]


def _huffman(weights: dict[int, int]) -> dict[int, int]:
    lengths = dict.fromkeys(weights, 0)
    heap: list[tuple[int, int, tuple[int, ...]]]
    heap = [(weight, symbol, (symbol,)) for symbol, weight in weights.items()]
    heapq.heapify(heap)
    while len(heap) > 1:
        first, _, under = heapq.heappop(heap)
        second, tie, beside = heapq.heappop(heap)
        for symbol in under + beside:
            lengths[symbol] += 1
        heapq.heappush(heap, (first + second, tie, under + beside))
    return lengths
