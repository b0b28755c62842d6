"""In what order processes share the tests, and what hypothesis draws: the same examples each time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_FIRST = (
    "tests/test_examples.py",
    "tests/test_snippets.py",
    "tests/test_docs.py",
    "tests/encode/test_fuzz.py",
)
"""Files that take long are begun early, so that no process waits for another at the end."""
_MOST = 8
"""Processes; each loads torch."""

# No test measures time: a busy machine is slow, and finds the same.
settings.register_profile(
    "same", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""

    def place(item: pytest.Item) -> int:
        return next((n for n, name in enumerate(_FIRST) if item.nodeid.startswith(name)), len(_FIRST))

    items.sort(key=place)


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
