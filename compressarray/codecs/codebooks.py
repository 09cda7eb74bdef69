"""Codebooks: what the records of one array are read and written with.

A codebook is tokens, a dictionary of words and, where records are packed, Huffman codes. It never
changes once it is made, and records name it by its number; the newest one is written with. A
`Codebooks` never changes either: who learns something makes another one.
"""

from __future__ import annotations

from typing import NamedTuple

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
from compressarray.codecs.packing import Packer
from compressarray.codecs.words import build_tables, encode_table_words, set_dictionary
from compressarray.errors import CorruptFrameError
from compressarray.format.codebooks import Parts, lay_out
from compressarray.format.messages import Items, Message
from compressarray.format.records import (
    ESCAPE,
    FAR_WORD,
    KIND_MASK,
    MASK_SHIFT,
    MAX_SKIP,
    MAX_WORDS,
    N_NEAR,
    OLD_RESIDUAL,
    SKIP_SHIFT,
)
from compressarray.snapshots import Snapshot, array_of, int_of, part_of

Words = npt.NDArray[np.uint64]


class Codebook(NamedTuple):
    """What records are read with.

    Attributes
    ----------
    words : ndarray, (n,) uint64
        The dictionary, perhaps the beginning of a larger one.
    first_near, n_near : int
        Which of its words are near ones.
    decode_table : ndarray, (256, 4) uint64
        From `build_tables`.
    packer : Packer or None
        Huffman codes, if records are packed.
    """

    words: Words
    first_near: int
    n_near: int
    decode_table: Words
    packer: Packer | None

    @property
    def tokens(self) -> Int64s:
        """The `token_key` of each token, (up to 255,)."""
        entries = self.decode_table[:ESCAPE]
        entries = entries[entries[:, 1] > 0]
        wide = entries[:, :1].copy().view(np.uint8)
        masks = np.packbits(wide > 0, axis=1, bitorder="little")[:, 0].astype(np.int64)
        steps = entries[:, 1].astype(np.int64)
        skips = ((steps & 0xFFFFFFFF) >> 3) - 1
        return skips << SKIP_SHIFT | masks << MASK_SHIFT | steps >> 40

    @property
    def parts(self) -> Parts:
        """What decoders need."""
        model = None if self.packer is None else self.packer.model
        return Parts(self.decode_table, self.words, model)

    @property
    def near(self) -> Words:
        """The near words."""
        return self.words[self.first_near :][: self.n_near]


class Codebooks:
    """Codebooks by number, the tables of kernels, and which of them is the newest.

    Attributes
    ----------
    books : tuple of Codebook or None
        By number; None where a number is free.
    newest : int
        The one to encode with.
    pixel_bytes : int
        Distance to the pixel to the left, for residuals; 0 for none.
    data : ndarray, uint8
        As `format.codebooks` says, and behind that what only the encoder needs.
    n_read_bytes : int
        So many of them are what decoders need: the same bytes in whatever memory.
    encode_table : ndarray, uint64
        Of the newest, a view of `data`.
    """

    def __init__(
        self, books: tuple[Codebook | None, ...], newest: int, pixel_bytes: int, encode_table: Words
    ) -> None:
        parts = [book and book.parts for book in books]
        self.newest = newest
        self.pixel_bytes = pixel_bytes
        self.data, laid_out, self.n_read_bytes = lay_out(parts, encode_table)
        self.books = tuple(
            book and laid and _in_place(book, laid)
            for book, laid in zip(books, laid_out, strict=True)
        )
        self.encode_table: Words = self.data[self.n_read_bytes :].view(np.uint64)
        set_dictionary(
            self.encode_table, _address(self.current.words) - _address(self.encode_table)
        )

    @classmethod
    def starting(cls, row_bytes: int, most: int, pixel_bytes: int) -> Codebooks:
        """Have one codebook for frames that nothing is known of, and room for ``most``."""
        words = np.zeros(0, np.uint64)
        nothing: tuple[Codebook | None, ...] = (None,) * most
        return _with_tables(nothing, 0, pixel_bytes, starting_tokens(row_bytes), words, 0, 0, None)

    @property
    def current(self) -> Codebook:
        """The codebook to encode with."""
        return self.of(self.newest)

    @property
    def free_number(self) -> int | None:
        """The first number that no codebook has, if there is one."""
        return next((number for number, book in enumerate(self.books) if book is None), None)

    def of(self, number: int) -> Codebook:
        """A codebook that exists."""
        book = self.books[number]
        assert book is not None
        return book

    def consider(self, changes: Changes, repeats: float, gain: float, anew: bool) -> Learnt | None:
        """Learn from changes, if it makes these smaller by a part of ``gain``.

        ``anew`` leaves the dictionary out.
        """
        book = self.current
        known = book.words[: 0 if anew else None]
        if len(known) + N_NEAR > MAX_WORDS:
            return None
        now = written_bytes(changes, book.tokens, book.near, book.words)
        learnt = learn(changes, known, repeats)
        return learnt if learnt.n_bytes <= (1 - gain) * now else None

    def with_learnt(self, number: int, learnt: Learnt, anew: bool) -> Codebooks:
        """Add what was learnt as the newest codebook, under a free number, with the codes of now.

        Unless it is ``anew``, its dictionary is the newest one with more words behind.
        """
        known = self.current.words[: 0 if anew else None]
        near = np.zeros(N_NEAR if len(learnt.near) else 0, np.uint64)
        near[: len(learnt.near)] = learnt.near
        words = np.concatenate([known, near, learnt.far])
        books = self.books
        if not anew:  # the others' dictionaries are beginnings of this one: held once
            books = tuple(
                book and book._replace(words=words[: len(book.words)]) for book in self.books
            )
        return _with_tables(
            books, number, self.pixel_bytes, learnt.tokens, words, len(known), len(learnt.near),
            self.current.packer,
        )  # fmt: skip

    def with_codes(self, number: int, packer: Packer) -> Codebooks:
        """Add the newest codebook with other Huffman codes, as the newest under a free number."""
        book = self.current
        return _with_tables(
            self.books, number, self.pixel_bytes, book.tokens, book.words, book.first_near,
            book.n_near, packer,
        )  # fmt: skip

    def only(self, used: npt.NDArray[np.bool_]) -> Codebooks:
        """Let go of all but the newest and those ``used``, ``(numbers,)``."""
        books = tuple(
            book if used[number] or number == self.newest else None
            for number, book in enumerate(self.books)
        )
        if all(book is before for book, before in zip(books, self.books, strict=True)):
            return self
        return Codebooks(books, self.newest, self.pixel_bytes, self.encode_table)

    @property
    def nbytes(self) -> int:
        """Bytes held, Huffman codes apart."""
        return self.data.nbytes - sum(packer.model.nbytes for packer in self._packers)

    @property
    def packer_bytes(self) -> int:
        """Bytes of Huffman codes."""
        return sum(packer.nbytes for packer in self._packers)

    @property
    def _packers(self) -> list[Packer]:
        packers = [book.packer for book in self.books if book is not None]
        return list({_address(each.model): each for each in packers if each is not None}.values())

    def put(self, message: Message, known: Codebooks | None) -> None:
        """Add to a message which is the newest, and those that are not among the ``known`` ones."""
        if self is known:
            message.put_ints([])
            return
        before = (None,) * len(self.books) if known is None else known.books
        changed = [
            number
            for number, (book, other) in enumerate(zip(self.books, before, strict=True))
            if not _is_same(book, other)
        ]
        message.put_ints([self.newest, *changed])
        for number in changed:
            book = self.books[number]
            if book is None:
                message.put_ints([])
                continue
            message.put_ints([book.first_near, book.n_near, int(book.packer is not None)])
            message.put_ints(book.tokens)
            message.put_bytes(book.words.view(np.uint8))
            if book.packer is not None:
                book.packer.put(message)

    def taken(self, items: Items, *, packs: bool) -> Codebooks:
        """These with what `put` has added to a message.

        Raises
        ------
        CorruptFrameError
        """
        said = items.ints(None, 0, len(self.books) - 1)
        if not len(said):
            return self
        snapshot = self.snapshot()
        newest, *changed = said.tolist()
        snapshot["newest"] = newest
        for number in changed:
            near = items.ints(None, 0)
            if not len(near):
                snapshot["books"][number] = None
                continue
            if len(near) != 3:
                raise CorruptFrameError(f"a message describes codebook {number} by {near}")
            tokens, words = items.ints(), items.octets()
            if len(words) % 8:
                raise CorruptFrameError(f"{len(words)} bytes are no words of a dictionary")
            snapshot["books"][number] = {
                "tokens": tokens,
                "words": words.view(np.uint64),
                "first_near": int(near[0]),
                "n_near": int(near[1]),
                "packer": Packer.snapshot_from(items) if near[2] else None,
            }
        return type(self).from_snapshot(snapshot, len(self.books), self.pixel_bytes, packs=packs)

    def snapshot(self) -> Snapshot:
        """What the tables are made from."""
        return {
            "newest": self.newest,
            "books": [
                None
                if book is None
                else {
                    "tokens": book.tokens,
                    "words": book.words.copy(),
                    "first_near": book.first_near,
                    "n_near": book.n_near,
                    "packer": None if book.packer is None else book.packer.snapshot(),
                }
                for book in self.books
            ],
        }

    @classmethod
    def from_snapshot(
        cls, snapshot: Snapshot, most: int, pixel_bytes: int, *, packs: bool
    ) -> Codebooks:
        """Build the codebooks that a snapshot was taken of."""
        given = part_of(snapshot, "books")
        if not isinstance(given, list) or len(given) != most:
            raise CorruptFrameError(f"stored codebooks are no list of {most}")
        newest = int_of(snapshot, "newest", 0, most - 1)
        if given[newest] is None:
            raise CorruptFrameError(f"stored codebook {newest}, the newest one, is not there")
        books: list[Codebook | None] = []
        encode_table = np.zeros(0, np.uint64)
        dictionaries = [
            array_of(each, "words", np.uint64, (None,)) for each in given if each is not None
        ]
        longest = max(dictionaries, key=len)
        if len(longest) > MAX_WORDS:
            raise CorruptFrameError(f"{len(longest)} words are too many for a dictionary")
        for number, each in enumerate(given):
            if each is None:
                books.append(None)
                continue
            tokens = array_of(each, "tokens", np.int64, (None,), 0)
            kinds = tokens & KIND_MASK
            last = OLD_RESIDUAL if pixel_bytes else FAR_WORD
            if (
                len(tokens) > ESCAPE
                or (tokens >> SKIP_SHIFT > MAX_SKIP).any()
                or (kinds > last).any()
            ):
                raise CorruptFrameError("a stored codebook holds a token that does not exist")
            words = dictionaries.pop(0)
            if np.array_equal(words, longest[: len(words)]):
                words = longest[: len(words)]  # held once
            first_near = int_of(each, "first_near", 0, len(words))
            n_near = int_of(each, "n_near", 0, min(N_NEAR, len(words) - first_near))
            packer = None
            if packs and part_of(each, "packer") is not None:
                packer = Packer.from_snapshot(each["packer"])
            decode_table, table = _tables(tokens, words, first_near, pixel_bytes, number)
            if number == newest:
                encode_table = table
            books.append(Codebook(words, first_near, n_near, decode_table, packer))
        return cls(tuple(books), newest, pixel_bytes, encode_table)


def _in_place(book: Codebook, laid: Parts) -> Codebook:
    """The same codebook, with its parts where they were laid."""
    packer = book.packer
    if packer is not None:
        assert laid.model is not None
        packer = packer.with_model(laid.model)
    return book._replace(words=laid.dictionary, decode_table=laid.table, packer=packer)


def _is_same(book: Codebook | None, other: Codebook | None) -> bool:
    """Whether two codebooks are one."""
    if book is None or other is None:
        return book is other
    return (
        book.first_near == other.first_near
        and book.n_near == other.n_near
        and np.array_equal(book.decode_table, other.decode_table)
        and np.array_equal(book.words, other.words)
        and (book.packer is None) == (other.packer is None)
        and (
            book.packer is None
            or other.packer is None
            or np.array_equal(book.packer.model, other.packer.model)
        )
    )


def _with_tables(
    books: tuple[Codebook | None, ...],
    number: int,
    pixel_bytes: int,
    tokens: Int64s,
    words: Words,
    first_near: int,
    n_near: int,
    packer: Packer | None,
) -> Codebooks:
    decode_table, encode_table = _tables(tokens, words, first_near, pixel_bytes, number)
    book = Codebook(words, first_near, n_near, decode_table, packer)
    held = (*books[:number], book, *books[number + 1 :])
    return Codebooks(held, number, pixel_bytes, encode_table)


def _tables(
    tokens: Int64s, words: Words, first_near: int, pixel_bytes: int, number: int
) -> tuple[Words, Words]:
    decode_table = np.zeros((256, 4), np.uint64)
    encode_table = np.zeros(encode_table_words(len(words)), np.uint64)
    build_tables(tokens, words, first_near, pixel_bytes, number, decode_table, encode_table)
    return decode_table, encode_table


def _address(array: npt.NDArray[np.generic]) -> int:
    return int(array.__array_interface__["data"][0])
