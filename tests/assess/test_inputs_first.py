"""`Conv1D` of transformers, a linear layer whose weight lies inputs first, does as `nn.Linear` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import de_plugin
from de_plugin import DirectedEvolution, Swaps
from de_plugin.assess.units import ParameterUnits
from de_plugin.prune.recover import Distillation


class Conv1D(nn.Module):
    """What transformers has under this name."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf) / nx**0.5)
        self.bias = nn.Parameter(torch.randn(nf) / 10)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(shape)


def pair() -> tuple[nn.Sequential, nn.Sequential]:
    """Return a network of such layers, and the same one of linear layers."""
    torch.manual_seed(0)
    first, last = Conv1D(16, 10), Conv1D(4, 16)
    layers = []
    for old in (first, last):
        new = nn.Linear(old.nx, old.nf)
        new.weight.data.copy_(old.weight.T)
        new.bias.data.copy_(old.bias)
        layers.append(new)
    return nn.Sequential(first, nn.GELU(), last).eval(), nn.Sequential(layers[0], nn.GELU(), layers[1]).eval()


def data() -> Tensor:
    return torch.randn(200, 5, 10, generator=torch.Generator().manual_seed(1))


def same(ours: nn.Module, theirs: nn.Module) -> None:
    for name, parameter in ours.named_parameters():
        other = theirs.get_parameter(name).T if parameter.dim() > 1 else theirs.get_parameter(name)
        assert torch.equal(parameter == 0, other == 0), name
        torch.testing.assert_close(parameter, other, rtol=1e-3, atol=1e-4)


def test_units_are_those_of_a_linear_layer() -> None:
    ours, theirs = (ParameterUnits(model, "channel") for model in pair())
    assert [x.shape for x in ours.layers] == [x.shape for x in theirs.layers] == [(16, 10), (4, 16)]
    assert [x.bias_name for x in ours.layers] == ["0.bias", "2.bias"]
    mine, other = (units.reduce([v.abs() for v in units.values()]) for units in (ours, theirs))
    assert torch.allclose(mine, other)


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "taylor", "fisher", "obs"])
@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_every_criterion_zeroes_the_same(criterion: str, granularity: str) -> None:
    models = pair()
    for model in models:
        de_plugin.prune(model, data(), 0.5, criterion, granularity=granularity)
    same(*models)


def test_evolution_finds_the_same() -> None:
    search = DirectedEvolution(population=6, generations=2, swaps=Swaps(rounds=1, candidates=4))
    models = pair()
    found = [de_plugin.prune(model, data(), 0.6, search).divergence for model in models]
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    same(*models)


@pytest.mark.parametrize("recovery", ["bias", "leastsquares", "reconstruct", "obs", Distillation(steps=10)])
def test_every_recovery_moves_the_survivors_alike(recovery: Any) -> None:
    models, rows = pair(), data()[:, 0].clone()
    reports = [
        de_plugin.prune(model, rows, 0.6, "magnitude", recovery=recovery, schedule=1) for model in models
    ]
    assert reports[0].divergence == pytest.approx(reports[1].divergence, rel=1e-2)
    same(*models)


@pytest.mark.parametrize("rounding", ["nearest", "compensated"])
def test_it_becomes_a_file_and_comes_back(rounding: Any, tmp_path: Path) -> None:
    (model, _), path = pair(), tmp_path / "net.de.safetensors"
    report = de_plugin.compress(
        model,
        data(),
        path,
        0.5,
        bits=3,
        pruning={"criterion": "magnitude"},
        quantizing={"rounding": rounding},
    )
    fresh, _ = pair()
    de_plugin.load(path, into=fresh)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, fresh.get_parameter(name))
    assert [x.shape for x in report.file.layers if len(x.shape) > 1] == [(10, 16), (16, 4)]


def test_what_only_has_the_name_is_left_alone() -> None:
    class Conv1D(nn.Conv1d):
        """Someone's own convolution: it is pruned as what it is."""

    net = nn.Sequential(Conv1D(3, 4, 2))
    assert ParameterUnits(net).layers[0].shape == (4, 3, 2)
