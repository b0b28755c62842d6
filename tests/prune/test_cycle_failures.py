"""`prune` names what is wrong, and gives the model back bit-exact when it cannot finish."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from torch import Tensor, nn

import de_plugin
from de_plugin import Progress
from de_plugin.errors import (
    ArgumentError,
    DataError,
    DEError,
    ModeError,
    OutputError,
    SelectionError,
    TargetError,
)
from tests.prune.small import QUICK, data, network, same, state

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


def _masked() -> nn.Module:
    model = network()
    torch_prune.l1_unstructured(model[3], "weight", amount=0.5)
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
        (_masked, {}, SelectionError, "attached to 3.*remove"),
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
