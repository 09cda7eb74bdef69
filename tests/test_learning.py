"""The page of learning curves says what was logged, and says that runs are equal if they are."""

from __future__ import annotations

import copy
import json

import pytest

from benchmarks import learning
from benchmarks.common import RESULTS


def test_the_table_is_of_what_was_logged():
    measured = json.loads(learning.MEASURED.read_text())
    assert (RESULTS / "learning.md").read_text() == learning.markdown(measured)


def test_curves_that_differ_are_refused():
    measured = json.loads(learning.MEASURED.read_text())
    other = copy.deepcopy(measured)
    other["runs"]["dense"][learning.TRAINING][3][1] += 0.00001
    with pytest.raises(ValueError, match="differ at step 2000"):
        learning.markdown(other)


def test_the_picture_is_drawn(tmp_path):
    learning.draw(json.loads(learning.MEASURED.read_text()), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
