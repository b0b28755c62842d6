"""What the speed-up cannot do is said, and the user's model stays as it was, bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from de_plugin.adapters.nni.speedup import speedup
from de_plugin.errors import ArgumentError, DEWarning, StructureError
from tests.adapters.nni.test_speedup_laws import BUILDS, IMAGE, Build, built, images, rows
from tests.adapters.torch_pruning.architectures import CASES


class Locked(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("held elsewhere")


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.fc = nn.Linear(8 * 36, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.a(x).view(-1, 8 * 36))
        return out


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = -x
        out: Tensor = self.a(x)
        return out


def seq(*layers: nn.Module) -> Build:
    return lambda: nn.Sequential(*layers)


def half(n: int) -> list[int]:
    return list(range(n // 2))


FAILING: dict[str, tuple[Build, dict[str, list[int]], tuple[int, ...], str]] = {
    "branch": (seq(Inner(), nn.Flatten()), {"0.a": half(8)}, IMAGE, r"0 \(Inner\), line `if x.sum\(\) > 0:`"),
    "written size": (Written, {"a": half(8)}, IMAGE, r"the model \(Written\), line .*flatten\(1\)"),
    "recurrent": (
        CASES["lstm"].build,
        {"embed": half(12)},
        (2, 4, 6),
        r"lstm \(LSTM\): NNI cannot make this kind .*nor what",
    ),
    "kind": (
        seq(nn.Conv3d(3, 8, 1), nn.ReLU(), nn.Conv3d(8, 2, 1)),
        {"0": half(8)},
        (2, 3, 4, 4, 4),
        r"0 \(Conv3d\): NNI cannot make this kind",
    ),
    "outputs": (
        seq(nn.Flatten(), nn.Linear(108, 7)),
        {"1": half(7)},
        IMAGE,
        r"\(3, 7\) would become \(3, 3\)",
    ),
    "nothing left": (BUILDS["plain"], {"a": []}, IMAGE, "masks every output of Conv2d"),
    "example": (
        BUILDS["plain"],
        {"a": half(8)},
        (3, 5, 6, 6),
        r"a \(Conv2d\).*forward pass on the example fails",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_what_cannot_be_done_is_said_and_leaves_everything_as_it_was(name: str) -> None:
    build, kept, shape, message = FAILING[name]
    model = built(build).train()
    masks = rows(model, kept)
    before = copy.deepcopy((model.state_dict(), masks))
    state, listed = torch.get_rng_state(), list(model.named_modules())
    with pytest.raises(StructureError, match=f"(?s){message}"):
        speedup(model, masks, torch.ones(shape))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[0][k]) for k, v in model.state_dict().items())
    assert all(torch.equal(m, before[1][n][t]) for n, ts in masks.items() for t, m in ts.items())
    assert [m for _, m in model.named_modules()] == [m for _, m in listed]
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({}, "masks: there is none"),
        (torch.ones(1), r"masks: a Tensor, expected .*speedup.model, masks, example."),
        ({"a": {"weight": None}}, "masks: there is none"),
        ({"nowhere": {"weight": torch.ones(1)}}, "masks.'nowhere'.: the model has no such module"),
        ({"a": {"_output_0": torch.ones(1)}}, "expected one of the module's parameters .weight, bias."),
        ({"a": {"weight": torch.ones(8, 3)}}, "shape .8, 3., expected that of the parameter, .8, 3, 3, 3."),
        ({"a": {"bias": torch.full((8,), 0.5)}}, "expected zeros and ones only"),
    ],
)
def test_masks_that_do_not_fit_are_named(masks: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        speedup(built(BUILDS["plain"]), masks, images())


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    with pytest.raises(ArgumentError, match="held elsewhere.*unwrap_model"):
        speedup(nn.Sequential(Locked(3, 3)), {"0": {"bias": torch.ones(3)}}, torch.ones(1, 3))


def test_it_warns_where_nothing_became_smaller_and_where_outputs_differ() -> None:
    model = built(BUILDS["residual"])
    with pytest.warns(DEWarning, match="nothing became smaller"):
        speedup(model, rows(model, {"a": half(8)}), images())
    normed = built(seq(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten()))
    with pytest.warns(DEWarning, match=r"differ by .*1 \(GroupNorm\)"):
        speedup(normed, rows(normed, {"0": [0, 1, 4, 5]}), images())
