"""Copies, files, checkpoints and replicas of a buffer."""

from __future__ import annotations

import contextlib
import copy as copying
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from compressarray import checkpoints
from compressarray.array import DiffFrameArray
from compressarray.array import files as array_files
from compressarray.checkpoints import CheckpointLog
from compressarray.errors import CorruptFrameError
from compressarray.format import container
from compressarray.format.messages import Items, Message
from compressarray.replay import files, resizing
from compressarray.replay.checks import (
    checked_generator,
)
from compressarray.replay.following import TakeStep
from compressarray.replay.observations import Observations
from compressarray.replay.outputs import NumpyOutput
from compressarray.replay.parts import BufferParts, Settings
from compressarray.replay.priorities import SumTree
from compressarray.replay.stacks import FrameIndices
from compressarray.sharing import SharedHandle, share
from compressarray.snapshots import Snapshot, array_of, copied, int_of, part_of
from compressarray.writing import Writer

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

B = TypeVar("B")
K = TypeVar("K", bound="Keeping")


class Keeping(BufferParts):
    """The methods of a buffer that copy, save, send and restore it."""

    def copy(self: K) -> K:
        """Return a buffer of its own with the same content, frames and random state included."""
        return copying.deepcopy(self)

    __copy__ = copy

    def __deepcopy__(self: K, memo: dict[int, Any]) -> K:
        twin = object.__new__(type(self))
        with self._lock:
            twin.__setstate__(copying.deepcopy(self._state(), memo))
        return twin

    # -- replicas, see `compressarray.feed` ----------------------------------------------------

    _kind = files.KIND
    _position: Any  # how far this has come, as a replica

    def _begin_feed(self) -> None:
        """No buffer is a view."""

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Hold all writes off."""
        with self._lock, contextlib.ExitStack() as locks:
            for entry in self._observations.images:
                locks.enter_context(entry.frames._frames.writer.lock)  # type: ignore[attr-defined]
            self._writer.settle()
            yield

    def _file_tree(self) -> Snapshot:
        """What a file holds, for who holds writes off until it is written."""
        return files.tree_of(self._state())

    def _mark(self) -> Any:
        return self._followed.mark(), self._drawing_state()

    def _drawing_state(self) -> tuple[bytes, tuple[float, ...]]:
        return files.bytes_of(self._rng), (self.gamma, self.beta, self.epsilon)

    def _put_changes(self, message: Message, mark: Any) -> bool:
        known, drawing = mark
        if not self._followed.put_changes(message, known):
            return False
        rng, numbers = self._drawing_state()
        message.put_bytes(b"" if rng == drawing[0] else rng)
        message.put_bytes(np.array([] if numbers == drawing[1] else numbers))
        message.put_ints([self._has_warned_of_no_reset])
        return True

    @classmethod
    def _with_own_priorities(cls: type[K], tree: Any, priorities: Mapping[str, float]) -> K:
        """Return the buffer of a file's tree, with priorities of which its writer knows nothing.

        Raises
        ------
        ValueError
            If it has priorities already.
        """
        state = files.state_from(tree, files.AS_SAVED, None)
        arguments = part_of(state, "arguments")
        if part_of(arguments, "prioritized"):
            raise ValueError(
                "this replica is to have priorities of its own, and the buffer that it follows has "
                "some, too: build that one with prioritized=False"
            )
        state["arguments"] = {**arguments, "prioritized": True, **priorities}
        state["priorities"] = None
        buffer = object.__new__(cls)
        buffer.__setstate__(state)
        buffer._has_own_priorities = True
        return buffer

    def _take_priorities_of(self, other: K) -> None:
        """Have those that another replica of the same buffer has for the same transitions."""
        with self._lock, other._lock:
            other._writer.settle()
            starts = self._windows.select(np.arange(len(self._windows)))
            cells, held = other._transitions.find(self._transitions.names(starts))
            top = other._tree.top
            leaves = np.full(len(starts), top)
            known = held & other._windows.holds(cells)
            leaves[known] = other._tree.leaves[cells[known]]
            self._tree.set_to(starts, leaves, top)

    def _follow(self, position: Any) -> None:
        for entry in self._observations.images:
            frames = entry.frames
            assert isinstance(frames, DiffFrameArray)
            frames._write_with(self._writer)
            frames._frames.follow(None)
        self._position = position

    def _end_following(self) -> None:
        self._position = None
        for entry in self._observations.images:
            if isinstance(entry, FrameIndices):  # whose frames others may write
                entry.frames._write_with(Writer(rank=1))

    def _came_to(self) -> Any:
        """How far this has come, as a replica; None if it is none."""
        self._writer.settle()
        return self._position

    def _take(self, items: Items, position: Any) -> None:
        with self._lock:
            self._writer.run(self._take_within, items, position)

    def _take_within(self, items: Items, position: Any) -> None:
        followed = self._followed
        if self._has_own_priorities:
            followed = followed._replace(tree=SumTree(0))
        step = TakeStep(self, followed, position)
        self._writer.steps.append(step)
        self._settle(step.read_rows(items, self._actions.refuse_foreign))
        step.read_rest(items)
        state, numbers = items.octets(), items.octets().view(np.float64)
        rng = files.rng_from(state) if len(state) else None
        if len(numbers) not in (0, 3) or not np.isfinite(numbers).all():
            raise CorruptFrameError("a message has no discount, or no exponents")
        has_warned = bool(items.number(0, 1))
        items.end()
        step.begin(rng, numbers.tolist(), has_warned)

    def _have_drawing(
        self, rng: np.random.Generator | None, numbers: list[float], has_warned: bool
    ) -> None:
        if rng is not None:
            self._draw_with(rng)
        if numbers:
            self.gamma = numbers[0]
            if not self._has_own_priorities:
                self.beta, self.epsilon = numbers[1:]
        self._has_warned_of_no_reset = has_warned

    def share(self) -> SharedHandle:
        """Let other processes of this machine draw from this buffer beside whoever adds to it.

        Returns
        -------
        SharedHandle
            Some hundred bytes, to be pickled and given to `compressarray.attach` there. The same
            one each time.

        Notes
        -----
        As for `DiffFrameArray.share`: each reader keeps a compressed copy of its own, so that
        nothing that happens to it can hold up or harm this process.

        Examples
        --------
        >>> from gymnasium.spaces import Box, Discrete
        >>> from compressarray import ReplayBuffer, attach
        >>> buffer = ReplayBuffer(1000, Box(0, 255, (4, 84, 84)), Discrete(6), seed=1)
        >>> with attach(buffer.share(), seed=7) as reader:  # elsewhere, from a pickled handle
        ...     reader.update()
        ...     len(reader.buffer)
        0
        """
        return share(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save to a file all that `load` brings back, frames that were given and seeds included.

        The file is there whole or not at all, and what was there before stays until then.
        Takes a few mebibytes beside the buffer, and a copy of all but the pixels. See
        ``docs/format.md``.

        Raises
        ------
        OSError
            If the directory is not there, or the disk is full.
        TypeError
            If the codec is an object that numcodecs could not build again.
        """
        with self._held():
            container.save(path, files.KIND, self._file_tree())

    @classmethod
    def load(
        cls: type[K],
        path: str | os.PathLike[str],
        *,
        device: Any = files.AS_SAVED,
        capacity: int | None = None,
        seed: int | np.random.Generator | None = None,
        mmap_mode: Literal["r"] | None = None,
    ) -> K:
        """Return the buffer that was saved; everything is checked, and nothing is run.

        Parameters
        ----------
        path : str or path
        device : str, torch.device or None, optional
            Where samples go; left out, as it was.
        capacity : int, optional
            Another one than it had: the newest transitions stay, under their names. That stores
            their frames anew, some ten microseconds each, and does not go with `mmap_mode`. Frames
            that were given are kept in an array of their own, which has room for `capacity`.
        seed : int or numpy.random.Generator, optional
            Left out, it goes on drawing as the saved one would have.
        mmap_mode : {None, "r"}
            "r": the compressed frames stay in the file, are read and checked where they are drawn,
            and nothing can be added. The file must not be cut off meanwhile; one that is saved over
            it leaves this buffer as it was.

        Raises
        ------
        OSError
            If the file cannot be read.
        CorruptFrameError
            A ValueError: if it is damaged, or none that this library saves.
        ValueError
            If it is of a newer version of the format, of something else than a buffer, or of a
            codec or device that is not there.
        """
        lazily = array_files.is_mapped(mmap_mode)
        if lazily and capacity is not None:
            raise ValueError(
                f"capacity={capacity} and mmap_mode='r' were both given: of another capacity, "
                "frames are stored anew. Leave one of them out"
            )
        tree = container.load(path, files.KIND, lazily=lazily)
        return cls._from_tree(tree, device, seed, capacity)

    @classmethod
    def _from_tree(
        cls: type[K],
        tree: Any,
        device: Any = files.AS_SAVED,
        seed: Any = None,
        capacity: Any = None,
    ) -> K:
        rng = None if seed is None else checked_generator(seed)
        state = files.state_from(tree, device, rng)
        buffer = object.__new__(cls)
        buffer.__setstate__(state if capacity is None else resizing.resized(state, capacity))
        return buffer

    def checkpoint(self, path: str | os.PathLike[str]) -> int:
        """Write a checkpoint: everything at first, and then only what has changed.

        Parameters
        ----------
        path : str or path
            A directory for the checkpoints of this buffer alone.

        Returns
        -------
        int
            The checkpoint's number, for `restore`: keep it beside the weights that belong to it.
            The last two numbers can be restored at any time, and perhaps some before.

        Raises
        ------
        OSError
            If the directory that `path` is to be made in is not there, the disk is full, or
            somebody else writes checkpoints there.
        ValueError
            If there are checkpoints that this buffer was not restored from.

        Notes
        -----
        What is there is synced before this returns, and stays whole if the process is killed at
        any moment. See ``docs/format.md``.

        Examples
        --------
        >>> import tempfile
        >>> from gymnasium.spaces import Box, Discrete
        >>> from compressarray import ReplayBuffer
        >>> buffer = ReplayBuffer(1000, Box(0, 255, (4, 84, 84)), Discrete(6), seed=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     number = buffer.checkpoint(f"{folder}/replay")
        ...     again = ReplayBuffer.restore(f"{folder}/replay", at=number)
        >>> number, again.capacity
        (1, 1000)
        """
        place = os.path.realpath(path)
        with self._lock:
            if self._log is None or self._log[0] != place:
                place_restored, number = self._restored
                self._log = None  # first: two of one path would keep each other out
                log = CheckpointLog(path, number if place_restored == place else 0)
                self._log = place, log
            log = self._log[1]
        return log.write(self)

    @classmethod
    def restore(
        cls: type[K],
        path: str | os.PathLike[str],
        at: int | None = None,
        *,
        device: Any = files.AS_SAVED,
        seed: int | np.random.Generator | None = None,
    ) -> K:
        """Return the buffer as it was at a checkpoint; everything is checked, and nothing is run.

        Parameters
        ----------
        path : str or path
            Where `checkpoint` wrote to.
        at : int, optional
            The number that it returned; left out, the newest one.
        device, seed
            As for `load`.

        Raises
        ------
        FileNotFoundError
            If there are no checkpoints.
        LookupError
            If there is none of that number.
        CorruptFrameError
            A ValueError: if they are damaged.
        ValueError
            If they are of a newer version of the format, or of something else than a buffer.
        """

        def begin(tree: Any) -> K:
            buffer = cls._from_tree(tree, device, None)
            buffer._follow(None)
            return buffer

        def go_on(buffer: K, changes: Any) -> None:
            buffer._take(Items(changes), None)

        buffer: K
        buffer, number = checkpoints.restore(path, files.KIND, at, begin, go_on)
        buffer._end_following()
        buffer._restored = os.path.realpath(path), number
        if seed is not None:
            buffer.seed(seed)
        return buffer

    def __getstate__(self) -> Snapshot:
        with self._lock:
            state = self._state()
            parts = ("transitions", "priorities", "resets", "observations")
            return {**state, **{name: copied(state[name]) for name in parts}}

    def _state(self) -> Snapshot:
        """What it takes to build this again: views, for who copies them or has the lock."""
        with self._lock:
            self._writer.settle()
            return {
                "arguments": {
                    "capacity": self.capacity,
                    "n_envs": self.n_envs,
                    "n_step": self.n_step,
                    "gamma": self.gamma,
                    "full_windows": self.full_windows,
                    "autoreset_mode": self.autoreset_mode,
                    "prioritized": self.prioritized,
                    "alpha": self.alpha,
                    "beta": self.beta,
                    "epsilon": self.epsilon,
                    "is_single": self._is_single,
                    **self._given,
                },
                "rng": self._rng,
                "output": self._output,
                "transitions": self._transitions.snapshot(),
                "priorities": self._tree.snapshot(),
                "resets": self._resets.snapshot(),
                "observations": self._observations.snapshot(self._transitions.oldest),
                "has_warned_of_no_reset": int(self._has_warned_of_no_reset),
            }

    def __setstate__(self, state: Snapshot) -> None:
        arguments = part_of(state, "arguments")
        held, transitions = part_of(state, "observations"), part_of(state, "transitions")
        # Nothing is allocated that is larger than what came.
        capacity = int_of(arguments, "capacity", 1)
        n_lanes = int_of(arguments, "n_envs", 1, capacity)
        if capacity % n_lanes:
            raise CorruptFrameError(f"stored capacity is {capacity}, not the same for each lane")
        array_of(transitions, "flags", np.uint8, (n_lanes, capacity // n_lanes), copy=False)
        frames = Observations.given_frames(held)
        self._rng = _part_of_type(state, "rng", np.random.Generator)
        self._output = _part_of_type(state, "output", NumpyOutput)
        try:
            self._build(Settings(**arguments), frames, snapshot=held)
        except CorruptFrameError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise CorruptFrameError(f"stored arguments are not a buffer's: {error}") from error
        self._transitions.restore(transitions)
        held_cells = np.flatnonzero(self._transitions.is_held)
        self._actions.refuse_foreign(self._transitions.actions[held_cells])
        held_ones = self._transitions
        self._windows.rebuild(held_ones.oldest, held_ones.counts, held_ones.flags)
        priorities = part_of(state, "priorities")
        if priorities is not None:  # else each start has got what a new one gets
            starts = held_cells[self._windows.holds(held_cells)]
            self._tree.restore(priorities, starts, np.finfo(float).max / capacity)
        self._resets.restore(part_of(state, "resets"))
        self._observations.restore(held, self._transitions)
        self._has_warned_of_no_reset = bool(int_of(state, "has_warned_of_no_reset", 0, 1))
        self._open()


def _part_of_type(snapshot: Snapshot, name: str, kind: type[B]) -> B:
    value = part_of(snapshot, name)
    if not isinstance(value, kind):
        raise CorruptFrameError(f"stored {name} is a {type(value).__name__}, no {kind.__name__}")
    return value
