"""What is drawn."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """Transitions that were drawn; numpy arrays, or tensors where the buffer has a device.

    Attributes
    ----------
    obs, next_obs : (B, *observation shape)
        Of a Dict space, a dict of such. They are views of one memory, and with ``n_step=1`` of
        the same frames, windows of ``(B, stack_size + 1, ...)``: do not write.
    action : (B, *action shape)
        In the action space's dtype.
    reward : (B,) float32
        Sum of the discounted rewards of up to ``n_step`` steps.
    terminated : (B,) float32
        1 where the episode terminated with the last of them, else 0.
    discount : (B,) float32
        ``gamma ** k``, k the steps that were summed: targets are
        ``reward + discount * (1 - terminated) * value(next_obs)``.
    index : (B,) int64
        Names for `ReplayBuffer.update_priorities`. Always a numpy array.
    weight : (B,) float32
        Importance weights, at most 1; all 1 without priorities.
    fields : dict of (B, *field shape)
        Of the first of those steps, what it was added with.
    """

    obs: Any
    action: Any
    reward: Any
    next_obs: Any
    terminated: Any
    discount: Any
    index: Int64s  # type: ignore[assignment]
    weight: Any
    fields: dict[str, Any]


class SequenceBatch(NamedTuple):
    """Runs of T steps each; what `Batch` has, with axes ``(B, T, ...)``.

    Attributes
    ----------
    obs, action, reward, next_obs, terminated, index, fields
        As in `Batch`, but of single steps; ``index`` is -1 where a run is padded.
    truncated : (B, T) float32
        1 where an episode was truncated with the step.
    is_first : (B, T) float32
        1 where an episode begins with it.
    mask : (B, T) float32
        0 where a run is padded: rewards and flags are 0 there, and all else is that of the step
        beside it.
    weight : (B,) float32
        Importance weights, at most 1; all 1 where runs were drawn uniformly.
    """

    obs: Any
    action: Any
    reward: Any
    next_obs: Any
    terminated: Any
    truncated: Any
    is_first: Any
    index: Int64s  # type: ignore[assignment]
    mask: Any
    weight: Any
    fields: dict[str, Any]


class Transition(NamedTuple):
    """Single steps by name; fields as in `SequenceBatch`, with the axes of the names.

    ``index`` has the names.
    """

    obs: Any
    action: Any
    reward: Any
    next_obs: Any
    terminated: Any
    truncated: Any
    is_first: Any
    index: Int64s  # type: ignore[assignment]
    fields: dict[str, Any]
