"""Running the command line in the test's own process, on a module that a user would have written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from de_plugin import cli


def invoke(*arguments: str) -> Result:
    """Run `de-plugin` with these arguments."""
    result: Result = CliRunner().invoke(cli._build(), list(arguments))
    return result


@contextmanager
def user_module(name: str, source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Write a module into the folder that the command line runs in; nothing of it is left imported."""
    (folder / f"{name}.py").write_text(source)
    monkeypatch.chdir(folder)
    try:
        yield name
    finally:
        sys.modules.pop(name, None)
