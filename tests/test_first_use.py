"""What is compiled at first use, and what is said meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

USE = """
import sys
import numpy as np
from numba.core import event
from numba.core.dispatcher import Dispatcher
import compressarray

compiled = []

class Listener(event.Listener):
    def on_start(self, it):
        pass

    def on_end(self, it):
        dispatcher, args = it.data["dispatcher"], it.data["args"]
        is_ours = dispatcher.py_func.__module__.startswith("compressarray")
        if is_ours and args in dispatcher.overloads:
            compiled.append((dispatcher, args))

event.register("numba:compile", Listener())
array = compressarray.DiffFrameArray((100, 84, 84))
array.append(np.zeros((84, 84), np.uint8))
array.gather(np.array([0]))
functions = {dispatcher.py_func for dispatcher, _ in compiled}
lines = [dispatcher.inspect_llvm(args).count("\\n") for dispatcher, args in compiled
         if not dispatcher.targetoptions.get("no_cpython_wrapper")]
print(len(functions), len(compiled), len(lines), sum(lines))
"""


def use(cache: Path) -> tuple[list[int], str]:
    """Use an array for the first time; return what was compiled, and what was said."""
    done = subprocess.run(
        [sys.executable, "-c", USE],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
    )
    assert done.returncode == 0, done.stderr
    return [int(each) for each in done.stdout.split()], done.stderr


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="nothing is compiled")
def test_first_use_compiles_little_and_says_so_once(tmp_path: Path) -> None:
    """Issue 17: a newcomer waited for half a minute while everything was compiled many times."""
    (n_functions, n_compiled, n_kernels, n_lines), said = use(tmp_path)
    assert said.count("compiling kernels") == said.count("\n") == 1
    # Hardly any function is compiled for more than one kind of arguments, ...
    assert 20 < n_functions <= n_compiled <= 1.15 * n_functions
    # ... few are compiled by themselves, for Python; all of them together are no more than this.
    assert 3 <= n_kernels <= 12
    assert 5_000 < n_lines < 33_500

    (*_, n_compiled, n_kernels, n_lines), said = use(tmp_path)
    assert (n_compiled, n_kernels, n_lines) == (0, 0, 0)
    assert said == ""
