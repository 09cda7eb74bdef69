"""What an array learns from its frames: which changes get a token, which words a dictionary.

Tokens and dictionary are chosen for the changes of a sample of frames, each with its
`token_key` as it is without a dictionary, and, where its values are literal, its new word.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.codecs.words import ESCAPED_BYTES, choose_residual, classify
from compressarray.format.records import (
    ABOVE,
    BACKGROUND,
    ESCAPE,
    FAR_WORD,
    KIND_MASK,
    LEFT,
    LITERAL,
    MASK_SHIFT,
    MAX_CHANGE,
    MAX_SKIP,
    MAX_WORDS,
    N_NEAR,
    NEAR_WORD,
    RESIDUALS,
    SKIP_SHIFT,
    UNIFORM,
    token_key,
)
from compressarray.kernels.compiling import kernel, plain
from compressarray.kernels.memory import load64, load_tail, nonzero_bytes, widen_mask

Int64s = npt.NDArray[np.int64]
UInt8s = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]

MAX_CHOICES = 4096  # changes that a table is chosen for; rarer ones would not get a token
# A far word is held, found through two bytes of a hash that is at most two thirds full, and has
# to earn that four times, for what is seen may not come again.
FAR_WORD_BYTES = 4 * (8 + 4)
_BITS = np.array([bin(mask).count("1") for mask in range(256)])
_N_VALUES = {UNIFORM: 1, NEAR_WORD: 1, FAR_WORD: 2, **dict.fromkeys(RESIDUALS, 8)}


class Changes(NamedTuple):
    """Words that changed from frame to frame."""

    keys: Int64s  # (n,)
    words: Words  # (n,): 0 where the values are not literal
    residuals: UInt8s  # (n,): the kind of residuals that writes it instead, or 0


class Learnt(NamedTuple):
    """Tokens and words for changes, and what these take with them."""

    tokens: Int64s  # (up to 255,)
    near: Words  # (up to 256,)
    far: Words  # those that are not in the dictionary yet
    n_bytes: int


@kernel
def read_changes(old: Any, new: Any, background: Any, n_bytes: Any, row_bytes: Any,
                 pixel_bytes: Any, keys: Any, words: Any, residuals: Any,
                 n: Any) -> Any:  # fmt: skip
    """Add what changes from one frame to another, at addresses, to `Changes` from ``n`` on.

    ``pixel_bytes`` is 0 where there are to be no residuals. Returns how many changes there are
    now, at most ``len(keys)``.
    """
    whole = n_bytes >> 3
    tail = n_bytes & 7
    last = -1
    for w in range((n_bytes + 7) >> 3):
        p = w << 3
        if w < whole:
            fresh, before, behind = load64(new + p), load64(old + p), load64(background + p)
        else:
            fresh = load_tail(new + p, tail)
            before = load_tail(old + p, tail)
            behind = load_tail(background + p, tail)
        if fresh == before:
            continue
        mask = nonzero_bytes(fresh ^ before)
        kind, source = classify(fresh, widen_mask(mask), behind, new, p, row_bytes, new)
        if kind != LITERAL and fresh == source and w < whole:
            mask = np.uint64(0xFF)
        skip = w - last - 1
        last = w
        if skip <= MAX_SKIP and n < len(keys):
            keys[n] = token_key(skip, mask, kind)
            words[n] = np.uint64(0)
            residuals[n] = 0
            if kind == LITERAL and w < whole:
                words[n] = fresh
                if pixel_bytes > 0:
                    residuals[n], _, _ = choose_residual(
                        fresh, before, new, p, row_bytes, pixel_bytes, mask
                    )
            n += 1
    return n


def starting_tokens(row_bytes: int) -> Int64s:
    """Keys of the tokens to begin with, before an array has frames to learn them from.

    A changed word mostly follows the one before it, or lies one row below it, and its changed
    bytes mostly form one run: the weights are rounded from ten Atari games.
    """
    key_of = plain(token_key)
    down = max(row_bytes // 8 - 1, 1)
    skips = {0: 0.47, down: 0.2, down - 1: 0.09, down + 1: 0.04, 1: 0.03}
    kinds = {LITERAL: 0.5, UNIFORM: 0.1, BACKGROUND: 0.2, LEFT: 0.1, ABOVE: 0.1}
    weights: dict[int, float] = {}
    for skip, skip_weight in skips.items():
        for first in range(8):
            for last in range(first, 8):
                mask = (0xFF >> (7 - last + first)) << first
                # runs go on from the word before, or into the word behind
                joined = first == 0 if skip == 0 else last == 7
                mask_weight = 0.3 if first == 0 and last == 7 else 0.04 if joined else 0.015
                for kind, kind_weight in kinds.items():
                    # of rows so long that no token skips one, only the next words are named
                    if 0 <= skip <= MAX_SKIP and not (kind == LITERAL and first == last):
                        key = int(key_of(skip, mask, kind))
                        weights[key] = skip_weight * mask_weight * kind_weight
    # three in four whole, then the parts of all others: skips up to five rows
    whole = sorted(weights, key=lambda key: -weights[key])[:192]
    skip_only = [key_of(skip, 0, LITERAL) for skip in range(min(5 * down, ESCAPE - len(whole)))]
    return np.array([*whole, *skip_only], np.int64)


def choose_tokens(keys: Int64s, counts: Int64s) -> Int64s:
    """Choose the tokens that write these changes in the fewest bytes.

    A change takes one token where the table names it whole, two where it names its skip and the
    change apart, and an escape otherwise. How many of the 255 go to whole ones is tried out, the
    most frequent first on either side.

    Parameters
    ----------
    keys, counts : ndarray, (n,) int64
        Different `token_key`, and how often each was seen.
    """
    order = np.argsort(-counts, kind="stable")[:MAX_CHOICES]
    keys, counts = keys[order], counts[order]
    best, least = keys[:ESCAPE], np.inf
    for n_whole in range(ESCAPE - 192, ESCAPE + 1, 64):
        whole, rest, weights = keys[:n_whole], keys[n_whole:], counts[n_whole:]
        parts = np.concatenate([_change_only(rest), _skip_only(rest[rest > MAX_CHANGE])])
        part_weights = np.concatenate([weights, weights[rest > MAX_CHANGE]])
        fresh = ~_found(parts, np.sort(whole))
        parts, places = np.unique(parts[fresh], return_inverse=True)
        ranked = np.argsort(-np.bincount(places, part_weights[fresh]), kind="stable")
        tokens = np.concatenate([whole, parts[ranked[: ESCAPE - n_whole]]])
        size = token_bytes(tokens, keys, counts)
        if size < least:
            best, least = tokens, size
    return best


def token_bytes(tokens: Int64s, keys: Int64s, counts: Int64s) -> int:
    """Bytes that changes take with a table of tokens, their values apart."""
    ranked = np.sort(tokens)
    whole = _found(keys, ranked)
    apart = _found(_change_only(keys), ranked) & _found(_skip_only(keys), ranked)
    return int((counts * np.where(whole, 1, np.where(apart, 2, ESCAPED_BYTES))).sum())


def _found(keys: npt.NDArray[Any], ranked: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    places = np.minimum(np.searchsorted(ranked, keys), len(ranked) - 1)
    found: npt.NDArray[np.bool_] = ranked[places] == keys
    return found


def _change_only(keys: Int64s) -> Int64s:
    return keys & MAX_CHANGE


def _skip_only(keys: Int64s) -> Int64s:
    """What moves on by the skip of each key; of those that skip nothing, no key."""
    return (((keys >> SKIP_SHIFT) - 1) << SKIP_SHIFT) | LITERAL


def learn(changes: Changes, known: Words, repeats: float) -> Learnt:
    """Choose tokens and words for changes like these.

    Parameters
    ----------
    known : ndarray, (m,) uint64
        The dictionary so far; its words stay.
    repeats : float
        How many times more changes than these are to be expected.
    """
    near, far = _choose_words(changes, known, repeats)
    keys = with_words(changes, near, np.concatenate([known, far]))
    seen, counts = np.unique(keys, return_counts=True)
    tokens = choose_tokens(seen, counts)
    return Learnt(tokens, near, far, changes_bytes(tokens, seen, counts))


def written_bytes(changes: Changes, tokens: Int64s, near: Words, words: Words) -> int:
    """Bytes that changes take with these tokens and words."""
    seen, counts = np.unique(with_words(changes, near, words), return_counts=True)
    return changes_bytes(tokens, seen, counts)


def changes_bytes(tokens: Int64s, keys: Int64s, counts: Int64s) -> int:
    """Bytes of different changes, seen so often each, with their values."""
    kinds = keys & KIND_MASK
    values = np.where(kinds == LITERAL, _BITS[(keys >> MASK_SHIFT) & 0xFF], 0)
    for kind, n in _N_VALUES.items():
        values[kinds == kind] += n
    return token_bytes(tokens, keys, counts) + int((counts * values).sum())


def with_words(changes: Changes, near: Words, words: Words) -> Int64s:
    """The keys of changes where these words can be named."""
    n_values = _BITS[(changes.keys >> MASK_SHIFT) & 0xFF]
    whole = (changes.keys | MAX_CHANGE) - KIND_MASK
    keys: Int64s = np.where(changes.residuals > 0, whole + changes.residuals, changes.keys)
    for held, kind, n in ((words, FAR_WORD, 2), (near, NEAR_WORD, 1)):
        ranked = np.sort(held)
        if len(ranked):
            named = _found(changes.words, ranked) & (changes.words != 0) & (n_values > n)
            keys[named] = whole[named] + kind
    return keys


def _choose_words(changes: Changes, known: Words, repeats: float) -> tuple[Words, Words]:
    literal = changes.words != 0
    words, places = np.unique(changes.words[literal], return_inverse=True)
    n_values = _BITS[(changes.keys[literal] >> MASK_SHIFT) & 0xFF]
    # A word seen once may never come again. Good and Turing estimate how often such words do by
    # how many were seen twice: "The population frequencies of species", Biometrika 40, 1953.
    seen = np.bincount(places, minlength=len(words))
    n_once, n_twice = np.count_nonzero(seen == 1), np.count_nonzero(seen == 2)
    again = np.where(seen == 1, min(1.0, 2 * n_twice / max(n_once, 1)), 1.0)
    gain = again * np.bincount(places, n_values - 1, len(words))
    order = np.argsort(-gain, kind="stable")[:N_NEAR]
    order = order[gain[order] > 0]
    near = words[order]
    gain_far = repeats * again * np.bincount(places, np.maximum(n_values - 2, 0), len(words))
    gain_far[order] = 0
    if len(known):
        gain_far[_found(words, np.sort(known))] = 0
    order = np.argsort(-gain_far, kind="stable")[: max(0, MAX_WORDS - N_NEAR - len(known))]
    return near, words[order[gain_far[order] > FAR_WORD_BYTES]]
