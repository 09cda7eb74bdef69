"""The file that holds a tree of numbers, strings and arrays, with a checksum for each block.

    head         64 bytes: magic 8 | version u32 | CRC-32 of the rest of the head and of the
                 header u32 | bytes of the header u64 | bytes of the data u64 | zeros
    header       JSON, UTF-8, and zeros up to a multiple of 64 bytes
    data         the arrays, each from a multiple of 64 bytes on, zeros between them, and 64 zeros
    checksums    CRC-32 of each block of the data of 65,536 bytes, u32 each
    end          CRC-32 of the checksums u32

All numbers are little-endian. The header is ``{"kind": ..., "arrays": [...], "tree": ...}``. Of
each array it says dtype (as `numpy.lib.format` writes it), shape, and where in the data it begins.
In the tree a JSON null, boolean, number or string stands for itself, anything else is an object
with one key: ``{"array": number}``; ``{"bytes": number}``, a large array of them, which a mapped
file verifies where somebody looks at it; ``{"list": [...]}``, ``{"tuple": [...]}`` or
``{"dict": [[key, value], ...]}``.

Nothing in a file is code, and nothing of it is run.
"""

from __future__ import annotations

import io
import json
import mmap
import operator
import os
import secrets
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as numpy_format

from compressarray.errors import CorruptFrameError
from compressarray.snapshots import Mapped, Pieces

MAGIC = b"\x89CMPRAY\n"
VERSION = 1
HEAD_BYTES = ALIGNMENT = 64
BLOCK_BYTES = 1 << 16
COPIED_BYTES = 1 << 18  # at once, of an array whose bytes lie apart
# Of a header: a tree of a few hundred numbers takes some kilobytes.
MOST_HEADER_BYTES = 1 << 28

AnyArray = npt.NDArray[Any]


def save(path: str | os.PathLike[str], kind: str, tree: Any) -> None:
    """Write a file that is there whole or not at all: what was there before stays until then.

    Raises
    ------
    OSError
        If the directory is not there, or the disk is full; an old file is as it was.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"there is no directory {str(target.parent)!r} to save {target.name!r} in; make it "
            "first"
        )
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with open(aside, "xb") as file:
            write(file, kind, tree)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def sync_directory(path: Path) -> None:
    """Let a renamed file survive a loss of power."""
    if os.name == "nt":  # pragma: no cover
        return
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def dumps(kind: str, tree: Any) -> bytes:
    """What `save` would write."""
    file = io.BytesIO()
    write(file, kind, tree)
    return file.getvalue()


def write(file: BinaryIO, kind: str, tree: Any) -> None:
    """Write a tree from where a file is."""
    arrays: list[Any] = []
    plain = _to_json(tree, arrays)
    described: list[dict[str, Any]] = []
    start = 0
    for array in arrays:
        start = -(-start // ALIGNMENT) * ALIGNMENT
        described.append(
            {
                "dtype": numpy_format.dtype_to_descr(array.dtype),
                "shape": list(array.shape),
                "start": start,
            }
        )
        start += array.nbytes
    start += ALIGNMENT  # kernels look, though they never use, so far behind the last array
    header = json.dumps({"kind": kind, "arrays": described, "tree": plain}).encode()
    sizes = len(header).to_bytes(8, "little") + start.to_bytes(8, "little") + bytes(HEAD_BYTES - 32)
    checksum = zlib.crc32(header, zlib.crc32(sizes))
    file.write(MAGIC + VERSION.to_bytes(4, "little") + checksum.to_bytes(4, "little") + sizes)
    file.write(header + bytes(-len(header) % ALIGNMENT))
    data = _Data(file)
    for array, said in zip(arrays, described, strict=True):
        data.write(bytes(said["start"] - data.at))
        for piece in array if isinstance(array, Pieces) else _pieces(array):
            data.write(piece)
        if data.at != said["start"] + array.nbytes:
            raise RuntimeError(f"{data.at - said['start']} bytes came of {array.nbytes}")
    data.write(bytes(start - data.at))
    data.finish()


def _pieces(array: AnyArray) -> Iterator[npt.NDArray[np.uint8]]:
    """The bytes of an array in C order, without a copy of all of it."""
    if array.flags.c_contiguous or not array.ndim:
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return
    rows = max(1, len(array) * COPIED_BYTES // max(array.nbytes, 1))
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8)


class _Data:
    """The data of a file, of which each block's checksum is kept."""

    def __init__(self, file: BinaryIO) -> None:
        self.at = 0
        self._file = file
        self._checksum = 0
        self._checksums: list[int] = []

    def write(self, values: bytes | npt.NDArray[np.uint8]) -> None:
        view = memoryview(values).cast("B") if len(values) else memoryview(b"")  # type: ignore[arg-type]
        self._file.write(view)
        while len(view):
            part = view[: BLOCK_BYTES - self.at % BLOCK_BYTES]
            self._checksum = zlib.crc32(part, self._checksum)
            self.at += len(part)
            if self.at % BLOCK_BYTES == 0:
                self._checksums.append(self._checksum)
                self._checksum = 0
            view = view[len(part) :]

    def finish(self) -> None:
        if self.at % BLOCK_BYTES:
            self._checksums.append(self._checksum)
        table = np.array(self._checksums, "<u4").tobytes()
        self._file.write(table + zlib.crc32(table).to_bytes(4, "little"))


def _to_json(value: Any, arrays: list[Any]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (np.ndarray, Pieces)):
        if value.dtype.hasobject:
            raise TypeError(f"an array of {value.dtype} holds Python objects, which no file keeps")
        arrays.append(value)
        return {"bytes" if isinstance(value, Pieces) else "array": len(arrays) - 1}
    if isinstance(value, np.generic):
        return _to_json(value.item(), arrays)
    if isinstance(value, dict):
        return {"dict": [[key, _to_json(each, arrays)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        name = "tuple" if isinstance(value, tuple) else "list"
        return {name: [_to_json(each, arrays) for each in value]}
    raise TypeError(f"a {type(value).__name__} is nothing that a file keeps")


class Contents:
    """A file's tree, and what its blocks should be.

    Parameters
    ----------
    memory : ndarray of uint8
        The whole file; arrays of the tree are views of it.
    kind : str
        What the file must be of.
    name : str
        The file's, for errors.
    lazily : bool
        Whether large arrays of bytes are `Mapped`, and `verify` leaves them to whoever looks.

    Raises
    ------
    CorruptFrameError
        If it is none, or damaged.
    ValueError
        If it is of a newer version, or of something else.
    """

    def __init__(
        self, memory: npt.NDArray[np.uint8], kind: str, name: str, *, lazily: bool = False
    ) -> None:
        self._name = name
        self._lazily = lazily
        self._later: list[tuple[int, int]] = []  # places in the data that nobody has looked at
        head = memory[:HEAD_BYTES].tobytes()
        if head[: len(MAGIC)] != MAGIC:
            raise CorruptFrameError(f"{name} is no file that this library saves")
        if len(head) < HEAD_BYTES:
            raise CorruptFrameError(f"{name} ends in its head, after {len(head)} bytes")
        version = int.from_bytes(head[8:12], "little")
        if not 1 <= version <= VERSION:
            raise ValueError(
                f"{name} is of version {version} of the format, and this library reads up to "
                f"{VERSION}: install a newer one"
            )
        n_header, n_data = (int.from_bytes(head[i : i + 8], "little") for i in (16, 24))
        start = HEAD_BYTES + -(-n_header // ALIGNMENT) * ALIGNMENT
        n_blocks = -(-n_data // BLOCK_BYTES)
        wanted = start + n_data + 4 * n_blocks + 4
        if n_header > MOST_HEADER_BYTES or len(memory) != wanted:
            raise CorruptFrameError(
                f"{name} has {len(memory)} bytes and its head says {wanted}: it was cut off, or is "
                "damaged"
            )
        header = memory[HEAD_BYTES : HEAD_BYTES + n_header].tobytes()
        if zlib.crc32(header, zlib.crc32(head[16:])) != int.from_bytes(head[12:16], "little"):
            raise CorruptFrameError(f"{name} is damaged in its header")
        table = memory[start + n_data : -4].tobytes()
        if zlib.crc32(table) != int.from_bytes(memory[-4:].tobytes(), "little"):
            raise CorruptFrameError(f"{name} is damaged in its checksums")
        self._data = memory[start : start + n_data]
        self._checksums = np.frombuffer(table, "<u4").tolist()
        self._is_verified = np.zeros(n_blocks, np.bool_)
        try:
            found, self.tree = self._parsed(header, kind)
        except (LookupError, RecursionError, TypeError, ValueError) as error:
            raise CorruptFrameError(f"{name} has a header that nobody writes: {error}") from None
        if found != kind:
            raise ValueError(f"{name} holds a {found}, no {kind}: load it with {found}.load")

    def _parsed(self, header: bytes, kind: str) -> tuple[str, Any]:
        """What the file is of and, if that is ``kind``, its tree."""
        said = json.loads(header)
        if said["kind"] != kind:
            return str(said["kind"]), None
        self._arrays = [self._array(each) for each in said["arrays"]]
        self._starts = [int(each["start"]) for each in said["arrays"]]
        return kind, self._from_json(said["tree"])

    def verify(self) -> Contents:
        """Compare with their checksums all blocks that are not left to others."""
        at = 0
        for start, end in sorted(self._later):
            self._verify(at, start)
            at = end
        self._verify(at, len(self._data))
        return self

    def _verify(self, start: int, end: int) -> None:
        """Compare the blocks of a part of the data that were not compared yet."""
        for i in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
            if self._is_verified[i]:
                continue
            block = self._data[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES]
            if zlib.crc32(block) != self._checksums[i]:  # type: ignore[arg-type]
                raise CorruptFrameError(
                    f"{self._name} is damaged: block {i} of {len(self._checksums)} is not what was "
                    "saved"
                )
            self._is_verified[i] = True

    def _mapped(self, number: int) -> Mapped:
        array, first = self._arrays[number], self._starts[number]
        self._later.append((first, first + array.nbytes))
        return Mapped(array, lambda start, end: self._verify(first + start, first + end))

    def _array(self, said: Any) -> AnyArray:
        dtype = numpy_format.descr_to_dtype(_tuples(said["dtype"]))
        if dtype.hasobject:
            raise CorruptFrameError(f"{self._name} names an array of Python objects")
        shape, start = tuple(map(operator.index, said["shape"])), operator.index(said["start"])
        if min(shape, default=0) < 0:
            raise CorruptFrameError(f"{self._name} names an array of shape {shape}")
        n_bytes = prod(shape) * dtype.itemsize
        if not 0 <= start <= start + n_bytes <= len(self._data):
            raise CorruptFrameError(f"{self._name} names an array that is not in it")
        if not n_bytes:
            return np.zeros(shape, dtype)
        return self._data[start : start + n_bytes].view(dtype).reshape(shape)

    def _from_json(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((name, held),) = value.items()
        if name == "bytes" and self._lazily:
            return self._mapped(held)
        if name in ("array", "bytes"):
            return self._arrays[held]
        if name == "dict":
            return {key: self._from_json(each) for key, each in held}
        items = [self._from_json(each) for each in held]
        return tuple(items) if name == "tuple" else items


def _tuples(descr: Any) -> Any:
    """A dtype's description with the tuples that JSON has made lists."""
    if isinstance(descr, str):
        return descr
    return [_field(each) for each in descr]


def _field(field: Any) -> Any:
    name, kind, *shape = field
    name = tuple(name) if isinstance(name, list) else name
    return (name, _tuples(kind), *map(tuple, shape))


def kind_of(data: bytes | memoryview) -> str:
    """What `dumps` was told that something is; nothing else is looked at.

    Raises
    ------
    CorruptFrameError
        If that cannot be read.
    """
    n_header = int.from_bytes(data[16:24], "little")
    try:
        kind = json.loads(bytes(data[HEAD_BYTES : HEAD_BYTES + n_header]))["kind"]
    except (LookupError, RecursionError, TypeError, ValueError) as error:
        raise CorruptFrameError(f"a message has a header that nobody writes: {error}") from None
    return str(kind)


def loads(data: bytes | memoryview, kind: str) -> Any:
    """The tree of what `dumps` returned; arrays are views of it."""
    return Contents(np.frombuffer(data, np.uint8), kind, "the message").verify().tree


def load(path: str | os.PathLike[str], kind: str, *, lazily: bool = False) -> Any:
    """The tree that was saved.

    Arrays are views of the mapped file: copy what must outlive changes to them. ``lazily``, large
    arrays of bytes are `Mapped`, and their blocks are verified when somebody looks at them.

    Raises
    ------
    OSError
        If the file cannot be read.
    CorruptFrameError, ValueError
        See `Contents`.
    """
    return Contents(mapped(path), kind, repr(os.fspath(path)), lazily=lazily).verify().tree


def mapped(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """A file's bytes, read where they are looked at; who takes what is in them copies it."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return np.zeros(0, np.uint8)
        # A private copy of each page that is written to, which none is: kernels were compiled for
        # arrays that may be.
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
