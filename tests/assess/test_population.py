"""A population measured side by side gives what the serial loop gives: random architectures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from de_plugin.assess.candidates import Candidates, Flipped, Listed, Made
from de_plugin.assess.divergence import Score, leaves
from de_plugin.assess.population import Population
from de_plugin.assess.problem import Problem
from de_plugin.assess.serial import Serial

pytestmark = [pytest.mark.filterwarnings(f"ignore:{said}") for said in (".*stay dense", "Using padding")]
CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MAX = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
MEAN = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
C = 4
"""Channels everywhere, so that any block follows any other."""


class Lambda(nn.Module):
    """Modules, and what is done with them."""

    def __init__(self, fn: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x, *self.parts)


def conv(dims: int, out: int = C, **options: Any) -> nn.Module:
    return CONV[dims - 1](C, out, **{"kernel_size": 3, "padding": 1, **options})


def tied(first: nn.Module, second: nn.Module, what: str = "weight") -> nn.Module:
    setattr(second, what, getattr(first, what))
    return nn.Sequential(first, nn.Sigmoid(), second)


def added_in_place(x: Tensor, inner: nn.Module, shortcut: nn.Module) -> Tensor:
    y: Tensor = inner(x)
    y += shortcut(x)
    return y


def written_in_place(x: Tensor, left: nn.Module, right: nn.Module) -> Tensor:
    y = torch.zeros_like(x)
    y[:, : C // 2] = left(x)
    y[:, C // 2 :] = right(x)
    return y


def viewed(x: Tensor) -> Tensor:
    return x.view(len(x), C, -1).view(x.shape).view_as(x)


def gated(x: Tensor, gate: nn.Module) -> Tensor:
    weight: Tensor = gate(x.flatten(2).mean(-1))
    return x * weight.sigmoid().view(*weight.shape, *[1] * (x.dim() - 2))


BLOCKS: dict[str, Callable[[int], nn.Module]] = {
    "plain": conv,
    "pointwise": lambda d: conv(d, kernel_size=1, padding=0),
    "even": lambda d: conv(d, kernel_size=2, padding="same", dilation=3),
    "strided": lambda d: conv(d, stride=2),
    "dilated": lambda d: conv(d, dilation=2, padding=2, bias=False),
    "grouped": lambda d: conv(d, groups=2),
    "depthwise": lambda d: conv(d, groups=C, stride=2),
    "circular": lambda d: conv(d, padding_mode="circular"),
    "transposed": lambda d: TRANSPOSED[d - 1](C, C, 3, padding=1, groups=2),
    "normed": lambda d: nn.Sequential(conv(d, bias=False), NORM[d - 1](C), nn.ReLU(inplace=True)),
    "leaky": lambda d: nn.Sequential(conv(d), NORM[d - 1](C), nn.LeakyReLU(0.1)),
    "smooth": lambda d: nn.Sequential(conv(d), nn.SiLU(inplace=True)),
    "pooled": lambda d: MAX[d - 1](2, ceil_mode=True),
    "shared": lambda d: nn.Sequential(*[conv(d)] * 2),
    "tied": lambda d: tied(conv(d), conv(d)),
    "biased": lambda d: tied(conv(d), conv(d), "bias"),
    "identity": lambda d: Lambda(lambda x, f: x + f(x), nn.Sequential(conv(d), nn.ReLU(), conv(d))),
    "residual": lambda d: Lambda(added_in_place, nn.Sequential(conv(d), NORM[d - 1](C)), conv(d)),
    "written": lambda d: Lambda(written_in_place, conv(d, 2), conv(d, 2)),
    "concat": lambda d: Lambda(lambda x, a, b: torch.cat([a(x), b(x)], 1), conv(d, 1), conv(d, 3)),
    "viewed": lambda d: Lambda(viewed),
    "gated": lambda d: Lambda(gated, nn.Linear(C, C)),
}


@st.composite
def convolutional(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    dims = draw(st.integers(1, 3))
    torch.manual_seed(draw(st.integers(0, 99)))
    x = torch.randn(draw(st.integers(5, 20)), C, *[draw(st.integers(3, 5)) for _ in range(dims)])
    names = draw(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=4))
    body = nn.Sequential(*[BLOCKS[name](dims) for name in names])
    for module in body.modules():
        if isinstance(module, NORM):
            module.running_mean, module.running_var = torch.randn(C), torch.rand(C) + 0.5
    features = body.eval()(x[:1]).numel()
    head: dict[str, list[nn.Module]] = {
        "view": [Lambda(lambda x: x.view(len(x), -1)), nn.Linear(features, 3)],
        "mean": [MEAN[dims - 1](1), nn.Flatten(), nn.Linear(C, 3)],
        "rows": [Lambda(lambda x: x.movedim(1, -1)), nn.Linear(C, 3)],
    }
    return nn.Sequential(*body, *head[draw(st.sampled_from(sorted(head)))]), x


class Attending(nn.Module):
    """Attention to itself or, if `other`, of queries with other keys and values."""

    def __init__(self, other: bool, bias: bool) -> None:
        super().__init__()
        width = 4 if other else 8
        self.inner = nn.MultiheadAttention(8, 2, bias=bias, kdim=width, vdim=width, batch_first=True)
        self.other = other

    def forward(self, x: Tensor) -> Tensor:
        keys = x[..., :4] if self.other else x
        y: Tensor = self.inner(x, keys, keys)[0]
        return y + x


def factored(x: Tensor, left: nn.Linear, right: nn.Linear) -> Tensor:
    return F.linear(x, F.linear(left.weight, right.weight), right.bias)


encoder = partial(nn.TransformerEncoderLayer, 8, batch_first=True)
TOKENS: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: Attending(False, True),
    "unbiased": lambda: Attending(False, False),
    "cross": lambda: Attending(True, True),
    "encoder": lambda: encoder(2, 12),
    "normed first": lambda: encoder(4, 8, norm_first=True, activation="gelu"),
    "linear": lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.LayerNorm(8)),
    "shared": lambda: nn.Sequential(*[nn.Linear(8, 8)] * 3),
    "tied": lambda: tied(nn.Linear(8, 8), nn.Linear(8, 8, bias=False)),
    "factored": lambda: Lambda(factored, nn.Linear(8, 8), nn.Linear(8, 8)),
}


@st.composite
def sequential(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(draw(st.integers(0, 99)))
    x = torch.randint(8, (draw(st.integers(5, 20)), draw(st.integers(1, 5))))
    names = draw(st.lists(st.sampled_from(sorted(TOKENS)), min_size=1, max_size=3))
    table = nn.Embedding(8, 8)
    heads = [
        nn.Linear(8, 3),
        Lambda(lambda x: F.linear(x, table.weight)),
        Lambda(lambda x: x[:, 0] @ table.weight.T),
        Lambda(lambda x: x @ table.weight.view(64).view(8, 8)),
    ]
    return nn.Sequential(table, *[TOKENS[name]() for name in names], draw(st.sampled_from(heads))), x


def candidates(data: st.DataObject, problem: Problem) -> Candidates:
    """Draw few and many flips of one layer, several layers and none, held in any of the three ways."""
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    units, kept = problem.units, problem.kept
    rows = []
    kinds = {
        "some": 0.02,
        "several": 0.07,
        "many": 0.2,
        "whole": 0.5,
        "one": 0.0,
        "layer": 0.3,
        "nothing": 0.0,
    }
    names = data.draw(st.sampled_from([["whole"], ["one", "nothing"], ["one", "layer"], [*kinds]]))
    for kind in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4)):
        flips = torch.rand(units.count, generator=random) < kinds[kind]
        if kind in ("one", "layer"):  # a candidate for every layer
            for layer in units.layers:
                mine = flips & (units.layer_of == units.layer_of[layer.start])
                mine[torch.randint(layer.start, layer.stop, (1,), generator=random)] = True
                rows.append(kept ^ mine)
        else:
            rows.append(kept ^ flips)
    masks = torch.stack(rows)
    flipped = Flipped(kept, tuple((row != kept).nonzero()[:, 0] for row in masks))
    made = Made(lambda n: masks[n].clone(), tuple(range(len(masks))), masks.shape[1])
    forms: list[Candidates] = [Listed(masks), flipped, made]
    return data.draw(st.sampled_from(forms))


def agreement(outputs: Any, reference: Any) -> Tensor:
    labels = isinstance(reference, Tensor) and not reference.is_floating_point()
    classes = reference if labels else leaves(reference)[0].argmax(-1)
    return (leaves(outputs)[0].argmax(-1) == classes).float().mean()


def distance(outputs: Any, reference: Any) -> float:
    return sum(float((a - b).abs().mean()) for a, b in zip(leaves(outputs), leaves(reference), strict=True))


GRANULARITIES = st.sampled_from(["weight", "2:4", "2x3", "kernel", "channel"])
DIVERGENCES = st.sampled_from(["kl", "js", "mse", "cosine", distance, Score(agreement, "teacher")])
WORKING_SETS = st.sampled_from([1, 1 << 12, 1 << 16, 8 << 20])


def check(data: st.DataObject, model: nn.Module, batches: Any, **options: Any) -> None:
    """Compare with the serial loop, for a student of which some units are zeroed already."""
    options = {"batch_size": 8, "holdout": 0, **options}
    problem = Problem(model.eval(), batches, evaluate="serial", **options)
    problem.kept = torch.rand(problem.units.count) >= data.draw(st.sampled_from([0.0, 0.3, 0.8]))
    population = candidates(data, problem)
    before = [x.clone() for x in (*model.parameters(), *model.buffers())]
    expected = Serial(problem)(population, problem.search)
    fast = Population(problem, data.draw(WORKING_SETS))
    for found in (fast(population, problem.search), fast(population, problem.search)):  # then from memory
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    after = (*model.parameters(), *model.buffers())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@settings(max_examples=150, deadline=None)
@given(net=convolutional() | sequential(), granularity=GRANULARITIES, divergence=DIVERGENCES, data=st.data())
def test_any_architecture(
    net: tuple[nn.Module, Tensor], granularity: str, divergence: Any, data: st.DataObject
) -> None:
    check(data, *net, granularity=granularity, divergence=divergence)


class Several(nn.Module):
    """Two inputs, and outputs of any form."""

    def __init__(self, widths: list[int], form: str) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, widths[0], bias=False), nn.Linear(4, widths[0])
        layers = [m for a, b in pairwise(widths) for m in (nn.ReLU(inplace=True), nn.Linear(a, b))]
        self.body, self.unused = nn.Sequential(*layers), nn.Linear(8, 8)
        self.form = form

    def forward(self, first: Tensor, second: Tensor) -> Any:
        hidden = self.left(first) + self.right(second)
        y = self.body(hidden.clone())
        forms = {
            "tensor": y,
            "tuple": (y, hidden),
            "dict": {"logits": y, "classes": y.argmax(-1)},
            "nested": (y, [None, {"hidden": hidden}], "text"),
        }
        return forms[self.form]


INPUTS: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "dict": lambda a, b, y: {"first": a, "second": b, "labels": y},
    "tuple": lambda a, b, y: ((a, b), y),
    "list of dicts": lambda a, b, y: [({"first": p, "second": q}, r) for p, q, r in cut(a, b, y)],
    "list of tuples": lambda a, b, y: [((p, q), r) for p, q, r in cut(a, b, y)],
}


def cut(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return [tuple(x[a:b] for x in tensors) for a, b in ((0, 7), (7, 8), (8, len(tensors[0])))]


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(st.sampled_from([2, 4, 5, 8]), min_size=1, max_size=3),
    form=st.sampled_from(["tensor", "tuple", "dict", "nested"]),
    inputs=st.sampled_from(sorted(INPUTS)),
    granularity=GRANULARITIES,
    divergence=st.one_of(DIVERGENCES, st.just(Score(agreement))),
    data=st.data(),
)
def test_any_form_of_inputs_and_outputs(
    widths: list[int], form: str, inputs: str, granularity: str, divergence: Any, data: st.DataObject
) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    batches = INPUTS[inputs](torch.randn(21, 8), torch.randn(21, 4), torch.randint(2, (21,)))
    check(data, Several(widths, form), batches, granularity=granularity, divergence=divergence)


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted({*BLOCKS} - {"viewed"})), max_size=2),
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(3, 9)), min_size=2, max_size=4),
    granularity=GRANULARITIES,
    divergence=DIVERGENCES,
    data=st.data(),
)
def test_images_of_several_sizes_that_take_several_paths(
    names: list[str], sizes: list[tuple[int, int]], granularity: str, divergence: Any, data: st.DataObject
) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    branching = Lambda(lambda x, a, b: a(x) if x.shape[-1] > 4 else b(b(x)), conv(2), conv(2, stride=2))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, 3)]
    model = nn.Sequential(*[BLOCKS[n](2) for n in names], branching, *head)
    images = [torch.randn(n, C, size, size) for n, size in sizes]
    check(data, model, images, granularity=granularity, divergence=divergence)
