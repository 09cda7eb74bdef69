"""How kernels are compiled, and when what is cached of them may be used again.

A kernel, as Python calls it, is compiled with everything that it calls, in one piece. While that
takes place for the first time of a process a line says so, by way of `logging`.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.types import unliteral

# With options that its annotations do not have.
_njit: Any = numba.njit
_PACKAGE = Path(__file__).parents[1]
_IMPORTS = re.compile(r"^from compressarray\.([\w.]+) import ", re.MULTILINE)


@cache
def _say_once() -> None:
    """Say what takes so long; whoever wants no word of it raises the logger's level."""
    logging.getLogger("compressarray").warning(
        "compressarray: compiling kernels, some seconds at the first use of each part; "
        "later processes find them in numba's cache"
    )


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

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Load what is kept, or say that there is something to wait for."""
        found = super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        if found is None:
            _say_once()
        return found

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        key = super()._index_key(sig, codegen)  # type: ignore[no-untyped-call]
        return (*key, self._fingerprint)


class _Part(JITCodeLibrary):
    """What is linked into kernels, and optimised and made machine code of there, once.

    numba does so with each function by itself too, and again in all that call each other.
    """

    @property
    def codegen(self) -> Any:
        return _WithoutEnvironments(self._codegen)

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()  # type: ignore[no-untyped-call]
        self._verify_declare_only_symbols()  # type: ignore[no-untyped-call]
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:  # noqa: ARG002
        """Give no address: there is no machine code."""
        self._ensure_finalized()  # type: ignore[no-untyped-call]
        return 0


class _WithoutEnvironments:
    """A code generator of what has no machine code, into which Python objects could be put."""

    def __init__(self, codegen: Any) -> None:
        self._codegen = codegen

    def set_env(self, env_name: str, env: Any) -> None:
        """Kernels hold no objects."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codegen, name)


class _PartCompiler(Compiler):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)  # type: ignore[no-untyped-call]
        part = _Part(self.state.targetctx.codegen(), "part")  # type: ignore[no-untyped-call]
        self.state["library"] = part


def kernel(function: Callable[..., Any]) -> Any:
    """Compile on first use, to run without the GIL; keep the machine code on disk.

    What other kernels call is compiled into them: nothing that only Python needs, and not kept.
    """
    dispatcher: Any = _njit(nogil=True, no_cfunc_wrapper=True)(function)
    if hasattr(dispatcher, "_cache"):  # not under NUMBA_DISABLE_JIT
        dispatcher._cache = _KernelCache(function)
        dispatcher._compile_for_args = _apart(dispatcher._compile_for_args)
        _part_of_kernels(dispatcher)
    return dispatcher


def _part_of_kernels(dispatcher: Any, **options: Any) -> None:
    """Have kernels that call a function compile it as a part of theirs."""
    part: Any = _njit(
        nogil=True,
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
        pipeline_class=_PartCompiler,
        **options,
    )(dispatcher.py_func)

    def get_call_template(args: Any, kws: Any) -> Any:
        # For the type of a number that is written out, which numba compiles for each by itself.
        return part.get_call_template(
            tuple(map(unliteral, args)),
            {name: unliteral(each) for name, each in kws.items()},  # type: ignore[no-untyped-call]
        )

    dispatcher.part = part
    dispatcher.get_call_template = get_call_template
    dispatcher.get_overload = part.get_overload


def _apart(compile_for: Callable[..., Any]) -> Callable[..., Any]:
    """Compile in a thread of its own.

    Signals are handled in the main thread: one that comes while numba compiles there, such as that
    of Ctrl-C, would leave it unable to compile anything more.
    """

    def compile_apart(*arguments: Any, **options: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return compile_for(*arguments, **options)
        answer: list[Any] = []
        failure: list[BaseException] = []

        def work() -> None:
            try:
                answer.append(compile_for(*arguments, **options))
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=work, name="compressarray-compiler")
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return answer[0]

    return compile_apart


def inlined(function: Callable[..., Any]) -> Any:
    """Compile into every kernel that calls it. For Python there is `plain`.

    LLVM does that. numba's own ``inline="always"`` copies the function's source, as it were, and
    looks at it again wherever it is called, which takes six times as long from the second call on.
    """
    dispatcher: Any = _njit(no_cfunc_wrapper=True)(function)
    if hasattr(dispatcher, "get_call_template"):  # not under NUMBA_DISABLE_JIT
        _part_of_kernels(dispatcher, forceinline=True)
    return dispatcher


def plain(function: Any) -> Any:
    """The Python function of one that is inlined, which calls no other: nothing is compiled."""
    return getattr(function, "py_func", function)
