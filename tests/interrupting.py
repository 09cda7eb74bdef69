"""Exceptions at any line of the library, as an interrupt or a lack of memory may raise them."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import compressarray

LIBRARY = str(Path(compressarray.__file__).parent)


class Interrupt(BaseException):
    """What is raised; nothing can be expecting it."""


class _Tracer:
    """Counts lines of the library that are about to run, and raises at one of them.

    Not where a ``with`` statement begins or ends: Python looks at signals in neither place, so
    that the lock of one is always given back.
    """

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.n_lines = 0

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(LIBRARY):
            return None
        if event == "line" and not _is_with(frame.f_code.co_filename, frame.f_lineno):
            if self.n_lines == self.at:
                self.at = None
                raise Interrupt(f"{frame.f_code.co_filename}:{frame.f_lineno}")
            self.n_lines += 1
        return self


def _is_with(path: str, line: int) -> bool:
    return linecache.getline(path, line).lstrip().startswith("with ")


def lines_of(function: Callable[[], object]) -> int:
    """Run a function; return how many lines of the library that took."""
    return _run(function, None)


def interrupted(function: Callable[[], object], at: int) -> str | None:
    """Run a function up to its ``at``-th line of the library; return where that was."""
    try:
        _run(function, at)
    except Interrupt as interrupt:
        return str(interrupt)
    return None


def _run(function: Callable[[], object], at: int | None) -> int:
    tracer = _Tracer(at)
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        function()
    finally:
        sys.settrace(before)
    return tracer.n_lines
