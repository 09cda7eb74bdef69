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
    N_SYMBOLS,
    NEXT_MAP,
    SKIP_CODE,
    START_CODE,
    TABLE_BYTES,
    TABLES_AT,
    TOKEN_MAP,
    build_decoding,
)

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
        self.model = np.zeros(TABLES_AT + len(sums) * TABLE_BYTES, np.uint8)
        self.model[tokens] = token_codes
        self.model[values] = len(token_groups) + value_codes
        self.model[COUNT_CODE] = len(sums) - 1
        self.encode = np.zeros((len(sums), ENCODE_ENTRIES), np.uint16)
        build_decoding(lengths, len(token_groups), self.model, self.encode)

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
