"""Laws of units: adjoint maps, patterns, shared parameters and tentative zeroing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import de_plugin
from de_plugin.assess.granularity import NM, Block, Granularity, Weight, granularity
from de_plugin.assess.units import ParameterUnits, Units
from de_plugin.errors import ArgumentError, DEWarning, SelectionError

MODULES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(8, 6),
    "conv1d": lambda: nn.Conv1d(8, 6, 3, groups=2),
    "conv2d": lambda: nn.Conv2d(8, 4, (3, 2)),
    "conv3d": lambda: nn.Conv3d(4, 2, 2),
    "transposed": lambda: nn.ConvTranspose2d(8, 6, (2, 3), groups=2),
    "transposed1d": lambda: nn.ConvTranspose1d(8, 4, 3),
    "embedding": lambda: nn.Embedding(12, 4),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "cross": lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=12),
}
GRANULARITIES = ["weight", "kernel", "channel", "2:4", "1:2", "1x4", "3x5", "4x4"]


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(MODULES)),
    spec=st.sampled_from(GRANULARITIES),
    lead=st.sampled_from([(), (3,), (2, 3)]),
    seed=st.integers(0, 1000),
)
def test_reduce_is_the_adjoint_of_expand(name: str, spec: str, lead: tuple[int, ...], seed: int) -> None:
    units = ParameterUnits(MODULES[name](), spec)
    draw = torch.Generator().manual_seed(seed)
    u = torch.randn(*lead, units.count, generator=draw, dtype=torch.float64)
    shapes = [layer.parameter.shape for layer in units.layers]
    values = [torch.randn(*lead, *s, generator=draw, dtype=torch.float64) for s in shapes]
    spread = units.expand(u)
    assert [x.shape for x in spread] == [(*lead, *s) for s in shapes]
    left = (u * units.reduce(values)).sum(-1)
    right = sum((x * v).flatten(len(lead)).sum(-1) for x, v in zip(spread, values, strict=True))
    torch.testing.assert_close(left, torch.as_tensor(right))
    torch.testing.assert_close(units.reduce(spread), u * units.sizes.double())


@pytest.mark.parametrize("spec", GRANULARITIES)
@pytest.mark.parametrize("name", MODULES)
def test_units_partition_the_weights(name: str, spec: str) -> None:
    units = ParameterUnits(MODULES[name](), spec)
    assert isinstance(units, Units)
    assert units.count == len(units.sizes) == len(units.layer_of)
    assert int(units.sizes.sum()) == sum(layer.parameter.numel() for layer in units.layers)
    assert bool((units.sizes > 0).all())
    numbers = units.expand(torch.arange(units.count))
    assert torch.equal(torch.cat([n.flatten() for n in numbers]).unique(), torch.arange(units.count))


@pytest.mark.parametrize("name", MODULES)
def test_canonical_and_native_are_inverse(name: str) -> None:
    for layer in ParameterUnits(MODULES[name]()).layers:
        there = layer.canonical(layer.parameter.detach())
        assert there.shape == layer.shape
        assert torch.equal(layer.native(there), layer.parameter)


@pytest.mark.parametrize(("kind", "groups"), [(nn.Conv2d, 2), (nn.ConvTranspose2d, 2), (nn.Linear, 1)])
def test_a_channel_is_one_output(kind: type[nn.Module], groups: int) -> None:
    torch.manual_seed(0)
    model = kind(4, 6) if kind is nn.Linear else kind(4, 6, 3, groups=groups)
    units = ParameterUnits(model, "channel")
    x = torch.randn(2, 4) if kind is nn.Linear else torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        full = model(x)
        for channel in range(6):
            kept = torch.ones(6, dtype=torch.bool)
            kept[channel] = False
            with units.zeroed(kept):
                out = model(x)
            assert bool((out[:, channel] == 0).all())
            torch.testing.assert_close(out[:, kept], full[:, kept])


def test_groups_of_n_to_m_are_consecutive_inputs() -> None:
    units = ParameterUnits(nn.Conv2d(4, 2, 2), NM(2, 4))
    numbers = units.expand(torch.arange(units.count))[0]
    assert torch.equal(numbers[0, :, 0, 0], torch.arange(4))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.again(self.second(self.first(x)))
        return y


def test_shared_parameters_count_once() -> None:
    units = ParameterUnits(Shared())
    assert [layer.name for layer in units.layers] == ["first.weight"]
    assert set(units.layers[0].aliases) == {"second.weight", "again.weight"}
    assert units.count == 16


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], [], ["0", "2", "3"]),
        (["2"], [], ["2"]),
        (["3.weight"], [], ["3"]),
        ([nn.Linear], [], ["2", "3"]),
        ([nn.Linear], ["3*"], ["2"]),
        ([], [nn.Conv2d], ["2", "3"]),
        (["[23]"], [], ["2", "3"]),
    ],
)
def test_patterns(include: list[str], exclude: list[str], expected: list[str]) -> None:
    units = ParameterUnits(network(), include=include, exclude=exclude)
    assert [layer.name for layer in units.layers] == [f"{n}.weight" for n in expected]


def test_patterns_that_match_nothing_are_refused_with_a_hint() -> None:
    with pytest.raises(SelectionError, match="matches none"):
        ParameterUnits(network(), include=["decoder.*"])
    with pytest.raises(SelectionError, match="exclude"):
        ParameterUnits(network(), exclude=[nn.Embedding])
    with pytest.raises(ArgumentError, match="expected a list"):
        ParameterUnits(network(), include="2")
    with pytest.raises(SelectionError, match="no prunable units"):
        ParameterUnits(network(), exclude=["*"])
    with pytest.raises(SelectionError, match="no prunable units"):
        ParameterUnits(nn.Sequential(nn.ReLU()))


def masked(*modules: str) -> nn.Sequential:
    model = network()
    for name in modules:
        torch_prune.l1_unstructured(model.get_submodule(name), "weight", amount=0.5)
    return model


@pytest.mark.parametrize("modules", [("0", "2", "3"), ("2",)])
@pytest.mark.parametrize("spec", ["weight", "channel", "1:2"])
def test_masks_of_torch_are_refused_until_they_are_removed(modules: tuple[str, ...], spec: str) -> None:
    model = masked(*modules)
    with pytest.raises(SelectionError, match=rf"to {', '.join(modules)}, .*de_plugin\.remove\(model\)"):
        ParameterUnits(model, spec)
    de_plugin.remove(model)
    units = ParameterUnits(model)
    assert [layer.name for layer in units.layers] == ["0.weight", "2.weight", "3.weight"]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], ["2"], ["0", "3"]),
        ([], ["2.weight"], ["0", "3"]),
        ([], [nn.Linear], ["0"]),
        (["3"], [], ["3"]),
    ],
)
def test_masks_of_torch_may_stay_where_nothing_is_pruned(
    include: list[Any], exclude: list[Any], expected: list[str]
) -> None:
    units = ParameterUnits(masked("2"), include=include, exclude=exclude)
    assert [layer.name for layer in units.layers] == [f"{n}.weight" for n in expected]
    with pytest.raises(SelectionError, match="attached to 2,"):
        ParameterUnits(masked("2"), include=["2"])
    with pytest.raises(SelectionError, match="no prunable units"):
        ParameterUnits(masked("2"), exclude=["*"])


def test_masks_of_torch_are_found_on_the_model_itself_on_attention_and_on_tied_weights() -> None:
    model = nn.Linear(4, 3)
    torch_prune.l1_unstructured(model, "weight", amount=0.5)
    with pytest.raises(SelectionError, match="attached to Linear,"):
        ParameterUnits(model)
    attention = nn.Sequential(nn.MultiheadAttention(8, 2))
    torch_prune.l1_unstructured(attention[0], "in_proj_weight", amount=0.5)
    with pytest.raises(SelectionError, match="attached to 0,"):
        ParameterUnits(attention)
    tied = Shared()
    torch_prune.l1_unstructured(tied.second, "weight", amount=0.5)
    assert tied.second.weight_orig is tied.first.weight
    with pytest.raises(SelectionError, match="attached to second,"):
        ParameterUnits(tied)


def test_parameters_that_only_look_like_masks_are_pruned() -> None:
    model = nn.Linear(4, 3)
    model.register_parameter("weight_orig", nn.Parameter(torch.ones(3, 4)))
    model.register_buffer("weight_mask", torch.ones(3, 4))
    assert ParameterUnits(model).count == 12


def test_layers_that_do_not_divide_stay_dense_with_a_warning() -> None:
    with pytest.warns(DEWarning, match="stay dense"):
        units = ParameterUnits(network(), "2:4")
    assert [layer.name for layer in units.layers] == ["2.weight", "3.weight"]


@pytest.mark.parametrize("spec", ["weight", "channel"])
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_zeroed_restores_bit_exactly(spec: str, error: type[BaseException] | None) -> None:
    model = network()
    weight = model[2].weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        raw = weight.view(torch.int32)
        raw[0, 0] = 0x7FC0BEEF  # a NaN with a payload
        weight[1, 0] = -0.0
        weight[2, 0] = float("inf")
    units = ParameterUnits(model, spec)
    before = {k: v.clone().view(torch.int32) for k, v in model.state_dict().items()}
    kept = torch.rand(units.count, generator=torch.Generator().manual_seed(0)) > 0.5
    masks = units.masks(kept)

    def ask() -> None:
        with units.zeroed(kept):
            for name, mask in masks.items():
                assert bool((model.state_dict()[name][~mask] == 0).all())
                same = model.state_dict()[name].view(torch.int32) == before[name]
                assert bool(same[mask].all())
            if error is not None:
                raise error

    if error is None:
        ask()
    else:
        with pytest.raises(error):
            ask()
    after = model.state_dict()
    assert all(torch.equal(v, after[k].view(torch.int32)) for k, v in before.items())


@pytest.mark.parametrize("kept", [torch.ones(3, dtype=torch.bool), torch.ones(58)])
def test_zeroed_refuses_what_is_no_mask(kept: Tensor) -> None:
    units = ParameterUnits(network())
    with pytest.raises(ArgumentError, match="kept"), units.zeroed(kept):
        pass


def test_sparsity_counts_weights() -> None:
    units = ParameterUnits(nn.Linear(5, 3), Block(2, 2))
    kept = torch.ones(units.count, dtype=torch.bool)
    kept[-1] = False  # the corner tile holds a single weight
    assert units.weight_sparsity(kept) == pytest.approx(1 / 15)


@pytest.mark.parametrize("name", ["weight", "kernel", "channel", "2:4", "3x5"])
def test_names_of_granularities(name: str) -> None:
    found = granularity(name)
    assert found.name == name
    assert isinstance(found, Granularity)
    assert granularity(found) is found
    shape = torch.Size((6, 8, 3))
    assert found.reduce(torch.ones(shape), shape).sum() == math.prod(shape)


@pytest.mark.parametrize("wrong", ["filter", "4:2", "0x3", 7, Weight])
def test_unknown_granularities_are_refused(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="granularity"):
        granularity(wrong)
