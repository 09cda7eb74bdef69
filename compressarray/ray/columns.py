"""One entry of an episode's observations: frames in a ring, timestep by timestep."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.planes import Planes
from compressarray.ray.lanes import FrameLanes, Places

AnyArray = npt.NDArray[Any]
Path = tuple[Any, ...]
Kind = tuple[Path, tuple[int, ...], np.dtype[Any]]


class Column:
    """Images of one shape and dtype, which index like their dense array's first axis.

    Parameters
    ----------
    kind : Kind
    lanes : FrameLanes
        Where the frames are.
    number : int
        Of the episode.
    """

    __slots__ = ("_length", "_places", "kind", "lanes", "number")

    def __init__(self, kind: Kind, lanes: FrameLanes, number: int) -> None:
        self.kind, self.lanes, self.number = kind, lanes, number
        self._length = 0
        back = np.empty((0, lanes.planes.n_frames), lanes.back_dtype)
        self._places = Places(np.empty(0, np.int64), back)

    def __len__(self) -> int:
        return self._length

    def fits(self, observations: Any) -> bool:
        """Whether these could follow: an array ``(T, *shape)``, or a list of T arrays."""
        _, shape, dtype = self.kind
        return (
            is_image(observations)
            and observations[0].shape == shape
            and observations[0].dtype == dtype
        )

    def append(self, observations: AnyArray) -> None:
        """Store observations after the last one."""
        new = self.lanes.put(self, self.number, observations)
        end = self._length + len(new.newest)
        if end > len(self._places.newest):
            room = end if not self._length else end + end // 8 + 4
            grown = (np.empty((room, *each.shape[1:]), each.dtype) for each in self._places)
            places = Places(*grown)
            for old, longer in zip(self._places, places, strict=True):
                longer[: self._length] = old[: self._length]
            self._places = places
        for fresh, each in zip(new, self._places, strict=True):
            each[self._length : end] = fresh
        self._length = end  # last: until now, nothing has changed

    def pop(self) -> None:
        """Forget the last one. Its frames stay: the next one to come may be the same."""
        self._length -= 1

    def __getitem__(self, key: Any) -> AnyArray:
        places = Places(*(each[: self._length][key] for each in self._places))
        return self.lanes.read(places)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense equivalent."""
        _, shape, dtype = self.kind
        return self._length * prod(shape) * dtype.itemsize

    @property
    def nbytes_stored(self) -> int:
        """Bytes held here; frames are the lanes'."""
        return 128 + sum(each.nbytes for each in self._places)

    def get_state(self) -> tuple[Kind, Places]:
        """Return a copy."""
        return self.kind, Places(*(each[: self._length].copy() for each in self._places))

    def set_state(self, places: Places) -> None:
        """Be as `get_state` found it."""
        self._places = Places(*(each.copy() for each in places))
        self._length = len(self._places.newest)
        self.lanes.hold(self, self.number)


class EpisodeFrames:
    """The images of all episodes: lanes for each kind of them, made when the first one comes.

    Parameters
    ----------
    n_rows, n_lanes, codec
        As `FrameLanes` takes them.
    """

    def __init__(self, n_rows: int, n_lanes: int, codec: Any) -> None:
        self.n_rows, self.n_lanes, self.codec = n_rows, n_lanes, codec
        self._lanes: dict[Kind, FrameLanes] = {}

    def lanes_of(self, kind: Kind) -> FrameLanes:
        """Return the lanes of images of a kind; raises ValueError if the codec cannot have them."""
        if kind not in self._lanes:
            _, shape, dtype = kind
            planes = Planes.of(shape)
            assert planes is not None
            self._lanes[kind] = FrameLanes(planes, dtype, self.n_rows, self.n_lanes, self.codec)
        return self._lanes[kind]

    def make_lanes(self, kinds: list[Kind]) -> None:
        """Be ready for images of some kinds, or raise."""
        for kind in kinds:
            self.lanes_of(kind)

    def column(self, kind: Kind, number: int) -> Column:
        """Return an empty column of an episode."""
        return Column(kind, self.lanes_of(kind), number)

    def release(self, number: int) -> None:
        """Note that an episode has ended."""
        for lanes in self._lanes.values():
            lanes.release(number)

    def let_go(self, first_number: int) -> None:
        """Let go of the frames that only episodes before a number have."""
        for lanes in self._lanes.values():
            lanes.let_go(first_number)

    @property
    def nbytes_stored(self) -> int:
        """Bytes held."""
        return sum(lanes.nbytes_stored for lanes in self._lanes.values())

    def get_state(self) -> dict[Kind, dict[str, Any]]:
        """Return a copy."""
        return {kind: lanes.get_state() for kind, lanes in self._lanes.items()}

    def set_state(self, state: dict[Kind, dict[str, Any]]) -> None:
        """Be as `get_state` found it."""
        self._lanes = {}
        for kind, each in state.items():
            self.lanes_of(kind).set_state(each)


def is_image(leaf: Any) -> bool:
    """Whether observations over time, an array or a list, are images that are worth compressing.

    They are of one shape, of two axes or more, and of one dtype.
    """
    if not len(leaf):
        return False
    each = leaf if isinstance(leaf, list) else leaf[:1]
    first = each[0]
    return (
        all(type(one) is np.ndarray for one in each)
        and not first.dtype.hasobject
        and Planes.of(first.shape) is not None
        and all(one.shape == first.shape and one.dtype == first.dtype for one in each)
    )
