"""What every test shares: Hypothesis profiles, and a header that says what runs."""

from __future__ import annotations

import importlib.util
import os

import pytest
from hypothesis import HealthCheck, settings

from tests.effort import BASE_EXAMPLES

# The first example of a test pays for compiling its kernels: no deadline, no complaint.
_common = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "default", _common, max_examples=BASE_EXAMPLES, derandomize=True, database=None
)
settings.register_profile("ci", settings.get_profile("default"))
# A hundred times the examples, and other ones each time; what fails is kept in .hypothesis/.
settings.register_profile("long", _common, max_examples=100 * BASE_EXAMPLES)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# The library's tests run without the extra that scripts and benchmarks need, and dm_control has no
# build for Python 3.13.
_NEEDED_BY = {
    "matplotlib": ["test_bench_peers.py", "test_learning.py"],
    "omegaconf": ["test_experiments*.py"],
    "torch": [
        *("test_ppo*.py", "test_qrdqn*.py", "test_drqv2*.py", "test_medqn*.py"),
        *("test_changed_pixels.py", "test_experiments*.py"),
    ],
    "dm_control": ["test_dm_control.py", "test_drqv2*.py"],
}
_missing = [module for module in _NEEDED_BY if importlib.util.find_spec(module) is None]
collect_ignore_glob = sorted({name for module in _missing for name in _NEEDED_BY[module]})


def pytest_configure(config: pytest.Config) -> None:
    """Name the marks of numpy's own tests, which `test_numpys_own.py` runs."""
    for name in ("leaks_references", "slow", "thread_unsafe", "valgrind_error"):
        config.addinivalue_line("markers", f"{name}: a mark of numpy's own tests")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what is special about this run."""
    profile = os.environ.get("HYPOTHESIS_PROFILE", "default")
    lines = [f"hypothesis: profile {profile}, {settings().max_examples} examples a test"]
    if collect_ignore_glob:
        names = " and ".join(_missing)
        lines.append(f"not installed: {names}; left out: {', '.join(collect_ignore_glob)}")
    return lines


@pytest.fixture
def learning_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small arrays learn tokens and codes, again and again."""
    for name, value in {
        "MIN_CHANGES": 40,
        "PACK_AT_BYTES": 1000,
        "LEARN_AFTER_GOPS": 2,
        "MAX_LEARN_PAUSE": 1,
        "TOKENS_GAIN": -1.0,
        "PACKED_TOKENS_GAIN": -1.0,
        "CODES_GAIN": -1.0,
    }.items():
        room = "schedule" if name in ("LEARN_AFTER_GOPS", "MAX_LEARN_PAUSE") else "learning"
        monkeypatch.setattr(f"compressarray.store.gop_{room}.{name}", value)
