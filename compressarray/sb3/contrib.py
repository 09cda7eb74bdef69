"""Rollout buffers of sb3-contrib whose observations are compressed.

`MaskablePPO` takes one of these as its ``rollout_buffer_class``. `RecurrentPPO` has no such
argument: ``model.rollout_buffer = compressed(model.rollout_buffer)`` once it is made.
"""

from __future__ import annotations

from typing import Any

try:
    from sb3_contrib.common.maskable.buffers import (
        MaskableDictRolloutBuffer,
        MaskableRolloutBuffer,
    )
    from sb3_contrib.common.recurrent.buffers import (
        RecurrentDictRolloutBuffer,
        RecurrentRolloutBuffer,
    )
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "compressarray.sb3.contrib needs sb3-contrib, which is not installed: "
        'pip install "sb3-contrib>=2.9"',
        name=error.name,
    ) from error

from compressarray.sb3.handing import Gives, Takes
from compressarray.sb3.rollout import (
    CompressedDictRolloutBuffer,
    CompressedRolloutBuffer,
    prepared_whole,
)
from compressarray.sb3.steps import Undo

STATES = ("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf")


class _Beside:
    """Rows that are written before the rest of a step: they are a part of the same write."""

    _beside: tuple[str, ...] = ()

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Add one step of each environment, as the parent does."""
        held: Any = self
        held._writer.run(self._add_all, args, kwargs)

    def get(self, batch_size: int | None = None) -> Any:
        """Yield samples of all steps, as the parent does."""
        following: Any = super()
        return prepared_whole(self, following.get(batch_size))

    def _add_all(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        held: Any = self
        undo = Undo()
        held._writer.steps.append(undo)
        if held.pos < held.buffer_size:  # else the parent says what is wrong
            undo.keep(held.pos, *(vars(self)[name] for name in self._beside))
        following: Any = super()
        following.add(*args, **kwargs)


class CompressedMaskableRolloutBuffer(
    _Beside, Takes, MaskableRolloutBuffer, Gives, CompressedRolloutBuffer
):
    """sb3-contrib's `MaskableRolloutBuffer`, its images compressed; masks stay as they are.

    Parameters are those of `CompressedRolloutBuffer`.
    """

    _beside = ("action_masks",)


class CompressedMaskableDictRolloutBuffer(
    _Beside, Takes, MaskableDictRolloutBuffer, Gives, CompressedDictRolloutBuffer
):
    """sb3-contrib's `MaskableDictRolloutBuffer`, its images compressed.

    Parameters are those of `CompressedRolloutBuffer`.
    """

    _beside = ("action_masks",)


class CompressedRecurrentRolloutBuffer(  # type: ignore[misc]
    _Beside, Takes, RecurrentRolloutBuffer, Gives, CompressedRolloutBuffer
):
    """sb3-contrib's `RecurrentRolloutBuffer`, its images compressed; states stay as they are.

    Parameters
    ----------
    buffer_size, observation_space, action_space
        As the parent's.
    hidden_state_shape : tuple of int
        ``(n_steps, layers, n_envs, hidden size)``.
    *args, **kwargs
        What else `CompressedRolloutBuffer` takes.
    """

    _beside = STATES


class CompressedRecurrentDictRolloutBuffer(  # type: ignore[misc]
    _Beside, Takes, RecurrentDictRolloutBuffer, Gives, CompressedDictRolloutBuffer
):
    """sb3-contrib's `RecurrentDictRolloutBuffer`, its images compressed.

    Parameters are those of `CompressedRecurrentRolloutBuffer`.
    """

    _beside = STATES


# Whose place they take.
KINDS: dict[type, Any] = {
    MaskableRolloutBuffer: CompressedMaskableRolloutBuffer,
    MaskableDictRolloutBuffer: CompressedMaskableDictRolloutBuffer,
    RecurrentRolloutBuffer: CompressedRecurrentRolloutBuffer,
    RecurrentDictRolloutBuffer: CompressedRecurrentDictRolloutBuffer,
}
