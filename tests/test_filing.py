"""The commands about files: compress, load, inspect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import Result

from de_plugin import encode
from de_plugin.errors import DEError
from tests.commands import invoke, user_module

SOURCE = """
import torch

def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.ReLU(), torch.nn.Linear(24, 4))

def data():
    return torch.randn(300, 16, generator=torch.Generator().manual_seed(0))

def labelled():
    x = data()
    return x, (x[:, :4].argmax(1))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with user_module("de_filing_subject", SOURCE, tmp_path, monkeypatch) as name:
        yield name


def compressed(module: str, *more: str, data: str = "data") -> Result:
    return invoke(
        "compress",
        *("--model", f"{module}:model", "--data", f"{module}:{data}", "--criterion", "magnitude"),
        *("--sparsity", "0.6", "--output", "net.de.safetensors", *more),
    )


def test_a_model_becomes_a_file_that_is_told_and_read_again(module: str) -> None:
    result = compressed(module, "--json")
    assert result.exit_code == 0, result.stdout
    told = json.loads(result.stdout)
    path = Path("net.de.safetensors")
    assert told["bytes"] == path.stat().st_size
    assert told["ratio"] > 4

    result = invoke("inspect", str(path), "--json")
    layers = {x["name"]: x for x in json.loads(result.stdout)["layers"]}
    assert layers["0.weight"]["sparsity"] > 0.3
    assert "2.weight" in invoke("inspect", str(path)).stdout

    result = invoke("load", str(path), "--output", "dense.safetensors", "--model", f"{module}:model")
    assert result.exit_code == 0, result.stdout
    assert "4 tensors" in result.stdout
    dense, state = load_file("dense.safetensors"), encode.load(path)
    assert dense.keys() == state.keys()
    assert all(bool((dense[name] == state[name]).all()) for name in dense)


def test_compensated_levels_are_asked_for_by_name(module: str) -> None:
    files = []
    for name in ("nearest", "compensated"):
        result = compressed(module, "--rounding", name, "--max-divergence", "0.1", "--json")
        assert json.loads(result.stdout)["divergence"] <= 0.1
        files.append(Path("net.de.safetensors").read_bytes())
    assert files[0] != files[1]
    result = compressed(module, "--rounding", "up")
    assert "rounding='up'" in str(result.exception)


def test_a_saved_config_makes_the_same_file(module: str) -> None:
    more = ("--recovery", "bias", "--cycles", "2", "--seed", "3")
    assert compressed(module, *more, "--save-config", "run.toml").exit_code == 0
    first = Path("net.de.safetensors").read_bytes()
    Path("net.de.safetensors").unlink()
    result = invoke("compress", "--config", "run.toml", "--save-config", "again.toml")
    assert result.exit_code == 0, result.output
    assert Path("net.de.safetensors").read_bytes() == first
    assert Path("again.toml").read_text() == Path("run.toml").read_text()
    result = invoke(
        "compress", "--config", "run.toml", "--output", "other", "--seed", "4", "--sparsity", "0.9"
    )
    assert result.exit_code == 0, result.output
    assert Path("net.de.safetensors").read_bytes() == first
    assert Path("other").read_bytes() != first


def test_a_file_is_not_unpacked_over_itself(module: str) -> None:
    assert compressed(module).exit_code == 0
    before = Path("net.de.safetensors").read_bytes()
    result = invoke("load", "net.de.safetensors", "--output", "net.de.safetensors")
    assert "--output net.de.safetensors: is the file of FILE" in str(result.exception)
    assert Path("net.de.safetensors").read_bytes() == before


def test_a_config_that_cannot_work_is_refused(module: str) -> None:
    Path("run.toml").write_text("bits = 3.5")
    result = compressed(module, "--config", "run.toml")
    assert "--config run.toml: bits = 3.5: expected a whole number" in str(result.exception)
    result = compressed(module, "--retrain", "prayer", "--save-config", "new.toml")
    assert isinstance(result.exception, DEError)
    assert not Path("new.toml").exists()
    assert not Path("net.de.safetensors").exists()


def test_a_loss_on_held_out_labels_is_kept_to(module: str) -> None:
    result = compressed(module, "--max-loss", "40", "--json", data="labelled")
    assert result.exit_code == 0, result.stdout
    assert json.loads(result.stdout)["loss"] is not None


def test_a_loss_without_labels_is_refused(module: str) -> None:
    result = compressed(module, "--max-loss", "1")
    assert isinstance(result.exception, DEError)
    assert "--max-divergence" in str(result.exception)


def test_another_model_is_refused(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compressed(module).exit_code == 0
    with user_module("de_filing_other", SOURCE.replace("24", "32"), tmp_path, monkeypatch) as other:
        result = invoke("load", "net.de.safetensors", "--model", f"{other}:model", "--output", "dense")
    assert isinstance(result.exception, DEError)
    assert "0.weight" in str(result.exception)
    assert not Path("dense").exists()


@pytest.mark.parametrize("command", ["load", "inspect"])
def test_files_that_are_none_are_refused(command: str, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(b"nothing of the kind")
    assert isinstance(invoke(command, str(path)).exception, DEError)
    assert isinstance(invoke(command, str(tmp_path / "nowhere")).exception, DEError)
