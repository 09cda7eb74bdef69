"""A directory of checkpoints: everything at first, and then only what has changed.

The directory holds segments, `00000001.log` and so on, and a file that whoever writes locks. A
segment begins with a record that has everything, and each record after it has what changed since
the one before:

    head         64 bytes: magic 8 | version u32 | kind u32 (0 whole, 1 changes) | id of the
                 segment, 8 bytes | number u64 | bytes of the payload u64 | CRC-32 of the payload
                 u32 (0 of a whole one, which has its own) | zeros | CRC-32 of the head u32
    payload      the file that `save` writes, or what a change feed says

Records are only ever appended, and synced, so that a process may be killed at any moment: a record
that is not whole is none. Once what changed takes more than everything would, a new segment begins;
older ones are deleted when the two newest numbers can be had without them. Whoever goes on from a
checkpoint begins a new segment, too: a segment hides all records of older ones from its first
number on. So nothing that somebody may still need is ever written over.
"""

from __future__ import annotations

import errno
import os
import secrets
import struct
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.errors import CorruptFrameError
from compressarray.feeding import Source
from compressarray.format import container
from compressarray.format.messages import Message

if sys.platform != "win32":  # there, nobody refuses a second process
    import fcntl

MAGIC = b"\x89CMPLOG\n"
VERSION = 1
_HEAD = struct.Struct("<8sLL8sQQL16xL")
_WHOLE, _CHANGES = range(2)
_LEAST_LIMIT = 1 << 20  # bytes of changes that a segment may have, however little everything is


class _Written(NamedTuple):
    """How far a log is; replaced as a whole."""

    number: int
    mark: Any  # what the last record left a replica with; None before the first one
    serial: int  # of the segment
    end: int  # bytes of the segment that are good
    n_records: int  # of the segment
    limit: int  # bytes that the segment may grow to


class CheckpointLog:
    """The one writer of a directory of checkpoints.

    Parameters
    ----------
    path : str or path
        A directory, made if it is not there; its parent must be.
    number : int
        Of the checkpoint that the source was restored from, 0 if from none.

    Raises
    ------
    OSError
        If the parent is not there, or somebody else writes there.
    ValueError
        If there are checkpoints that the source does not go on from.
    """

    def __init__(self, path: str | os.PathLike[str], number: int) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        if not self._path.parent.is_dir():
            raise FileNotFoundError(
                f"there is no directory {str(self._path.parent)!r} to make {self._path.name!r} in; "
                "make it first"
            )
        if self._path.exists() and not self._path.is_dir():
            raise NotADirectoryError(
                f"{str(self._path)!r} is a file; checkpoints need a directory of their own"
            )
        self._path.mkdir(exist_ok=True)
        self._hold = _Hold(self._path / "lock")
        held = _numbers(_segments(self._path))
        if held and number not in held:
            raise ValueError(
                f"{str(self._path)!r} holds the checkpoints {held[0]} to {held[-1]}, and this was "
                f"{f'restored at {number}' if number else 'not restored from them'}: restore the "
                "one to go on from, or give another path"
            )
        serial = max((segment.serial for segment in _segments(self._path)), default=0)
        self._written = _Written(number, None, serial, 0, 0, 0)

    def write(self, source: Source) -> int:
        """Write what has changed since the last call, or everything; return its number.

        It can be restored once this returns, whatever happens then; after an error, what could be
        restored before.

        Raises
        ------
        OSError
            If the disk is full.
        """
        with self._lock:
            self._hold.refuse_other_processes()
            now = self._written
            number, message = now.number + 1, Message()
            with source._held():
                is_whole = (
                    now.mark is None
                    or now.end > now.limit
                    or not source._put_changes(message, now.mark)
                )
                if is_whole:
                    serial, end = now.serial + 1, self._begin(now.serial + 1, source, number)
                    limit = end + max(end, _LEAST_LIMIT)
                    written = _Written(number, source._mark(), serial, end, 1, limit)
                else:
                    mark = source._mark()
            if not is_whole:
                end = self._append(now, number, message.finished())
                written = now._replace(
                    number=number, mark=mark, end=end, n_records=now.n_records + 1
                )
            self._written = written
            self._delete_old(written)
            return number

    def _begin(self, serial: int, source: Source, number: int) -> int:
        path = self._path / _name(serial)
        self._id = secrets.token_bytes(8)
        try:
            with open(path, "wb") as file:
                file.write(bytes(_HEAD.size))
                container.write(file, source._kind, source._file_tree())
                end = file.tell()
                _sync(file)  # before it is said to be there
                file.seek(0)
                file.write(_head(_WHOLE, self._id, number, end - _HEAD.size, 0))
                _sync(file)
        except BaseException:
            path.unlink(missing_ok=True)  # for what space it takes: it is none without its head
            raise
        container.sync_directory(self._path)
        return end

    def _append(self, now: _Written, number: int, changes: bytes) -> int:
        with open(self._path / _name(now.serial), "r+b") as file:
            file.truncate(now.end)  # what an earlier call has left, that was cut off
            file.seek(now.end)
            file.write(_head(_CHANGES, self._id, number, len(changes), zlib.crc32(changes)))
            file.write(changes)
            _sync(file)
            return file.tell()

    def _delete_old(self, written: _Written) -> None:
        """Delete the segments that the two newest numbers can be had without."""
        if written.n_records > 2:
            return
        kept = {written.serial}
        if written.n_records == 1:
            before = [each for each in _segments(self._path) if written.number - 1 in each]
            kept.update(each.serial for each in before[-1:])
        for path in self._path.glob("*.log"):
            if _serial(path) not in kept:
                path.unlink(missing_ok=True)


class _Hold:
    """What keeps others from writing to a directory: a lock that goes with the process."""

    def __init__(self, path: Path) -> None:
        self._pid = os.getpid()
        self._key = os.path.realpath(path)
        self._path = path
        with _holds_lock:
            if _holds.get(self._key) == self._pid:
                raise self._refusal("another buffer of this process")
            self._file = open(path, "ab")  # noqa: SIM115 - for as long as the lock is held
            try:
                self._take()
            except BaseException:
                self._file.close()
                raise
            _holds[self._key] = self._pid

    def _take(self) -> None:
        if sys.platform != "win32":
            try:
                # Not flock: a child that was forked would hold it, too, when this process is gone.
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                raise self._refusal("another process") from None

    def _refusal(self, who: str) -> BlockingIOError:
        return BlockingIOError(
            f"{who} writes checkpoints to {str(self._path.parent)!r}; give each a path of its own, "
            "or end the other one first"
        )

    def refuse_other_processes(self) -> None:
        """Raise in a child of the process that may write."""
        if os.getpid() != self._pid:
            raise self._refusal("the process that this one was forked from")

    def __del__(self) -> None:
        if os.getpid() == getattr(self, "_pid", None) and hasattr(self, "_file"):
            _holds.pop(self._key, None)
            self._file.close()


# Which directories this process writes to. A lock is the process's: without this, a second writer
# in it would get the lock, too, and closing its file would end the first one's.
_holds: dict[str, int] = {}
_holds_lock = threading.Lock()


class _Record(NamedTuple):
    number: int
    kind: int
    start: int  # of the payload
    end: int
    checksum: int


class _Segment:
    """What a segment holds, as far as it is whole."""

    def __init__(self, path: Path, serial: int) -> None:
        self.path = path
        self.serial = serial
        self.records: list[_Record] = []
        size = path.stat().st_size
        with open(path, "rb") as file:
            at, segment_id = 0, None
            while at + _HEAD.size <= size:
                file.seek(at)
                head = file.read(_HEAD.size)
                magic, version, kind, record_id, number, length, checksum, of_head = _HEAD.unpack(
                    head
                )
                if magic != MAGIC or zlib.crc32(head[:-4]) != of_head:
                    break
                if version > VERSION:
                    raise ValueError(
                        f"{str(path)!r} is of version {version} of the format, and this library "
                        f"reads up to {VERSION}: install a newer one"
                    )
                end = at + _HEAD.size + length
                is_next = (
                    record_id == segment_id and number == self.last + 1
                    if self.records
                    else kind == _WHOLE
                )
                if end > size or not is_next or (kind == _WHOLE) != (not self.records):
                    break
                segment_id = record_id
                self.records.append(_Record(number, kind, at + _HEAD.size, end, checksum))
                at = end

    @property
    def first(self) -> int:
        return self.records[0].number

    @property
    def last(self) -> int:
        return self.records[-1].number

    def __contains__(self, number: int) -> bool:
        return self.first <= number <= self.last

    def hide_from(self, number: int) -> None:
        """Drop the records from a number on."""
        self.records = [record for record in self.records if record.number < number]


def _segments(path: Path) -> list[_Segment]:
    """The segments of a directory that hold anything, in their order."""
    numbered = [(serial, each) for each in path.glob("*.log") if (serial := _serial(each))]
    segments = [_Segment(each, serial) for serial, each in sorted(numbered)]
    segments = [segment for segment in segments if segment.records]
    hidden: int | None = None
    for segment in reversed(segments):
        first = segment.first
        if hidden is not None:
            segment.hide_from(hidden)
        hidden = first if hidden is None else min(hidden, first)
    return [segment for segment in segments if segment.records]


def _numbers(segments: list[_Segment]) -> list[int]:
    return sorted(record.number for segment in segments for record in segment.records)


def restore(
    path: str | os.PathLike[str],
    kind: str,
    at: int | None,
    begin: Callable[[Any], Any],
    go_on: Callable[[Any, npt.NDArray[np.uint8]], None],
) -> tuple[Any, int]:
    """Return what was checkpointed, and the number that it is of.

    Parameters
    ----------
    path : str or path
    kind : str
        What it must be.
    at : int or None
        The number; None for the newest one.
    begin : callable
        Makes it of a tree.
    go_on : callable
        Has it take what changed.

    Raises
    ------
    FileNotFoundError
        If there are no checkpoints.
    LookupError
        If there is none of that number.
    CorruptFrameError
        If what it takes is damaged.
    """
    directory = Path(path)
    segments = _segments(directory) if directory.is_dir() else []
    if not segments:
        raise FileNotFoundError(f"there are no checkpoints in {str(directory)!r}")
    held = _numbers(segments)
    wanted = held[-1] if at is None else at
    if wanted not in held:
        raise LookupError(
            f"{str(directory)!r} has no checkpoint {wanted}; it has {held[0]} to {held[-1]}"
        )
    segment = next(each for each in reversed(segments) if wanted in each)
    memory = container.mapped(segment.path)
    first, *changes = (record for record in segment.records if record.number <= wanted)
    name = repr(str(segment.path))
    found = begin(container.Contents(memory[first.start : first.end], kind, name).verify().tree)
    number = first.number
    for record in changes:
        payload = memory[record.start : record.end]
        if zlib.crc32(payload) != record.checksum:  # type: ignore[arg-type]
            if at is None and record is changes[-1]:
                break  # it was being written
            raise CorruptFrameError(
                f"checkpoint {record.number} in {name} is damaged; {number} is the last one that "
                "can be had"
            )
        go_on(found, payload)
        number = record.number
    return found, number


def _head(kind: int, segment_id: bytes, number: int, length: int, checksum: int) -> bytes:
    head = _HEAD.pack(MAGIC, VERSION, kind, segment_id, number, length, checksum, 0)
    return head[:-4] + zlib.crc32(head[:-4]).to_bytes(4, "little")


def _name(serial: int) -> str:
    return f"{serial:08d}.log"


def _serial(path: Path) -> int | None:
    return int(path.stem) if path.stem.isdecimal() else None


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
