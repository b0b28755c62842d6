"""Files are small, bring everything back, and refuse what they do not hold."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from de_plugin import encode
from de_plugin.errors import ArgumentError, FileError
from tests.adapters.neural_compressor.networks import NETWORKS, made, mlp, unchanged, values

from de_plugin.adapters.neural_compressor import DEQuantConfig, load, save  # isort: skip
from neural_compressor.torch.quantization import RTNConfig, quantize  # isort: skip
from neural_compressor.torch.quantization import save as host_save  # isort: skip


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_file_brings_the_model_back(name: str, granularity: str, tmp_path: Path) -> None:
    model, x = made(name)
    found = quantize(model, DEQuantConfig(bits=3, granularity=granularity, biases=6))
    info = save(found, tmp_path / "net.de.safetensors", {"who": "me"})
    assert (tmp_path / "net.de.safetensors").stat().st_size == info.file_bytes
    other, _ = made(name)
    back = load(tmp_path / "net.de.safetensors", into=other)
    assert back is other
    assert unchanged(back, values(found))
    assert torch.equal(back(x), found(x))
    again = save(back, tmp_path / "again.de.safetensors", {"who": "me"})
    assert (tmp_path / "again.de.safetensors").read_bytes() == (tmp_path / "net.de.safetensors").read_bytes()
    assert again.metadata == {"who": "me"}


def test_the_file_is_smaller_than_its_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    found = quantize(model, DEQuantConfig(bits=4, codebook="entropy"))
    info = save(found, tmp_path / "net.de.safetensors")
    assert info.file_bytes < weights * 4 / 8 + 4 * (128 + 10) + 300


def test_the_hosts_save_and_a_folder(tmp_path: Path) -> None:
    model, x = made("mlp")
    found = quantize(model, DEQuantConfig(bits=3))
    found.save(str(tmp_path / "own"))
    host_save(found, str(tmp_path / "host"))
    for folder in ("own", "host"):
        assert torch.equal(load(tmp_path / folder, into=mlp())(x), found(x))
    assert list(encode.load(tmp_path / "own" / "model.de.safetensors")) == list(found.state_dict())
    twin = copy.deepcopy(found)
    twin.save(str(tmp_path / "twin"))
    assert torch.equal(load(tmp_path / "twin", into=mlp())(x), found(x))
    with pytest.raises(ArgumentError, match="beside the folder"):
        found.save(str(tmp_path / "own"), "huggingface")


def test_beside_another_algorithm(tmp_path: Path) -> None:
    model, x = made("cnn")
    both = DEQuantConfig(bits=3, white_list=[nn.Conv2d]) + RTNConfig(
        use_layer_wise=False, white_list=[nn.Linear]
    )
    fresh = copy.deepcopy(model)
    found = quantize(model, both)
    save(found, tmp_path / "net.de.safetensors")
    other = quantize(fresh, RTNConfig(use_layer_wise=False))
    assert torch.equal(load(tmp_path / "net.de.safetensors", into=other)(x), found(x))


def test_what_has_no_levels_or_lost_them_is_refused(tmp_path: Path) -> None:
    model, _ = made("mlp")
    with pytest.raises(ArgumentError, match="has no levels; quantize it"):
        save(model, tmp_path / "net.de.safetensors")
    found = quantize(model, DEQuantConfig(bits=3))
    with torch.no_grad():
        found.get_parameter("fc1.weight")[0, 0] += 0.01
    with pytest.raises(ArgumentError, match="fc1.weight is not what its levels say"):
        save(found, tmp_path / "net.de.safetensors")


def test_a_file_of_another_network_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model, _ = made("mlp")
    save(quantize(model, DEQuantConfig()), tmp_path / "net.de.safetensors")
    other, _ = made("cnn")
    before = values(other)
    with pytest.raises(FileError, match="does not fit"):
        load(tmp_path / "net.de.safetensors", into=other)
    assert unchanged(other, before)
    with pytest.raises(FileError, match="holds no model.de.safetensors"):
        load(tmp_path, into=other)


def test_two_calls_keep_the_levels_of_both(tmp_path: Path) -> None:
    model, _ = made("cnn")
    once = quantize(copy.deepcopy(model), DEQuantConfig(bits=4))
    names = [n.removesuffix(".weight") for n, p in model.named_parameters() if p.dim() > 1]
    first = quantize(copy.deepcopy(model), DEQuantConfig(bits=4, white_list=names[:2]))
    twice = quantize(first, DEQuantConfig(bits=4, white_list=names[2:]))
    sizes = [save(m, tmp_path / f"{n}.de.safetensors").file_bytes for n, m in enumerate((once, twice))]
    assert abs(sizes[0] - sizes[1]) < 8
    assert unchanged(twice, values(once))


def test_a_pickled_model_can_still_be_saved(tmp_path: Path) -> None:
    model, _ = made("mlp")
    found = quantize(copy.deepcopy(model), DEQuantConfig(bits=4))
    again = pickle.loads(pickle.dumps(found))
    assert unchanged(again, values(found))
    again.save(str(tmp_path / "out"))
    assert unchanged(load(tmp_path / "out", into=copy.deepcopy(model)), values(found))
