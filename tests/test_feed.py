"""Replicas are kept in step by what a feed says, and by nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from compressarray import CorruptFrameError, DiffFrameArray, FrameEvictedError
from compressarray.feed import ChangeFeed, Replica
from compressarray.format.messages import Items
from tests.effort import examples
from tests.interrupting import interrupted, lines_of
from tests.naive import assert_same
from tests.strategies import CODECS, OWN_CODECS, frames, game

FRAME = (12, 16)
HEAD_BYTES = 21


def content(n: int, seed: int) -> np.ndarray[Any, Any]:
    return np.stack([game(n, FRAME, seed), frames("noise", n, FRAME, np.uint8, seed)], axis=1)


def built(codec: str, n_rows: int = 90) -> DiffFrameArray:
    return DiffFrameArray((n_rows, 2, *FRAME), codec=CODECS[codec]())


def filled(codec: str, n: int = 130) -> tuple[DiffFrameArray, ChangeFeed, Replica]:
    """An array that has turned, and a replica that is in step."""
    array = built(codec)
    array.append(content(n, 1))
    feed, replica = ChangeFeed(array), Replica()
    replica.apply(feed.read())
    return array, feed, replica


def assert_in_step(replica: Replica, array: DiffFrameArray) -> None:
    assert replica.array is not None
    assert_same(np.asarray(replica.array), np.asarray(array))
    assert_same(replica.array.lane_counts, array.lane_counts)
    counts = array.lane_counts
    first = np.maximum(counts - array.shape[0], 0)
    every = np.concatenate([np.arange(first[i], counts[i]) * 2 + i for i in range(2)])
    assert_same(replica.array.gather(every), array.gather(every))


def is_whole(message: bytes) -> bool:
    return message[0] == 0


@pytest.mark.usefixtures("learning_early")
@pytest.mark.parametrize("codec", CODECS)
def test_replicas_follow_a_ring_that_turns_and_learns(codec: str) -> None:
    array = built(codec)
    feed, replica = ChangeFeed(array), Replica()
    rows = content(400, 2)
    n_whole = 0
    for t, row in enumerate(rows):
        if t % 5:
            array.append(row)
        else:
            array.append(row[t % 2][None], lanes=[t % 2])
        if t % 3 == 0 or t > 390:
            message = feed.read()
            n_whole += is_whole(message)
            replica.apply(message)
        if t % 40 == 0:
            replica.apply(feed.read())
            assert_in_step(replica, array)
    assert_in_step(replica, array)
    # of small arrays learning changes all groups at once
    assert n_whole == 1 or codec in ("delta", "delta-huffman")
    assert replica.array is not None
    assert replica.array.nbytes_stored < 1.3 * array.nbytes_stored + 20_000


def test_a_step_takes_a_hundred_odd_bytes() -> None:
    array = DiffFrameArray((4096, 84, 84))
    rows = game(1200)
    array.append(rows[:1000])
    feed, replica = ChangeFeed(array), Replica()
    replica.apply(feed.read())
    sizes = []
    for frame in rows[1000:]:
        array.append(frame)
        sizes.append(len(feed.read()))
    assert np.median(sizes) < 160
    assert len(feed.read()) < 60  # nothing is new


def test_whoever_misses_too_much_is_filled_anew() -> None:
    array, feed, replica = filled("delta")
    for row in content(600, 3):
        array.append(row)
    message = feed.read()
    assert is_whole(message)
    replica.apply(message)
    assert_in_step(replica, array)
    array.append(content(1, 4))
    message = feed.read()
    assert not is_whole(message)
    replica.apply(message)
    assert_in_step(replica, array)


def test_a_new_stream_is_sent_whole() -> None:
    array, feed, replica = filled("delta")
    array.clear()
    array.append(content(3, 3))
    replica.apply(feed.read())
    assert_in_step(replica, array)
    assert replica.array is not None
    assert replica.array.stream == 1


def test_replicas_of_a_replica() -> None:
    array, feed, replica = filled("delta-huffman")
    assert replica.array is not None
    second, last = ChangeFeed(replica.array), Replica()
    for t in range(60):
        array.append(content(1, t))
        replica.apply(feed.read())
        last.apply(second.read())
    assert_in_step(last, array)


def test_a_replica_is_taken_over() -> None:
    array, feed, replica = filled("delta")
    array.append(content(7, 5))
    replica.apply(feed.read())
    heir = replica.array
    assert heir is not None
    for t in range(200):
        row = content(1, t)
        array.append(row)
        heir.append(row)
        if t == 3:
            with pytest.raises(ValueError, match="was written to"):
                replica.apply(feed.read())
    assert_same(np.asarray(heir), np.asarray(array))


def test_messages_may_come_twice() -> None:
    array, feed, replica = filled("delta")
    messages = []
    for t in range(3):
        array.append(content(1, t))
        messages.append(feed.read())
    for message in (messages[0], messages[0], messages[1], messages[0], messages[2], messages[1]):
        replica.apply(message)
    assert_in_step(replica, array)


@pytest.mark.parametrize("codec", OWN_CODECS)
def test_messages_that_do_not_follow_change_nothing(codec: str) -> None:
    array, feed, replica = filled(codec)
    before = np.asarray(array).copy()
    array.append(content(3, 5))
    first = feed.read()
    array.append(content(3, 6))
    second = feed.read()
    other = ChangeFeed(array)
    other.read()
    for message, error, match in (
        (second, ValueError, "does not follow on 1"),
        (other.read(), ValueError, "does not follow"),
        (first[:-1], CorruptFrameError, "damaged"),
        (first[:10], CorruptFrameError, "ends in its head"),
        (b"", CorruptFrameError, "ends in its head"),
    ):
        with pytest.raises(error, match=match):
            replica.apply(message)
        assert_same(np.asarray(replica.array), before)
    with pytest.raises(ValueError, match="begin another feed"):
        Replica().apply(first)
    replica.apply(first)
    replica.apply(second)
    assert_in_step(replica, array)


def test_views_have_no_feed() -> None:
    with pytest.raises(TypeError, match="view"):
        ChangeFeed(built("delta").reshape(180, *FRAME))


@pytest.mark.usefixtures("learning_early")
@pytest.mark.parametrize("codec", OWN_CODECS)
def test_an_interrupt_leaves_a_replica_as_before_or_after(codec: str) -> None:
    rng = np.random.default_rng(7)
    array, feed, replica = filled(codec)
    twin = Replica()
    twin.apply(ChangeFeed(array).read())
    n_lines = None
    n_interrupted = 0
    for t in range(examples(30)):
        before = np.asarray(array).copy()
        array.append(content(int(rng.integers(1, 14)), t))
        message = feed.read()
        if n_lines is None:
            n_lines = lines_of(replica.apply, message)
            continue
        if interrupted(int(rng.integers(n_lines)), replica.apply, message) is None:
            assert_in_step(replica, array)
            continue
        n_interrupted += 1
        held = np.asarray(replica.array)
        if not np.array_equal(held, np.asarray(array)):
            assert_same(held, before)
        replica.apply(message)  # again: it is passed over where it was taken
        assert_in_step(replica, array)
    assert n_interrupted > examples(30) // 3


def test_an_interrupt_of_the_feed_loses_nothing_without_a_word() -> None:
    array, feed, replica = filled("delta")
    n_lines = lines_of(feed.read)
    n_refused = 0
    for at in range(0, n_lines + 40, 2):
        array, feed, replica = filled("delta", 60)
        array.append(content(2, at))
        interrupted(at, feed.read)
        array.append(content(1, at + 1))
        message = feed.read()
        try:
            replica.apply(message)
        except ValueError:
            n_refused += 1
            replica.apply(ChangeFeed(array).read())
        assert_in_step(replica, array)
    assert n_refused  # at the last lines


@pytest.mark.parametrize("codec", ["raw", "delta"])
def test_whatever_is_written_ends_the_following(codec: str) -> None:
    for write in (
        lambda heir: heir.append(content(1, 0)),
        lambda heir: heir.pin(np.full(FRAME, 9, np.uint8)),
        lambda heir: heir.discard(heir.lane_counts - 5),
        lambda heir: heir.__setitem__((3, 0), 7),
        lambda heir: heir.clear(),
    ):
        array, feed, replica = filled(codec)
        write(replica.array)
        array.append(content(1, 1))
        with pytest.raises(ValueError, match="was written to"):
            replica.apply(feed.read())


def test_pins_and_retired_indices_follow() -> None:
    array, feed, replica = filled("delta")
    pins = array.pin(content(3, 4)[:, 0])
    array[5, 1] = 77
    message = feed.read()
    assert not is_whole(message)
    replica.apply(message)
    assert replica.array is not None
    assert_same(replica.array.gather(pins), array.gather(pins))
    gone = [index for index in range(2 * 40, 2 * 130) if index // 2 % 90 == 5 and index % 2]
    for each in (array, replica.array):
        with pytest.raises(FrameEvictedError, match="retired"):
            each.gather(gone)
    array.append(content(90, 5))  # every slot is appended to again
    replica.apply(feed.read())
    assert_in_step(replica, array)


def fuzz(codec: str, first: int, n: int) -> None:
    """Alter messages, one example a seed; die where an example does."""
    array, feed, replica = filled(codec)
    whole = ChangeFeed(array).read()
    array.append(content(17, 9))
    message = feed.read()
    del replica
    for seed in range(first, first + n):
        rng = np.random.default_rng(seed)
        spoilt = bytearray(message)
        for _ in range(rng.integers(1, 4)):
            spoilt[rng.integers(HEAD_BYTES, len(spoilt))] = rng.integers(256)
        if rng.random() < 0.2:
            del spoilt[rng.integers(HEAD_BYTES, len(spoilt)) :]
        twin = Replica()
        twin.apply(whole)
        assert twin.array is not None
        before = np.asarray(twin.array).copy()
        try:
            twin.array._frames.take(Items(bytes(spoilt[HEAD_BYTES:])), None)
        except (CorruptFrameError, MemoryError):
            assert_same(np.asarray(twin.array), before)
            continue
        # what it took may be other frames, but frames
        twin.array.append(content(100, 3))
        np.asarray(twin.array)


@pytest.mark.parametrize("codec", OWN_CODECS)
def test_altered_messages_are_refused_or_give_frames(codec: str) -> None:
    code = f"from tests.test_feed import fuzz; fuzz({codec!r}, 0, {examples(250)})"
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=600)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_has_a_feed_of_its_own() -> None:
    array, feed, replica = filled("delta")
    array.append(content(1, 5))
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        array.append(content(1, 6))
        os.write(writer, feed.read())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        message = pipe.read()
    os.waitpid(pid, 0)
    assert is_whole(message)
    other = Replica()
    other.apply(message)
    replica.apply(feed.read())
    assert_in_step(replica, array)
    assert other.array.lane_counts[0] == array.lane_counts[0] + 1
