"""The package as it is imported: nothing heavy, nothing misplaced, everything documented."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import de_plugin

ROOT = Path(__file__).parents[1]
OPTIONAL = ("nni", "torch_pruning", "neural_compressor", "typer", "rich", "pooch", "matplotlib")


def output(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=False)


def test_importing_it_imports_no_host_and_no_terminal() -> None:
    done = output(
        "import sys, de_plugin, de_plugin.testing, de_plugin.cli;"
        f"print([m for m in {OPTIONAL} if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_importing_it_warns_of_nothing() -> None:
    done = output(
        "import torch, warnings; warnings.simplefilter('error'); import de_plugin, de_plugin.testing"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_adapters_are_importable_under_their_own_name_only() -> None:
    assert importlib.import_module("de_plugin.adapters").__doc__
    done = output(f"import sys; sys.path.insert(0, {str(ROOT)!r}); import adapters")
    assert done.returncode != 0
    assert "de_plugin.adapters" in done.stderr


@pytest.mark.parametrize("name", de_plugin.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    thing = getattr(de_plugin, name)
    text = inspect.getdoc(thing)
    assert text
    assert not text.startswith(f"{name}("), "a dataclass without a docstring of its own"


def test_public_names_are_sorted_and_unique() -> None:
    assert len(set(de_plugin.__all__)) == len(de_plugin.__all__)


@pytest.mark.parametrize(
    "module",
    [
        "assess",
        "criteria",
        "encode",
        "evolve",
        "compare",
        "quantize",
        "pipeline",
        "prune",
        "prune.recover",
        "testing",
        "errors",
    ],
)
def test_modules_keep_their_lists_of_names(module: str) -> None:
    loaded = importlib.import_module(f"de_plugin.{module}")
    assert loaded.__doc__
    assert all(hasattr(loaded, name) for name in getattr(loaded, "__all__", ()))


def test_it_is_typed_and_packaged_whole() -> None:
    assert (ROOT / "de_plugin" / "py.typed").is_file()
    folders = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "de_plugin").rglob("__init__.py")}
    text = (ROOT / "pyproject.toml").read_text()
    assert [f for f in sorted(folders) if f'"{f}"' not in text] == []
    assert f'version = "{de_plugin.__version__}"' in text
