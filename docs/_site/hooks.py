"""What the site has beside `docs`: the front page, and the tables that pages lead to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ("benchmarks/results/", "experiments/results/")


def on_files(files: Files, config: Any) -> Files:
    """Add README as the index, and all results."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    for folder in RESULTS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".md", ".png", ".json") and "-quick" not in path.name:
                uri = path.relative_to(ROOT).as_posix()
                files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links of the repository to the site's pages; where there is none, leave the text."""
    if page.file.src_uri == "index.md":
        markdown = markdown.replace("](docs/", "](")
    else:
        for folder in RESULTS:
            markdown = markdown.replace(f"](../{folder}", f"]({folder}")
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?:\.\./)?(?:CHANGELOG|CONTRIBUTING|LICENSE|CITATION|"
                  r"examples|cleanrl_scripts|README)[^)]*\)", r"\1", markdown)  # fmt: skip
