"""RLlib's buffer of an episode's observations, with its images in a ring of compressed frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import tree
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer
from ray.rllib.utils.spaces.space_utils import batch

from compressarray.ray.columns import Column, EpisodeFrames, Kind, is_image

# A leaf of the structure of observations, over time: a column of images, or what was given. That is
# an array where the buffer is finalized, else a list.
Leaf = Any


class CompressedLookbackBuffer(InfiniteLookbackBuffer):
    """An `InfiniteLookbackBuffer` that gives what RLlib's own gives, and decodes it for that.

    Which observations are meant by indices, slices and lists is left to RLlib, which is asked for
    their positions. What is rarely asked of observations (to fill up, one-hot vectors, to set) is
    done by RLlib on a dense copy.

    Parameters
    ----------
    dense : InfiniteLookbackBuffer
        What to begin with; stays as it is.
    frames : EpisodeFrames
        Where the images go.
    number : int
        Of the episode.

    Notes
    -----
    Copies, and what is pickled, are RLlib's own dense buffers: they stand for themselves, while
    this one ends with its episode.
    """

    def __init__(self, dense: Any, frames: EpisodeFrames, number: int) -> None:
        self._frames, self._number = frames, number
        self.lookback, self.finalized = dense.lookback, dense.finalized
        self.space = dense.space
        self.data = dense.data

    # -- what it holds -----------------------------------------------------------------------

    @property
    def data(self) -> Any:
        """Everything, lookback included: a dense copy."""
        return self._at(np.arange(self._n) if self.finalized else range(self._n))

    @data.setter
    def data(self, data: Any) -> None:
        structure, leaves, n = self._split(data)
        paths = [path for path, _ in tree.flatten_with_path(structure)]
        for j, leaf in enumerate(leaves):
            if is_image(leaf):
                kind: Kind = paths[j], leaf[0].shape, leaf[0].dtype
                column = self._frames.column(kind, self._number)
                column.append(np.asarray(leaf))
                leaves[j] = column
        self._structure, self._leaves = structure, leaves
        self._set_length(n)

    def _split(self, data: Any) -> tuple[Any, list[Leaf], int]:
        """Return the structure of one observation, its leaves over time, and how many there are."""
        if self.finalized:
            leaves = _flat(data)
            return _bare(data), leaves, len(leaves[0])
        bare = [_bare(item) for item in data]
        if not data or any(each != bare[0] for each in bare):
            return None, [list(data)], len(data)  # of no one structure: items as they are
        flat = [_flat(item) for item in data]
        return bare[0], [list(values) for values in zip(*flat, strict=True)], len(data)

    def _set_length(self, n: int) -> None:
        # Positions, in the form that sends RLlib the way it takes with such observations.
        where: Any = np.arange(n) if self.finalized else range(n)
        if self.finalized and self._structure is not None:
            where = {"": where}
        self._where = InfiniteLookbackBuffer(where)
        self._where.lookback, self._where.finalized = self.lookback, self.finalized
        self._n = n

    def _at(self, where: Any) -> Any:
        """Return the observations at positions, in the form that RLlib has."""
        if not isinstance(where, (list, range)):
            return self._joined([leaf[where] for leaf in self._leaves])
        values = [
            list(leaf[np.array(where, np.int64)])
            if isinstance(leaf, Column)
            else [leaf[i] for i in where]
            for leaf in self._leaves
        ]
        return [self._joined(each) for each in zip(*values, strict=True)]

    def _joined(self, values: Any) -> Any:
        return values[0] if self._structure is None else tree.unflatten_as(self._structure, values)

    @property
    def dense(self) -> Any:
        """RLlib's own buffer with the same content."""
        buffer = InfiniteLookbackBuffer(self.data, self.lookback, self.space)
        buffer.lookback, buffer.finalized = self.lookback, self.finalized
        return buffer

    @property
    def nbytes(self) -> int:
        """Bytes of the dense equivalent."""
        return sum(_nbytes_of(leaf, "nbytes") for leaf in self._leaves)

    @property
    def nbytes_stored(self) -> int:
        """Bytes held beside the ring of frames."""
        return sum(_nbytes_of(leaf, "nbytes_stored") for leaf in self._leaves)

    # -- RLlib's interface -------------------------------------------------------------------

    def get(
        self,
        indices: Any = None,
        *,
        neg_index_as_lookback: bool = False,
        fill: Any = None,
        one_hot_discrete: bool = False,
        _ignore_last_ts: bool = False,
        _add_last_ts_value: Any = None,
    ) -> Any:
        """Return what RLlib's own buffer returns."""
        if (
            fill is not None
            or one_hot_discrete
            or _ignore_last_ts
            or _add_last_ts_value is not None
        ):
            return self.dense.get(
                indices,
                neg_index_as_lookback=neg_index_as_lookback,
                fill=fill,
                one_hot_discrete=one_hot_discrete,
                _ignore_last_ts=_ignore_last_ts,
                _add_last_ts_value=_add_last_ts_value,
            )
        where = self._where.get(indices, neg_index_as_lookback=neg_index_as_lookback)
        return self._at(where[""] if isinstance(where, dict) else where)

    def len_incl_lookback(self) -> int:
        """Return how many observations there are, lookback included."""
        return self._n

    def append(self, item: Any) -> None:
        """Add one observation."""
        if self.finalized:
            one = tree.map_structure(lambda value: np.asarray(value)[np.newaxis], item)
        else:
            one = [item]
        if not self._add(one):
            self._replace("append", item)

    def extend(self, items: Any) -> None:
        """Add observations."""
        if isinstance(items, list) == self.finalized:
            items = np.array(items) if self.finalized else list(items)
        if not self._add(items):
            self._replace("extend", items)

    def _add(self, data: Any) -> bool:
        """Add observations that are like those before; say whether they are."""
        if not self._n or not len(data):
            return False
        structure, leaves, n = self._split(data)
        if structure != self._structure:
            return False
        pairs = list(zip(self._leaves, leaves, strict=True))
        if not all(old.fits(new) for old, new in pairs if isinstance(old, Column)):
            return False
        kept: list[Leaf] = []
        for old, new in pairs:
            if isinstance(old, Column):
                old.append(np.asarray(new))
                kept.append(old)
            else:
                kept.append(np.concatenate([old, new], axis=0) if self.finalized else old + new)
        self._leaves = kept
        self._set_length(self._n + n)
        return True

    def _replace(self, operation: str, *args: Any, **kwargs: Any) -> None:
        """Have RLlib do something to a dense copy, and be like that."""
        dense = self.dense
        getattr(dense, operation)(*args, **kwargs)
        self.data = dense.data

    def pop(self, index: int = -1) -> None:
        """Remove one observation."""
        if index != -1 or not self._n:
            self._replace("pop", index)
            return
        for leaf in self._leaves:
            if isinstance(leaf, Column):
                leaf.pop()
        self._leaves = [leaf if isinstance(leaf, Column) else leaf[:-1] for leaf in self._leaves]
        self._set_length(self._n - 1)

    def concat(self, other: Any) -> None:
        """Add another buffer's observations, without its lookback."""
        if self.finalized:
            self._replace("concat", other)  # RLlib refuses
        self.extend(other.get())

    def finalize(self) -> None:
        """Turn lists into arrays."""
        if not self.finalized:
            leaves = [leaf if isinstance(leaf, Column) else batch(leaf) for leaf in self._leaves]
            self._leaves, self.finalized = leaves, True
            self._set_length(self._n)

    def set(
        self, new_data: Any, *, at_indices: Any = None, neg_index_as_lookback: bool = False
    ) -> None:
        """Overwrite observations."""
        self._replace(
            "set", new_data, at_indices=at_indices, neg_index_as_lookback=neg_index_as_lookback
        )

    def __add__(self, other: Any) -> Any:
        return self.dense + other

    def __reduce__(self) -> Any:
        return InfiniteLookbackBuffer.from_state, (self.get_state(),)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} observations after {self.lookback} of lookback)"

    # -- states of the whole replay buffer, in which frames are apart ---------------------------

    def get_parts(self) -> dict[str, Any]:
        """Return a copy of everything but frames."""
        return {
            "lookback": self.lookback,
            "finalized": self.finalized,
            "space": self.space,
            "structure": self._structure,
            "n": self._n,
            "leaves": [
                {"column": leaf.get_state()} if isinstance(leaf, Column) else {"plain": leaf[:]}
                for leaf in self._leaves
            ],
        }

    @classmethod
    def from_parts(
        cls, parts: dict[str, Any], frames: EpisodeFrames, number: int
    ) -> CompressedLookbackBuffer:
        """Return the buffer that parts were taken of, whose frames are there again."""
        buffer = object.__new__(cls)
        buffer._frames, buffer._number = frames, number
        buffer.lookback, buffer.finalized = parts["lookback"], parts["finalized"]
        buffer.space = parts["space"]
        buffer._structure = parts["structure"]
        buffer._leaves = []
        for leaf in parts["leaves"]:
            if "plain" in leaf:
                buffer._leaves.append(leaf["plain"][:])
            else:
                kind, places = leaf["column"]
                column = frames.column(kind, number)
                column.set_state(places)
                buffer._leaves.append(column)
        buffer._set_length(parts["n"])
        return buffer


def kinds_of(data: Any, finalized: bool) -> list[Kind]:
    """Return what kinds of images are in the data of an `InfiniteLookbackBuffer`."""
    one = data if finalized else data[0]
    leaves = _flat(one)
    paths = [path for path, _ in tree.flatten_with_path(_bare(one))]
    if finalized:
        pairs = [(path, leaf[:1]) for path, leaf in zip(paths, leaves, strict=True)]
    else:
        pairs = [(path, [leaf]) for path, leaf in zip(paths, leaves, strict=True)]
    return [(path, each[0].shape, each[0].dtype) for path, each in pairs if is_image(each)]


# RLlib takes a list for one observation, where dm-tree takes it for several.


def _bare(item: Any) -> Any:
    """The structure of an item: None for one without any."""
    return tree.map_structure(lambda _: None, item) if isinstance(item, (dict, tuple)) else None


def _flat(item: Any) -> list[Any]:
    """The leaves of an item."""
    return list(tree.flatten(item)) if isinstance(item, (dict, tuple)) else [item]


def _nbytes_of(leaf: Leaf, of_column: str) -> int:
    if isinstance(leaf, Column):
        return int(getattr(leaf, of_column))
    return (
        sum(np.asarray(each).nbytes + 8 for each in leaf)
        if isinstance(leaf, list)
        else int(leaf.nbytes)
    )
