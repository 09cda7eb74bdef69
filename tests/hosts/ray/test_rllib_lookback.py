"""The buffer of an episode's observations does what RLlib's own does, whatever is asked of it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from compressarray.ray.columns import Column, EpisodeFrames
from compressarray.ray.lookback import CompressedLookbackBuffer
from tests.effort import BASE_EXAMPLES
from tests.hosts.ray.worlds import assert_same

IMAGE = spaces.Box(0, 255, (5, 4, 2), np.uint8)
SPACES = {
    "image": IMAGE,
    "floats": spaces.Box(-np.inf, np.inf, (3, 4), np.float32),
    "vector": spaces.Box(-9, 9, (3,), np.float64),
    "number": spaces.Discrete(5),
    "dict": spaces.Dict({"a": IMAGE, "b": spaces.Discrete(7), "c": spaces.Tuple([IMAGE])}),
    "nothing to compress": spaces.Dict({"b": spaces.Discrete(7)}),
}


def observations(space: Any, seed: int, n: int) -> list[Any]:
    """Observations of which every second one is like the one before."""
    space.seed(seed)
    made = [space.sample() for _ in range(n)]
    for i in range(1, n, 2):
        made[i] = copy.deepcopy(made[i - 1])
    return made


def outcome(operation: Any) -> Any:
    """What an operation gives, or the kind of error that it raises."""
    try:
        return operation()
    except Exception as error:
        return type(error)


indices = st.one_of(
    st.none(),
    st.integers(-9, 9),
    st.lists(st.integers(-9, 9), max_size=4),
    st.builds(slice, *[st.none() | st.integers(-9, 9)] * 2, st.sampled_from([None, 1, 2, -1])),
)


class Buffers(RuleBasedStateMachine):
    """Ours beside RLlib's, through the same history."""

    @initialize(
        name=st.sampled_from(sorted(SPACES)), n=st.integers(1, 7), lookback=st.integers(0, 3),
        final=st.booleans(), with_space=st.booleans(), n_lanes=st.integers(1, 2),
    )  # fmt: skip
    def begin(self, name, n, lookback, final, with_space, n_lanes):
        self.space = SPACES[name]
        self.frames = EpisodeFrames(4, n_lanes, "delta")  # which is soon too small
        self.theirs = InfiniteLookbackBuffer(
            observations(self.space, 1, n), lookback, self.space if with_space else None
        )
        if final:
            self.theirs.finalize()
        given = copy.deepcopy(self.theirs)
        self.ours = CompressedLookbackBuffer(given, self.frames, 0)
        assert_same(given.data, self.theirs.data)

    def both(self, operation):
        ours, theirs = (
            outcome(lambda: operation(self.ours)),
            outcome(lambda: operation(self.theirs)),
        )
        assert_same(ours, theirs)
        assert_same(self.ours.data, self.theirs.data)
        assert len(self.ours) == len(self.theirs)
        assert self.ours.lookback == self.theirs.lookback
        assert self.ours.finalized == self.theirs.finalized
        return theirs

    @rule(key=indices, back=st.booleans())
    def get(self, key, back):
        self.both(lambda each: each.get(key, neg_index_as_lookback=back))

    @rule(key=indices)
    def brackets(self, key):
        self.both(lambda each: each[key])

    @rule(
        key=indices, fill=st.none() | st.just(0), one_hot=st.booleans(), ignore=st.booleans(),
        back=st.booleans(),
    )  # fmt: skip
    def get_otherwise(self, key, fill, one_hot, ignore, back):
        self.both(
            lambda each: each.get(
                key, fill=fill, one_hot_discrete=one_hot, _ignore_last_ts=ignore,
                neg_index_as_lookback=back,
            )
        )  # fmt: skip

    @rule(seed=st.integers(0, 3))
    def append(self, seed):
        item = observations(self.space, seed, 1)[0]
        self.both(lambda each: each.append(item))

    @precondition(lambda self: self.theirs.len_incl_lookback() < 40)
    @rule(seed=st.integers(0, 3), n=st.integers(0, 4), final=st.booleans())
    def extend(self, seed, n, final):
        items: Any = observations(self.space, seed, n)
        if final and n:
            whole = InfiniteLookbackBuffer(items)
            whole.finalize()
            items = whole.data
        if isinstance(items, dict) and not self.theirs.finalized:
            return  # RLlib adds the names of a dict's entries then
        self.both(lambda each: each.extend(items))

    @rule(seed=st.integers(0, 3), n=st.integers(1, 3))
    def go_on(self, seed, n):
        """What `concat_episode` does: the last observation comes again, with others after it."""
        if not len(self.theirs):
            return
        first = self.theirs[-1]
        items = [first, *observations(self.space, seed, n)]
        self.both(lambda each: each.pop())
        if self.theirs.finalized:
            whole = InfiniteLookbackBuffer(items)
            whole.finalize()
            self.both(lambda each: each.extend(whole.data))
        else:
            self.both(lambda each: each.extend(items))

    @rule(n=st.integers(0, 3))
    def concat(self, n):
        other = InfiniteLookbackBuffer(observations(self.space, 2, n + 1), 1)
        self.both(lambda each: each.concat(other))

    @precondition(lambda self: self.theirs.len_incl_lookback() > 1)
    @rule(index=st.sampled_from([-1, -1, 0]))
    def pop(self, index):
        self.both(lambda each: each.pop(index))

    @rule(at=st.integers(0, 4))
    def put(self, at):
        item = observations(self.space, 3, 1)[0]
        if at < len(self.theirs):
            self.both(lambda each: each.set(item, at_indices=at))

    @rule()
    def finalize(self):
        self.both(lambda each: each.finalize())

    @rule()
    def add(self):
        other = InfiniteLookbackBuffer([1])
        self.both(lambda each: (each + other).data)
        self.both(lambda each: (other + each).data)

    @rule()
    def copies(self):
        for copied in (copy.deepcopy(self.ours), pickle.loads(pickle.dumps(self.ours))):
            assert type(copied) is InfiniteLookbackBuffer
            assert_same(copied.data, self.theirs.data)
            assert copied == self.theirs
        assert self.ours == self.theirs

    @rule()
    def parts(self):
        """States that go on by themselves."""
        lanes, parts = self.frames.get_state(), self.ours.get_parts()
        lanes, parts = pickle.loads(pickle.dumps((lanes, parts)))
        frames = EpisodeFrames(4, 1, "delta")
        frames.set_state(lanes)
        self.frames, self.ours = frames, CompressedLookbackBuffer.from_parts(parts, frames, 0)
        assert_same(self.ours.data, self.theirs.data)


Buffers.TestCase.settings = settings(max_examples=BASE_EXAMPLES // 2, stateful_step_count=20)
test_like_rllibs_own = Buffers.TestCase


@pytest.mark.parametrize("final", [False, True])
def test_images_are_compressed_and_nothing_else(final):
    space = SPACES["dict"]
    dense = InfiniteLookbackBuffer(observations(space, 1, 4), 0, space)
    if final:
        dense.finalize()
    ours = CompressedLookbackBuffer(dense, EpisodeFrames(8, 1, "delta"), 0)
    assert [isinstance(leaf, Column) for leaf in ours._leaves] == [True, False, True]
    assert (
        ours.nbytes == sum(np.asarray(leaf).nbytes for leaf in ours._leaves if final) or not final
    )


@given(st.data())
@settings(max_examples=BASE_EXAMPLES // 2)
def test_items_of_many_kinds(data):
    """Lists hold whatever an environment gives; RLlib keeps it, and so do we."""
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    kinds = [image, image.astype(np.float32), image[:2], {"a": image}, {"b": image, "c": 1},
             (image, image), [image], 3, None, "text", np.float32(2), image[0]]  # fmt: skip
    chosen = st.lists(st.integers(0, len(kinds) - 1), min_size=1, max_size=4)
    items = [kinds[i] for i in data.draw(chosen)]
    more = [kinds[i] for i in data.draw(chosen)]
    theirs = InfiniteLookbackBuffer(list(items))
    ours = CompressedLookbackBuffer(
        InfiniteLookbackBuffer(list(items)), EpisodeFrames(8, 1, "delta"), 0
    )
    for each in (ours, theirs):
        each.extend(list(more))
        each.append(items[0])
    assert_same(ours.data, theirs.data)
    assert_same(ours.get(slice(1, None)), theirs.get(slice(1, None)))
    results = [outcome(each.finalize) for each in (ours, theirs)]
    assert_same(*results)
    assert_same(ours.data, theirs.data)
