"""`quantize(rounding="compensated")`: smaller files, every kind of layer, nothing left behind."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from de_plugin import Problem
from de_plugin.errors import ArgumentError, DEWarning
from de_plugin.quantize import Compensated, QuantizationReport, quantize
from de_plugin.quantize.layerwise import CompensatedRates
from de_plugin.quantize.rates import Rates
from de_plugin.quantize.student import Student
from tests.quantize.small import QUICK, data, problem, pruned, quick, same, state, teacher


def smaller(model: nn.Module, **options: Any) -> QuantizationReport:
    return quick(model, rounding="compensated", **options)


@pytest.mark.parametrize("size", [500, 700])
def test_less_divergence_at_equal_bytes(size: int, real_coder: None) -> None:
    alone = quick(pruned(), target_bytes=size, levels=None)
    model = pruned()
    report = smaller(model, target_bytes=size)
    assert report.bytes <= size
    assert report.divergence < 0.8 * alone.divergence
    values = dict(model.named_parameters())
    for name, old in pruned().named_parameters():
        assert torch.equal(values[name], report.quantization[name].dequantize())
        if name.endswith("weight"):
            assert not bool((values[name][old == 0] != 0).any())


def test_a_dense_network_is_pruned_on_the_way() -> None:
    report = smaller(teacher(), max_divergence=0.2, codebooks=())
    assert report.divergence <= 0.2
    assert sum(x.zeroed for x in report.layers) > 100


def test_a_loss_is_kept() -> None:
    x, y = data(2000)

    def wrong(model: nn.Module) -> float:
        with torch.no_grad():
            return 100 * float((model(x).argmax(1) != y).float().mean())

    model = pruned()
    report = smaller(model, max_loss=4.0, metric=wrong)
    assert report.loss == wrong(model) <= wrong(teacher()) + 4.0
    assert report.bytes < quick(pruned(), max_loss=4.0, metric=wrong, levels=None).bytes


class Mixed(nn.Module):
    """One layer of each kind that has a design matrix of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.one = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.two = nn.Conv2d(1, 6, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.out = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embedding(x)
        y = y + self.attention(y, y, y)[0]
        y = torch.relu(self.one(y.transpose(1, 2)))
        y = torch.relu(self.norm(self.two(y[:, None])))
        found: Tensor = self.out(torch.relu(self.up(y)).mean((2, 3)))
        return found


def test_every_kind_of_layer_and_nothing_left_behind() -> None:
    model = Mixed().eval()
    before = state(model)
    asked = Problem(model, torch.randint(20, (160, 7), generator=torch.Generator().manual_seed(1)))
    student = Student(asked)
    rates = CompensatedRates.around(Rates.of(student), Compensated(samples=100))
    biases = student.quantized_biases()
    genome = torch.zeros(rates.genes).double().numpy()
    fine = rates.quantization(genome, -12.0, biases)
    coarse = rates.quantization(genome, 0.0, biases)
    assert same(state(model), before)
    assert set(fine) == {part.name for part in student.parts} | set(biases)
    starts: dict[str, list[int]] = {}
    for number, start in sorted(rates.aims):
        starts.setdefault(student.parts[number].name, []).append(start)
    assert starts == {
        "attention.in_proj_weight": [0, 8, 16],
        "attention.out_proj.weight": [0],
        "one.weight": [0, 4],
        "two.weight": [0],
        "up.weight": [0, 2],
        "out.weight": [0],
    }
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        hook = model.two.register_forward_hook(lambda m, i, o: seen.update(two=o))
        assert rates.batch is not None
        model(rates.batch.inputs)
        hook.remove()
    two = next(n for n, part in enumerate(student.parts) if part.name == "two.weight")
    torch.testing.assert_close(rates.aims[two, 0], seen["two"].movedim(1, -1).flatten(0, -2))
    assert student.divergence(fine, asked.held_back) < student.divergence(coarse, asked.held_back)
    assert student.size(coarse) < student.size(fine)
    for name, quantized in fine.items():
        assert quantized.symbols.shape == before[name].shape
    again = rates.quantization(genome, 0.0, biases)
    assert all(torch.equal(again[name].symbols, q.symbols) for name, q in coarse.items())


def test_shared_weights_and_exact_biases() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), shared).eval()
    bias = shared.bias.detach().clone()
    report = quantize(model, torch.randn(80, 6), bits=4, search=QUICK, rounding="compensated", biases="exact")
    assert list(report.quantization) == ["0.weight"]
    assert torch.equal(shared.bias, bias)
    assert torch.equal(shared.weight, report.quantization["0.weight"].dequantize())


class Routed(nn.Module):
    """Samples take one of two branches, by what a layer with levels says; a third is never taken."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate = nn.Linear(12, 3)
        self.branches = nn.ModuleList([nn.Linear(12, 6) for _ in range(3)])
        self.dead = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 6))
        with torch.no_grad():
            self.gate.bias[2] = -100.0
            self.dead.get_parameter("0.bias").fill_(-1e3)

    def forward(self, x: Tensor) -> Tensor:
        where = self.gate(x).argmax(1)
        y: Tensor = self.dead(x)
        for n, branch in enumerate(self.branches):
            y = y.index_add(0, (where == n).nonzero()[:, 0], branch(x[where == n]))
        return y


def test_layers_that_see_other_samples_or_none() -> None:
    model = Routed().eval()
    x = torch.randn(300, 12, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DEWarning)
        report = quantize(
            model, x, bits=3, search=QUICK, rounding="compensated", codebooks=(), weighting="none"
        )
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, report.quantization[name].dequantize())
    assert bool(model.get_parameter("branches.0.weight").any())
    assert bool(model.get_parameter("branches.2.weight").any())


def test_biases_move_once() -> None:
    asked = problem()
    student = Student(asked)
    rates = CompensatedRates.around(Rates.of(student), Compensated())
    genome = torch.zeros(rates.genes).double().numpy()
    first = rates.quantization(genome, 1.0, student.quantized_biases())
    again = rates.quantization(genome, 1.0, {n: q for n, q in first.items() if n.endswith("bias")})
    assert all(torch.equal(first[n].dequantize(), again[n].dequantize()) for n in first)


def test_all_samples_count_whatever_the_batches() -> None:
    x = data(600)[0].sort(0).values
    model = pruned()
    sizes = []
    for batch_size, memory in ((16, 2 << 30), (256, 2 << 30), (256, 100 * 2 * 4 * 68)):
        student = Student(Problem(model, x, batch_size=batch_size, evaluate="serial"))
        rates = CompensatedRates.around(Rates.of(student), Compensated(memory=memory))
        assert rates.batch is not None
        sizes.append(rates.batch.size)
    assert sizes[:2] == [540, 540]
    assert sizes[2] == 100


def test_samples_that_do_not_stack_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    batches = [torch.randn(1, n, 4) for n in range(2, 12)]
    with pytest.raises(ArgumentError, match="pad them alike, or use rounding='nearest'"):
        quantize(model, batches, bits=4, rounding="compensated", search=QUICK)


def test_wide_layers_are_rounded_to_the_nearest() -> None:
    student = Student(problem())
    rates = CompensatedRates.around(Rates.of(student), Compensated(widest=24))
    assert sorted({number for number, _ in rates.aims}) == [0, 2]


@pytest.mark.parametrize("weighting", ["none", "activations"])
def test_other_weights_of_errors(weighting: Any) -> None:
    assert smaller(pruned(), bits=4, weighting=weighting, codebooks=()).divergence < 0.5


def test_levels_may_be_trained_afterwards() -> None:
    assert "levels" in smaller(pruned(), bits=3, recovery="levels", codebooks=()).curve[-1].name


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rounding": "up"}, "rounding='up': expected 'nearest', 'compensated'"),
        ({"rounding": "compensated", "recovery": "distill"}, "use recovery='levels' or rounding='nearest'"),
    ],
)
def test_arguments_that_cannot_work(options: Any, match: str) -> None:
    before, model = state(pruned()), pruned()
    with pytest.raises(ArgumentError, match=match):
        quantize(model, data(), bits=4, **options)
    assert same(before, state(model))


@pytest.mark.parametrize("options", [{"samples": 0}, {"sweeps": -1}, {"ridge": 0.0}, {"rounds": 0}])
def test_numbers_out_of_range(options: Any) -> None:
    with pytest.raises(ArgumentError, match=next(iter(options))):
        Compensated(**options)


def test_importance_of_outputs_is_that_of_their_weights() -> None:
    asked = problem()
    student = Student(asked)
    rates = CompensatedRates.around(Rates.of(student), Compensated())
    first = student.parts[0]
    assert first.importance is not None
    energy = float(data()[0].square().mean())
    ratio = rates.costs[0, 0] * energy / first.importance.mean(1)
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0.1, atol=0.0)
