"""The algorithm "de_quant" as the host calls it: to prepare, to convert, or both at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from neural_compressor.common.utils import Mode
from neural_compressor.torch.utils import dump_model_op_stats, register_algo
from torch import nn

from de_plugin.adapters.neural_compressor.config import NAME, DEQuantConfig
from de_plugin.adapters.neural_compressor.fitting import Bench, measuring
from de_plugin.adapters.neural_compressor.recording import record, taken
from de_plugin.adapters.neural_compressor.saving import attach
from de_plugin.adapters.neural_compressor.settings import SHARED, Settings, merged
from de_plugin.assess.guard import untouched_on_error
from de_plugin.errors import ArgumentError

_HOSTS = ("run_fn", "run_args", "example_inputs", "inplace")


def de_quant_entry(
    model: nn.Module,
    configs_mapping: Mapping[tuple[str, str], Any],
    mode: Mode = Mode.QUANTIZE,
    **kwargs: Any,
) -> nn.Module:
    """Give layers their levels in place; after any exception the model is bit-exactly what it was.

    Args:
        model: any module; in train mode it is measured in eval mode, and gets its modes back.
        configs_mapping: the host's; configs of other algorithms are passed over.
        mode: prepare, convert, or both.
        kwargs: the host's `run_fn`, `run_args` and `example_inputs`; what `convert` is given, which may be
            anything that concerns the whole network, as in ``convert(model, config, teacher=dense)``.

    Raises:
        DEError: an argument cannot work; the message says what to do.
    """
    chosen = {
        name: config
        for (name, _), config in configs_mapping.items()
        if config.name == NAME and config.dtype != "fp32"
    }
    if not chosen:
        return model
    alone = all(config.name == NAME for config in configs_mapping.values())
    settings = _settings(chosen, kwargs, alone)
    with untouched_on_error(model):
        try:
            if mode == Mode.PREPARE:
                if settings.batches is None:
                    record(model, settings.samples)
                return model
            settings = _with_inputs(model, settings, mode, kwargs)
            with measuring(model):
                bench = Bench(model, chosen, settings, _fits(chosen))
                bench.prepare()
                found = bench.finished(bench.chosen({n: c.choice for n, c in chosen.items()}))
                bench.write(found)
        except BaseException:
            taken(model)
            raise
    attach(model, found.levels, configs_mapping)
    own = {key: config for key, config in configs_mapping.items() if config.name == NAME}
    dump_model_op_stats(mode, own)  # it reads of every config what only some have
    return model


register_algo(NAME)(de_quant_entry)


def _settings(chosen: Mapping[str, DEQuantConfig], kwargs: Mapping[str, Any], alone: bool) -> Settings:
    given = {name: value for name, value in kwargs.items() if name in SHARED}
    unknown = [n for n in kwargs if n not in (*SHARED, *_HOSTS)]
    if not alone:  # it may be another algorithm's, unless it looks like one of ours
        unknown = [n for n in unknown if difflib.get_close_matches(n, SHARED, n=1, cutoff=0.75)]
    if unknown:
        near = difflib.get_close_matches(unknown[0], SHARED, n=1, cutoff=0.3) or SHARED
        raise ArgumentError(f"{unknown[0]}=...: no such argument; did you mean {', '.join(near)}?")
    return merged([*(config.shared() for config in chosen.values()), given])


def _with_inputs(model: nn.Module, settings: Settings, mode: Mode, kwargs: Mapping[str, Any]) -> Settings:
    """Return the settings with the inputs that the host's calibration shows, where they have no batches."""
    run = kwargs.get("run_fn")
    if settings.batches is None and mode == Mode.QUANTIZE and run is not None:
        record(model, settings.samples)
        with measuring(model):
            run(model, *(kwargs.get("run_args") or ()))
    met = taken(model)
    values = {name: getattr(settings, name) for name in SHARED}
    return settings if settings.batches is not None or met is None else Settings(**{**values, "batches": met})


def _fits(chosen: Mapping[str, DEQuantConfig]) -> Any:
    """Return the levels that a tuner has fitted before, if one sent the configs."""
    return next((c._fits for c in chosen.values() if c._fits is not None), None)
