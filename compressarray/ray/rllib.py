"""Episode replay buffers for RLlib whose observations are compressed."""

from __future__ import annotations

import copy
import sys
from collections import deque
from typing import Any

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer
from ray.rllib.utils import force_list
from ray.rllib.utils.replay_buffers import EpisodeReplayBuffer, PrioritizedEpisodeReplayBuffer

from compressarray.array import DiffFrameArray
from compressarray.ray.columns import EpisodeFrames
from compressarray.ray.lookback import CompressedLookbackBuffer, kinds_of

__all__ = ["CompressedEpisodeReplayBuffer", "CompressedPrioritizedEpisodeReplayBuffer"]

_N_LANES = 16
# The key of the frames, beside RLlib's own, in a state.
_FRAMES = "compressed_frames"


class _Compressed(EpisodeReplayBuffer):
    """What the buffers have in common: episodes are RLlib's, their images lie in a ring.

    RLlib does all it does with episodes; once it has added some, their observations are replaced.
    """

    def __init__(
        self, capacity: int = 10000, *, codec: Any = "delta", n_lanes: int = _N_LANES, **kwargs: Any
    ) -> None:
        if isinstance(n_lanes, bool) or not isinstance(n_lanes, (int, np.integer)) or n_lanes < 1:
            raise ValueError(f"n_lanes={n_lanes!r} must be a whole number from 1")
        DiffFrameArray((1, 1, 1), codec=codec if codec != "sparse" else "delta")  # or it raises
        super().__init__(capacity, **kwargs)
        self.codec = codec
        self._frames = EpisodeFrames(2 * int(capacity) + 1024, int(n_lanes), codec)

    def add(self, episodes: Any, *args: Any, **kwargs: Any) -> None:
        """Add episodes, or chunks of those that are there, as RLlib's own buffer does.

        Parameters
        ----------
        episodes : SingleAgentEpisode or list of them
            They stay as they are.
        *args, **kwargs
            As RLlib's own buffer takes them: a prioritized one the weight.

        Raises
        ------
        ValueError
            If the codec cannot hold such images; nothing has been added then.
        AssertionError
            RLlib's, if a chunk does not follow what is there. What RLlib counts is then as RLlib
            leaves it; frames and observations are as they were.
        """
        episodes = force_list(episodes)
        for episode in episodes:
            self._frames.make_lanes(_kinds_of(episode))
        evicted = self._num_episodes_evicted
        super().add(episodes, *args, **kwargs)
        self._compress()
        for episode in episodes:
            if episode.is_done and episode.id_ in self.episode_id_to_index:
                self._frames.release(self.episode_id_to_index[episode.id_])
        if self._num_episodes_evicted != evicted:
            self._frames.let_go(self._num_episodes_evicted)

    def _compress(self) -> None:
        """Compress the observations of the newest episodes, as far as they are not yet."""
        first = len(self.episodes)
        while first and not isinstance(
            self.episodes[first - 1].observations, CompressedLookbackBuffer
        ):
            first -= 1
        for i in range(first, len(self.episodes)):
            episode = self.episodes[i]
            if episode.observations.len_incl_lookback():
                episode.observations = CompressedLookbackBuffer(
                    episode.observations, self._frames, i + self._num_episodes_evicted
                )
                episode._last_added_observation = None  # which is a dense one

    # -- memory ------------------------------------------------------------------------------

    @property
    def nbytes_stored(self) -> int:
        """Bytes held: see `stats`."""
        return sum(self.stats()["nbytes_by_part"].values())

    def stats(self) -> dict[str, Any]:
        """Report how much is held.

        Returns
        -------
        dict
            ``nbytes``, what observations would take that are dense; ``nbytes_stored``;
            ``compression_ratio`` of the two; ``nbytes_by_part``, with ``frames`` (compressed),
            ``observations`` (where each one's frames are, and entries that are no images) and
            ``steps`` (actions, rewards, extra model outputs, infos, and RLlib's own lists of
            timesteps, of which Python's objects are estimated).
        """
        observations = [episode.observations for episode in self.episodes]
        ours = [each for each in observations if isinstance(each, CompressedLookbackBuffer)]
        parts = {
            "frames": self._frames.nbytes_stored,
            "observations": sum(each.nbytes_stored for each in ours),
            "steps": self._nbytes_of_steps(),
        }
        nbytes = sum(each.nbytes for each in ours)
        stored = sum(parts.values())
        return {
            "nbytes": nbytes,
            "nbytes_stored": stored,
            "compression_ratio": nbytes / stored,
            "nbytes_by_part": parts,
        }

    def _nbytes_of_steps(self) -> int:
        total = 0
        for episode in self.episodes:
            for each in (episode.actions, episode.rewards, *episode.extra_model_outputs.values()):
                total += _nbytes_of(each.data)
            infos = episode.infos.data
            if len(infos):  # of which one looks like the other
                total += len(infos) * (8 + _nbytes_of(infos[-1]))
        return total + len(self._indices) * self._bytes_per_index

    _bytes_per_index = 100  # a tuple of two numbers, and a place in a list

    # -- states ------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Return RLlib's state, in which observations are compressed.

        It can be pickled, and stays as it is whatever is added afterwards.
        """
        twin = object.__new__(type(self))
        for name, value in _attributes(self).items():
            object.__setattr__(twin, name, value)
        twin.episodes = deque(map(_with_parts, self.episodes))
        state: dict[str, Any] = super(_Compressed, twin).get_state()
        for name, value in state.items():
            if isinstance(value, list):
                state[name] = list(value)
        state[_FRAMES] = self._frames.get_state()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Be as a state says, be it of this class or of RLlib's own.

        Parameters
        ----------
        state : dict
            As `get_state` returned it; it stays as it is. Episodes that are there are replaced,
            where RLlib's own buffer would keep them beside the numbers of others.
        """
        super().set_state({**state, "_indices": list(state["_indices"])})
        self._compress()

    def _set_episodes(self, state: dict[str, Any]) -> None:
        frames = EpisodeFrames(self._frames.n_rows, self._frames.n_lanes, self.codec)
        frames.set_state(state.get(_FRAMES, {}))
        first = state["_num_episodes_evicted"]
        episodes = [
            _episode_from(each, frames, first + i) for i, each in enumerate(state["episodes"])
        ]
        self._frames, self.episodes = frames, deque(episodes)
        self._num_episodes_evicted = first

    def __getstate__(self) -> dict[str, Any]:
        held = _attributes(self)
        held["_frames"] = (self._frames.n_rows, self._frames.n_lanes, self._frames.get_state())
        held["episodes"] = [_with_parts(each).get_state() for each in self.episodes]
        return held

    def __setstate__(self, held: dict[str, Any]) -> None:
        held = dict(held)
        n_rows, n_lanes, state = held.pop("_frames")
        episodes = held.pop("episodes")
        for name, value in held.items():
            setattr(self, name, value)
        self._frames = EpisodeFrames(n_rows, n_lanes, self.codec)
        self._set_episodes(
            {
                "episodes": episodes,
                "_num_episodes_evicted": self._num_episodes_evicted,
                _FRAMES: state,
            }
        )


class CompressedEpisodeReplayBuffer(_Compressed):
    """RLlib's `EpisodeReplayBuffer` whose images take a hundredth of the memory.

    Same arguments, and with the same generator the same samples, bit for bit, in every mode.
    Entries of observations that are arrays of two axes or more are compressed; all others, and
    actions, rewards, infos and model outputs, stay as they are.

    Parameters
    ----------
    capacity, batch_size_B, batch_length_T, metrics_num_episodes_for_smoothing
        As RLlib's.
    codec : str or object, default "delta"
        What `compressarray.DiffFrameArray` takes.
    n_lanes : int, default 16
        Episodes that grow at the same time, chunk by chunk: as many as there are environments.
        Where there are more than lanes, memory grows, and nothing else changes.

    Raises
    ------
    ValueError
        For an unknown codec, or no lanes.

    Notes
    -----
    In a configuration, RLlib wants the class by its name in quotes::

        config.training(replay_buffer_config={
            "type": "compressarray.ray.rllib.CompressedEpisodeReplayBuffer",
            "capacity": 1_000_000,
        })

    Its checkpoints leave replay buffers out: pickle what `get_state` returns.

    An episode out of ``buffer.episodes`` ends with its eviction; a copy of it is dense and stays.
    `sample` with ``sample_episodes=False`` decodes each episode to its end, as RLlib reads it.
    """


class CompressedPrioritizedEpisodeReplayBuffer(_Compressed, PrioritizedEpisodeReplayBuffer):
    """RLlib's `PrioritizedEpisodeReplayBuffer` whose images take a hundredth of the memory.

    See `CompressedEpisodeReplayBuffer`, and RLlib's own for ``alpha``, ``beta`` and
    `update_priorities`.
    """

    _bytes_per_index = 360  # also one more number, an entry in a dict, and places in two trees


# -- episodes ------------------------------------------------------------------------------------


def _kinds_of(episode: Any) -> Any:
    observations = episode.observations
    if not observations.len_incl_lookback():
        return []
    return kinds_of(observations.data, observations.finalized)


def _nbytes_of(data: Any) -> int:
    """Bytes of arrays, and of lists and dicts of whatever it is."""
    if isinstance(data, np.ndarray):
        return int(data.nbytes)
    held = sys.getsizeof(data)
    if isinstance(data, dict):
        return held + sum(map(_nbytes_of, data.values()))
    if isinstance(data, (list, tuple)):
        return held + sum(map(_nbytes_of, data))
    return held


def _attributes(buffer: Any) -> dict[str, Any]:
    """Everything that a buffer has; RLlib's classes keep some of it in slots."""
    slots = [name for kind in type(buffer).__mro__ for name in getattr(kind, "__slots__", ())]
    named = {name: getattr(buffer, name) for name in slots if hasattr(buffer, name)}
    return {**named, **vars(buffer)}


class _Parts:
    """Stands for an episode's observations while RLlib asks it for its state."""

    def __init__(self, observations: CompressedLookbackBuffer) -> None:
        self._observations = observations

    def get_state(self) -> dict[str, Any]:
        return {"parts": self._observations.get_parts()}


def _with_parts(episode: Any) -> Any:
    """An episode whose state has parts instead of dense observations, and lists of its own."""
    twin = copy.copy(episode)
    if isinstance(episode.observations, CompressedLookbackBuffer):
        twin.observations = _Parts(episode.observations)
    for name in ("actions", "rewards", "infos"):
        setattr(twin, name, _apart(getattr(episode, name)))
    twin.extra_model_outputs = {
        name: _apart(each) for name, each in episode.extra_model_outputs.items()
    }
    return twin


def _apart(buffer: Any) -> Any:
    """A buffer of which the list is its own: RLlib adds to lists in place."""
    twin = copy.copy(buffer)
    if isinstance(twin.data, list):
        twin.data = list(twin.data)
    return twin


def _episode_from(state: dict[str, Any], frames: EpisodeFrames, number: int) -> Any:
    """Return the episode that a state was taken of."""
    parts = state["observations"].get("parts")
    if parts is not None:
        # RLlib checks lengths, and may have anything else in the place of observations.
        blank = InfiniteLookbackBuffer(
            np.empty(parts["n"]) if parts["finalized"] else [None] * parts["n"], parts["lookback"]
        )
        state = {**state, "observations": blank.get_state()}
    episode = SingleAgentEpisode.from_state(state)
    if parts is not None:
        episode.observations = CompressedLookbackBuffer.from_parts(parts, frames, number)
    for name in ("actions", "rewards", "infos"):
        setattr(episode, name, _apart(getattr(episode, name)))
    for name, each in episode.extra_model_outputs.items():
        episode.extra_model_outputs[name] = _apart(each)
    return episode
