"""The buffers give the samples that RLlib's own give, bit for bit, through any history."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer
from ray.rllib.utils.replay_buffers import EpisodeReplayBuffer, PrioritizedEpisodeReplayBuffer

from compressarray.errors import FrameEvictedError
from compressarray.ray.lookback import CompressedLookbackBuffer
from compressarray.ray.rllib import (
    CompressedEpisodeReplayBuffer,
    CompressedPrioritizedEpisodeReplayBuffer,
)
from tests.effort import BASE_EXAMPLES
from tests.hosts.ray.worlds import Dot, assert_same, chunks

UNIFORM = EpisodeReplayBuffer, CompressedEpisodeReplayBuffer
PRIORITIZED = PrioritizedEpisodeReplayBuffer, CompressedPrioritizedEpisodeReplayBuffer
WORLDS = ({}, {"stack": 4}, {"stack": 3, "dtype": np.float32}, {"as_dict": True, "stack": 2})


def frames_held(buffer: Any) -> int:
    return sum(int(each.array.stats()["frames_held"]) for each in buffer._frames._lanes.values())


class Histories(RuleBasedStateMachine):
    """Episodes come in chunks, several at a time; samples are drawn in between."""

    @initialize(
        kind=st.sampled_from([UNIFORM, PRIORITIZED]), capacity=st.integers(5, 70),
        world=st.sampled_from(WORLDS), n_lanes=st.integers(1, 3), lookback=st.integers(0, 2),
        to_numpy=st.sampled_from([True, True, False]), codec=st.sampled_from(["delta", "raw"]),
    )  # fmt: skip
    def begin(self, kind, capacity, world, n_lanes, lookback, to_numpy, codec):
        self.kind, self.world, self.capacity = kind, world, capacity
        self.lookback, self.to_numpy = lookback, to_numpy
        self.arguments = {"n_lanes": n_lanes, "codec": codec}
        self.seeds = 0
        self.begin_anew()

    def begin_anew(self):
        self.theirs = self.kind[0](self.capacity)
        self.ours = self.kind[1](self.capacity, **self.arguments)
        self.ours._frames.n_rows = 8  # so that there is need for more
        self.growing: list[Any] = []
        self.same_generator(0)

    def same_generator(self, seed):
        self.theirs.rng = np.random.default_rng(seed)
        self.ours.rng = np.random.default_rng(seed)

    @rule(
        lengths=st.lists(
            st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=2
        )
    )
    def begin_episodes(self, lengths):
        new = []
        for each in lengths:
            self.seeds += 1
            env = Dot(self.world)
            new.append(chunks(env, self.seeds, each, self.lookback, self.to_numpy))
        self.growing += new
        self.add_next(new)

    @precondition(lambda self: self.growing)
    @rule(which=st.sets(st.integers(0, 9), min_size=1))
    def go_on(self, which):
        self.add_next([each for i, each in enumerate(self.growing) if i in which])

    def add_next(self, episodes):
        given = [chunk for each in episodes for chunk in [next(each, None)] if chunk is not None]
        before = copy.deepcopy(given)
        try:
            self.theirs.add(given)
        except Exception as error:  # RLlib loses its way where much is evicted at once
            with pytest.raises(type(error)):
                self.ours.add(given)
            self.begin_anew()
        else:
            self.ours.add(given)
        assert_same(given, before)  # which are the caller's

    @precondition(lambda self: self.theirs.get_num_timesteps())
    @rule(
        size=st.integers(1, 6), n_step=st.sampled_from([1, 2, (1, 3)]), infos=st.booleans(),
        to_numpy=st.booleans(),
    )  # fmt: skip
    def sample_steps(self, size, n_step, infos, to_numpy):
        if max(len(each) for each in self.theirs.episodes) < 3:
            return  # a prioritized one would look for three steps for ever
        self.sample(
            size, n_step=n_step, sample_episodes=True, beta=0.4, gamma=0.9, include_infos=infos,
            include_extra_model_outputs=self.kind is PRIORITIZED, to_numpy=to_numpy,
        )  # fmt: skip

    @precondition(lambda self: self.kind is UNIFORM and self.theirs.get_num_timesteps())
    @rule(length=st.integers(1, 6), lookback=st.integers(0, 2))
    def sample_sequences(self, length, lookback):
        self.sample(4, n_step=1, batch_length_T=length, sample_episodes=True, lookback=lookback)

    @precondition(lambda self: self.kind is UNIFORM and self.theirs.get_num_timesteps())
    @rule(length=st.integers(1, 6))
    def sample_batch(self, length):
        if not self.world.get("as_dict"):  # of which RLlib makes arrays of names
            self.sample(3, batch_length_T=length)

    def sample(self, *args, **kwargs):
        theirs = self.theirs.sample(*args, **kwargs)
        assert_same(self.ours.sample(*args, **kwargs), theirs)
        if self.kind is PRIORITIZED:
            priorities = np.random.default_rng(7).random(len(theirs))
            self.theirs.update_priorities(priorities)
            self.ours.update_priorities(priorities)

    @rule(how=st.sampled_from(["state", "pickle", "deepcopy", "their state"]))
    def come_back(self, how):
        ours = self.ours
        if how == "pickle":
            self.ours = pickle.loads(pickle.dumps(ours))
        elif how == "deepcopy":
            self.ours = copy.deepcopy(ours)
        else:
            state = ours.get_state()
            if how == "their state":
                state = copy.deepcopy(self.theirs.get_state())
            self.ours = self.kind[1](ours.capacity, **self.arguments)
            self.ours.set_state(pickle.loads(pickle.dumps(state)))
            # which RLlib leaves out
            self.ours.metrics = copy.deepcopy(ours.metrics)
            self.same_generator(self.seeds)
        # What becomes of the one that was left has nothing to do with it.
        ours.capacity = 1_000
        ours.add(list(chunks(Dot({}), 9_999, [3])))

    @rule()
    def look(self):
        """Everything that there is to be seen."""
        assert_same(list(self.ours.episodes), list(self.theirs.episodes))
        for method in (
            "get_num_timesteps", "get_num_episodes", "get_num_episodes_evicted",
            "get_sampled_timesteps", "get_added_timesteps",
        ):  # fmt: skip
            assert getattr(self.ours, method)() == getattr(self.theirs, method)()
        assert self.ours._indices == self.theirs._indices
        assert all(
            isinstance(each.observations, CompressedLookbackBuffer) for each in self.ours.episodes
        )

    @rule()
    def metrics(self):
        ours, theirs = self.ours.get_metrics(), self.theirs.get_metrics()
        assert str(ours) == str(theirs)

    def teardown(self):
        if hasattr(self, "ours"):
            self.look()


Histories.TestCase.settings = settings(max_examples=BASE_EXAMPLES // 2, stateful_step_count=25)
test_histories = Histories.TestCase


def filled(buffer: Any, n_episodes: int, world: Any, length: int = 5) -> Any:
    """A buffer with whole episodes, each in chunks."""
    for seed in range(n_episodes):
        for chunk in chunks(Dot(world), seed, [length] * 5, lookback=1):
            buffer.add(chunk)
    return buffer


@pytest.mark.parametrize("world", WORLDS)
def test_each_frame_is_stored_once(world):
    buffer = CompressedEpisodeReplayBuffer(10_000)
    episodes = [list(chunks(Dot(world), seed, [4] * 6)) for seed in range(3)]
    for each in zip(*episodes, strict=False):  # side by side
        buffer.add(list(each))
    n = sum(len(chunk) for each in zip(*episodes, strict=False) for chunk in each)
    colours = world.get("stack") == 3  # three frames are one picture
    assert frames_held(buffer) <= n + 3  # and that of each reset; a dot at the wall stays
    assert frames_held(buffer) > (0.9 if colours else 0.6) * n


def test_frames_go_with_their_episodes():
    buffer = filled(CompressedEpisodeReplayBuffer(40), 40, {"stack": 4})
    assert buffer.get_num_episodes_evicted() > 30
    assert frames_held(buffer) <= buffer.get_num_timesteps() + buffer.get_num_episodes()
    held = buffer._frames.nbytes_stored
    filled_longer = filled(CompressedEpisodeReplayBuffer(40), 120, {"stack": 4})
    assert filled_longer._frames.nbytes_stored < 1.3 * held


def test_an_episode_may_be_longer_than_the_capacity():
    theirs, ours = (kind(10) for kind in UNIFORM)
    ours._frames.n_rows = 8
    longest = max((list(chunks(Dot({"stack": 4}), seed, [3] * 20)) for seed in range(9)), key=len)
    for chunk in longest:
        theirs.add(chunk)
        ours.add(chunk)
    assert ours.get_num_timesteps() > 20
    assert_same(list(ours.episodes), list(theirs.episodes))


def test_an_episode_ends_with_its_eviction_and_its_copy_stays():
    buffer = filled(CompressedEpisodeReplayBuffer(40), 1, {})
    episode, twin = buffer.episodes[0], copy.deepcopy(buffer.episodes[0])
    before = episode.get_observations()
    assert type(twin.observations) is InfiniteLookbackBuffer
    for seed in range(1, 9):
        for chunk in chunks(Dot({}), seed, [5] * 5):
            buffer.add(chunk)
    assert_same(twin.get_observations(), before)
    with pytest.raises(FrameEvictedError):
        episode.get_observations()


def test_episodes_of_one_buffer_go_into_another():
    one = filled(CompressedEpisodeReplayBuffer(1_000), 4, {"stack": 2})
    other = CompressedEpisodeReplayBuffer(1_000)
    other.add(list(one.episodes))
    assert_same(list(other.episodes), list(one.episodes))
    one.add(list(chunks(Dot({}), 99, [3])))
    assert other.get_num_episodes() == 4


def test_more_episodes_at_a_time_than_lanes():
    theirs, ours = UNIFORM[0](1_000), UNIFORM[1](1_000, n_lanes=2)
    for each in zip(*(chunks(Dot({"stack": 2}), seed, [2] * 9) for seed in range(7)), strict=False):
        theirs.add(list(each))
        ours.add(list(each))
    assert_same(list(ours.episodes), list(theirs.episodes))


def test_a_state_stays_as_it_was_taken():
    """Whatever is added afterwards, to the buffer it was taken of or to one that it was set in."""
    buffer = CompressedPrioritizedEpisodeReplayBuffer(1_000)
    growing = chunks(Dot({}), 1, [4] * 5, to_numpy=False)
    buffer.add(next(growing))
    state, copied = buffer.get_state(), copy.deepcopy(buffer.get_state())
    after = list(growing)
    for _ in range(2):
        other = CompressedPrioritizedEpisodeReplayBuffer(1_000)
        other.set_state(state)
        assert_same(other.episodes[0], _first(copied))
        for each in (buffer, other):
            each.rng = np.random.default_rng(1)
            if len(each.episodes[0]) == 4:
                for chunk in after:
                    each.add(chunk)
        assert_same(other.sample(4, n_step=1), buffer.sample(4, n_step=1))


def _first(state: Any) -> Any:
    buffer = CompressedPrioritizedEpisodeReplayBuffer(1_000)
    buffer.set_state(state)
    return buffer.episodes[0]


def test_a_state_replaces_what_is_there():
    state = filled(CompressedEpisodeReplayBuffer(1_000), 2, {}).get_state()
    buffer = filled(CompressedEpisodeReplayBuffer(1_000), 5, {"stack": 4})
    buffer.set_state(state)
    assert buffer.get_num_episodes() == 2
    assert buffer.sample(8, n_step=1, sample_episodes=True)


def test_bytes_are_what_is_held():
    """A hundredth of RLlib's for observations, and everything else counted too."""
    world = {"stack": 4}
    theirs, ours = filled(UNIFORM[0](100_000), 150, world), filled(UNIFORM[1](100_000), 150, world)
    stats = ours.stats()
    dense = sum(episode.observations.data.nbytes for episode in theirs.episodes)
    assert stats["nbytes"] == dense
    parts = stats["nbytes_by_part"]
    assert parts["frames"] + parts["observations"] < dense / 15  # frames of 256 bytes
    assert stats["nbytes_stored"] == ours.nbytes_stored == sum(parts.values())
    assert stats["compression_ratio"] == dense / ours.nbytes_stored
    assert len(pickle.dumps(ours.get_state())) < len(pickle.dumps(theirs.get_state())) / 2


def test_no_dense_observation_is_left_behind():
    buffer = filled(CompressedEpisodeReplayBuffer(1_000), 3, {})
    assert all(each._last_added_observation is None for each in buffer.episodes)


@pytest.mark.parametrize("kind", [UNIFORM[1], PRIORITIZED[1]])
def test_what_is_refused(kind):
    for n_lanes in (0, -1, 1.5, True, "2"):
        with pytest.raises(ValueError, match="n_lanes"):
            kind(100, n_lanes=n_lanes)
    with pytest.raises(ValueError, match="codec"):
        kind(100, codec="none such")
    buffer = kind(100, codec="sparse")
    (floats,) = chunks(Dot({"dtype": np.float32}), 1, [3])
    with pytest.raises(ValueError, match="sparse"):
        buffer.add(floats)
    assert buffer.get_num_timesteps() == buffer.get_num_episodes() == 0
    (bytes_,) = chunks(Dot({}), 1, [3])
    buffer.add(bytes_)
    assert buffer.get_num_timesteps() == 3


def test_a_chunk_that_does_not_follow_leaves_what_was_there():
    buffer = CompressedEpisodeReplayBuffer(100)
    first, second, third = list(chunks(Dot({}), 1, [3, 3, 3]))[:3]
    buffer.add(first)
    before = buffer.episodes[0].get_observations()
    with pytest.raises(AssertionError):
        buffer.add(third)
    assert_same(buffer.episodes[0].get_observations(), before)
    del second
