"""Learners have what runners had when they answered, whatever gets lost on the way."""

from __future__ import annotations

import errno
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from compressarray import CorruptFrameError, ReplayBuffer
from compressarray.distributed import Delivery, EnvRunner, JointReplay, SamplesPerInsert
from compressarray.format import container
from tests.effort import examples
from tests.replay_worlds import FEEDS, Setting, World, assert_batch, assert_row

NAME_BITS = 40
RUNNERS = ("one", "two")


class WorldRunner(EnvRunner):
    """A world, and what its oracle said when each message was made."""

    def __init__(self, setting: Setting) -> None:
        self.world = World(setting)
        self.buffer = self.world.buffer
        self.said: dict[bytes, dict[int, dict[str, Any]]] = {}

    def step(self) -> None:
        self.world.step(p_glitch=0.05)

    def collect(self, *arguments: Any, **named: Any) -> Delivery:
        delivery = super().collect(*arguments, **named)
        if delivery.message not in self.said:  # one that is sent again is as it was
            self.said[delivery.message] = self.world.oracle.samplable()
        return delivery


def lock_step(runner: EnvRunner, replay: JointReplay, name: str = "one") -> int:
    return replay.take(name, runner.collect(*replay.request(name)))


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("prioritized", [False, True])
def test_in_lock_step_it_draws_what_one_process_draws(feed, prioritized):
    setting = Setting(feed=feed, n_step=3, n_slots=12, has_fields=True)
    alone, runner = World(replace(setting, prioritized=prioritized)), WorldRunner(setting)
    alone.buffer.seed(7)
    replay = JointReplay(steps=1, prioritized=prioritized, seed=7)
    assert lock_step(runner, replay) == 0
    rng = np.random.default_rng(0)
    for _ in range(60):
        alone.step(p_glitch=0.05)
        assert lock_step(runner, replay) == setting.n_envs
        if not alone.buffer.n_samplable:
            continue
        ours, theirs = replay.sample(8), alone.buffer.sample(8)
        for name, a, b in zip(ours._fields, ours, theirs, strict=True):
            for key in a if isinstance(a, dict) else (slice(None),):
                assert np.array_equal(a[key], b[key]), name
        if prioritized:
            values = rng.random(8)
            replay.update_priorities(ours.index, values)
            alone.buffer.update_priorities(theirs.index, values)
            ours_runs = replay.sample_sequences(3, 2, prioritized=True, pad=True)
            theirs_runs = alone.buffer.sample_sequences(3, 2, prioritized=True, pad=True)
            assert np.array_equal(ours_runs.index, theirs_runs.index)
            assert np.array_equal(ours_runs.weight, theirs_runs.weight)


class Unreliable(RuleBasedStateMachine):
    """Two runners and a learner; messages and processes come and go."""

    @initialize(
        setting=st.builds(
            Setting,
            feed=st.sampled_from(FEEDS),
            n_envs=st.integers(1, 2),
            n_slots=st.integers(4, 8),
            n_step=st.integers(1, 2),
        ),
        prioritized=st.booleans(),
    )
    def begin(self, setting: Setting, prioritized: bool) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.setting, self.prioritized = setting, prioritized
        self.n_lives = 0
        self.runners = {name: self.new_runner() for name in RUNNERS}
        self.replay = self.new_replay()
        self.asked: dict[str, list[Any]] = {name: [] for name in RUNNERS}
        self.answered: dict[str, list[Delivery]] = {name: [] for name in RUNNERS}
        self.old: list[tuple[str, WorldRunner, Delivery]] = []
        # What is acknowledged: of each runner its lives, oldest first.
        self.has: dict[str, list[tuple[bytes, dict[int, dict[str, Any]]]]] = {
            n: [] for n in RUNNERS
        }
        self.saved: list[tuple[int, Any]] = []

    def new_runner(self) -> WorldRunner:
        self.n_lives += 1
        return WorldRunner(replace(self.setting, seed=self.n_lives))

    def new_replay(self) -> JointReplay:
        return JointReplay(steps=2, prioritized=self.prioritized, seed=self.n_lives)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @rule(name=st.sampled_from(RUNNERS))
    def ask(self, name: str) -> None:
        if len(self.asked[name]) + len(self.answered[name]) < 3:
            self.asked[name].append(self.replay.request(name))

    @rule(name=st.sampled_from(RUNNERS))
    def answer(self, name: str) -> None:
        if self.asked[name]:
            runner = self.runners[name]
            self.answered[name].append(runner.collect(*self.asked[name].pop(0)))

    @rule(name=st.sampled_from(RUNNERS))
    def take(self, name: str) -> None:
        if self.answered[name]:
            self.taken(name, self.runners[name], self.answered[name].pop(0))

    @rule(name=st.sampled_from(RUNNERS))
    def go_through(self, name: str) -> None:
        for _ in range(3):
            self.ask(name)
            self.answer(name)
            self.take(name)

    def taken(self, name: str, runner: WorldRunner, delivery: Delivery) -> None:
        inserts = self.replay.limiter.inserts
        gained = self.if_it_follows(name, delivery)
        if gained is None:
            assert self.replay.limiter.inserts == inserts
            self.lose(name)
            return
        assert self.replay.limiter.inserts == inserts + gained
        lives = self.has[name]
        if gained or not lives or lives[-1][0] != delivery.life:
            if lives and lives[-1][0] == delivery.life:
                del lives[-1]
            lives.append((delivery.life, runner.said[delivery.message]))
        self.old.append((name, runner, delivery))
        # Those go that as much has come after as a buffer holds.
        buffers = self.replay.buffers
        since, kept = 0, []
        for life in reversed(lives):
            if since < self.setting.n_envs * self.setting.n_slots:
                kept.append(life)
            of_it = [b for k, b in buffers.items() if self.replay_life(k) == life[0]]
            since += sum(len(each) for each in of_it)
        if self.setting.n_step == 1:  # else the oracle's and the buffer's numbers differ by few
            self.has[name] = kept[::-1]
        else:
            held = {self.replay_life(key) for key in buffers}
            self.has[name] = [life for life in lives if life[0] in held]

    def if_it_follows(self, name: str, delivery: Delivery) -> int | None:
        try:
            return self.replay.take(name, delivery)
        except ValueError as error:
            if "does not follow on" not in str(error):
                raise
            return None

    def replay_life(self, key: int) -> bytes:
        for runner in self.replay._runners.values():
            for life in runner.lives:
                if life.key == key:
                    return life.name
        raise AssertionError(f"no life has key {key}")

    @rule(name=st.sampled_from(RUNNERS))
    def lose(self, name: str) -> None:
        self.asked[name].clear()
        self.answered[name].clear()
        self.replay.forget(name)

    @rule(name=st.sampled_from(RUNNERS), place=st.integers(0, 10**6), bit=st.integers(0, 7))
    def damage(self, name: str, place: int, bit: int) -> None:
        if self.answered[name]:
            delivery = self.answered[name].pop(0)
            message = bytearray(delivery.message)
            # the head's id and number have no checksum: who reads them does not find his own
            place = 17 + place % (len(message) - 17)
            message[place] ^= 1 << bit
            with pytest.raises(CorruptFrameError):
                self.replay.take(name, delivery._replace(message=bytes(message)))
            self.lose(name)

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def come_again(self, data: Any) -> None:
        """What was taken comes once more: nothing happens, or it does not follow."""
        name, _, delivery = data.draw(st.sampled_from(self.old[-4:]))
        before = self.has[name]
        if before and before[-1][0] == delivery.life and delivery.message[0] == 1:
            assert not self.if_it_follows(name, delivery)
            self.lose(name)

    @rule(name=st.sampled_from(RUNNERS))
    def kill_runner(self, name: str) -> None:
        self.runners[name] = self.new_runner()
        self.lose(name)

    @rule()
    def checkpoint(self) -> None:
        number = self.replay.checkpoint(self.folder)
        state = {name: list(lives) for name, lives in self.has.items()}
        self.saved = [*[each for each in self.saved if each[0] < number][-1:], (number, state)]

    @precondition(lambda self: self.saved)
    @rule(newest=st.booleans())
    def kill_learner(self, newest: bool) -> None:
        number, state = self.saved[-1 if newest else 0]
        self.replay = self.new_replay()
        self.replay.restore(self.folder, None if newest else number)
        self.has = {name: list(lives) for name, lives in state.items()}
        self.old.clear()
        for name in RUNNERS:
            self.lose(name)

    @invariant()
    def has_what_was_acknowledged(self) -> None:
        if not hasattr(self, "has"):
            return
        expected = {}
        for lives in self.has.values():
            for life, rows in lives:
                keys = [k for k in self.replay.buffers if self.replay_life(k) == life]
                assert len(keys) == 1
                for name, row in rows.items():
                    full = keys[0] << NAME_BITS | name
                    expected[full] = {**row, "index": np.int64(full)}
        assert self.replay.n_samplable == len(expected)
        if expected:
            n = len(expected)
            batch = self.replay.sample(n, replace=False)
            assert sorted(batch.index.tolist()) == sorted(expected)
            for row, name in enumerate(batch.index.tolist()):
                wanted = dict(expected[name])
                if self.prioritized:
                    wanted.pop("weight", None)
                assert_row(batch, row, wanted)
            if self.prioritized:
                self.replay.update_priorities(batch.index, np.arange(1, n + 1))


TestUnreliable = Unreliable.TestCase
TestUnreliable.settings = settings(max_examples=examples(25), stateful_step_count=40, deadline=None)


def test_with_two_requests_at_once_a_runner_that_begins_anew_is_followed():
    replay = JointReplay(steps=2, seed=0)
    for life in range(3):
        runner = WorldRunner(Setting(seed=life, n_envs=1, n_slots=50))
        requests = [replay.request("one")]
        if life:
            requests.append(replay.request("one"))
        for _ in range(8):
            replay.take("one", runner.collect(*requests.pop(0)))
            while len(requests) < 2:
                requests.append(replay.request("one"))
        assert int(list(replay.buffers.values())[-1].position[0]) >= 8
        replay.forget("one")


def test_priorities_stay_where_everything_comes_anew():
    runner = WorldRunner(Setting(n_slots=10, n_envs=1))
    replay = JointReplay(steps=4, prioritized=True, seed=0, epsilon=0, alpha=1)
    lock_step(runner, replay)
    lock_step(runner, replay)
    batch = replay.sample(4, replace=False)
    replay.update_priorities(batch.index, [5.0, 6.0, 7.0, 8.0])
    before = dict(zip(batch.index.tolist(), [5.0, 6.0, 7.0, 8.0], strict=True))
    runner.step()
    fills = replay.stats()["fills"]
    answer = runner.collect(replay.learner, (b"elsewhere", 3), 0)  # as to one that has lost it all
    replay.request("one")
    replay.take("one", answer)
    assert replay.stats()["fills"] == fills + 1
    leaves = leaves_of(replay.buffers[0])
    assert {name: leaves[name] for name in before} == before
    assert set(leaves.values()) == {5.0, 6.0, 7.0, 8.0}  # the new one has the largest


def leaves_of(buffer: ReplayBuffer) -> dict[int, float]:
    held = buffer._transitions
    cells = np.flatnonzero(held.is_held)
    return dict(zip(held.names(cells).tolist(), buffer._tree.leaves[cells].tolist(), strict=True))


class Opinionated(WorldRunner):
    """Gives new transitions priorities, which learners hear of once each."""

    told = 0

    def priorities(self):
        names = np.arange(self.told, int(self.buffer.position[0]))
        self.told += len(names)
        return names, names + 10.0


def test_priorities_of_runners_are_told_to_every_learner():
    runner = Opinionated(Setting(n_slots=10, n_envs=1))
    how = {"prioritized": True, "alpha": 1, "epsilon": 0, "steps": 2}
    first, second = JointReplay(learner="a", **how), JointReplay(learner="b", **how)
    for replay in (first, second, first):
        lock_step(runner, replay)
    request = second.request("one")
    runner.collect(*request)  # which gets lost, and is sent again
    second.forget("one")
    lock_step(runner, second)
    lock_step(runner, first)
    lock_step(runner, second)
    for replay in (first, second):
        leaves = leaves_of(replay.buffers[0])
        assert len(leaves) >= 4
        assert all(leaf == name + 10 for name, leaf in leaves.items())


def test_weights_come_once_each():
    class Told(WorldRunner):
        def __init__(self) -> None:
            super().__init__(Setting())
            self.weights: list[str] = []

        def set_weights(self, weights: str) -> None:
            self.weights.append(weights)

    runner = Told()
    for number, name in ((1, "a"), (1, "a"), (2, "b")):
        runner.collect("learner", (b"", 0), 0, (number, name))
    runner.collect("another", (b"", 0), 0, (2, "c"))
    assert runner.weights == ["a", "b", "c"]


def test_the_ratio_is_kept():
    runner = WorldRunner(Setting(n_envs=2, n_slots=200))
    replay = JointReplay(steps=2, samples_per_insert=4, min_size=20, error_buffer=40, seed=0)
    assert not replay.may_sample(8)
    with pytest.raises(ValueError, match="8 transitions cannot be drawn yet: 0 have come"):
        replay.sample(8)
    for _ in range(2000):
        request = replay.request("one")
        replay.take("one", runner.collect(*request))
        if not request.n_steps and replay.may_sample(8):
            replay.sample(8)
        inserts, samples = replay.limiter.inserts, replay.limiter.samples
        if inserts >= 20:
            assert 4 * 20 - 40 <= 4 * inserts - samples <= 4 * 20 + 40
    stats = replay.stats()
    assert stats["samples"] > 400
    assert stats["samples_per_insert"] == pytest.approx(4, rel=0.15)


def test_what_is_asked_for_counts_before_it_comes():
    replay = JointReplay(steps=2, samples_per_insert=1, min_size=4, error_buffer=4)
    runners = {name: WorldRunner(Setting(n_envs=2)) for name in RUNNERS}
    for name, runner in runners.items():
        lock_step(runner, replay, name)
    steps = [replay.request(name).n_steps for name in (*RUNNERS, *RUNNERS)]
    assert steps == [2, 2, 0, 0]  # of two lanes: eight in all
    replay.forget("one")
    assert replay.request("one").n_steps == 2


def test_both_sides_never_wait_for_each_other():
    replay = JointReplay(steps=2, samples_per_insert=2, error_buffer=17)
    lock_step(WorldRunner(Setting(n_envs=2)), replay)
    with pytest.raises(ValueError, match=r"would wait for each other\. Give at least 18"):
        replay.sample(28)
    runner, replay = WorldRunner(Setting(n_envs=2)), JointReplay(steps=2, samples_per_insert=2)
    for _ in range(40):
        lock_step(runner, replay)
        while replay.may_sample(28):
            replay.sample(28)
    assert replay.limiter.error_buffer == 18
    assert replay.limiter.samples >= 28 * 4
    for arguments in ({"samples_per_insert": 0}, {"min_size": 0}, {"error_buffer": -1}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            SamplesPerInsert(**arguments)


def test_other_versions_and_other_spaces_are_refused_and_the_others_go_on():
    replay = JointReplay(steps=1, seed=0)
    good, bad = WorldRunner(Setting()), WorldRunner(Setting(stack_size=2))
    for _ in range(2):
        lock_step(good, replay, "good")
    with pytest.raises(ValueError, match=r"runner 'bad': observation_space is .*must be the same"):
        lock_step(bad, replay, "bad")
    old = WorldRunner(Setting())
    with pytest.raises(
        ValueError, match=r"runner 'old' has version 0\.0\.1 of compressarray, and th"
    ):
        replay.take("old", old.collect(*replay.request("old"))._replace(version="0.0.1"))
    rivals = WorldRunner(Setting(prioritized=True))
    with pytest.raises(ValueError, match=r"runner 'x': .*build that one with prioritized=False"):
        lock_step(rivals, JointReplay(prioritized=True), "x")
    assert lock_step(good, replay, "good") == 2
    assert list(replay.buffers) == [0]
    assert replay.sample(2).index.max() < 1 << NAME_BITS
    mixed = WorldRunner(Setting(codec="raw"))  # which is no other content
    for _ in range(2):
        lock_step(mixed, replay, "mixed")
    assert len(replay.buffers) == 2


def test_a_full_disk_leaves_what_could_be_restored(tmp_path, monkeypatch):
    runner, replay = WorldRunner(Setting()), JointReplay(steps=3, seed=0)
    for _ in range(2):
        lock_step(runner, replay)
    number = replay.checkpoint(tmp_path)
    held = replay.n_samplable
    lock_step(runner, replay)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(container, "save", full)
        with pytest.raises(OSError, match="No space"):
            replay.checkpoint(tmp_path)
    lock_step(runner, replay)
    replay.sample(4)
    again = JointReplay(steps=3)
    again.restore(tmp_path)
    assert again.n_samplable == held
    number_now = replay.checkpoint(tmp_path)
    assert number_now == number + 1
    newest = JointReplay(steps=3)
    newest.restore(tmp_path)
    a, b = newest.sample(6), replay.sample(6)
    assert np.array_equal(a.index, b.index)
    assert np.array_equal(a.obs, b.obs)


def test_restoring_refuses_what_is_not_there(tmp_path):
    replay = JointReplay()
    with pytest.raises(FileNotFoundError, match="no checkpoints"):
        replay.restore(tmp_path / "none")
    runner = WorldRunner(Setting())
    lock_step(runner, replay)
    replay.checkpoint(tmp_path)
    with pytest.raises(LookupError, match="no checkpoint 7; it has 1 to 1"):
        JointReplay().restore(tmp_path, 7)
    with pytest.raises(ValueError, match="heard of no runner yet"):
        replay.restore(tmp_path)
    with pytest.raises(ValueError, match="has prioritized=False"):
        JointReplay(prioritized=True).restore(tmp_path)
    path = tmp_path / "00000001.joint"
    data, refused = path.read_bytes(), 0
    for place in range(0, len(data), 5):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        again = JointReplay()
        try:
            again.restore(tmp_path)
        except ValueError:
            refused += 1
            assert again.limiter.inserts == len(again.buffers) == 0
        else:  # in what fills up a block
            assert again.limiter.inserts == replay.limiter.inserts
    assert refused > len(data) / 15


def test_only_the_last_two_checkpoints_take_space(tmp_path):
    replay = JointReplay(steps=4, max_times_drawn=2, seed=0)
    for life in range(6):
        runner = WorldRunner(Setting(seed=life, n_slots=4, n_envs=1))
        for _ in range(3):
            lock_step(runner, replay)
        replay.sample(2)
        replay.checkpoint(tmp_path)
    assert sorted(each.name for each in tmp_path.glob("*.joint")) == [
        "00000005.joint", "00000006.joint",
    ]  # fmt: skip
    assert len(list(tmp_path.glob("buffer-*"))) <= 4
    again = JointReplay(steps=4, max_times_drawn=2)
    again.restore(tmp_path)
    assert again.n_samplable == replay.n_samplable
    n = replay.n_samplable
    assert_batch(again.sample(n), of_names(replay.sample(n)))


def of_names(batch: Any) -> dict[int, dict[str, Any]]:
    fields = ("obs", "action", "reward", "next_obs", "terminated", "discount")
    return {
        name: {field: getattr(batch, field)[row] for field in fields}
        for row, name in enumerate(batch.index.tolist())
    }
