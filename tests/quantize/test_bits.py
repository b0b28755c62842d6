"""Quantizing a whole network: goals are kept, nothing is worse than uniform, errors leave no trace."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from de_plugin import Budget, Problem
from de_plugin.encode import dumps, loads
from de_plugin.errors import ArgumentError, GradientError, TargetError
from de_plugin.prune.recover import Distillation
from de_plugin.quantize import KMeans, Quantized, RateSearch, Uniform, cost, quantize
from de_plugin.quantize.student import Student
from de_plugin.quantize.trial import applied
from tests.quantize.small import BOOKS, QUICK, data, problem, pruned, quick, same, state, teacher


def uniform(bits: int) -> tuple[float, float]:
    """Return bytes and divergence on held-back data of uniform bits."""
    asked = problem()
    student = Student(asked)
    found = applied(student, Uniform(bits=bits), student.quantized_biases())
    return student.bytes(found), student.divergence(found, asked.held_back)


@pytest.mark.parametrize(
    ("bits", "rounding"), [*((n, "nearest") for n in range(2, 9)), (2, "compensated"), (4, "compensated")]
)
def test_never_worse_than_uniform_bits_at_equal_bytes(bits: int, rounding: str) -> None:
    size, divergence = uniform(bits)
    report = quick(pruned(), bits=bits, rounding=rounding)
    assert report.bytes <= size
    assert report.divergence <= divergence
    assert next(p for p in report.curve if p.name == f"uniform {bits}").divergence == pytest.approx(
        divergence
    )


def test_no_tensor_is_coded_again_that_was_coded_before(monkeypatch: pytest.MonkeyPatch) -> None:
    student = Student(problem())
    save = sys.modules["de_plugin.encode.save"]
    coded, code = [], save.encode_symbols

    def noted(symbols: Tensor) -> bytes:
        coded.append(symbols)
        return bytes(code(symbols))

    monkeypatch.setattr(save, "encode_symbols", noted)
    levels = applied(student, Uniform(bits=3), student.quantized_biases())
    size = student.size(levels)
    assert student.bytes(levels) == size == len(dumps(student.state(levels)))
    assert len(coded) == 2 * len(levels)  # once for both of the student's, once for dumps
    first = next(iter(levels))
    again = replace(levels[first], levels=2 * levels[first].levels)  # the same symbols
    assert student.bytes({**levels, first: again}) == size
    assert len(coded) == 2 * len(levels)
    changed = {**levels, first: replace(levels[first], symbols=levels[first].symbols.roll(1, 0))}
    assert student.bytes(changed) == len(dumps(student.state(changed)))
    assert len(coded) == 3 * len(levels) + 1
    changed[first].symbols.zero_()
    assert student.bytes(changed) == len(dumps(student.state(changed))) < size
    del levels, changed, again
    coded.clear()
    assert not cost._STREAMS


@pytest.mark.parametrize("bits", [2, 4])
def test_never_worse_than_uniform_bits_in_a_real_file_of_that_size(bits: int, real_coder: None) -> None:
    size, divergence = uniform(bits)
    report = quick(pruned(), target_bytes=size, codebooks=("uniform",))
    assert len(dumps(report.state, dtypes=report.dtypes)) == report.bytes <= size
    assert report.divergence <= divergence


@pytest.mark.parametrize("rounding", ["nearest", "compensated"])
def test_under_a_bound_no_file_of_uniform_bits_is_smaller(rounding: str) -> None:
    sizes = [size for size, divergence in map(uniform, range(2, 9)) if divergence <= 0.15]
    report = quick(pruned(), max_divergence=0.15, rounding=rounding, codebooks=("uniform",))
    assert report.bytes <= min(sizes)


def test_under_a_bound_refined_levels_take_part() -> None:
    plain = quick(pruned(), max_divergence=0.15, levels=None)
    report = quick(pruned(), max_divergence=0.15)
    assert report.bytes <= plain.bytes
    assert report.divergence <= 0.15
    assert len(report.curve) > len(plain.curve)


def test_progress_tells_what_the_curve_does_and_each_generation() -> None:
    told: list[Any] = []
    report = quick(pruned(), bits=3, progress=told.append)
    kept = iter(told)
    assert all(point in kept for point in report.curve)  # in order
    assert [p.name for p in told if p.name.startswith("generation")][:2] == ["generation 1", "generation 2"]


def test_target_bytes_count_the_whole_file(real_coder: None) -> None:
    model = pruned()
    report = quick(model, target_bytes=1000, levels=None, search=RateSearch(generations=1, population=4))
    assert report.bytes <= 1000
    data_ = dumps(report.state, dtypes=report.dtypes)
    assert len(data_) == report.bytes
    loaded = pruned()
    loads(data_, into=loaded)
    assert same(state(loaded), state(model))
    assert report.ratio == pytest.approx(4 * sum(p.numel() for p in model.parameters()) / report.bytes)


def test_max_divergence_is_kept_by_the_smallest_file() -> None:
    sizes = []
    for limit in (0.12, 0.3):
        model = pruned()
        report = quick(model, max_divergence=limit)
        assert report.divergence <= limit
        asked = Problem(model, data(), teacher=teacher(), holdout=0.25)
        with torch.no_grad():
            assert float(asked.measure(asked.pool.take(asked.held_back))) <= limit + 1e-6
        sizes.append(report.bytes)
    assert sizes[1] < sizes[0]


def test_max_loss_is_kept() -> None:
    x, y = data(2000)

    def wrong(model: nn.Module) -> float:
        with torch.no_grad():
            return 100 * float((model(x).argmax(1) != y).float().mean())

    model = pruned()
    allowed = wrong(pruned()) - wrong(teacher()) + 2.0
    report = quick(model, max_loss=allowed, metric=wrong)
    assert report.loss == wrong(model)
    assert wrong(model) <= wrong(teacher()) + allowed


def test_zeros_stay_zero_and_the_model_holds_the_levels() -> None:
    before, model = pruned(), pruned()
    report = quick(model, bits=4)
    values = dict(model.named_parameters())
    for name, old in before.named_parameters():
        if name.endswith("weight"):
            assert not bool((values[name][old == 0] != 0).any())
        assert torch.equal(values[name], report.quantization[name].dequantize())
    for layer in report.layers:
        if layer.name.endswith("weight"):
            was = int((dict(before.named_parameters())[layer.name] != 0).sum())
            assert layer.survivors + layer.zeroed == was
    assert all(p.requires_grad for p in values.values())


def test_exact_biases() -> None:
    before, model = pruned(), pruned()
    report = quick(model, bits=4, biases="exact")
    assert sorted(report.quantization) == ["0.weight", "2.weight", "4.weight"]
    for number in (0, 2, 4):
        assert torch.equal(model.get_parameter(f"{number}.bias"), before.get_parameter(f"{number}.bias"))


@pytest.mark.parametrize(
    "options",
    [
        {"recovery": ["bias", Distillation(steps=20, validate_every=10)]},
        {"rounding": "compensated"},
    ],
    ids=["trained", "compensated"],
)
def test_same_seed_same_result(options: dict[str, Any]) -> None:
    first, second = pruned(), pruned()
    reports = [quick(m, bits=3, seed=4, **options) for m in (first, second)]
    assert same(state(first), state(second))
    assert reports[0].curve == reports[1].curve


@pytest.mark.parametrize(
    "options", [{}, {"recovery": "levels"}, {"recovery": "bias"}, {"rounding": "compensated"}]
)
@pytest.mark.parametrize("calls", [3, 25])
def test_interrupted_bit_exact(options: dict[str, Any], calls: int) -> None:
    model = pruned()
    model.get_parameter("2.weight").requires_grad_(False)
    before, seen = state(model), 0

    def interrupted(m: nn.Module, inputs: Any) -> Any:
        nonlocal seen
        seen += m is model
        if seen > calls:
            raise KeyboardInterrupt
        return m(inputs)

    with pytest.raises(KeyboardInterrupt):
        quick(model, bits=3, forward=interrupted, **options)
    assert same(before, state(model))
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, True, True, True]
    assert all(p.grad is None for p in model.parameters())


def test_a_problem_keeps_its_teacher_and_its_mask() -> None:
    asked = Problem(teacher(), data(), holdout=0.25)
    scores = asked.units.reduce([v.abs() for v in asked.units.values()])
    asked.kept = asked.select(scores, asked.eligible, asked.units.count // 2)
    report = quantize(asked, bits=4, search=QUICK, codebooks=BOOKS, levels=None)
    masks = asked.units.masks(asked.kept)
    for name, parameter in asked.units.parameters().items():
        assert not bool(parameter[~masks[name]].any())
    assert 0 < report.divergence < 1
    with pytest.raises(ArgumentError, match="leave both out"):
        quantize(asked, data(), bits=4)


def test_without_a_gradient() -> None:
    def agreement(student: torch.Tensor, teacher_: torch.Tensor) -> float:
        return float((student.argmax(1) != teacher_.argmax(1)).float().mean())

    report = quick(pruned(), bits=4, divergence=agreement, weighting="none", biases="exact")
    assert report.divergence <= report.curve[2].divergence
    report = quick(pruned(), bits=4, divergence=agreement, weighting="activations", levels=None)
    assert report.evaluations > 0
    with pytest.raises(GradientError, match="weighting='activations' or 'none'"):
        quick(pruned(), bits=4, divergence=agreement)


@pytest.mark.parametrize("rounding", ["nearest", "compensated"])
def test_half_precision_levels_are_what_the_model_holds(rounding: Any) -> None:
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(1)).bfloat16()
    model = pruned().bfloat16()
    report = quantize(
        model, x, teacher=teacher().bfloat16(), bits=4, search=QUICK, codebooks=["uniform"], rounding=rounding
    )
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.float(), report.quantization[name].dequantize())
        assert report.dtypes[name] == torch.bfloat16
    assert len(dumps(report.state, dtypes=report.dtypes)) == report.bytes


def test_shared_weights_are_quantized_once() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(6, 6, bias=False)
    model = nn.Sequential(shared, nn.ReLU(), shared).eval()
    report = quantize(model, torch.randn(80, 6), bits=4, search=QUICK, codebooks=["uniform"])
    assert list(report.quantization) == ["0.weight"]
    assert isinstance(report.state["2.weight"], Quantized)
    assert torch.equal(shared.weight, report.quantization["0.weight"].dequantize())


def test_empty_layers_and_a_dense_network() -> None:
    model = pruned()
    with torch.no_grad():
        model.get_parameter("2.weight").zero_()
    report = quick(model, bits=4)
    assert int((report.quantization["2.weight"].symbols != 0).sum()) == 0
    assert quick(teacher(), bits=4, levels=None).divergence < 0.1


def test_a_goal_that_cannot_be_kept() -> None:
    before, model = state(pruned()), pruned()
    with pytest.raises(TargetError, match="fewest uniform bits"):
        quick(model, target_bytes=50)
    with pytest.raises(TargetError, match="not even the finest"):
        quick(model, max_divergence=1e-9)
    assert same(before, state(model))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "exactly one of bits"),
        ({"bits": 4, "target_bytes": 9}, "exactly one of bits"),
        ({"bits": 9}, "bits=9: expected 2 to 8"),
        ({"bits": 4.5}, "expected a whole number"),
        ({"target_bytes": 0}, "target_bytes=0"),
        ({"max_divergence": -1.0}, "max_divergence=-1.0"),
        ({"max_divergence": "low"}, "expected a number"),
        ({"max_loss": 0.5}, "go together"),
        ({"bits": 4, "metric": len}, "go together"),
        ({"bits": 4, "weighting": "hessian"}, "weighting='hessian': expected one of none"),
        ({"bits": 4, "biases": 1}, "biases=1: expected 'exact'"),
        ({"bits": 4, "codebooks": "kmeans"}, r"expected a list, as in \['kmeans'\]"),
        ({"bits": 4, "codebooks": ["means"]}, "codebook='means'"),
        ({"bits": 4, "recovery": "obs"}, "recovery='obs': expected one of bias"),
    ],
)
def test_arguments_that_cannot_work(options: dict[str, Any], match: str) -> None:
    before, model = state(pruned()), pruned()
    with pytest.raises(ArgumentError, match=match):
        quantize(model, data(), **options)
    assert same(before, state(model))


def test_search_settings_that_cannot_work() -> None:
    for options in ({"generations": -1}, {"population": 3}, {"samples": 0}, {"rounds": 0}):
        with pytest.raises(ArgumentError, match=next(iter(options))):
            RateSearch(**options)


def test_a_spent_budget_is_told() -> None:
    report = quick(pruned(), bits=4, budget=Budget(evaluations=1))
    assert "budget" in report.advice
    assert "0.weight" in str(report)


def test_the_report_is_plain_data() -> None:
    report = quick(pruned(), bits=3, codebooks=[KMeans(levels=5)])
    plain = report.to_dict()
    assert plain["layers"][0]["bits"] > 0
    assert {p["name"] for p in plain["curve"]} >= {"uniform 3", "kmeans"}
    assert json.loads(json.dumps(plain))["goal"] == "bits=3"
