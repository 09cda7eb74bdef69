"""A replay buffer for Stable-Baselines3 that draws in proportion to priorities."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from compressarray.replay.priorities import SumTree
from compressarray.sb3.replay import CompressedReplayBuffer
from compressarray.sb3.steps import Settled, Undo

AnyArray = npt.NDArray[Any]


class PrioritizedReplayBufferSamples(NamedTuple):
    """`ReplayBufferSamples`, and beside it what prioritized replay needs.

    ``weights``, (batch, 1) float32, correct for the draw, the largest 1; ``indices``, (batch,)
    int64, go back to `CompressedPrioritizedReplayBuffer.update_priorities`.
    """

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    dones: th.Tensor
    rewards: th.Tensor
    discounts: th.Tensor | None
    weights: th.Tensor
    indices: AnyArray


class _Priorities:
    """Priorities that a write changes; a step of `compressarray.writing`."""

    def __init__(self, tree: SumTree, cells: AnyArray) -> None:
        self._tree, self._cells, self._leaves = tree, cells, tree.leaves[cells]
        self._top = tree.top

    def finish(self) -> None:
        """Do nothing: all is written."""

    def roll_back(self) -> None:
        """Have the old ones."""
        self._tree.set_to(self._cells, self._leaves, self._top)


class CompressedPrioritizedReplayBuffer(CompressedReplayBuffer):
    """Proportional prioritized replay (Schaul et al., 2016, section 3.3), compressed.

    A transition is drawn in proportion to ``(abs(td_error) + epsilon) ** alpha``; a new one has
    the highest priority so far. Stable-Baselines3's algorithms ignore the weights and report no
    errors: a subclass's ``train`` multiplies its loss by ``weights`` and calls
    `update_priorities`.

    Parameters
    ----------
    alpha : float, default 0.6
        0 draws uniformly.
    beta : float, default 0.4
        How far weights correct; 1 wholly. May be assigned while training.
    epsilon : float, default 1e-6
    *args, **kwargs
        Those of `CompressedReplayBuffer`.
    """

    def __init__(
        self,
        *args: Any,
        alpha: float = 0.6,
        beta: float = 0.4,
        epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        for name, value, least in (("alpha", alpha, 0), ("beta", beta, 0), ("epsilon", epsilon, 0)):
            if not least <= value < np.inf:
                raise ValueError(f"{name}={value} must be finite and at least {least}")
        super().__init__(*args, **kwargs)
        self.alpha, self.beta, self.epsilon = alpha, beta, epsilon
        self._tree = SumTree(self.buffer_size * self.n_envs)

    _tree: Any = Settled()

    def _forget(self) -> None:
        undo = Undo()
        undo.keep_attributes(self, "_tree")
        self._writer.steps.append(undo)
        self._tree = SumTree(self.buffer_size * self.n_envs)
        super()._forget()

    def _write(
        self, observed: dict[str, tuple[AnyArray, AnyArray]], small: dict[str, AnyArray]
    ) -> None:
        # a new transition has the highest priority so far
        cells = self.pos * self.n_envs + np.arange(self.n_envs)
        self._writer.steps.append(_Priorities(self._tree, cells))
        super()._write(observed, small)
        self._tree.update(cells, np.full(self.n_envs, self._tree.top))

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Any:
        """Draw with replacement, in proportion to priorities.

        Raises
        ------
        ValueError
            If nothing was added yet.
        """
        if not self.size():
            raise ValueError("an empty buffer has nothing to sample; add transitions first")
        randoms = np.random.random_sample(batch_size)  # noqa: NPY002 - the host's seed governs it
        cells, probabilities = self._tree.draw(randoms, True)
        rows, envs = np.divmod(cells, self.n_envs)
        weights = (self.size() * self.n_envs * probabilities) ** -self.beta
        weights = (weights / weights.max()).astype(np.float32).reshape(-1, 1)
        drawn = self._samples_at(rows, envs, env)
        return PrioritizedReplayBufferSamples(
            **drawn._asdict(), weights=self.to_torch(weights), indices=cells
        )

    def update_priorities(self, indices: AnyArray, td_errors: Any) -> None:
        """Set the priorities of what was drawn.

        Parameters
        ----------
        indices : ndarray of int
            From the samples. A transition that was overwritten since passes its priority on.
        td_errors : array_like or tensor
            One for each; the sign does not count.

        Raises
        ------
        ValueError
            If there is not one finite error for each index; then nothing has changed.
        IndexError
            If an index is not of a transition that was added.
        """
        if isinstance(td_errors, th.Tensor):
            td_errors = td_errors.detach().cpu().numpy()
        cells = np.asarray(indices, np.int64).reshape(-1)
        errors = np.abs(np.asarray(td_errors, np.float64).reshape(-1))
        if len(errors) != len(cells):
            raise ValueError(
                f"{len(errors)} td_errors are not one for each of {len(cells)} indices"
            )
        if not np.isfinite(errors).all():
            raise ValueError("td_errors must be finite; nothing was changed")
        n_cells = self.size() * self.n_envs
        if len(cells) and not (cells.min() >= 0 and cells.max() < n_cells):
            raise IndexError(
                f"indices reach from {cells.min()} to {cells.max()}, not 0 to {n_cells - 1}"
            )
        self._tree.update(cells, (errors + self.epsilon) ** self.alpha)
