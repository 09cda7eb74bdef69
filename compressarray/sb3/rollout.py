"""Rollout buffers of Stable-Baselines3 whose observations are compressed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from compressarray.array import DiffFrameArray
from compressarray.planes import Planes
from compressarray.sb3.codecs import check_foreign, choose_codec
from compressarray.sb3.columns import RolloutObservations
from compressarray.sb3.host import check_space
from compressarray.sb3.steps import Settled, Undo
from compressarray.writing import Writer

AnyArray = npt.NDArray[Any]


def prepared_whole(buffer: Any, batches: Iterator[Any]) -> Iterator[Any]:
    """Yield what the host's `get` yields; it prepares the buffer whole or not at all.

    The host flattens one column after the other, in place of what there was, before its first
    batch. With half of them flat, a buffer would be of no use any more.
    """
    yield buffer._writer.run(_prepare, buffer, batches)
    yield from batches


def _prepare(buffer: Any, batches: Iterator[Any]) -> Any:
    """Return the first batch, as a part of the write that runs."""
    held, undo = vars(buffer), Undo()
    names = [name for name, each in held.items() if isinstance(each, np.ndarray)]
    undo.keep_attributes(buffer, *{*names, "observations", "generator_ready"})
    buffer._writer.steps.append(undo)
    if isinstance(held["observations"], dict):  # where columns are assigned one by one
        held["observations"] = dict(held["observations"])
    return next(batches)


class CompressedRolloutBuffer(RolloutBuffer):
    """Stable-Baselines3's `RolloutBuffer`, its images compressed.

    Parameters
    ----------
    buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs
        As the parent's.
    codec : str or object, default "delta"
        What `compressarray.DiffFrameArray` takes.
    compression_method, compression_kwargs : optional
        sb3-extra-buffers' arguments; see `compressarray.sb3.codecs.choose_codec`.
    dtypes, decompression_kwargs, normalize_images
        sb3-extra-buffers' arguments, which change nothing.
    """

    pos: Any = Settled()
    full: Any = Settled()
    generator_ready: Any = Settled()

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
        *,
        codec: Any = "delta",
        compression_method: str | None = None,
        compression_kwargs: dict[str, Any] | None = None,
        decompression_kwargs: dict[str, Any] | None = None,
        dtypes: dict[str, Any] | None = None,
        normalize_images: bool = False,
    ) -> None:
        del decompression_kwargs, normalize_images
        self._writer = Writer(rank=0)
        # Not the parent's own, whose reset allocates every observation, dense.
        BaseBuffer.__init__(
            self, buffer_size, observation_space, action_space, device, n_envs=n_envs
        )
        check_foreign(dtypes, "raw")
        self.codec = choose_codec(codec, compression_method, compression_kwargs)
        self.gae_lambda, self.gamma = gae_lambda, gamma
        self._arrays: dict[str, DiffFrameArray] = {}
        self.reset()
        if not self._arrays:
            warnings.warn(
                f"{type(self).__name__} compresses images, and {observation_space} has none: "
                "everything works, and nothing is gained over Stable-Baselines3's own buffer",
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        with self._writer.lock:
            self._writer.settle()
            state = vars(self).copy()
            del state["_writer"]  # which holds locks
            return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._writer = Writer(rank=0)
        vars(self).update(state)
        for array in self._arrays.values():
            array._write_with(self._writer)

    def reset(self) -> None:
        """Forget the rollout. What was learnt of its frames stays, so the next is as small."""
        # At once, whatever comes of the rest: what follows only makes room.
        self.pos, self.full = 0, False
        self._reset_observations()
        cells = (self.buffer_size, self.n_envs)
        self.actions = np.zeros((*cells, self.action_dim), self.action_space.dtype)
        for name in ("rewards", "returns", "episode_starts", "values", "log_probs", "advantages"):
            setattr(self, name, np.zeros(cells, np.float32))
        self.generator_ready = False
        BaseBuffer.reset(self)

    def _reset_observations(self) -> None:
        check_space(self, self.observation_space, False, "CompressedDictRolloutBuffer")
        self.observations = self._empty("", self.obs_shape, self.observation_space)

    def _empty(self, key: str, shape: tuple[int, ...], space: spaces.Space[Any]) -> Any:
        """Return observations of zeros, for `add` to fill."""
        planes = Planes.of(shape)
        lead = (self.buffer_size, self.n_envs)
        if planes is None:
            return np.zeros((*lead, *shape), space.dtype)
        is_fresh = key not in self._arrays
        if is_fresh:
            self._arrays[key] = DiffFrameArray(
                (*lead, *planes.entry_shape), np.dtype(space.dtype), codec=self.codec
            )
            self._arrays[key]._write_with(self._writer)
        return RolloutObservations(self._arrays[key], planes, is_fresh)

    @property
    def nbytes_stored(self) -> int:
        """Bytes held, everything counted."""
        held: Any = self.observations
        parts = [*vars(self).values(), *(held.values() if isinstance(held, dict) else ())]
        dense = sum(each.nbytes for each in parts if isinstance(each, np.ndarray))
        return int(dense + sum(array.nbytes_stored for array in self._arrays.values()))

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Add one step of each environment, as the parent does.

        An error, an interrupt too, leaves the buffer with all of the step or none of it.
        """
        self._writer.run(self._add, args, kwargs)

    def _add(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        undo = Undo()
        undo.keep_attributes(self, "pos", "full")
        self._writer.steps.append(undo)
        held: Any = self.observations
        for column in held.values() if isinstance(held, dict) else [held]:
            if isinstance(column, RolloutObservations) and self.pos < len(column.blank):
                undo.keep(slice(self.pos, self.pos + 1), column.blank)
        super().add(*args, **kwargs)

    def get(self, batch_size: int | None = None) -> Any:
        """Yield samples of all steps, in an order drawn anew, as the parent does."""
        return prepared_whole(self, super().get(batch_size))

    def _get_samples(self, batch_inds: AnyArray, env: VecNormalize | None = None) -> Any:
        del env  # the host has it here, and makes no use of it
        return RolloutBufferSamples(
            observations=self._observed(self.observations, batch_inds),
            **self._small_at(batch_inds),
        )

    def _observed(self, column: Any, batch_inds: AnyArray) -> th.Tensor:
        # Decoded or indexed into memory of its own: the host's copy of it is spared.
        return self.to_torch(column[batch_inds], copy=False)

    def _small_at(self, batch_inds: AnyArray) -> dict[str, th.Tensor]:
        """Return what there is beside observations, as the parent does."""
        names = {
            "old_values": self.values,
            "old_log_prob": self.log_probs,
            "advantages": self.advantages,
            "returns": self.returns,
        }
        actions = self.actions[batch_inds].astype(np.float32, copy=False)
        small = {name: self.to_torch(held[batch_inds].flatten()) for name, held in names.items()}
        return {"actions": self.to_torch(actions), **small}


class CompressedDictRolloutBuffer(CompressedRolloutBuffer, DictRolloutBuffer):
    """Stable-Baselines3's `DictRolloutBuffer`, its images compressed; vectors stay as they are.

    Parameters are those of `CompressedRolloutBuffer`.
    """

    def _reset_observations(self) -> None:
        check_space(self, self.observation_space, True, "CompressedRolloutBuffer")
        shapes: Any = self.obs_shape
        self.observations = {
            key: self._empty(key, shapes[key], self.observation_space[key]) for key in shapes
        }

    def _get_samples(self, batch_inds: AnyArray, env: VecNormalize | None = None) -> Any:
        del env
        held: Any = self.observations
        return DictRolloutBufferSamples(
            observations={key: self._observed(held[key], batch_inds) for key in held},
            **self._small_at(batch_inds),
        )
