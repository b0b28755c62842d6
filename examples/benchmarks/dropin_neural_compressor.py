"""Directed Evolution and the weight-only algorithms of Neural Compressor on one network, for `dropin.py`.

Every built-in has a row, and "de at ..." is Directed Evolution tuned to the same damage or less: on the first
half of the test images neither its loss nor, by `_MARGIN`, its divergence is above the built-in's. Rows tell
both there, and "unseen" ones on the second half, which is looked at once a row. Training images, without
labels, are all that levels see.
Mean bits are those of the weights that Directed Evolution quantizes, 32 for those that a built-in leaves
alone: of a built-in those it is called by, without its scales; of Directed Evolution what its file takes,
level tables included. Bytes are of the whole network: of a built-in packed bits, 16 bits of scale a group, 8
of zero point where it has one, and the rest as it is; of Directed Evolution the length of the file.
"""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from dropin_networks import Case
from torch import nn

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

_GROUP = 32
_HQQ_GROUP = 20  # its groups must divide every layer
_MARGIN = 0.9
_TRIALS = 14
_PLAIN = {"use_layer_wise": False, "group_size": _GROUP}
_BUILT_IN: dict[str, tuple[Callable[[], Any], int, int]] = {  # config, bits a weight, bits a group beside it
    "rtn 4": (lambda: RTNConfig(bits=4, **_PLAIN), 4, 16),
    "rtn 3": (lambda: RTNConfig(bits=3, **_PLAIN), 3, 16),
    "rtn 2": (lambda: RTNConfig(bits=2, **_PLAIN), 2, 16),
    "nf4": (lambda: RTNConfig(dtype="nf4", **_PLAIN), 4, 16),
    "hqq": (lambda: HQQConfig(bits=4, group_size=_HQQ_GROUP), 4, 24),
    "gptq": (lambda: GPTQConfig(bits=4, **_PLAIN), 4, 16),
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
        return {**_counted(case, model, method), **_measured(case, model), "trials": 1, "seconds": seconds}
    found = _tuned(case, method.removeprefix("de at "), seed)
    seconds = time.monotonic() - started
    told = {
        "mean_bits": _stored(case, found.model),
        "bytes": found.trial.bytes,
        "ok": found.ok,
        "choices": {n: f"{c.bits} {c.codebook} {c.granularity}" for n, c in found.trial.choices.items()},
    }
    return {**told, **_measured(case, found.model), "trials": len(found.trials), "seconds": seconds}


def _measured(case: Case, model: nn.Module) -> dict[str, float]:
    """Return what is told of a model: where it was tuned, and where it was not."""
    tuned, unseen = _halves(case, model)
    return {**tuned, **{f"unseen {name}": value for name, value in unseen.items()}}


def _halves(case: Case, model: nn.Module) -> list[dict[str, float]]:
    """Return loss, divergence and accuracy, in percent, on both halves of the test images."""
    with torch.no_grad():
        outputs = torch.cat([model(x) for x in case.test_inputs.split(250)])
    right = case.right(outputs).double()
    half = len(outputs) // 2
    return [
        {
            "loss": float(case.losses(outputs[part], case.test_labels[part]).double().mean()),
            "divergence": float(case.divergence(outputs[part], case.intact[part], None)),
            "accuracy": 100.0 * float(right[part].mean()),
        }
        for part in (slice(half), slice(half, None))
    ]


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
    total, spent, size = 0, 0.0, float(whole)
    for name, weight in weights.items():
        taken = type(model.get_submodule(name)) is not type(case.model.get_submodule(name))
        total += weight.numel()
        spent += weight.numel() * (bits if taken else 32)
        if taken:
            width = _HQQ_GROUP if method == "hqq" else _GROUP
            groups = len(weight) * -(-weight[0].numel() // width)
            size += (weight.numel() * bits + groups * beside) / 8 - 4 * weight.numel()
    return {"mean_bits": spent / total, "bytes": round(size)}


def _layers(case: Case) -> list[str]:
    """Return the layers that Directed Evolution quantizes."""
    return [name for name, _ in DEQuantConfig().get_model_info(case.model)]


def _stored(case: Case, model: nn.Module) -> float:
    """Return the bits that a weight takes in the file, level tables included."""
    levels = [q for name, q in levels_of(model).items() if case.model.get_parameter(name).dim() > 1]
    return 8 * sum(map(counted, levels)) / sum(q.symbols.numel() for q in levels)


def _tuned(case: Case, method: str, seed: int) -> Tuned:
    """Return the smallest file whose divergence is not above the built-in's."""
    bound = _halves(case, _built_in(case, method))[0]
    intact = _halves(case, case.model)[0]

    def damage(model: nn.Module) -> float:
        now = _halves(case, model.eval())[0]
        apart = now["divergence"] / max(_MARGIN * bound["divergence"], 1e-12)
        return max(apart, now["loss"] / max(bound["loss"], intact["loss"]))

    start = damage(case.model)
    config = DEQuantConfig(
        bits=[2, 3, 4, 5, 6, 7, 8],
        divergence=case.divergence,
        biases=8,
    )
    return tune(
        case.model,
        damage,
        config,
        tolerable_loss=(1 - start) / start,
        max_trials=_TRIALS,
        batches=case.inputs,
        higher_is_better=False,
        seed=seed,
    )
