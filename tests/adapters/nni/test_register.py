"""The host's namespace gets DE on request only, and gives it back."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adapters.namespaces import given_back, taken_is_left_alone
from tests.adapters.nni.training import SMALL, config, images, simple

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import nni.compression.pruning as host

    from de_plugin.adapters import nni as adapter


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with given_back(host, adapter):
        yield


def test_the_name_comes_and_goes() -> None:
    assert not hasattr(host, "DEPruner")
    adapter.register()
    adapter.register()
    chosen = getattr(host, "DEPruner")  # noqa: B009 - as scripts choose by name
    assert chosen is adapter.DEPruner
    _, masks = chosen(simple(), config(0.5), batches=images(32), criterion=SMALL).compress()
    assert float(masks["conv1"]["weight"].mean()) == 0.5
    adapter.unregister()
    adapter.unregister()
    assert not hasattr(host, "DEPruner")


def test_a_name_that_is_taken_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken_is_left_alone(host, adapter, "DEPruner", monkeypatch)


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_alone_does_not_load_the_host() -> None:
    assert run("import sys, de_plugin, de_plugin.adapters; print('nni' in sys.modules)").strip() == "False"


def test_importing_the_adapter_adds_nothing_to_the_host() -> None:
    script = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import nni.compression.pruning as host; before = set(vars(host))\n"
        "import de_plugin.adapters.nni; print(set(vars(host)) - before)"
    )
    assert run(script).strip() == "set()"


def test_a_missing_host_is_told_with_the_remedy() -> None:
    script = (
        "import sys; sys.modules['nni'] = None\n"
        "from de_plugin.errors import MissingDependencyError\n"
        "try:\n    import de_plugin.adapters.nni\n"
        "except MissingDependencyError as error:\n    print(error)"
    )
    assert "pip install 'de_plugin[nni]'" in run(script)
