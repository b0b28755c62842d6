"""Divergences: zero at the teacher, equal to references, and curvature sampled without bias."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from de_plugin.assess.detector import Detector, Head
from de_plugin.assess.divergence import (
    JS,
    KL,
    MSE,
    CalibratedKL,
    Cosine,
    Curved,
    Custom,
    Divergence,
    Score,
    divergence,
)
from de_plugin.errors import ArgumentError, OutputError
from de_plugin.testing import check_divergence

NAMES = ["kl", "js", "mse", "cosine"]
LIMITS = {"js": math.log(2), "cosine": 2.0}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 30), name=st.sampled_from(NAMES))
def test_zero_at_the_teacher_and_nowhere_negative(seed: int, scale: float, name: str) -> None:
    draw = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 7, 5, generator=draw) * scale
    measure = divergence(name)
    assert isinstance(measure, Divergence)
    assert float(measure(a, a)) == pytest.approx(0, abs=1e-6)
    assert -1e-6 <= float(measure(a, b)) <= LIMITS.get(name, math.inf) + 1e-6


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_references(temperature: float) -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 9, 4) * 3
    q, p = (F.log_softmax(x / temperature, -1) for x in (ours, theirs))
    expected = F.kl_div(q, p, reduction="batchmean", log_target=True)
    torch.testing.assert_close(KL(temperature)(ours, theirs), expected)
    m = (0.5 * (p.exp() + q.exp())).log()
    both = [F.kl_div(m, x, reduction="batchmean", log_target=True) for x in (p, q)]
    torch.testing.assert_close(JS(temperature)(ours, theirs), (both[0] + both[1]) / 2)
    torch.testing.assert_close(MSE()(ours, theirs), F.mse_loss(ours, theirs))
    target = torch.ones(9)
    torch.testing.assert_close(Cosine()(ours, theirs), F.cosine_embedding_loss(ours, theirs, target))


@pytest.mark.parametrize("cls", [KL, JS])
def test_several_temperatures_are_a_mean(cls: type[KL]) -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 9, 4) * 3
    alone = [cls(t)(ours, theirs) for t in (1.0, 2.0, 4.0)]
    torch.testing.assert_close(cls((1.0, 2.0, 4.0))(ours, theirs), sum(alone) / 3)
    with pytest.raises(ArgumentError, match="temperature"):
        cls((1.0, 0.0))
    with pytest.raises(ArgumentError, match="temperature"):
        cls(())


def test_several_temperatures_keep_the_contract() -> None:
    check_divergence(KL((1.0, 2.0)))
    wrong: Any
    for wrong in ([1.0, 2.0], "2", None):
        with pytest.raises(ArgumentError, match="temperature"):
            KL(wrong)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.2, 5))
def test_calibration_forgives_a_wrong_scale_and_nothing_else(seed: int, scale: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    ours, theirs = torch.randn(2, 64, 5, generator=draw) * 2
    guide = CalibratedKL(share=1.0)
    assert float(guide(theirs * scale, theirs)) <= 0.1 * float(KL()(theirs * scale, theirs)) + 0.01
    assert float(guide(ours, theirs)) <= float(KL()(ours, theirs)) + 1e-6
    assert float(guide(-theirs, theirs)) > 0.05
    half = (guide(ours, theirs) + KL()(ours, theirs)) / 2
    torch.testing.assert_close(CalibratedKL()(ours, theirs), half)


def test_a_student_that_says_nothing() -> None:
    torch.manual_seed(0)
    sure = 50 * F.one_hot(torch.arange(40) % 4, 4).float()
    assert float(KL().uninformed(sure)) == pytest.approx(math.log(4), rel=1e-4)
    assert float(KL().uninformed(torch.ones(6, 4))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("cls", [KL, JS, CalibratedKL])
def test_outputs_that_are_no_logits(cls: type[KL]) -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 9, 4) * 3
    probabilities = ours.softmax(-1), theirs.softmax(-1)
    torch.testing.assert_close(cls(logits=torch.log)(*probabilities), cls()(ours, theirs))
    torch.testing.assert_close(cls(logits=torch.log).uninformed(probabilities[1]), cls().uninformed(theirs))
    competing = cls(temperature=2.0, logits=F.logsigmoid)(ours, theirs)
    torch.testing.assert_close(competing, cls(temperature=2.0)(F.logsigmoid(ours), F.logsigmoid(theirs)))
    wrong: Any
    for wrong in ("log", nn.LogSigmoid, 1):
        with pytest.raises(ArgumentError, match="logits="):
            cls(logits=wrong)


def floored(p: Tensor) -> Tensor:
    return p.clamp_min(1e-12).log()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_probabilities_that_are_zero_stay_finite(dtype: torch.dtype) -> None:
    measure = KL(logits=floored)
    theirs = torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]], dtype=dtype)
    ours = torch.tensor([[0.9, 0.1, 0], [0, 0, 1.0]], dtype=dtype, requires_grad=True)
    assert 0 < float(measure(ours.detach(), theirs)) < 20
    assert float(measure(theirs, theirs)) == 0
    assert float(measure.uninformed(theirs)) == pytest.approx(math.log(2), rel=1e-3)
    loss = measure.sampled_loss(ours, measure.draw(theirs, torch.Generator().manual_seed(0)))
    [gradient] = torch.autograd.grad(loss, ours)
    assert bool(gradient.isfinite().all())
    assert bool(gradient.any())


def test_logits_may_make_classes() -> None:
    measure = KL(logits=lambda x: torch.cat([torch.zeros_like(x), x], -1))
    drawn = measure.draw(torch.full((400, 1), 1.0), torch.Generator().manual_seed(0))[0]
    assert float((drawn == 1).float().mean()) == pytest.approx(1 / (1 + math.exp(-1)), abs=0.07)
    ours, theirs = torch.randn(2, 9, 1, generator=torch.Generator().manual_seed(1))
    p, q = theirs.sigmoid(), ours.sigmoid()
    binary = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    torch.testing.assert_close(measure(ours, theirs), binary)


def test_disagreement_is_counted_along_the_class_dimension() -> None:
    theirs = torch.eye(4).repeat(2, 1)
    ours = theirs.clone()
    ours[:3] = ours[:3].roll(1, -1)
    assert float(KL().disagreement(ours, theirs)) == pytest.approx(3 / 8)
    assert float(KL(dim=0).disagreement(ours.T, theirs.T)) == pytest.approx(3 / 8)
    near = torch.tensor([[18.0, 18.5, -20.0]])
    assert float(KL(logits=F.logsigmoid).disagreement(near, near[:, [1, 0, 2]])) == 1
    assert float(KL().disagreement(torch.tensor([[0.0, 1e-9]]), torch.tensor([[1e-9, 0.0]]))) == 1
    assert float(KL(logits=torch.abs).disagreement(near, -near)) == 0 < float(KL().disagreement(near, -near))
    tree = KL().disagreement([ours, theirs], [theirs, theirs])
    assert float(tree) == pytest.approx(3 / 16)


def test_other_class_dimensions_and_trees() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 5, 4)
    moved = KL(dim=1)(a, b)
    torch.testing.assert_close(moved, KL()(a.transpose(1, 2), b.transpose(1, 2)))
    tree = KL()({"x": a, "y": (b, torch.arange(3))}, {"x": b, "y": (a, torch.arange(3))})
    torch.testing.assert_close(tree, (KL()(a, b) + KL()(b, a)) / 2)


def test_outputs_that_do_not_match_are_refused() -> None:
    with pytest.raises(OutputError, match="same shapes"):
        MSE()(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(OutputError, match="no floating-point"):
        MSE()(torch.arange(3), torch.arange(3))


DETECTOR = Detector(
    (Head(1, 2, objectness=2, first_class=3, centres=(0,), sides=(1,)),), boxes=0.7, objects=1.5
)
MEASURES: list[Any] = [
    KL(),
    KL(temperature=2.0),
    KL(temperature=(1.0, 4.0)),
    KL(logits=F.logsigmoid),
    JS(),
    MSE(),
    Cosine(),
    KL(dim=1),
    DETECTOR,
]
SHAPES = {KL(dim=1): (3, 4, 2), DETECTOR: (3, 5, 2)}


def test_all_but_plain_callables_have_curvature() -> None:
    assert all(isinstance(measure, Curved) for measure in MEASURES)
    assert not isinstance(Custom(lambda a, b: 0), Curved)


@pytest.mark.parametrize("measure", MEASURES)
def test_squared_sampled_gradients_average_to_the_hessian(measure: Any) -> None:
    """Fisher = Hessian at the teacher (Martens, arXiv:1412.1193, sec. 9)."""
    torch.manual_seed(1)
    shape = SHAPES.get(measure, (3, 4))
    x = torch.randn(3, 2, dtype=torch.float64)
    weight = torch.randn(math.prod(shape[1:]), 2, dtype=torch.float64)

    def outputs(w: Tensor, rows: slice = slice(None)) -> Tensor:
        return (x[rows] @ w.T).reshape(-1, *shape[1:])

    teacher = outputs(weight)
    full = torch.autograd.functional.hessian(lambda w: measure(outputs(w), teacher), weight)
    flat = full.reshape(weight.numel(), weight.numel())
    generator = torch.Generator().manual_seed(0)
    repeat = 6000
    fisher = torch.zeros_like(flat)
    for row in range(3):
        one = outputs(weight, slice(row, row + 1)).detach()
        many = one.expand(repeat, *one.shape[1:])
        targets = measure.draw(many, generator)
        leaf = many.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(measure.sampled_loss(leaf, targets), leaf)
        weights = torch.einsum("no,i->noi", g.flatten(1), x[row]).flatten(1)
        fisher += weights.T @ weights / repeat / 3
    scale = float(flat.abs().max())
    assert float((fisher - flat).abs().max()) < 0.08 * scale


def test_callables_names_and_scores() -> None:
    own = divergence(lambda a, b: float((a - b).abs().sum()))
    assert isinstance(own, Custom)
    assert float(own(torch.ones(2), torch.zeros(2))) == 2
    assert divergence(own) is own

    def accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.argmax(-1) == labels).float().mean()

    score = Score(accuracy)
    labels = torch.tensor([0, 1])
    assert float(score(torch.eye(2).flip(0), torch.eye(2), labels)) == 1
    with pytest.raises(ArgumentError, match="labels"):
        score(torch.eye(2), torch.eye(2))
    agree = Score(lambda a, b: accuracy(a, b.argmax(-1)), against="teacher")
    assert float(agree(torch.eye(2), torch.eye(2))) == 0


@pytest.mark.parametrize("wrong", ["kld", 3, MSE, None])
def test_unknown_divergences_are_refused(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="divergence"):
        divergence(wrong)


def test_wrong_options_are_refused() -> None:
    nobody: Any = "nobody"
    with pytest.raises(ArgumentError, match="temperature"):
        KL(temperature=0)
    with pytest.raises(ArgumentError, match="against"):
        Score(lambda a, b: 0, against=nobody)
