"""A state machine that mixes everything that can be done to an array, beside an oracle.

After every step the array must hold the oracle's bytes, every live frame index must gather the
frame it was given out for, every other index must be refused, and the accounts must add up.
"""

from __future__ import annotations

import pickle
import tempfile
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

from compressarray import DiffFrameArray, FrameEvictedError, StaleStreamError
from compressarray.feed import ChangeFeed, Replica
from tests.effort import examples
from tests.naive import NaiveFrameArray, assert_same
from tests.strategies import (
    KINDS,
    Layout,
    assert_holds,
    assert_same_kind_of_error,
    frames,
    keys,
    large_layouts,
    layouts,
    noise,
    outcome,
    values,
)

COUNTERS = ("frames_decoded", "gops_decoded", "gops_encoded", "gops_closed", "gops_evicted")
MOST_FROZEN = 3


class ArrayMachine(RuleBasedStateMachine):
    """One array, its oracle, and what is known about every frame index ever given out."""

    array: DiffFrameArray
    oracle: NaiveFrameArray
    layout: Layout
    drawn_layouts = layouts(empty=False, max_cells=30, max_frame_size=48).filter(
        # the oracle indexes rows, and a row that is one string is no array
        lambda layout: layout.dtype.kind not in "SU" or len(layout.shape) > 1
    )

    @initialize(data=st.data(), seed=st.integers(0, 999))
    def build(self, data: st.DataObject, seed: int) -> None:
        layout = data.draw(self.drawn_layouts)
        self.layout = layout
        self.array = layout.build()
        self.oracle = NaiveFrameArray(
            layout.shape,
            layout.dtype,
            frame_ndim=layout.frame_ndim,
            fill_value=layout.fill_value,
            stack_axis=layout.stack_axis,
        )
        self.stream = self.array.stream
        self.old_streams: list[int] = []
        self.given: dict[int, np.ndarray[Any, Any]] = {}  # index -> its frame or stack
        self.owner: dict[tuple[int, int], int] = {}  # (slot, lane) -> the live index there
        self.counts = [0] * layout.n_lanes
        self.pins: dict[int, np.ndarray[Any, Any]] = {}
        self.frozen: list[tuple[Any, np.ndarray[Any, Any], dict[int, Any]]] = []
        self.counters = dict.fromkeys(COUNTERS, 0)
        places = np.indices(layout.lead_shape)
        lanes = np.zeros(layout.lead_shape, int)
        for axis, n in enumerate(layout.lead_shape):
            if axis not in (0, layout.stack_axis_index):
                lanes = lanes * n + places[axis]
        self.places = np.stack([places[0], lanes], axis=-1).reshape(-1, 2)
        self.seed = seed
        self.replicas: list[tuple[ChangeFeed, Replica]] = []
        self.steps_without_news = 0

    # ----------------------------------------------------------------- helpers

    def content(self, data: st.DataObject, n: int, shape: tuple[int, ...]) -> Any:
        """`n` rows of `shape`, each place between a run of frames in time order."""
        n_frame = self.layout.frame_ndim
        between = shape[: len(shape) - n_frame]
        frame_shape = shape[len(shape) - n_frame :]
        self.seed += 1
        kind = data.draw(st.sampled_from(KINDS))
        runs = [
            frames(kind, n, frame_shape, self.layout.dtype, self.seed + 7 * (place // 2))
            for place in range(int(np.prod(between, dtype=int)))
        ]
        return np.stack(runs, axis=1, dtype=self.layout.dtype).reshape(n, *shape)

    @property
    def live(self) -> list[int]:
        return sorted(self.owner.values())

    def retire(self, cells: np.ndarray[Any, Any]) -> None:
        for slot, lane in self.places[np.unique(cells)].tolist():
            self.owner.pop((slot, lane), None)

    def remember(self, index: int, frame: np.ndarray[Any, Any]) -> None:
        count, lane = divmod(index, self.layout.n_lanes)
        assert count == self.counts[lane]
        self.counts[lane] += 1
        self.given[index] = frame.copy()
        self.owner[count % self.layout.shape[0], lane] = index

    def by_lane(self, row: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """A row as (n_lanes, [stack,] *frame)."""
        layout = self.layout
        if layout.stack_axis_index is not None:
            row = np.moveaxis(row, layout.stack_axis_index - 1, len(layout.lane_shape))
        return row.reshape(layout.n_lanes, *row.shape[len(layout.lane_shape) :])

    def assign(self, key: Any, value: Any, lead: tuple[int, ...] | None = None) -> None:
        """Assign through the array, or through a view of it with leading axes `lead`."""
        layout = self.layout
        target: Any = self.array
        dense = np.asarray(self.oracle)
        shape = layout.shape
        if lead is not None:
            shape = (*lead, *layout.frame_shape)
            target, dense = self.array.reshape(shape), dense.reshape(shape)
        dense = dense.copy()
        n_cells = int(np.prod(layout.lead_shape))
        cells = np.arange(n_cells).reshape(shape[: len(shape) - layout.frame_ndim])
        cells = np.broadcast_to(cells.reshape(cells.shape + (1,) * layout.frame_ndim), shape)
        touched, _ = outcome(lambda: cells[key])
        _, expected_error = outcome(lambda: dense.__setitem__(key, value))
        _, error = outcome(lambda: target.__setitem__(key, value))
        assert_same_kind_of_error(error, expected_error)
        if expected_error is None:
            self.oracle[...] = dense.reshape(layout.shape)
            self.retire(np.asarray(touched))

    def freeze(self) -> None:
        """Keep what is about to be replaced, to see later that it did not change."""
        live = {index: self.given[index] for index in self.live}
        self.frozen.append((self.array, np.asarray(self.oracle).copy(), live))
        del self.frozen[:-MOST_FROZEN]

    # ----------------------------------------------------------------- writing

    @rule(data=st.data())
    def assign_anything(self, data: st.DataObject) -> None:
        key = data.draw(keys(self.layout.shape))
        selected, error = outcome(lambda: np.asarray(self.oracle)[key])
        shape = (3,) if error else np.shape(selected)
        self.assign(key, data.draw(values(shape, self.layout.dtype)))

    @rule(data=st.data())
    def assign_rows_in_time_order(self, data: st.DataObject) -> None:
        first = data.draw(st.integers(0, self.layout.shape[0] - 1))
        n = data.draw(st.integers(1, self.layout.shape[0] - first))
        self.assign(slice(first, first + n), self.content(data, n, self.layout.shape[1:]))

    @rule(data=st.data())
    def assign_through_a_view(self, data: st.DataObject) -> None:
        n_cells = int(np.prod(self.layout.lead_shape))
        divisors = [n for n in range(1, n_cells + 1) if n_cells % n == 0]
        first = data.draw(st.sampled_from(divisors))
        lead = data.draw(st.sampled_from(((n_cells,), (first, n_cells // first))))
        shape = (*lead, *self.layout.frame_shape)
        key = data.draw(keys(shape))
        selected, error = outcome(lambda: np.asarray(self.oracle).reshape(shape)[key])
        result_shape = (3,) if error else np.shape(selected)
        self.assign(key, data.draw(values(result_shape, self.layout.dtype)), lead)

    @rule(data=st.data(), n=st.integers(1, 5), one_row=st.booleans())
    def append_to_all_lanes(self, data: st.DataObject, n: int, one_row: bool) -> None:
        if data.draw(st.integers(0, 7)) == 0:
            n += self.layout.shape[0]  # turn the ring within one call
        layout = self.layout
        rows = self.content(data, n, layout.shape[1:])
        if one_row:
            # rows[t, ...] stays an array where a row is one element: a scalar has no byte order
            index = np.stack([self.array.append(rows[t, ...]) for t in range(n)])
            for t in range(n):
                self.oracle.append(rows[t, ...])
        else:
            index = self.array.append(rows)
            self.oracle.append(rows)
        assert index.dtype == np.int64
        assert index.shape == (n, *layout.lane_shape)
        flat = index.reshape(n, layout.n_lanes)
        for t in range(n):
            for lane, frame in enumerate(self.by_lane(rows[t, ...])):
                assert flat[t, lane] == self.counts[lane] * layout.n_lanes + lane
                self.remember(int(flat[t, lane]), frame)

    @precondition(lambda self: self.layout.stack_axis_index is None)
    @rule(data=st.data(), n=st.integers(1, 4), one_row=st.booleans())
    def append_to_some_lanes(self, data: st.DataObject, n: int, one_row: bool) -> None:
        layout = self.layout
        order = data.draw(st.permutations(range(layout.n_lanes)))
        lanes = order[: data.draw(st.integers(1, layout.n_lanes))]
        if one_row:
            n = 1
        rows = self.content(data, n, (len(lanes), *layout.frame_shape))
        arguments = rows[0] if one_row else rows
        index = self.array.append(arguments, lanes=lanes)
        self.oracle.append(arguments, lanes=lanes)
        assert index.dtype == np.int64
        assert index.shape == ((len(lanes),) if one_row else (n, len(lanes)))
        flat = index.reshape(n, len(lanes))
        for t in range(n):
            for k, lane in enumerate(lanes):
                assert flat[t, k] == self.counts[lane] * layout.n_lanes + lane
                self.remember(int(flat[t, k]), rows[t, k])

    @rule(what=st.sampled_from(("dtype", "shape", "frame", "lanes", "lane number", "twice")))
    def append_what_must_be_refused(self, what: str) -> None:
        layout = self.layout
        row = np.zeros(layout.shape[1:], layout.dtype)
        lanes: list[int] | None = None
        if what == "dtype":
            row = np.zeros(layout.shape[1:], "S9")
        elif what == "shape":
            row = np.zeros((3, 2, *layout.shape[1:], 5), layout.dtype)
        elif what == "frame":
            row = np.zeros((*layout.shape[1:], 7), layout.dtype)
            if row.shape[1:] == layout.shape[1:]:
                return  # frames of no axes: this is several rows
        elif what == "lanes":
            row = np.zeros((1, 2, 3, 4, *layout.frame_shape), layout.dtype)
            lanes = [0]
        elif what == "lane number":
            row = np.zeros((1, *layout.frame_shape), layout.dtype)
            lanes = [layout.n_lanes]
        else:
            row = np.zeros((2, *layout.frame_shape), layout.dtype)
            lanes = [0, 0]
        with pytest.raises((ValueError, TypeError, IndexError)):
            self.array.append(row, lanes=lanes)

    @precondition(lambda self: self.layout.dtype.kind in "iu")
    @rule(operator=st.sampled_from(("+", "^", "*", "-", "|")), operand=st.integers(1, 100))
    def operate_in_place(self, operator: str, operand: int) -> None:
        dense = np.asarray(self.oracle).copy()
        same = self.array
        if operator == "+":
            self.array += operand
            dense += dense.dtype.type(operand)
        elif operator == "^":
            self.array ^= operand
            dense ^= dense.dtype.type(operand)
        elif operator == "*":
            self.array *= operand
            dense *= dense.dtype.type(operand)
        elif operator == "-":
            self.array -= operand
            dense -= dense.dtype.type(operand)
        else:
            self.array |= operand
            dense |= dense.dtype.type(operand)
        assert self.array is same
        self.oracle[...] = dense
        self.owner.clear()

    @precondition(lambda self: self.layout.stack_axis_index is None)
    @rule(data=st.data(), n=st.integers(1, 3))
    def pin(self, data: st.DataObject, n: int) -> None:
        layout = self.layout
        some = frames("extremes", n, layout.frame_shape, layout.dtype, data.draw(st.integers(0, 2)))
        index = self.array.pin(some)
        assert_same(index, self.oracle.pin(some))
        for number, frame in zip(index.tolist(), some, strict=True):
            known = {f.tobytes(): i for i, f in self.pins.items()}
            assert known.get(frame.tobytes(), number) == number
            if number not in self.pins:
                assert number == 2**63 - 2 - len(self.pins)
            self.pins[number] = frame.copy()

    @rule()
    def clear(self) -> None:
        self.old_streams.append(self.array.stream)
        self.array.clear()
        self.oracle.clear()
        assert self.array.stream == self.stream + 1
        self.stream += 1
        self.given.clear()
        self.owner.clear()
        self.counts = [0] * self.layout.n_lanes

    # ----------------------------------------------------------------- reading

    @rule(data=st.data())
    def read_anything(self, data: st.DataObject) -> None:
        key = data.draw(keys(self.layout.shape))
        dense = np.asarray(self.oracle)
        expected, expected_error = outcome(lambda: dense[key])
        actual, error = outcome(lambda: self.array[key])
        assert_same_kind_of_error(error, expected_error)
        if expected_error is None:
            assert_same(actual, expected)
            if isinstance(actual, np.ndarray) and actual.size and actual.dtype.names is None:
                actual[...] = actual.reshape(-1)[0]  # fresh memory: nobody else sees this

    @precondition(lambda self: self.owner or self.pins)
    @rule(data=st.data(), into=st.booleans())
    def gather(self, data: st.DataObject, into: bool) -> None:
        pool = [*self.live, *self.pins]
        n = data.draw(st.integers(0, 8))
        chosen = np.array(data.draw(st.lists(st.sampled_from(pool), min_size=n, max_size=n)))
        chosen = chosen.astype(np.int64)
        if n in (4, 6, 8) and data.draw(st.booleans()):
            chosen = chosen.reshape(2, -1)
        truth = self.given | self.pins
        shape = next(iter(truth.values())).shape
        expected = np.zeros((chosen.size, *shape), self.layout.dtype)
        for k, index in enumerate(chosen.reshape(-1).tolist()):
            expected[k] = truth[index]
        expected = expected.reshape(*chosen.shape, *shape)
        if into:
            out = noise(np.random.default_rng(self.seed), expected.shape, self.layout.dtype)
            result = self.array.gather(chosen, out=out, stream=self.stream)
            assert result is out
            assert_same(out, expected)
        else:
            assert_same(self.array.gather(chosen), expected)

    @rule(data=st.data())
    def gather_what_is_not_there(self, data: st.DataObject) -> None:
        live = set(self.live)
        lanes = range(self.layout.n_lanes)
        dead = [index for index in self.given if index not in live]
        dead += [
            (self.counts[k] + ahead) * self.layout.n_lanes + k for k in lanes for ahead in (0, 3)
        ]
        dead += [-1, -(2**63), 2**63 - 1, 2**63 - 2 - len(self.pins) - 3, 2**62]
        wrong = data.draw(st.sampled_from(dead))
        among = data.draw(st.lists(st.sampled_from([*self.live, *self.pins, wrong]), max_size=5))
        at = data.draw(st.integers(0, len(among)))
        indices = np.array([*among[:at], wrong, *among[at:]], np.int64)
        kind = FrameEvictedError if 0 <= wrong < 2**62 else IndexError
        with pytest.raises(kind, match=str(wrong)):
            self.array.gather(indices)
        with pytest.raises(IndexError):
            self.array.gather(indices, stream=self.stream)

    @precondition(lambda self: self.old_streams)
    @rule(data=st.data())
    def gather_from_an_older_stream(self, data: st.DataObject) -> None:
        old = data.draw(st.sampled_from(self.old_streams))
        indices = np.array(self.live[:2] or [0], np.int64)
        with pytest.raises(StaleStreamError):
            self.array.gather(indices, stream=old)

    # ----------------------------------------------------------------- copying

    @rule(how=st.sampled_from(("copy", "pickle", "pickle of an older protocol", "file")))
    def go_on_with_a_copy(self, how: str) -> None:
        self.freeze()
        self.replicas.clear()
        if how == "copy":
            self.array = self.array.copy()
        elif how == "file":
            with tempfile.TemporaryDirectory() as folder:
                self.array.save(f"{folder}/array")
                self.array = DiffFrameArray.load(f"{folder}/array")
        else:
            protocol = pickle.HIGHEST_PROTOCOL if how == "pickle" else 2
            self.array = pickle.loads(pickle.dumps(self.array, protocol))
        self.counters = dict.fromkeys(COUNTERS, 0)
        assert self.array.stream == self.stream

    @precondition(lambda self: self.frozen)
    @rule()
    def what_was_copied_did_not_change(self) -> None:
        for array, dense, live in self.frozen:
            assert_same(np.asarray(array), dense)
            for index, frame in live.items():
                assert_same(array.gather(np.array([index]))[0], frame)

    @rule(pickled=st.booleans())
    def copies_of_views_stand_alone(self, pickled: bool) -> None:
        view = self.array.reshape(-1, *self.layout.frame_shape) if self.array.size else None
        if view is None:
            return
        twin = pickle.loads(pickle.dumps(view)) if pickled else view.copy()
        dense = np.asarray(self.oracle).reshape(view.shape)
        assert_same(np.asarray(twin), dense)
        twin[...] = noise(np.random.default_rng(self.seed), (), self.layout.dtype)
        assert_same(np.asarray(self.array), np.asarray(self.oracle))

    # ----------------------------------------------------------------- replicas

    @precondition(lambda self: len(self.replicas) < MOST_FROZEN)
    @rule()
    def fork_off_a_replica(self) -> None:
        self.replicas.append((ChangeFeed(self.array), Replica()))

    @rule(n=st.integers(1, 6))
    def tell_replicas_nothing_for_a_while(self, n: int) -> None:
        self.steps_without_news = n

    @precondition(lambda self: self.replicas and not self.steps_without_news)
    @rule()
    def go_on_with_a_replica(self) -> None:
        self.freeze()
        _, replica = self.replicas[-1]
        assert replica.array is not None
        self.array = replica.array
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.replicas.clear()

    # ----------------------------------------------------------------- always

    @invariant()
    def replicas_are_the_same(self) -> None:
        if self.steps_without_news:
            self.steps_without_news -= 1
            return
        for feed, replica in self.replicas:
            replica.apply(feed.read())
            assert replica.array is not None
            assert_holds(replica.array, np.asarray(self.oracle))
            assert_same(replica.array.lane_counts, np.array(self.counts, np.int64))
            if self.live:
                assert_same(replica.array.gather(self.live), self.array.gather(self.live))
            if self.pins:
                assert_same(replica.array.gather(list(self.pins)), self.array.gather([*self.pins]))

    @invariant()
    def holds_the_same_bytes(self) -> None:
        dense = np.asarray(self.oracle)
        assert_holds(self.array, dense)

    @invariant()
    def every_live_index_gathers_its_frame(self) -> None:
        live = self.live
        if live:
            expected = np.stack([self.given[index] for index in live], dtype=self.layout.dtype)
            assert_same(self.array.gather(live), expected)
        if self.pins:
            expected = np.stack(list(self.pins.values()), dtype=self.layout.dtype)
            assert_same(self.array.gather(list(self.pins)), expected)

    @invariant()
    def counts_add_up(self) -> None:
        assert_same(self.array.lane_counts, np.array(self.counts, np.int64))
        assert self.array.n_lanes == self.layout.n_lanes
        assert self.array.stream == self.stream
        assert self.array.shape == self.layout.shape
        assert self.array.nbytes == np.asarray(self.oracle).nbytes

    @invariant()
    def accounts_add_up(self) -> None:
        stored = self.array.nbytes_stored
        assert isinstance(stored, int)
        assert stored > 0
        assert self.array.compression_ratio == pytest.approx(self.array.nbytes / stored)
        assert self.array.reshape(self.layout.shape).nbytes_stored == stored
        stats = self.array.stats()
        for name in COUNTERS:
            assert isinstance(stats[name], int), name
            assert stats[name] >= self.counters[name] or stats[name] == 0, name
            self.counters[name] = stats[name]
        assert stats["frames_held"] >= 0


TestArrayMachine = ArrayMachine.TestCase
TestArrayMachine.settings = settings(max_examples=examples(100), stateful_step_count=30)


class LargeArrayMachine(ArrayMachine):
    """The same of frames of 64 KiB to 4 MiB."""

    drawn_layouts = large_layouts()


TestLargeArrayMachine = LargeArrayMachine.TestCase
TestLargeArrayMachine.settings = settings(
    max_examples=examples(12), stateful_step_count=12, deadline=None
)
