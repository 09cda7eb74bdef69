"""What is built has all that is imported, and nothing that is not to be installed."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.test_readme import snippets_of

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ("compressarray", "wrappers")

SMOKE = """
import numpy as np
from gymnasium.spaces import Box, Discrete
import compressarray, wrappers, wrappers.vector, compressarray.sb3.training
assert compressarray.__file__.startswith({folder!r}), compressarray.__file__
buffer = compressarray.ReplayBuffer(20, Box(0, 255, (4, 8, 8), np.uint8), Discrete(3), None, seed=1)
obs = np.zeros((4, 8, 8), np.uint8)
for step in range(10):
    after = np.roll(obs, -1, 0)
    after[-1] = step
    buffer.add(obs, step % 3, 1.0, False, False, after)
    obs = after
buffer.save({folder!r} + "/buffer")
assert len(compressarray.ReplayBuffer.load({folder!r} + "/buffer")) == 10
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel and the source distribution, of a copy of what git would give."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    ).stdout.decode()  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = (
        "from setuptools import build_meta\n"
        f"build_meta.build_sdist({str(folder)!r})\nbuild_meta.build_wheel({str(folder)!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", build], cwd=source, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_the_wheel_has_every_module_and_no_other(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = {
        path.relative_to(ROOT).as_posix()
        for part in LIBRARY
        for path in (ROOT / part).rglob("*")
        if path.suffix in (".py", ".cu") or path.name == "py.typed"
    }
    assert names == ours


def test_the_source_distribution_builds_the_same(built: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "compressarray/__init__.py"} <= names


def test_the_wheel_works_where_nothing_of_the_clone_is(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    smoke = f"import sys\nsys.path.insert(0, {str(installed)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", smoke + SMOKE.format(folder=str(installed))],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_version_stands_in_step() -> None:
    """`pyproject.toml` has it; the others say the same."""
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    released = re.search(r"^date-released: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    newest = re.search(r"^## (\d\S*) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert version
    assert cited
    assert released
    assert newest
    assert newest[1] == cited[1] == version[1]
    assert newest[2] == released[1]


def test_the_built_files_carry_the_version(built: Path) -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version
    assert sorted(path.name for path in built.glob("*.*")) == [
        f"compressarray-{version[1]}-py3-none-any.whl",
        f"compressarray-{version[1]}.tar.gz",
    ]


def test_the_readme_begins_with_what_an_empty_environment_runs() -> None:
    """`make test-wheel` pastes it there; here, that it is the replay buffer's."""
    assert "buffer.sample(32)" in snippets_of(ROOT / "README.md")[0]
