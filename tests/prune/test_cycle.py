"""`prune`: reaches its target, repeats itself, and gives the model back bit-exact when it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import de_plugin
from de_plugin import Budget, DirectedEvolution, Progress, Schedule, Swaps
from de_plugin.errors import (
    ArgumentError,
    DataError,
    DEError,
    ModeError,
    OutputError,
    SelectionError,
    TargetError,
)

QUICK = DirectedEvolution(
    population=6,
    generations=2,
    samples=64,
    swaps=Swaps(rounds=2, candidates=8, gradient_samples=32, window=40),
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4)).eval()


def data(count: int = 80) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(1))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {n: x.clone() for n, x in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[n], second[n]) for n in first)


# -- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["magnitude", "activation", "taylor", "fisher", "obs", "random"])
def test_every_criterion_reaches_the_target_by_name(criterion: str) -> None:
    model = network()
    report = de_plugin.prune(model, data(), 0.75, criterion, schedule=2)
    assert report.sparsity == report.target == 0.75
    assert report.criterion == criterion
    assert report.outcome == "complete"
    for name, mask in report.masks.items():
        assert bool((dict(model.named_parameters())[name][~mask] == 0).all())


def test_directed_evolution_is_the_default() -> None:
    model = nn.Linear(6, 4).eval()
    report = de_plugin.prune(model, torch.randn(40, 6), 0.5)
    assert report.criterion == "de"
    assert len(report.history) == 10
    assert report.sparsity == 0.5


def test_magnitude_is_what_torch_does() -> None:
    model, twin = network(), network()
    de_plugin.prune(model, data(), 0.6, "magnitude")
    torch_prune.global_unstructured(
        [(twin[0], "weight"), (twin[3], "weight")], torch_prune.L1Unstructured, amount=0.6
    )
    de_plugin.remove(twin)
    for name in ("0.weight", "3.weight"):
        assert torch.equal(model.state_dict()[name], twin.state_dict()[name])


def test_nothing_happens_at_sparsity_zero() -> None:
    model = network()
    before = state(model)
    report = de_plugin.prune(model, data(), 0.0, QUICK, schedule=2)
    assert report.sparsity == 0
    assert same(before, state(model))


@pytest.mark.parametrize("criterion", ["magnitude", QUICK])
def test_dicts_of_layers(criterion: Any) -> None:
    report = de_plugin.prune(network(), data(), {"0": 0.75}, criterion, schedule=Schedule(3, "cubic"))
    assert [x.zeroed for x in report.layers] == [72, 0]


@pytest.mark.parametrize("criterion", ["magnitude", QUICK])
def test_an_nm_pattern_needs_no_sparsity(criterion: Any) -> None:
    report = de_plugin.prune(network(), data(), None, criterion, granularity="2:4", schedule=2)
    assert report.sparsity == 0.5
    assert all(bool((m.reshape(-1, 4).sum(-1) == 2).all()) for m in report.masks.values())


def test_cycles_follow_the_schedule_and_are_told() -> None:
    told: list[Progress] = []
    report = de_plugin.prune(
        network(), data(), 0.75, QUICK, schedule=Schedule(3, "linear"), progress=told.append
    )
    assert [p.sparsity for p in told] == pytest.approx([0.25, 0.5, 0.75], abs=0.01)
    assert [p.cycle for p in told] == [1, 2, 3]
    assert {p.cycles for p in told} == {3}
    assert told[-1].divergence == report.history[-1].divergence


# -- applying ------------------------------------------------------------------------------------


def test_buffers_equal_the_baked_model_and_torch_removes_them() -> None:
    baked, masked = network(), network()
    first = de_plugin.prune(baked, data(), 0.7, "activation")
    second = de_plugin.prune(masked, data(), 0.7, "activation", apply="buffers")
    assert all(torch.equal(first.masks[n], second.masks[n]) for n in first.masks)
    assert torch.equal(baked(data()), masked(data()))
    for module in (masked[0], masked[3]):
        torch_prune.remove(module, "weight")
    assert all(torch.equal(x, baked.state_dict()[n]) for n, x in masked.state_dict().items())


@pytest.mark.parametrize("recovery", [None, "leastsquares"])
def test_apply_none_only_reports(recovery: Any) -> None:
    model = network()
    before = state(model)
    report = de_plugin.prune(model, data(), 0.7, QUICK, schedule=2, recovery=recovery, apply="none")
    assert report.sparsity == pytest.approx(0.7, abs=0.01)
    assert same(before, state(model))
    assert not torch_prune.is_pruned(model)


# -- the model comes back ------------------------------------------------------------------------


def interrupted(model: nn.Module, error: type[BaseException], **options: Any) -> None:
    before = state(model)
    flags = [p.requires_grad for p in model.parameters()]
    given = {"recovery": "leastsquares", "schedule": 3, "criterion": QUICK, **options}
    with pytest.raises(error):
        de_plugin.prune(model, data(), 0.7, **given)
    assert same(before, state(model))
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert not any(m.training for m in model.modules())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("cycle", [1, 3])
def test_an_exception_in_the_progress_callback(error: type[BaseException], cycle: int) -> None:
    def progress(p: Progress) -> None:
        if p.cycle == cycle:
            raise error

    interrupted(network(), error, progress=progress)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("calls", [2, 30, 200])
def test_an_exception_in_the_divergence(error: type[BaseException], calls: int) -> None:
    seen = 0

    def divergence(student: Tensor, teacher: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        if seen == calls:
            raise error
        return (student - teacher).square().mean()

    interrupted(network(), error, divergence=divergence)


def test_an_exception_in_the_forward_hook_and_in_a_recovery() -> None:
    seen = 0

    def forward(model: nn.Module, inputs: Tensor) -> Any:
        nonlocal seen
        seen += 1
        if seen == 40:
            raise KeyboardInterrupt
        return model(inputs)

    interrupted(network(), KeyboardInterrupt, forward=forward, divergence=lambda s, t: (s - t).abs().mean())

    class Failing:
        name = "failing"

        def prepare(self, problem: de_plugin.Problem) -> None:
            pass

        def __call__(self, problem: de_plugin.Problem) -> NoReturn:
            problem.units.values()[0].fill_(7)
            raise KeyboardInterrupt

        def in_assessment(self) -> None:
            return None

    interrupted(network(), KeyboardInterrupt, recovery=Failing())


# -- bad input -----------------------------------------------------------------------------------


def _infinite() -> nn.Module:
    model = network()
    model.get_parameter("3.bias").data[0] = float("nan")
    return model


class Growing(nn.Module):
    """Gives one output more at every call after the first."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = nn.Linear(8, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        outputs: Tensor = self.inner(x)[:, : 4 if self.calls == 1 else 3]
        return outputs


def _empty() -> Iterator[Tensor]:
    yield from ()


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (network, {"sparsity": 1.0}, ArgumentError, "sparsity=1.0"),
        (network, {"sparsity": -0.5}, ArgumentError, "sparsity=-0.5"),
        (network, {"sparsity": float("nan")}, ArgumentError, "sparsity=nan"),
        (network, {"sparsity": 90}, ArgumentError, "sparsity=90.*0.9"),
        (network, {"sparsity": None}, ArgumentError, "sparsity=None"),
        (network, {"sparsity": {"encoder": 0.5}}, SelectionError, "sparsity: 'encoder'"),
        (network, {"sparsity": {"0": 0.9}, "granularity": "2:4"}, TargetError, "0.weight"),
        (network, {"sparsity": 0.9, "granularity": "2:4"}, TargetError, "sparsity"),
        (nn.ReLU, {}, SelectionError, "model"),
        (network, {"include": ["encoder.*"]}, SelectionError, "include"),
        (network, {"exclude": ["encoder.*"]}, SelectionError, "exclude"),
        (network, {"exclude": ["*"]}, SelectionError, "exclude"),
        (network, {"include": "0"}, ArgumentError, "include"),
        (_infinite, {}, OutputError, "model.*NaN"),
        (network, {"batches": torch.full((40, 8), float("inf"))}, DataError, "batches.*infinite"),
        (network, {"batches": []}, DataError, "batches"),
        (network, {"batches": _empty()}, DataError, "batches"),
        (network, {"batches": torch.zeros(0, 8)}, DataError, "batches"),
        (network, {"batches": 3}, DataError, "batches"),
        (Growing, {}, OutputError, "outputs"),
        (lambda: network().train(), {}, ModeError, "model"),
        (network, {"criterion": "magnitud"}, ArgumentError, "criterion='magnitud'"),
        (network, {"criterion": de_plugin.Magnitude}, ArgumentError, "criterion"),
        (network, {"scope": "local"}, ArgumentError, "scope='local'"),
        (network, {"schedule": 0}, ArgumentError, "cycles=0"),
        (network, {"schedule": "cubic"}, ArgumentError, "schedule='cubic'"),
        (network, {"schedule": True}, ArgumentError, "schedule=True"),
        (network, {"recovery": "prayer"}, ArgumentError, "prayer"),
        (network, {"finish": 7}, ArgumentError, "7"),
        (network, {"apply": "later"}, ArgumentError, "apply='later'"),
        (network, {"granularity": "3by3"}, ArgumentError, "granularity='3by3'"),
        (network, {"divergence": "wasserstein"}, ArgumentError, "divergence='wasserstein'"),
        (network, {"divergence": lambda s, t: 1.0}, OutputError, "divergence"),
        (network, {"holdout": 1.0}, ArgumentError, "holdout=1.0"),
        (network, {"batch_size": 0}, ArgumentError, "batch_size=0"),
        (network, {"budget": 100}, ArgumentError, "budget=100"),
        (network, {"criterion": "fisher", "divergence": de_plugin.Score(lambda x, y: 0.0)}, DEError, "Score"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(
    model: Any, options: dict[str, Any], error: type[DEError], message: str
) -> None:
    network_ = (
        model().eval() if not getattr(model(), "training", False) or model in (nn.ReLU, Growing) else model()
    )
    before = state(network_)
    given = {"batches": data(), "sparsity": 0.5, "criterion": "magnitude", **options}
    with pytest.raises(error, match=message) as caught:
        de_plugin.prune(network_, **given)
    assert isinstance(caught.value, DEError)
    after = state(network_)
    assert all(torch.equal(torch.nan_to_num(before[n]), torch.nan_to_num(after[n])) for n in before)


# -- budgets, recoveries -------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [Budget(evaluations=1), Budget(evaluations=60), Budget(seconds=1e-9)])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_budget_ends_the_search_and_the_target_is_reached(budget: Budget, scope: Any) -> None:
    full = de_plugin.prune(network(), data(), 0.75, QUICK, schedule=4, scope=scope)
    report = de_plugin.prune(network(), data(), 0.75, QUICK, schedule=4, scope=scope, budget=budget)
    assert report.sparsity == 0.75
    assert report.outcome == "budget"
    assert "budget" in report.advice
    assert report.evaluations < full.evaluations


def test_a_budget_that_is_large_enough_changes_nothing() -> None:
    first = de_plugin.prune(network(), data(), 0.75, QUICK, schedule=2)
    second = de_plugin.prune(network(), data(), 0.75, QUICK, schedule=2, budget=Budget(evaluations=10**9))
    assert second.outcome == "complete"
    assert all(torch.equal(first.masks[n], second.masks[n]) for n in first.masks)


@pytest.mark.parametrize("recovery", ["distill", "leastsquares", ["bias", "leastsquares"]])
def test_recoveries_come_closer_to_the_teacher(recovery: Any) -> None:
    model, twin = network(), network()
    plain = de_plugin.prune(twin, data(800), 0.6, "magnitude", divergence="mse")
    report = de_plugin.prune(model, data(800), 0.6, "magnitude", divergence="mse", recovery=recovery)
    assert all(torch.equal(plain.masks[n], report.masks[n]) for n in plain.masks)
    assert report.divergence < plain.divergence
    for name, mask in report.masks.items():
        assert bool((dict(model.named_parameters())[name][~mask] == 0).all())


def test_recoveries_between_cycles_and_at_the_end() -> None:
    model = network()
    report = de_plugin.prune(
        model, data(), 0.7, QUICK, schedule=3, recovery="batchnorm", finish=["leastsquares", "distill"]
    )
    assert report.sparsity == pytest.approx(0.7, abs=0.01)
    assert report.divergence < report.history[-1].divergence_cut
    values = dict(model.named_parameters())
    assert all(bool((values[n][~m] == 0).all()) for n, m in report.masks.items())


# -- models and data of every kind ---------------------------------------------------------------


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(8, 6), nn.Linear(3, 6)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Any]:
        return {"sum": self.left(a) + self.right(b), "parts": (self.left(a), [self.right(b)])}


def test_dict_batches_and_pytree_outputs() -> None:
    model = TwoInputs().eval()
    batch = {"a": data(), "b": torch.randn(80, 3), "labels": torch.zeros(80, dtype=torch.long)}
    report = de_plugin.prune(model, batch, 0.5, QUICK, schedule=2, divergence="mse")
    assert report.sparsity == 0.5
    assert report.divergence > 0


def test_tuples_of_inputs() -> None:
    report = de_plugin.prune(
        TwoInputs().eval(), ((data(), torch.randn(80, 3)), torch.zeros(80)), 0.5, "taylor"
    )
    assert report.sparsity == 0.5


def test_all_forms_of_batches_give_the_same_masks() -> None:
    labels = torch.zeros(80, dtype=torch.long)
    generator = (part for part in data().split(16))
    forms: list[Any] = [
        data(),
        (data(), labels),
        list(data().split(30)),
        generator,
        DataLoader(TensorDataset(data(), labels), batch_size=16),
    ]
    found = [de_plugin.prune(network(), form, 0.6, "activation").masks for form in forms]
    for other in found[1:]:
        assert all(torch.equal(found[0][n], other[n]) for n in other)


def test_a_forward_hook() -> None:
    model = TwoInputs().eval()
    report = de_plugin.prune(
        model, data(), 0.5, QUICK, schedule=2, forward=lambda m, x: m(x, x[:, :3])["sum"]
    )
    assert report.sparsity == 0.5


def test_frozen_models_are_pruned_and_stay_frozen() -> None:
    frozen, free = network().requires_grad_(False), network()
    first = de_plugin.prune(frozen, data(), 0.6, QUICK, schedule=2)
    second = de_plugin.prune(free, data(), 0.6, QUICK, schedule=2)
    assert all(torch.equal(first.masks[n], second.masks[n]) for n in first.masks)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in free.parameters())


@pytest.mark.parametrize("apply", ["bake", "buffers"])
def test_shared_parameters_count_once(apply: Any) -> None:
    torch.manual_seed(0)
    shared = nn.Linear(8, 8)
    tied = nn.Linear(8, 8)
    tied.weight = shared.weight
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), tied).eval()
    report = de_plugin.prune(model, data(), 0.5, QUICK, schedule=2, apply=apply)
    assert [x.units for x in report.layers] == [64]
    assert bool((tied.weight[~report.masks["0.weight"]] == 0).all())
    outputs = model(data())
    de_plugin.remove(model)
    assert torch.equal(model(data()), outputs)
    assert isinstance(shared.weight, nn.Parameter)
    assert tied.weight is shared.weight


def test_gradients_of_the_user_stay() -> None:
    model = network()
    model(data()).sum().backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    de_plugin.prune(model, data(), 0.5, QUICK, schedule=2)
    after = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(before) == len(after)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_teacher_outputs_beyond_memory_go_to_a_file() -> None:
    first = de_plugin.prune(network(), data(), 0.6, "fisher")
    second = de_plugin.prune(network(), data().split(20), 0.6, "fisher", memory=4 * 8 * 80)
    assert all(torch.equal(first.masks[n], second.masks[n]) for n in first.masks)
