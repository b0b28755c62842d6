"""What `de-plugin compare` measures of Neural Compressor: weight-only algorithms, and Directed Evolution.

All get the same number of bits for every layer. Mean bits are of the weights that Directed Evolution
quantizes: of the host's they count scales and zero points, and 32 bits where an algorithm leaves a weight
alone; of Directed Evolution its part of the file, level tables included, and its biases stay exact.
"""

from __future__ import annotations

import warnings
from functools import partial
from importlib import metadata
from typing import Any

from de_plugin.adapters.neural_compressor import DEQuantConfig
from de_plugin.adapters.neural_compressor.builtin import BUILT_IN, quantized, quiet
from de_plugin.adapters.neural_compressor.counting import stored, with_plain_layers
from de_plugin.adapters.neural_compressor.parts import layer_of
from de_plugin.adapters.neural_compressor.saving import levels_of
from de_plugin.compare import Case, Host, Method, Pruned
from de_plugin.compare.case import layer_bits, mean_bits

with warnings.catch_warnings():  # the host is older than the torch it runs on
    warnings.simplefilter("ignore")
    from neural_compressor.torch.quantization import quantize

NAME = "neural-compressor"
_NOTES = (
    "neural-compressor: its own algorithms quantize linear layers only, and leave all others at 32 bits",
    "neural-compressor: its GPTQ, AWQ and AutoRound need transformer blocks",
    "neural-compressor: its GPTQ needs the package accelerate, and its AutoRound auto-round",
    "neural-compressor: Directed Evolution in it has no budget of evaluations or seconds",
    "neural-compressor: its TEQ is left out: in 3.10 it rounds to 4 bits, whatever it is asked for",
)


def host() -> Host:
    """Return all methods of the host, Directed Evolution first."""
    compensated = partial(_evolved, rounding="compensated")
    return Host(
        NAME,
        {NAME: metadata.version("neural-compressor")},
        (
            Method("bits", NAME, "de", _evolved, "levels of each layer, chosen by measuring"),
            Method("bits", NAME, "de (compensated)", compensated, "levels make good each other's errors"),
            *(Method("bits", NAME, name, partial(_built_in, name), "built in") for name in BUILT_IN),
        ),
        _NOTES,
    )


def _evolved(case: Case, rounding: str = "nearest") -> Pruned:
    """Quantize a copy by Directed Evolution, without labels."""
    asked = {n: v for n, v in case.asked().items() if n != "batch_size"}
    config = DEQuantConfig(
        bits=case.bits,
        batches=[batch[:1] for batch in case.batches],
        rounding=rounding,
        white_list=_layers(case),
        **asked,
    )
    with quiet():
        model: Any = quantize(case.copy(), config)
    held = levels_of(model)
    levels = {name: held[name] for name in case.weights if name in held}
    return Pruned(model, bits=mean_bits(levels.values()), layers=layer_bits(levels))


def _built_in(name: str, case: Case) -> Pruned:
    """Quantize a copy by an algorithm of the host; where all layers may go it chooses by itself."""
    layers = _layers(case) if case.include or case.exclude else None
    found = quantized(name, case.model, case.bits, case.inputs, forward=case.forward, layers=layers)
    each = {w: stored(name, case.model, case.bits, found, [w], layers=layers) for w in case.weights}
    bits = sum(x.total for x in each.values()) / sum(x.weights for x in each.values())
    return Pruned(
        with_plain_layers(case.model, found),
        evaluations=0,
        bits=bits,
        layers=tuple((weight, x.mean) for weight, x in each.items()),
    )


def _layers(case: Case) -> list[str]:
    return list(dict.fromkeys(map(layer_of, case.weights)))
