"""The tuner inside the host's own `autotune`, and plain `autotune` with our configs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from de_plugin.errors import ArgumentError
from tests.adapters.neural_compressor.networks import levels, made, unchanged, values

from de_plugin.adapters.neural_compressor import DEQuantConfig, DETuner, agreement, tune  # isort: skip
from de_plugin.adapters.neural_compressor import fitting, proposing  # isort: skip
from neural_compressor.torch.quantization import TuningConfig, autotune  # isort: skip
from tests.adapters.neural_compressor.test_tuner import score


@pytest.mark.parametrize("cheapest", ["bytes", "bits"])
def test_the_hosts_autotune_is_led_to_the_same_result(cheapest: str, tmp_path: Path) -> None:
    model, x = made("mlp")
    evaluate = score(model, x)
    options: dict[str, Any] = {
        "batches": x,
        "tolerable_loss": 0.02,
        "max_trials": 9,
        "cheapest": cheapest,
    }
    alone = tune(model, evaluate, **options)
    tuner = DETuner(model, **options, checkpoint=tmp_path / "trials.json")
    found = autotune(model, tuner.tuning_config, tuner.eval_fn(evaluate))
    assert [t.choices for t in tuner.trials] == [t.choices for t in alone.trials]
    assert unchanged(found, values(alone.model))
    assert unchanged(tuner.result().model, values(alone.model))
    found.save(str(tmp_path / "out"))


def test_the_hosts_loop_survives_trials_that_raise_and_ends_early() -> None:
    model, x = made("mlp")
    evaluate, calls = score(model, x), []

    def moody(network: nn.Module, factor: float) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of luck")
        return factor * evaluate(network)

    tuner = DETuner(model, DEQuantConfig(bits=[3, 4], codebook="kmeans"), tolerable_loss=0.5, max_trials=99)
    found = autotune(model, tuner.tuning_config, tuner.eval_fn(moody), eval_args=(2.0,))
    assert 1 < len(tuner.trials) < 99
    assert [t.error for t in tuner.trials].count("RuntimeError: out of luck") == 1
    assert tuner.baseline == pytest.approx(2.0)
    assert unchanged(found, values(tuner.result().model))


def test_the_plain_autotune_of_the_host() -> None:
    model, x = made("cnn")
    evaluate = score(model, x)
    scores: list[float] = []

    def kept(network: nn.Module) -> float:
        scores.append(evaluate(network))
        return scores[-1]

    configs = [DEQuantConfig(bits=[2, 3, 8], batches=x), DEQuantConfig(bits=2, granularity="channel")]
    found = autotune(model, TuningConfig(configs, tolerable_loss=0.01), kept)
    assert len(scores) <= 4
    assert evaluate(found) == pytest.approx(max(scores[1:]))
    assert scores[-1] >= 0.99


@pytest.mark.parametrize("crash", [3, 4, 6])
def test_the_hosts_loop_goes_on_after_a_crash(crash: int, tmp_path: Path) -> None:
    """The host counts its own trials, and has never seen those of the checkpoint."""
    model, x = made("cnn")
    agrees = agreement(model, x)
    calls = 0

    def interrupted(network: nn.Module) -> float:
        nonlocal calls
        calls += 1
        if calls == crash:
            raise KeyboardInterrupt
        return agrees(network)

    def tuner(checkpoint: Path | None) -> DETuner:
        config = DEQuantConfig(bits=[2, 3, 4, 5, 6])
        options: dict[str, Any] = {"batches": x, "max_trials": 8, "tolerable_loss": 0.01}
        return DETuner(model, config, **options, checkpoint=checkpoint)

    whole = tuner(None)
    expected = values(whole.run(agrees).model)
    path = tmp_path / "trials.json"
    first = tuner(path)
    with pytest.raises(KeyboardInterrupt):
        autotune(model, first.tuning_config, first.eval_fn(interrupted))
    again = tuner(path)
    found = autotune(model, again.tuning_config, again.eval_fn(agrees))
    assert [t.choices for t in again.trials] == [t.choices for t in whole.trials]
    assert unchanged(found, expected)
    known = tuner(path)  # everything is known, and a tuner may lead the host twice
    for _ in range(2):
        assert unchanged(autotune(model, known.tuning_config, known.eval_fn(agrees)), expected)


def test_plain_autotune_tries_what_single_layers_list() -> None:
    model, _ = made("mlp")
    local = DEQuantConfig(bits=[2, 8])
    name = next(n for n, p in model.named_parameters() if p.dim() > 1).removesuffix(".weight")
    config = DEQuantConfig(bits=[4, 6]).set_local(name, local)
    tried = []

    def evaluate(network: nn.Module) -> float:
        tried.append(levels(network.get_parameter(f"{name}.weight")))
        return 1.0 if len(tried) == 1 else 0.0

    autotune(model, TuningConfig([config]), evaluate)
    assert len(tried) == 1 + 4
    assert [n > 4 for n in tried[1:]] == [False, True, False, True]


@pytest.mark.parametrize(("kept", "trials"), [(1.48, 6), (2.5, 7), (3.16, 8)])
def test_levels_that_were_forgotten_in_part_are_fitted_again(
    kept: float, trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposing, "_FITTED", 1)
    model, x = made("mlp")
    config = DEQuantConfig(bits=[2, 3, 4, 5, 6], rounding="compensated")
    options: dict[str, Any] = {"batches": x, "tolerable_loss": 0.0005, "max_trials": trials}
    alone = tune(model, score(model, x), config, **options)
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    monkeypatch.setattr(fitting, "_KEPT", int(kept * weights))
    tuner = DETuner(model, config, **options)
    found = autotune(model, tuner.tuning_config, tuner.eval_fn(score(model, x)))
    assert unchanged(tuner.result().model, values(alone.model))
    assert unchanged(found, values(alone.model))


def test_another_model_than_the_tuners_is_refused() -> None:
    model, x = made("mlp")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.9)
    before = values(other)
    tuner = DETuner(model, batches=x, max_trials=3)
    with pytest.raises(ArgumentError, match="not those that the DETuner was given"):
        autotune(other, tuner.tuning_config, tuner.eval_fn(score(other, x)))
    assert unchanged(other, before)


def test_of_scores_above_the_original_the_host_keeps_the_tuners_choice() -> None:
    model, x = made("mlp")
    scores = iter([1.0, 1.1, 1.3, 1.2, 1.25])
    tuner = DETuner(model, batches=x, max_trials=4, tolerable_loss=-1.0)
    found = autotune(model, tuner.tuning_config, tuner.eval_fn(lambda _: next(scores)))
    assert tuner.leading.score == 1.3
    assert unchanged(found, values(tuner.result().model))
