"""How processes share the tests (`pytest -n`), and how hypothesis draws: the same examples each time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_FIRST = ("tests/test_snippets.py", "tests/test_docs.py")
"""Files that take long are begun early, so that no process waits for another at the end."""
_MOST = 8
"""Processes; each loads torch."""

# No test measures time: a busy machine is slow, and finds the same.
settings.register_profile(
    "same", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group tests, so that one process fetches real data and makes a module's fixtures."""

    def when(item: pytest.Item) -> int:
        if item.get_closest_marker("real_data") is not None:
            return 0
        return 1 if item.nodeid.startswith(_FIRST) else 2

    items.sort(key=when)
    for item in items:
        group = "real data" if when(item) == 0 else item.nodeid.split("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return as many processes as there are processors for this one, also inside a container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, int(quota) // int(period))  # "max" is no number, and no limit
    except (OSError, ValueError):
        pass
    return max(1, min(count, _MOST))
