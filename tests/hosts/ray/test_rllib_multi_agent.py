"""The buffers for several agents give the samples that RLlib's own give, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from ray import cloudpickle
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.utils.replay_buffers import (
    MultiAgentEpisodeReplayBuffer,
    MultiAgentPrioritizedEpisodeReplayBuffer,
)

from compressarray.ray.episodes import is_compressed
from compressarray.ray.lookback import CompressedLookbackBuffer
from compressarray.ray.rllib import (
    CompressedMultiAgentEpisodeReplayBuffer,
    CompressedMultiAgentPrioritizedEpisodeReplayBuffer,
)
from tests.effort import BASE_EXAMPLES
from tests.hosts.ray.worlds import Dot, assert_same

UNIFORM = MultiAgentEpisodeReplayBuffer, CompressedMultiAgentEpisodeReplayBuffer
PRIORITIZED = (
    MultiAgentPrioritizedEpisodeReplayBuffer,
    CompressedMultiAgentPrioritizedEpisodeReplayBuffer,
)
AGENTS = "one", "two", "late"


def module_of(agent: str, episode: Any) -> str:
    """Two of the agents share a module."""
    return "shared" if agent == "late" else agent


def chunks(world: Any, seed: int, lengths: list[int], to_numpy: bool = True) -> Iterator[Any]:
    """Play one episode of three agents, one of which comes when the first chunk has ended."""
    rng = np.random.default_rng(seed)
    envs = {agent: Dot(world) for agent in AGENTS}
    episode = MultiAgentEpisode(
        id_=f"{seed}",
        agent_to_module_mapping_fn=module_of,
        observation_space={agent: envs[agent].observation_space for agent in AGENTS},
        action_space={agent: envs[agent].action_space for agent in AGENTS},
    )
    here = list(AGENTS[:2])
    episode.add_env_reset(
        observations={agent: envs[agent].reset(seed=seed + i)[0] for i, agent in enumerate(here)}
    )
    for n, length in enumerate(lengths):
        for t in range(length):
            observations, rewards, actions = {}, {}, {}
            for agent in here:
                actions[agent] = int(rng.integers(4))
                observations[agent], rewards[agent], *_ = envs[agent].step(actions[agent])
            if n == 1 and t == 0:
                here = list(AGENTS)
                observations["late"] = envs["late"].reset(seed=seed + 9)[0]
            last = n == len(lengths) - 1 and t == length - 1 and seed % 2 == 0
            episode.add_env_step(
                observations, actions, rewards, terminateds={"__all__": last}, truncateds={}
            )
        after = None if episode.is_done else episode.cut()
        yield episode.to_numpy() if to_numpy else episode
        if after is None:
            return
        episode = after


def assert_same_episodes(ours: Any, theirs: Any) -> None:
    """All agents' data, and what the episodes say of themselves."""
    assert [each.id_ for each in ours] == [each.id_ for each in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert list(one.agent_episodes) == list(other.agent_episodes)
        assert_same(list(one.agent_episodes.values()), list(other.agent_episodes.values()))
        assert (one.env_t, one.env_t_started) == (other.env_t, other.env_t_started)
        assert (one.is_terminated, one.is_truncated) == (other.is_terminated, other.is_truncated)
        for agent in one.agent_episodes:
            assert one.env_t_to_agent_t[agent].data == other.env_t_to_agent_t[agent].data


class Histories(RuleBasedStateMachine):
    """Episodes come in chunks, several at a time; samples are drawn in between."""

    @initialize(
        kind=st.sampled_from([UNIFORM, PRIORITIZED]), capacity=st.integers(15, 70),
        world=st.sampled_from([{}, {"stack": 3}, {"as_dict": True}]), n_lanes=st.integers(1, 4),
        to_numpy=st.booleans(),
    )  # fmt: skip
    def begin(self, kind, capacity, world, n_lanes, to_numpy):
        self.kind, self.world, self.capacity = kind, world, capacity
        self.to_numpy, self.n_lanes = to_numpy, n_lanes
        self.seeds = 0
        self.begin_anew()

    def begin_anew(self):
        self.theirs = self.kind[0](self.capacity)
        self.ours = self.kind[1](self.capacity, n_lanes=self.n_lanes)
        self.ours._frames.n_rows = 8  # so that there is need for more
        self.growing: list[Any] = []
        self.same_generator(0)

    def same_generator(self, seed):
        self.theirs.rng = np.random.default_rng(seed)
        self.ours.rng = np.random.default_rng(seed)

    @rule(lengths=st.lists(st.lists(st.integers(2, 6), min_size=1), min_size=1, max_size=2))
    def begin_episodes(self, lengths):
        new = []
        for each in lengths:
            self.seeds += 1
            new.append(chunks(self.world, self.seeds, each, self.to_numpy))
        self.growing += new
        self.add_next(new)

    @precondition(lambda self: self.growing)
    @rule(which=st.sets(st.integers(0, 9), min_size=1))
    def go_on(self, which):
        self.add_next([each for i, each in enumerate(self.growing) if i in which])

    def add_next(self, episodes):
        given = [chunk for each in episodes for chunk in [next(each, None)] if chunk is not None]
        before = copy.deepcopy(given)
        self.both(lambda each: each.add(list(given)))
        assert_same_episodes(given, before)  # which are the caller's

    def both(self, operation):
        """Do it to both buffers. RLlib loses its way where much is evicted at once, for one."""
        try:
            theirs = operation(self.theirs)
        except Exception as error:
            with pytest.raises(type(error)):
                operation(self.ours)
            self.begin_anew()
        else:
            assert_same(operation(self.ours), theirs)

    @precondition(lambda self: self.theirs.get_num_timesteps() > 8)
    @rule(size=st.integers(1, 5), n_step=st.sampled_from([1, 2, (1, 3)]))
    def sample_independently(self, size, n_step):
        longest: dict[str, int] = dict.fromkeys(self.theirs._module_to_indices, 0)
        for episode in self.theirs.episodes:
            for agent, each in episode.agent_episodes.items():
                module = module_of(agent, episode)  # module_for() would change the episode
                longest[module] = max(longest[module], len(each))
        if min(longest.values()) < 3:
            n_step = 1  # for longer ones RLlib would look for ever
        kwargs = {"beta": 0.4} if self.kind is PRIORITIZED else {}
        self.both(lambda each: each.sample(size, n_step=n_step, **kwargs))
        if self.kind is PRIORITIZED:
            rng = np.random.default_rng(7)
            for module, last in list(self.theirs._module_to_last_sampled_indices.items()):
                priorities = rng.random(len(last))
                self.theirs.update_priorities(priorities, module)
                self.ours.update_priorities(priorities, module)

    @precondition(lambda self: self.kind is UNIFORM and self.theirs.get_num_timesteps() > 8)
    @rule(size=st.integers(1, 4), n_step=st.sampled_from([1, 2]))
    def sample_together(self, size, n_step):
        self.both(lambda each: each.sample(size, n_step=n_step, replay_mode="synchronized"))

    @rule(how=st.sampled_from(["state", "pickle", "deepcopy", "their state"]))
    def come_back(self, how):
        ours = self.ours
        if how == "pickle":
            self.ours = cloudpickle.loads(cloudpickle.dumps(ours))
        elif how == "deepcopy":
            self.ours = copy.deepcopy(ours)
        else:
            state = ours.get_state()
            if how == "their state":
                state = copy.deepcopy(self.theirs.get_state())
            self.ours = self.kind[1](ours.capacity, n_lanes=self.n_lanes)
            self.ours.set_state(cloudpickle.loads(cloudpickle.dumps(state)))
            self.ours.metrics = copy.deepcopy(ours.metrics)
            if how == "their state":
                self.mend(self.ours, ours)
            theirs, self.theirs = self.theirs, self.kind[0](ours.capacity)
            self.theirs.set_state(copy.deepcopy(theirs.get_state()))
            self.mend(self.theirs, theirs)
            self.same_generator(self.seeds)
        # What becomes of the one that was left has nothing to do with it.
        ours.capacity = 1_000
        ours.add(list(chunks({}, 9_999, [3])))

    def mend(self, buffer, before):
        """Give a buffer what RLlib forgets in a state, and ours do not."""
        buffer.sampled_timesteps_per_module = copy.copy(before.sampled_timesteps_per_module)
        if self.kind is PRIORITIZED:
            buffer._sample_idx_to_tree_idx = dict(before._sample_idx_to_tree_idx)

    @rule()
    def look(self):
        """Everything that there is to be seen."""
        assert_same_episodes(self.ours.episodes, self.theirs.episodes)
        for method in (
            "get_num_timesteps", "get_num_episodes", "get_num_episodes_evicted",
            "get_num_agent_timesteps", "get_sampled_timesteps", "get_added_timesteps",
        ):  # fmt: skip
            assert getattr(self.ours, method)() == getattr(self.theirs, method)()
        assert self.ours._module_to_indices == self.theirs._module_to_indices
        assert all(map(is_compressed, self.ours.episodes))

    def teardown(self):
        if hasattr(self, "ours"):
            self.look()


Histories.TestCase.settings = settings(max_examples=BASE_EXAMPLES // 3, stateful_step_count=15)
test_histories = Histories.TestCase


@pytest.mark.parametrize("kind", [UNIFORM[1], PRIORITIZED[1]])
def test_observations_of_all_agents_are_compressed(kind):
    buffer = kind(1_000)
    for chunk in chunks({"stack": 4}, 2, [4, 4, 4, 4, 4]):
        buffer.add(chunk)
    (episode,) = buffer.episodes
    assert set(episode.agent_episodes) == set(AGENTS)
    for agent in episode.agent_episodes.values():
        assert isinstance(agent.observations, CompressedLookbackBuffer)
        assert agent._last_added_observation is None
    stats = buffer.stats()
    assert stats["nbytes_stored"] == buffer.nbytes_stored > 0
    (lanes,) = buffer._frames._lanes.values()
    assert lanes.array.stats()["frames_held"] <= 3 * 21  # of each agent, once
