"""The host's namespace gets DE on request only; the algorithm is known to the host by the import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.adapters.namespaces import given_back, taken_is_left_alone
from tests.adapters.neural_compressor.networks import mlp

from de_plugin.adapters import neural_compressor as adapter  # isort: skip
import neural_compressor.torch.quantization as host  # isort: skip


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with given_back(host, adapter):
        yield


def test_the_name_comes_and_goes() -> None:
    assert not hasattr(host, "DEQuantConfig")
    adapter.register()
    adapter.register()
    chosen = getattr(host, "DEQuantConfig")  # noqa: B009 - as scripts choose by name
    assert len(host.quantize(mlp(), chosen(bits=2)).fc1.weight.unique()) <= 4
    adapter.unregister()
    adapter.unregister()
    assert not hasattr(host, "DEQuantConfig")


def test_a_name_that_is_taken_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken_is_left_alone(host, adapter, "DEQuantConfig", monkeypatch)


def test_importing_warns_of_nothing_and_its_absence_is_told() -> None:
    script = "import de_plugin.adapters.neural_compressor as a; print(a.DEQuantConfig().bits)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "4", done.stderr
    without = (
        "import sys; sys.modules['neural_compressor'] = None; import de_plugin.adapters.neural_compressor"
    )
    done = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True, check=False)
    assert "MissingDependencyError" in done.stderr
    assert "pip install 'de_plugin[neural-compressor]'" in done.stderr
