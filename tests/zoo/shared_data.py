"""Real data beside the checkout, for tests that are skipped where it is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def shared(name: str) -> Path:
    """Return a file or folder of the shared data; skip the test where it isn't there."""
    named = os.environ.get("DE_PLUGIN_TEST_DATA")
    path = (Path(named) if named else REPOSITORY.parent / "shared" / "data") / name
    if not path.exists():
        pytest.skip(f"there is no {path}: name the folder that holds it in DE_PLUGIN_TEST_DATA")
    return path
