"""What the documents show works: their Python runs, and the commands they name exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def snippets_of(page: Path) -> list[str]:
    fenced = r"^```python\n(.*?)^```$"
    return re.findall(fenced, page.read_text(), flags=re.MULTILINE | re.DOTALL)


# Those of README stand alone; those of a page are pasted one after the other.
SNIPPETS = [*snippets_of(ROOT / "README.md"), *("\n".join(snippets_of(page)) for page in PAGES)]


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_the_python_of_pages_runs(number):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SNIPPETS[number]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{SNIPPETS[number]}\n{done.stderr}"


def test_there_are_snippets():
    assert len(SNIPPETS) >= 5


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "Makefile"])
def test_the_commands_named_exist(name):
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", (ROOT / name).read_text(), re.MULTILINE))
    assert named <= targets
    assert named or name == "Makefile"


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text())
    inside = [link for link in links if "://" not in link]
    missing = [link for link in inside if not (page.parent / link).exists()]
    assert not missing
