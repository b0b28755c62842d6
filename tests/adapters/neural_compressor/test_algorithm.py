"""The algorithm by its name in the host: every way to call it, every kind of layer, nothing else touched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from de_plugin.assess.layers import PRUNABLE
from de_plugin.errors import ArgumentError, DEError
from de_plugin.prune.recover import Distillation
from tests.adapters.neural_compressor.networks import NETWORKS, cnn, levels, made, mlp, unchanged, values

from de_plugin.adapters.neural_compressor import DEQuantConfig  # isort: skip
from neural_compressor.torch.quantization import convert, prepare, quantize  # isort: skip


SHORT = Distillation(steps=30)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.{own}": p
        for name, module in model.named_modules()
        if isinstance(module, PRUNABLE)
        for own, p in module.named_parameters(recurse=False)
        if p.dim() > 1
    }


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_weight_gets_at_most_its_levels_and_nothing_else_changes(name: str, bits: int) -> None:
    model, x = made(name)
    before = values(model)
    found = quantize(copy.deepcopy(model), DEQuantConfig(bits=bits))
    mine = weights(found)
    assert mine
    assert all(levels(w) <= 2**bits for w in mine.values())
    for key, value in found.state_dict().items():
        assert key in mine or torch.equal(value, before[key])
    assert bool(torch.isfinite(found(x)).all())
    assert [type(m) for m in found.modules()] == [type(m) for m in model.modules()]
    if bits == 8:
        assert torch.allclose(found(x), model(x), atol=0.1)


@pytest.mark.parametrize("codebook", ["best", "uniform", "affine", "power", "kmeans", "entropy"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_every_codebook_at_both_granularities_keeps_zeros(codebook: str, granularity: str) -> None:
    model, _ = made("cnn")
    with torch.no_grad():
        for w in weights(model).values():
            w[torch.rand_like(w) < 0.6] = 0.0
    zeros = {name: w == 0 for name, w in weights(model).items()}
    found = quantize(model, DEQuantConfig(bits=3, codebook=codebook, granularity=granularity))
    for name, w in weights(found).items():
        assert bool((w[zeros[name]] == 0).all())
        assert codebook == "entropy" or bool((w[~zeros[name]] != 0).all())
        assert max(levels(row) for row in w) <= 8
    assert granularity == "tensor" or levels(weights(found)["6.weight"]) > 8


def test_data_lower_the_divergence() -> None:
    model, x = made("cnn")
    with torch.no_grad():
        model.get_parameter("0.weight")[:, :, 1:] *= 0.1
    teacher = model(x).log_softmax(1)

    def divergence(config: DEQuantConfig) -> float:
        student = quantize(copy.deepcopy(model), config)
        assert isinstance(student, nn.Module)
        apart = teacher - student(x).log_softmax(1)
        return float((teacher.exp() * apart).sum(1).mean().detach())

    plain = divergence(DEQuantConfig(bits=2))
    measured = divergence(DEQuantConfig(bits=2, batches=x))
    recovered = divergence(DEQuantConfig(bits=2, batches=x, recovery=SHORT))
    assert measured < plain
    assert recovered < measured


@pytest.mark.parametrize("recovery", ["bias", "batchnorm", "levels", SHORT, ["bias", SHORT]])
def test_recoveries_keep_the_levels_few(recovery: Any) -> None:
    model, x = made("cnn")
    found = quantize(model, DEQuantConfig(bits=3, batches=x, recovery=recovery, biases=4))
    assert all(levels(w) <= 8 for w in weights(found).values())
    assert all(levels(found.get_parameter(f"{n}.bias")) <= 16 for n in ("0", "3", "6", "8"))


def test_prepare_and_convert_are_quantize() -> None:
    model, x = made("mlp")
    config = DEQuantConfig(bits=3, seed=4)
    direct = quantize(copy.deepcopy(model), config)
    prepared = prepare(copy.deepcopy(model), config)
    assert torch.equal(convert(prepared)(x), direct(x))
    kept = prepare(model, config, inplace=False)
    assert torch.equal(convert(kept, inplace=False)(x), direct(x))
    assert levels(model.get_parameter("fc1.weight")) > 8


def test_calibration_of_the_host_is_taken_for_batches() -> None:
    model, x = made("mlp")
    config = DEQuantConfig(bits=2)
    given = quantize(copy.deepcopy(model), DEQuantConfig(bits=2, batches=x))
    run = quantize(copy.deepcopy(model), config, run_fn=lambda m, data: m(data), run_args=(x,))
    prepared = prepare(copy.deepcopy(model), config)
    prepared(x)
    converted = convert(prepared)
    assert torch.equal(run(x), given(x))
    assert torch.equal(converted(x), given(x))
    assert not torch.equal(quantize(copy.deepcopy(model), config)(x), given(x))
    assert not converted._forward_pre_hooks


def test_convert_takes_a_teacher_and_refuses_what_it_does_not_know() -> None:
    model, x = made("mlp")
    dense = copy.deepcopy(model)
    with torch.no_grad():
        model.get_parameter("fc1.weight")[:8] = 0.0
    config = DEQuantConfig(bits=3, batches=x, recovery=SHORT)
    found = convert(copy.deepcopy(model), config, teacher=dense)
    assert not torch.equal(found(x), quantize(copy.deepcopy(model), config)(x))
    before = values(model)
    with pytest.raises(ArgumentError, match="teecher=.*did you mean teacher"):
        convert(model, config, teecher=dense)
    assert unchanged(model, before)


def test_dict_configs() -> None:
    model, _ = made("mlp")
    plain = quantize(copy.deepcopy(model), {"de_quant": {"bits": 3, "codebook": "kmeans"}})
    local = quantize(
        copy.deepcopy(model),
        {"de_quant": {"global": {"bits": 3, "codebook": "kmeans"}, "local": {"fc1": {"bits": 2}}}},
    )
    assert [levels(p) for p in weights(plain).values()] == [8, 8, 8]
    assert levels(weights(local)["fc1.weight"]) <= 4
    assert torch.equal(weights(local)["fc10.weight"], weights(plain)["fc10.weight"])


def test_modes_come_back_and_the_seed_decides() -> None:
    model, x = made("cnn")
    model.train()
    model.get_submodule("3").eval()
    modes = [m.training for m in model.modules()]
    config = DEQuantConfig(bits=2, batches=x, recovery=SHORT, seed=3)
    first, second = quantize(copy.deepcopy(model), config), quantize(copy.deepcopy(model), config)
    assert [m.training for m in first.modules()] == modes
    assert unchanged(second, values(first))


class _Interrupt:
    def __init__(self, kind: type[BaseException], after: int) -> None:
        self.kind = kind
        self.calls = -after

    def __call__(self, model: nn.Module, x: Tensor) -> Any:
        self.calls += 1
        if self.calls > 0:
            raise self.kind("now")
        return model(x)


@pytest.mark.parametrize(("kind", "after"), [(KeyboardInterrupt, 12), (RuntimeError, 0)])
def test_after_an_exception_the_model_is_what_it_was(kind: type[BaseException], after: int) -> None:
    model, x = made("cnn")
    before = values(model)
    with pytest.raises((kind, DEError)):
        quantize(model, DEQuantConfig(bits=2, batches=x, forward=_Interrupt(kind, after)))
    assert unchanged(model, before)

    def fails(network: nn.Module) -> None:
        network(x)
        raise kind("later")

    with pytest.raises(kind):
        quantize(model, DEQuantConfig(bits=2), run_fn=fails)
    assert unchanged(model, before)
    assert not model._forward_pre_hooks
    assert "_de_recorder" not in vars(model)


def test_what_cannot_be_measured_is_refused() -> None:
    model = cnn()
    before = values(model)
    cases: tuple[dict[str, Any], ...] = ({"recovery": "levels"}, {"teacher": cnn()}, {"weighting": "fisher"})
    for arguments in cases:
        with pytest.raises(ArgumentError, match="needs calibration data; give batches"):
            quantize(model, DEQuantConfig(**arguments))
    with pytest.raises(DEError, match="batches"):
        quantize(model, DEQuantConfig(batches=torch.randn(8, 3, 3, 3)))
    assert unchanged(model, before)


def test_shared_weights_get_one_set_of_levels() -> None:
    model, _ = made("tied")
    found = quantize(copy.deepcopy(model), DEQuantConfig(bits=2))
    assert found.get_parameter("head.weight") is found.get_parameter("tokens.weight")
    with pytest.raises(ArgumentError, match="tokens and head share one weight"):
        quantize(model, DEQuantConfig(bits_per_layer={"head": 2, "tokens": 3}))


def test_half_precision_and_a_layer_alone() -> None:
    model = mlp().to(torch.bfloat16)
    found = quantize(model, DEQuantConfig(bits=4))
    assert found.get_parameter("fc1.weight").dtype == torch.bfloat16
    assert levels(found.get_parameter("fc1.weight")) <= 16
    assert levels(quantize(nn.Linear(9, 9), DEQuantConfig(bits=2)).weight) <= 4


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(2, 8), min_size=3, max_size=3), st.sampled_from(["uniform", "kmeans", "entropy"]))
def test_bits_by_layer_are_kept(bits: list[int], codebook: str) -> None:
    names = ("fc1", "fc10", "head")
    config = DEQuantConfig(codebook=codebook, bits_per_layer=dict(zip(names, bits, strict=True)))
    found = quantize(mlp(), config)
    for name, number in zip(names, bits, strict=True):
        assert levels(found.get_parameter(f"{name}.weight")) <= 2**number
