"""How kernels are compiled, and when what is cached of them may be used again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache

_PACKAGE = Path(__file__).parents[1]
_IMPORTS = re.compile(r"^from compressarray\.([\w.]+) import ", re.MULTILINE)


@cache
def _source_of(path: Path) -> tuple[bytes, frozenset[Path]]:
    """Hash a source file; also name the package's files that it imports from."""
    text = path.read_text(encoding="utf-8")
    imported = set()
    for name in _IMPORTS.findall(text):
        file = _PACKAGE.joinpath(*name.split("."))
        imported.add(file / "__init__.py" if file.is_dir() else file.with_suffix(".py"))
    return hashlib.blake2b(text.encode(), digest_size=16).digest(), frozenset(imported)


@cache
def _fingerprint(path: Path) -> str:
    """Hash all sources of the package that a file's kernels can be compiled from."""
    found, waiting = {path}, [path]
    while waiting:
        fresh = _source_of(waiting.pop())[1] - found
        found |= fresh
        waiting.extend(fresh)
    digest = hashlib.blake2b(digest_size=16)
    for each in sorted(found):
        digest.update(_source_of(each)[0])
    return digest.hexdigest()


class _KernelCache(FunctionCache):
    """numba's cache, valid for these very sources.

    numba looks at the file of a kernel alone; but what a kernel calls is compiled into it, and
    code from before an update would read bytes that another encoder wrote.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        self._fingerprint = _fingerprint(Path(function.__code__.co_filename))

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        key = super()._index_key(sig, codegen)  # type: ignore[no-untyped-call]
        return (*key, self._fingerprint)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile on first use, to run without the GIL; keep the machine code on disk."""
    dispatcher = njit(nogil=True)(function)
    if hasattr(dispatcher, "_cache"):  # not under NUMBA_DISABLE_JIT
        dispatcher._cache = _KernelCache(function)
    return dispatcher


def inlined(function: Callable[..., Any]) -> Any:
    """Compile into every kernel that calls it."""
    return njit(inline="always")(function)
