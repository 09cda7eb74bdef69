"""What Hypothesis draws: layouts of arrays, sequences of frames, keys and values.

A layout says how an array is built; `Layout.build` gives the compressed array and
`Layout.dense` the ndarray it must be indistinguishable from. Frames are drawn as a kind
and a seed, so that a failing example reads as "flickering, seed 3" and not as a page of
pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import hypothesis.strategies as st
import numpy as np

from compressarray import DiffFrameArray
from tests.naive import assert_same

# --------------------------------------------------------------------------- dtypes

INTEGERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", ">i2", ">u4", ">i8")
FLOATS = ("f2", "f4", "f8", ">f4", ">f8", "c8", "c16", ">c8")
OTHERS = ("?", "M8[s]", "m8[ms]", ">M8[us]", "S5", "U3", ">U2", "V7")
STRUCTURED = (
    [("x", "u1"), ("y", "<f4")],
    [("position", ">i2", (2,)), ("name", "S3"), ("alive", "?")],
    [("inner", [("a", "u1"), ("b", "<i8")]), ("c", "f2")],
)
ALL_DTYPES: tuple[np.dtype[Any], ...] = tuple(
    np.dtype(d) for d in (*INTEGERS, *FLOATS, *OTHERS, *STRUCTURED)
)


def dtypes() -> st.SearchStrategy[np.dtype[Any]]:
    """uint8 half of the time, then every other fixed-size dtype."""
    return st.one_of(st.just(np.dtype(np.uint8)), st.sampled_from(ALL_DTYPES))


# --------------------------------------------------------------------------- codecs


def _numcodecs(name: str, **config: Any) -> Any:
    import numcodecs

    return numcodecs.get_codec({"id": name, **config})


# Named, so that a failing example tells which codec it was.
CODECS: dict[str, Callable[[], Any]] = {
    "raw": lambda: "raw",
    "sparse": lambda: "sparse",
    "delta": lambda: "delta",
    "delta-huffman": lambda: "delta-huffman",
    "zstd by name": lambda: "zstd",
    "lz4 by config": lambda: {"id": "lz4"},
    "numcodecs.Zstd": lambda: _numcodecs("zstd", level=1),
    "numcodecs.LZ4": lambda: _numcodecs("lz4"),
    "numcodecs.GZip": lambda: _numcodecs("gzip", level=1),
    "numcodecs.Blosc": lambda: _numcodecs("blosc", cname="lz4", clevel=3, shuffle=1),
}
OWN_CODECS = ("raw", "sparse", "delta", "delta-huffman")
CHAINED_CODECS = ("delta", "delta-huffman")  # frames lean on earlier frames of their GOP
ALONE_CODECS = tuple(name for name in CODECS if name not in ("sparse", *CHAINED_CODECS))


def sparse_allowed(dtype: np.dtype[Any], frame_ndim: int) -> bool:
    return dtype == np.uint8 and frame_ndim == 2


# --------------------------------------------------------------------------- layouts


@dataclass(frozen=True)
class Layout:
    """How to build an array, and the dense twin of it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    frame_ndim: int
    codec: str  # a key of CODECS
    stack_axis: int | str | None = "auto"
    gop_length: int | None = None
    fill: int | None = None  # the seed of a drawn fill_value; None leaves the default

    @property
    def lead_shape(self) -> tuple[int, ...]:
        return self.shape[: len(self.shape) - self.frame_ndim]

    @property
    def frame_shape(self) -> tuple[int, ...]:
        return self.shape[len(self.shape) - self.frame_ndim :]

    @property
    def stack_axis_index(self) -> int | None:
        if self.stack_axis == "auto":
            n_lead = len(self.lead_shape)
            return n_lead - 1 if n_lead >= 3 else None
        return self.stack_axis  # type: ignore[return-value]

    @property
    def lane_shape(self) -> tuple[int, ...]:
        return tuple(
            n
            for axis, n in enumerate(self.lead_shape)
            if axis != 0 and axis != self.stack_axis_index
        )

    @property
    def n_lanes(self) -> int:
        return prod(self.lane_shape)

    @property
    def fill_value(self) -> Any:
        """What never-written elements read as."""
        if self.fill is not None:
            return element(self.dtype, self.fill)
        if self.dtype.kind in "SUV":  # np.full(..., 0, "S5") is b"0", np.zeros is b""
            return np.zeros((), self.dtype)[()]
        return 0

    def build(self, **overrides: Any) -> DiffFrameArray:
        options: dict[str, Any] = {"frame_ndim": self.frame_ndim, "codec": CODECS[self.codec]()}
        if self.stack_axis != "auto":
            options["stack_axis"] = self.stack_axis
        if self.gop_length is not None:
            options["gop_length"] = self.gop_length
        if self.fill is not None or self.dtype.kind in "SUV":
            options["fill_value"] = self.fill_value
        return DiffFrameArray(self.shape, self.dtype, **(options | overrides))

    def dense(self) -> np.ndarray[Any, Any]:
        dense = np.zeros(self.shape, self.dtype)
        dense[...] = self.fill_value
        return dense


def axis_lengths(largest: int) -> st.SearchStrategy[int]:
    """Mostly small, sometimes zero, sometimes as long as allowed."""
    return st.one_of(
        st.integers(1, max(1, largest // 2)), st.integers(0, largest), st.just(largest)
    )


@st.composite
def layouts(
    draw: st.DrawFn,
    *,
    codecs: tuple[str, ...] = tuple(CODECS),
    empty: bool = True,
    max_cells: int = 96,
    max_frame_size: int = 160,
) -> Layout:
    """Arrays of any shape, dtype, `frame_ndim` and codec, small enough to compare whole."""
    codec = draw(st.sampled_from(codecs))
    if codec == "sparse":
        dtype, frame_ndim = np.dtype(np.uint8), 2
    else:
        dtype = draw(dtypes())
        frame_ndim = draw(st.sampled_from((2, 2, 1, 3, 0)))
    least = 0 if empty else 1
    lead = [draw(axis_lengths(40))]
    n_between = draw(st.sampled_from((0, 1, 1, 2, 2, 3)))
    between_length = st.one_of(st.integers(1, 3), st.integers(least, 4))
    lead += draw(st.lists(between_length, min_size=n_between, max_size=n_between))
    while prod(n for n in lead if n) > max_cells:
        lead[0] = max(1, lead[0] // 2)
        lead[-1] = max(1, lead[-1] - 1)
    lead[0] = max(least, lead[0])
    frame = [draw(axis_lengths(14)) for _ in range(frame_ndim)]
    while prod(n for n in frame if n) > max_frame_size:
        frame[frame.index(max(frame))] //= 2
    frame = [max(least, n) for n in frame]
    between = list(range(1, len(lead)))
    stack_axis: int | str | None = "auto"
    if between and draw(st.booleans()):
        stack_axis = draw(st.sampled_from([None, *between]))
    gop_length = None
    if codec in CHAINED_CODECS:
        gop_length = draw(st.sampled_from((None, 1, 2, 3, 4, 8, 16, 33)))
    fill = draw(st.one_of(st.none(), st.integers(0, 99)))
    return Layout(tuple(lead + frame), dtype, frame_ndim, codec, stack_axis, gop_length, fill)


# Frames of 64 KiB to 4 MiB: channels first and last, floats, one row, one column. What is drawn
# from these is a few of them, in rings that are overwritten for long.
LARGE_FRAMES: tuple[tuple[tuple[int, ...], str], ...] = (
    ((224, 224, 3), "u1"),
    ((3, 224, 224), "u1"),
    ((3, 210, 160), "u1"),
    ((256, 256), "u1"),
    ((84, 84, 12), "u1"),
    ((4, 96, 96), "f4"),
    ((96, 96, 3), "f4"),
    ((1, 70_000), "u1"),
    ((70_000, 1), "u1"),
    ((300, 301), "u2"),
    ((2, 32_768), ">f8"),
    ((66_000,), "u1"),
)
HUGE_FRAMES: tuple[tuple[tuple[int, ...], str], ...] = (
    ((480, 640, 3), "u1"),
    ((3, 600, 800), "u1"),
    ((1024, 1024), "f4"),
)


@st.composite
def large_layouts(draw: st.DrawFn, *, codecs: tuple[str, ...] = tuple(CODECS)) -> Layout:
    """Small rings of large frames."""
    codec = draw(st.sampled_from(codecs))
    huge = draw(st.integers(0, 9)) == 0
    known = HUGE_FRAMES if huge else LARGE_FRAMES
    if codec == "sparse":
        known = tuple(each for each in LARGE_FRAMES if each[1] == "u1" and len(each[0]) == 2)
    frame, dtype = draw(st.sampled_from(known))
    lead = draw(st.sampled_from(((1,), (2,), (3,)) if huge else ((1,), (5,), (2, 2), (3, 1, 2))))
    gop_length = None
    if codec in CHAINED_CODECS:
        gop_length = draw(st.sampled_from((None, 1, 2, 3)))
    return Layout(lead + frame, np.dtype(dtype), len(frame), codec, gop_length=gop_length)


# --------------------------------------------------------------------------- frames


def from_bits(raw: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Reinterpret rows of bytes as elements of `dtype`, keeping them legal values.

    Every bit pattern of a number is legal, NaN payloads too. A bool is 0 or 1 and a
    character is a code point, so those are folded.
    """
    raw = np.ascontiguousarray(raw, dtype=np.uint8)
    if dtype.names is not None:
        out = np.zeros(raw.shape[:-1], dtype)
        at = 0
        for name in dtype.names:
            field = dtype.fields[name][0]  # type: ignore[index]
            base, inner = field.base, field.shape
            part = raw[..., at : at + field.itemsize]
            part = part.reshape(*part.shape[:-1], *inner, base.itemsize)
            out[name] = from_bits(part, base)
            at += field.itemsize
        return out
    if dtype.kind == "b":
        return (raw[..., 0] & 1).astype(bool)
    if dtype.kind == "U":
        length = dtype.itemsize // 4
        points = raw.reshape(*raw.shape[:-1], length, 4)[..., 0].astype(np.uint32) + 0x2500
        points[raw.reshape(*raw.shape[:-1], length, 4)[..., 1] < 40] = 0
        native = points.view(f"U{length}")[..., 0]
        return native.astype(dtype)
    return raw.view(dtype)[..., 0]


def noise(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> np.ndarray[Any, Any]:
    """Elements of drawn bits: for floats that means NaNs with payloads, -0.0, infinities."""
    raw = rng.integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8)
    return from_bits(raw, dtype)


def element(dtype: np.dtype[Any], seed: int) -> Any:
    return noise(np.random.default_rng(seed), (1,), dtype)[0]


def _special_floats(dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Quiet and signalling NaNs of both signs with payloads, zeros of both signs, extremes."""
    real = np.dtype(f"{dtype.byteorder}f{dtype.itemsize // 2}") if dtype.kind == "c" else dtype
    width = real.itemsize * 8
    mantissa = {16: 10, 32: 23, 64: 52}[width]
    exponent = ((1 << (width - 1 - mantissa)) - 1) << mantissa
    sign = 1 << (width - 1)
    quiet = 1 << (mantissa - 1)
    patterns = [
        0, sign, exponent, sign | exponent, exponent | quiet, sign | exponent | quiet,
        exponent | quiet | 0x2A, exponent | 1, sign | exponent | 3, 1, sign | 1, exponent - 1,
    ]  # fmt: skip
    bits = np.array(patterns, dtype=f"{real.byteorder}u{real.itemsize}").view(real)
    if dtype.kind == "c":
        pairs = np.empty((bits.size, 2), real)
        pairs[:, 0], pairs[:, 1] = bits, bits[::-1]
        return pairs.view(dtype)[:, 0]
    return bits


def camera(
    n: int, shape: tuple[int, ...], dtype: np.dtype[Any] | str | type = np.uint8, seed: int = 0
) -> np.ndarray[Any, Any]:
    """A smooth picture that drifts, with the noise of a sensor in the low bits of each element."""
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(seed)
    size = prod(shape)
    phases = np.linspace(0, 9, size)[None] + rng.random((n, 1))
    smooth = (100 + 90 * np.sin(phases)).astype(np.uint8)
    noisy = smooth + rng.integers(0, 4, (n, size), np.uint8)
    raw = np.repeat(noisy[..., None], dtype.itemsize, axis=-1)
    raw[..., 0] ^= rng.integers(0, 4, (n, size), np.uint8)
    return from_bits(raw, dtype).reshape(n, *shape)


KINDS = (
    "constant",
    "noise",
    "scrolling",
    "flickering",
    "one element changed",
    "all byte values",
    "sprites",
    "special values",
    "extremes",
)


def frames(
    kind: str,
    n: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any] | str | type = np.uint8,
    seed: int = 0,
) -> np.ndarray[Any, Any]:
    """`n` frames in time order of one kind; shape (n, *shape).

    >>> frames("constant", 2, (1, 3)).shape
    (2, 1, 3)
    """
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(seed)
    size = prod(shape)
    out = np.zeros((n, size), dtype)
    if n == 0 or size == 0:
        return out.reshape(n, *shape)
    if kind == "constant":
        out[...] = noise(rng, (1,), dtype)[0]
    elif kind == "noise":
        out[...] = noise(rng, (n, size), dtype)
    elif kind == "scrolling":
        wide = noise(rng, (size + n,), dtype)
        wide[rng.random(size + n) < 0.6] = wide[0]
        for t in range(n):
            out[t] = wide[t : t + size]
    elif kind == "flickering":
        pair = noise(rng, (2, size), dtype)
        pair[1, rng.random(size) < 0.7] = pair[0, 0]
        pair[0, rng.random(size) < 0.7] = pair[0, 0]
        out[0::2], out[1::2] = pair[0], pair[1]
    elif kind == "one element changed":
        out[...] = noise(rng, (1, size), dtype)
        for t in range(1, n):
            out[t] = out[t - 1]
            out[t, rng.integers(size)] = noise(rng, (1,), dtype)[0]
    elif kind == "all byte values":
        raw = np.resize(np.arange(256, dtype=np.uint8), size * dtype.itemsize)
        for t in range(n):
            out[t] = from_bits(np.roll(raw, 7 * t).reshape(size, dtype.itemsize), dtype)
    elif kind == "sprites":
        return sprites(n, shape, dtype, seed)
    elif kind == "special values":
        floats = dtype.kind in "fc"
        pool = _special_floats(dtype) if floats else noise(rng, (7,), dtype)
        out[...] = pool[rng.integers(pool.size, size=size)]
        for t in range(1, n):  # NaNs that differ in payload only are different frames
            out[t] = out[t - 1]
            where = rng.integers(size, size=1 + size // 8)
            out[t, where] = pool[rng.integers(pool.size, size=where.size)]
    elif kind == "extremes":
        low, high = from_bits(
            np.array([[0] * dtype.itemsize, [255] * dtype.itemsize], np.uint8), dtype
        )
        out[rng.random((n, size)) < 0.5] = high
        out[::3] = low
        out[1::3] = high
    else:
        raise ValueError(f"unknown kind {kind!r}")
    return out.reshape(n, *shape)


def sprites(
    n: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any] | str | type = np.uint8,
    seed: int = 0,
    n_sprites: int = 4,
) -> np.ndarray[Any, Any]:
    """Patches that move over a still background, as in an Atari game."""
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(seed)
    height, width = (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))
    background = np.zeros((height, width), dtype)
    palette = noise(rng, (6,), dtype)
    background[...] = palette[0]
    for band in range(min(3, height)):
        background[height * band // 3] = palette[1 + band % 2]
    out = np.empty((n, height, width), dtype)
    out[...] = background
    for sprite in range(n_sprites):
        tall, wide = max(1, height // 12), max(1, width // 14)
        colour = palette[2 + sprite % 4]
        top, left = rng.integers(0, height), rng.integers(0, width)
        down, right = rng.integers(-2, 3, 2)
        for t in range(n):
            rows = (top + down * t + np.arange(tall)) % height
            columns = (left + right * t + np.arange(wide)) % width
            out[t, rows[:, None], columns] = colour
    return out.reshape(n, *shape)


def game(n: int, shape: tuple[int, int] = (84, 84), seed: int = 0) -> np.ndarray[Any, Any]:
    """`n` uint8 frames like a game's: sprites, a digit that ticks, a flash now and then."""
    rng = np.random.default_rng(seed)
    out = sprites(n, shape, np.uint8, seed, n_sprites=5)
    for t in range(n):
        out[t, 1:5, 3 : 3 + 6] = (t // 16) * 37 % 256
        if t % 97 == 96:
            out[t] ^= np.uint8(rng.integers(1, 256))
    return out


def frame_runs(
    n: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    """Sequences of `n` frames of one drawn kind."""
    return st.builds(
        lambda kind, seed: frames(kind, n, shape, dtype, seed),
        st.sampled_from(KINDS),
        st.integers(0, 2**16),
    )


@st.composite
def filled(draw: st.DrawFn, layout: Layout) -> np.ndarray[Any, Any]:
    """A dense array of the layout's shape; time runs along axis 0 in every lane."""
    n_time, n_between = layout.lead_shape[0], prod(layout.lead_shape[1:])
    out = np.zeros((n_time, n_between, *layout.frame_shape), layout.dtype)
    for lane in range(n_between):
        if lane and draw(st.integers(0, 2)) == 0:
            out[:, lane] = out[:, lane - 1]  # equal lanes: sharing must not mix them up
        else:
            out[:, lane] = draw(frame_runs(n_time, layout.frame_shape, layout.dtype))
    return out.reshape(layout.shape)


# --------------------------------------------------------------------------- keys


def _integer(n: int) -> st.SearchStrategy[Any]:
    inside = st.integers(-n, n - 1) if n else st.just(0)  # just(0) is out of range there
    return st.one_of(inside, inside.map(np.int64), inside.map(np.int16))


def _slice(n: int) -> st.SearchStrategy[slice]:
    bound = st.one_of(st.none(), st.integers(-n - 2, n + 2))
    step = st.sampled_from((None, 1, 1, 2, 3, 7, -1, -1, -2, -5))
    return st.builds(slice, bound, bound, step)


def _integer_array(n: int, shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    if n == 0:
        return st.just(np.zeros((0,), np.int64))
    size = prod(shape)
    values = st.lists(st.integers(-n, n - 1), min_size=size, max_size=size)
    kind = st.sampled_from((np.int64, np.int32, np.int16, "list"))
    return st.builds(
        lambda drawn, k: (
            np.array(drawn, np.int64).reshape(shape).tolist()
            if k == "list" and size
            else np.array(drawn, np.int64).reshape(shape).astype(np.int64 if k == "list" else k)
        ),
        values,
        kind,
    )


def _mask(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    return st.builds(
        lambda seed, density: np.random.default_rng(seed).random(shape) < density,
        st.integers(0, 2**16),
        st.sampled_from((0.0, 0.1, 0.5, 0.9, 1.0)),
    )


@st.composite
def basic_keys(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """Integers, slices, Ellipsis and newaxis; they may reach inside frames."""
    n_axes = draw(st.integers(0, len(shape)))
    parts: list[Any] = [
        draw(_slice(n) if draw(st.booleans()) or n == 0 else _integer(n)) for n in shape[:n_axes]
    ]
    if draw(st.integers(0, 2)) == 0:  # Ellipsis with some axes counted from the end
        n_after = draw(st.integers(0, len(shape) - n_axes))
        after = shape[len(shape) - n_after :]
        parts.append(Ellipsis)
        parts += [draw(_slice(n) if draw(st.booleans()) or n == 0 else _integer(n)) for n in after]
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 2)))):
        parts.insert(draw(st.integers(0, len(parts))), None)
    if len(parts) == 1 and draw(st.booleans()):
        return parts[0]
    return tuple(parts)


@st.composite
def advanced_keys(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """Integer arrays, masks and mixtures of them with everything basic."""
    broadcast = draw(st.sampled_from(((3,), (5,), (2, 3), (1,), (), (0,))))
    n_left = draw(st.integers(1, len(shape))) if shape else 0
    parts: list[Any] = []
    axis = 0
    mask_at = draw(st.integers(-1, max(0, n_left - 1)))
    n_true: int | None = None
    while axis < n_left:
        n = shape[axis]
        if axis == mask_at:
            spans = draw(st.integers(1, min(2, len(shape) - axis)))
            mask = draw(_mask(shape[axis : axis + spans]))
            n_true = int(mask.sum())
            parts.append(mask.tolist() if spans == 1 and n and draw(st.booleans()) else mask)
            axis += spans
            continue
        choice = draw(st.integers(0, 5))
        if choice <= 2:
            array_shape = broadcast
            if n_true is not None or mask_at >= axis:  # a mask broadcasts as a 1-D array
                array_shape = draw(st.sampled_from(((), (1,), (n_true or 1,))))
            elif draw(st.integers(0, 3)) == 0:
                array_shape = broadcast[-1:]
            parts.append(draw(_integer_array(n, array_shape)))
        elif choice == 3 and n:
            parts.append(draw(_integer(n)))
        else:
            parts.append(draw(_slice(n)))
        axis += 1
    if draw(st.integers(0, 4)) == 0:
        parts.insert(draw(st.integers(0, len(parts))), None)
    if axis < len(shape) and draw(st.integers(0, 3)) == 0:
        parts.append(Ellipsis)
    if draw(st.integers(0, 14)) == 0:
        parts.insert(draw(st.integers(0, len(parts))), draw(st.booleans()))
    if len(parts) == 1 and draw(st.booleans()):
        return parts[0]
    return tuple(parts)


@st.composite
def odd_keys(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """Whole-array masks, frame-wise masks, and keys that numpy refuses."""
    n = shape[0]
    return draw(
        st.one_of(
            _mask(shape),
            _mask(shape[: max(1, len(shape) - 1)]),
            st.sampled_from((True, False, np.True_, (), Ellipsis, None, [])),
            st.sampled_from((n, -n - 1, n + 10**6, 1.0, "frame", [0.5], (0,) * 9)),
            st.just((Ellipsis, Ellipsis)),
            _mask((n + 1,)),
            st.just((slice(None),) * (len(shape) + 1)),
        )
    )


def keys(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Keys of every kind, most of them good, for an array of `shape`."""
    return st.one_of(
        basic_keys(shape), basic_keys(shape), advanced_keys(shape), advanced_keys(shape),
        odd_keys(shape),
    )  # fmt: skip


# --------------------------------------------------------------------------- values


@st.composite
def values(draw: st.DrawFn, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Something to assign where `dense[key]` has `shape`: exact, broadcast, cast or wrong."""
    choice = draw(st.sampled_from(("same", "same", "broadcast", "scalar", "cast", "odd", "wrong")))
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    if choice == "scalar":
        return element(dtype, seed)
    if choice == "odd" and dtype.kind in "iufcb":
        return draw(st.sampled_from((0, 1, True, 100, np.int16(77), np.uint8(200), 300, -1)))
    if choice == "wrong":
        return noise(rng, (*shape, 7) if draw(st.booleans()) else (11, 13), dtype)
    target = list(shape)
    if choice == "broadcast":
        target = [1 if draw(st.integers(0, 2)) == 0 else n for n in target]
        target = target[draw(st.integers(0, len(target))) :]
        target = [1] * draw(st.integers(0, 2)) + target
    if choice == "cast" and dtype.kind in "iu":
        other = draw(st.sampled_from(("i8", "u2", ">i4", "?", "i1")))
        return noise(rng, tuple(target), np.dtype(other))
    if choice == "cast" and dtype.kind in "fc":
        return rng.integers(-100, 100, tuple(target)).astype(
            draw(st.sampled_from(("i4", "f8", ">f4", "i1")))
        )
    drawn = draw(st.sampled_from(KINDS))
    if target and prod(target):
        value = frames(drawn, target[0], tuple(target[1:]), dtype, seed)
    else:
        value = noise(rng, tuple(target), dtype)
    order = draw(st.sampled_from(("C", "C", "C", "F", "strided", "reversed", "swapped")))
    if order == "F":
        return np.asfortranarray(value).reshape(value.shape)
    if order == "strided" and value.ndim:
        wide = np.repeat(value, 2, axis=-1)
        return wide[..., ::2]
    if order == "reversed" and value.ndim:
        return value[::-1][::-1] if draw(st.booleans()) else value[..., ::-1]
    if order == "swapped" and dtype.kind in "iufcmM":
        return value.astype(dtype.newbyteorder())
    return value


# --------------------------------------------------------------------------- comparing


def assert_holds(array: Any, dense: np.ndarray[Any, Any]) -> None:
    """The array shows what `dense` holds, byte for byte, and describes itself rightly."""
    assert_same(np.asarray(array), dense)
    described = (array.shape, array.dtype, array.ndim, array.size, array.itemsize, array.nbytes)
    assert described == (
        dense.shape, dense.dtype, dense.ndim, dense.size, dense.itemsize, dense.nbytes,
    )  # fmt: skip
    assert len(array) == len(dense)
    assert isinstance(array.nbytes_stored, int)
    assert array.nbytes_stored > 0
    assert array.compression_ratio == array.nbytes / array.nbytes_stored


_FAMILIES = (IndexError, OverflowError, MemoryError, TypeError, ValueError)


def outcome(operation: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """The result of an operation, or the exception that it raised."""
    try:
        return operation(), None
    except Exception as error:
        return None, error


def assert_same_kind_of_error(actual: Exception | None, expected: Exception | None) -> None:
    """Both succeeded, or both raised members of one builtin family."""
    if expected is None:
        if actual is not None:
            raise AssertionError(f"numpy allows this, but: {actual!r}") from actual
        return
    assert actual is not None, f"numpy refuses this with {expected!r}"
    family = next((base for base in _FAMILIES if isinstance(expected, base)), type(expected))
    if not isinstance(actual, family):
        raise AssertionError(f"{actual!r} where numpy raises {expected!r}") from actual
    assert str(actual), "an error without a message"
