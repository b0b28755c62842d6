"""Levels that make good each other's errors: closer to the original at the same bits, smaller when tuned."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from de_plugin.errors import ArgumentError
from de_plugin.quantize import layerwise
from tests.adapters.neural_compressor.networks import NETWORKS, levels, made, unchanged, values

from de_plugin.adapters.neural_compressor import DEQuantConfig, DETuner, agreement, tune  # isort: skip
from neural_compressor.torch.quantization import autotune, quantize  # isort: skip


def quantized(model: nn.Module, **options: Any) -> nn.Module:
    found = quantize(copy.deepcopy(model), DEQuantConfig(**options))
    assert isinstance(found, nn.Module)
    return found


@pytest.mark.parametrize("bits", [2, 3, 5])
@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "tied"])
def test_closer_to_the_original_at_the_same_bits(name: str, bits: int) -> None:
    model, x = made(name)
    options: dict[str, Any] = {"bits": bits, "batches": x, "biases": 8}
    found = quantized(model, **options, rounding="compensated")
    nearest = quantized(model, **options, codebook="uniform")
    agrees = agreement(model, x)
    assert agrees(found) > agrees(nearest)
    assert all(levels(p) <= 2**bits for p in found.parameters() if p.dim() > 1)


def test_a_weight_in_two_places_is_rounded_alone() -> None:
    model, x = made("tied")
    found = quantized(model, bits=3, batches=x, rounding="compensated")
    alone = quantized(model, bits=3, codebook="uniform")
    agrees = agreement(model, x)
    assert levels(found.get_parameter("head.weight")) <= 8
    assert agrees(found) > 0.9 * agrees(alone)


def test_zeros_stay_and_a_price_makes_more_of_them() -> None:
    model, x = made("cnn")
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p[torch.rand_like(p) < 0.5] = 0.0
    before = values(model)
    zeros = []
    for price in (0.0, 1.0, 10.0):
        found = quantized(model, bits=3, codebook="entropy", price=price, batches=x, rounding="compensated")
        mine = [(p, before[n]) for n, p in found.named_parameters() if p.dim() > 1]
        assert all(bool((p[old == 0] == 0).all()) for p, old in mine)
        zeros.append(sum(int((p == 0).sum()) for p, _ in mine))
    assert zeros[0] < zeros[1] < zeros[2]


def test_exact_biases_stay_and_so_does_the_rest() -> None:
    model, x = made("cnn")
    before = values(model)
    found = values(quantized(model, bits=3, batches=x, rounding="compensated"))
    weights = {f"{n}.weight" for n in ("0", "3", "6", "8")}
    assert all(torch.equal(found[n], before[n]) == (n not in weights) for n in before)


def test_without_batches_it_is_refused() -> None:
    model, x = made("mlp")
    with pytest.raises(ArgumentError, match="rounding='compensated': needs calibration data; give batches"):
        quantize(model, DEQuantConfig(rounding="compensated"))
    run = quantize(copy.deepcopy(model), DEQuantConfig(rounding="compensated"), run_fn=lambda m: m(x))
    assert unchanged(run, values(quantized(model, rounding="compensated", batches=x)))


@pytest.mark.parametrize("cheapest", ["bytes", "bits"])
def test_tuned_levels_are_cheaper_at_the_same_loss(cheapest: str, tmp_path: Path) -> None:
    model, x = made("cnn")
    options: dict[str, Any] = {"batches": x, "tolerable_loss": 0.002, "max_trials": 12, "cheapest": cheapest}
    before = values(model)
    agrees = agreement(model, x)
    config = DEQuantConfig(bits=[2, 3, 4, 5, 6], rounding="compensated", biases=8)
    found = tune(model, agrees, config, **options)
    nearest = tune(model, agrees, DEQuantConfig(bits=[2, 3, 4, 5, 6], biases=8), **options)
    assert unchanged(model, before)
    assert found.ok
    assert nearest.ok
    if cheapest == "bytes":
        assert found.trial.bytes < nearest.trial.bytes
    else:
        assert found.trial.mean_bits <= nearest.trial.mean_bits
    assert found.save(tmp_path / "net.de.safetensors").file_bytes == found.trial.bytes
    assert unchanged(quantize(copy.deepcopy(model), found.config), values(found.model))


def test_the_hosts_autotune_gives_the_same_model() -> None:
    model, x = made("mlp")
    config = DEQuantConfig(bits=[2, 3, 4], rounding="compensated", biases=8)
    tuner = DETuner(model, config, batches=x, max_trials=4, tolerable_loss=0.01)
    found = autotune(model, tuner.tuning_config, tuner.eval_fn(agreement(model, x)))
    assert unchanged(found, values(tuner.result().model))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_single_huge_weights_do_not_coarsen_the_others(bits: int) -> None:
    """Transformers have weights of a hundred times the usual size, in rows that a few may not show."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 200), nn.ReLU(), nn.Linear(200, 4)
    ).eval()
    x = torch.randn(600, 24)
    with torch.no_grad():
        weights = dict(model.named_parameters())
        weights["2.weight"][101, 7] = 100 * weights["2.weight"].std()
        weights["0.weight"][7] *= 0.01  # so that it says as much as others
        weights["0.bias"][7] *= 0.01
    agrees = agreement(model, x)
    found = quantized(model, bits=bits, batches=x, rounding="compensated")
    nearest = quantized(model, bits=bits, batches=x, codebook="entropy")
    assert 1 - agrees(found) < 0.7 * (1 - agrees(nearest))
    old, new = (float(m.get_parameter("2.weight").detach()[101, 7]) for m in (model, found))
    assert new == pytest.approx(old, rel=1e-5)


@pytest.mark.parametrize("samples", [12, 80, 200])
def test_few_samples_are_not_learnt_by_heart(samples: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(64, 64), nn.ReLU()))).eval()
    x, fresh = torch.randn(samples, 64), torch.randn(2000, 64)
    agrees = agreement(model, fresh)
    options: dict[str, Any] = {"bits": 3, "batches": x, "divergence": "mse"}
    lost = 1 - agrees(quantized(model, **options, rounding="compensated"))
    assert lost < 0.9 * (1 - agrees(quantized(model, **options, codebook="uniform")))


def test_what_is_lost_is_made_good_as_far_as_few_samples_foretell_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(64, 64), nn.ReLU()))).eval()
    x, fresh = torch.randn(80, 64), torch.randn(2000, 64)
    agrees = agreement(model, fresh)
    options: dict[str, Any] = {"bits": 3, "batches": x, "divergence": "mse", "rounding": "compensated"}
    careful = 1 - agrees(quantized(model, **options))
    monkeypatch.setattr(layerwise, "_ENOUGH", 0)
    assert careful < 0.9 * (1 - agrees(quantized(model, **options)))


@pytest.mark.parametrize("bits", [2, 4])
def test_a_layer_that_is_all_zero_stays_so(bits: int) -> None:
    model, x = made("cnn")
    with torch.no_grad():
        model.get_parameter("3.weight").zero_()
    found = quantized(model, bits=bits, batches=x, rounding="compensated")
    assert not bool(found.get_parameter("3.weight").any())
