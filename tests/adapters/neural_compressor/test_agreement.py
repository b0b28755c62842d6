"""The label-free metric: 1 for the model itself, less for others, whatever the outputs look like."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from de_plugin.errors import ArgumentError, ModeError, OutputError
from tests.adapters.neural_compressor.networks import NETWORKS, made

from de_plugin.adapters.neural_compressor import DEQuantConfig, agreement  # isort: skip
from neural_compressor.torch.quantization import quantize  # isort: skip


@pytest.mark.parametrize("name", list(NETWORKS))
def test_it_is_one_for_the_model_and_falls_with_the_bits(name: str) -> None:
    model, x = made(name)
    evaluate = agreement(model, x, batch_size=40)
    assert evaluate(model) == pytest.approx(1.0)
    coarse, fine = (evaluate(quantize(copy.deepcopy(model), DEQuantConfig(bits=b))) for b in (2, 8))
    assert coarse < fine <= 1.0 + 1e-12


def test_top1_counts_answers() -> None:
    model, x = made("mlp")
    other = copy.deepcopy(model)
    with torch.no_grad():
        answers = model(x).argmax(1)
        other.get_parameter("head.bias")[0] += 100.0
    assert agreement(model, x, "top1")(model) == 1.0
    assert agreement(model, x, "top1")(other) == pytest.approx(float((answers == 0).double().mean()))


def test_it_refuses_what_it_cannot_compare() -> None:
    model, x = made("mlp")
    kind: Any = "euclid"
    with pytest.raises(ArgumentError, match="kind='euclid'"):
        agreement(model, x, kind)
    with pytest.raises(ArgumentError, match="batch_size=0"):
        agreement(model, x, batch_size=0)
    with pytest.raises(OutputError, match="the original's"):
        agreement(model, x)(nn.Linear(12, 3))
    with pytest.raises(ModeError):
        agreement(copy.deepcopy(model).train(), x)


def test_outputs_may_be_trees() -> None:
    model, x = made("mlp")

    def both(network: nn.Module, inputs: Any) -> dict[str, torch.Tensor]:
        out = network(inputs)
        return {"a": out, "b": out[:, 0]}

    assert agreement(model, x, forward=both)(model) == pytest.approx(1.0)


def test_answers_that_are_all_zero_agree_with_themselves_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    x = torch.randn(200, 4)
    silent = ~model(x).any(1)
    assert 0 < int(silent.sum()) < 200
    evaluate = agreement(model, x)
    assert evaluate(model) == pytest.approx(1.0)
    with torch.no_grad():
        model.get_parameter("0.bias").add_(10.0)
    assert evaluate(model) <= 1 - float(silent.float().mean()) + 1e-6
