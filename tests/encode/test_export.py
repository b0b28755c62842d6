"""Compressed networks in the formats of others."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from de_plugin import compress
from de_plugin.encode import export, load, save, to_dense, to_onnx, to_sparse_csr
from de_plugin.errors import ArgumentError, FileError, MissingDependencyError, OutputError
from tests.encode.networks import dense, same, state

ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not ONNX, reason="onnx, onnxscript and onnxruntime are not installed")


def test_a_dense_file_holds_every_tensor(tmp_path: Path) -> None:
    saved = state()
    save(tmp_path / "net", saved, {"made": "here"})
    to_dense(tmp_path / "net", tmp_path / "dense.safetensors")
    plain = load_file(tmp_path / "dense.safetensors")
    assert plain.keys() == saved.keys()
    assert all(same(plain[name], dense(value)) for name, value in saved.items())


def test_a_dense_file_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="there is no file"):
        to_dense(tmp_path / "missing", tmp_path / "dense.safetensors")
    save(tmp_path / "net", state())
    with pytest.raises(FileError, match="cannot be written"):
        to_dense(tmp_path / "net", tmp_path / "missing" / "dense")
    damaged = bytearray((tmp_path / "net").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "net").write_bytes(damaged)
    with pytest.raises(FileError, match="checksum"):
        to_dense(tmp_path / "net", tmp_path / "dense.safetensors")
    assert [place.name for place in tmp_path.iterdir()] == ["net"]


def test_matrices_become_sparse(tmp_path: Path) -> None:
    save(tmp_path / "net", state())
    plain = load(tmp_path / "net")
    plain["table"] = torch.eye(3, dtype=torch.int64)
    sparse = to_sparse_csr(plain)
    for name, tensor in plain.items():
        if name in {"fc.weight", "again.weight"}:
            assert sparse[name].layout == torch.sparse_csr
            assert sparse[name].values().numel() == int((tensor != 0).sum())
            assert torch.equal(sparse[name].to_dense(), tensor)
        else:
            assert sparse[name] is tensor
    assert torch.allclose(sparse["fc.weight"] @ torch.ones(8), plain["fc.weight"] @ torch.ones(8))


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten())
        self.head = nn.Linear(4 * 6 * 6, 5)

    def forward(self, images: Tensor, shift: Tensor) -> dict[str, Tensor]:
        features = self.layers(images) + shift
        return {"logits": self.head(features), "features": features}


@needs_onnx
def test_an_onnx_file_computes_what_the_model_does(tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    model = Doubled()
    model.layers[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    place = tmp_path / "net.onnx"
    difference = to_onnx(model, (torch.randn(3, 1, 8, 8), torch.randn(3, 144)), place)
    assert difference is not None
    assert difference < 1e-5
    assert [other.name for other in tmp_path.iterdir()] == ["net.onnx"]
    assert [module.training for module in model.modules()] == modes
    assert all(same(model.state_dict()[name], value) for name, value in before.items())

    session = onnxruntime.InferenceSession(place, providers=["CPUExecutionProvider"])
    images, shift = torch.randn(7, 1, 8, 8), torch.randn(7, 144)
    names = [given.name for given in session.get_inputs()]
    logits = session.run(None, {names[0]: images.numpy(), names[1]: shift.numpy()})[0]
    assert torch.allclose(torch.from_numpy(logits), model.eval()(images, shift)["logits"], atol=1e-5)


@needs_onnx
def test_a_compressed_file_becomes_onnx(tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5)).eval()
    images = torch.randn(64, 1, 8, 8)
    place = tmp_path / "net.de.safetensors"
    compress(model, images, place, 0.8, bits=3, pruning={"criterion": "magnitude"})
    loaded = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5)).eval()
    load(place, into=loaded)
    to_onnx(loaded, (images[:3],), tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    [logits] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert torch.allclose(torch.from_numpy(logits), model(images), atol=1e-5)


class Branching(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * 2 if inputs.sum() > 0 else inputs


@needs_onnx
def test_a_model_that_cannot_be_exported_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="Branching cannot be exported"):
        to_onnx(Branching().train(), torch.ones(2, 2), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_a_file_that_computes_something_else_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_TOLERANCE", -1.0)
    with pytest.raises(OutputError, match="differ from the model's"):
        to_onnx(nn.Linear(3, 2), torch.ones(2, 3), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'de_plugin\[export\]'"):
        to_onnx(nn.Linear(3, 2), torch.ones(2, 3), tmp_path / "net.onnx")
