"""`ReplayBuffer`: transitions for off-policy learning, each frame stored once."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from compressarray.array import DiffFrameArray
from compressarray.replay.adding import Adding
from compressarray.replay.checks import (
    checked_generator,
    checked_mode,
)
from compressarray.replay.footprint import expected_part, memory_bytes
from compressarray.replay.keeping import Keeping
from compressarray.replay.naming import Naming
from compressarray.replay.outputs import make_output
from compressarray.replay.parts import Settings
from compressarray.replay.sequences import Sequences

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

B = TypeVar("B")

_ALPHA, _BETA, _EPSILON = 0.6, 0.4, 1e-6


class ReplayBuffer(Adding, Naming, Sequences, Keeping):
    """A ring of the newest transitions, whose frames are stored once, compressed, without loss.

    Parameters
    ----------
    capacity : int
        Transitions, over all lanes; each keeps ``capacity // n_envs``.
    observation_space : Box, Discrete, or Dict of such
        Of one environment, as `add` is given observations: stacks of frames, the newest frame
        (with `stack_size`), or frame indices (with `frames`). Entries of a Dict with fewer than
        two axes, and a Box with one, are stored plain.
    action_space : Discrete, Box, MultiDiscrete or MultiBinary
        Of one environment.
    n_envs : int or None
        Lanes: environments that are stepped together. None: one environment that is no vector, and
        `add` takes what its `step` gives, without a leading axis.
    frames : DiffFrameArray, optional
        ``env.frames`` of an `IndexedFrameStack`; then observations are frame indices. It belongs
        to this buffer alone, which lets go of frames that no transition needs any more.
    stack_size : int, optional
        Given: `add` gets newest frames, and stacks of so many are sampled.
    stack_axis : int or None, default 0
        Of observations that are stacks (of three axes or more), the one that frames are stacked
        along; None if they are single frames.
    frame_channels : int, default 1
        Planes of a frame along `stack_axis`: 3 where RGB frames are concatenated.
    padding_type : {"reset", "zero"} or frame, optional
        With `stack_size`, what stands before an episode's first frame: that frame repeated (the
        default), the frame of the space that is closest to zero, or a given one. With `frames` the
        wrapper pads, and what is given here is compared with it. ALE's own stacks need "zero".
    codec, gop_length
        How frames are stored, see `DiffFrameArray`.
    n_step : int, default 1
        Steps whose rewards are summed. An episode's end cuts them short; until then the newest
        ``n_step - 1`` transitions cannot be drawn.
    gamma : float
        Discount per step. May be set later, and counts for what is drawn then.
    full_windows : bool, default False
        Draw only what has `n_step` steps (DrQ-v2's rule).
    autoreset_mode : {"same_step", "next_step", "disabled"} or gymnasium.vector.AutoresetMode
        What the vector environment does where an episode ends; see `add`. "same_step" if nothing is
        said, and "disabled" with ``n_envs=None``.
    prioritized : bool
        Draw in proportion to priorities.
    alpha, beta, epsilon : float
        ``(priority + epsilon) ** alpha`` is what drawing is in proportion to; weights are
        ``(n * probability) ** -beta``, divided by the batch's largest. `beta` and `epsilon` may
        be set later.
    fields : mapping of str to space, optional
        What else is kept of each transition, such as
        ``{"log_prob": Box(-np.inf, 0, (), np.float32)}``: `add` is given it, and batches have it.
        Stored as it is, in the dtypes of the spaces.
    device : str or torch.device, optional
        Given: samples are tensors there. May be set later.
    decode_on : str, optional
        With a GPU of NVIDIA's as `device`, where pixels are decoded: ``"device"``, as without this,
        from a replica of the compressed frames in its memory (if that is too small, on the CPU
        after all, with a warning); ``"cpu"``, to copy them there. The batches are the same.
    seed : int or numpy.random.Generator, optional

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit, or would change nothing; the message says what does.
    MemoryError
        If there is not enough address space for `capacity`.
    AttributeError
        If an attribute is set that can no longer change, such as `n_step`.

    Warns
    -----
    UserWarning
        If the dense equivalent would not fit in memory: with its bytes, and those expected here.
        If `alpha`, `beta` or `epsilon` are given without priorities. `add` warns, too.

    Notes
    -----
    A transition may be drawn if it is among the newest ``capacity // n_envs`` of its lane and its
    window of steps is complete: nothing else counts, least of all how pixels are stored.

    An observation that is not the one that the lane's last step led to begins another episode:
    nothing is drawn across. The step before it counts as truncated then, though not as such in
    sequences' ``truncated``.

    What is sampled is bit for bit what was added, whatever a wrapper did: a stack that is not
    its predecessor moved on by one frame is stored whole.

    Beside frames, a transition takes four bytes with up to 256 discrete actions, three more once
    more than 256 different rewards have come, and less than one more for each length of sequences
    that was asked for lately; priorities take nine. Methods may be called from several threads;
    pickle while none of them adds. What a pickle brings is checked, and `CorruptFrameError` raised
    where no buffer has pickled it.

    Examples
    --------
    >>> import numpy as np
    >>> from gymnasium.spaces import Box, Discrete
    >>> from compressarray import ReplayBuffer
    >>> stacks = Box(0, 255, (4, 84, 84), np.uint8)
    >>> buffer = ReplayBuffer(1000, stacks, Discrete(6), n_envs=2, seed=1)
    >>> obs, last, reset = np.zeros((3, 2, 4, 84, 84), np.uint8)
    >>> last[:, -1] = 9
    >>> no, ends = np.zeros(2, bool), np.ones(2, bool)
    >>> buffer.add(obs, [0, 5], [0.5, 1.0], ends, no, reset, {"final_obs": last})
    >>> batch = buffer.sample(32)
    >>> batch.next_obs.shape, batch.discount[0]
    ((32, 4, 84, 84), np.float32(0.99))
    """

    def __init__(
        self,
        capacity: int,
        observation_space: Any,
        action_space: Any,
        n_envs: int | None = 1,
        *,
        frames: DiffFrameArray | None = None,
        stack_size: int | None = None,
        stack_axis: int | None = 0,
        frame_channels: int = 1,
        padding_type: Any = None,
        codec: Any = "delta",
        gop_length: int | None = None,
        n_step: int = 1,
        gamma: float = 0.99,
        full_windows: bool = False,
        autoreset_mode: Any = None,
        prioritized: bool = False,
        alpha: float = _ALPHA,
        beta: float = _BETA,
        epsilon: float = _EPSILON,
        fields: Mapping[str, Any] | None = None,
        device: Any = None,
        decode_on: str | None = None,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        self._output = make_output(device, decode_on)
        self._rng = checked_generator(seed)
        is_single = n_envs is None
        if autoreset_mode is None:
            autoreset_mode = "disabled" if is_single else "same_step"
        elif is_single and checked_mode(autoreset_mode) != "disabled":
            raise ValueError(
                f"autoreset_mode={autoreset_mode!r} is of vector environments; with n_envs=None "
                "you reset the environment yourself: leave it out"
            )
        settings = Settings(
            capacity=capacity,
            observation_space=observation_space,
            action_space=action_space,
            n_envs=1 if n_envs is None else n_envs,
            is_single=is_single,
            n_step=n_step,
            gamma=gamma,
            full_windows=full_windows,
            autoreset_mode=autoreset_mode,
            prioritized=prioritized,
            alpha=alpha,
            beta=beta,
            epsilon=epsilon,
            stack_size=stack_size,
            stack_axis=stack_axis,
            frame_channels=frame_channels,
            padding_type=padding_type,
            fields=fields,
        )
        self._build(settings, frames, codec, gop_length)
        self._open()
        if not prioritized and (alpha, beta, epsilon) != (_ALPHA, _BETA, _EPSILON):
            warnings.warn(
                f"alpha={alpha}, beta={beta} and epsilon={epsilon} are of priorities, and change "
                "nothing without prioritized=True",
                stacklevel=2,
            )
        self._warn_if_dense_would_not_fit()

    def _warn_if_dense_would_not_fit(self) -> None:
        there = memory_bytes()
        if there is None or self.nbytes <= there:
            return
        expected = sum(size for part, size in self._bytes_by_part().items() if part != "frames")
        for entry in self._observations.entries:
            codec = getattr(entry.frames, "codec", None)  # a plain ring has none
            expected += int(self.capacity * entry.layout.frame_bytes * expected_part(codec))
        warnings.warn(
            f"a dense buffer of {self.capacity:,} transitions would take {self.nbytes / 1e9:,.1f} "
            f"GB, and there are {there / 1e9:,.1f} GB of memory; this one is expected to take "
            f"{expected / 1e9:,.2f} GB when it is full, if its frames are like those of ten Atari "
            "games (nbytes_stored says what it takes)",
            stacklevel=3,
        )

    # -- accounts ----------------------------------------------------------------------------

    @property
    def device(self) -> Any:
        """Where samples go: None for numpy, else a torch.device. May be set.

        A buffer that was pickled beside a GPU goes on without one once this is set.
        """
        return self._output.device

    @device.setter
    def device(self, device: Any) -> None:
        chosen = self._output.chosen_decode_on
        self._output = make_output(device, "cpu" if chosen == "cpu" else None)

    @property
    def observation_space(self) -> Any:
        """Of one environment, as it was given."""
        return self._given["observation_space"]

    @property
    def action_space(self) -> Any:
        """Of one environment, as it was given."""
        return self._given["action_space"]

    @property
    def full(self) -> bool:
        """Whether every lane is, so that each transition more replaces one."""
        self._writer.settle()
        return bool((self._transitions.counts >= self._transitions.n_slots).all())

    @property
    def position(self) -> Int64s:
        """How many transitions each lane has had, ``(n_envs,)``: the next one is that one's t.

        Its name will be ``position[lane] * n_envs + lane``. A copy.
        """
        self._writer.settle()
        counts: Int64s = self._transitions.counts.copy()
        return counts

    @property
    def n_samplable(self) -> int:
        """Transitions that may be drawn now."""
        self._writer.settle()
        return len(self._windows)

    @property
    def frames(self) -> Any:
        """The `DiffFrameArray` of the pixels; of several images a dict of them."""
        images = {entry.layout.key: entry.frames for entry in self._observations.images}
        return next(iter(images.values())) if len(images) == 1 else images

    @property
    def nbytes(self) -> int:
        """Bytes of the dense equivalent: two observations a transition, and the rest."""
        per_transition = 2 * self._observations.dense_bytes + self._actions.nbytes
        per_transition += self._transitions.fields.row_nbytes
        return self.capacity * (per_transition + 4 + 1 + 1)  # reward, terminated, truncated

    @property
    def nbytes_stored(self) -> int:
        """Bytes truly held: frames, everything beside them, tables and slack.

        Batches apart, and the memory that those of them which are gone leave to the next ones, at
        most 64 MiB.
        """
        return sum(self._bytes_by_part().values())

    @property
    def compression_ratio(self) -> float:
        """``nbytes / nbytes_stored``; it counts for a full buffer."""
        return self.nbytes / self.nbytes_stored

    def stats(self) -> dict[str, Any]:
        """Report what is held.

        Returns
        -------
        dict
            ``transitions``, ``samplable``, ``episodes`` (of which a transition is held),
            ``frames`` (in all images), ``nbytes``, ``nbytes_stored``, ``compression_ratio``,
            ``nbytes_by_part``, ``decode_on`` (where pixels are: ``"cpu"`` or ``"device"``) and
            ``nbytes_on_device`` (of the replica that they are decoded from there).
        """
        with self._lock:
            self._writer.settle()
            return {
                "transitions": len(self),
                "samplable": self.n_samplable,
                "episodes": self._transitions.n_episodes,
                "frames": self._observations.n_frames,
                "nbytes": self.nbytes,
                "nbytes_stored": self.nbytes_stored,
                "compression_ratio": self.compression_ratio,
                "nbytes_by_part": self._bytes_by_part(),
                "decode_on": self._output.decodes_on,
                "nbytes_on_device": self._output.nbytes_on_device(),
            }

    def _bytes_by_part(self) -> dict[str, int]:
        return {
            **self._observations.nbytes_by_part,
            "transitions": self._transitions.nbytes + self._resets.nbytes,
            "starts": sum(windows.nbytes for windows in self._all_windows),
            "priorities": sum(windows.tree.nbytes for windows in self._all_windows),
        }

    def __repr__(self) -> str:
        return (
            f"ReplayBuffer({len(self):,} of {self.capacity:,} transitions, n_envs={self.n_envs}, "
            f"n_step={self.n_step}, nbytes_stored={self.nbytes_stored:,})"
        )
