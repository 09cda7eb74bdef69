"""Taking apart what a pickle or a file brought: every number and array is looked at before use.

A snapshot is a dictionary of numbers, arrays and more snapshots. It holds what cannot be worked
out from the rest, so that there is little to check and nothing that could contradict itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.errors import CorruptFrameError

Snapshot = dict[str, Any]
MOST = 1 << 60  # of what is only counted


class Pieces:
    """A large array of bytes that is made piece by piece, while it is written.

    Parameters
    ----------
    nbytes : int
    pieces : iterable of ndarray of uint8
        One behind the other; iterated over once.
    """

    def __init__(self, nbytes: int, pieces: Iterable[npt.NDArray[np.uint8]]) -> None:
        self.nbytes = nbytes
        self.dtype = np.dtype(np.uint8)
        self.shape = (nbytes,)
        self._pieces = pieces

    def joined(self) -> npt.NDArray[np.uint8]:
        """All of it."""
        whole, at = np.empty(self.nbytes, np.uint8), 0
        for piece in self._pieces:
            whole[at : at + len(piece)] = piece
            at += len(piece)
        return whole

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        return iter(self._pieces)


class Mapped:
    """Bytes in a file that nothing was compared with their checksums yet.

    Parameters
    ----------
    data : ndarray of uint8
        A view of the mapped file.
    verify : callable
        Compares bytes from the first to before the second place with their checksums, or raises
        `CorruptFrameError`.
    """

    def __init__(self, data: npt.NDArray[np.uint8], verify: Callable[[int, int], None]) -> None:
        self.data = data
        self.verify = verify


def whole(tree: Any) -> Any:
    """The same tree, with all pieces joined: to keep it for later."""
    if isinstance(tree, Pieces):
        return tree.joined()
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    return tree


def copied(tree: Any) -> Any:
    """The same tree, with copies of all arrays that lie in it: to keep it for later."""
    if isinstance(tree, np.ndarray):
        return tree.copy()
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map(copied, tree))
    return tree


def part_of(snapshot: Any, name: str) -> Any:
    """One part of a snapshot."""
    if not isinstance(snapshot, dict) or name not in snapshot:
        raise CorruptFrameError(f"the stored state lacks {name!r}")
    return snapshot[name]


def int_of(snapshot: Any, name: str, least: int, most: int = MOST) -> int:
    """A whole number from ``least`` to ``most``."""
    value = part_of(snapshot, name)
    try:
        number = operator.index(value)
    except TypeError:
        raise CorruptFrameError(f"stored {name} is {value!r}, no whole number") from None
    if not least <= number <= most:
        raise CorruptFrameError(f"stored {name} is {number}, not from {least} to {most}")
    return number


def array_of(
    snapshot: Any,
    name: str,
    dtype: npt.DTypeLike,
    shape: tuple[int | None, ...],
    least: int | None = None,
    most: int | None = None,
    *,
    copy: bool = True,
) -> npt.NDArray[Any]:
    """An array of a dtype and shape (None: any length) with values in bounds.

    A copy, unless the caller copies what it takes: what a pickle brought may be another's memory.
    """
    value = part_of(snapshot, name)
    if isinstance(value, Pieces):
        value = value.joined()
    wanted = np.dtype(dtype)
    if not isinstance(value, np.ndarray):
        raise CorruptFrameError(f"stored {name} is a {type(value).__name__}, no array")
    if (
        value.dtype != wanted
        or value.ndim != len(shape)
        or any(
            length not in (None, given) for length, given in zip(shape, value.shape, strict=True)
        )
    ):
        raise CorruptFrameError(
            f"stored {name} is {value.dtype} of shape {value.shape}, not {wanted} of {shape}"
        )
    array = np.array(value, copy=True if copy else None, order="C", subok=False)
    if least is not None and array.size and array.min() < least:
        raise CorruptFrameError(f"stored {name} holds {array.min()}, less than {least}")
    if most is not None and array.size and array.max() > most:
        raise CorruptFrameError(f"stored {name} holds {array.max()}, more than {most}")
    return array
