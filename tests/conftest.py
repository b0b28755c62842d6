"""How processes share the tests (`pytest -n`): a file at a time, and all that see real data together."""

from __future__ import annotations

import pytest

_FIRST = ("tests/test_snippets.py", "tests/test_docs.py")
"""Files that take long are begun early, so that no process waits for another at the end."""


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
