"""How codebooks are written: one array of bytes in which everything lies by offset.

It begins with a row for each number of a codebook, five u32: where its decoding table lies, where
its dictionary, of how many words, where the model of its Huffman codes, of how many bytes. Offsets
count from the row's own first byte, so that whoever knows where a row lies needs to know no more,
in whatever process or memory that is. 0 stands for what is not there. Tables, models and
dictionaries follow, each from a multiple of 8 on; dictionaries that are beginnings of one another
are one. A codebook never changes once it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.kernels.compiling import inlined
from compressarray.kernels.memory import load32

UInt8s = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]

TABLE_AT, DICTIONARY_AT, N_WORDS_AT, MODEL_AT, MODEL_BYTES_AT = 0, 4, 8, 12, 16
CODEBOOK_BYTES = 20  # of a row


class Parts(NamedTuple):
    """What a codebook is read with."""

    table: Words  # (256, 4)
    dictionary: Words  # (n,)
    model: npt.NDArray[np.uint16] | None


def lay_out(
    books: Sequence[Parts | None], behind: npt.NDArray[Any]
) -> tuple[UInt8s, list[Parts | None], int]:
    """Write codebooks by number, and another array behind them.

    Parts that begin at one address are the same, or the beginnings of a longer one: held once.

    Returns
    -------
    tuple
        The bytes; each codebook's parts in them; where ``behind`` begins, a multiple of 8.
    """
    places: dict[int, int] = {}
    size = -(-CODEBOOK_BYTES * len(books) // 8) * 8
    given = [part for book in books if book for part in book if part is not None]
    for part in sorted(given, key=lambda part: -part.nbytes):
        if part.nbytes and _address(part) not in places:
            places[_address(part)] = size
            size += -(-part.nbytes // 8) * 8
    data = np.zeros(size + behind.nbytes, np.uint8)
    data[size:] = behind.reshape(-1).view(np.uint8)

    def put(part: npt.NDArray[Any]) -> tuple[int, npt.NDArray[Any]]:
        at = places[_address(part)] if part.nbytes else size
        laid = data[at : at + part.nbytes]
        laid[:] = part.reshape(-1).view(np.uint8)
        return at, laid.view(part.dtype).reshape(part.shape)

    laid_out: list[Parts | None] = []
    rows = data[: CODEBOOK_BYTES * len(books)].view(np.uint32).reshape(len(books), -1)
    for number, book in enumerate(books):
        if book is None:
            laid_out.append(None)
            continue
        table_at, table = put(book.table)
        dictionary_at, dictionary = put(book.dictionary)
        model_at, model = (0, None) if book.model is None else put(book.model)
        start = CODEBOOK_BYTES * number
        rows[number] = (
            table_at - start,
            dictionary_at - start,
            len(dictionary),
            0 if model is None else model_at - start,
            0 if model is None else model.nbytes,
        )
        laid_out.append(Parts(table, dictionary, model))
    return data, laid_out, size


def _address(array: npt.NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


@inlined
def codebook_at(codebooks: Any, number: Any) -> Any:
    """The address of a codebook's row, of those at an address."""
    return codebooks + number * CODEBOOK_BYTES


@inlined
def table_of(codebook: Any) -> Any:
    """The address of the decoding table of a codebook at an address."""
    return codebook + np.int64(load32(codebook + TABLE_AT))


@inlined
def dictionary_of(codebook: Any) -> Any:
    """The address of a codebook's dictionary."""
    return codebook + np.int64(load32(codebook + DICTIONARY_AT))


@inlined
def model_of(codebook: Any) -> Any:
    """The address of a codebook's model of Huffman codes, or 0."""
    offset = np.int64(load32(codebook + MODEL_AT))
    return codebook + offset if offset else np.int64(0)
