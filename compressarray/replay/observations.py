"""All entries of the observations together, and the frame arrays that they lie in."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.array import DiffFrameArray
from compressarray.errors import CorruptFrameError
from compressarray.format.messages import Items, Message
from compressarray.replay.layout import Layout, as_array, read_layouts
from compressarray.replay.misuse import BreakWatch
from compressarray.replay.outputs import NumpyOutput
from compressarray.replay.plain import PlainRing
from compressarray.replay.reading import PairsReader, Reader, SequenceReader, StepReader, read_entry
from compressarray.replay.stack_kernels import join
from compressarray.replay.stacks import FrameIndices, GivenStacks, NewestFrames, Stacks
from compressarray.replay.transitions import Transitions
from compressarray.snapshots import Snapshot, int_of, part_of
from compressarray.writing import Writer

AnyArray = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]


class Observations:
    """The observations of a buffer: one `Stacks` for each entry of a Dict, or a single one.

    Parameters
    ----------
    space : Box, Discrete, or Dict of such
    n_lanes, n_slots : int
        As in `Transitions`.
    frames, stack_size, stack_axis, frame_channels, padding_type, codec, gop_length
        As for `ReplayBuffer`.
    snapshot : dict, optional
        What will be restored. The entries are built over its frames, and over none of their own.
    """

    def __init__(
        self,
        space: Any,
        n_lanes: int,
        n_slots: int,
        *,
        frames: DiffFrameArray | None,
        stack_size: int | None,
        stack_axis: int | None,
        frame_channels: int,
        padding_type: Any,
        codec: Any,
        gop_length: int | None,
        snapshot: Snapshot | None = None,
    ) -> None:
        self._n_lanes = n_lanes
        self._n_slots = n_slots
        self._is_dict = hasattr(space, "spaces")
        layouts = read_layouts(
            space,
            frames=frames,
            stack_size=stack_size,
            stack_axis=stack_axis,
            frame_channels=frame_channels,
        )
        _refuse_ignored(layouts, frames, padding_type, codec, gop_length)
        self._breaks = BreakWatch(n_lanes)
        self.entries: list[Stacks] = []
        given = [None] * len(layouts) if snapshot is None else _parts_of(snapshot, len(layouts))
        for layout, held in zip(layouts, given, strict=True):
            if layout.feed == "indices":
                if held is not None and part_of(held, "frames") is not frames:
                    raise CorruptFrameError("stored frames that were given are another entry's")
                assert frames is not None
                _check_given(frames, layout, n_lanes, n_slots)
                padding = _checked_padding(padding_type, layout, None)
                self.entries.append(FrameIndices(layout, frames, n_lanes, n_slots, padding))
            elif not layout.is_image:
                ring = PlainRing(n_lanes, layout.frame_shape, layout.frame_dtype)
                if held is not None:
                    ring.restore(part_of(held, "frames"))
                self.entries.append(GivenStacks(layout, ring, n_lanes, n_slots))
            else:
                own = self._own_frames(layout, codec, gop_length, held)
                if layout.feed == "newest":
                    entry = space if layout.key is None else space.spaces[layout.key]
                    padding = _checked_padding(padding_type, layout, entry)
                    self.entries.append(NewestFrames(layout, own, n_lanes, n_slots, padding))
                else:
                    self.entries.append(GivenStacks(layout, own, n_lanes, n_slots))

    def _own_frames(
        self, layout: Layout, codec: Any, gop_length: int | None, held: Snapshot | None
    ) -> DiffFrameArray:
        shape = (rows_of_frames(layout, self._n_slots), self._n_lanes, *layout.frame_shape)
        if held is not None:
            return _checked_frames(part_of(held, "frames"), shape, layout)
        return DiffFrameArray(
            shape,
            layout.frame_dtype,
            frame_ndim=len(layout.frame_shape),
            codec=codec,
            stack_axis=None,
            gop_length=gop_length,
        )

    # -- adding ------------------------------------------------------------------------------

    def checked(self, observations: Any, what: str, n: int) -> list[AnyArray]:
        """Return the entries of ``n`` observations, or raise for what does not fit."""
        return [
            entry.layout.checked(_entry(observations, entry.layout, what), n, what)
            for entry in self.entries
        ]

    def refuse_one_memory(self, before: list[AnyArray], after: list[AnyArray]) -> None:
        """Refuse checked observations that lie in the memory of their successors."""
        for entry, obs, successor in zip(self.entries, before, after, strict=True):
            if _are_one_memory(obs, successor):
                name, successors = entry.layout.name_in("obs"), entry.layout.name_in("next_obs")
                raise ValueError(
                    f"{name} and {successors} are one memory: whatever {name} was, the environment "
                    "has written the next observation over it. Build the vector environment with "
                    "copy=True, or step it after obs = obs.copy()"
                )

    def repeat(self, before: list[AnyArray], lanes: Int64s) -> Bools:
        """Say of some lanes whether ``before`` is what their last step led to.

        Where there are images they decide it: what else is in a Dict may not be known before it is
        the turn of the next step.
        """
        pairs = list(zip(self.entries, before, strict=True))
        deciding = [pair for pair in pairs if pair[0].layout.is_image] or pairs
        repeats = np.ones(len(lanes), np.bool_)
        for entry, obs in deciding:
            repeats &= entry.repeats(obs, lanes)
        return repeats

    def with_final(
        self, after: list[AnyArray], replaced: Bools, info: Mapping[str, Any]
    ) -> list[AnyArray]:
        """Put episodes' last observations in the place of what resets showed.

        Parameters
        ----------
        after : list of ndarray
            What the step returned; not written to.
        replaced : ndarray, (n_lanes,) bool
            Lanes of which it is a reset's.
        info : mapping
            With ``final_obs``: an object array, as Gymnasium gives it, or a dense one.
        """
        final: Any = info.get("final_obs")
        there = _have_final(info, self._n_lanes)
        missing = np.flatnonzero(replaced & ~there)
        if len(missing):
            raise ValueError(
                f"lane {missing[0]} ended, and info has no final_obs for it: under "
                "autoreset_mode='same_step', next_obs is the next episode's first observation, "
                "and the last one is in info. Pass the step's info, or the environment's "
                "autoreset_mode ('disabled' if you call reset yourself); where a lost life ends "
                "episodes without a reset, pass was_reset"
            )
        with_final = []
        for entry, values in zip(self.entries, after, strict=True):
            filled = values.copy()
            for lane in np.flatnonzero(replaced).tolist():
                row = _final_of(final, lane, self._n_lanes, entry.layout)
                filled[lane] = entry.layout.checked_one(row, f"final_obs of lane {lane}")
            with_final.append(filled)
        return with_final

    def plan(
        self,
        before: list[AnyArray],
        after: list[AnyArray],
        live: Bools,
        begins: Bools,
        transitions: Transitions,
        remarks: list[str],
    ) -> bool:
        """Find out how observations go on; nothing that lasts is written.

        Parameters
        ----------
        before, after : list of ndarray
            Checked observations and successors, in the order of ``entries``.
        live : ndarray, (n_lanes,) bool
            Lanes that add a transition.
        begins : ndarray, (n_lanes,) bool
            Lanes that were reset; those are added whose observations do not go on.
        transitions : Transitions
            Those before the step.
        remarks : list
            What the user should be told is appended to it.

        Returns
        -------
        bool
            Whether an episode begins in one of the live lanes, and nobody has said that its last
            one ended.
        """
        n_begin = n_break = 0
        for entry, obs, successor in zip(self.entries, before, after, strict=True):
            entry.plan_step(obs, successor, live)
            n_begin, n_break, n_unknown = join(
                live, transitions.running, entry.plan, entry.lanes, begins
            )
            if n_unknown:
                lanes = np.flatnonzero(live & ~entry.lanes["known"])
                begins[lanes[~entry.repeats(obs, lanes)]] = True
                n_begin = int(np.count_nonzero(begins))
                n_break = int(np.count_nonzero(begins & live & transitions.running))
            remark = entry.remark(obs, successor, live)
            if remark is not None:
                remarks.append(remark)
        if n_begin:
            for entry in self.entries:
                entry.begin(begins)
        if n_break:
            same = {entry.layout.key: entry.plan["same"] for entry in self.entries}
            broken = live & begins & transitions.running
            remark = self._breaks.see(broken, transitions.counts, same)
            if remark is not None:
                remarks.append(remark)
        return n_break > 0

    @property
    def same(self) -> Bools:
        """Lanes whose observation `plan` found to be what the last step led to."""
        each = [entry.plan["same"] for entry in self.entries]
        return np.logical_and.reduce(each)  # type: ignore[no-any-return]

    def store(self, before: list[AnyArray], after: list[AnyArray]) -> None:
        """Store the frames that are new."""
        for entry, obs, successor in zip(self.entries, before, after, strict=True):
            entry.store(obs, successor)

    def write_with(self, writer: Writer) -> None:
        """Make the writing of frames a part of what a writer does."""
        for entry in self.entries:
            if not isinstance(entry, FrameIndices):
                entry.frames._write_with(writer)

    def commit_again(self, live: Bools, counts: Int64s) -> None:
        """Write it down after that was cut off; see `Stacks.commit_again`."""
        for entry in self.entries:
            entry.commit_again(live, counts)

    @property
    def standing(self) -> list[tuple[bytes, int]]:
        """Where the lanes of each entry stand, and in which stream; copies, to be restored."""
        # bytes: to copy structures field by field takes five times as long
        return [(entry.lanes.tobytes(), entry.stream) for entry in self.entries]

    @standing.setter
    def standing(self, standing: list[tuple[bytes, int]]) -> None:
        for entry, (lanes, stream) in zip(self.entries, standing, strict=True):
            entry.lanes[:] = np.frombuffer(lanes, entry.lanes.dtype)
            entry.stream = stream

    def commit(self, after: list[AnyArray], live: Bools, counts: Int64s) -> None:
        """Write down what was stored; see `Stacks.commit`."""
        for entry, successor in zip(self.entries, after, strict=True):
            entry.commit(successor, live, counts)

    def discard(self, counts: Int64s, since: Int64s) -> None:
        """Let go of the frames that no transition needs; see `Stacks.let_go`."""
        for entry in self.entries:
            entry.let_go(counts, since)

    def clear(self) -> None:
        """Forget all stacks, and the frames that were stored here."""
        for entry in self.entries:
            entry.clear()

    @property
    def are_given(self) -> bool:
        """Whether frames are appended by somebody else, an `IndexedFrameStack`."""
        return any(isinstance(entry, FrameIndices) for entry in self.entries)

    @property
    def are_mapped(self) -> bool:
        """Whether any frames lie in a file, and nothing may be added."""
        return any(
            isinstance(entry.frames, DiffFrameArray) and entry.frames._frames.store.is_mapped
            for entry in self.entries
        )

    # -- sampling ----------------------------------------------------------------------------

    def step_readers(
        self, cells: Int64s, last: Int64s, n_step: int, *, as_stacks: bool = False
    ) -> list[Reader]:
        """Return readers of windows of steps; see `StepReader`."""
        apart = as_stacks or n_step > 1
        return [StepReader(entry, cells, last, apart) for entry in self.entries]

    def sequence_readers(
        self, cells: Int64s, *, goes_on: bool = True, as_stacks: bool = False
    ) -> list[Reader]:
        """Return readers of runs of steps, in which each step goes on from the one before or not.

        See `SequenceReader` and `PairsReader`.
        """
        if not goes_on:
            return [PairsReader(entry, cells) for entry in self.entries]
        return [SequenceReader(entry, cells, as_stacks) for entry in self.entries]

    def memories(self, observations: Any, output: NumpyOutput) -> dict[str | None, Any]:
        """Return the memory that observations which `read` returned are views of, by entry."""
        found = {}
        for entry in self.entries:
            key = entry.layout.key
            given = _entry(observations, entry.layout, "out.obs")
            found[key] = output.base_of(given)
            if found[key] is None:
                raise ValueError(
                    f"out.obs is {type(given).__name__} that owns its memory; out must be a batch "
                    "as sample() returned it"
                )
        return found

    def read(
        self,
        readers: Sequence[Sequence[Reader]],
        output: NumpyOutput,
        kept: dict[str | None, Any] | None = None,
    ) -> tuple[Any, Any]:
        """Decode observations and successors; Dict entries in dicts.

        Parameters
        ----------
        readers : sequence of sequences of Reader
            Of each buffer whose transitions stand in the batch those of its entries: this one's,
            or those of several that are alike.
        output : NumpyOutput
        kept : dict, optional
            `memories` to be used again where they fit.
        """
        found = {}
        for of_entry in zip(*readers, strict=True):
            key = of_entry[0].layout.key
            found[key] = read_entry(of_entry, output, None if kept is None else kept[key])
        if not self._is_dict:
            return found[None]
        return (
            {key: obs for key, (obs, _) in found.items()},
            {key: after for key, (_, after) in found.items()},
        )

    # -- pickling ----------------------------------------------------------------------------

    def snapshot(self, since: Int64s) -> Snapshot:
        """Show what cannot be worked out from the rest, as views; frame arrays as they are.

        Parameters
        ----------
        since : ndarray, (n_lanes,) int64
            The oldest transition that each lane holds.
        """
        indexed = enumerate(self.entries)
        return {
            "breaks": self._breaks.snapshot(),
            # which of the entries has frames that were given
            "given": next((i for i, entry in indexed if isinstance(entry, FrameIndices)), -1),
            "entries": tuple(
                {
                    "frames": entry.frames.snapshot()
                    if isinstance(entry.frames, PlainRing)
                    else entry.frames,
                    "stacks": entry.snapshot(since),
                }
                for entry in self.entries
            ),
        }

    @staticmethod
    def given_frames(snapshot: Snapshot) -> DiffFrameArray | None:
        """Return the ``frames`` that the observations of a snapshot were given, if any."""
        entries = _parts_of(snapshot, None)
        place = int_of(snapshot, "given", -1, len(entries) - 1)
        if place < 0:
            return None
        frames = part_of(entries[place], "frames")
        if not isinstance(frames, DiffFrameArray):
            raise CorruptFrameError(f"stored frames are a {type(frames).__name__}, no frame array")
        return frames

    def restore(self, snapshot: Snapshot, transitions: Transitions) -> None:
        """Become what a snapshot was taken of; these observations were built over its frames.

        Parameters
        ----------
        snapshot : dict
        transitions : Transitions
            Restored.

        Raises
        ------
        CorruptFrameError
            If the snapshot is not one of such observations.
        """
        self._breaks.restore(part_of(snapshot, "breaks"))
        for entry, held in zip(self.entries, _parts_of(snapshot, len(self.entries)), strict=True):
            entry.restore(
                part_of(held, "stacks"), transitions.oldest, transitions.counts, transitions.flags
            )

    # -- replicas, see `compressarray.replay.following` ----------------------------------------

    def put_watches(self, message: Message) -> None:
        """Add to a message what was seen of misuse."""
        self._breaks.put(message)
        for entry in self.entries:
            entry.put_watch(message)

    def read_watches(self, items: Items) -> Any:
        """Take what `put_watches` has added, for `have_watches`."""
        return self._breaks.read(items), [entry.read_watch(items) for entry in self.entries]

    def have_watches(self, given: Any) -> None:
        """Have seen it."""
        breaks, watches = given
        self._breaks.have(breaks)
        for entry, watch in zip(self.entries, watches, strict=True):
            entry.have_watch(watch)

    # -- accounts ----------------------------------------------------------------------------

    @property
    def images(self) -> list[Stacks]:
        """The entries whose frames are compressed."""
        return [entry for entry in self.entries if entry.layout.is_image]

    @property
    def n_frames(self) -> int:
        """Frames of images that are held."""
        return sum(
            int(entry.frames.stats()["frames_held"])
            for entry in self.entries
            if isinstance(entry.frames, DiffFrameArray)
        )

    @property
    def dense_bytes(self) -> int:
        """Bytes of one observation as it is sampled."""
        return sum(entry.layout.stack_size * entry.layout.frame_bytes for entry in self.entries)

    @property
    def nbytes_by_part(self) -> dict[str, int]:
        """Bytes held."""
        vectors = [entry for entry in self.entries if not entry.layout.is_image]
        return {
            "frames": sum(entry.frames.nbytes_stored for entry in self.images),
            "vectors": sum(entry.frames.nbytes_stored for entry in vectors),
            "stacks": sum(entry.nbytes for entry in self.entries) + self._breaks.nbytes,
        }


class Claims:
    """Which frame arrays belong to whom.

    A buffer lets go of frames as its own transitions go, so that an array can serve one only.
    """

    def __init__(self) -> None:
        # By id: arrays compare element by element, and so have no hash.
        self._owners: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def claim(self, observations: Observations) -> None:
        """Note whose the frames are, for as long as ``observations`` live; refuse what is taken."""
        for entry in observations.entries:
            owner = self._owners.get(id(entry.frames))
            if owner is not None and any(each.frames is entry.frames for each in owner.entries):
                raise ValueError(
                    "frames belong to another ReplayBuffer already, which lets go of them as its "
                    "own transitions go: give each buffer its own IndexedFrameStack"
                )
        for entry in observations.entries:
            self._owners[id(entry.frames)] = observations


def _entry(observations: Any, layout: Layout, what: str) -> Any:
    if layout.key is None:
        return observations
    try:
        return observations[layout.key]
    except (KeyError, TypeError, IndexError):
        raise ValueError(
            f"{what} has no entry {layout.key!r}; observation_space is a Dict with one"
        ) from None


def _have_final(info: Mapping[str, Any], n_lanes: int) -> Bools:
    """Return the lanes for which ``info`` has a last observation."""
    if info.get("final_obs") is None:
        return np.zeros(n_lanes, np.bool_)
    if "_final_obs" not in info:  # ALE gives no mask
        return np.ones(n_lanes, np.bool_)
    mask = as_array("info['_final_obs']", info["_final_obs"])
    if mask.shape != (n_lanes,) or mask.dtype != np.bool_:
        raise ValueError(
            f"info['_final_obs'] has shape {mask.shape} and dtype {mask.dtype}; {n_lanes} lanes "
            f"need {(n_lanes,)} and bool"
        )
    return mask


def _final_of(final: Any, lane: int, n_lanes: int, layout: Layout) -> Any:
    """Return a lane's last observation: of one object for each lane, or of a dense array."""
    is_listed = isinstance(final, (list, tuple)) or (
        isinstance(final, np.ndarray) and final.dtype.kind == "O"
    )
    rows = final if is_listed else _entry(final, layout, "final_obs")
    n_rows = len(rows) if is_listed else (np.shape(rows) or (0,))[0]
    if n_rows != n_lanes:
        raise ValueError(
            f"{layout.name_in('final_obs')} has {n_rows} rows; it must have one for each of "
            f"{n_lanes} lanes"
        )
    return _entry(rows[lane], layout, "final_obs") if is_listed else rows[lane]


def _are_one_memory(one: AnyArray, other: AnyArray) -> bool:
    """Whether two arrays of one shape are the same bytes of memory."""
    if not np.may_share_memory(one, other):  # a fraction of what comparing addresses takes
        return False
    addresses = [each.__array_interface__["data"][0] for each in (one, other)]
    return addresses[0] == addresses[1] and one.strides == other.strides and one.size > 0


def _refuse_ignored(
    layouts: list[Layout],
    frames: DiffFrameArray | None,
    padding_type: Any,
    codec: Any,
    gop_length: int | None,
) -> None:
    """Refuse arguments that would change nothing, since whoever gave them expects something."""
    feeds = {layout.feed for layout in layouts if layout.is_image}
    if padding_type is not None and not feeds & {"newest", "indices"}:
        raise ValueError(
            f"padding_type={padding_type!r} is of stacks that are made here, with stack_size; "
            "observations of this space are kept with the padding that they have. Leave it out"
        )
    if feeds & {"newest", "stacks"}:
        return  # frames of this buffer's own
    name = codec.get("id") if isinstance(codec, Mapping) else getattr(codec, "codec_id", codec)
    if frames is not None and (gop_length is not None or name not in ("delta", frames.codec)):
        raise ValueError(
            f"codec={codec!r} and gop_length={gop_length} do not change how the frames that were "
            f"given are stored, by codec={frames.codec!r}: build their IndexedFrameStack so, and "
            "leave them out here"
        )
    if frames is None and (gop_length is not None or name != "delta"):
        raise ValueError(
            f"codec={codec!r} and gop_length={gop_length} are of images, and observation_space has "
            "none (entries of two axes or more, or with stack_size): leave them out"
        )


def _checked_padding(padding_type: Any, layout: Layout, space: Any) -> Any:
    """Return the frame that stands for ``padding_type``, or "reset"; "any" for frame indices.

    Parameters
    ----------
    padding_type : str, frame or None
    layout : Layout
        Of newest frames, or of indices.
    space : Box or None
        Of one frame, where it is known.
    """
    if padding_type is None:
        return "any" if layout.feed == "indices" else "reset"
    if isinstance(padding_type, str):
        if padding_type == "reset":
            return "reset"
        if padding_type == "zero":
            zeros = np.zeros(layout.frame_shape, layout.frame_dtype)
            if not hasattr(space, "low"):
                return zeros
            return np.clip(zeros, space.low, space.high).astype(layout.frame_dtype)
    frame = as_array("padding_type", padding_type)
    if frame.shape != layout.frame_shape or frame.dtype != layout.frame_dtype:
        raise ValueError(
            f"padding_type={padding_type!r} must be 'reset', 'zero' or a frame of shape "
            f"{layout.frame_shape} and dtype {layout.frame_dtype}"
        )
    return frame


def _parts_of(snapshot: Snapshot, n: int | None) -> tuple[Any, ...]:
    """Return what a snapshot holds of ``n`` entries, or of all that there are."""
    entries = part_of(snapshot, "entries")
    if not isinstance(entries, tuple) or (n is not None and len(entries) != n):
        raise CorruptFrameError(f"stored entries are not those of {n} in the observation space")
    return entries


def _checked_frames(frames: Any, shape: tuple[int, ...], layout: Layout) -> DiffFrameArray:
    """Return stored frames that are what a buffer would build, or raise `CorruptFrameError`."""
    if not isinstance(frames, DiffFrameArray):
        raise CorruptFrameError(f"stored frames are a {type(frames).__name__}, no frame array")
    found = (frames.shape, frames.dtype, frames.frame_ndim, frames.stack_axis)
    wanted = (shape, layout.frame_dtype, len(layout.frame_shape), None)
    if found != wanted:
        raise CorruptFrameError(
            f"stored frames have shape, dtype, frame_ndim and stack_axis {found}, not {wanted}"
        )
    return frames


def rows_of_frames(layout: Layout, n_slots: int) -> int:
    """Return how many frames of a lane so many transitions may need at once."""
    # Episodes of one step store two observations a transition, and a wrapper whose stacks never go
    # on has each of them stored whole. Rows are but address space until they are written. The next
    # step's frames come before the oldest ones go, hence two more.
    whole = 1 if layout.feed == "newest" else layout.stack_size
    return 2 * whole * (n_slots + 1) + layout.stack_size


def rows_of_given_frames(layout: Layout, n_slots: int) -> int:
    """Return the same of frames that an `IndexedFrameStack` stores."""
    return 2 * n_slots + layout.stack_size


def _check_given(frames: DiffFrameArray, layout: Layout, n_lanes: int, n_slots: int) -> None:
    if frames.n_lanes != n_lanes:
        raise ValueError(
            f"frames has {frames.n_lanes} lanes and n_envs={n_lanes}: pass the frames of the "
            "wrapper around these very environments"
        )
    needed = rows_of_given_frames(layout, n_slots)
    if frames.shape[0] < needed:
        raise ValueError(
            f"frames keeps {frames.shape[0]} frames a lane, and {n_slots} transitions may need "
            f"{needed}: build the wrapper with capacity={needed} (2 * transitions + stack_size). "
            "That is address space; frames that no transition needs are let go"
        )
