"""Several buffers are drawn from as if they were one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings

from compressarray import Batch, ReplayBuffer, ReplayEnsemble
from tests.effort import examples
from tests.replay_worlds import FEEDS, Setting, World, assert_batch, assert_row

NAME_BITS = 40


def worlds(setting: Setting, n: int, n_steps: int, p_glitch: float = 0.05) -> list[World]:
    made = [World(replace(setting, seed=setting.seed + i)) for i in range(n)]
    for world in made:
        for _ in range(n_steps):
            world.step(p_glitch=p_glitch)
    return made


def of_all(made: list[World]) -> dict[int, dict[str, Any]]:
    """What may be drawn of all, by its name there."""
    return {
        key << NAME_BITS | name: {**row, "index": np.int64(key << NAME_BITS | name)}
        for key, world in enumerate(made)
        for name, row in world.oracle.samplable().items()
    }


def joined(made: list[World], **how: Any) -> ReplayEnsemble:
    return ReplayEnsemble({key: world.buffer for key, world in enumerate(made)}, **how)


def settings_drawn() -> st.SearchStrategy[Setting]:
    return st.builds(
        Setting,
        feed=st.sampled_from(FEEDS),
        n_envs=st.integers(1, 3),
        n_slots=st.integers(5, 9),
        stack_size=st.integers(1, 3),
        n_step=st.integers(1, 3),
        has_fields=st.booleans(),
        seed=st.integers(0, 1000),
    )


@settings(max_examples=examples(40), deadline=None)
@given(setting=settings_drawn(), n=st.integers(1, 4), n_steps=st.integers(3, 30))
def test_all_that_may_be_drawn_is_drawn_and_is_what_was_added(setting, n, n_steps):
    made = worlds(setting, n, n_steps)
    ensemble, expected = joined(made, seed=1), of_all(made)
    assert len(ensemble) == sum(len(world.oracle) for world in made)
    assert ensemble.n_samplable == len(expected)
    if not expected:
        with pytest.raises(ValueError, match="nothing can be drawn"):
            ensemble.sample(1)
        return
    batch = ensemble.sample(len(expected), replace=False)
    assert sorted(batch.index.tolist()) == sorted(expected)
    for row, name in enumerate(batch.index.tolist()):
        assert_row(batch, row, expected[name])
    if setting.has_fields:
        assert (batch.fields["name"] == batch.index & (1 << NAME_BITS) - 1).all()
    with pytest.raises(ValueError, match="without replacement"):
        ensemble.sample(len(expected) + 1, replace=False)


@settings(max_examples=examples(30), deadline=None)
@given(
    setting=settings_drawn(),
    prioritized=st.booleans(),
    how=st.sampled_from(("sample", "no replacement", "sequences", "padded", "crossing", "by runs")),
)
def test_of_one_buffer_it_draws_what_the_buffer_does(setting, prioritized, how):
    setting = replace(setting, prioritized=prioritized)
    alone, together = World(setting), World(setting)
    ensemble = joined([together], seed=5)
    alone.buffer.seed(5)
    for t in range(12):
        for world in (alone, together):
            world.step(p_glitch=0.1)
        if not alone.buffer.n_samplable:
            continue
        for buffer in (alone.buffer, ensemble):
            if prioritized:
                newest = alone.buffer.newest(3)
                buffer.update_priorities(newest, np.arange(len(newest)) + t)
        ours, theirs = (drawn(each, how, prioritized) for each in (ensemble, alone.buffer))
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert_same_batch(ours, theirs)


def drawn(buffer: Any, how: str, prioritized: bool) -> Any:
    try:
        if how == "sample":
            return buffer.sample(7)
        if how == "no replacement":
            return buffer.sample(min(3, buffer.n_samplable), replace=False)
        beta = {"prioritized": prioritized, "beta": 0.7} if how == "by runs" else {}
        others = {"padded": {"pad": True, "burn_in": 2}, "crossing": {"cross_episodes": True}}
        return buffer.sample_sequences(5, 3, **beta, **others.get(how, {}))
    except ValueError as error:
        if "can be drawn" not in str(error):
            raise
        return None


def assert_same_batch(ours: Any, theirs: Any) -> None:
    for name, a, b in zip(ours._fields, ours, theirs, strict=True):
        assert (a.keys() == b.keys()) if isinstance(a, dict) else (a.dtype == b.dtype), name
        for key in a if isinstance(a, dict) else (slice(None),):
            assert np.array_equal(a[key], b[key]), name


@settings(max_examples=examples(20), deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(2, 4), exponents=st.lists(st.integers(-3, 3)))
def test_priorities_are_shared_out_over_all(seed, n, exponents):
    """Of powers of two, sums are exact: the oracle is one long list."""
    made = worlds(Setting(seed=seed, prioritized=True, n_envs=1), n, 12)
    for world in made:
        world.buffer.epsilon = 0
    ensemble = joined(made, seed=2, beta=0.5)
    names = np.array(sorted(of_all(made)))
    rng = np.random.default_rng(seed)
    values = 2.0 ** rng.integers(-2, 3, len(names))
    values[: len(exponents)] = 2.0 ** np.array(exponents[: len(values)])
    alpha = made[0].buffer.alpha
    ensemble.update_priorities(names, values ** (1 / alpha))
    batch = ensemble.sample(16)
    by_name = dict(zip(names.tolist(), values.tolist(), strict=True))
    # cells, and not names, are in order within a buffer
    order = [
        (key << NAME_BITS) + name
        for key, world in enumerate(made)
        for name in by_cell(world.buffer)
        if (key << NAME_BITS) + name in by_name
    ]
    ends = np.cumsum([by_name[name] for name in order])
    targets = (np.arange(16) + np.random.default_rng(2).random(16)) / 16 * ends[-1]
    expected = [order[i] for i in np.searchsorted(ends, targets, "right")]
    near = np.abs(targets[:, None] - ends).min(1) < 1e-9 * ends[-1]
    assert all(a == b or close for a, b, close in zip(batch.index, expected, near, strict=True))
    probabilities = np.array([by_name[name] for name in batch.index.tolist()]) / ends[-1]
    weight = (probabilities.min() / probabilities) ** 0.5
    np.testing.assert_allclose(batch.weight, weight, rtol=1e-5)
    once = ensemble.sample(len(names), replace=False)
    assert sorted(once.index.tolist()) == names.tolist()
    tops = {world.buffer._tree.top for world in made}
    assert len(tops) == 1


def by_cell(buffer: ReplayBuffer) -> list[int]:
    held = buffer._transitions
    return held.names(np.flatnonzero(held.is_held)).tolist()


def test_uniform_means_over_all_transitions():
    made = worlds(Setting(n_envs=1, n_slots=40), 1, 40) + worlds(
        Setting(n_envs=1, n_slots=40), 1, 5
    )
    ensemble = joined(made, seed=3)
    share = np.mean(ensemble.sample(4000).index >> NAME_BITS)
    expected = made[1].buffer.n_samplable / ensemble.n_samplable
    assert abs(share - expected) < 5 * np.sqrt(expected / 4000)


@pytest.mark.parametrize("thread", [False, True])
@pytest.mark.parametrize("feed", ["stacks", "indices"])
def test_what_is_drawn_ahead_is_delivered_as_it_was(feed, thread):
    made = worlds(Setting(feed=feed, n_slots=6), 3, 6)
    ensemble = joined(made, seed=4)
    with ensemble.batches(8, lookahead=3, thread=thread) as batches:
        seen = of_all(made)
        for _ in range(30):
            assert_batch(next(batches), seen)
            for world in made:
                world.step()
            seen |= of_all(made)
    with ensemble.sequences(4, 2, thread=thread) as sequences:
        for _ in range(10):
            batch = next(sequences)
            for row in range(4):
                key, name = divmod(int(batch.index[row, 0]), 1 << NAME_BITS)
                assert np.array_equal(batch.obs[row, 0], made[key].oracle.step_of(name)["obs"])
            for world in made:
                world.step()


@settings(max_examples=examples(20), deadline=None)
@given(
    most=st.integers(1, 3),
    seed=st.integers(0, 1000),
    n_step=st.integers(1, 3),
    prioritized=st.booleans(),
)
def test_nothing_is_drawn_more_often_than_it_may(most, seed, n_step, prioritized):
    setting = Setting(seed=seed, n_step=n_step, n_slots=6, prioritized=prioritized)
    made = worlds(setting, 2, 4)
    ensemble = joined(made, seed=seed, max_times_drawn=most)
    times: dict[int, int] = {}
    rng = np.random.default_rng(seed)
    for t in range(40):
        expected = {n: row for n, row in of_all(made).items() if times.get(n, 0) < most}
        assert ensemble.n_samplable == len(expected)
        size = min(int(rng.integers(1, 5)), len(expected))
        if size:
            batch: Batch = ensemble.sample(size)
            assert len(set(batch.index.tolist())) == size
            assert_batch(batch, expected)
            for name in batch.index.tolist():
                times[name] = times.get(name, 0) + 1
        for world in made:
            if t % 3:
                world.step()
            if t % 7 == 0:
                world.cut([0])
            if t == 25:
                world.clear()
        if t == 25:
            times.clear()


def test_buffers_come_and_go():
    made = worlds(Setting(prioritized=True), 3, 8)
    ensemble = joined(made[:2], seed=1)
    index = ensemble.sample(6).index
    assert set(index >> NAME_BITS) == {0, 1}
    assert ensemble.remove(0) is made[0].buffer
    ensemble.update_priorities(index, np.ones(6))  # of a buffer that has gone, too
    ensemble.put(7, made[2].buffer)
    keys, names = ensemble.origin(ensemble.sample(32).index)
    assert set(keys.tolist()) == {1, 7}
    assert (names < 100).all()
    assert list(ensemble.buffers) == [1, 7]
    assert "2 buffers" in repr(ensemble)
    assert ensemble.nbytes_stored == sum(made[i].buffer.nbytes_stored for i in (1, 2))
    with pytest.raises(KeyError):
        ensemble.remove(0)


def plain(**changes: Any) -> ReplayBuffer:
    arguments = {
        "capacity": 10,
        "observation_space": Box(0, 255, (2, 4, 4), np.uint8),
        "action_space": Discrete(3),
    }
    return ReplayBuffer(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"observation_space": Box(0, 255, (2, 4, 5), np.uint8)}, "observation_space"),
        ({"action_space": Discrete(4)}, "action_space"),
        ({"n_step": 2}, "n_step"),
        ({"full_windows": True}, "full_windows"),
        ({"prioritized": True}, "prioritized"),
        ({"stack_axis": None}, "stack_axis"),
        ({"fields": {"x": Discrete(2)}}, "fields"),
    ],
)
def test_buffers_of_other_kinds_are_refused(changes, named):
    ensemble = ReplayEnsemble({0: plain()})
    with pytest.raises(ValueError, match=f"^{named}") as error:
        ensemble.put(1, plain(**changes))
    assert "\n" not in str(error.value)
    assert list(ensemble.buffers) == [0]
    ensemble.put(0, plain(**changes))  # in its place is another matter


def test_wrong_arguments():
    ensemble = ReplayEnsemble()
    with pytest.raises(TypeError, match="must be a ReplayBuffer"):
        ensemble.put(0, np.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="largest that names have room for"):
        ensemble.put(1 << 23, plain())
    with pytest.raises(ValueError, match="nothing can be drawn: the 0 buffers"):
        ensemble.sample(3)
    with pytest.raises(ValueError, match="nothing can be drawn"):
        ensemble.sample_sequences(3, 2)
    ensemble.put(0, plain())
    with pytest.raises(TypeError, match="none of"):
        ensemble.sample_sequences(3, 2, padded=True)
    with pytest.raises(ValueError, match="batch_size"):
        ensemble.sample(0)
    with pytest.raises(ValueError, match="max_times_drawn"):
        ReplayEnsemble(max_times_drawn=0)
