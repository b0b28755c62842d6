"""The main jobs on a GPU: they work, everything stays where it was, and files give back what was there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import de_plugin
from de_plugin import DirectedEvolution, Schedule, Swaps
from de_plugin.errors import DEError
from de_plugin.prune.recover import BatchNormMatching, Distillation, Hints, LeastSquares, Reconstruction
from de_plugin.quantize import LevelTraining, RateSearch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU (CUDA)")

DEVICE = "cuda"
QUICK = DirectedEvolution(population=6, generations=2, samples=64, swaps=Swaps(rounds=2, candidates=8))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.LeakyReLU(0.1)),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10)),
    ).eval()


def images(count: int = 192) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def turned(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.where((torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5).to(x.device), x.flip(3), x)


def placed(model: nn.Module) -> bool:
    """Tell whether everything of a model is on the device."""
    return all(x.device.type == DEVICE for x in model.state_dict().values())


def parameters(model: nn.Module) -> list[Tensor]:
    return [x.detach().cpu() for x in model.state_dict().values()]


def test_the_largest_weights_are_those_that_a_processor_finds() -> None:
    here, there = network(), network().to(DEVICE)
    ours = de_plugin.prune(here, images(), 0.7, "magnitude")
    theirs = de_plugin.prune(there, images(), 0.7, "magnitude")
    assert placed(there)
    assert theirs.divergence == pytest.approx(ours.divergence, rel=2e-2)
    assert all(torch.equal(a == 0, b == 0) for a, b in zip(parameters(here), parameters(there), strict=True))


@pytest.mark.parametrize(
    "recovery",
    [
        None,
        "bias",
        "obs",
        BatchNormMatching(64),
        LeastSquares(),
        Reconstruction(samples=64),
        Distillation(20, batch_size=32, hints=Hints(("1", "4")), augment=turned),
    ],
    ids=["none", "bias", "obs", "batchnorm", "leastsquares", "reconstruct", "distill"],
)
def test_evolved_masks_are_about_as_good_as_the_largest_weights_or_better(recovery: Any) -> None:
    found = {}
    for criterion in ("magnitude", QUICK):
        model = network().to(DEVICE)
        found[criterion] = de_plugin.prune(model, images(), 0.8, criterion, schedule=2, recovery=recovery)
        assert placed(model)
        assert all(bool(torch.isfinite(x).all()) for x in parameters(model))
    assert found[QUICK].sparsity == pytest.approx(0.8, abs=0.01)
    assert found[QUICK].divergence <= found["magnitude"].divergence * 1.3


@pytest.mark.parametrize("granularity", ["channel", "2:4", "4x4"])
def test_patterns(granularity: str) -> None:
    model = network().to(DEVICE)
    narrow = ["0"] if granularity == "2:4" else []  # its inputs don't divide into groups
    sparsity = None if granularity == "2:4" else 0.5
    report = de_plugin.prune(
        model, images(), sparsity, QUICK, granularity=granularity, exclude=narrow, schedule=1
    )
    assert 0.3 < report.sparsity < 0.6


def test_a_search_that_was_stopped_goes_on(tmp_path: Path) -> None:
    seen: list[int] = []

    def run(model: nn.Module, stop: bool = False) -> Any:
        def tell(progress: Any) -> None:
            seen.append(progress.cycle)
            if stop and progress.cycle == 2:
                raise KeyboardInterrupt

        return de_plugin.prune(
            model,
            images(),
            0.8,
            QUICK,
            schedule=Schedule(3),
            recovery=Distillation(10, batch_size=32),
            progress=tell,
            checkpoint=tmp_path,
        )

    model = network().to(DEVICE)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        run(model, stop=True)
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in before.items())
    report = run(model)
    assert seen == [1, 2, 3]
    assert len(report.history) == 3
    assert report.sparsity == pytest.approx(0.8, abs=0.01)


def test_after_an_error_the_model_is_what_it_was() -> None:
    model = network().to(DEVICE)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DEError):
        de_plugin.prune(model, images() * float("nan"), 0.5)
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in before.items())


@pytest.mark.parametrize("rounding", ["nearest", "compensated"])
def test_a_file_gives_back_what_the_model_became(rounding: str, tmp_path: Path) -> None:
    model, path = network().to(DEVICE), tmp_path / "small.de.safetensors"
    done = de_plugin.compress(
        model,
        images(),
        path,
        0.8,
        pruning={"criterion": QUICK, "schedule": 2, "recovery": "batchnorm"},
        quantizing={
            "rounding": rounding,
            "search": RateSearch(generations=1, population=4),
            "recovery": LevelTraining(Distillation(10, batch_size=32)) if rounding == "nearest" else None,
        },
    )
    loaded = network().to(DEVICE)
    de_plugin.load(path, into=loaded)
    assert done.ratio > 5
    assert all(torch.equal(a, b) for a, b in zip(parameters(model), parameters(loaded), strict=True))


def test_channels_really_go_in_torch_pruning() -> None:
    tp = pytest.importorskip("torch_pruning")
    from de_plugin.adapters.torch_pruning import DEImportance

    model = network().to(DEVICE)
    data = images().to(DEVICE)
    importance = DEImportance(model, data)
    pruner = tp.pruner.BasePruner(
        model, data[:1], importance, pruning_ratio=0.5, ignored_layers=[model[-1]], global_pruning=False
    )
    pruner.step()
    assert model[0].out_channels == 8
    assert model(data).shape == (192, 10)
    assert placed(model)
