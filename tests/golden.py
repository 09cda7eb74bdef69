"""Golden files: what this version writes, kept so that later ones prove that they still read it.

    python -m tests.golden

Until the first release the format may change, and whoever changes it makes them anew; from then on
those of a released version are never written again. What must come out of them does not come from
the library: it is made here, of numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

from compressarray import DiffFrameArray, ReplayBuffer
from compressarray.format import container

FIXTURES = Path(__file__).parent / "fixtures"
CODECS = ("raw", "sparse", "delta", "delta-huffman")
N_ROWS, N_FRAMES, FRAME = 90, 130, (12, 10)


def frames(seed: int = 0) -> np.ndarray:
    """A ball that moves over a picture, which changes at times, ``(N_FRAMES, 2, *FRAME)``."""
    rng = np.random.default_rng(seed)
    made = np.zeros((N_FRAMES, 2, *FRAME), np.uint8)
    background = rng.integers(0, 4, FRAME, np.uint8) * np.uint8(60)
    for t in range(N_FRAMES):
        if t % 41 == 40:
            background = np.roll(background, 3, 1)
        made[t] = background
        for lane in range(2):
            made[t, lane, (t + 5 * lane) % FRAME[0], (2 * t) % FRAME[1]] = 200 + t % 50
    return made


def array(codec: str) -> DiffFrameArray:
    held = DiffFrameArray((N_ROWS, 2, *FRAME), codec=codec)
    held.append(frames())
    held.pin(np.full(FRAME, 7, np.uint8))
    return held


def moving_frames() -> np.ndarray:
    """A texture that scrolls, and then noise, ``(300, 32, 30)``."""
    rng = np.random.default_rng(2)
    texture = rng.integers(0, 256, (32, 150), np.uint8)
    smooth = np.linspace(20, 200, 32 * 30).reshape(32, 30)
    made = [texture[:, t : t + 30] for t in range(60)]
    made += [smooth + rng.integers(-2, 3, (32, 30)) for _ in range(240)]
    return np.array(made).astype(np.uint8)


def moving_array(codec: str) -> DiffFrameArray:
    """As many of them as it takes to have codes."""
    frames = moving_frames()[: 300 if codec == "delta-huffman" else 80]
    held = DiffFrameArray(frames.shape, codec=codec, gop_length=8)
    held.append(frames[:250])
    held.append(frames[250:])
    assert ("packer" in held.stats()["nbytes_by_part"]) == (codec == "delta-huffman")
    return held


def ends(t: int, lane: int) -> bool:
    """Whether an episode ends with step ``t``."""
    return lane == 0 and t % 17 == 16


def final(t: int, lane: int) -> np.ndarray:
    """The frame that step ``t`` led to."""
    after = frames(1)[t + 1, lane]
    return 255 - after if ends(t, lane) else after


def add(held: ReplayBuffer, first: int, end: int) -> ReplayBuffer:
    """Add steps, in which lane 0 has episodes of 17 and lane 1 a single one."""
    images = frames(1)
    for t in range(first, end):
        obs, after = (
            {"image": images[k], "speed": np.full((2, 2), k, np.float32)} for k in (t, t + 1)
        )
        info = {}
        if ends(t, 0):
            info["final_obs"] = {
                "image": np.stack([final(t, 0), final(t, 1)]),
                "speed": np.full((2, 2), -t, np.float32),
            }
        held.add(obs, [t % 5, 1], [t / 4, -t], [ends(t, 0), False], [False, False], after, info,
                 fields={"step": [t, t]})  # fmt: skip
        if t > 10:
            held.update_priorities(np.array([2 * t - 10]), np.array([t / 7]))
    return held


def buffer(n: int) -> ReplayBuffer:
    """The first ``n`` steps."""
    space = Dict({"image": Box(0, 255, FRAME, np.uint8), "speed": Box(-9, 9, (2,), np.float32)})
    held = ReplayBuffer(
        160,
        space,
        Discrete(5),
        2,
        stack_size=3,
        n_step=2,
        gamma=0.5,
        prioritized=True,
        seed=4,
        fields={"step": Box(0, 2**62, (), np.int64)},
    )
    return add(held, 0, n)


def main() -> None:
    """Write the files of this version."""
    folder = FIXTURES / str(container.VERSION)
    folder.mkdir(parents=True, exist_ok=True)
    for codec in CODECS:
        array(codec).save(folder / f"array-{codec}")
    for codec in ("delta", "delta-huffman"):
        moving_array(codec).save(folder / f"moving-{codec}")
    held = buffer(60)
    held.save(folder / "buffer")
    log = folder / "checkpoints"
    for old in log.glob("*"):
        old.unlink()
    held.checkpoint(log)
    add(held, 60, 64).checkpoint(log)
    (log / "lock").unlink()
    print(f"written: {folder}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
