"""Imports point one way, and importing the library costs nothing that was not asked for."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest there

ROOT = Path(__file__).resolve().parents[1]

# Each part of the library, and the parts that it may know. `indexing` knows no pixels, `store` no
# keys, `codecs` no array. A new module is given its place here.
MAY_IMPORT = {
    "compressarray.errors": set(),
    "compressarray.kernels": set(),
    "compressarray.writing": set(),
    "compressarray.snapshots": {"compressarray.errors"},
    "compressarray.format": {
        "compressarray.errors",
        "compressarray.kernels",
        "compressarray.snapshots",
    },
    "compressarray.codecs": {
        "compressarray.errors",
        "compressarray.format",
        "compressarray.kernels",
        "compressarray.snapshots",
    },
    "compressarray.indexing": {"compressarray.errors"},
    "compressarray.ring": {
        "compressarray.errors",
        "compressarray.format",
        "compressarray.kernels",
        "compressarray.snapshots",
    },
    "compressarray.store": {
        "compressarray.codecs",
        "compressarray.errors",
        "compressarray.format",
        "compressarray.kernels",
        "compressarray.snapshots",
    },
    "compressarray.readers": {
        "compressarray.codecs",
        "compressarray.errors",
        "compressarray.format",
        "compressarray.kernels",
        "compressarray.store",
    },
    "compressarray.checks": {"compressarray.errors", "compressarray.ring"},
    "compressarray.array": {
        "compressarray.checks",
        "compressarray.codecs",
        "compressarray.errors",
        "compressarray.format",
        "compressarray.indexing",
        "compressarray.readers",
        "compressarray.ring",
        "compressarray.sharing",
        "compressarray.snapshots",
        "compressarray.store",
        "compressarray.writing",
    },
    "compressarray.feeding": {"compressarray.format"},
    "compressarray.sharing": {"compressarray.feeding"},
    "compressarray.checkpoints": {
        "compressarray.errors",
        "compressarray.feeding",
        "compressarray.format",
    },
    "compressarray.replay": {
        "compressarray.array",
        "compressarray.checkpoints",
        "compressarray.codecs",
        "compressarray.errors",
        "compressarray.format",
        "compressarray.kernels",
        "compressarray.readers",
        "compressarray.ring",
        "compressarray.sharing",
        "compressarray.snapshots",
        "compressarray.store",
        "compressarray.writing",
    },
    "compressarray.feed": {
        "compressarray.array",
        "compressarray.errors",
        "compressarray.feeding",
        "compressarray.format",
        "compressarray.replay",
    },
    "compressarray.attached": {
        "compressarray.array",
        "compressarray.feed",
        "compressarray.replay",
        "compressarray.sharing",
    },
    "compressarray.planes": set(),
    "compressarray.distributed": {
        "compressarray.errors",
        "compressarray.feed",
        "compressarray.feeding",
        "compressarray.format",
        "compressarray.replay",
        "compressarray.snapshots",
    },
    "compressarray.ray": {
        "compressarray.array",
        "compressarray.distributed",
        "compressarray.errors",
        "compressarray.planes",
        "compressarray.replay",
    },  # a leaf
    "compressarray.sb3": {
        "compressarray.array",
        "compressarray.planes",
        "compressarray.replay",
        "compressarray.writing",
    },  # a leaf
    "compressarray": {
        "compressarray.array",
        "compressarray.attached",
        "compressarray.errors",
        "compressarray.replay",
    },
    "wrappers": {"compressarray"},
    "cleanrl_scripts": {"compressarray", "compressarray.ray", "wrappers"},
}
# What only some parts may load, at import or later.
OPTIONAL = {
    "gymnasium": {
        "wrappers",
        "cleanrl_scripts",
        "compressarray.replay.spaces",
        "compressarray.sb3",
    },
    "ale_py": {"cleanrl_scripts", "compressarray.sb3"},
    "dm_control": {"wrappers"},
    "ray": {"cleanrl_scripts", "compressarray.ray"},
    "tree": {"compressarray.ray"},  # dm-tree, which RLlib's episodes are made with
    "shimmy": {"wrappers"},
    "isal": {"compressarray.sb3"},
    "sb3_contrib": {"compressarray.sb3.contrib"},
    "stable_baselines3": {"compressarray.sb3"},
    "torch": {
        "cleanrl_scripts",
        "compressarray.readers.cuda.gpu",
        "compressarray.readers.cuda.pinned",
        "compressarray.replay.outputs",
        "compressarray.sb3",
    },
}
OURS = ("compressarray", "wrappers", "cleanrl_scripts", "benchmarks", "experiments", "tests")
PACKAGES = ("compressarray", "wrappers", "cleanrl_scripts")


def source_files() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """Return the part that a module belongs to: itself, or the package around it."""
    part = module
    while part not in MAY_IMPORT and "." in part:
        part = part.rpartition(".")[0]
    return part


def imports(tree: ast.AST, modules: set[str]) -> Iterator[str]:
    """Yield the absolute name of every module imported anywhere in a file, types included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer they reach into"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else node.module


def broken_rules(importer: str, imported: str) -> str | None:
    """Say which rule an import breaks, if any."""
    top = imported.partition(".")[0]
    if (
        top in OPTIONAL
        and not {importer, importer.partition(".")[0], part_of(importer)} & OPTIONAL[top]
    ):
        return f"{importer} may not import {imported}"
    if top not in OURS:
        return None
    here, there = part_of(importer), part_of(imported)
    alone = here == "cleanrl_scripts"  # a script is one file
    if (here == there and not alone) or there in MAY_IMPORT[here]:
        return None
    return f"{importer} may not import {imported}: {here} knows only {sorted(MAY_IMPORT[here])}"


def test_every_module_has_its_place():
    modules = [module_name(path) for path in source_files()]
    assert len(modules) > 5
    placed = {module: part_of(module) for module in modules}
    lost = [m for m, part in placed.items() if part == "compressarray" and m != "compressarray"]
    assert not lost, f"give {lost} a place in MAY_IMPORT"


@pytest.mark.parametrize("path", source_files(), ids=lambda path: module_name(path))
def test_imports_point_one_way(path):
    modules = {module_name(each) for each in source_files()}
    found = imports(ast.parse(path.read_text()), modules)
    broken = {broken_rules(module_name(path), each) for each in found} - {None}
    assert not broken, "\n".join(sorted(broken))


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("compressarray.codecs.delta", "compressarray.array"),
        ("compressarray.store", "compressarray.indexing"),
        ("compressarray.indexing", "compressarray.store"),
        ("compressarray.array", "wrappers"),
        ("compressarray.array", "gymnasium"),
        ("compressarray.array", "torch"),
        ("compressarray.array", "compressarray.replay"),
        ("compressarray.replay.buffer", "torch"),
        ("compressarray.replay.buffer", "gymnasium"),
        ("compressarray.replay.buffer", "compressarray.sb3"),
        ("compressarray.replay.buffer", "stable_baselines3"),
        ("compressarray.sb3.rollout", "sb3_contrib"),
        ("compressarray.replay.buffer", "ray"),
        ("wrappers.frame_stack", "torch.nn"),
        ("wrappers.frame_stack", "compressarray.store"),
        ("cleanrl_scripts.ppo_atari", "cleanrl_scripts.other"),
        ("cleanrl_scripts.ppo_atari", "tests.naive"),
        ("cleanrl_scripts.ppo_atari", "experiments.results"),
    ],
)
def test_the_rules_refuse(importer, imported):
    assert broken_rules(importer, imported)


IMPORT_ALONE = """
import gc, sys
from numba.core import event
from numba.core.dispatcher import Dispatcher

with event.install_recorder("numba:compile") as recorder:
    import {package}
    compiled = len(recorder.buffer)

    dispatchers = [each for each in gc.get_objects() if isinstance(each, Dispatcher)]
    ours = [each for each in dispatchers if each.py_func.__module__.startswith("compressarray")]
    ready = [each.py_func.__name__ for each in ours if each.signatures]
    assert ours, "no kernel was found, so this test would show nothing"

    import numba
    numba.njit(lambda x: x + 1)(1)
    assert len(recorder.buffer) > compiled, "compilation went unnoticed, so this shows nothing"

assert compiled == 0, f"{{compiled}} compilation events while importing"
assert not ready, f"kernels compiled or loaded by the import: {{ready}}"
loaded = sorted(name for name in {unwanted} if name in sys.modules)
assert not loaded, f"the import pulled in {{loaded}}"
"""


@pytest.mark.parametrize(
    ("package", "unwanted"),
    [
        ("compressarray", ("torch", "gymnasium", "ale_py", "numcodecs", "wrappers")),
        ("wrappers", ("torch", "ale_py", "dm_control", "mujoco", "numcodecs", "shimmy")),
    ],
)
def test_import_compiles_nothing_and_stays_light(package, unwanted):
    environment = {name: value for name, value in os.environ.items() if "NUMBA" not in name}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALONE.format(package=package, unwanted=unwanted)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr


def test_every_package_is_named_and_typed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = set(project["tool"]["setuptools"]["packages"])
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in source_files()
        if path.parts[len(ROOT.parts)] != "cleanrl_scripts"  # copied, not installed
    }
    assert named == found
    assert all((ROOT / package / "py.typed").exists() for package in ("compressarray", "wrappers"))


def test_lower_bounds_are_the_versions_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    ranges = [*project["dependencies"], *extras["atari"], *extras["dmc"], *extras["numcodecs"]]
    lowest = {
        (each.name, Version(bound.version))
        for each in map(Requirement, ranges)
        for bound in each.specifier
        if bound.operator == ">="
    }
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pinned = [line.split("==") for line in lines if not line.startswith("#")]
    assert lowest == {(name, Version(version)) for name, version in pinned}
