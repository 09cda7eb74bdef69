"""What is saved to a file comes back bit for bit, and what is damaged is refused."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from compressarray import CorruptFrameError, DiffFrameArray, ReplayBuffer
from compressarray.format import container
from compressarray.snapshots import Pieces
from tests.effort import examples
from tests.naive import assert_same
from tests.replay_worlds import FEEDS, Setting, World, assert_same_content
from tests.strategies import CODECS, Layout, filled, game, layouts


@settings(max_examples=examples(60), deadline=None)
@given(st.data(), layouts())
def test_arrays_come_back(data: st.DataObject, layout: Layout) -> None:
    array = layout.build()
    assert_same(np.asarray(through_memory(array)), layout.dense())
    dense = data.draw(filled(layout))
    array[...] = dense
    twin = through_memory(array)
    assert (twin.dtype, twin.shape, twin.codec) == (array.dtype, array.shape, array.codec)
    assert_same(np.asarray(twin), dense)


def through_memory(array: DiffFrameArray) -> DiffFrameArray:
    return DiffFrameArray._from_tree(container.loads(container.dumps("x", array._file_tree()), "x"))


@pytest.mark.parametrize("codec", CODECS)
def test_a_ring_goes_on(codec: str, tmp_path: Path) -> None:
    rows = game(300, (16, 20))
    array = DiffFrameArray((100, 16, 20), codec=CODECS[codec]())
    array.append(rows[:230])
    pins = array.pin(rows[:2])
    array.save(tmp_path / "array")
    twin = DiffFrameArray.load(tmp_path / "array")
    assert_same(twin.gather(pins), rows[:2])
    for each in (array, twin):
        each.append(rows[230:])
    assert_same(np.asarray(twin), np.asarray(array))
    assert_same(twin.lane_counts, array.lane_counts)
    assert os.listdir(tmp_path) == ["array"]


def test_views_are_saved_as_their_copies() -> None:
    array = DiffFrameArray((10, 2, 6, 8))
    array[...] = game(20, (6, 8)).reshape(10, 2, 6, 8)
    for view in (array.reshape(20, 6, 8), array.swapaxes(0, 1)):
        assert_same(np.asarray(through_memory(view)), np.asarray(view))


def test_an_array_of_the_second_stream_and_of_another_fill_value(tmp_path: Path) -> None:
    array = DiffFrameArray((10, 6, 8), np.float32, fill_value=np.nan)
    array.append(np.zeros((6, 8), np.float32))
    array.clear()
    array.save(tmp_path / "array")
    twin = DiffFrameArray.load(tmp_path / "array")
    assert twin.stream == 1
    assert_same(np.asarray(twin), np.asarray(array))


# Gymnasium's older versions have no dtype of a Discrete
HAS_DTYPE = "dtype" in inspect.signature(spaces.Discrete).parameters
NARROW: Any = {"dtype": np.int16} if HAS_DTYPE else {}

# -- buffers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("feed", FEEDS)
def test_buffers_go_on(feed: str, prioritized: bool, tmp_path: Path) -> None:
    world = World(Setting(feed, n_slots=9, n_step=2, prioritized=prioritized, seed=4))
    for _ in range(30):
        world.step(p_glitch=0.1)
    old = world.buffer
    old.save(tmp_path / "buffer")
    new = ReplayBuffer.load(tmp_path / "buffer")
    assert new.sample(7).index.tolist() == old.sample(7).index.tolist()
    other = ReplayBuffer.load(tmp_path / "buffer", seed=3)
    again = ReplayBuffer.load(tmp_path / "buffer", seed=3)
    assert other.sample(50).index.tolist() == again.sample(50).index.tolist()
    world.buffer = new
    if world.frames is not None:
        world.frames = new.frames
    for _ in range(12):
        world.step(p_glitch=0.1)
        assert_same_content(new, world.oracle)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(5, start=-2),
        spaces.Discrete(5, **NARROW),
        spaces.MultiDiscrete([3, 4]),
        spaces.MultiBinary(4),
        spaces.MultiBinary((2, 3)),
        spaces.Box(-1.5, 2, (3,), np.float32),
        spaces.Box(np.array([0, -5]), np.array([7, 2**40]), dtype=np.int64),
        spaces.Box(-np.inf, np.inf, (2,), np.float64),
    ],
)
def test_action_spaces_come_back(space: Any, tmp_path: Path) -> None:
    buffer = ReplayBuffer(20, spaces.Box(0, 255, (4, 6, 6), np.uint8), space, seed=1)
    buffer.save(tmp_path / "buffer")
    assert ReplayBuffer.load(tmp_path / "buffer")._given["action_space"] == space


def test_a_device_can_be_chosen(tmp_path: Path) -> None:
    buffer = ReplayBuffer(
        20, spaces.Box(0, 255, (6, 6), np.uint8), spaces.Discrete(2), stack_size=2, device="cpu"
    )
    buffer.save(tmp_path / "buffer")
    assert str(ReplayBuffer.load(tmp_path / "buffer").device) == "cpu"
    assert ReplayBuffer.load(tmp_path / "buffer", device=None).device is None
    with pytest.raises(ValueError, match="device='nonsense'"):
        ReplayBuffer.load(tmp_path / "buffer", device="nonsense")


@pytest.mark.parametrize("kind", [np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_any_of_numpys_generators_goes_on(kind: Any, tmp_path: Path) -> None:
    world = World(Setting(seed=4))
    for _ in range(9):
        world.step()
    world.buffer.save(tmp_path / "buffer")
    rng = np.random.Generator(kind(5))
    buffer = ReplayBuffer.load(tmp_path / "buffer", seed=rng)
    buffer.sample(3)
    buffer.save(tmp_path / "second")
    twin = ReplayBuffer.load(tmp_path / "second")
    assert twin.sample(20).index.tolist() == buffer.sample(20).index.tolist()


# -- damage ------------------------------------------------------------------------------------


def test_the_entries_of_a_dict_keep_their_order(tmp_path: Path) -> None:
    image, vector = spaces.Box(0, 255, (4, 6, 6), np.uint8), spaces.Box(-1, 1, (2,), np.float32)
    space = spaces.Dict([("z", image), ("a", vector)])
    ReplayBuffer(20, space, spaces.Discrete(2)).save(tmp_path / "buffer")
    held = ReplayBuffer.load(tmp_path / "buffer")._given["observation_space"]
    assert (held, list(held)) == (space, ["z", "a"])


def small_file(codec: str = "delta") -> tuple[bytes, np.ndarray[Any, Any]]:
    array = DiffFrameArray((24, 8, 8), codec=codec)
    array.append(game(40, (8, 8)))
    return container.dumps("DiffFrameArray", array._file_tree()), np.asarray(array)


def test_cut_off_anywhere() -> None:
    data, _ = small_file()
    for n in range(len(data)):
        with pytest.raises(CorruptFrameError):
            container.loads(data[:n], "DiffFrameArray")


def flips(codec: str, first: int, n: int) -> None:
    """Flip bits, one example a seed; die where an example does."""
    data, dense = small_file(codec)
    for seed in range(first, first + n):
        rng = np.random.default_rng(seed)
        spoilt = bytearray(data)
        for _ in range(rng.integers(1, 3)):
            spoilt[rng.integers(len(spoilt))] ^= 1 << rng.integers(8)
        try:
            twin = DiffFrameArray._from_tree(container.loads(bytes(spoilt), "DiffFrameArray"))
        except ValueError:
            continue
        assert_same(np.asarray(twin), dense)


@pytest.mark.parametrize("codec", ["raw", "sparse", "delta", "delta-huffman"])
def test_flipped_bits_are_detected_or_change_nothing(codec: str) -> None:
    code = f"from tests.test_files import flips; flips({codec!r}, 0, {examples(500)})"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=900)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "file"
    array = DiffFrameArray((4, 8, 8))
    for content in (b"", b"PK\x03\x04", bytes(200)):
        path.write_bytes(content)
        with pytest.raises(CorruptFrameError, match="no file that this library saves"):
            DiffFrameArray.load(path)
    array.save(path)
    with pytest.raises(ValueError, match="holds a DiffFrameArray, no ReplayBuffer"):
        ReplayBuffer.load(path)
    newer = bytearray(path.read_bytes())
    newer[8] = 9
    path.write_bytes(newer)
    with pytest.raises(ValueError, match="version 9 of the format, and this library reads up to 1"):
        DiffFrameArray.load(path)
    with pytest.raises(FileNotFoundError, match=r"no directory .*missing"):
        array.save(tmp_path / "missing" / "file")
    with pytest.raises(FileNotFoundError):
        DiffFrameArray.load(tmp_path / "nothing")


class Homemade:
    codec_id = "homemade"

    def encode(self, data: Any) -> bytes:
        return bytes(data)

    def decode(self, data: Any) -> np.ndarray[Any, Any]:
        return np.frombuffer(data, np.uint8)


def test_codecs_that_no_file_can_name(tmp_path: Path) -> None:
    array = DiffFrameArray((4, 8, 8), codec=Homemade())
    with pytest.raises(TypeError, match="no configuration"):
        array.save(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_a_codec_that_is_not_installed(tmp_path: Path) -> None:
    array = DiffFrameArray((4, 8, 8), codec="zlib")
    array.save(tmp_path / "file")
    code = (
        "import sys; sys.modules['numcodecs'] = None\n"
        "from compressarray import DiffFrameArray\n"
        "try: DiffFrameArray.load(sys.argv[1])\n"
        "except ValueError as error: assert 'install numcodecs' in str(error), error\n"
        "else: raise SystemExit('loaded')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")], check=True, timeout=300)


# -- writing -----------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: writing fails half-way."""
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from compressarray import DiffFrameArray\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "array = DiffFrameArray((50, 64, 64), codec='raw')\n"
        "array[...] = np.random.default_rng(0).integers(0, 256, array.shape, np.uint8)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: array.save(sys.argv[1])\n"
        "except OSError as error: print(error)\n"
        "else: raise SystemExit('saved')"
    )
    path = tmp_path / "array"
    old = DiffFrameArray((3, 8, 8))
    old.save(path)
    before = path.read_bytes()
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=300)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["array"]


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from compressarray import DiffFrameArray\n"
        "array = DiffFrameArray((400, 84, 84), codec='raw')\n"
        "array[...] = np.random.default_rng(0).integers(0, 256, array.shape, np.uint8)\n"
        "print('ready', flush=True)\n"
        "while True: array.save(sys.argv[1])"
    )
    path = tmp_path / "array"
    rng = np.random.default_rng(0)
    for _ in range(examples(3)):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            while not path.exists():
                time.sleep(0.01)
            time.sleep(rng.random() * 0.1)
            writer.send_signal(signal.SIGKILL)
        assert DiffFrameArray.load(path).shape == (400, 84, 84)


def test_saving_takes_no_copy(tmp_path: Path) -> None:
    code = (
        "import resource, sys, numpy as np\n"
        "from compressarray import DiffFrameArray\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "array = DiffFrameArray((20_000, 84, 84), codec='raw')\n"
        "DiffFrameArray((9, 84, 84), codec='raw').save(sys.argv[1])\n"
        "rng = np.random.default_rng(0)\n"
        "for _ in range(20): array.append(rng.integers(0, 256, (1000, 84, 84), np.uint8))\n"
        "before = peak()\n"
        "array.save(sys.argv[1])\n"
        "grown = peak() - before\n"
        "assert grown < 0.02 * array.nbytes_stored + (4 << 20), grown"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")], check=True, timeout=300)


# -- the container -----------------------------------------------------------------------------


def test_trees_come_back() -> None:
    record = np.dtype([("a", "<i2"), ("b", "S3"), ("c", "<f8", (2,))], align=True)
    tree = {
        "none": None,
        "numbers": (1, -(2**62), 2.5, True),
        3: ["text", {"inner": np.arange(5)}],
        "record": np.zeros((2, 3), record),
        "dates": np.array(["2020-01-01"], "M8[D]"),
        "big-endian": np.arange(3, dtype=">i4"),
        "empty": np.zeros((0, 4)),
        "scalar": np.float32(1.5),
        "pieces": Pieces(150_000, iter(np.split(np.arange(150_000).astype(np.uint8), 3))),
    }
    twin = container.loads(container.dumps("x", tree), "x")
    assert twin["numbers"] == tree["numbers"]
    assert isinstance(twin["numbers"], tuple)
    assert twin[3][0] == "text"
    assert_same(twin[3][1]["inner"].copy(), np.arange(5))
    for name in ("record", "dates", "big-endian", "empty"):
        dense = np.asarray(tree[name])
        assert (twin[name].dtype, twin[name].shape) == (dense.dtype, dense.shape)
        assert twin[name].tobytes() == dense.tobytes()
    assert twin["scalar"] == 1.5
    assert_same(twin["pieces"].copy(), np.arange(150_000).astype(np.uint8))


@pytest.mark.parametrize("value", [object(), {"a": {1, 2}}, np.array([None])])
def test_trees_hold_nothing_that_runs(value: Any) -> None:
    with pytest.raises(TypeError):
        container.dumps("x", value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda header: header["arrays"][0].update(dtype="|O"),
        lambda header: header["arrays"][0].update(shape=[-1]),
        lambda header: header["arrays"][0].update(shape=[10**12]),
        lambda header: header["arrays"][0].update(shape="x"),
        lambda header: header["arrays"][0].update(start=-64),
        lambda header: header["arrays"][0].update(start=1.5),
        lambda header: header["arrays"].clear(),
        lambda header: header.pop("tree"),
        lambda header: header.update(tree={"eval": "1"}),
        lambda header: header.update(tree={"array": "x"}),
        lambda header: header.update(tree=[1]),
        lambda header: header.update(arrays=None),
    ],
)
def test_headers_that_nobody_writes_are_refused(spoil: Any) -> None:
    """With checksums that are right: somebody has made them."""
    data, _ = small_file()
    n_header = int.from_bytes(data[16:24], "little")
    header = json.loads(data[64 : 64 + n_header])
    spoil(header)
    altered = json.dumps(header).encode()
    start = 64 + -(-n_header // 64) * 64
    sizes = len(altered).to_bytes(8, "little") + data[24:64]
    checksum = zlib.crc32(altered, zlib.crc32(sizes)).to_bytes(4, "little")
    file = data[:12] + checksum + sizes + altered + bytes(-len(altered) % 64) + data[start:]
    with pytest.raises(CorruptFrameError):
        DiffFrameArray._from_tree(container.loads(file, "DiffFrameArray"))
