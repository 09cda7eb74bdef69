"""Hindsight experience replay for Stable-Baselines3, its images compressed."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from compressarray.sb3.handing import Gives, Takes
from compressarray.sb3.replay import CompressedDictReplayBuffer
from compressarray.sb3.steps import Settled, Undo

AnyArray = npt.NDArray[Any]


class CompressedHerReplayBuffer(Takes, HerReplayBuffer, Gives, CompressedDictReplayBuffer):
    """Stable-Baselines3's `HerReplayBuffer`, its images compressed.

    Each key's frames are stored once: an image that is a goal for a whole episode takes a place
    once an episode. Nothing is shared between keys.

    Parameters
    ----------
    buffer_size, observation_space, action_space, env, device, n_envs
        As the parent's; an algorithm gives its own environment.
    optimize_memory_usage, handle_timeout_termination
        As `CompressedReplayBuffer`'s.
    n_sampled_goal : int, default 4
    goal_selection_strategy : str or GoalSelectionStrategy, default "future"
    copy_info_dict : bool, default False
        Whether ``compute_reward`` of the environment is given the infos. They are kept as they
        are, and are not compressed.
    **kwargs
        ``codec`` and what else `CompressedReplayBuffer` takes.
    """

    ep_start: Any = Settled()
    ep_length: Any = Settled()
    infos: Any = Settled()
    _current_ep_start: Any = Settled()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.copy_info_dict:
            # Nothing will be written here: one empty dict for all, not one for each transition,
            # which would take more memory than most frames do.
            self.infos.fill({})

    def __getstate__(self) -> dict[str, Any]:
        # the host's leaves the environment out, and knows of no next class; ours the writer
        state = CompressedDictReplayBuffer.__getstate__(self)
        del state["env"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        CompressedDictReplayBuffer.__setstate__(self, state)
        self.env = None

    @property
    def nbytes_stored(self) -> int:
        """Bytes held, but for what copied infos hold."""
        episodes = (self.ep_start, self.ep_length, self._current_ep_start, self.infos)
        dicts = self.infos.size if self.copy_info_dict else 1
        held = sum(each.nbytes for each in episodes) + dicts * sys.getsizeof({})
        return int(super().nbytes_stored + held)

    def reset(self) -> None:
        """Forget every transition and episode."""
        self._writer.run(self._forget_episodes)

    def _forget_episodes(self) -> None:
        undo = Undo()
        undo.keep_attributes(self, "ep_start", "ep_length", "_current_ep_start", "infos")
        self._writer.steps.append(undo)
        super().reset()
        for name in ("ep_start", "ep_length", "_current_ep_start"):
            vars(self)[name] = np.zeros_like(vars(self)[name])
        self.infos = np.full_like(self.infos, {})

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Add one transition of each environment, as the parent does.

        An error, an interrupt too, leaves the buffer with all of the transition or none of it.
        """
        self._writer.run(self._add, args, kwargs)

    def _add(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        slot, undo = self.pos, Undo()
        self._writer.steps.append(undo)
        undo.keep(slot, self.ep_start)
        if self.copy_info_dict:
            undo.keep(slot, self.infos)
        # the parent forgets the rest of the episodes that this row belonged to
        for env, length in enumerate(self.ep_length[slot]):
            if length > 0:
                end = self.ep_start[slot, env] + length
                undo.keep((np.arange(slot, end) % self.buffer_size, env), self.ep_length)
        super().add(*args, **kwargs)

    def _compute_episode_length(self, env_idx: int) -> None:
        undo = Undo()
        self._writer.steps.append(undo)
        start, end = int(self._current_ep_start[env_idx]), self.pos
        if end < start:
            end += self.buffer_size
        undo.keep((np.arange(start, end) % self.buffer_size, env_idx), self.ep_length)
        undo.keep(slice(None), self._current_ep_start)
        super()._compute_episode_length(env_idx)

    def truncate_last_trajectory(self) -> None:
        """End the episodes that were running when the buffer was saved; see the parent."""
        self._writer.run(self._truncate)

    def _truncate(self) -> None:
        undo = Undo()
        self._writer.steps.append(undo)
        undo.keep(self.pos - 1, self.dones, self.timeouts)
        super().truncate_last_trajectory()

    def _get_real_samples(
        self, batch_indices: AnyArray, env_indices: AnyArray, env: VecNormalize | None = None
    ) -> Any:
        return self._samples_at(batch_indices, env_indices, env)
