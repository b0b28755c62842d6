"""The wheel holds the whole package, and works where the checkout is not."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

_USE = """
import sys, torch, warnings
warnings.simplefilter("error")
import de_plugin
import de_plugin.adapters, de_plugin.compare, de_plugin.testing, de_plugin.zoo.models
assert de_plugin.__file__.startswith(sys.argv[1]), de_plugin.__file__
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()
report = de_plugin.prune(model, torch.randn(200, 20), 0.5, "magnitude")
assert sum(int((p == 0).sum()) for p in model.parameters() if p.dim() > 1) == 192
assert report.sparsity == 0.5
"""


pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("build") is None or importlib.util.find_spec("setuptools") is None,
    reason="a wheel is made by build and setuptools: pip install 'de_plugin[dev]' setuptools",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy, so that neither old builds get in nor new ones stay in the checkout."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("de_plugin", "adapters", "examples/zoo"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = folder.glob("de_plugin-*.whl")
    return found


def test_it_holds_every_module_once_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert len(set(names)) == len(names)
    packaged = {n for n in names if ".dist-info/" not in n}
    expected = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "de_plugin").rglob("*")
        if p.suffix in (".py", ".typed", ".css", ".js") and not p.is_relative_to(ROOT / "de_plugin" / "zoo")
    }
    for link, place in (("adapters", "adapters"), ("zoo", "examples/zoo")):
        real = ROOT / place
        expected |= {f"de_plugin/{link}/{p.relative_to(real).as_posix()}" for p in real.rglob("*.py")}
    assert packaged == expected


def test_it_works_where_the_checkout_is_not(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*pip, "--target", str(place), str(wheel)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    script = tmp_path / "use.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(place)!r})\n{_USE}")
    done = subprocess.run(
        [sys.executable, str(script), str(place)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
