"""How kernels are compiled, and when what is cached of them may be used again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache


def _fingerprint() -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


_FINGERPRINT = _fingerprint()


class _KernelCache(FunctionCache):
    """numba's cache, valid for these very sources.

    numba looks at the file of a kernel alone; but what a kernel calls is compiled into it, and
    code from before an update would read bytes that another encoder wrote.
    """

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        key = super()._index_key(sig, codegen)  # type: ignore[no-untyped-call]
        return (*key, _FINGERPRINT)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile on first use, to run without the GIL; keep the machine code on disk."""
    dispatcher = njit(nogil=True)(function)
    if hasattr(dispatcher, "_cache"):  # not under NUMBA_DISABLE_JIT
        dispatcher._cache = _KernelCache(function)  # type: ignore[no-untyped-call]
    return dispatcher


def inlined(function: Callable[..., Any]) -> Any:
    """Compile into every kernel that calls it."""
    return njit(inline="always")(function)
