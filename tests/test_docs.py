"""The documentation builds without a warning, holds every public name, and loads nothing from elsewhere."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pasting import ROOT

PACKAGES = (
    "assess",
    "criteria",
    "prune",
    "prune/recover",
    "evolve",
    "quantize",
    "encode",
    "compare",
    "testing",
    "adapters/torch_prune",
    "adapters/torch_pruning",
    "adapters/nni",
    "adapters/neural_compressor",
)
UNTOLD = {"__version__", "MakeProblem", "codebooks"}
"""Plain values and aliases, which have no docstring of their own."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip(
            "the documentation is built by mkdocs, which the engine does without; `make test` installs it, "
            "elsewhere: pip install 'de_plugin[docs]'"
        )
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    # Its theme announces a successor at every build.
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def public(package: str) -> list[str]:
    """Return the names in ``__all__``, without importing a host."""
    path = ROOT / "de_plugin" / package
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    raise AssertionError(f"{package} has no __all__")


def told(page: Path) -> set[str]:
    return {name.rpartition(".")[2] for name in re.findall(r'id="(de_plugin\.[^"]+)"', page.read_text())}


@pytest.mark.parametrize("package", ["", *PACKAGES])
def test_every_public_name_is_in_the_reference(package: str, site: Path) -> None:
    found = set().union(*map(told, (site / "reference").glob("*.html")))
    assert [name for name in public(package) if name not in found | UNTOLD] == []


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    loads = re.compile(r'<(?:script|img|iframe)[^>]*src="(?:https?:)?//|<link[^>]*href="(?:https?:)?//')
    assert [page.name for page in pages if loads.search(page.read_text())] == []
    styles = [sheet.read_text() for sheet in site.rglob("*.css")]
    assert not any(re.search(r"url\(.?(?:https?:)?//", style) for style in styles)


def test_every_idea_has_a_picture_that_says_what_it_shows(site: Path) -> None:
    for page in (site / "concepts").glob("*.html"):
        pictures = re.findall(r'<img alt="([^"]*)" src="\.\./pictures/([^"]+)"', page.read_text())
        assert len(pictures) == 1, page.name
        [(alt, name)] = pictures
        assert len(alt) > 40, page.name
        assert "<title>" in (site / "pictures" / name).read_text()
