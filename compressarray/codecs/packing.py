"""The Huffman codes of one array: learning them from its records, and the tables of kernels."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.codecs.entropy import build_decoding
from compressarray.errors import CorruptFrameError
from compressarray.format.messages import Items, Message
from compressarray.format.packed import (
    CODE_BITS,
    COPY_MAP,
    COUNT_CODE,
    ENCODE_ENTRIES,
    ESCAPED,
    FIRST_MAP,
    FIRST_RESIDUAL_MAP,
    KIND_CODE,
    MASK_CODE,
    MAX_CODES,
    N_CONTEXTS,
    N_SYMBOLS,
    NEXT_MAP,
    NO_TABLE_AT,
    RESIDUAL_TABLES_AT,
    SKIP_CODE,
    START_CODE,
    TABLE_ENTRIES,
    TABLES_AT,
    TOKEN_MAP,
)
from compressarray.kernels.compiling import kernel
from compressarray.snapshots import Snapshot, array_of, int_of

Counts = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

_ROUNDS = 6  # of grouping contexts; more gain less than a thousandth
# A symbol without a code of its own costs the escape and eight bits.
_ESCAPED_BITS = 8
# Contexts by what they are for: codes for the one are never used for the other.
_TOKENS = np.r_[TOKEN_MAP : TOKEN_MAP + 256, START_CODE]
_VALUES = np.r_[
    FIRST_MAP : FIRST_MAP + 256,
    NEXT_MAP : NEXT_MAP + 256,
    KIND_CODE,
    MASK_CODE,
    SKIP_CODE,
    COPY_MAP:N_CONTEXTS,
]
_RESIDUALS = np.r_[FIRST_RESIDUAL_MAP:COPY_MAP]
_COUNT = np.r_[COUNT_CODE : COUNT_CODE + 1]


class Packer:
    """Static codes for the symbols of each context.

    Parameters
    ----------
    counts : ndarray, (`N_CONTEXTS`, 256) int32
        From `entropy.count_symbols`.
    max_codes : int
        How many codes there may be, at least 4. Each takes 1 KiB.
    """

    def __init__(self, counts: Counts, max_codes: int) -> None:
        n_token_codes = max(1, (max_codes - 1) * 2 // 5)
        n_value_codes = max_codes - 1 - n_token_codes
        n_values, n_residuals = (counts[contexts].sum() for contexts in (_VALUES, _RESIDUALS))
        share = n_residuals / max(1, n_values + n_residuals)
        # at least one each, for what is yet to come
        n_residual_codes = min(max(1, round(share * n_value_codes)), n_value_codes - 1)
        codes = np.zeros(N_CONTEXTS, np.uint8)
        sums: list[Counts] = []
        firsts = []
        for contexts, n_codes in (
            (_TOKENS, n_token_codes),
            (_VALUES, n_value_codes - n_residual_codes),
            (_RESIDUALS, n_residual_codes),
            (_COUNT, 1),
        ):
            groups, group_sums = _group(counts[contexts].astype(np.float32), n_codes)
            firsts.append(len(sums))
            codes[contexts] = len(sums) + groups
            sums.extend(group_sums)
        lengths = np.array([code_lengths(each) for each in sums], np.uint8)
        self._build(lengths, codes, *firsts[1:3])

    def _build(
        self,
        lengths: npt.NDArray[np.uint8],
        codes: npt.NDArray[np.uint8],
        n_token_codes: int,
        first_residual: int,
    ) -> None:
        self._n_token_codes, self._first_residual = n_token_codes, first_residual
        self._codes = codes
        self.model = np.zeros(TABLES_AT + (len(lengths) + 1) * TABLE_ENTRIES, np.uint16)
        tables = TABLES_AT + np.arange(len(lengths) + 1) * TABLE_ENTRIES
        self.model[:N_CONTEXTS] = tables[codes]
        self.model[RESIDUAL_TABLES_AT] = tables[first_residual]
        self.model[NO_TABLE_AT] = tables[-1]
        self.encode = np.zeros((len(lengths), ENCODE_ENTRIES), np.uint16)
        build_decoding(lengths, self.model, self.encode)

    def with_model(self, model: npt.NDArray[np.uint16]) -> Packer:
        """The same codes, with the tables for decoding in another place."""
        twin = copy.copy(self)
        twin.model = model
        return twin

    def snapshot(self) -> Snapshot:
        """What the tables are made from."""
        return {
            "lengths": (self.encode >> 8).astype(np.uint8),
            "codes": self._codes.copy(),
            "n_token_codes": self._n_token_codes,
            "first_residual": self._first_residual,
        }

    def put(self, message: Message) -> None:
        """Add to a message what the tables are made from."""
        snapshot = self.snapshot()
        message.put_ints([self._n_token_codes, self._first_residual])
        message.put_bytes(snapshot["lengths"])
        message.put_bytes(snapshot["codes"])

    @staticmethod
    def snapshot_from(items: Items) -> Snapshot:
        """Take from a message what `put` has added."""
        n_token_codes, first_residual = items.ints(2).tolist()
        lengths = items.octets()
        if len(lengths) % ENCODE_ENTRIES:
            raise CorruptFrameError(f"{len(lengths)} lengths are no codes")
        return {
            "lengths": lengths.reshape(-1, ENCODE_ENTRIES),
            "codes": items.octets(),
            "n_token_codes": n_token_codes,
            "first_residual": first_residual,
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
            raise CorruptFrameError("a stored code is not complete, or has no escape")
        codes = array_of(snapshot, "codes", np.uint8, (N_CONTEXTS,), 0, n - 1)
        packer = cls.__new__(cls)
        n_token_codes = int_of(snapshot, "n_token_codes", 1, n)
        first_residual = int_of(snapshot, "first_residual", n_token_codes, n)
        # Which code follows depends on what a code is for: the two sides must agree on that.
        for contexts, first, end in (
            (_TOKENS, 0, n_token_codes),
            (_VALUES, n_token_codes, first_residual),
            (_RESIDUALS, first_residual, n),
        ):
            if not ((first <= codes[contexts]) & (codes[contexts] < end)).all():
                raise CorruptFrameError("a stored code is used for what it is not for")
        packer._build(lengths, codes, n_token_codes, first_residual)
        return packer

    def packed_bits(self, counts: Counts) -> int:
        """Bits that symbols take, seen so often each."""
        lengths = (self.encode >> 8).astype(np.uint8)
        own, escape = lengths[:, :N_SYMBOLS], lengths[:, ESCAPED:]
        bits = np.where(own > 0, own, escape + np.uint8(_ESCAPED_BITS))
        return int(np.einsum("ij,ij->", counts, bits[self._codes], dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.model.nbytes + self.encode.nbytes


def _group(seen: Floats, n_groups: int) -> tuple[npt.NDArray[np.intp], Counts]:
    """Put contexts into groups that share a code: which one each is in, and the groups' counts.

    k-means with a code's length for distance, from the most frequent contexts on.
    """
    totals = seen.sum(axis=1)
    seeds = np.argsort(-totals, kind="stable")[:n_groups]
    sums = seen[seeds[(totals[seeds] > 0) | (seeds == seeds[0])]]
    groups = np.zeros(len(seen), np.int64)
    for _ in range(_ROUNDS):
        parts = sums + np.float32(0.5)  # half a count for what a group has not seen
        bits = -np.log2(parts / parts.sum(axis=1, keepdims=True))
        find_nearest(seen, np.ascontiguousarray(bits.T), groups)
        used, groups = np.unique(groups, return_inverse=True)
        sums = np.zeros((len(used), N_SYMBOLS), np.float32)
        add_up(seen, groups, sums)
    # counts above 2**24 are not exact, and need not be
    return groups, np.rint(sums).astype(np.int32)


@kernel
def find_nearest(seen: Any, bits: Any, groups: Any) -> None:
    """Fill ``groups`` with the number of the code that writes each context in the fewest bits.

    A product of matrices, but for its zeros and for the megabytes that a BLAS keeps.

    Parameters
    ----------
    seen : ndarray, (n, 256) float32
    bits : ndarray, (256, m) float32
    groups : ndarray, (n,) int64
    """
    cost = np.empty(bits.shape[1], np.float32)
    for context in range(len(seen)):
        cost[:] = 0
        for symbol in range(N_SYMBOLS):
            n = seen[context, symbol]
            if n > 0:
                for group in range(len(cost)):
                    cost[group] += n * bits[symbol, group]
        groups[context] = np.argmin(cost)


@kernel
def add_up(seen: Any, groups: Any, sums: Any) -> None:
    """Add the counts of each context to those of its group."""
    for context in range(len(seen)):
        for symbol in range(N_SYMBOLS):
            sums[groups[context], symbol] += seen[context, symbol]


def code_lengths(counts: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Bits of a Huffman code for 256 symbols and the escape, 0 for those that are escaped.

    Rare symbols go under the escape: `CODE_BITS` is the longest code there is.
    """
    # not all 256: with the escape they would be too many for codes so short
    counts = counts.astype(np.int64)
    least = np.sort(counts)[1 - (1 << CODE_BITS)]
    named = (counts << CODE_BITS > counts.sum()) & (counts > least)
    if not named.any():
        named[0] = True  # a code of no bits would be read for ever
    weights = np.maximum(np.append(counts[named], counts[~named].sum()), 1)
    order = np.argsort(weights, kind="stable")
    lengths = np.zeros(len(weights), np.int64)
    while True:
        lengths[order] = weights[order]
        in_order = lengths[order]
        huffman_lengths(in_order)
        lengths[order] = in_order
        if lengths.max() <= CODE_BITS:
            break
        weights = 1 + weights // 2  # flatter weights make shorter codes, in the same order
    of_all = np.zeros(N_SYMBOLS + 1, np.int64)
    of_all[np.append(np.flatnonzero(named), ESCAPED)] = lengths
    return of_all


@kernel
def huffman_lengths(weights: Any) -> None:
    """Replace two or more weights, in rising order, by the bits of their Huffman codes.

    In place, as Moffat and Katajainen do it: "In-place calculation of minimum-redundancy codes",
    WADS 1995.
    """
    n = len(weights)
    # weights become those of the tree's inner nodes, and these the numbers of their parents
    weights[0] += weights[1]
    root, leaf = 0, 2
    for node in range(1, n - 1):
        if leaf >= n or weights[root] < weights[leaf]:
            weights[node] = weights[root]
            weights[root] = node
            root += 1
        else:
            weights[node] = weights[leaf]
            leaf += 1
        if leaf >= n or (root < node and weights[root] < weights[leaf]):
            weights[node] += weights[root]
            weights[root] = node
            root += 1
        else:
            weights[node] += weights[leaf]
            leaf += 1
    # parents' numbers become depths
    weights[n - 2] = 0
    for node in range(n - 3, -1, -1):
        weights[node] = weights[weights[node]] + 1
    # and the depths of inner nodes those of leaves
    free, inner, depth = 1, 0, 0
    root, leaf = n - 2, n - 1
    while free > 0:
        while root >= 0 and weights[root] == depth:
            inner += 1
            root -= 1
        while free > inner:
            weights[leaf] = depth
            leaf -= 1
            free -= 1
        free = 2 * inner
        depth += 1
        inner = 0
