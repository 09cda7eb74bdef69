"""Runners and learners on Ray: right pixels, whoever is killed."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import RayTaskError

from compressarray.ray import RayEnvRunner, RayReplay, start_runners
from tests.hosts.ray.made_up import CAPACITY, MadeUp, check, check_batch

FEW = {"num_cpus": 0.1}


@pytest.fixture
def end():
    """Ends the actors that a test has begun."""
    begun: list[Any] = []
    yield lambda handles: begun.extend(handles.values()) or handles
    for handle in begun:
        ray.kill(handle)


def made(end: Any, n: int, **options: Any) -> dict[str, Any]:
    return end(start_runners(MadeUp, n, options, **FEW))


@pytest.mark.parametrize("prioritized", [False, True])
def test_in_lock_step_it_draws_what_one_process_draws(end, prioritized):
    alone = MadeUp(0, {"life": 5})
    if prioritized:
        arguments = (CAPACITY, alone.buffer.observation_space, alone.buffer.action_space, None)
        alone.buffer = type(alone.buffer)(*arguments, n_step=2, prioritized=True)
    alone.buffer.seed(3)
    handles = made(end, 1, life=5)
    replay = RayReplay(handles, depth=1, steps=1, seed=3, prioritized=prioritized, poll_s=1e9)
    replay.collect(60)
    for t in range(120):
        replay._take_next("runner 0")
        replay._ask()
        alone.step()
        assert replay.limiter.inserts == t + 1
        if t < 3:
            continue
        ours, theirs = replay.sample(8), alone.buffer.sample(8)
        for name, a, b in zip(ours._fields, ours, theirs, strict=True):
            assert np.array_equal(a, b) or (a == b == {}), name
        if prioritized:
            replay.update_priorities(ours.index, np.arange(8) + 0.5)
            alone.buffer.update_priorities(theirs.index, np.arange(8) + 0.5)


def latest(replay: RayReplay, known: dict[int, dict[str, Any]]) -> None:
    for report in replay.reports:
        known[report["index"]] = report
    replay.reports.clear()


def test_what_was_acknowledged_outlives_runners_that_are_killed(end):
    handles = made(end, 3, delay_s=0.002)
    replay = RayReplay(handles, steps=10, seed=1, retry_s=0.1, prioritized=True)
    rng, known, acknowledged = random.Random(0), {}, {}
    killed, next_kill = 0, time.monotonic()
    while killed < 5:
        batch = replay.sample(16)
        check_batch(batch)
        replay.update_priorities(batch.index, np.ones(16))
        latest(replay, known)
        had = check(replay)
        for life, n in acknowledged.items():
            assert had.get(life, CAPACITY) >= n  # one that was let go of has had as much after it
        acknowledged = had
        if known and time.monotonic() > next_kill:
            with contextlib.suppress(ProcessLookupError):  # its last words came after its end
                os.kill(known.pop(rng.choice(list(known)))["pid"], signal.SIGKILL)
                killed, next_kill = killed + 1, time.monotonic() + 1.5 * rng.random()
    stats = replay.stats()
    assert stats["deaths"] > 0
    assert stats["lives"] > 3
    assert stats["inserts"] >= sum(acknowledged.values())


def test_lives_are_let_go_of_once_as_much_has_come_since(end):
    handles = made(end, 1)
    replay = RayReplay(handles, steps=100, seed=1, retry_s=0.05)
    known: dict[int, dict[str, Any]] = {}
    most, pid = 0, None
    for _ in range(3):
        while not known or known[0]["pid"] == pid:
            replay.collect(1)
            latest(replay, known)
        n_enough = replay.limiter.inserts + 2 * CAPACITY
        while replay.limiter.inserts < n_enough:
            replay.collect(1)
            most = max(most, len(replay))
        assert replay.stats()["lives"] == 1
        check(replay)
        pid = known[0]["pid"]
        os.kill(pid, signal.SIGKILL)
    assert CAPACITY < most <= 2 * CAPACITY


@ray.remote(num_cpus=0.1, max_restarts=-1, max_task_retries=0)
class Learner:
    """A learner as an actor, which goes on from its checkpoint when it is begun anew."""

    def __init__(self, name: str, handles: dict[str, Any], path: str) -> None:
        self.path = path
        self.replay = RayReplay(handles, learner=name, steps=8, seed=1, prioritized=True)
        self.restored: dict[int, int] = {}
        if os.path.isdir(path):
            self.replay.restore(path)
            self.restored = check(self.replay)

    def work(self, n: int) -> dict[str, Any]:
        for _ in range(n):
            batch = self.replay.sample(16)
            check_batch(batch)
            self.replay.update_priorities(batch.index, np.ones(16))
        had = check(self.replay)
        self.replay.checkpoint(self.path)
        return {"pid": os.getpid(), "had": had, "restored": self.restored}


def test_learners_that_are_killed_go_on_from_their_checkpoints(end, tmp_path):
    handles = made(end, 2, delay_s=0.001)
    learners = end(
        {name: Learner.remote(name, handles, str(tmp_path / name)) for name in ("a", "b")}
    )
    saved: dict[str, dict[int, int]] = {}
    for turn in range(3):
        for name, learner in learners.items():
            said = result_of(learner.work, 30)
            if name in saved and name == "a" and turn:
                assert said["restored"]
                assert all(said["restored"].get(life, CAPACITY) >= n for life, n in
                           saved[name].items())  # fmt: skip
            saved[name] = said["had"]
            if name == "a":  # b is not held up
                running = learner.work.remote(10**6)
                time.sleep(random.random())
                os.kill(said["pid"], signal.SIGKILL)
                with pytest.raises(ray.exceptions.RayActorError):
                    ray.get(running)
    assert saved["b"]


def result_of(method: Any, *arguments: Any) -> Any:
    """Call an actor that may be being started anew."""
    for _ in range(100):
        try:
            return ray.get(method.remote(*arguments))
        except ray.exceptions.RayActorError:
            time.sleep(0.1)
    raise TimeoutError("the actor does not come back")


def test_a_damaged_message_is_sent_again(end, caplog):
    handles = made(end, 1, damages=(3, 4, 7))
    replay = RayReplay(handles, steps=20, seed=1, depth=1)
    with caplog.at_level(logging.WARNING):
        while replay.limiter.inserts < 200:
            replay.collect(5)
    assert replay.stats()["damaged"] == 3
    assert replay.stats()["fills"] == 1  # no more than what got lost came again
    assert all("\n" not in record.message for record in caplog.records)
    check(replay)


def test_with_two_requests_at_once_what_got_lost_comes_all_the_same(end):
    handles = made(end, 2, damages=(5, 11))
    replay = RayReplay(handles, steps=20, seed=1, depth=2)
    while replay.limiter.inserts < 1000:
        replay.collect(5)
    assert replay.stats()["damaged"] >= 2
    check(replay)


def test_what_a_runner_raises_is_raised_and_the_others_go_on(end):
    handles = made(end, 2, raises_at=30)
    replay = RayReplay(handles, steps=7, seed=1)
    raised = 0
    while replay.limiter.inserts < 300:
        try:
            replay.collect(5)
        except FloatingPointError as error:  # Ray raises one that is both
            raised += isinstance(error, RayTaskError)
    assert raised == 2


class Unmakeable(RayEnvRunner):
    def __init__(self, index: int) -> None:
        raise OSError("there is no such game")


def test_a_runner_that_cannot_be_made_is_one_line(end):
    replay = RayReplay(end(start_runners(Unmakeable, 1, **FEW)))
    with pytest.raises(RuntimeError, match=r"runner 0 cannot be made: .*no such game") as error:
        collect_all(replay)
    assert "\n" not in str(error.value)


def test_other_versions_and_other_spaces(end):
    handles = made(end, 2, old=(1,))
    replay = RayReplay(handles, steps=7, seed=1)
    with pytest.raises(ValueError, match=r"runner 1.*has version 0\.0\.1 of compressarray"):
        collect_all(replay)
    go_on(replay)
    handles = made(end, 2, mixed=True)
    replay = RayReplay(handles, steps=7, seed=1)
    with pytest.raises(ValueError, match="must be the same") as error:
        collect_all(replay)
    assert "\n" not in str(error.value)
    go_on(replay)


def go_on(replay: RayReplay) -> None:
    before = replay.limiter.inserts
    stop_at = time.monotonic() + 30
    while replay.limiter.inserts < before + 20:
        assert time.monotonic() < stop_at
        with contextlib.suppress(ValueError):
            replay.collect(1)


def collect_all(replay: RayReplay) -> None:
    """Collect until a runner is refused: one may begin long after another."""
    stop_at = time.monotonic() + 60
    while time.monotonic() < stop_at:
        replay.collect(5)


def test_weights_reach_runners_that_are_begun_anew(end):
    handles = made(end, 2)
    replay = RayReplay(handles, steps=5, seed=1, retry_s=0.05)
    known: dict[int, dict[str, Any]] = {}
    for number in (1.0, 2.0):
        replay.publish(np.full(1000, number))
        wanted = 1000 * number
        wait_until(replay, known, lambda w=wanted: all(k["weights"] == w for k in known.values()))
    lives = {k["life"] for k in known.values()}
    os.kill(known[0]["pid"], signal.SIGKILL)
    wait_until(replay, known, lambda: {k["life"] for k in known.values()} != lives)
    wait_until(replay, known, lambda: known[0]["weights"] == 2000)


def wait_until(replay: RayReplay, known: dict[int, dict[str, Any]], is_so: Any) -> None:
    stop_at = time.monotonic() + 60
    latest(replay, known)
    while len(known) < 2 or not is_so():
        assert time.monotonic() < stop_at
        replay.collect(1)
        latest(replay, known)


def test_the_ratio_is_kept_and_sample_waits(end):
    handles = made(end, 2)
    replay = RayReplay(handles, steps=4, samples_per_insert=2, min_size=50, error_buffer=60, seed=1)
    for _ in range(200):
        check_batch(replay.sample(16))
        inserts, samples = replay.limiter.inserts, replay.limiter.samples
        assert abs(2 * inserts - samples - 2 * 50) <= 60
    assert replay.stats()["samples_per_insert"] == pytest.approx(2, rel=0.1)


def test_what_is_drawn_ahead_takes_what_has_come_too(end):
    replay = RayReplay(made(end, 2), steps=4, samples_per_insert=2, min_size=50, seed=1)
    with replay.batches(16, lookahead=2) as batches, replay.sequences(4, 3) as runs:
        for _ in range(60):
            check_batch(next(batches))
            assert next(runs).obs.shape[:2] == (4, 3)
    assert replay.limiter.inserts > 300


def test_a_transition_is_drawn_no_more_often_than_it_may(end):
    handles = made(end, 2)
    replay = RayReplay(handles, steps=10, max_times_drawn=1, seed=1)
    seen: set[int] = set()
    for _ in range(50):
        names = replay.sample(8).index.tolist()
        assert not seen & set(names)
        seen |= set(names)


def test_runners_that_bring_nothing_end_the_wait(end):
    handles = made(end, 1, delay_s=1000)
    replay = RayReplay(handles, steps=4, timeout_s=2)
    replay.collect(30)
    with pytest.raises(TimeoutError, match="no runner has answered"):
        replay.sample(4)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="no runners were given"):
        RayReplay({})
    with pytest.raises(ValueError, match="depth=0"):
        RayReplay({"one": None}, depth=0)
    with pytest.raises(TypeError, match="subclass of RayEnvRunner"):
        start_runners(dict, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n=0"):
        start_runners(RayEnvRunner, 0)


def test_a_cluster_that_is_not_there_is_one_line():
    program = "from compressarray.ray import connect; connect('127.0.0.1:1')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ConnectionError: the Ray cluster at address='127.0.0.1:1' cannot be")
