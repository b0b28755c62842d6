"""A record of the student's run: every call in order, what it gave, and whether that has been overwritten."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from de_plugin import Problem
from de_plugin.assess.attention import plain_attention
from de_plugin.assess.candidates import Flipped
from de_plugin.assess.population import Population
from de_plugin.assess.record import Record, flexible, version
from de_plugin.assess.recorder import may_overwrite, overwriting, record
from de_plugin.assess.serial import Serial

WEIGHT = nn.Parameter(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
Operation = Callable[[Tensor, Tensor], Tensor]


def iadd(a: Tensor, b: Tensor) -> Tensor:
    a += b.clone()
    return a


def write(a: Tensor, b: Tensor) -> Tensor:
    a[0] = b[1].clone()
    return a


PURE: dict[str, Operation] = {
    "add": lambda a, b: a + b,
    "product": lambda a, b: F.linear(a, WEIGHT),
    "view": lambda a, b: a.contiguous().view(9).view(3, 3),
    "transposed": lambda a, b: b.T,
    "split": lambda a, b: a.split([1, 2])[1].repeat(2, 1)[:3],
}
IN_PLACE: dict[str, Operation] = {
    "+=": iadd,
    "[]=": write,
    "relu_": lambda a, b: F.relu(a, inplace=True),
    "row": lambda a, b: a[1].mul_(2).expand(3, 3).clone(),
}


Line = tuple[str, int, int]


def program(lines: list[Line]) -> list[tuple[Tensor, Any]]:
    """Run operations on earlier results; return what each gave, and its values at that moment."""
    x = torch.arange(-4.0, 5).reshape(3, 3)
    found = [(x, x.tolist())]
    for name, first, second in lines:
        operation = {**PURE, **IN_PLACE}[name]
        y = operation(found[first % len(found)][0], found[second % len(found)][0])
        found.append((y, y.tolist()))
    return found[1:]


def programs(names: list[str]) -> st.SearchStrategy[list[Line]]:
    line = st.tuples(st.sampled_from(names), st.integers(0, 9), st.integers(0, 9))
    return st.lists(line, min_size=1, max_size=8)


def ran(lines: list[Line], copy: bool) -> Record:
    found = record(lambda: program(lines), {id(WEIGHT): 0}, copy)
    with torch.no_grad():
        again = program(lines)
    for (_, values), (_, expected) in zip(found.outputs, again, strict=True):
        torch.testing.assert_close(torch.tensor(values), torch.tensor(expected))
    return found


@settings(deadline=None)
@given(lines=programs([*PURE, *IN_PLACE]))
def test_what_is_no_longer_what_was_returned_is_known_to_be_overwritten(lines: list[Line]) -> None:
    found = ran(lines, copy=False)
    for y, values in found.outputs:
        steps = [step for step in found.steps if step.result is y]
        assert steps
        if y.tolist() != values:
            assert steps[0].overwritten
            assert found.in_place


@settings(deadline=None)
@given(lines=programs([*PURE, *IN_PLACE]))
def test_copies_of_products_are_what_was_returned(lines: list[Line]) -> None:
    found = ran(lines, copy=True)
    assert not found.in_place
    kept = [step.result.tolist() for step in found.steps if step.result is not None]
    returned = zip(lines, found.outputs, strict=True)
    assert kept == [values for (name, _, _), (_, values) in returned if name == "product"]


@settings(deadline=None)
@given(lines=programs([*PURE]))
def test_what_is_never_overwritten_is_kept(lines: list[Line]) -> None:
    found = ran(lines, copy=False)
    assert not found.in_place
    for y, values in found.outputs:
        assert y.tolist() == values
        assert any(step.result is y for step in found.steps)
    assert all(step.filled == -1 for step in found.steps)
    first = next((n for n, step in enumerate(found.steps) if step.work), None)
    assert found.first == ({} if first is None else {0: first})


def test_what_other_tensors_are_written_into_is_marked_with_the_step_that_does_it() -> None:
    def run() -> Tensor:
        base = torch.zeros(4)  # 0
        part = base[:2]  # 1
        other = torch.ones(2)  # 2
        part += other  # 3
        base.relu_()  # 4: with nothing else
        other[0] = base[3]  # 5 and 6
        return base

    for copy in (False, True):
        steps = record(run, {}, copy).steps
        assert [step.filled for step in steps] == [3, 3, 6, -1, -1, -1, -1]


def test_a_layer_is_first_used_where_its_weight_is() -> None:
    first, second, unused = nn.Linear(3, 3), nn.Conv1d(1, 1, 1), nn.Linear(3, 3)
    layers = {id(m.weight): n for n, m in enumerate((second, first, unused))}

    def run() -> Tensor:
        y = first(torch.ones(2, 3))
        y = second(y[:, None]).squeeze(1)
        z: Tensor = first(y)
        return z @ first.weight.T

    found = record(run, layers, False)
    assert found.first == {1: 1, 0: 3}
    weights = [9.0 if n in (1, 5, 6) else 1.0 if n == 3 else 0.0 for n in range(8)]
    assert [step.work > 0 for step in found.steps] == [w > 0 for w in weights]
    assert found.work_from(0) > found.work_from(3) > found.work_from(4) > found.work_from(7) == 0


def test_sizes_are_counted() -> None:
    found = record(lambda: torch.ones(2, 8).sum(1).reshape(2, 1) * torch.ones(3), {}, False)
    assert [step.numel for step in found.steps] == [16, 2, 2, 3, 6]
    assert [found.largest_from(n) for n in range(6)] == [16, 6, 6, 6, 6, 1]
    assert found.bytes == 4 * (16 + 2 + 3 + 6)  # a view takes no room of its own


def test_gradients_are_off_and_the_outputs_are_the_models_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.randn(4, 2, 5, 6)
    found = record(lambda: model(x), {}, False)
    assert not found.outputs.requires_grad
    torch.testing.assert_close(found.outputs, model(x).detach())


@settings(deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=4, max_size=4),
    order=st.permutations(range(4)),
    data=st.data(),
)
def test_flexible_functions_give_the_same_for_any_layout(
    shape: list[int], order: list[int], data: st.DataObject
) -> None:
    x = torch.randn(shape)
    laid = x.permute(order).contiguous().permute([order.index(d) for d in range(4)])
    calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (torch.Tensor.view, (shape[0], -1)),
        (torch.Tensor.view, (torch.Size([-1]),)),
        (torch.Tensor.view_as, (torch.empty(x.numel(), 1),)),
        (F.adaptive_avg_pool2d, (1,)),
        (F.adaptive_avg_pool2d, ((1, 1),)),
        (F.adaptive_avg_pool2d, ((2, 1),)),
    ]
    func, rest = data.draw(st.sampled_from(calls))
    found = flexible(func, (laid, *rest), {})(laid, *rest)
    torch.testing.assert_close(found, func(x, *rest))


def test_other_functions_are_left_alone() -> None:
    x = torch.zeros(2, 2)
    assert flexible(torch.Tensor.view, (x, torch.int32), {}) is torch.Tensor.view
    assert flexible(torch.Tensor.view, (x,), {"dtype": torch.int32}) is torch.Tensor.view
    assert flexible(torch.add, (x, x), {}) is torch.add
    model = nn.Linear(2, 2)
    found = record(lambda: model(x).view(size=(4,)).view(dtype=torch.int32), {}, False)
    assert found.outputs.shape == (4,)


def test_attributes_are_no_steps_unless_they_give_values() -> None:
    x = torch.zeros(2, 3)
    found = record(lambda: (x.shape, x.dtype, x.device, x.is_sparse, x.grad, x.requires_grad), {}, False)
    assert found.steps == []
    found = record(lambda: (x.T, x.mT, x.H, x.mH, x.data), {}, False)
    assert [tuple(step.result.shape) for step in found.steps] == [(3, 2)] * 4 + [(2, 3)]


def test_what_is_made_in_inference_mode_may_have_been_overwritten() -> None:
    def run() -> Tensor:
        with torch.inference_mode():
            return torch.ones(2) + 1

    assert record(run, {}, False).in_place
    assert not record(run, {}, True).in_place
    assert version(run()) == -1
    assert version(torch.ones(2).add_(1)) == 1


@pytest.mark.parametrize("enabled", [True, False])
def test_fused_attention_is_off_for_a_while(enabled: bool) -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        with plain_attention():
            assert not torch.backends.mha.get_fastpath_enabled()
        assert torch.backends.mha.get_fastpath_enabled() == enabled
        with pytest.raises(ZeroDivisionError), plain_attention():
            _ = 1 / 0
        assert torch.backends.mha.get_fastpath_enabled() == enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_the_weights_inside_attention_are_seen() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    named = [(n, p) for n, p in layer.named_parameters() if p.dim() > 1]
    found = record(lambda: layer(torch.randn(2, 3, 4)), {id(p): n for n, (_, p) in enumerate(named)}, False)
    assert sorted(found.first) == list(range(len(named)))
    by_name = {name: found.first[n] for n, (name, _) in enumerate(named)}
    order = ["self_attn.in_proj_weight", "linear1.weight", "linear2.weight"]
    assert [by_name[x] for x in order] == sorted(by_name[x] for x in order)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_batch_norm_gives_what_torch_gives(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    for _ in range(5):
        norm(100 + 3 * torch.randn(16, 3, 4, 4))
    norm.eval()
    x = (100 + 3 * torch.randn(4, 3, 4, 4)).to(dtype)
    with torch.no_grad():
        found = record(lambda: norm(x), {}, False).outputs
        torch.testing.assert_close(found, norm(x))


class Reads(nn.Module):
    """A product and a batch norm, and something that reads them."""

    def __init__(self, use: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.use = nn.Linear(3, 3), nn.BatchNorm1d(3), use

    def forward(self, x: Tensor) -> Any:
        product = self.first(x)
        return self.use(product, self.norm(product))


@pytest.mark.parametrize(
    ("use", "spent"),
    [
        (lambda p, n: F.relu(n), True),
        (lambda p, n: n.relu()[: n.size(0)] + p, True),
        (lambda p, n: torch.relu(n) + n, False),
        (lambda p, n: (F.leaky_relu(n, 0.2, False), n), False),
        (lambda p, n: F.relu(n[:2]), False),
        (lambda p, n: F.relu(n.view(9)) + n.sum(), False),
        (lambda p, n: F.relu(p) + n + n.sum(), False),
        (lambda p, n: F.relu(F.dropout(n, training=False)) + n.mean(), False),
    ],
)
def test_only_what_nothing_else_reads_may_be_overwritten(
    use: Callable[[Tensor, Tensor], Any], spent: bool
) -> None:
    model, x = Reads(use).eval(), torch.randn(3, 3)
    found = record(lambda: model(x), {}, copy=False)
    assert any(step.spends > 0 for step in found.steps) == spent
    assert all(step.spends == -1 for step in record(lambda: model(x), {}, copy=True).steps)


def doubled(x: Tensor) -> Tensor:
    return x * 2


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    unseen: Callable[[Tensor], Tensor] = torch.jit.script(doubled)


@pytest.mark.parametrize(
    ("use", "same"),
    [
        (lambda p, n: F.relu(n) + p, True),
        (lambda p, n: F.relu(n) + unseen(p), True),
        (lambda p, n: F.relu(n) + unseen(n), False),
        (lambda p, n: (unseen(n), F.leaky_relu(n, 0.1)), True),
        (lambda p, n: (F.leaky_relu(n, 0.1), unseen(n)), False),
    ],
)
def test_what_reads_unseen_is_found_out(use: Callable[[Tensor, Tensor], Any], same: bool) -> None:
    model, x = Reads(use).eval(), torch.randn(3, 3)
    found = record(lambda: model(x), {}, copy=False)
    assert max(step.spends for step in found.steps) > 0
    assert may_overwrite(lambda: model(x), {}, found) == same


def test_what_is_returned_in_any_container_is_not_overwritten() -> None:
    model = Reads(lambda p, n: collections.deque([n, F.relu(n)])).eval()
    x = torch.randn(3, 3)
    found = record(lambda: model(x), {}, copy=False)
    assert all(step.spends <= 0 for step in found.steps)


class Deep(nn.Module):
    """Two layers around something that can overwrite what the first gives."""

    def __init__(self, use: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.use = nn.Linear(16, 32), nn.Linear(32, 8), use

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.use(self.first(x)))
        return out


@pytest.mark.parametrize(
    "use",
    [
        F.relu,
        torch.relu,
        lambda x: F.leaky_relu(x, negative_slope=0.3),
        lambda x: F.leaky_relu(x, 0.2, False),
        lambda x: F.relu(input=x) + 1,
        lambda x: F.relu(x) + unseen(x),
        lambda x: F.relu(x) - x,
    ],
)
def test_values_are_right_where_outputs_are_overwritten(
    use: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem(Deep(use).eval(), torch.randn(40, 16), divergence="mse", holdout=0, evaluate="serial")
    flips = tuple(torch.tensor([n, 100 + n, 520 + n]) for n in range(6))
    sets = Flipped(problem.kept, flips)
    expected = Serial(problem)(sets, problem.search)
    overwritten = []

    def watched(func: Any, args: Any, kwargs: Any) -> Any:
        found = overwriting(func, args, kwargs)
        overwritten.append(found[0] is not func)
        return found

    monkeypatch.setattr("de_plugin.assess.substitute.overwriting", watched)
    torch.testing.assert_close(Population(problem).side_by_side(sets, problem.search), expected)
    reads_twice = use(torch.ones(1)).item() in (3.0, 0.0)
    assert any(overwritten) != reads_twice
