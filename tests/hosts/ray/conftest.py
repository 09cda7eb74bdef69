"""One cluster for all tests, on this machine."""

from __future__ import annotations

import pytest
import ray


@pytest.fixture(scope="session", autouse=True)
def cluster():
    # More CPUs than there may be: most runners wait most of the time.
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
