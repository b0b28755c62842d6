"""What one layer gives for many candidates at once is what it gives for each of them alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from de_plugin.assess.changes import Channels, Product, Weights
from de_plugin.assess.units import ParameterUnits

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
FUNCTIONS: list[Callable[..., Tensor]] = [F.conv1d, F.conv2d, F.conv3d]
pytestmark = pytest.mark.filterwarnings("ignore:Using padding")


def laid_out(x: Tensor, order: list[int]) -> Tensor:
    """Return the same tensor with its dimensions in another order in memory."""
    order = [d for d in order if d < x.dim()]
    return x.permute(order).contiguous().permute([order.index(d) for d in range(x.dim())])


@st.composite
def uses(draw: st.DrawFn) -> tuple[nn.Module, Product, Tensor]:
    """Draw a layer, one use of it, and its input: of one sample or several, in any memory layout."""
    torch.manual_seed(draw(st.integers(0, 99)))
    dims, bias = draw(st.integers(0, 3)), draw(st.booleans())
    each = st.tuples(*[st.integers(1, 3)] * dims)
    options: dict[str, Any] = {}
    if dims == 0:
        inputs = draw(st.integers(1, 6))
        layer: nn.Module = nn.Linear(inputs, draw(st.integers(1, 6)), bias=bias)
        x = torch.randn(*draw(st.lists(st.integers(1, 4), max_size=3)), inputs)
    else:
        options["padding"] = draw(st.sampled_from(["same", "valid"]) | each | st.integers(0, 2))
        options["stride"] = 1 if options["padding"] == "same" else draw(each | st.integers(1, 3))
        options["dilation"] = draw(each | st.integers(1, 3))
        options["groups"] = draw(st.sampled_from([1, 1, 2]))
        layer = CONV[dims - 1](4, 6, draw(each), bias=bias, **options)
        x = torch.randn(*draw(st.sampled_from([(3,), (1,), ()])), 4, *[draw(st.integers(7, 9))] * dims)
    x = laid_out(x, draw(st.permutations(range(5))))
    func = F.linear if dims == 0 else FUNCTIONS[dims - 1]
    return layer, Product(func, layer.get_parameter("bias") if bias else None, options), x


def one_by_one(product: Product, xs: list[Tensor], weights: Tensor, biases: list[Tensor | None]) -> Tensor:
    return torch.stack([product(x, w, b) for x, w, b in zip(xs, weights, biases, strict=True)])


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=200, deadline=None)
@given(
    use=uses(),
    candidates=st.integers(1, 4),
    flipped=st.sampled_from([0.0, 0.02, 0.5]),
    zeroed=st.sampled_from([0.0, 0.5]),
    order=st.permutations(range(5)),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_weights(
    use: tuple[nn.Module, Product, Tensor],
    candidates: int,
    flipped: float,
    zeroed: float,
    order: list[int],
    seed: int,
) -> None:
    module, product, x = use
    units = ParameterUnits(module)
    [layer] = units.layers
    dense = layer.parameter.detach()
    random = torch.Generator().manual_seed(seed)
    kept = torch.rand(units.count, generator=random) >= zeroed
    masks = kept ^ (torch.rand(candidates, units.count, generator=random) < flipped)
    one = torch.randint(units.count, (candidates,), generator=random)
    masks[torch.arange(candidates), one] ^= True
    owner, flips = (masks != kept).nonzero(as_tuple=True)
    signs = 1 - 2 * kept[flips].int()
    shaped = masks.reshape(candidates, *dense.shape)
    change = Weights(layer, dense, lambda: shaped, candidates, len(flips), lambda: (owner, flips, signs))
    close(change.weights(), shaped * dense)
    biases = [product.bias] * candidates
    parent = laid_out(product(x, kept.reshape(dense.shape) * dense, product.bias), order)
    before = parent.clone()
    expected = one_by_one(product, [x] * candidates, shaped * dense, biases)
    close(change.from_one(product, x, None), expected)
    close(change.from_one(product, x, parent), expected)
    assert torch.equal(parent, before)
    several = torch.stack([x * (n + 1) for n in range(candidates)])
    close(change.from_many(product, several), one_by_one(product, [*several], shaped * dense, biases))


@settings(deadline=None)
@given(use=uses(), candidates=st.integers(1, 4), order=st.permutations(range(5)), seed=st.integers(0, 99))
@torch.no_grad()
def test_channels(
    use: tuple[nn.Module, Product, Tensor], candidates: int, order: list[int], seed: int
) -> None:
    module, product, x = use
    units = ParameterUnits(module, "channel")
    [layer] = units.layers
    dense, bias = layer.parameter.detach(), layer.bias
    student, *rows = (
        torch.rand(1 + candidates, units.count, generator=torch.Generator().manual_seed(seed)) > 0.4
    )
    kept = torch.stack(rows)
    change = Channels(layer, dense, bias, kept, student)
    weights = dense * kept.reshape(candidates, -1, *[1] * (dense.dim() - 1))
    biases: list[Tensor | None] = [None] * candidates
    if bias is not None:
        biases = [*(bias * kept)]
        close(change.biases(bias), bias * kept)
    close(change.weights(), weights)
    expected = one_by_one(product, [x] * candidates, weights, biases)
    close(change.from_one(product, x, None), expected)
    own = student.reshape(-1, *[1] * (dense.dim() - 1)) * dense
    parent = laid_out(product(x, own, None if bias is None else bias * student), order)
    before = parent.clone()
    close(change.from_one(product, x, parent), expected)
    assert torch.equal(parent, before)
    several = torch.stack([x * (n + 1) for n in range(candidates)])
    close(change.from_many(product, several), one_by_one(product, [*several], weights, biases))
