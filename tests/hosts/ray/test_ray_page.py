"""The page on Ray says what is so: its examples run."""

from __future__ import annotations

import re
from pathlib import Path

from ray.tune.registry import register_env

from tests.hosts.ray.worlds import Dot

PAGE = Path(__file__).parents[3] / "docs" / "ray.md"


def test_the_examples_of_the_page_run(tmp_path):
    register_env("pixels", lambda _: Dot({"stack": 2, "dtype": "float32"}))
    # Not "python", which are run where there is no Ray.
    examples = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(examples) >= 2
    space: dict[str, object] = {}
    for example in examples:
        exec(compile(example.replace("/tmp", str(tmp_path)), str(PAGE), "exec"), space)
