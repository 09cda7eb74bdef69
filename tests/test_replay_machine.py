"""A state machine that drives a ``ReplayBuffer`` beside a list of everything that was added.

After every step what may be drawn must be what the oracle says, all of it and bit for bit,
whatever the wrapper did, however the ring turned, and with batches drawn ahead.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import pickle
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from compressarray import Batch, ReplayBuffer
from compressarray.feed import ChangeFeed, Replica
from tests.effort import examples
from tests.naive import assert_same
from tests.replay_worlds import (
    FEEDS,
    FRAME,
    MODES,
    PADDINGS,
    Setting,
    World,
    assert_batch,
    assert_same_content,
    assert_same_runs,
    assert_same_sequences,
    assert_same_steps,
)

REFUSED = ("reward", "action", "obs", "next_obs", "terminated", "lanes", "fields")
RUNS = ("full", "pad", "cross")
PROBABILITIES = st.sampled_from((0.0, 0.1, 0.5, 1.0))


@st.composite
def worlds(
    draw: st.DrawFn,
    slots: tuple[int, ...] = (1, 2, 5, 9, 40),
    frames: tuple[tuple[int, ...], ...] = (FRAME,),
) -> Setting:
    n_slots = draw(st.sampled_from(slots))
    n_envs = draw(st.integers(1, 3))
    return Setting(
        feed=draw(st.sampled_from(FEEDS)),
        n_envs=n_envs,
        n_slots=n_slots,
        stack_size=draw(st.sampled_from((1, 2, 4))),
        n_step=draw(st.integers(1, min(n_slots, 4))),
        full_windows=draw(st.booleans()),
        mode=draw(st.sampled_from(MODES)),
        padding=draw(st.sampled_from(PADDINGS)),
        prioritized=draw(st.booleans()),
        codec=draw(st.sampled_from(("delta", "raw", "delta-huffman"))),
        seed=draw(st.integers(0, 999)),
        extra=draw(st.integers(0, n_envs - 1)),
        resets=200,
        frame=draw(st.sampled_from(frames)),
        has_lives=draw(st.booleans()),
        has_fields=draw(st.booleans()),
    )


class ReplayMachine(RuleBasedStateMachine):
    """One world: its buffer, its oracle, and what was drawn ahead."""

    drawn_settings = worlds()

    @initialize(data=st.data())
    def build(self, data: st.DataObject) -> None:
        setting = data.draw(self.drawn_settings)
        self.world = World(setting)
        self.ahead: Any = None
        self.promised: deque[dict[int, Any]] = deque()
        # The last batch that nobody needs, and those whose memory must stay theirs, with copies of
        # their observations.
        self.spare: Batch | None = None
        self.held: deque[tuple[Batch, Any]] = deque(maxlen=3)
        # To the power of alpha: of what may be drawn, by name, and of what comes to it.
        self.priorities: dict[int, float] = {}
        self.priority_of_new = 1.0
        self.folders = contextlib.ExitStack()
        self.follow_anew()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.stop_drawing_ahead()
            self.world.buffer._log = None
            self.folders.close()

    @property
    def samplable(self) -> dict[int, Any]:
        return self.world.oracle.samplable()

    # ----------------------------------------------------------------- adding

    @rule(
        n=st.integers(1, 12),
        p_terminate=PROBABILITIES,
        p_truncate=PROBABILITIES,
        p_glitch=st.sampled_from((0.0, 0.0, 0.3)),
    )
    def add(self, n: int, p_terminate: float, p_truncate: float, p_glitch: float) -> None:
        for _ in range(n):
            self.world.step(p_terminate, p_truncate, p_glitch)

    @rule(data=st.data(), p_end=PROBABILITIES)
    def add_to_some_lanes(self, data: st.DataObject, p_end: float) -> None:
        n_envs = self.world.setting.n_envs
        for _ in range(3):
            lanes = data.draw(st.sets(st.integers(0, n_envs - 1), min_size=1))
            self.world.step(p_end, 0.1, lanes=sorted(lanes))

    @rule(n=st.integers(1, 3))
    def add_more_than_the_ring_holds(self, n: int) -> None:
        for _ in range(min(n * self.world.setting.n_slots, 50) + 1):
            self.world.step(0.02, 0.02)

    @rule(data=st.data(), is_announced=st.booleans())
    def reset_from_outside(self, data: st.DataObject, is_announced: bool) -> None:
        lanes = data.draw(st.sets(st.integers(0, self.world.setting.n_envs - 1)))
        reset = self.world.cut if is_announced else self.world.reset_from_outside
        reset(sorted(lanes))

    @rule(
        what=st.sampled_from(
            ("reward", "action", "obs", "next_obs", "terminated", "lanes", "fields")
        )
    )
    def add_what_must_be_refused(self, what: str) -> None:
        world = self.world
        n = world.setting.n_envs
        given = world.given()
        arguments: dict[str, Any] = {
            "obs": given,
            "action": np.zeros(n, int),
            "reward": np.zeros(n),
            "terminated": np.zeros(n, bool),
            "truncated": np.zeros(n, bool),
            "next_obs": given,
        }
        if what in ("reward", "action"):
            arguments[what] = np.full(n, np.nan)
        elif what in ("obs", "next_obs"):
            arguments[what] = np.zeros((n, 3, 1), np.uint8)
        elif what == "terminated":
            arguments[what] = np.zeros(n)
        elif what == "fields":
            arguments[what] = {"name": np.zeros(n, np.int64)}
        else:
            arguments = {
                key: {name: value[:0] for name, value in each.items()}
                if isinstance(each, dict)
                else each[:0]
                for key, each in arguments.items()
            }
        resetting = all(world.resetting)
        if what == "reward" and resetting:
            return  # a row that is no transition
        with pytest.raises((TypeError, ValueError)):
            world.buffer.add(**arguments)

    # ----------------------------------------------------------------- drawing

    @precondition(lambda self: self.samplable)
    @rule(n=st.sampled_from((1, 2)) | st.integers(1, 20), keep=st.booleans())
    def sample(self, n: int, keep: bool) -> None:
        fits = self.spare is not None and len(self.spare.index) == n
        batch = self.world.buffer.sample(n, out=self.spare if fits else None)
        self.spare = None if keep else batch
        assert_batch(batch, self.samplable)
        if keep:
            self.held.append((batch, copy.deepcopy(batch.obs)))
        for earlier, obs in self.held:
            for key in obs if isinstance(obs, dict) else (slice(None),):
                assert_same(np.array(earlier.obs[key]), np.array(obs[key]))

    @rule(length=st.integers(1, 7))
    def sample_sequences(self, length: int) -> None:
        world = self.world
        if length > world.setting.n_slots:
            with pytest.raises(ValueError, match=f"length={length} is more than"):
                world.buffer.sample_sequences(1, length)
        else:
            assert_same_sequences(world.buffer, world.oracle, length)

    @rule(
        length=st.integers(1, 7),
        burn_in=st.integers(0, 3),
        how=st.sampled_from(("", "pad", "cross")),
    )
    def sample_runs(self, length: int, burn_in: int, how: str) -> None:
        world = self.world
        if length <= world.setting.n_slots:
            options = {"pad": how == "pad", "cross_episodes": how == "cross", "burn_in": burn_in}
            assert_same_runs(world.buffer, world.oracle, length, **options)

    @precondition(lambda self: self.world.setting.prioritized and self.samplable)
    @rule(length=st.integers(1, 4), pad=st.booleans())
    def sample_runs_by_priority(self, length: int, pad: bool) -> None:
        world = self.world
        if length > world.setting.n_slots:
            return
        starts = world.oracle.runs(length, pad=pad)
        if not starts:
            return
        batch = world.buffer.sample_sequences(
            len(starts), length, replace=False, pad=pad, prioritized=True, beta=1.0
        )
        assert sorted(batch.index[:, 0].tolist()) == sorted(starts)
        samplable = self.samplable
        if set(starts) <= set(samplable) and world.setting.n_step == 1:
            self.draws_by_priority()
            drawn = np.array([self.priorities[name] for name in batch.index[:, 0].tolist()])
            np.testing.assert_allclose(batch.weight, drawn.min() / drawn, rtol=1e-5)

    @precondition(lambda self: len(self.world.oracle))
    @rule(data=st.data())
    def set_rewards(self, data: st.DataObject) -> None:
        names = data.draw(st.lists(st.sampled_from(self.world.oracle.names()), max_size=4))
        rewards = data.draw(st.lists(st.floats(-9, 9), min_size=len(names), max_size=len(names)))
        self.world.buffer.set_rewards(names, rewards)
        for name, reward in zip(names, rewards, strict=True):
            self.world.oracle.set_reward(name, reward)
        self.promised.clear()
        self.stop_drawing_ahead()

    @precondition(lambda self: len(self.world.oracle))
    @rule()
    def read_by_name(self) -> None:
        assert_same_steps(self.world.buffer, self.world.oracle)

    @rule(replace=st.booleans())
    def sample_more_than_there_is(self, replace: bool) -> None:
        n = len(self.samplable)
        if n == 0:
            with pytest.raises(ValueError, match="nothing can be drawn"):
                self.world.buffer.sample(1, replace)
        else:
            with pytest.raises(ValueError, match=f"more than the {n} "):
                self.world.buffer.sample(n + 1, replace=False)

    @precondition(lambda self: self.ahead is None and self.samplable)
    @rule(lookahead=st.integers(0, 3), thread=st.booleans())
    def draw_ahead(self, lookahead: int, thread: bool) -> None:
        self.lookahead = lookahead
        self.ahead = self.world.buffer.batches(3, lookahead=lookahead, thread=thread)
        assert_batch(next(self.ahead), self.samplable)
        self.promised.extend([self.samplable] * lookahead)

    @precondition(lambda self: self.ahead is not None and self.samplable)
    @rule(n=st.integers(1, 3))
    def take_what_was_drawn_ahead(self, n: int) -> None:
        for _ in range(n):
            while len(self.promised) <= self.lookahead:
                self.promised.append(self.samplable)
            assert_batch(next(self.ahead), self.promised.popleft())

    @precondition(lambda self: self.ahead is not None)
    @rule()
    def stop_drawing_ahead(self) -> None:
        if self.ahead is not None:
            self.ahead.close()
        self.ahead = None
        self.promised.clear()

    @precondition(lambda self: self.world.setting.prioritized and self.samplable)
    @rule(data=st.data())
    def update_priorities(self, data: st.DataObject) -> None:
        buffer = self.world.buffer
        index = buffer.sample(4).index
        priorities = data.draw(st.lists(st.floats(0, 9), min_size=4, max_size=4))
        buffer.update_priorities(index, priorities)
        scaled = [(priority + buffer.epsilon) ** buffer.alpha for priority in priorities]
        self.priorities.update(zip(index.tolist(), scaled, strict=True))
        self.priority_of_new = max(self.priority_of_new, *scaled)

    # ----------------------------------------------------------------- copying

    @rule(how=st.sampled_from(("copy", "pickle", "file", "checkpoint", "replica")))
    def go_on_with_a_copy(self, how: str) -> None:
        self.stop_drawing_ahead()
        world = self.world
        old = world.buffer
        if how == "copy":
            world.buffer = old.copy()
        elif how == "pickle":
            world.buffer = pickle.loads(pickle.dumps(old))
        elif how == "checkpoint":
            number = old.checkpoint(self.folder)
            world.buffer = ReplayBuffer.restore(self.folder, at=number)
            old._log = None  # as if that process had ended
        elif how == "replica":
            self.replica.apply(self.feed.read())
            world.buffer = self.replica.buffer
            world.buffer._end_following()
        else:
            path = f"{self.folder}/../{Path(self.folder).name}.buffer"
            old.save(path)
            world.buffer = ReplayBuffer.load(path)
            Path(path).unlink()
        if world.frames is not None:
            world.frames = world.buffer.frames
        before = old.sample(5).index.tolist() if self.samplable else []
        after = world.buffer.sample(5).index.tolist() if self.samplable else []
        assert before == after, "the random state was not copied"
        self.follow_anew()

    @rule(n_slots=st.integers(1, 50), extra=st.integers(0, 2))
    def go_on_with_another_capacity(self, n_slots: int, extra: int) -> None:
        self.stop_drawing_ahead()
        world = self.world
        s = world.setting
        path = Path(self.folder, "..", f"{Path(self.folder).name}.buffer")
        world.buffer.save(path)
        mapped = ReplayBuffer.load(path, mmap_mode="r")
        assert_same_content(mapped, world.oracle)
        capacity = n_slots * s.n_envs + min(extra, s.n_envs - 1)
        if n_slots < s.n_step:
            with pytest.raises(ValueError, match=f"load it with {s.n_envs * s.n_step} or more"):
                ReplayBuffer.load(path, capacity=capacity)
            path.unlink()
            return
        world.buffer = ReplayBuffer.load(path, capacity=capacity)
        path.unlink()
        if world.frames is not None:
            world.frames = world.buffer.frames
        world.setting = dataclasses.replace(s, n_slots=n_slots)
        world.oracle.resize(n_slots)
        for lane in world.lanes:
            lane.setting = world.setting
        self.follow_anew()

    # ----------------------------------------------------------------- replicas

    def follow_anew(self) -> None:
        self.feed, self.replica = ChangeFeed(self.world.buffer), Replica()
        # Numbers go on from where a buffer was restored; others need a directory of their own.
        if not self.world.buffer._restored[1]:
            self.folder = self.folders.enter_context(tempfile.TemporaryDirectory())
        self.checkpoint_at: tuple[int, Any] | None = None

    @rule()
    def send_to_a_replica(self) -> None:
        self.replica.apply(self.feed.read())
        self.replica.buffer.seed(3)
        assert_same_content(self.replica.buffer, self.world.oracle)
        assert_same_content(self.replica.buffer.copy(), self.world.oracle)

    @rule()
    def checkpoint(self) -> None:
        number = self.world.buffer.checkpoint(self.folder)
        again = ReplayBuffer.restore(self.folder, at=number)
        assert_same_content(again, self.world.oracle)
        if self.checkpoint_at is not None:
            earlier, names = self.checkpoint_at
            before = ReplayBuffer.restore(self.folder, at=earlier)
            assert before.n_samplable == len(names)
            if names:
                batch = before.sample(len(names), replace=False)
                assert_batch(batch, names)
        self.checkpoint_at = number, self.samplable

    @rule()
    def clear(self) -> None:
        self.world.clear()
        self.promised.clear()  # batches that were drawn ahead are gone
        self.priorities, self.priority_of_new = {}, 1.0

    # ----------------------------------------------------------------- always

    @invariant()
    def holds_what_was_added(self) -> None:
        assert_same_content(self.world.buffer, self.world.oracle)

    @invariant()
    def draws_by_priority(self) -> None:
        """With beta=1 the weights are the least priority over each one's own."""
        samplable = self.samplable
        self.priorities = {
            name: self.priorities.get(name, self.priority_of_new) for name in samplable
        }
        if self.world.setting.prioritized and samplable:
            batch = self.world.buffer.sample(len(samplable), replace=False, beta=1.0)
            drawn = np.array([self.priorities[name] for name in batch.index.tolist()])
            assert sorted(batch.index.tolist()) == sorted(samplable)
            np.testing.assert_allclose(batch.weight, drawn.min() / drawn, rtol=1e-5)

    @invariant()
    def accounts_add_up(self) -> None:
        buffer = self.world.buffer
        stats = buffer.stats()
        assert stats["transitions"] == len(self.world.oracle)
        assert stats["samplable"] == len(self.samplable)
        assert stats["episodes"] == self.world.oracle.n_episodes()
        assert stats["nbytes_stored"] == buffer.nbytes_stored == sum(
            stats["nbytes_by_part"].values()
        )  # fmt: skip


TestReplayMachine = ReplayMachine.TestCase
TestReplayMachine.settings = settings(max_examples=examples(60), stateful_step_count=25)


class LargeReplayMachine(ReplayMachine):
    """The same with frames of 70 to 230 KiB."""

    drawn_settings = worlds(slots=(1, 3, 6), frames=((210, 336), (1, 70_000), (480, 480)))


TestLargeReplayMachine = LargeReplayMachine.TestCase
TestLargeReplayMachine.settings = settings(
    max_examples=examples(5), stateful_step_count=8, deadline=None
)
