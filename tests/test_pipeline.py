"""From a model to its file and back: what comes back, what is chosen, what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from de_plugin import Problem, encode
from de_plugin.errors import ArgumentError, DEError, FileError, TargetError
from de_plugin.pipeline import Compression, Stage, compress
from de_plugin.prune.recover import Distillation
from de_plugin.quantize import LevelTraining, RateSearch

QUICK: dict[str, Any] = {
    "pruning": {"criterion": "magnitude"},
    "quantizing": {
        "search": RateSearch(generations=0, rounds=1),
        "codebooks": ("uniform",),
        "levels": None,
    },
}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 16, 5)
        self.register_buffer("scale", torch.tensor([0.5, float("inf")]))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))
        return logits


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(160, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_file_gives_back_the_model_bit_for_bit(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "small.de.safetensors"
    stages: list[Stage] = []
    with torch.no_grad():
        before = model(images)
    found = compress(model, images, path, 0.7, progress=stages.append, **QUICK)
    assert found.bytes == path.stat().st_size
    assert same(encode.load(path), state_of(model))
    other = Small().eval()
    encode.load(path, into=other)
    with torch.no_grad():
        assert torch.equal(other(images), model(images))
        assert not torch.equal(before, model(images))
    zeros = sum(
        int((p == 0).sum()) for name, p in model.named_parameters() if name in ("conv.weight", "fc.weight")
    )
    assert zeros >= round(0.7 * (8 * 9 + 5 * 128))
    assert found.ratio == pytest.approx(
        sum(x.numel() for x in state_of(model).values()) * 4 / found.bytes, rel=0.05
    )
    assert [x.name for x in stages] == ["prune", "quantize", "encode"]


def test_without_a_path_nothing_is_written(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    found = compress(model, images, sparsity=0.5, **QUICK)
    assert found.path is None
    assert found.bytes > 0
    assert not list(tmp_path.iterdir())


def test_zeros_stay_where_nothing_is_pruned(model: nn.Module, images: Tensor) -> None:
    weight = model.get_parameter("fc.weight")
    with torch.no_grad():
        weight[:, ::3] = 0
    found = compress(model, images, sparsity=None, bits=6, quantizing=QUICK["quantizing"])
    assert found.pruning is None
    assert bool((weight[:, ::3] == 0).all())


def test_the_best_of_several_sparsities_is_kept(model: nn.Module, images: Tensor) -> None:
    twin = copy.deepcopy(model)
    found = compress(model, images, sparsity=[0.3, 0.8], max_divergence=0.3, **QUICK)
    assert {s for s, _, _ in found.tried} <= {0.3, 0.8}
    assert found.bytes == min(b for _, b, _ in found.tried)
    assert found.quantization.divergence <= 0.3
    alone = compress(twin, images, sparsity=found.sparsity, max_divergence=0.3, **QUICK)
    assert same(state_of(model), state_of(twin))
    assert alone.bytes == found.bytes


def test_a_size_is_kept_to(model: nn.Module, images: Tensor) -> None:
    found = compress(model, images, sparsity=0.8, target_bytes=700, **QUICK)
    assert found.bytes <= 700


def test_a_loss_is_kept_to(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        expected = model(images).argmax(1)

    def wrong(candidate: nn.Module) -> float:
        with torch.no_grad():
            return float((candidate(images).argmax(1) != expected).double().mean())

    found = compress(model, images, sparsity=0.3, max_loss=0.2, metric=wrong, **QUICK)
    assert wrong(model) <= 0.2
    assert found.quantization.loss == pytest.approx(wrong(model))


def test_the_same_seed_gives_the_same_file(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    twin = copy.deepcopy(model)
    compress(model, images, tmp_path / "a", 0.6, seed=3, **QUICK)
    compress(twin, images, tmp_path / "b", 0.6, seed=3, **QUICK)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"sparsity": 1.5}, ArgumentError, "sparsity"),
        ({"sparsity": "high"}, ArgumentError, "sparsity"),
        ({"sparsity": []}, ArgumentError, "sparsity"),
        ({"sparsity": [0.5, 2.0]}, ArgumentError, "sparsity"),
        ({"sparsity": ["a"]}, ArgumentError, "sparsity"),
        ({"bits": 4, "target_bytes": 500}, ArgumentError, "exactly one"),
        ({"max_loss": 1.0}, ArgumentError, "metric"),
        ({"pruning": {"recovrey": "distill"}}, ArgumentError, "recovrey"),
        ({"pruning": {"seed": 1}}, ArgumentError, "argument of compress"),
        ({"quantizing": {"bits": 3}}, ArgumentError, "argument of compress"),
        ({"target_bytes": 20}, TargetError, "20"),
        ({"path": "/nowhere/at/all.de"}, FileError, "path"),
    ],
)
def test_what_cannot_work_is_said_and_leaves_the_model(
    model: nn.Module, images: Tensor, options: dict[str, Any], error: type[DEError], match: str
) -> None:
    before = state_of(model)
    with pytest.raises(error, match=match):
        compress(model, images, **{**QUICK, "sparsity": 0.5, **options})
    assert same(state_of(model), before)


def test_an_interruption_leaves_the_model(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    before = state_of(model)

    def stop(stage: Stage) -> None:
        if stage.name == "encode":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, images, tmp_path / "file", 0.5, progress=stop, **QUICK)
    assert same(state_of(model), before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stop", [("prune", 2), ("quantize", 2)])
def test_what_was_cut_off_goes_on_with_the_same_call(
    stop: tuple[str, int], model: nn.Module, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    measure = Problem.measure

    def measuring(problem: Problem, batches: Any) -> Tensor:
        measured.append(1)
        return measure(problem, batches)

    looks: list[int] = []
    validate = Distillation.validate

    def validating(rule: Distillation, problem: Problem, batches: Any) -> float:
        looks.append(1)
        return validate(rule, problem, batches)

    def told(stage: Stage) -> None:
        seen.append(stage.name)
        if seen.count(stop[0]) == stop[1]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Problem, "measure", measuring)
    monkeypatch.setattr(Distillation, "validate", validating)
    training = LevelTraining(Distillation(steps=20, batch_size=32, validate_every=5))
    options: dict[str, Any] = {
        "pruning": {"criterion": "de", "schedule": 2},
        "quantizing": {**QUICK["quantizing"], "recovery": training},
        "bits": 4,
    }
    expected = copy.deepcopy(model)
    whole = compress(expected, images, tmp_path / "whole", [0.5, 0.75], **options)
    alone, before, every = len(measured), state_of(model), len(looks)
    seen: list[str] = []
    kept = {**options, "checkpoint": tmp_path / "kept"}
    with pytest.raises(KeyboardInterrupt):
        compress(model, images, tmp_path / "again", [0.5, 0.75], progress=told, **kept)
    assert same(state_of(model), before)
    measured.clear()
    looks.clear()
    again = compress(model, images, tmp_path / "again", [0.5, 0.75], **kept)
    assert len(measured) < 0.8 * alone
    assert every == 10
    assert len(looks) == 1 + 5  # of the sparsity that was done the start alone, which is made again
    assert (tmp_path / "again").read_bytes() == (tmp_path / "whole").read_bytes()
    assert same(state_of(model), state_of(expected))
    assert again.tried == whole.tried
    assert again.sparsity == whole.sparsity


def test_a_report_is_plain_data_and_a_table(model: nn.Module, images: Tensor) -> None:
    found: Compression = compress(model, images, sparsity=0.5, **QUICK)
    plain = found.to_dict()
    assert plain["bytes"] == found.bytes
    assert plain["quantization"]["winner"]
    assert "fc.weight" in str(found)


def test_without_a_goal_four_bits_are_the_goal(model: nn.Module, images: Tensor) -> None:
    twin = copy.deepcopy(model)
    found = compress(model, images, sparsity=[0.3, 0.8], **QUICK)
    other = compress(twin, images, sparsity=[0.3, 0.8], bits=4, **QUICK)
    assert found.sparsity == other.sparsity
    assert same(state_of(model), state_of(twin))


def test_a_metric_that_is_no_number_is_refused(model: nn.Module, images: Tensor) -> None:
    with pytest.raises(ArgumentError, match="metric"):
        compress(model, images, sparsity=0.5, max_loss=1.0, metric=lambda _: float("nan"), **QUICK)


@pytest.mark.parametrize("options", [{"rounding": "up"}, {"rounding": "compensated", "recovery": "distill"}])
def test_a_rounding_that_cannot_be_is_refused_before_the_work_begins(options: dict[str, str]) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8)).eval()
    stages: list[str] = []
    with pytest.raises(ArgumentError, match="rounding="):
        compress(model, torch.randn(64, 8), quantizing=options, progress=lambda s: stages.append(s.name))
    assert stages == []
