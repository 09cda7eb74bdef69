"""What was checkpointed comes back, whatever happens to the process or the disk."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from compressarray import ReplayBuffer
from compressarray import checkpoints as module
from compressarray.feed import ChangeFeed, Replica
from tests.effort import examples
from tests.interrupting import interrupted, lines_of
from tests.replay_worlds import FEEDS, Setting, World, assert_same_content

STACKS = Box(0, 255, (4, 12, 12), np.uint8)


def world(**changes: Any) -> World:
    return World(Setting(**{"n_slots": 40, "n_step": 3, "resets": 900, **changes}))


def stepped(one: World, n: int = 30) -> World:
    for _ in range(n):
        one.step(0.1, 0.1)
    return one


def restored(path: Path, at: int | None = None) -> ReplayBuffer:
    return ReplayBuffer.restore(path, at=at)


def segments(path: Path) -> list[str]:
    return sorted(each.name for each in path.glob("*.log"))


@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("feed", FEEDS)
def test_the_last_two_numbers_come_back(feed: str, prioritized: bool, tmp_path: Path) -> None:
    one, path = world(feed=feed, prioritized=prioritized), tmp_path / "replay"
    expected: dict[int, tuple[Any, Any]] = {}
    for _ in range(60):
        stepped(one, 3)
        number = one.buffer.checkpoint(path)
        expected[number] = one.oracle.samplable(), pickle.dumps(one.buffer)
        for at in (number - 1, number):
            if at:
                buffer = restored(path, at)
                same = pickle.loads(expected[at][1])
                assert buffer.n_samplable == len(expected[at][0])
                if buffer.n_samplable:
                    ours, theirs = buffer.sample(7), same.sample(7)
                    np.testing.assert_array_equal(ours.index, theirs.index)
                    np.testing.assert_array_equal(ours.weight, theirs.weight)
    assert_same_content(restored(path), one.oracle)
    assert len(segments(path)) == 1


def test_a_buffer_goes_on_from_where_it_was_restored(tmp_path: Path) -> None:
    one = stepped(world())
    assert [one.buffer.checkpoint(tmp_path), one.buffer.checkpoint(tmp_path)] == [1, 2]
    stepped(one)
    assert one.buffer.checkpoint(tmp_path) == 3
    # The process ends, and the weights were those of the second.
    one.buffer._log = None
    two = restored(tmp_path, 2)
    before = two.sample(20).index
    assert two.checkpoint(tmp_path) == 3
    assert two.checkpoint(tmp_path) == 4
    np.testing.assert_array_equal(restored(tmp_path, 2 + 1).n_samplable, two.n_samplable)
    assert len(restored(tmp_path, 4)) == len(two)
    assert len(before) == 20
    two._log = None
    with pytest.raises(LookupError, match="has no checkpoint 2; it has 3 to 4"):
        restored(tmp_path, 2)


def test_what_changed_is_all_that_is_written(tmp_path: Path) -> None:
    buffer = ReplayBuffer(20_000, STACKS, Discrete(4), seed=1)
    rng = np.random.default_rng(0)
    obs = rng.integers(0, 255, (1, 4, 12, 12), np.uint8)
    no = np.zeros(1, bool)

    def add(n: int) -> None:
        nonlocal obs
        for _ in range(n):
            after = np.roll(obs, -1, 1)
            after[:, -1, rng.integers(12)] += 1
            buffer.add(obs, [1], [0.5], no, no, after)
            obs = after

    add(5000)
    buffer.checkpoint(tmp_path)
    whole = (tmp_path / segments(tmp_path)[0]).stat().st_size
    add(100)
    buffer.checkpoint(tmp_path)
    more = (tmp_path / segments(tmp_path)[0]).stat().st_size - whole
    assert more < 0.05 * whole
    for _ in range(200):
        add(50)
        buffer.checkpoint(tmp_path)
    held = sum(each.stat().st_size for each in tmp_path.iterdir())
    assert held < 5 * whole + 4_000_000


def test_clearing_and_learning_begin_a_new_segment(tmp_path: Path) -> None:
    one = stepped(world())
    one.buffer.checkpoint(tmp_path)
    one.clear()
    stepped(one, 5)
    number = one.buffer.checkpoint(tmp_path)
    assert len(segments(tmp_path)) == 2
    assert_same_content(restored(tmp_path, number), one.oracle)
    assert len(restored(tmp_path, number - 1)) == 60
    one.buffer.checkpoint(tmp_path)
    assert len(segments(tmp_path)) == 1


def test_a_checkpoint_cut_off_anywhere_is_none(tmp_path: Path) -> None:
    one = stepped(world(frame=(6, 6)), 10)
    one.buffer.checkpoint(tmp_path)
    two = one.oracle.samplable()
    file = tmp_path / segments(tmp_path)[0]
    first = file.stat().st_size
    stepped(one, 2)
    one.buffer.checkpoint(tmp_path)
    data = file.read_bytes()
    one.buffer._log = None
    rng = np.random.default_rng(0)
    places = {*range(first, len(data)), *rng.integers(0, first, 60).tolist(), first - 1}
    for n in sorted(places):
        file.write_bytes(data[:n])
        if n < first:
            with pytest.raises(FileNotFoundError, match="no checkpoints"):
                restored(tmp_path)
        else:
            assert restored(tmp_path).n_samplable == len(two)
            with pytest.raises(LookupError, match="has no checkpoint 2; it has 1 to 1"):
                restored(tmp_path, 2)


def test_flipped_bits_are_detected_or_change_nothing(tmp_path: Path) -> None:
    one = stepped(world(frame=(6, 6)), 10)
    one.buffer.checkpoint(tmp_path)
    stepped(one, 5)
    one.buffer.checkpoint(tmp_path)
    file = tmp_path / segments(tmp_path)[0]
    data = bytearray(file.read_bytes())
    one.buffer._log = None
    rng = np.random.default_rng(0)
    n_detected = 0
    for _ in range(examples(300)):
        place, bit = int(rng.integers(len(data))), 1 << int(rng.integers(8))
        data[place] ^= bit
        file.write_bytes(data)
        data[place] ^= bit
        try:
            buffer = restored(tmp_path, 2)
        except (ValueError, LookupError, FileNotFoundError):  # of a newer version, it may seem
            n_detected += 1
        else:
            assert_same_content(buffer, one.oracle)
    assert n_detected > 0


def test_an_append_that_was_cut_off_is_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stepped(world())
    one.buffer.checkpoint(tmp_path)
    stepped(one, 5)
    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(module, "_sync", _disk_full)
            with pytest.raises(OSError, match="No space left"):
                one.buffer.checkpoint(tmp_path)
        assert len(restored(tmp_path, 1)) == 60
        stepped(one, 5)
    assert one.buffer.checkpoint(tmp_path) == 2
    assert_same_content(restored(tmp_path, 2), one.oracle)


def test_a_first_checkpoint_on_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stepped(world())
    with monkeypatch.context() as patched:
        patched.setattr(module, "_sync", _disk_full)
        with pytest.raises(OSError, match="No space left"):
            one.buffer.checkpoint(tmp_path)
    assert segments(tmp_path) == []
    assert one.buffer.checkpoint(tmp_path) == 1
    assert_same_content(restored(tmp_path), one.oracle)


def _disk_full(file: Any) -> None:
    raise OSError(28, "No space left on device")


def test_an_interrupt_anywhere_leaves_what_was_there(tmp_path: Path) -> None:
    one = stepped(world())
    one.buffer.checkpoint(tmp_path)
    number = 1
    stepped(one, 2)
    n_lines = lines_of(one.buffer.checkpoint, tmp_path)
    number += 1
    rng = np.random.default_rng(3)
    for line in rng.choice(n_lines, min(n_lines, examples(60)), replace=False).tolist():
        stepped(one, 2)
        interrupted(line, one.buffer.checkpoint, tmp_path)
        assert max(_held(tmp_path)) in (number, number + 1)
        number = one.buffer.checkpoint(tmp_path)
        assert max(_held(tmp_path)) == number
        assert_same_content(restored(tmp_path, number), one.oracle)


def test_an_interrupt_leaves_a_replica_as_it_was_or_as_it_shall_be() -> None:
    one = stepped(world(prioritized=True))
    feed, replica = ChangeFeed(one.buffer), Replica()
    replica.apply(feed.read())
    rng = np.random.default_rng(4)
    n_lines = 0
    for _ in range(examples(60)):
        stepped(one, 2)
        message = feed.read()
        if not n_lines:
            n_lines = lines_of(replica.apply, message)
        else:
            interrupted(int(rng.integers(n_lines)), replica.apply, message)
        replica.apply(message)
        assert_same_content(replica.buffer, one.oracle)


def _held(path: Path) -> list[int]:
    return module._numbers(module._segments(path))


# ---------------------------------------------------------------- bad input


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there are no checkpoints in .*nowhere"):
        restored(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="there are no checkpoints in"):
        restored(tmp_path)
    one = world()
    with pytest.raises(FileNotFoundError, match=r"no directory .*nowhere.* to make 'replay' in"):
        one.buffer.checkpoint(tmp_path / "nowhere" / "replay")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="is a file"):
        one.buffer.checkpoint(tmp_path / "file")


def test_somebody_elses_checkpoints_are_not_written_over(tmp_path: Path) -> None:
    one = stepped(world())
    one.buffer.checkpoint(tmp_path)
    two = stepped(world(seed=2))
    with pytest.raises(BlockingIOError, match="another buffer of this process writes checkpoints"):
        two.buffer.checkpoint(tmp_path)
    one.buffer._log = None
    with pytest.raises(ValueError, match="holds the checkpoints 1 to 1, and this was not restored"):
        two.buffer.checkpoint(tmp_path)
    assert two.buffer.checkpoint(tmp_path / "its own") == 1
    assert_same_content(restored(tmp_path), one.oracle)


def test_a_newer_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = stepped(world())
    with monkeypatch.context() as patched:
        patched.setattr(module, "VERSION", module.VERSION + 1)
        one.buffer.checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"of version 2 .* reads up to 1: install a newer one"):
        restored(tmp_path)


def test_copies_do_not_go_on_with_the_log(tmp_path: Path) -> None:
    one = stepped(world())
    one.buffer.checkpoint(tmp_path)
    with pytest.raises(BlockingIOError, match="another buffer"):
        one.buffer.copy().checkpoint(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_is_refused(tmp_path: Path) -> None:
    one = stepped(world())
    one.buffer.checkpoint(tmp_path)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            one.buffer.checkpoint(tmp_path)
        except BlockingIOError as error:
            code = 0 if "forked from" in str(error) else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert one.buffer.checkpoint(tmp_path) == 2


def test_two_processes(tmp_path: Path) -> None:
    one = stepped(world())
    one.buffer.checkpoint(tmp_path)
    code = (
        "import sys\nfrom compressarray import ReplayBuffer\n"
        "b = ReplayBuffer.restore(sys.argv[1])\n"
        "try: b.checkpoint(sys.argv[1])\n"
        "except BlockingIOError as error: print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, tmp_path], check=True, capture_output=True, text=True
    ).stdout
    assert "another process writes checkpoints to" in said
    assert "a path of its own" in said


# ---------------------------------------------------------------- kill -9

TRAINING = Setting(n_slots=30, n_step=2, frame=(16, 16), prioritized=True, codec="delta")


def train(path: Path, ready: int) -> None:
    """Add, update priorities and checkpoint until somebody ends it."""
    one = World(TRAINING)
    os.write(ready, b"r")
    while True:
        play(one)
        one.buffer.checkpoint(path)


def play(one: World) -> None:
    for _ in range(3):
        one.step(0.1, 0.1)
    if one.buffer.n_samplable:
        batch = one.buffer.sample(4)
        one.buffer.update_priorities(batch.index, batch.reward**2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_kill_9_at_any_moment(tmp_path: Path) -> None:
    play(World(TRAINING))  # compile everything before the forks
    World(TRAINING).buffer.checkpoint(tmp_path / "warm")
    restored(tmp_path / "warm")
    rng = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    n_checked = 0
    for run in range(20 if examples(1) == 1 else 300):
        path = tmp_path / f"{run}"
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                train(path, writer)
            finally:
                os._exit(3)
        os.read(reader, 1)
        time.sleep(float(rng.uniform(0, 0.12)))
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        os.close(reader)
        os.close(writer)
        held = _held(path) if path.exists() else []
        if not held:
            continue
        n_checked += 1
        oracle, samples = World(TRAINING), {}
        for number in range(1, held[-1] + 1):
            play(oracle)
            if number in held[-2:]:
                samples[number] = pickle.dumps(oracle.buffer)
        assert_same_content(restored(path), oracle.oracle)
        for number, twin in samples.items():
            again, other, same = restored(path, number), restored(path, number), pickle.loads(twin)
            for _ in range(3):
                index = same.sample(6).index if same.n_samplable else None
                for each in (again, other):
                    if index is not None:
                        np.testing.assert_array_equal(each.sample(6).index, index)
        # Going on leaves no trace of what was cut off.
        buffer = restored(path)
        assert buffer.checkpoint(path) == held[-1] + 1
        buffer._log = None
    assert n_checked > 5
