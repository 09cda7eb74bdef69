"""RLlib's episodes, of one agent or of several, with compressed observations and without."""

from __future__ import annotations

import copy
import sys
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer
from ray.rllib.execution.segment_tree import MinSegmentTree, SumSegmentTree

from compressarray.ray.columns import EpisodeFrames, Kind
from compressarray.ray.lookback import CompressedLookbackBuffer, kinds_of

_PARTS = "parts"  # in the place of RLlib's keys, in the state of an episode's observations


def agents_of(episode: Any) -> Iterator[Any]:
    """Yield the episodes of each agent; one of a single agent itself."""
    if isinstance(episode, MultiAgentEpisode):
        yield from episode.agent_episodes.values()
    else:
        yield episode


def kinds_in(episode: Any) -> Iterator[Kind]:
    """Yield what kinds of images there are in an episode's observations."""
    for agent in agents_of(episode):
        observations = agent.observations
        if observations.len_incl_lookback():
            yield from kinds_of(observations.data, observations.finalized)


def is_compressed(episode: Any) -> bool:
    """Whether all observations of an episode are; those that are none are."""
    return all(
        isinstance(agent.observations, CompressedLookbackBuffer)
        or not agent.observations.len_incl_lookback()
        for agent in agents_of(episode)
    )


def compress(episode: Any, frames: EpisodeFrames, number: int) -> None:
    """Replace the observations of an episode, as far as they are dense."""
    for agent in agents_of(episode):
        if not is_compressed(agent):
            agent.observations = CompressedLookbackBuffer(agent.observations, frames, number)
            agent._last_added_observation = None  # which is a dense one


def nbytes_of_steps(episode: Any) -> int:
    """Bytes of actions, rewards, model outputs, and, estimated by the last one, infos."""
    total = 0
    for agent in agents_of(episode):
        for each in (agent.actions, agent.rewards, *agent.extra_model_outputs.values()):
            total += _nbytes_of(each.data)
        infos = agent.infos.data
        if len(infos):
            total += len(infos) * (8 + _nbytes_of(infos[-1]))
    return total


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


# -- states --------------------------------------------------------------------------------------


class ForState:
    """Stands for an episode, or for its observations, while RLlib asks it for its state."""

    def __init__(self, of: Any) -> None:
        self._of = of

    def get_state(self) -> dict[str, Any]:
        """Return RLlib's state, but for observations; nothing in it changes with the episode."""
        if isinstance(self._of, CompressedLookbackBuffer):
            return {_PARTS: self._of.get_parts()}
        twin = copy.copy(self._of)
        if isinstance(self._of, MultiAgentEpisode):
            twin.agent_episodes = {name: ForState(each) for name, each in _agents(self._of)}
        elif isinstance(self._of.observations, CompressedLookbackBuffer):
            twin.observations = ForState(self._of.observations)
        state: dict[str, Any] = apart(twin.get_state())
        return state


def _agents(episode: Any) -> Any:
    return episode.agent_episodes.items()


def episode_from(state: dict[str, Any], frames: EpisodeFrames, number: int) -> Any:
    """Return the episode that a state was taken of, be it RLlib's or `ForState`'s."""
    if "agent_episodes" not in state:
        parts = state["observations"].get(_PARTS)
        episode = SingleAgentEpisode.from_state(apart(_without_parts(state)))
        _give_parts(episode, parts, frames, number)
        return episode
    agents = state["agent_episodes"]
    blank = [(name, _without_parts(each)) for name, each in agents]
    episode = MultiAgentEpisode.from_state(apart({**state, "agent_episodes": blank}))
    for name, each in agents:
        parts = each["observations"].get(_PARTS)
        _give_parts(episode.agent_episodes[name], parts, frames, number)
    return episode


def _without_parts(state: dict[str, Any]) -> dict[str, Any]:
    """A state that RLlib takes: it counts observations, and may have any in their place."""
    parts = state["observations"].get(_PARTS)
    if parts is None:
        return state
    data = np.empty(parts["n"]) if parts["finalized"] else [None] * parts["n"]
    return {**state, "observations": InfiniteLookbackBuffer(data, parts["lookback"]).get_state()}


def _give_parts(agent: Any, parts: Any, frames: EpisodeFrames, number: int) -> None:
    if parts is not None:
        agent.observations = CompressedLookbackBuffer.from_parts(parts, frames, number)


def apart(value: Any) -> Any:
    """Copy what RLlib changes in place, wherever it is inside of a state, and nothing else."""
    kind = type(value)
    if kind is list:
        return [apart(each) if type(each) in _CHANGING else each for each in value]
    if kind is tuple:
        changing = any(type(each) in _CHANGING for each in value)
        return tuple(map(apart, value)) if changing else value
    if kind is dict or kind is defaultdict:
        twin = copy.copy(value)
        for name, each in value.items():
            twin[name] = apart(each)
        return twin
    if kind is InfiniteLookbackBuffer:
        twin = copy.copy(value)
        twin.data = apart(value.data)
        return twin
    return copy.deepcopy(value) if kind in _CHANGING else value


_CHANGING = {
    list, tuple, dict, defaultdict, deque, InfiniteLookbackBuffer, MinSegmentTree, SumSegmentTree,
}  # fmt: skip
