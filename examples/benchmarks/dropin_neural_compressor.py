"""Directed Evolution and the weight-only algorithms of Neural Compressor on one network, for `dropin.py`.

Every built-in has a row, and "de at ..." is Directed Evolution tuned to less damage: on training data that no
method calibrates on, without labels, its divergence from the intact network is at most a share of the
built-in's, the case's `margin`, so that its loss is not above it but for chance. Rows of one network share
what was measured of its layers and in trials; their seconds are those of what was new. Loss, divergence and
accuracy on the test data are looked at once a row, at its end.
Mean bits are what the weights take that Directed Evolution quantizes, 32 for those that a built-in leaves
alone: of a built-in its bits, 16 of scale a group, and 8 of zero point where it has one; of Directed
Evolution its part of the file, level tables included. Nominal bits leave scales, tables and coding out. Bytes
are of the whole network: of a built-in these bits, and the rest as it is; of Directed Evolution the length of
the file.
"""

from __future__ import annotations

import functools
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from dropin_networks import MARGIN, MINILM_MARGIN, Case
from torch import Tensor, nn

with warnings.catch_warnings():  # the host is older than the torch it runs on
    warnings.simplefilter("ignore")
    import neural_compressor

    from de_plugin.adapters.neural_compressor import DEQuantConfig, DETuner, Tuned
    from de_plugin.adapters.neural_compressor.builtin import quantized
    from de_plugin.adapters.neural_compressor.counting import coded, stored
    from de_plugin.adapters.neural_compressor.trials import Tolerance

from de_plugin.zoo import DATA, Dataset

_TRIALS = 10
_HELD_OUT = 3000
_BUILT_IN = {  # the adapter's name of it, bits a weight
    **{f"rtn {bits}": ("rtn", bits) for bits in (4, 3, 2)},
    **{name: (name, 4) for name in ("nf4", "hqq", "gptq", "awq", "autoround")},
}

METHODS = tuple(method for name in _BUILT_IN for method in (name, f"de at {name}"))
CRITERION = (
    f"at most {MARGIN} of the divergence (minilm {MINILM_MARGIN}) on held-out training data, {_TRIALS} trials"
)
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
        "mean_bits": coded(found.model),
        "nominal_bits": found.trial.mean_bits,
        "bytes": found.trial.bytes,
        "ok": found.ok,
        "choices": {n: f"{c.bits} {c.codebook} {c.price}" for n, c in found.trial.choices.items()},
    }
    return {**told, **case.measured(found.model), "trials": len(found.trials), "seconds": seconds}


@functools.lru_cache(maxsize=1)
def _held_out(case: Case, seed: int) -> Tensor:
    """Return the case's own, or training images that it has not; the seed is the one that has chosen its."""
    own: Tensor | None = case.held_out
    if own is not None:
        return own
    images = _data(case.data).train_inputs
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    start = len(case.inputs)
    if not torch.equal(images[order[:start]], case.inputs):
        raise RuntimeError(f"{case.data}: the case has drawn other images than its seed says")
    return images[order[start : start + _HELD_OUT]]


@functools.cache
def _data(name: str) -> Dataset:
    return DATA[name]()


@functools.lru_cache(maxsize=1)
def _apart(case: Case, seed: int) -> Callable[[nn.Module], float]:
    """Return what tells how far a model is from the intact one, without labels and test data."""
    batches = _held_out(case, seed).split(250)

    def outputs(model: nn.Module) -> Tensor:
        model.eval()
        with torch.no_grad():
            return torch.cat([model(x) for x in batches])

    intact = outputs(case.model)
    # of a cosine rounding leaves less than nothing
    return lambda model: max(0.0, float(case.divergence(outputs(model), intact, None)))


def _built_in(case: Case, method: str) -> nn.Module:
    """Return a copy that a built-in has quantized."""
    name, bits = _BUILT_IN[method]
    return quantized(name, case.model, bits, case.inputs)


def _counted(case: Case, model: nn.Module, method: str) -> dict[str, float]:
    """Return bits a weight of the layers that Directed Evolution quantizes, and bytes; scales included."""
    name, bits = _BUILT_IN[method]
    weights = [f"{layer}.weight" for layer in _layers(case)]
    found = stored(name, case.model, bits, model, weights)
    whole = sum(x.numel() * x.element_size() for x in case.model.state_dict().values())
    size = whole - 4 * found.weights + found.total / 8
    return {
        "mean_bits": found.mean,
        "nominal_bits": found.nominal / found.weights,
        "bytes": round(size),
    }


def _layers(case: Case) -> list[str]:
    """Return the layers that Directed Evolution quantizes: all it can but tables, as the host does."""
    found: list[tuple[str, str]] = DEQuantConfig().get_model_info(case.model)
    return [name for name, kind in found if kind != nn.Embedding.__name__]


def _tuned(case: Case, method: str, seed: int) -> Tuned:
    """Return the smallest file whose divergence is far below the built-in's."""
    apart, tuner = _apart(case, seed), _tuner(case, seed)
    bound = case.margin * apart(_built_in(case, method))
    tuner.tolerance = Tolerance(bound, higher_is_better=False)  # absolute: the intact network's is zero
    return tuner.run(apart)


@functools.lru_cache(maxsize=1)
def _tuner(case: Case, seed: int) -> DETuner:
    given: dict[str, Any] = {
        "bits": [2, 3, 4, 5, 6],
        "divergence": case.divergence,
        "rounding": "compensated",
        "samples": len(case.inputs),
        "biases": 8,
        "white_list": _layers(case),
    }
    config = DEQuantConfig(**{**given, **case.levels})
    return DETuner(case.model, config, max_trials=_TRIALS, batches=case.inputs, seed=seed)
