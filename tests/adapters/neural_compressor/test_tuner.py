"""The tuner: the cheapest within tolerance, every trial kept, none twice, none lost."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from de_plugin.errors import ArgumentError, CheckpointError, SelectionError
from de_plugin.prune.recover import Distillation
from de_plugin.quantize import Quantized
from tests.adapters.neural_compressor.networks import cnn, made, mlp, unchanged, values

from de_plugin.adapters.neural_compressor import DEQuantConfig, DETuner, Trial, agreement, tune  # isort: skip
from de_plugin.adapters.neural_compressor import proposing  # isort: skip
from de_plugin.adapters.neural_compressor.compensating import Compensating  # isort: skip
from de_plugin.adapters.neural_compressor.trials import Tolerance, key_of  # isort: skip
from neural_compressor.torch.quantization import quantize  # isort: skip


def score(model: nn.Module, x: Tensor) -> Callable[[nn.Module], float]:
    return agreement(model, x)


@pytest.mark.parametrize("name", ["cnn", "mlp", "transformer", "conv1d", "tied"])
@pytest.mark.parametrize("data", [True, False])
def test_the_cheapest_within_tolerance_is_returned(name: str, data: bool) -> None:
    model, x = made(name)
    before = values(model)
    found = tune(model, score(model, x), tolerable_loss=0.02, max_trials=12, batches=x if data else None)
    assert unchanged(model, before)
    assert found.ok
    passing = [t for t in found.trials if t.ok]
    assert found.trial.bytes == min(t.bytes for t in passing)
    assert name == "tied" or found.trial.bytes < max(t.bytes for t in passing)
    assert score(model, x)(found.model) == pytest.approx(found.trial.score)
    assert found.trial.loss <= 0.02
    assert len({key_of(t.choices) for t in found.trials}) == len(found.trials) <= 12
    again = quantize(copy.deepcopy(model), found.config)
    assert unchanged(again, values(found.model))


def test_bytes_of_very_large_networks_are_expected_and_those_of_the_winner_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = sys.modules[DETuner.__module__]
    model, x = made("mlp")
    monkeypatch.setattr(module, "_COUNTED", 1)
    exact = tune(model, score(model, x), tolerable_loss=0.02, max_trials=6, batches=x)
    monkeypatch.setattr(module, "_EXPECTED", 1)
    coded, code = [], module.stream

    def noted(quantized: Quantized) -> bytes:
        coded.append(quantized)
        return bytes(code(quantized))

    monkeypatch.setattr(module, "stream", noted)
    found = tune(model, score(model, x), tolerable_loss=0.02, max_trials=6, batches=x)
    weights = sum(p.dim() > 1 for p in model.parameters())
    assert len([q for q in coded if q.symbols.dim() > 1]) == 2 * weights  # the first trial, and the winner
    counts = {key_of(t.choices): t.bytes for t in exact.trials}
    both = [(t.bytes, counts[key_of(t.choices)]) for t in found.trials if key_of(t.choices) in counts]
    assert len(both) >= 4
    assert all(expected == pytest.approx(real, rel=0.05) for expected, real in both)
    assert any(expected != real for expected, real in both)
    assert found.save(tmp_path / "net.de.safetensors").file_bytes == found.trial.bytes


def test_a_trial_of_a_large_compensated_network_fits_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = made("mlp")
    fitted: list[int] = []
    levels = Compensating.levels

    def counted(self: Compensating, asked: Any) -> Any:
        fitted.append(len(asked))
        return levels(self, asked)

    monkeypatch.setattr(Compensating, "levels", counted)
    counts = {}
    for most in (proposing._FITTED, 1):
        monkeypatch.setattr(proposing, "_FITTED", most)
        fitted.clear()
        config = DEQuantConfig(bits=[2, 3, 4, 5, 6], rounding="compensated")
        found = tune(model, score(model, x), config, tolerable_loss=0.002, max_trials=9, batches=x)
        assert found.ok
        assert len(found.trials) == 9
        assert found.trial.bytes == min(t.bytes for t in found.trials if t.ok)
        counts[most] = fitted.count(max(fitted))
    assert counts[1] <= 9 < counts[max(counts)]


def test_mixed_bits_beat_the_same_bits_for_all() -> None:
    model, x = made("cnn")
    evaluate = score(model, x)
    tolerated = 0.001
    found = tune(model, evaluate, batches=x, tolerable_loss=tolerated, max_trials=16, cheapest="bits")
    uniform = [
        bits
        for bits in range(2, 9)
        if 1 - evaluate(quantize(copy.deepcopy(model), DEQuantConfig(bits=bits, batches=x))) <= tolerated
    ]
    assert found.trial.mean_bits < min(uniform)
    assert len(set(found.trial.bits.values())) > 1


def test_the_file_has_the_bytes_of_the_trial(tmp_path: Path) -> None:
    model, x = made("cnn")
    found = tune(model, score(model, x), batches=x, max_trials=5, tolerable_loss=0.05)
    assert found.save(tmp_path / "net.de.safetensors").file_bytes == found.trial.bytes


@pytest.mark.parametrize("data", [True, False])
def test_the_same_seed_gives_the_same_trials(data: bool) -> None:
    model, x = made("cnn")

    def trials(seed: int) -> list[Any]:
        batches = x if data else None
        found = tune(model, score(model, x), batches=batches, max_trials=12, tolerable_loss=0.01, seed=seed)
        return [(t.choices, t.score, t.bytes) for t in found.trials]

    assert trials(1) == trials(1)
    assert not data or trials(1) != trials(2)


def test_a_trial_that_raises_has_failed_and_the_search_goes_on() -> None:
    model, x = made("mlp")
    evaluate, calls = score(model, x), []

    def moody(network: nn.Module) -> float:
        calls.append(1)
        if len(calls) % 3 == 0:
            raise RuntimeError("out of luck")
        if len(calls) % 5 == 0:
            return math.nan
        return evaluate(network)

    found = tune(model, moody, batches=x, max_trials=12, tolerable_loss=0.05)
    failed = [t for t in found.trials if t.error is not None]
    assert {t.error for t in failed} == {
        "RuntimeError: out of luck",
        "ArgumentError: eval_fn: returned nan, expected a finite number",
    }
    assert not any(t.ok for t in failed)
    assert found.ok

    def broken(network: nn.Module) -> float:
        if len(network.get_parameter("fc1.weight").unique()) < 192:
            raise ValueError("always")
        return 1.0

    lost = tune(model, broken, max_trials=4)
    assert not lost.ok
    assert "every trial failed, the first with ValueError: always" in lost.advice


def test_nothing_within_tolerance_still_gives_the_best() -> None:
    model, x = made("mlp")
    found = tune(model, score(model, x), batches=x, max_trials=5, tolerable_loss=-0.5)
    assert not found.ok
    assert found.trial.loss == min(t.loss for t in found.trials)
    assert "no trial is within tolerance" in found.advice


@pytest.mark.parametrize("baseline", [0.0, 3.0])
def test_losses_go_down_and_a_baseline_of_zero_is_absolute(baseline: float) -> None:
    model, x = made("mlp")
    with torch.no_grad():
        teacher = model(x)

    def loss(network: nn.Module) -> float:
        return baseline + float((network(x) - teacher).square().mean().detach())

    four = quantize(copy.deepcopy(model), DEQuantConfig(bits=4, codebook="uniform"))
    tolerated = (loss(four) - baseline) / (baseline or 1.0)
    found = tune(model, loss, batches=x, higher_is_better=False, tolerable_loss=tolerated, max_trials=10)
    assert found.ok
    assert found.baseline == baseline
    assert found.trial.score <= baseline + tolerated * (baseline or 1.0)
    assert any(t.score > found.trial.score for t in found.trials)


@settings(max_examples=60, deadline=None)
@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(0, 1), st.booleans(), st.floats(0.001, 5))
def test_tolerance_is_relative_and_one_sided(
    baseline: float, score_: float, tolerance: float, higher: bool, scale: float
) -> None:
    rule = Tolerance(tolerance, higher)
    assert rule.accepts(rule.loss(baseline, baseline))
    better = baseline + 1 if higher else baseline - 1
    assert rule.loss(better, baseline) < 0
    mirrored = Tolerance(tolerance, not higher)
    assert mirrored.loss(-score_, -baseline) == rule.loss(score_, baseline)
    if abs(baseline) > 0.01:
        assert rule.loss(scale * score_, scale * baseline) == pytest.approx(rule.loss(score_, baseline))


def test_a_search_goes_on_where_it_was_and_evaluates_nothing_again(tmp_path: Path) -> None:
    model, x = made("mlp")
    evaluate, calls = score(model, x), []
    path = tmp_path / "trials.json"

    def counted(network: nn.Module) -> float:
        calls.append(1)
        return evaluate(network)

    def interrupted(network: nn.Module) -> float:
        if len(calls) == 5:
            raise KeyboardInterrupt
        return counted(network)

    options: dict[str, Any] = {"batches": x, "tolerable_loss": 0.02, "checkpoint": path, "max_trials": 10}
    before = values(model)
    with pytest.raises(KeyboardInterrupt):
        tune(model, interrupted, **options)
    assert unchanged(model, before)
    assert len(json.loads(path.read_text())["trials"]) == 4
    resumed = tune(model, counted, **options)
    whole = tune(model, evaluate, **{**options, "checkpoint": None})
    assert len(calls) == 1 + len(whole.trials)
    assert [t.choices for t in resumed.trials] == [t.choices for t in whole.trials]
    assert unchanged(resumed.model, values(whole.model))
    again = tune(model, counted, **options)
    assert len(calls) == 1 + len(whole.trials)
    assert again.trial.score == resumed.trial.score
    assert unchanged(again.model, values(whole.model))


def test_checkpoints_of_others_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    model, x = made("mlp")
    path = tmp_path / "trials.json"
    tune(model, score(model, x), max_trials=2, checkpoint=path)
    other, y = made("cnn")
    with pytest.raises(CheckpointError, match="its model is"):
        tune(other, score(other, y), max_trials=2, checkpoint=path)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(CheckpointError, match="cannot be read"):
        tune(model, score(model, x), max_trials=2, checkpoint=path)


def test_the_winner_is_not_quantized_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from de_plugin.quantize.kmeans import KMeans

    model, x = made("mlp")
    tuner = DETuner(model, DEQuantConfig(bits=[2, 3, 4], codebook="kmeans"), batches=x, max_trials=6)
    tuner.run(score(model, x))
    monkeypatch.setattr(KMeans, "fit", lambda *_: pytest.fail("fitted again"))
    assert tuner.result().ok


def test_configs_say_what_is_allowed() -> None:
    model, x = made("cnn")
    narrow = DEQuantConfig(bits=[3, 4], codebook="kmeans", white_list=[nn.Conv2d])
    found = tune(model, score(model, x), narrow, max_trials=6, tolerable_loss=0.5)
    assert set(found.trial.bits) == {"0", "3"}
    assert set(found.trial.bits.values()) <= {3, 4}
    fixed = DEQuantConfig(bits=[2, 3], bits_per_layer={"6": 8}).set_local("8", DEQuantConfig(dtype="fp32"))
    found = tune(model, score(model, x), fixed, max_trials=6, tolerable_loss=0.5)
    assert found.trial.bits["6"] == 8
    assert "8" not in found.trial.bits
    several = [DEQuantConfig(bits=4, codebook="kmeans"), DEQuantConfig(bits=2, granularity="channel")]
    found = tune(model, score(model, x), several, max_trials=8, tolerable_loss=0.5)
    assert {(c.bits, c.granularity) for t in found.trials for c in t.choices.values()} <= {
        (4, "tensor"),
        (2, "channel"),
    }


def test_recovery_is_part_of_a_trial(tmp_path: Path) -> None:
    model, x = made("cnn")
    config = DEQuantConfig(bits=[2, 3], batches=x, recovery=Distillation(steps=30), biases=6)
    found = tune(model, score(model, x), config, max_trials=3, tolerable_loss=0.1)
    assert found.ok
    assert found.save(tmp_path / "net.de.safetensors").file_bytes == found.trial.bytes
    assert unchanged(quantize(copy.deepcopy(model), found.config), values(found.model))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"max_trials": 0}, ArgumentError, "max_trials=0"),
        ({"tolerable_loss": math.nan}, ArgumentError, "tolerable_loss=nan"),
        ({"cheapest": "seconds"}, ArgumentError, "cheapest='seconds'"),
        ({"higher_is_better": "yes"}, ArgumentError, "higher_is_better='yes'"),
        ({"configs": []}, ArgumentError, r"configs=\[\]"),
        ({"configs": DEQuantConfig(white_list=["fc9"])}, SelectionError, "'fc9' is none"),
    ],
)
def test_arguments_are_checked_at_once(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        DETuner(mlp(), **options)
    with pytest.raises(ArgumentError, match="nothing was tried yet"):
        DETuner(mlp()).result()
    with pytest.raises(ArgumentError, match="eval_fn: returned None"):
        tune(mlp(), lambda m: None)


def test_trials_are_plain_data() -> None:
    model, x = made("mlp")
    found = tune(model, score(model, x), max_trials=2)
    for trial in found.trials:
        assert isinstance(trial, Trial)
        assert json.loads(json.dumps(trial.to_dict()))["choices"]["fc1"]["bits"] == trial.bits["fc1"]
    assert found.trials[0].mean_bits == pytest.approx(
        sum(cnn_bits * n for cnn_bits, n in zip(found.trials[0].bits.values(), (192, 256, 64), strict=True))
        / 512
    )
    assert cnn() is not None


@pytest.mark.parametrize("changed", [{"divergence": "mse"}, {"seed": 5}, {"samples": 50}])
def test_scores_of_other_levels_are_not_handed_out(changed: dict[str, Any], tmp_path: Path) -> None:
    model, x = made("mlp")
    options: dict[str, Any] = {"max_trials": 2, "checkpoint": tmp_path / "trials.json"}
    tune(model, score(model, x), DEQuantConfig(bits=[2, 4], batches=x), **options)
    if "seed" in changed:
        options |= changed
    other = DEQuantConfig(bits=[2, 4], batches=x, **changed)
    with pytest.raises(CheckpointError, match="belongs to another search"):
        tune(model, score(model, x), other, **options)


def test_checkpoints_of_other_versions_are_refused(tmp_path: Path) -> None:
    model, x = made("mlp")
    path = tmp_path / "trials.json"
    tune(model, score(model, x), max_trials=2, checkpoint=path)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "format": document["format"] - 1}))
    with pytest.raises(CheckpointError, match="has format 1, expected 2.*give another file"):
        tune(model, score(model, x), max_trials=2, checkpoint=path)


def test_layers_that_share_a_weight_have_to_agree() -> None:
    model, x = made("tied")
    config = DEQuantConfig(bits=[2, 3]).set_local("head", DEQuantConfig(bits=8))
    with pytest.raises(ArgumentError, match="share one weight and allow nothing in common"):
        tune(model, agreement(model, x), config, max_trials=2)


def test_what_is_tuned_may_be_told_by_place_and_advice_fits() -> None:
    model, x = made("mlp")
    short = tune(model, agreement(model, x), DEQuantConfig(bits=[2, 3, 8]), 1e-6, 1, batches=x)
    assert len(short.trials) == 1
    assert not short.ok
    assert short.advice.startswith("max_trials ended the search before")
    never = tune(model, agreement(model, x), DEQuantConfig(bits=2), -1.0, 30, batches=x)
    assert "allow more loss" in never.advice
    assert "give batches" not in never.advice
    assert "give batches" in tune(model, agreement(model, x), DEQuantConfig(bits=2), -1.0).advice


def test_what_may_be_left_alone_is_refused_by_a_search() -> None:
    model, x = made("mlp")
    apart = DEQuantConfig(bits=2).set_local("fc1", DEQuantConfig(dtype="fp32"))
    for configs in (DEQuantConfig(dtype=["int", "fp32"], bits=2), [DEQuantConfig(bits=2), apart]):
        with pytest.raises(ArgumentError, match="dtype.*leaves it alone throughout"):
            DETuner(model, configs, batches=x)
    found = tune(model, score(model, x), apart, tolerable_loss=1.0, max_trials=2, batches=x)
    assert "fc1" not in found.trial.choices


def test_another_function_is_refused_and_what_was_tried_stays(tmp_path: Path) -> None:
    model, x = made("mlp")
    path = tmp_path / "trials.json"
    tuner = DETuner(model, batches=x, max_trials=4, checkpoint=path)
    first, kept, same = tuner.run(score(model, x)), path.read_text(), score(model, x)
    with pytest.raises(ArgumentError, match="eval_fn: gives the original 5.0.*build a DETuner"):
        tuner.run(lambda _: 5.0)
    with pytest.raises(ArgumentError, match="eval_fn: returned nan"):
        tuner.run(lambda _: math.nan)
    assert path.read_text() == kept
    assert unchanged(tuner.result().model, values(first.model))
    assert [t.choices for t in tuner.run(same).trials] == [t.choices for t in first.trials]
