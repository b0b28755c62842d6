"""Teachers: the same for a seed, cached by all that matters, and never a trace in the caller."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from de_plugin.errors import ArgumentError, DataError, DEWarning
from de_plugin.zoo import DATA, MODELS, Dataset, accuracy, teacher, teachers
from de_plugin.zoo.training import Recipe, train


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("model", MODELS)
def test_same_seed_same_weights(tiny: Dataset, model: str) -> None:
    first = teacher(model, tiny, seed=3, epochs=2, cache=False)
    assert same(first, teacher(model, tiny, seed=3, epochs=2, cache=False))
    assert not same(first, teacher(model, tiny, seed=4, epochs=2, cache=False))
    assert not any(module.training for module in first.modules())


def test_a_teacher_has_learnt(tiny: Dataset) -> None:
    network = teacher("mlpnet", tiny, epochs=40, cache=False)
    assert accuracy(network, tiny.test_inputs, tiny.test_labels) > 95


def test_the_cache_gives_the_same_weights_without_training(tiny: Dataset, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    first = teacher("resnet", tiny, epochs=2, progress=lambda *step: steps.append(step))
    assert steps == [(1, 2), (2, 2)]
    again = teacher("resnet", tiny, epochs=2, progress=lambda *step: steps.append(step))
    assert len(steps) == 2
    assert same(first, again)
    assert not again.training
    assert len(list((tmp_path / "cache/teachers").iterdir())) == 1


def test_weights_of_other_data_under_the_same_name_are_not_taken(tiny: Dataset) -> None:
    first = teacher("mlpnet", tiny, epochs=1)
    other = Dataset(**{**vars(tiny), "train_inputs": tiny.train_inputs.flip(0)})
    assert not same(first, teacher("mlpnet", other, epochs=1))


@pytest.mark.parametrize("change", [{"seed": 1}, {"epochs": 2}])
def test_seed_and_epochs_are_part_of_the_key(tiny: Dataset, change: dict[str, int]) -> None:
    options = {"seed": 0, "epochs": 1}
    first = teacher("mlpnet", tiny, seed=options["seed"], epochs=options["epochs"])
    options.update(change)
    other = teacher("mlpnet", tiny, seed=options["seed"], epochs=options["epochs"])
    assert not same(first, other)


def test_damaged_weights_are_trained_anew(tiny: Dataset, tmp_path: Path) -> None:
    first = teacher("mlpnet", tiny, epochs=1)
    (file,) = (tmp_path / "cache/teachers").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.warns(DEWarning, match="damaged and are trained anew"):
        assert same(first, teacher("mlpnet", tiny, epochs=1))
    assert file.read_bytes() == whole


@pytest.mark.parametrize("cache", [True, False])
def test_the_callers_random_state_is_untouched(tiny: Dataset, cache: bool) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for _ in range(2):
        teacher("lenet5", tiny, epochs=1, cache=cache)
        assert torch.equal(torch.get_rng_state(), before)


def test_data_by_name(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teachers, "DATA", {**DATA, "mnist": lambda: tiny})
    assert same(teacher("mlpnet", "mnist", epochs=1), teacher("mlpnet", tiny, epochs=1))


def test_mistakes_are_named(tiny: Dataset) -> None:
    with pytest.raises(ArgumentError, match="model is 'vgg', expected one of lenet300, lenet5"):
        teacher("vgg", tiny)
    with pytest.raises(ArgumentError, match="data is 'cifar', expected .*fashion-mnist, mnist"):
        teacher("mlpnet", "cifar")
    with pytest.raises(ArgumentError, match="seed is -1"):
        teacher("mlpnet", tiny, seed=-1)
    with pytest.raises(ArgumentError, match="epochs is 0, expected at least 1"):
        teacher("mlpnet", tiny, epochs=0)
    with pytest.raises(ArgumentError, match="learning_rate is nan"):
        Recipe(epochs=1, learning_rate=float("nan"))


def test_one_single_step_is_enough(tiny: Dataset) -> None:
    network = MODELS["mlpnet"]()
    train(network, tiny.train_inputs[:1], tiny.train_labels[:1], Recipe(1, 1e-3), seed=0)
    assert all(torch.isfinite(tensor).all() for tensor in network.state_dict().values())


def test_data_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Dataset:
        raise DataError("nowhere")

    monkeypatch.setattr(teachers, "DATA", {"mnist": nowhere})
    with pytest.raises(DataError, match="nowhere"):
        teacher("mlpnet", "mnist")
