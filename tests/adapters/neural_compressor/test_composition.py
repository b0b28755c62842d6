"""Beside the host's own algorithms, each with its own layers, in both orders where the host allows."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from de_plugin.errors import ArgumentError, SelectionError
from tests.adapters.neural_compressor.networks import cnn, levels, made, unchanged, values

from de_plugin.adapters.neural_compressor import DEQuantConfig, load  # isort: skip
from neural_compressor.common.base_config import BaseConfig  # isort: skip
from neural_compressor.torch.quantization import (  # isort: skip
    MixedPrecisionConfig,
    MXQuantConfig,
    DynamicQuantConfig,
    GPTQConfig,
    HQQConfig,
    RTNConfig,
    SmoothQuantConfig,
    StaticQuantConfig,
    TEQConfig,
    convert,
    prepare,
    quantize,
)


def rtn(*names: object) -> RTNConfig:
    return RTNConfig(use_layer_wise=False, group_size=8, **({"white_list": list(names)} if names else {}))


def check(found: nn.Module, x: torch.Tensor) -> None:
    assert type(found.get_submodule("6")).__name__ == "INCWeightOnlyLinear"
    assert all(levels(found.get_parameter(f"{n}.weight")) <= 8 for n in ("0", "3"))
    assert bool(torch.isfinite(found(x)).all())


@pytest.mark.parametrize(
    "config",
    [
        lambda: DEQuantConfig(bits=3, white_list=["0", "3"]) + rtn("6"),
        lambda: rtn("6") + DEQuantConfig(bits=3, white_list=["0", "3"]),
        lambda: DEQuantConfig(bits=3, white_list=[nn.Conv2d]) + rtn(nn.Linear),
        lambda: rtn("6") + DEQuantConfig(bits=3, white_list=[nn.Conv2d]),
        lambda: DEQuantConfig(bits=3) + rtn("6"),
        lambda: DEQuantConfig(bits=3) + rtn(),
    ],
)
def test_both_orders_work(config: object) -> None:
    assert callable(config)
    model, x = made("cnn")
    check(quantize(copy.deepcopy(model), config()), x)
    check(convert(prepare(copy.deepcopy(model), config())), x)


def test_a_misspelt_layer_is_refused_before_the_other_algorithm_runs() -> None:
    for config in (
        rtn("6") + DEQuantConfig(white_list=["conv"]),
        DEQuantConfig(white_list=["conv"]) + rtn("6"),
    ):
        model = cnn()
        before = values(model)
        with pytest.raises(SelectionError, match="'conv' is none"):
            quantize(model, config)
        assert unchanged(model, before)


def test_a_config_that_is_left_without_layers_is_refused() -> None:
    config: BaseConfig = DEQuantConfig(white_list=[nn.Linear]) + rtn()
    with pytest.raises(SelectionError, match="DEQuantConfig: is left with no layer"):
        quantize(cnn(), config)


def test_two_configs_of_ours() -> None:
    both = DEQuantConfig(bits=3, codebook="kmeans") + DEQuantConfig(
        bits=2, codebook="kmeans", white_list=["0"]
    )
    found = quantize(cnn(), both)
    assert [levels(found.get_parameter(f"{n}.weight")) for n in ("0", "3")] == [4, 8]
    with pytest.raises(ArgumentError, match="would replace"):
        DEQuantConfig(bits=3) + DEQuantConfig(bits=4)
    with pytest.raises(ArgumentError, match="the first alone of a dict"):
        quantize(cnn(), {"de_quant": {"white_list": ["0"]}, "rtn": {"white_list": ["6"]}})


@pytest.mark.parametrize("other", [TEQConfig, HQQConfig])
def test_algorithms_that_take_all_layers_for_theirs_are_refused(other: Callable[..., BaseConfig]) -> None:
    model, x = made("cnn")
    for config in (
        other(white_list=["6"]) + DEQuantConfig(white_list=["0"]),
        DEQuantConfig(white_list=["0"]) + other(white_list=["6"]),
    ):
        with pytest.raises(ArgumentError, match="beside TEQ or HQQ.*two calls"):
            quantize(copy.deepcopy(model), config, example_inputs=x[:2])


@pytest.mark.parametrize("other", [StaticQuantConfig, DynamicQuantConfig, SmoothQuantConfig])
def test_algorithms_of_whole_models_are_refused_when_they_are_added(
    other: Callable[..., BaseConfig],
) -> None:
    for more in (other(), rtn("6") + other()):
        with pytest.raises(ArgumentError, match="DEQuantConfig beside .*whole model.*two calls"):
            DEQuantConfig(white_list=["0"]) + more
    with pytest.raises(ArgumentError, match="DEQuantConfig beside .*whole model.*two calls"):
        DEQuantConfig(white_list=["0"]) + rtn("6") + other()


def test_a_misspelt_layer_or_argument_of_the_others_is_refused() -> None:
    model = cnn()
    before = values(model)
    with pytest.raises(SelectionError, match="RTNConfig: white_list: '88' is none"):
        quantize(model, DEQuantConfig(white_list=["0"]) + rtn("6", "88"))
    assert unchanged(model, before)
    with pytest.raises(ArgumentError, match="teecher=.*did you mean teacher"):
        convert(prepare(model, both := DEQuantConfig(white_list=["0"]) + rtn("6")), both, teecher=model)


def test_what_the_host_reads_of_the_last_config_is_the_right_ones() -> None:
    both = DEQuantConfig(white_list=["0"]) + (GPTQConfig(white_list=["8"]) + rtn("6"))
    mapping = both.to_config_mapping(model_info=both.get_model_info(cnn()))
    assert [(name, config.name) for (name, _), config in mapping.items()] == [
        ("0", "de_quant"),
        ("6", "rtn"),
        ("8", "gptq"),
    ]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("other", [MixedPrecisionConfig, MXQuantConfig])
def test_configs_without_bits_go_with_ours(other: type[BaseConfig], first: bool) -> None:
    """The host's statistics read of every config what only some have."""
    model, x = made("cnn")
    ours, theirs = DEQuantConfig(bits=3, white_list=["0", "3"], batches=x), other(white_list=["6"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the host's own layers index by lists
        found = quantize(copy.deepcopy(model), ours + theirs if first else theirs + ours)
        assert bool(torch.isfinite(found(x[:2])).all())
    assert all(levels(found.get_parameter(f"{n}.weight")) <= 9 for n in ("0", "3"))
    assert type(found.get_submodule("6")) is not nn.Linear


def test_a_composition_is_read_into_the_same_composition(tmp_path: Path) -> None:
    model, x = made("cnn")
    both = DEQuantConfig(bits=3, white_list=["0", "3"]) + rtn("6", "8")
    found = quantize(copy.deepcopy(model), both)
    found.save(str(tmp_path))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    again = load(tmp_path, into=quantize(other, DEQuantConfig(bits=3, white_list=["0", "3"]) + rtn("6", "8")))
    assert torch.equal(again(x), found(x))
