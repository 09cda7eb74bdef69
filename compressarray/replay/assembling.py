"""Batches from what was drawn of one buffer, or of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.replay.batches import Batch, SequenceBatch
from compressarray.replay.outputs import NumpyOutput
from compressarray.replay.reading import Reader
from compressarray.replay.transitions import Returns, Steps

AnyArray = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

# Decodes the readers of each entry, one buffer behind the other; `Observations.read`.
ReadObservations = Callable[[Sequence[Sequence[Reader]]], tuple[Any, Any]]


class Part(NamedTuple):
    """Transitions of one buffer, all but their pixels."""

    returns: Returns
    action: AnyArray
    fields: dict[str, AnyArray]
    readers: list[Reader]  # of each entry of the observations


class SequencePart(NamedTuple):
    """Runs of steps of one buffer, all but their pixels; each ``(B, T)``."""

    steps: Steps
    action: AnyArray
    names: Int64s  # -1 where a run is padded
    mask: npt.NDArray[np.bool_]
    fields: dict[str, AnyArray]
    readers: list[Reader]


def batch_of(
    parts: Sequence[Part],
    names: Int64s,
    weight: Floats | None,
    observe: ReadObservations,
    output: NumpyOutput,
) -> Batch:
    """Decode, and put together, what was drawn.

    Parameters
    ----------
    parts : sequence of Part
    names : ndarray, (B,) int64
    weight : ndarray, (B,) float32, optional
        None: all 1.
    observe, output
        What reads the observations, and what a batch is made of.
    """
    signals = joined([part.returns.signals for part in parts], axis=1)
    if weight is not None:
        signals[3] = weight
    obs, next_obs = observe([part.readers for part in parts])
    fields = joined_fields([part.fields for part in parts])
    rows, action, *rest = output.deliver_together(
        [signals, joined([part.action for part in parts]), *fields.values()]
    )
    reward, terminated, discount, weights = rows
    batch = Batch(
        obs=obs,
        action=action,
        reward=reward,
        next_obs=next_obs,
        terminated=terminated,
        discount=discount,
        index=names,
        weight=weights,
        fields=dict(zip(fields, rest, strict=True)),
    )
    output.finish()
    return batch


def sequence_batch_of(
    parts: Sequence[SequencePart],
    names: Int64s,
    weight: Floats,
    observe: ReadObservations,
    output: NumpyOutput,
) -> SequenceBatch:
    """Decode, and put together, runs that were drawn; see `batch_of`."""
    obs, next_obs = observe([part.readers for part in parts])
    shown = joined([part.mask for part in parts]).astype(np.float32)
    flags = (
        joined(of_each) * shown for of_each in zip(*(part.steps for part in parts), strict=True)
    )
    fields = joined_fields([part.fields for part in parts])
    action, reward, terminated, truncated, is_first, mask, weights, *rest = output.deliver_together(
        [joined([part.action for part in parts]), *flags, shown, weight, *fields.values()]
    )
    batch = SequenceBatch(
        obs=obs,
        action=action,
        reward=reward,
        next_obs=next_obs,
        terminated=terminated,
        truncated=truncated,
        is_first=is_first,
        index=names,
        mask=mask,
        weight=weights,
        fields=dict(zip(fields, rest, strict=True)),
    )
    output.finish()
    return batch


def joined(arrays: Sequence[AnyArray], axis: int = 0) -> AnyArray:
    """One array of several; the very one where there is but one."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis)


def joined_fields(fields: Sequence[dict[str, AnyArray]]) -> dict[str, AnyArray]:
    """The same of what a user keeps beside transitions."""
    return {name: joined([each[name] for each in fields]) for name in fields[0]}
