"""Worlds that scroll, turn, flicker or are noisy: our codecs beside zstd and lossless video.

Of each world that is installed (`benchmarks/worlds.py`; CarRacing, ViZDoom, MiniWorld, MiniGrid,
Crafter and two generated ones) so many frames are stored by each:

- ours, `delta` and `delta-huffman`, in an array of them all: everything that is held counts;
- zstd, level 3 for each frame by itself, and level 19 for 64 frames at a time;
- FFV1 and x264 without loss through ffmpeg, where the package `imageio-ffmpeg` brings one: every
  frame by itself, and groups of 24 frames.

Then 32 windows of 4 frames are read at random places, from ours and from a dense array, by turns:
the least of many, in the time of one thread. All pixels are compared.

    python -m benchmarks.bench_worlds [--worlds crafter] [--frames 3000] [--quick] [--help]

Writes `benchmarks/results/worlds.json`, `worlds.md`, and `worlds.png` with a frame of each
(`worlds-quick.*` with `--quick`).
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numba
import numpy as np
import numpy.typing as npt
import tyro
from tqdm import tqdm

from benchmarks.common import RESULTS, machine, make_command
from benchmarks.worlds import WORLDS, missing, world_frames
from compressarray import DiffFrameArray

OURS = ("delta", "delta-huffman")
WINDOWS, WINDOW = 32, 4
AT_ONCE = 64  # frames that zstd's level 19 gets, and that are appended at once
VIDEO_GROUP = 24  # frames, as many as `delta-huffman` has
QUICK_FRAMES, QUICK_REPEATS = 400, 5

Frames = npt.NDArray[np.uint8]


@dataclass
class Args:
    worlds: tuple[str, ...] = tuple(WORLDS)
    """which of them"""
    frames: int = 3000
    """frames of each"""
    repeats: int = 30
    """times to read windows from each, by turns"""
    quick: bool = False
    """few frames, to see that it runs"""


def zstd_bytes(frames: Frames, level: int, at_once: int) -> float | None:
    """Bytes a frame; None where there is no zstd."""
    if find_spec("numcodecs") is None:
        return None
    from numcodecs import Zstd

    codec = Zstd(level)
    # level 19 takes a second for 64 frames: eight such groups, spread over all
    starts = range(0, len(frames) - at_once + 1, at_once)
    if at_once > 1:
        starts = starts[:: max(1, len(starts) // 8)]
    sizes = [len(codec.encode(frames[start : start + at_once].tobytes())) for start in starts]
    return sum(sizes) / (len(sizes) * at_once)


def video_bytes(frames: Frames, coder: str) -> float | None:
    """Bytes a frame of a video without loss; None where there is no ffmpeg."""
    if find_spec("imageio_ffmpeg") is None:
        return None
    import imageio_ffmpeg

    is_rgb = frames.ndim == 4
    height, width = frames.shape[1:3]
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24" if is_rgb else "gray"]
    given += ["-s", f"{width}x{height}", "-r", "30", "-i", "-"]
    if coder == "ffv1":
        asked = ["-c:v", "ffv1", "-level", "3", "-coder", "1", "-context", "1", "-g", "1"]
        asked += ["-pix_fmt", "gbrp" if is_rgb else "gray"]
    else:
        asked = ["-c:v", "libx264rgb" if is_rgb else "libx264", "-qp", "0"]
        asked += ["-pix_fmt", "rgb24" if is_rgb else "gray", "-g", str(VIDEO_GROUP)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.mkv"
        program = imageio_ffmpeg.get_ffmpeg_exe()
        command = [program, "-loglevel", "error", *given, *asked, str(path)]
        subprocess.run(command, input=frames.tobytes(), check=True)
        return path.stat().st_size / len(frames)


def measure(frames: Frames, repeats: int) -> dict[str, dict[str, float | None]]:
    """By system bytes a frame and, of what can be read, microseconds for the windows."""
    results: dict[str, dict[str, float | None]] = {
        "raw": {"bytes": frames[0].nbytes},
        "zstd-3, each frame": {"bytes": zstd_bytes(frames, 3, 1)},
        f"zstd-19, {AT_ONCE} frames": {"bytes": zstd_bytes(frames, 19, AT_ONCE)},
        "FFV1": {"bytes": video_bytes(frames, "ffv1")},
        "x264 lossless": {"bytes": video_bytes(frames, "x264")},
    }
    arrays = {}
    for codec in OURS:
        array = DiffFrameArray(frames.shape, frame_ndim=frames.ndim - 1, codec=codec)
        start = time.thread_time()
        for i in range(0, len(frames), AT_ONCE):
            array.append(frames[i : i + AT_ONCE])
        taken = time.thread_time() - start
        assert np.array_equal(array, frames), codec
        arrays[codec] = array
        results[codec] = {
            "bytes": array.nbytes_stored / len(frames),
            "append": 1e6 * taken / len(frames),
        }
    rng = np.random.default_rng(0)
    readers = {"raw": frames.__getitem__, **{codec: arrays[codec].gather for codec in OURS}}
    least = dict.fromkeys(readers, np.inf)
    for _ in range(repeats):
        index = rng.integers(WINDOW - 1, len(frames), (WINDOWS, 1)) - np.arange(WINDOW)[::-1]
        for name, read in readers.items():
            start = time.thread_time()
            read(index)
            least[name] = min(least[name], time.thread_time() - start)
    for name, taken in least.items():
        results[name]["read"] = 1e6 * taken
    return results


def table(worlds: dict[str, dict[str, dict[str, float | None]]], absent: list[str]) -> str:
    systems = list(next(iter(worlds.values())))
    lines = [
        "| bytes a frame | "
        + " | ".join(systems)
        + " | windows: dense / delta / delta-huffman, us "
        "| append: delta / delta-huffman, us |",
        "|---|" + "---|" * (len(systems) + 2),
    ]
    for name, values in worlds.items():
        sizes = (
            "-" if (size := values[each]["bytes"]) is None else f"{size:,.0f}" for each in systems
        )
        reads = (f"{values[each]['read']:,.0f}" for each in ("raw", *OURS))
        appends = (f"{values[each]['append']:,.0f}" for each in OURS)
        lines.append(
            f"| {WORLDS[name].title} | {' | '.join(sizes)} | {' / '.join(reads)} "
            f"| {' / '.join(appends)} |"
        )
    lines += ["", *(f"Not installed: {each}." for each in absent)]
    return "\n".join(lines)


def save_pictures(worlds: dict[str, Frames], path: Path) -> None:
    """Save the frame in the middle of each world, side by side."""
    columns = 4
    rows = -(-len(worlds) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3 * columns, 3 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, frames) in zip(axes.flat, worlds.items(), strict=False):
        axis.imshow(frames[len(frames) // 2], cmap="gray", vmin=0, vmax=255)
        axis.set_title(WORLDS[name].title.replace(", ", "\n", 1), fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(args: Args) -> None:
    numba.config.NUMBA_NUM_THREADS = 1  # as the table says
    n_frames = QUICK_FRAMES if args.quick else args.frames
    repeats = QUICK_REPEATS if args.quick else args.repeats
    worlds: dict[str, dict[str, dict[str, float | None]]] = {}
    pictures: dict[str, Frames] = {}
    absent = []
    for name in tqdm(args.worlds, unit="world"):
        if missing(name):
            absent.append(f"{WORLDS[name].title} ({', '.join(missing(name))})")
            continue
        frames = world_frames(name, n_frames)
        pictures[name] = frames
        worlds[name] = measure(frames, repeats)
    text = table(worlds, absent)
    text += (
        f"\n{n_frames:,} frames of each under random play, all that is held counted; "
        f"{WINDOWS} windows of {WINDOW} frames, the least of {repeats} readings "
        "in the time of one thread. "
        f"`{make_command('bench-worlds', args)}` on {machine()}.\n"
    )
    print(text)
    RESULTS.mkdir(exist_ok=True)
    stem = "worlds-quick" if args.quick else "worlds"
    (RESULTS / f"{stem}.md").write_text(text)
    save_pictures(pictures, RESULTS / f"{stem}.png")
    record = {"machine": machine(), "frames": n_frames, "worlds": worlds}
    (RESULTS / f"{stem}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
