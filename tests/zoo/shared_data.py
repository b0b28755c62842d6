"""Real data beside the checkout, for tests that are skipped where it is not."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from de_plugin.errors import DataError
from de_plugin.zoo import DATA, Dataset

Network = TypeVar("Network")

REPOSITORY = Path(__file__).parents[2]


def shared(name: str) -> Path:
    """Return a file or folder of the shared data; skip the test where it isn't there."""
    named = os.environ.get("DE_PLUGIN_TEST_DATA")
    path = (Path(named) if named else REPOSITORY.parent / "shared" / "data") / name
    if not path.exists():
        pytest.skip(
            "trained weights and photographs belong to others and are not handed on with this project; there "
            f"is no {path}: put them there, or name their folder in DE_PLUGIN_TEST_DATA"
        )
    return path


_WRONG = re.compile("SHA-256|damaged|holds|starts with|ends within|carries no|cannot be read")
"""What is said of data that are there and should not be as they are."""


def published(name: str) -> Dataset:
    """Return a published image set; skip the test where no place that can be reached has it.

    A copy that is there and is wrong is no reason to skip.
    """
    try:
        return DATA[name]()
    except DataError as error:
        if _WRONG.search(str(error)):
            raise
        pytest.skip(
            f"{name} is not handed on with this project, and nothing that can be reached from here has it, "
            f"neither a folder nor a package registry nor its official server: {error}"
        )


def published_weights(name: str, make: Callable[[], Network]) -> Network:
    """Return a network with its published weights; skip the test where no place that can be reached has them.

    A copy that is there and is wrong is no reason to skip.
    """
    try:
        return make()
    except DataError as error:
        if _WRONG.search(str(error)):
            raise
        pytest.skip(
            f"the weights of {name} are its authors' and are not handed on with this project, and nothing "
            f"that can be reached from here has them, neither an installed package nor a registry: {error}"
        )
