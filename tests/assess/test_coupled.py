"""Coupled units: a channel goes with its norm and with what reads it, and everything comes back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from de_plugin import DirectedEvolution, Magnitude, Problem, Swaps
from de_plugin.assess.coupled import CoupledUnits, Coupling, Tie
from de_plugin.errors import ArgumentError, SelectionError
from de_plugin.testing import check_units


class Net(nn.Module):
    """Two convolutions with norms that a sum couples, then a linear layer over flattened positions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.last = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.Linear(6 * 16, 5)
        self.wide = nn.Conv2d(6, 4, 1)
        self.narrow = nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = x + self.second(x) + self.narrow(self.wide(x).relu())
        logits: Tensor = self.last(x.flatten(1))
        return logits


def couplings(model: Net) -> list[Coupling]:
    six, four = torch.arange(6), torch.arange(4)
    rows, columns = six[:, None, None, None], six[None, :, None, None]
    body = [
        Tie(model.first.weight, rows),
        Tie(model.norm.weight, six),
        Tie(model.norm.bias, six),
        Tie(model.second.weight, rows),
        Tie(model.second.weight, columns),
        Tie(model.wide.weight, columns),
        Tie(model.narrow.weight, rows),
        Tie(model.last.weight, six.repeat_interleave(16)),
    ]
    for bias in (model.first.bias, model.narrow.bias):
        assert bias is not None
        body.append(Tie(bias, six))
    assert model.wide.bias is not None
    inner = [
        Tie(model.wide.weight, four[:, None, None, None]),
        Tie(model.wide.bias, four),
        Tie(model.narrow.weight, four[:, None, None]),
    ]
    return [Coupling("body", 6, tuple(body)), Coupling("inner", 4, tuple(inner))]


def cut(model: Net, kept: Tensor) -> Net:
    """Return a network that really lacks the channels."""
    a, b = kept[:6].nonzero()[:, 0], kept[6:].nonzero()[:, 0]
    other = Net().eval()
    other.first = nn.Conv2d(1, len(a), 3, padding=1)
    other.norm, other.second = nn.BatchNorm2d(len(a)), nn.Conv2d(len(a), len(a), 3, padding=1, bias=False)
    other.wide, other.narrow = nn.Conv2d(len(a), len(b), 1), nn.Conv2d(len(b), len(a), 1)
    other.last = nn.Linear(16 * len(a), 5)
    flat = (a[:, None] * 16 + torch.arange(16)).flatten()
    state = model.state_dict()
    rows = {"first": (a, None), "norm": (a, None), "second": (a, a), "wide": (b, a), "narrow": (a, b)}
    for name, (out, into) in rows.items():
        for own, value in getattr(other, name).state_dict().items():
            if value.dim():
                full = state[f"{name}.{own}"][out]
                value.copy_(full if into is None or full.dim() < 2 else full[:, into])
    other.last.weight.data.copy_(state["last.weight"][:, flat])
    other.last.bias.data.copy_(state["last.bias"])
    return other.eval()


@settings(max_examples=40, deadline=None)
@given(bits=st.lists(st.booleans(), min_size=10, max_size=10))
@torch.no_grad()
def test_zeroing_is_cutting_and_comes_back(bits: list[bool]) -> None:
    model = Net().eval()
    kept = torch.tensor(bits)
    kept[0] = kept[6] = True
    before = {k: v.clone() for k, v in model.state_dict().items()}
    units, x = CoupledUnits(model, couplings(model)), torch.randn(3, 1, 4, 4)
    with units.zeroed(kept):
        found = model(x)
    torch.testing.assert_close(found, cut(model, kept)(x), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    check_units(units)
    masks = units.masks(kept)
    assert masks["second.weight"].sum() == 9 * int(kept[:6].sum()) ** 2
    assert masks["last.weight"].sum() == 5 * 16 * int(kept[:6].sum())


def test_sums_count_a_weight_for_each_of_its_units() -> None:
    model = Net()
    units = CoupledUnits(model, couplings(model))
    values = [torch.rand_like(layer.parameter) for layer in units.layers]
    found = units.reduce(values)
    for unit in range(units.count):
        kept = torch.ones(units.count, dtype=torch.bool)
        kept[unit] = False
        masks = units.expand(kept)
        twice = values[[x.name for x in units.layers].index("second.weight")]
        expected = torch.stack([v[~m].sum() for v, m in zip(values, masks, strict=True)]).sum()
        expected = expected + (twice[unit, unit].sum() if unit < 6 else 0)
        torch.testing.assert_close(found[unit], expected)
    batched = units.reduce([torch.stack([v, 2 * v]) for v in values])
    torch.testing.assert_close(batched, torch.stack([found, 2 * found]))
    assert units.sizes.sum() == sum(t.parameter.numel() for c in couplings(model) for t in c.ties)


def test_evolution_runs_on_them_and_is_no_worse_than_its_criteria() -> None:
    model = Net().eval()
    x = torch.randn(64, 1, 4, 4)
    problem = Problem(model, x, divergence="mse", holdout=0, units=CoupledUnits(model, couplings(model)))
    search = DirectedEvolution(
        ("magnitude", "activation", "fisher"), population=8, generations=2, swaps=Swaps(rounds=4)
    )
    kept = search.evolve(problem, problem.eligible, 5, problem.eligible)
    assert int((~kept).sum()) == 5
    for name in (Magnitude(), *search.criteria):
        assert not isinstance(name, str)
        other = problem.select(name(problem, problem.eligible, 5), problem.eligible, 5)
        assert problem(kept) <= problem(other)


def test_what_does_not_fit_is_refused() -> None:
    model, other = Net(), Net()
    six = torch.arange(6)
    good = Tie(model.norm.weight, six)
    for coupling, error, match in [
        (Coupling("a", 6, (Tie(other.norm.weight, six),)), SelectionError, "not the model's"),
        (Coupling("a", 6, (Tie(model.norm.weight, torch.arange(5)),)), ArgumentError, "broadcast"),
        (Coupling("a", 6, (Tie(model.norm.weight, six.float()),)), ArgumentError, "int64"),
        (Coupling("a", 5, (good,)), ArgumentError, "expected -1 to 4"),
        (Coupling("a", 6, ()), ArgumentError, "no parameter"),
        (Coupling("a", 0, ()), SelectionError, "no unit"),
    ]:
        with pytest.raises(error, match=match):
            CoupledUnits(model, [coupling])
    units = CoupledUnits(model, [Coupling("a", 6, (good,))])
    with pytest.raises(ArgumentError, match=r"expected torch.bool \(6,\)"), units.zeroed(torch.ones(5)):
        pass
    with pytest.raises(ArgumentError, match="only masks"):
        units.expand(torch.ones(6))
    with pytest.raises(ArgumentError, match="stand for granularity"):
        Problem(model.eval(), torch.randn(2, 1, 4, 4), units=units, granularity="channel")
    with pytest.raises(ArgumentError, match="of `model` itself"):
        Problem(other.eval(), torch.randn(2, 1, 4, 4), units=units)
