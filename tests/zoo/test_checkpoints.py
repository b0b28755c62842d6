"""Checkpoints: exact names and shapes or an error that tells them all; the published MLPNet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from de_plugin.errors import DataError
from de_plugin.zoo import accuracy, load_checkpoint, mlpnet
from tests.zoo.shared_data import published, shared

CHECKPOINT = "mlpnet/mlpnet-mnist-93.97.safetensors"


def state() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in mlpnet().state_dict().items()}


def test_loads_exactly_and_returns_the_same_model(tmp_path: Path) -> None:
    expected = state()
    save_file(expected, tmp_path / "file.safetensors")
    model = mlpnet()
    assert load_checkpoint(model, tmp_path / "file.safetensors") is model
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_all_differences_are_told_and_nothing_is_changed(tmp_path: Path) -> None:
    tensors = state()
    tensors["fc4.weight"] = tensors.pop("fc3.weight")
    tensors["fc2.weight"] = tensors["fc2.weight"].T.contiguous()
    save_file(tensors, tmp_path / "file.safetensors")
    model = mlpnet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(DataError) as caught:
        load_checkpoint(model, tmp_path / "file.safetensors")
    message = str(caught.value)
    assert "does not fit MLP" in message
    assert "missing: fc3.weight" in message
    assert "unexpected: fc4.weight" in message
    assert "fc2.weight has the shape (40, 20), expected (20, 40)" in message
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_missing_or_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        load_checkpoint(mlpnet(), tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"not safetensors")
    with pytest.raises(DataError, match="not a whole safetensors file"):
        load_checkpoint(mlpnet(), tmp_path / "bad")
    with pytest.raises(DataError):
        load_checkpoint(mlpnet(), tmp_path)


@pytest.mark.real_data
def test_the_published_mlpnet_has_its_published_accuracy() -> None:
    path = shared(CHECKPOINT)
    data = published("mnist")
    model = load_checkpoint(mlpnet(), path)
    assert accuracy(model, data.test_inputs, data.test_labels) == pytest.approx(93.97, abs=1e-9)
