"""Directed Evolution and the weight-only algorithms of Neural Compressor on one network, for `dropin.py`.

Every built-in has a row, and "de at ..." is Directed Evolution tuned to the same damage or less: on training
images that no method calibrates on, without their labels, its divergence from the intact network is at most
`_MARGIN` of the built-in's. Loss, divergence and accuracy on the test images are looked at once a row, at its
end.
Mean bits are what the weights take that Directed Evolution quantizes, 32 for those that a built-in leaves
alone: of a built-in its bits, 16 of scale a group, and 8 of zero point where it has one; of Directed
Evolution its part of the file, level tables included. Nominal bits leave scales, tables and coding out. Bytes
are of the whole network: of a built-in these bits, and the rest as it is; of Directed Evolution the length of
the file.
"""

from __future__ import annotations

import copy
import functools
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from dropin_networks import Case
from torch import Tensor, nn

with warnings.catch_warnings():  # the host is older than the torch it runs on
    warnings.simplefilter("ignore")
    import neural_compressor
    from neural_compressor.torch.algorithms.weight_only.hqq.config import hqq_global_option
    from neural_compressor.torch.quantization import (
        AutoRoundConfig,
        AWQConfig,
        GPTQConfig,
        HQQConfig,
        RTNConfig,
        quantize,
    )

    from de_plugin.adapters.neural_compressor import DEQuantConfig, Tuned, tune
    from de_plugin.adapters.neural_compressor.saving import levels_of

from de_plugin.quantize.cost import counted
from de_plugin.zoo import DATA, Dataset

_GROUP = 32
_HQQ_GROUP = 20  # its groups must divide every layer
_MARGIN = 0.5
_TRIALS = 10
_HELD_OUT = 3000
# GPTQ takes a model without a path for one to be downloaded; nothing is read from there.
_PLAIN = {"use_layer_wise": False, "group_size": _GROUP}
_BUILT_IN: dict[str, tuple[Callable[[], Any], int, int]] = {  # config, bits a weight, bits a group beside it
    "rtn 4": (lambda: RTNConfig(bits=4, **_PLAIN), 4, 16),
    "rtn 3": (lambda: RTNConfig(bits=3, **_PLAIN), 3, 16),
    "rtn 2": (lambda: RTNConfig(bits=2, **_PLAIN), 2, 16),
    "nf4": (lambda: RTNConfig(dtype="nf4", **_PLAIN), 4, 16),
    "hqq": (lambda: HQQConfig(bits=4, group_size=_HQQ_GROUP), 4, 24),
    "gptq": (lambda: GPTQConfig(bits=4, model_path=".", **_PLAIN), 4, 16),
    "awq": (lambda: AWQConfig(bits=4, group_size=_GROUP), 4, 16),
    "autoround": (lambda: AutoRoundConfig(bits=4, group_size=_GROUP), 4, 16),
}

METHODS = tuple(method for name in _BUILT_IN for method in (name, f"de at {name}"))
VERSIONS = {"neural_compressor": neural_compressor.__version__}

logging.getLogger("neural_compressor").setLevel("ERROR")


def row(case: Case, method: str, _ratio: float | None, _steps: int | None, seed: int) -> dict[str, Any]:
    """Quantize a copy once and measure it."""
    torch.manual_seed(seed)
    started = time.monotonic()
    if not method.startswith("de at "):
        model = _built_in(case, method)
        seconds = time.monotonic() - started
        return {**_counted(case, model, method), **case.measured(model), "trials": 1, "seconds": seconds}
    found = _tuned(case, method.removeprefix("de at "), seed)
    seconds = time.monotonic() - started
    told = {
        "mean_bits": _stored(case, found.model),
        "nominal_bits": found.trial.mean_bits,
        "bytes": found.trial.bytes,
        "ok": found.ok,
        "choices": {n: f"{c.bits} {c.codebook} {c.price}" for n, c in found.trial.choices.items()},
    }
    return {**told, **case.measured(found.model), "trials": len(found.trials), "seconds": seconds}


@functools.cache
def _held_out(case: Case, seed: int) -> Tensor:
    """Return training images that are none of the case's; the seed is the one that has chosen those."""
    images = _data(case.data).train_inputs
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    start = len(case.inputs)
    if not torch.equal(images[order[:start]], case.inputs):
        raise RuntimeError(f"{case.data}: the case has drawn other images than its seed says")
    return images[order[start : start + _HELD_OUT]]


@functools.cache
def _data(name: str) -> Dataset:
    return DATA[name]()


def _apart(case: Case, seed: int) -> Callable[[nn.Module], float]:
    """Return what tells how far a model is from the intact one, without labels and test data."""
    batches = _held_out(case, seed).split(250)

    def outputs(model: nn.Module) -> Tensor:
        model.eval()
        with torch.no_grad():
            return torch.cat([model(x) for x in batches])

    intact = outputs(case.model)
    return lambda model: float(case.divergence(outputs(model), intact, None))


def _built_in(case: Case, method: str) -> nn.Module:
    """Return a copy that a built-in has quantized."""
    hqq_global_option.use_half = False  # the CPU has no kernels for it
    inputs = case.inputs[:128]

    def calibrate(model: nn.Module) -> None:
        for x in inputs:
            model(x[None])

    given = {} if method in ("rtn 4", "rtn 3", "rtn 2", "nf4", "hqq") else {"run_fn": calibrate}
    result: nn.Module = quantize(
        copy.deepcopy(case.model), _BUILT_IN[method][0](), example_inputs=inputs[:1], **given
    )
    return result


def _counted(case: Case, model: nn.Module, method: str) -> dict[str, float]:
    """Return bits a weight and bytes, scales included."""
    _, bits, beside = _BUILT_IN[method]
    weights = {name: case.model.get_submodule(name).get_parameter("weight") for name in _layers(case)}
    whole = sum(x.numel() * x.element_size() for x in case.model.state_dict().values())
    total = nominal = scales = 0
    for name, weight in weights.items():
        taken = type(model.get_submodule(name)) is not type(case.model.get_submodule(name))
        total += weight.numel()
        nominal += weight.numel() * (bits if taken else 32)
        width = _HQQ_GROUP if method == "hqq" else _GROUP
        groups = len(weight) * -(-weight[0].numel() // width) if taken else 0
        scales += groups * beside
    spent = nominal + scales
    size = whole - 4 * total + spent / 8
    return {"mean_bits": spent / total, "nominal_bits": nominal / total, "bytes": round(size)}


def _layers(case: Case) -> list[str]:
    """Return the layers that Directed Evolution quantizes."""
    return [name for name, _ in DEQuantConfig().get_model_info(case.model)]


def _stored(case: Case, model: nn.Module) -> float:
    """Return the bits that a weight takes in the file, level tables included."""
    levels = [q for name, q in levels_of(model).items() if case.model.get_parameter(name).dim() > 1]
    return 8 * sum(map(counted, levels)) / sum(q.symbols.numel() for q in levels)


def _tuned(case: Case, method: str, seed: int) -> Tuned:
    """Return the smallest file whose divergence is not above the built-in's."""
    apart = _apart(case, seed)
    bound = _MARGIN * apart(_built_in(case, method))
    config = DEQuantConfig(
        bits=[2, 3, 4, 5, 6],
        divergence=case.divergence,
        rounding="compensated",
        samples=len(case.inputs),
        biases=8,
    )
    return tune(
        case.model,
        apart,
        config,
        tolerable_loss=bound,  # absolute: the intact network's is zero
        max_trials=_TRIALS,
        batches=case.inputs,
        higher_is_better=False,
        seed=seed,
    )
