"""Lanes of made-up episodes, fed to a buffer and to its oracle in every way there is."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

from compressarray import Batch, DiffFrameArray, ReplayBuffer, SequenceBatch
from tests.naive_replay import NaiveReplay

FRAME = (3, 5)
N_ACTIONS = 5
FEEDS = ("stacks", "newest", "indices", "dict", "dict of newest")
MODES = ("same_step", "next_step", "disabled")
PADDINGS = ("reset", "zero", "junk")
FIRST_PIN = 2**63 - 2
# What each step is added with, where there are fields: its name, and the same in another dtype.
FIELDS = {"name": Box(0, 2**62, (), np.int64), "pair": Box(-np.inf, np.inf, (2,), np.float32)}


@dataclass(frozen=True)
class Setting:
    """How a world and its buffer are built."""

    feed: str = "stacks"
    n_envs: int = 2
    n_slots: int = 7
    stack_size: int = 3
    n_step: int = 1
    full_windows: bool = False
    mode: str = "same_step"
    padding: str = "reset"
    prioritized: bool = False
    codec: str = "delta"
    seed: int = 0
    extra: int = 0  # transitions of capacity that no lane can use
    resets: int = 0  # resets from outside that shared frames have room for
    has_lives: bool = False  # ends without a reset, of which `was_reset` tells

    frame: tuple[int, ...] = FRAME
    has_fields: bool = False

    @property
    def black(self) -> np.ndarray:
        return np.zeros(self.frame, np.uint8)

    @property
    def other_padding(self) -> np.ndarray:
        return np.resize(np.arange(15, dtype=np.uint8), self.frame)

    @property
    def is_newest(self) -> bool:
        return "newest" in self.feed

    @property
    def is_dict(self) -> bool:
        return "dict" in self.feed


class Lane:
    """One environment behind one frame-stacking wrapper."""

    def __init__(self, setting: Setting, rng: np.random.Generator) -> None:
        self.setting = setting
        self.rng = rng
        self.frames: list[np.ndarray] = []
        self.vector = np.zeros(2, np.float32)

    def _frame(self) -> np.ndarray:
        """Draw a frame: often one that was there before, or a black one."""
        kind = self.rng.integers(0, 4)
        if kind == 0:
            return np.full(self.setting.frame, self.rng.integers(0, 3), np.uint8)
        if kind == 1 and self.frames:
            return self.frames[-1].copy()
        return self.rng.integers(0, 256, self.setting.frame, np.uint8)

    def reset(self) -> None:
        size, padding = self.setting.stack_size, self.setting.padding
        first = self._frame()
        if padding == "junk" and self.setting.feed != "indices":
            self.frames = [self._frame() for _ in range(size)]
        else:
            before = {
                "reset": first,
                "zero": self.setting.black,
                "junk": self.setting.other_padding,
            }[padding]
            self.frames = [before] * (size - 1) + [first]
        self.vector = self.rng.normal(size=2).astype(np.float32)

    def step(self, glitch: bool) -> None:
        self.frames = [*self.frames[1:], self._frame()]
        if glitch:
            self.frames = [self._frame() for _ in self.frames]
        self.vector = self.vector * np.float32(0.5)

    def observation(self) -> Any:
        image = np.stack(self.frames)
        if self.setting.is_newest:
            image = image[-1]
        return {"image": image, "vector": self.vector} if self.setting.is_dict else image


class World:
    """Lanes, what the policy last saw of them, a buffer and an oracle."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.rng = np.random.default_rng(setting.seed)
        self.lanes = [Lane(setting, self.rng) for _ in range(setting.n_envs)]
        self.resetting = [False] * setting.n_envs
        self.was_reset = np.zeros(setting.n_envs, bool)  # from outside, since the last step
        self.unnoticed: set[int] = set()  # lanes of which the buffer will see it with the next step
        self.frames: DiffFrameArray | None = None
        if setting.feed == "indices":
            rows = 2 * setting.n_slots + setting.stack_size + setting.resets
            shape = (rows, setting.n_envs, *setting.frame)
            self.frames = DiffFrameArray(shape, stack_axis=None, codec=setting.codec)
            self.indices = np.zeros((setting.n_envs, setting.stack_size), np.int64)
        self.buffer = self.build()
        self.oracle = self.new_oracle()
        for lane in self.lanes:
            lane.reset()
        if self.frames is not None:
            self.enter(range(setting.n_envs))

    def build(self, **changes: Any) -> ReplayBuffer:
        s = self.setting
        space: Any = Box(0, 255, (s.stack_size, *s.frame), np.uint8)
        arguments: dict[str, Any] = {}
        if s.is_newest:
            space = Box(0, 255, s.frame, np.uint8)
            arguments = {"stack_size": s.stack_size}
            arguments["padding_type"] = s.other_padding if s.padding == "junk" else s.padding
        elif s.feed == "indices":
            space = Box(0, FIRST_PIN, (s.stack_size,), np.int64)
            arguments = {"frames": self.frames}
        if s.is_dict:
            space = Dict({"image": space, "vector": Box(-9, 9, (2,), np.float32)})
        return ReplayBuffer(
            s.n_envs * s.n_slots + s.extra,
            space,
            Discrete(N_ACTIONS, start=-1),
            s.n_envs,
            n_step=s.n_step,
            gamma=0.9,
            full_windows=s.full_windows,
            autoreset_mode=s.mode,
            prioritized=s.prioritized,
            codec=s.codec,
            seed=s.seed,
            fields=FIELDS if s.has_fields else None,
            **{**arguments, **changes},
        )

    def new_oracle(self) -> NaiveReplay:
        s = self.setting
        padding = {"reset": None, "zero": s.black, "junk": s.other_padding}
        return NaiveReplay(
            s.n_envs,
            s.n_slots,
            n_step=s.n_step,
            gamma=0.9,
            full_windows=s.full_windows,
            autoreset_mode=s.mode,
            stack_size=s.stack_size if s.is_newest else None,
            padding=padding[s.padding],
        )

    # ----------------------------------------------------------------- indices

    def enter(self, lanes: Any) -> None:
        """Store what a reset showed, and make stacks of indices, as an IndexedFrameStack does."""
        assert self.frames is not None
        for lane in lanes:
            padding = self.store(lane, self.lanes[lane].frames[-1])
            if self.setting.padding != "reset":
                padding = int(
                    self.frames.pin(
                        self.setting.black
                        if self.setting.padding == "zero"
                        else self.setting.other_padding
                    )
                )
            self.indices[lane, :-1] = padding

    def store(self, lane: int, frame: np.ndarray) -> int:
        assert self.frames is not None
        index = int(self.frames.append(frame[None], lanes=[lane])[0])
        self.indices[lane] = [*self.indices[lane, 1:], index]
        return index

    # ----------------------------------------------------------------- stepping

    def observe(self) -> Any:
        observations = [lane.observation() for lane in self.lanes]
        if self.setting.is_dict:
            return {key: np.stack([each[key] for each in observations]) for key in observations[0]}
        return np.stack(observations)

    def given(self) -> Any:
        return self.observe() if self.frames is None else self.indices.copy()

    def step(
        self,
        p_terminate: float = 0.1,
        p_truncate: float = 0.1,
        p_glitch: float = 0.0,
        lanes: Any = None,
    ) -> None:
        """Step all lanes, or some, and add the step to the buffer and the oracle."""
        n, rng, mode = self.setting.n_envs, self.rng, self.setting.mode
        glitch = p_glitch if self.setting.feed != "indices" else 0
        obs, given_obs = self.observe(), self.given()
        terminated, truncated, lost = np.zeros((3, n), bool)
        was_reset = self.was_reset.copy() if mode == "disabled" else np.zeros(n, bool)
        self.was_reset[slice(None) if lanes is None else lanes] = False
        final: list[Any] = [None] * n
        given_final = np.full(n, None, object)
        for k in range(n) if lanes is None else lanes:
            lane = self.lanes[k]
            if self.resetting[k]:
                self.begin(k)
                was_reset[k] = True
                continue
            lane.step(rng.random() < glitch)
            if self.frames is not None:
                self.store(k, lane.frames[-1])
            terminated[k] = rng.random() < p_terminate
            truncated[k] = rng.random() < p_truncate
            lost[k] = terminated[k] and self.setting.has_lives and rng.random() < 0.5
            if (terminated[k] or truncated[k]) and not lost[k]:
                self.resetting[k] = mode == "next_step"
                if mode == "same_step":
                    final[k] = lane.observation()
                    given_final[k] = final[k] if self.frames is None else self.indices[k].copy()
                    self.begin(k)
                    was_reset[k] = True
        action = rng.integers(-1, N_ACTIONS - 1, n)
        reward = np.round(rng.normal(size=n), 2)
        ended = (terminated | truncated) & ~lost
        info: dict[str, Any] = {}
        if mode == "same_step" and ended.any():
            info = {"final_obs": given_final, "_final_obs": ended}
        next_obs, given_next = self.observe(), self.given()
        if self.setting.is_dict:
            final = {
                key: [None if each is None else each[key] for each in final]
                for key in ("image", "vector")
            }
        told = {"was_reset": was_reset} if self.setting.has_lives else {}
        beside: dict[str, Any] = {}
        if self.setting.has_fields:
            names = np.array([len(self.oracle.steps[k]) * n + k for k in range(n)])
            beside["fields"] = {"name": names, "pair": np.stack([names, -names], 1)}
        arguments = (given_obs, action, reward, terminated, truncated, given_next, info)
        if lanes is not None:
            beside["lanes"] = lanes
            arguments = tuple(rows_of(each, lanes) for each in arguments)
            told = rows_of(told, lanes)
            beside |= rows_of({k: v for k, v in beside.items() if k == "fields"}, lanes)
        with warnings.catch_warnings():
            # Frames are drawn from so few that a reset's may be the last one again.
            warnings.filterwarnings("ignore", "lane . ended, and its next obs is what it ended")
            self.buffer.add(*arguments, **told, **beside)
        stepped = set(range(n) if lanes is None else lanes)
        for lane in self.unnoticed & stepped:  # indices tell, even where the pixels are the same
            self.oracle.cut(lane)
        self.unnoticed -= stepped
        told = {"was_reset": was_reset} if self.setting.has_lives else {}
        self.oracle.add(
            obs, action, reward, terminated, truncated, next_obs, final, **told, lanes=lanes
        )
        if mode == "disabled":
            self.reset_from_outside(np.flatnonzero(ended))

    def begin(self, lane: int) -> None:
        """Reset a lane's environment."""
        self.lanes[lane].reset()
        self.resetting[lane] = False
        if self.frames is not None:
            self.enter([lane])

    def reset_from_outside(self, lanes: Any) -> None:
        """Reset lanes whenever, and say nothing: a new observation is noticed."""
        for lane in lanes:
            self.begin(lane)
            self.was_reset[lane] = True
            if self.frames is not None:
                self.unnoticed.add(lane)

    def cut(self, lanes: list[int]) -> None:
        """Reset lanes in the middle of their episodes, and say so."""
        self.reset_from_outside(lanes)
        self.buffer.cut(lanes)
        for lane in lanes:
            self.oracle.cut(lane)

    def clear(self) -> None:
        """Clear the buffer; the environments go on."""
        self.buffer.clear()
        self.oracle.clear()


def assert_row(batch: Batch | SequenceBatch, row: int, expected: dict[str, Any]) -> None:
    """Compare one row of a batch with the oracle's, bit for bit."""
    for name, value in expected.items():
        actual = getattr(batch, name)
        pairs = [(actual, value)]
        if isinstance(value, dict):
            assert set(actual) == set(value)
            pairs = [(actual[key], value[key]) for key in value]
        for got, want in pairs:
            got, want = np.asarray(got[row]), np.asarray(want)
            assert got.dtype == want.dtype, f"{name}: {got.dtype} is not {want.dtype}"
            assert got.shape == want.shape, f"{name}: {got.shape} is not {want.shape}"
            assert got.tobytes() == want.tobytes(), f"{name} of row {row}:\n{got}\nnot\n{want}"


def rows_of(values: Any, lanes: Any) -> Any:
    """Some lanes' rows of what `add` is given."""
    if isinstance(values, dict):
        return {key: rows_of(each, lanes) for key, each in values.items()}
    return values[lanes]


def assert_batch(batch: Batch, expected: dict[int, dict[str, Any]]) -> None:
    """Assert that every row is one of the oracle's."""
    assert_fields(batch.fields, batch.index)
    for row, name in enumerate(batch.index.tolist()):
        assert name in expected, f"transition {name} may not be drawn"
        assert_row(batch, row, expected[name])


def assert_same_content(buffer: ReplayBuffer, oracle: NaiveReplay) -> None:
    """Assert that what may be drawn is what the oracle says, all of it."""
    expected = oracle.samplable()
    assert len(buffer) == len(oracle)
    assert buffer.n_samplable == len(expected)
    if expected:
        batch = buffer.sample(len(expected), replace=False)
        assert sorted(batch.index.tolist()) == sorted(expected)
        assert_batch(batch, expected)


def assert_fields(fields: dict[str, Any], names: Any, shown: Any = None) -> None:
    """Assert that fields are those of some transitions, where there are any and they are shown."""
    if fields:
        shown = np.ones(np.shape(names), bool) if shown is None else np.asarray(shown) != 0
        want = np.asarray(names)[shown]
        assert (np.asarray(fields["name"])[shown] == want).all()
        pair = np.stack([want, -want], -1).astype(np.float32)
        assert (np.asarray(fields["pair"])[shown] == pair).all()


def assert_same_steps(buffer: ReplayBuffer, oracle: NaiveReplay) -> None:
    """Assert that what is held, by name and in order, is what the oracle says."""
    names = oracle.names()
    assert buffer.newest(len(names) + 3).tolist() == names
    assert buffer.newest(2).tolist() == names[-2:]
    steps = buffer.get(names)
    assert_fields(steps.fields, names)
    for row, name in enumerate(names):
        assert_row(steps, row, oracle.step_of(name))
    for name, step in zip(names, buffer, strict=True):
        assert step.index == name
        want = oracle.step_of(name)["obs"]
        for key in want if isinstance(want, dict) else (slice(None),):
            assert np.array_equal(step.obs[key], want[key])


def assert_same_runs(buffer: ReplayBuffer, oracle: NaiveReplay, length: int, **how: Any) -> None:
    """Assert that the runs that may be drawn are the oracle's, all of them."""
    expected = oracle.runs(length, **how)
    if not expected:
        return
    batch = buffer.sample_sequences(len(expected), length, replace=False, **how)
    burn_in = how.get("burn_in", 0)
    starts = batch.index[:, burn_in].tolist()
    assert sorted(starts) == sorted(expected)
    assert_fields(batch.fields, batch.index, batch.mask)
    assert (batch.weight == 1).all()
    for row, start in enumerate(starts):
        for t, name in enumerate(expected[start]):
            assert batch.mask[row, t] == (name is not None)
            assert batch.index[row, t] == (-1 if name is None else name)
            if name is None:
                assert batch.reward[row, t] == batch.terminated[row, t] == 0
                continue
            one = batch._replace(
                **{
                    key: _first(getattr(batch, key), row, t)
                    for key in ("obs", "action", "reward", "next_obs", "terminated", "truncated",
                                "is_first")
                }
            )  # fmt: skip
            assert_row(one, 0, oracle.step_of(name))


def _first(values: Any, row: int, t: int) -> Any:
    if isinstance(values, dict):
        return {key: _first(each, row, t) for key, each in values.items()}
    return np.asarray(values)[row : row + 1, t]


def assert_same_sequences(buffer: ReplayBuffer, oracle: NaiveReplay, length: int) -> None:
    """Assert that the sequences that may be drawn are the oracle's, all of them."""
    expected = oracle.sequences(length)
    if not expected:
        return
    batch = buffer.sample_sequences(len(expected), length, replace=False)
    assert sorted(batch.index[:, 0].tolist()) == sorted(expected)
    for row, name in enumerate(batch.index[:, 0].tolist()):
        assert_row(batch, row, expected[name])
