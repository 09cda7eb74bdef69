"""Episode replay buffers for RLlib whose observations are compressed."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any

import numpy as np
from ray.rllib.utils import force_list
from ray.rllib.utils.replay_buffers import (
    EpisodeReplayBuffer,
    MultiAgentEpisodeReplayBuffer,
    MultiAgentPrioritizedEpisodeReplayBuffer,
    PrioritizedEpisodeReplayBuffer,
)

from compressarray.array import DiffFrameArray
from compressarray.ray.columns import EpisodeFrames
from compressarray.ray.episodes import (
    ForState,
    agents_of,
    apart,
    compress,
    episode_from,
    is_compressed,
    kinds_in,
    nbytes_of_steps,
)
from compressarray.ray.lookback import CompressedLookbackBuffer

__all__ = [
    "CompressedEpisodeReplayBuffer",
    "CompressedMultiAgentEpisodeReplayBuffer",
    "CompressedMultiAgentPrioritizedEpisodeReplayBuffer",
    "CompressedPrioritizedEpisodeReplayBuffer",
]

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
        episodes = list(force_list(episodes))
        for episode in episodes:
            self._frames.make_lanes(list(kinds_in(episode)))
        evicted = self._num_episodes_evicted
        super().add(list(episodes), *args, **kwargs)
        self._compress(episodes)
        if self._num_episodes_evicted != evicted:
            self._frames.let_go(self._num_episodes_evicted)

    def _compress(self, given: list[Any]) -> None:
        """Compress what is new: in the newest episodes, and in those that were added to."""
        evicted = self._num_episodes_evicted
        i = len(self.episodes)
        while i and not is_compressed(self.episodes[i - 1]):
            i -= 1
        for number in range(i + evicted, len(self.episodes) + evicted):
            compress(self.episodes[number - evicted], self._frames, number)
        for episode in given:
            number = self.episode_id_to_index.get(episode.id_)
            if number is not None:
                compress(self.episodes[number - evicted], self._frames, number)
                if episode.is_done:
                    self._frames.release(number)

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
        ours = [
            agent.observations
            for episode in self.episodes
            for agent in agents_of(episode)
            if isinstance(agent.observations, CompressedLookbackBuffer)
        ]
        steps = sum(map(nbytes_of_steps, self.episodes)) + self._n_indices * self._bytes_per_index
        parts = {
            "frames": self._frames.nbytes_stored,
            "observations": sum(each.nbytes_stored for each in ours),
            "steps": steps,
        }
        nbytes = sum(each.nbytes for each in ours)
        stored = sum(parts.values())
        return {
            "nbytes": nbytes,
            "nbytes_stored": stored,
            "compression_ratio": nbytes / stored,
            "nbytes_by_part": parts,
        }

    # What RLlib's lists take for a timestep: a tuple of two numbers, and its place.
    _bytes_per_index = 100

    @property
    def _n_indices(self) -> int:
        return len(self._indices)

    # -- states ------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Return RLlib's state, in which observations are compressed.

        It can be pickled, and stays as it is whatever is added afterwards.
        """
        twin = object.__new__(type(self))
        for name, value in _attributes(self).items():
            setattr(twin, name, value)
        twin.episodes = deque(map(ForState, self.episodes))
        state: dict[str, Any] = super(_Compressed, twin).get_state()
        episodes = state.pop("episodes")
        return {"episodes": episodes, **apart(state), _FRAMES: self._frames.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Be as a state says, be it of this class or of RLlib's own.

        Parameters
        ----------
        state : dict
            As `get_state` returned it; it stays as it is. Episodes that are there are replaced,
            where RLlib's own buffer would keep them beside the numbers of others.
        """
        rest = {name: value for name, value in state.items() if name not in ("episodes", _FRAMES)}
        taken = {name: state[name] for name in ("episodes", _FRAMES) if name in state}
        super().set_state({**apart(rest), **taken})

    def _set_episodes(self, state: dict[str, Any]) -> None:
        frames = EpisodeFrames(self._frames.n_rows, self._frames.n_lanes, self.codec)
        frames.set_state(state.get(_FRAMES, {}))
        first = state["_num_episodes_evicted"]
        episodes = deque[Any]()
        for number, each in enumerate(state["episodes"], first):
            episodes.append(episode_from(each, frames, number))
            compress(episodes[-1], frames, number)
        self._frames, self.episodes = frames, episodes

    def __getstate__(self) -> dict[str, Any]:
        held = _attributes(self)
        held["_frames"] = (self._frames.n_rows, self._frames.n_lanes, self._frames.get_state())
        held["episodes"] = [ForState(each).get_state() for each in self.episodes]
        return held

    def __setstate__(self, held: dict[str, Any]) -> None:
        n_rows, n_lanes, frames = held["_frames"]
        for name, value in held.items():
            setattr(self, name, value)
        self._frames = EpisodeFrames(n_rows, n_lanes, self.codec)
        self._set_episodes({**held, _FRAMES: frames})


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


class _CompressedOfSeveral(_Compressed, MultiAgentEpisodeReplayBuffer):
    """What the buffers for several agents have in common."""

    @property
    def _n_indices(self) -> int:
        return len(self._indices) + sum(map(len, self._module_to_indices.values()))

    def get_state(self) -> dict[str, Any]:
        """Return RLlib's state, in which observations are compressed; see `set_state`."""
        state = super().get_state()
        for name in _FORGOTTEN:
            if hasattr(self, name):
                state[name] = apart(getattr(self, name))
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Be as a state says, be it of this class or of RLlib's own.

        RLlib's own forgets some counts and numbers, without which it fails at the next sample or
        eviction; states of this class have them.
        """
        super().set_state(state)
        counts: Any = self.sampled_timesteps_per_module
        self.sampled_timesteps_per_module: Any = defaultdict(int, counts)
        for name in _FORGOTTEN:
            if name in state:
                setattr(self, name, apart(state[name]))


class CompressedMultiAgentEpisodeReplayBuffer(_CompressedOfSeveral):
    """RLlib's `MultiAgentEpisodeReplayBuffer` whose images take a hundredth of the memory.

    See `CompressedEpisodeReplayBuffer`; each agent that grows takes a lane.
    """


class CompressedMultiAgentPrioritizedEpisodeReplayBuffer(
    _CompressedOfSeveral, MultiAgentPrioritizedEpisodeReplayBuffer
):
    """RLlib's `MultiAgentPrioritizedEpisodeReplayBuffer`, in a hundredth of the memory.

    See `CompressedMultiAgentEpisodeReplayBuffer`. Like RLlib's own, it is pickled by Ray's
    cloudpickle and not by pickle; its state is by both.
    """

    _bytes_per_index = 360


# Of RLlib's prioritized buffer for several agents.
_FORGOTTEN = ("_sample_idx_to_tree_idx",)


def _attributes(buffer: Any) -> dict[str, Any]:
    """Everything that a buffer has; RLlib's classes keep some of it in slots."""
    slots = [name for kind in type(buffer).__mro__ for name in getattr(kind, "__slots__", ())]
    named = {name: getattr(buffer, name) for name in slots if hasattr(buffer, name)}
    return {**named, **vars(buffer)}
