"""These tests are for a machine with a GPU, and say so where there is none."""

from __future__ import annotations

import pytest
import torch


def pytest_sessionstart(session: pytest.Session) -> None:
    if not torch.cuda.is_available():
        pytest.exit("torch finds no GPU: these tests are for a machine that has one", returncode=4)
