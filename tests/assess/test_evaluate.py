"""What measures a population: the serial reference, the choice of evaluator, and what happens on failures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from de_plugin.assess import Problem, evaluate
from de_plugin.assess.candidates import Flipped, Listed
from de_plugin.assess.evaluate import Guarded, evaluator
from de_plugin.assess.serial import Serial
from de_plugin.errors import ArgumentError, DEWarning


def mlp(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def masks(problem: Problem, count: int = 4) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.rand(count, problem.units.count, generator=draw) > 0.3


def is_serial(problem: Problem) -> bool:
    """Tell whether values are those of the serial loop, call after call."""
    given = Listed(masks(problem))
    expected = Serial(problem)(given, problem.search)
    return all(torch.equal(problem.assess(given, problem.search), expected) for _ in range(2))


# -- the reference -------------------------------------------------------------------------------


def test_serial_equals_a_model_with_the_weights_really_gone() -> None:
    model, x = mlp(5, 6, 3), torch.randn(20, 5)
    problem = Problem(model, x, divergence="mse", holdout=0, evaluate="serial")
    kept = masks(problem)[0]
    value = problem(kept)
    teacher = model(x).detach()
    with torch.no_grad():
        for name, mask in problem.units.masks(kept).items():
            model.get_parameter(name).mul_(mask)
        expected = float((model(x) - teacher).square().mean())
    assert value == pytest.approx(expected, rel=1e-5)


def test_a_repair_is_in_force_for_every_candidate() -> None:
    problem = Problem(mlp(3, 2), torch.randn(10, 3), divergence="mse")
    entered = []

    @contextmanager
    def repair(problem: Problem, batches: list[Any]) -> Iterator[None]:
        entered.append(sum(b.size for b in batches))
        yield

    problem.repair = repair
    everything = torch.ones(3, problem.units.count, dtype=torch.bool)
    problem.assess(everything, problem.search[:4])
    assert entered == [4, 4, 4]
    problem.assess(everything, problem.search[:4], repair=False)
    assert len(entered) == 3
    assert problem.evaluations == 6
    assert problem.sample_evaluations == 24


# -- the choice ----------------------------------------------------------------------------------


def test_auto_measures_side_by_side_and_serial_does_not() -> None:
    problem = Problem(mlp(3, 4, 2), torch.randn(10, 3))
    assert isinstance(evaluator(problem, "auto"), Guarded)
    assert isinstance(evaluator(problem, "serial"), Serial)
    for spec in ("auto", "serial"):
        assert evaluator(problem, spec).samples > 0
    with pytest.raises(ArgumentError, match="evaluate='fast'"):
        evaluator(problem, "fast")


class Around(nn.Module):
    """A module between prunable layers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner, self.last = nn.Linear(3, 4), inner, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(self.first(x))
        out: Tensor = self.last(y[0] if isinstance(y, tuple) else y)
        return out


class Function(nn.Module):
    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x)


SEPARATE: dict[str, nn.Module] = {
    "lstm": nn.LSTM(4, 4, batch_first=True),
    "gru": nn.GRU(4, 4, batch_first=True),
    "branch": Function(lambda y: y if float(y.sum()) > 0 else y * 2),
    "loop": Function(lambda y: torch.stack([row * int(row.sum() > 0) for row in y])),
    "nonzero": Function(lambda y: y.flatten()[y.flatten().nonzero()[:, 0]].reshape(y.shape)),
    "numpy": Function(lambda y: torch.from_numpy(y.detach().numpy() * 2)),
    "noise": Function(lambda y: y + 0 * torch.rand_like(y)),
}


@pytest.mark.parametrize("name", SEPARATE)
def test_models_that_cannot_run_side_by_side_are_measured_one_by_one_with_a_warning(name: str) -> None:
    with pytest.warns(DEWarning, match=r"model Around: .*one by one.*\(inner: \S+"):
        problem = Problem(Around(SEPARATE[name]).eval(), torch.randn(10, 5, 3))
    assert is_serial(problem)


class Strict(nn.Module):
    """Takes its images as they lie in memory, which the fast evaluator changes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.view_as_complex(self.conv(x).unflatten(-1, (-1, 2))).abs()


def test_a_run_that_cannot_even_be_recorded_is_no_error() -> None:
    with pytest.warns(DEWarning, match=r"Strict: .*stride"):
        problem = Problem(Strict().eval(), torch.randn(10, 2, 4, 4), divergence="mse")
    assert is_serial(problem)


# -- wrong results are noticed -------------------------------------------------------------------


class Hidden(nn.Module):
    """Uses weights in ways that no function call shows."""

    def __init__(self, how: str, depth: int = 3, at: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(4, 4) for _ in range(depth)]
        for layer in layers:
            nn.init.orthogonal_(layer.weight)
        self.layers = nn.ModuleList(layers)
        self.how, self.at, self.calls = how, at, 0
        self.alias = {"w": layers[at].weight.data}  # shares its memory, and is another tensor
        self.scripted: Any = torch.jit.trace(layers[at], torch.zeros(2, 4)) if how == "scripted" else None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for number, layer in enumerate(self.layers):
            if number == self.at and self.how == "alias":
                x = x @ self.alias["w"]
            elif number == self.at and self.how == "scripted":
                x = self.scripted(x)
            else:
                x = layer(x)
        return x + self.calls / 8 if self.how == "counter" else x


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("how", "depth", "at"),
    [("alias", 3, 1), ("scripted", 3, 1), ("counter", 3, 0), ("alias", 33, 7)],
)
def test_results_that_are_wrong_side_by_side_are_noticed(how: str, depth: int, at: int) -> None:
    with pytest.warns(DEWarning, match=rf"layers\.{at}\.weight gives other results side by side"):
        problem = Problem(Hidden(how, depth, at).eval(), torch.randn(10, 4), divergence="mse")
    assert how == "counter" or is_serial(problem)


# -- failures on the way -------------------------------------------------------------------------


def test_the_first_failure_on_the_way_is_the_last() -> None:
    switch: list[int] = []
    model = Around(Function(lambda y: y * float(y.sum()) if switch else y)).eval()
    problem = Problem(model, torch.randn(10, 3))
    assert isinstance(evaluator(problem, "auto"), Guarded)
    switch.append(1)
    given = Flipped(problem.kept, (torch.tensor([0]),))
    with pytest.warns(DEWarning, match=r"one by one.*\(inner: "):
        found = problem.assess(given, problem.search)
    assert torch.equal(found, Serial(problem)(given, problem.search))
    assert is_serial(problem)  # and warns no more


class Once:
    """Raises an error in one call, counted from when it is armed."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.left = -1

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error


ERRORS = [ValueError("of the user"), RuntimeError("of the user"), OSError("of the user"), KeyboardInterrupt()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("few", [True, False])
def test_errors_in_a_hook_are_raised_even_if_they_come_once(error: Any, call: int, few: bool) -> None:
    """The first call is the student's own run where few units differ; later ones are side by side."""
    once = Once(error)
    model = mlp(3, 4, 2)
    problem = Problem(model, torch.randn(40, 3))
    model[2].register_forward_hook(lambda *_: once())
    before = [x.clone() for x in model.parameters()]
    changes = tuple(torch.tensor([n]) for n in (0, 13))
    given = Flipped(problem.kept, changes) if few else Listed(masks(problem, 200))
    once.left = call
    with pytest.raises(type(error), match="of the user" if error.args else None):
        problem.assess(given, problem.search)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    found = problem.assess(given, problem.search)
    torch.testing.assert_close(found, Serial(problem)(given, problem.search), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("call", [1, 2, 3])
def test_errors_of_the_divergence_are_raised(error: Any, call: int) -> None:
    once = Once(error)
    model = mlp(3, 4, 2)

    def measure(outputs: Tensor, teacher: Tensor) -> Tensor:
        once()
        return (outputs - teacher).abs().mean()

    problem = Problem(model, torch.randn(10, 3), divergence=measure)
    before = [x.clone() for x in model.parameters()]
    once.left = call
    with pytest.raises(type(error), match="of the user" if error.args else None):
        problem.assess(masks(problem), problem.search)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not torch.equal(problem.assess(masks(problem), problem.search), torch.zeros(4))


def test_errors_that_come_always_are_raised() -> None:
    switch: list[int] = []

    def broken(y: Tensor) -> Tensor:
        if switch:
            raise ValueError("of the user")
        return y

    problem = Problem(Around(Function(broken)).eval(), torch.randn(10, 3))
    switch.append(1)
    with pytest.raises(ValueError, match="of the user"):
        problem.assess(masks(problem), problem.search)


class Largest:
    """A user's own divergence, which needs real numbers."""

    name = "largest"
    differentiable = False

    def __call__(self, student: Tensor, teacher: Tensor, labels: Any = None) -> Tensor:
        away = (student - teacher).abs()
        return away.mean() if float(away.max()) < 0.2 else away.square().mean().sqrt() + 1


def test_a_divergence_of_the_user_may_look_at_numbers() -> None:
    problem = Problem(mlp(3, 4, 2), torch.randn(10, 3), divergence=Largest())
    assert isinstance(evaluator(problem, "auto"), Guarded)
    given = Listed(torch.cat([masks(problem), problem.kept[None]]))
    found = problem.assess(given, problem.search)
    torch.testing.assert_close(found, Serial(problem)(given, problem.search), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "convolutions", "products", "rounds"),
    [
        (nn.Conv2d(1, 1, 1), True, False, True),
        (nn.Conv2d(1, 1, 1), False, False, False),
        (nn.Linear(1, 1), True, False, False),
        (nn.Linear(1, 1), False, True, True),
    ],
)
def test_what_a_gpu_may_round(
    layer: nn.Module, convolutions: bool, products: bool, rounds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Told:
        def __init__(self, value: bool | None) -> None:
            self._value = value

        @property
        def allow_tf32(self) -> bool:
            if self._value is None:
                raise RuntimeError("mix of the legacy and new APIs")
            return self._value

    monkeypatch.setattr(torch.backends, "cudnn", Told(convolutions))
    monkeypatch.setattr(torch.backends.cuda, "matmul", Told(products))
    assert evaluate._rounds(nn.Sequential(layer)) is rounds
    monkeypatch.setattr(torch.backends, "cudnn", Told(None))
    assert evaluate._rounds(nn.Sequential(nn.Conv2d(1, 1, 1)))
