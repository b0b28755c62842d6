"""The commands about files: compress, load, inspect."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from de_plugin import cli, encode
from de_plugin.errors import DEError

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
    name = "de_filing_subject"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


def invoke(*arguments: str) -> Result:
    result: Result = CliRunner().invoke(cli._build(), list(arguments))
    return result


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


def test_a_loss_on_held_out_labels_is_kept_to(module: str) -> None:
    result = compressed(module, "--max-loss", "40", "--json", data="labelled")
    assert result.exit_code == 0, result.stdout
    assert json.loads(result.stdout)["loss"] is not None


def test_a_loss_without_labels_is_refused(module: str) -> None:
    result = compressed(module, "--max-loss", "1")
    assert isinstance(result.exception, DEError)
    assert "--max-divergence" in str(result.exception)


def test_another_model_is_refused(module: str, tmp_path: Path) -> None:
    assert compressed(module).exit_code == 0
    (tmp_path / "de_filing_other.py").write_text(SOURCE.replace("24", "32"))
    try:
        result = invoke("load", "net.de.safetensors", "--model", "de_filing_other:model")
    finally:
        sys.modules.pop("de_filing_other", None)
    assert isinstance(result.exception, DEError)
    assert "0.weight" in str(result.exception)


@pytest.mark.parametrize("command", ["load", "inspect"])
def test_files_that_are_none_are_refused(command: str, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(b"nothing of the kind")
    assert isinstance(invoke(command, str(path)).exception, DEError)
    assert isinstance(invoke(command, str(tmp_path / "nowhere")).exception, DEError)
