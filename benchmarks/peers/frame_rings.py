"""The frame ring that an expert writes in numpy, and the same over blosc2's chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.peers.base import SIDE, STACK, Drawn, Step, System, numbers

Int64s = npt.NDArray[np.int64]


class FrameRing(System):
    """Each frame once; a transition is the place of its newest frame and of its episode's first.

    A transition's five frames are a window, clipped at the episode's first frame. An episode's
    last frame takes a slot and begins no transition, so a few slots are never drawn.
    """

    name = "numpy frame ring"

    def __init__(self, capacity: int, n_actions: int) -> None:  # noqa: ARG002
        self.make_frames(capacity)
        self.action = np.zeros(capacity, np.uint8)
        self.reward = np.zeros(capacity, np.float32)
        self.terminated = np.zeros(capacity, np.bool_)
        self.first = np.zeros(capacity, np.int64)  # frame numbers, never used again
        self.begins = np.zeros(capacity, np.bool_)  # whether a transition begins with the frame
        self.capacity, self.count, self.episode = capacity, 0, 0
        self.rng = np.random.default_rng(0)
        self.kept: dict[tuple[int, int], Any] = {}

    def make_frames(self, capacity: int) -> None:
        self.frames = np.zeros((capacity, SIDE, SIDE), np.uint8)

    def write_frame(self, slot: int, frame: Any) -> None:
        self.frames[slot] = frame

    def append(self, frame: Any) -> None:
        slot = self.count % self.capacity
        self.write_frame(slot, frame)
        self.first[slot], self.begins[slot] = self.episode, False
        self.count += 1

    def add(self, step: Step) -> None:
        if step.begins:
            self.episode = self.count
            self.append(step.obs[-1])
        slot = (self.count - 1) % self.capacity
        self.action[slot], self.reward[slot] = step.action, step.reward
        self.terminated[slot], self.begins[slot] = step.terminated, True
        self.append(step.next_obs[-1])

    def draw(self, batch_size: int) -> tuple[Int64s, Int64s]:
        """Return slots of transitions and of their windows, ``(B,)`` and ``(B, 5)``."""
        oldest = max(self.count - self.capacity + STACK - 1, 0)
        newest = self.rng.integers(oldest, self.count - 1, batch_size)
        while not (valid := self.begins[newest % self.capacity]).all():
            newest[~valid] = self.rng.integers(oldest, self.count - 1, (~valid).sum())
        slots = newest % self.capacity
        window = newest[:, None] + np.arange(1 - STACK, 2)
        return slots, np.maximum(window, self.first[slots][:, None]) % self.capacity

    def scalars(self, slots: Int64s) -> tuple[Any, ...]:
        return self.action[slots], self.reward[slots], self.terminated[slots]

    def ways(self) -> dict[str, Callable[[int], Any]]:
        return {
            "fancy indexing": self.by_fancy_indexing,
            "np.take into kept outputs": self.by_take,
            "np.take, next_obs overlapping obs": self.by_windows,
        }

    def by_fancy_indexing(self, batch_size: int) -> Any:
        slots, window = self.draw(batch_size)
        return self.frames[window[:, :-1]], self.frames[window[:, 1:]], *self.scalars(slots)

    def by_take(self, batch_size: int) -> Any:
        slots, window = self.draw(batch_size)
        obs, next_obs = self.output(batch_size, STACK), self.output(-batch_size, STACK)
        np.take(self.frames, window[:, :-1], axis=0, out=obs, mode="clip")
        np.take(self.frames, window[:, 1:], axis=0, out=next_obs, mode="clip")
        return obs, next_obs, *self.scalars(slots)

    def by_windows(self, batch_size: int) -> Any:
        slots, window = self.draw(batch_size)
        both = self.output(batch_size, STACK + 1)
        np.take(self.frames, window, axis=0, out=both, mode="clip")
        return both[:, :-1], both[:, 1:], *self.scalars(slots)

    def output(self, batch_size: int, length: int) -> Any:
        """Return the memory kept under a name, which is the batch size or minus it."""
        key = batch_size, length
        if key not in self.kept:
            self.kept[key] = np.empty((abs(batch_size), length, SIDE, SIDE), np.uint8)
        return self.kept[key]

    def drawn(self, sample: Any) -> Drawn:
        obs, next_obs, _, reward, _ = sample
        return Drawn(numbers(reward), obs, next_obs)

    def held(self) -> int:
        return int(self.begins.sum())

    def own_bytes(self) -> int | None:
        arrays = (value for value in vars(self).values() if isinstance(value, np.ndarray))
        return sum(array.nbytes for array in arrays)


class Blosc2(FrameRing):
    """A chunk a frame, compressed with zstd; read one by one into the output."""

    name = "blosc2 frame ring, zstd"
    package = "blosc2"
    needs = ("blosc2",)
    slow = True
    bytes_expected = 2_000

    def make_frames(self, capacity: int) -> None:
        import blosc2

        one_thread = {"nthreads": 1}
        self.array = blosc2.empty(  # its chunks' memory goes with it
            (capacity, SIDE, SIDE),
            dtype=np.uint8,
            chunks=(1, SIDE, SIDE),
            blocks=(1, SIDE, SIDE),
            cparams={"codec": blosc2.Codec.ZSTD, "clevel": 5, **one_thread},
            dparams=one_thread,
        )
        self.chunks = self.array.schunk

    def write_frame(self, slot: int, frame: Any) -> None:
        self.chunks.update_data(slot, np.ascontiguousarray(frame), copy=True)

    def ways(self) -> dict[str, Callable[[int], Any]]:
        return {"": self.sample}

    def sample(self, batch_size: int) -> Any:
        slots, window = self.draw(batch_size)
        both = self.output(batch_size, STACK + 1)
        # A third of the time of indexing the array, which makes a new one for each frame.
        for slot, frame in zip(
            window.reshape(-1).tolist(), both.reshape(-1, SIDE, SIDE), strict=True
        ):
            self.chunks.decompress_chunk(slot, frame)
        return both[:, :-1], both[:, 1:], *self.scalars(slots)

    def own_bytes(self) -> int | None:
        return super().own_bytes() + self.chunks.cbytes
