"""How delta records are packed: Huffman codes that are static, chosen by context, and learnt.

A packed record is a run of bits that goes on where the one before it ended: its number of tokens,
then each token, in a code chosen by the token before it, then each value, in a code chosen by its
token or, behind a token's first value, by the value before. Residuals have codes of their own: the
first one's is chosen by its kind. Contexts that look alike share a code. What a code does not name
is its escape and eight bits as they are. An escaped token's kind, mask and skip follow it at once,
in codes of their own.

Nothing but the codes is common to two records, so that a read unpacks only those that it needs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.format.copies import HERE, MOVED, source_of
from compressarray.format.records import RESIDUAL, RESIDUALS, is_copies
from compressarray.kernels.compiling import inlined
from compressarray.kernels.memory import load16

CODE_BITS = 8  # of the longest code, and so many look an entry of its table up
N_SYMBOLS = 256
ESCAPED = 256  # the escape's place behind the symbols of an encoding table
ENCODE_ENTRIES = 257
# A model for decoding, an array of 16 bits. First, where the table lies of the code for a token
# behind each token, for the first value of each token, for a value behind each value; for a
# record's first token, its number of tokens, and an escaped token's parts; for the first residual
# of each kind, and one behind each residual; for what records of copies have; where the first of
# residuals' tables lies, and one all of zeros, of a code of no symbols. Then the tables. An entry
# is the bits that are taken (6 bits), whether that is an escape and the symbol its last 8 bits (the
# eighth bit), and otherwise the symbol (8 bits).
TOKEN_MAP, FIRST_MAP, NEXT_MAP = 0, 256, 512
START_CODE, COUNT_CODE, KIND_CODE, MASK_CODE, SKIP_CODE, FIRST_RESIDUAL_MAP = range(768, 774)
RESIDUAL_MAP = FIRST_RESIDUAL_MAP + len(RESIDUALS)
# Of records of copies: a token behind each token; numbers; extras, which are how many literals, how
# long a span, and the bytes of a place, in the frame before or here.
COPY_MAP = RESIDUAL_MAP + 256
NUMBER_CODE, LITERALS_CODE, SPAN_CODE = range(COPY_MAP + 256, COPY_MAP + 259)
MOVED_CODE = COPY_MAP + 259
HERE_CODE = MOVED_CODE + 4
N_CONTEXTS = HERE_CODE + 4
RESIDUAL_TABLES_AT = N_CONTEXTS
NO_TABLE_AT = N_CONTEXTS + 1
TABLES_AT = 1344
TABLE_ENTRIES = 1 << CODE_BITS
TAKEN = 0x3F
IS_ESCAPE = 1 << 7
SYMBOL_SHIFT = 8
CODE_MASK = np.uint64((1 << CODE_BITS) - 1)
MAX_CODES = 250  # so that 16 bits say where a table begins
LONG_COUNT = 255  # for tokens that have no symbol: their number follows in 24 bits
COPIED = 254  # for a record of copies; so many tokens and more are long


@inlined
def table_at(model: Any, context: Any) -> Any:
    """Where the table of a context's code lies in the model at an address."""
    return np.int64(load16(model + 2 * context))


@inlined
def code_at(model: Any, context: Any) -> Any:
    """The number of a context's code."""
    return (table_at(model, context) - TABLES_AT) >> CODE_BITS


@inlined
def first_context(token: Any, kind: Any) -> Any:
    """The context of the first value of a token of a kind."""
    return FIRST_RESIDUAL_MAP + kind - RESIDUAL if kind >= RESIDUAL else FIRST_MAP + token


@inlined
def count_symbol(n_tokens: Any, n_bytes: Any) -> Any:
    """The symbol for a record's number of tokens."""
    if is_copies(n_tokens, n_bytes):
        return COPIED
    return n_tokens if n_tokens < COPIED else LONG_COUNT


@inlined
def place_context(token: Any) -> Any:
    """The context of the first byte of a place, or 0 where a token's span needs none."""
    source = source_of(token)
    return HERE_CODE if source == HERE else MOVED_CODE if source == MOVED else 0
