"""The host's own weight-only algorithms by name, and a network as each leaves it."""

from __future__ import annotations

import copy
import importlib.util
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from de_plugin.adapters.neural_compressor.resolving import escaped
from de_plugin.assess.teacher import Forward, plain_forward
from de_plugin.errors import ArgumentError, MissingDependencyError, StructureError

with warnings.catch_warnings():  # the host is older than the torch it runs on
    warnings.simplefilter("ignore")
    from neural_compressor.torch.algorithms.weight_only.hqq.config import hqq_global_option
    from neural_compressor.torch.quantization import (
        AutoRoundConfig,
        AWQConfig,
        GPTQConfig,
        HQQConfig,
        RTNConfig,
        quantize,
    )

GROUP = 32
"""Weights of a row that share a scale."""
CALIBRATION = 128
"""Samples that an algorithm sees, one at a time, where it sees any."""


@dataclass(frozen=True)
class BuiltIn:
    """One algorithm of the host.

    Attributes:
        config: ``fn(bits, group size, **of the config)``.
        beside: bits that a group has beside its weights: 16 of scale, 8 of zero point where there is one.
        group: weights of a row that share a scale.
        divides: whether groups go over rows, and are the largest up to `group` that divide all layers.
        bits: the only number that it knows; None: the host says which it refuses.
        calibrates: whether it sees data.
        needs: a package that the host does not install for it, as it is imported; empty where it needs none.
        wants: the kind of model that it works on, where that is not any; empty where it is.
    """

    config: Callable[..., Any]
    beside: int = 16
    group: int = GROUP
    divides: bool = False
    bits: int | None = None
    calibrates: bool = False
    needs: str = ""
    wants: str = ""


def _nf4(_bits: int, group: int, **more: Any) -> Any:
    return RTNConfig(dtype="nf4", group_size=group, use_layer_wise=False, **more)


def _rtn(bits: int, group: int, **more: Any) -> Any:
    return RTNConfig(bits=bits, group_size=group, use_layer_wise=False, **more)


def _gptq(bits: int, group: int, **more: Any) -> Any:
    # It takes a model without a path for one to be downloaded; nothing is read from there.
    return GPTQConfig(bits=bits, group_size=group, use_layer_wise=False, model_path=".", **more)


def _of(kind: Any) -> Callable[..., Any]:
    return lambda bits, group, **more: kind(bits=bits, group_size=group, **more)


_BLOCKS = "a transformer whose blocks stand in an nn.ModuleList"

BUILT_IN: Mapping[str, BuiltIn] = {
    "rtn": BuiltIn(_rtn),
    "nf4": BuiltIn(_nf4, bits=4),
    "hqq": BuiltIn(_of(HQQConfig), beside=24, group=20, divides=True),
    "gptq": BuiltIn(_gptq, calibrates=True, needs="accelerate", wants=_BLOCKS),
    "awq": BuiltIn(_of(AWQConfig), calibrates=True, wants=_BLOCKS),
    "autoround": BuiltIn(
        _of(AutoRoundConfig),
        calibrates=True,
        needs="auto_round",
        wants="a model of Hugging Face's transformers",
    ),
}
"""By name. TEQ is left out: in 3.10 it rounds to 4 bits whatever it is asked for, and packs them as fewer."""


def quantized(
    name: str,
    model: nn.Module,
    bits: int,
    inputs: Tensor,
    *,
    forward: Forward = plain_forward,
    layers: Sequence[str] | None = None,
) -> nn.Module:
    """Return a copy of a model as an algorithm of the host leaves it.

    Args:
        name: of the algorithm.
        model: in eval mode; it is not changed.
        bits: a weight.
        inputs: ``(samples, ...)``; the first `CALIBRATION` are seen.
        forward: calls the model.
        layers: names of the layers that it may quantize; None: all that it can.

    Raises:
        ArgumentError: the algorithm has no such number of bits.
        MissingDependencyError: it needs a package that is not installed.
        StructureError: it has failed, and wants another kind of model.
    """
    entry, seen = BUILT_IN[name], inputs[:CALIBRATION]
    if entry.bits not in (None, bits):
        raise ArgumentError(
            f"bits={bits}: {name} has {entry.bits} bits a weight, always; ask for {entry.bits}"
        )
    if entry.needs and importlib.util.find_spec(entry.needs) is None:
        package = entry.needs.replace("_", "-")
        raise MissingDependencyError(f"{name}: needs {package}, pip install {package}")

    def calibrate(network: nn.Module) -> None:
        for x in seen:
            forward(network, x[None])

    more: dict[str, Any] = {} if layers is None else {"white_list": [f"^{escaped(n)}$" for n in layers]}
    given = {"run_fn": calibrate} if entry.calibrates else {}
    config = entry.config(bits, group_of(name, model, bits, layers), **more)
    try:
        with quiet():
            result: nn.Module = quantize(copy.deepcopy(model), config, example_inputs=seen[:1], **given)
    except (Exception, SystemExit) as error:
        if not entry.wants:
            raise
        raise StructureError(
            f"{name} wants {entry.wants}; it failed ({type(error).__name__}: {error})"
        ) from error
    return result


def group_of(name: str, model: nn.Module, bits: int, layers: Sequence[str] | None = None) -> int:
    """Return how many weights share a scale; the arguments are those of `quantized`.

    Raises:
        ArgumentError: no number divides all layers and can be packed.
    """
    entry = BUILT_IN[name]
    if not entry.divides:
        return entry.group
    named = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    sizes = [m.weight.numel() for n, m in named if layers is None or n in layers]
    common, packed = math.gcd(*sizes), {2: 4, 4: 2}.get(bits, 1)  # weights of a group in a byte
    fitting = [n for n in range(packed, entry.group + 1, packed) if common % n == 0]
    if not fitting:
        raise ArgumentError(
            f"bits={bits}: {name} packs {packed} weights of a group into a byte: {packed} has to divide "
            f"the weights of every linear layer (their common divisor is {common}); exclude a layer"
        )
    return fitting[-1]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the host's log lines out of a progress display, and HQQ from half precision, which CPUs lack."""
    logger, half = logging.getLogger("neural_compressor"), hqq_global_option.use_half
    level = logger.level
    logger.setLevel(logging.ERROR)
    hqq_global_option.use_half = False
    try:
        yield
    finally:
        logger.setLevel(level)
        hqq_global_option.use_half = half
