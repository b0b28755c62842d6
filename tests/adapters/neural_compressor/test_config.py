"""What the host ignores in silence is an error here, before anything is changed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from de_plugin.errors import ArgumentError, SelectionError
from de_plugin.prune.recover import Distillation
from de_plugin.quantize import Compensated
from de_plugin.quantize.between import level_recoveries
from tests.adapters.neural_compressor.networks import cnn, levels, made, mlp, unchanged, values

from de_plugin.adapters.neural_compressor import DEQuantConfig  # isort: skip
from neural_compressor.torch.quantization import RTNConfig, get_all_config_set, quantize  # isort: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bit": 4}, r"DEQuantConfig\(bit=...\): no such argument; did you mean bits"),
        ({"use_sym": False}, r"DEQuantConfig\(use_sym=...\): no such argument; give codebook='uniform'"),
        ({"use_double_quant": True}, r"use_double_quant=...\): no such argument; expected some of dtype"),
        ({"bits": 1}, "bits=1: expected a whole number from 2 to 8"),
        ({"bits": 9}, "bits=9"),
        ({"bits": True}, "bits=True"),
        ({"bits": [4, 16]}, "bits=16"),
        ({"bits": []}, "empty list"),
        ({"dtype": "nf4"}, "dtype='nf4': expected 'int', or 'fp32'"),
        ({"group_size": 32}, "group_size=32: expected -1; .*granularity='channel'"),
        ({"codebook": "fibonacci"}, "codebook='fibonacci': expected 'best' or one of .*kmeans"),
        ({"granularity": "row"}, "granularity='row': expected 'tensor' or 'channel'"),
        ({"bits_per_layer": {"fc1": 12}}, r"bits_per_layer\['fc1'\]=12"),
        ({"bits_per_layer": [3]}, "bits_per_layer=.*dict"),
        ({"divergence": "manhattan"}, "divergence='manhattan'"),
        ({"samples": 0}, "samples=0"),
        ({"weighting": "hessian"}, "weighting='hessian'"),
        ({"biases": 1}, "biases=1: .*or 'exact'"),
        ({"recovery": "obs"}, "recovery='obs'"),
        ({"recovery": "straight-through"}, "recovery='straight-through'.*'levels'"),
        ({"seed": -1}, "seed=-1"),
        ({"rounding": "up"}, "rounding='up': expected 'nearest', 'compensated'"),
        ({"rounding": "compensated", "codebook": "kmeans"}, "codebook='kmeans': .*'uniform' or 'entropy'"),
        ({"rounding": "compensated", "granularity": ["tensor", "channel"]}, "granularity='channel'"),
        ({"white_list": []}, r"white_list=\[\]"),
        ({"white_list": "fc1"}, "white_list='fc1': expected .*list"),
    ],
)
def test_values_that_cannot_work_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        DEQuantConfig(**arguments)


def _local(name: Any) -> DEQuantConfig:
    return DEQuantConfig().set_local(name, DEQuantConfig(bits=2))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (_local("fc2"), "set_local: 'fc2' is none of the 3 layers.*did you mean fc1"),
        (_local(nn.Conv2d), "set_local: 'Conv2d' is none"),
        (_local("Linear"), "'Linear' is none.*a type is given as a class"),
        (_local("(fc"), "neither a layer nor a regular expression"),
        (DEQuantConfig(bits_per_layer={"fc": 3}), "bits_per_layer: 'fc' is none"),
        (DEQuantConfig(white_list=["fc1", "had"]), "white_list: 'had' is none.*head"),
        (DEQuantConfig(white_list=[""]), "white_list: '' is none"),
        (DEQuantConfig(white_list=None), "quantizes no layer"),
        (DEQuantConfig(dtype="fp32"), "quantizes no layer"),
    ],
)
def test_configs_that_mean_no_layer_are_refused(config: DEQuantConfig, message: str) -> None:
    model = mlp()
    before = values(model)
    with pytest.raises(SelectionError, match=message):
        quantize(model, config)
    assert unchanged(model, before)
    with pytest.raises(SelectionError, match="has no layer to quantize"):
        quantize(nn.Sequential(nn.ReLU()), DEQuantConfig())


def test_lists_are_for_tuning() -> None:
    with pytest.raises(ArgumentError, match=r"bits=\[2, 4\]: a list is for autotune"):
        quantize(mlp(), DEQuantConfig(bits=[2, 4]))
    found = DEQuantConfig(bits=[2, 4], codebook=["uniform", "kmeans"], white_list=["fc1"]).expand()
    assert [(c.bits, c.codebook) for c in found] == [
        (2, "uniform"),
        (2, "kmeans"),
        (4, "uniform"),
        (4, "kmeans"),
    ]
    assert [c.local_config["fc1"].bits for c in found] == [2, 2, 4, 4]
    kept = DEQuantConfig(bits=[2, 4]).set_local("fc1", DEQuantConfig(bits=8)).expand()
    assert [c.local_config["fc1"].bits for c in kept] == [8, 8]
    assert any(isinstance(config, DEQuantConfig) for config in get_all_config_set())


def bits_of(config: DEQuantConfig) -> list[int]:
    """Return how many levels the layers of the network with similar names get."""
    found = quantize(mlp(), config)
    return [levels(found.get_parameter(f"{n}.weight")) for n in ("fc1", "fc10", "head")]


def test_names_mean_one_layer_and_patterns_what_begins_with_them() -> None:
    two = DEQuantConfig(bits=2, codebook="kmeans")
    base = DEQuantConfig(bits=3, codebook="kmeans")
    assert bits_of(copy.deepcopy(base).set_local("fc1", two)) == [4, 8, 8]
    assert bits_of(copy.deepcopy(base).set_local("fc.", two)) == [4, 4, 8]
    assert bits_of(copy.deepcopy(base).set_local(["fc1", "head"], two)) == [4, 8, 4]
    assert bits_of(copy.deepcopy(base).set_local(nn.Linear, two).set_local("fc1", base)) == [8, 4, 4]
    assert bits_of(copy.deepcopy(base).set_local("fc1", base).set_local("fc.*", two)) == [4, 4, 8]
    assert bits_of(DEQuantConfig(bits=2, codebook="kmeans", white_list=["fc1"])) == [4, 256, 64]
    assert bits_of(DEQuantConfig(bits=3, codebook="kmeans", bits_per_layer={"fc1": 2})) == [4, 8, 8]
    assert bits_of(copy.deepcopy(base).set_local("head", DEQuantConfig(dtype="fp32"))) == [8, 8, 64]
    only = DEQuantConfig(white_list=None, codebook="kmeans", bits_per_layer={"head": 2})
    assert bits_of(only) == [192, 256, 4]


def test_a_config_of_another_algorithm_is_no_local_one() -> None:
    with pytest.raises(ArgumentError, match="expected a DEQuantConfig; add configs"):
        DEQuantConfig().set_local("fc1", RTNConfig())


def test_what_concerns_the_whole_network_may_stand_anywhere_but_not_differently() -> None:
    model, x = made("mlp")
    inside = DEQuantConfig(bits=2).set_local("fc1", DEQuantConfig(bits=2, batches=x))
    outside = DEQuantConfig(bits=2, batches=x).set_local("fc1", DEQuantConfig(bits=2))
    assert torch.equal(quantize(copy.deepcopy(model), inside)(x), quantize(copy.deepcopy(model), outside)(x))
    both = DEQuantConfig(bits=2, batches=x).set_local("fc1", DEQuantConfig(batches=x.clone()))
    with pytest.raises(ArgumentError, match="batches: two different ones"):
        quantize(model, both)


def test_dicts_and_files_bring_a_config_back(tmp_path: Path) -> None:
    config = DEQuantConfig(bits=3, codebook="power", biases=6)
    config.set_local("fc1", DEQuantConfig(bits=2))
    assert DEQuantConfig.from_dict(config.to_dict()) == config
    config.to_json_file(str(tmp_path / "config.json"))
    assert DEQuantConfig.from_json_file(str(tmp_path / "config.json")) == config
    single = DEQuantConfig(bits=5)
    assert DEQuantConfig.from_dict(single.to_dict()) == single
    assert single != config
    assert single != RTNConfig()
    with pytest.raises(ArgumentError, match="'lokal'"):
        DEQuantConfig.from_dict({"global": {"bits": 3}, "lokal": {}})
    assert "batches" not in DEQuantConfig(batches=torch.zeros(2, 2)).to_dict()
    assert "DEQuantConfig" in repr(single)


def test_copies_share_data_and_changes_are_checked() -> None:
    x = torch.randn(4, 12)
    config = DEQuantConfig(bits=3, batches=x, teacher=mlp())
    twin = copy.deepcopy(config)
    assert twin == config
    assert twin.batches is x
    assert twin.teacher is config.teacher
    twin.bits = 2
    assert twin.global_config.bits == 2
    assert config.bits == 3
    assert twin != config
    with pytest.raises(ArgumentError, match="bits=9"):
        twin.bits = 9


def test_the_mapping_is_by_layer_in_order() -> None:
    model = cnn()
    config = DEQuantConfig(bits=3)
    info = config.get_model_info(model)
    assert info == [("0", "Conv2d"), ("3", "Conv2d"), ("6", "Linear"), ("8", "Linear")]
    assert list(config.to_config_mapping(model_info=info)) == info
    DEQuantConfig.register_supported_configs()
    assert nn.Conv2d in DEQuantConfig.supported_configs[0].operators


def test_what_is_said_again_counts_as_the_latest() -> None:
    fine, coarse = DEQuantConfig(bits=8), DEQuantConfig(bits=2)
    config = DEQuantConfig().set_local("fc1", fine).set_local("fc.*", coarse).set_local("fc1", fine)
    model = nn.Sequential()
    model.add_module("fc1", nn.Linear(4, 4))
    model.add_module("fc2", nn.Linear(4, 4))
    chosen = {name: c.bits for (name, _), c in config.resolved(config.get_model_info(model)).items()}
    assert chosen == {"fc1": 8, "fc2": 2}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value: float) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model.get_parameter("1.weight")[0, 0] = value
    with pytest.raises(ArgumentError, match="1.weight: holds NaN or infinite values"):
        quantize(model, DEQuantConfig(bits=4))


def test_what_each_layer_lists_is_spread_and_not_multiplied() -> None:
    config = DEQuantConfig(bits=[2, 3])
    for name in ("fc1", "fc10", "head"):
        config.set_local(name, DEQuantConfig(bits=[4, 5, 6, 7, 8], codebook=["uniform", "kmeans"]))
    met = [{name: (c.bits, c.codebook) for name, c in one.local_config.items()} for one in config.spread()]
    assert len(met) == 10
    for name in ("fc1", "fc10", "head"):
        assert {one[name] for one in met} == {(b, k) for b in range(4, 9) for k in ("uniform", "kmeans")}
    assert len(config.expand()) == 2 * 10**3
    config.set_local("fc.*", DEQuantConfig(bits=list(range(2, 7)), granularity=["tensor", "channel"]))
    with pytest.raises(ArgumentError, match="20,000 combinations, expected at most 10,000.*tune"):
        config.expand()


def test_what_counts_later_does_so_in_every_combination() -> None:
    config = DEQuantConfig(bits=[2, 4], white_list=["fc1", "fc.*"]).set_local("fc1", DEQuantConfig(bits=8))
    model = mlp()
    info = config.expand()[0].get_model_info(model)
    for one, bits in zip(config.expand(), (2, 4), strict=True):
        assert {n: c.bits for (n, _), c in one.resolved(info).items()} == {"fc1": 8, "fc10": bits}


def test_a_config_that_would_be_lost_is_not_added() -> None:
    for second in (
        DEQuantConfig(bits=8).set_local("fc1", DEQuantConfig(bits=2)),
        DEQuantConfig(bits=2, white_list=["fc1"], bits_per_layer={"head": 8}),
    ):
        with pytest.raises(ArgumentError, match="give it a white_list, and bits_per_layer to the first"):
            DEQuantConfig(bits=3) + second


def test_numbers_of_arrays_are_plain_ones() -> None:
    three: Any = np.int64(3)
    half: Any = np.float32(0.5)
    config = DEQuantConfig(bits=list(np.arange(2, 5)), samples=three, codebook="entropy", price=half)
    assert config.bits == [2, 3, 4]
    assert all(type(b) is int for b in config.bits)
    assert json.loads(config.to_json_string())["bits"] == [2, 3, 4]
    assert DEQuantConfig.from_dict(DEQuantConfig(bits=three).to_dict()).bits == 3
    assert type(config.price) is float
    assert DEQuantConfig(bits_per_layer={"fc1": three}).bits_per_layer == {"fc1": 3}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DEQuantConfig(white_list=[nn.Linear]), "the type Linear cannot be written"),
        (DEQuantConfig(recovery=["bias", Distillation(steps=3)]), "recovery=.*cannot be written"),
        (DEQuantConfig(recovery=level_recoveries("levels")[0]), "recovery=.*cannot be written"),
        (
            DEQuantConfig(batches=torch.randn(4, 4), rounding=Compensated(samples=100)),
            "rounding=.*cannot be written",
        ),
    ],
)
def test_what_a_file_would_lose_is_refused_and_the_file_stays(
    config: DEQuantConfig, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text("before")
    with pytest.raises(ArgumentError, match=message):
        config.to_json_file(path)
    assert path.read_text() == "before"


def test_leaving_single_layers_alone_is_among_the_combinations() -> None:
    both = DEQuantConfig(dtype=["int", "fp32"])
    config = DEQuantConfig().set_local("fc1", both).set_local("head", both)
    met = [tuple(c.local_config[n].dtype for n in ("fc1", "head")) for c in config.expand()]
    assert met == [("int", "int"), ("int", "fp32"), ("fp32", "int"), ("fp32", "fp32")]
    fixed = DEQuantConfig(dtype=["int", "fp32"], bits_per_layer={"fc1": 4})
    assert [c.dtype for c in fixed.expand()] == ["int", "fp32"]
    assert [c.dtype for c in both.expand()] == ["int"]


def test_to_list_the_layers_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)))
    before = copy.deepcopy(model.state_dict())
    info = DEQuantConfig(white_list=["0"]).get_model_info(model.train())
    assert info == [("0", "Linear"), ("1", "Linear")]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("old", [False, True])
def test_a_computed_weight_is_not_passed_over(old: bool) -> None:
    model = mlp()
    norm = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
    norm(model.get_submodule("fc1"))
    with pytest.raises(SelectionError, match="fc1: its weight is computed.*remove_parametrizations"):
        quantize(model, DEQuantConfig(bits=2))
    found = quantize(model, DEQuantConfig(bits=2, white_list=["head"]))
    assert levels(found.get_parameter("head.weight")) <= 5
    assert DEQuantConfig(white_list=[nn.Linear]).get_model_info(model)[0] == ("fc1", "Linear")
