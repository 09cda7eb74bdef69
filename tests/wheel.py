"""Build the wheel and the source distribution, install them into an empty environment, and use it.

    python tests/wheel.py [arguments for pip]

In an environment of its own, in a folder that goes: what is installed there is what a user gets,
and the README's first example runs in it, away from the clone. `make test-wheel` does this.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The installed one, of the version built, is what runs.
CHECK = """import importlib.metadata, pathlib, sys, compressarray, wrappers.vector
assert importlib.metadata.version("compressarray") == {version!r}
for module in (compressarray, wrappers.vector):
    assert pathlib.Path(module.__file__).is_relative_to(sys.prefix), module.__file__
"""


def run(*command: str | Path, cwd: Path, quiet: bool = False) -> None:
    print("$", *(str(part).splitlines()[0] for part in command if str(part).strip()), flush=True)
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL if quiet else None)


def main(pip_arguments: list[str]) -> None:
    readme = (ROOT / "README.md").read_text()
    example = re.search(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    if example is None or version is None:
        sys.exit("wheel.py: error: README has no Python, or pyproject.toml no version")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # A copy of what git has: nothing that lies about in a clone is built in.
        source = folder / "source"
        source.mkdir()
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, check=True,
        ).stdout.decode()  # fmt: skip
        for each in filter(None, listed.split("\0")):
            if (ROOT / each).is_file():
                (source / each).parent.mkdir(parents=True, exist_ok=True)
                (source / each).write_bytes((ROOT / each).read_bytes())
        run(sys.executable, "-m", "venv", folder / "build", cwd=folder)
        python = folder / "build" / "bin" / "python"
        needs = ("build", "setuptools>=77")
        run(python, "-m", "pip", "install", "-q", *pip_arguments, *needs, cwd=folder)
        # Without isolation, for which pip would not be given the arguments.
        build = (python, "-m", "build", "--no-isolation", "-o", folder / "dist", source)
        run(*build, cwd=folder, quiet=True)
        (wheel,), (sdist,) = ((folder / "dist").glob(f"*.{kind}") for kind in ("whl", "tar.gz"))
        empty = folder / "empty"
        run(sys.executable, "-m", "venv", empty, cwd=folder)
        python = empty / "bin" / "python"
        pip = (python, "-m", "pip")
        check = CHECK.format(version=version[1])
        run(*pip, "install", "-q", "--no-compile", *pip_arguments, f"{wheel}[atari]", cwd=folder)
        run(python, "-W", "error", "-c", check, cwd=empty)
        run(python, "-W", "error", "-c", example[1], cwd=empty)
        # What else it needs is there now: no second download.
        run(*pip, "uninstall", "-q", "-y", "compressarray", cwd=folder)
        run(*pip, "install", "-q", "--no-compile", "--no-deps", *pip_arguments, sdist, cwd=folder)
        run(python, "-W", "error", "-c", check, cwd=empty)
    print(f"compressarray {version[1]} builds, installs into an empty environment, and works there")


if __name__ == "__main__":
    main(sys.argv[1:])
