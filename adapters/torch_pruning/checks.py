"""Options of Torch-Pruning that would make it do nothing, or something else than asked: refused."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch_pruning as tp
from torch import nn

from de_plugin.adapters.torch_pruning.importance import DEImportance
from de_plugin.errors import ArgumentError

TARGETS = ("target_macs", "target_params", "max_divergence")
"""Options that say what is to be reached in place of a ratio."""
ASKED = ("criterion", "divergence", "forward", "samples", "batch_size", "holdout", "seed")
"""Options of the search, which a `DEImportance` has settled already."""
OWN = (*ASKED, "match_batchnorm", *TARGETS)
"""Options of ours, beside the host's."""
_RATIOS = ("pruning_ratio", "ch_sparsity", "head_pruning_ratio")


def check_options(
    model: Any,
    cls: type,
    options: Mapping[str, Any],
    own: Mapping[str, Any],
    batches: Any,
    importance: Any,
) -> None:
    """Refuse options that cannot work.

    Raises:
        ArgumentError: an option is unknown, missing, or would be without effect.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model={model!r}: expected the torch.nn.Module that is to be pruned")
    who = cls.__name__
    host = next(base for base in cls.__mro__ if base.__module__.startswith(tp.__name__))
    known = set(inspect.signature(host).parameters)
    for name in options:
        if name not in known:
            raise ArgumentError(
                f"{who}({name}=...): unknown; the options are {', '.join(sorted(known | {*OWN}))}"
            )
    if batches is None and not isinstance(importance, DEImportance):
        raise ArgumentError(
            f"{who}(batches=None): needs calibration data, as in {who}(model, example_inputs, batches)"
        )
    if importance is not None and not isinstance(importance, DEImportance):
        raise ArgumentError(
            f"importance={type(importance).__name__}: {who} ranks by its criterion; give "
            "criterion=as_criterion(importance), or the importance to a pruner of the host"
        )
    doubled = [name for name in own if name in ASKED]
    if importance is not None and (doubled or batches is not None):
        raise ArgumentError(
            f"{who}: got a DEImportance, whose settings count, and {', '.join(doubled) or 'batches'} beside "
            "it; give them to the importance"
        )
    if options.get("isomorphic") and not options.get("global_pruning"):
        raise ArgumentError(
            "isomorphic=True: without global_pruning=True the host ranks nothing across groups; give both"
        )
    _check_ratios(options)
    _check_heads(options)
    _check_targets(options, own)
    _check_rounding(model, options)
    _check_unwrapped(options.get("unwrapped_parameters"))
    _check_layers(model, options)


def _check_ratios(options: Mapping[str, Any]) -> None:
    single = [name for name in _RATIOS if options.get(name) is not None]
    given = [(f"{name}={options[name]!r}", options[name]) for name in single]
    for name in (f"{name}_dict" for name in _RATIOS):
        for key, ratio in (options.get(name) or {}).items():
            given.append((f"{name}={{{type(key).__name__}: {ratio!r}}}", ratio))
    for shown, ratio in given:
        if not isinstance(ratio, Real) or isinstance(ratio, bool) or not 0 <= float(ratio) <= 1:
            raise ArgumentError(f"{shown}: expected a fraction in [0, 1]")
        if ratio == 1:
            raise ArgumentError(
                f"{shown}: the host skips groups that would lose everything, so that they are left whole, or "
                "as an earlier step left them; give a ratio below 1"
            )


def _check_layers(model: nn.Module, options: Mapping[str, Any]) -> None:
    """Refuse layers of another model, which the host would pass over in silence."""
    own = set(model.modules())
    for name in (f"{name}_dict" for name in _RATIOS):
        for key in options.get(name) or {}:
            for layer in key if isinstance(key, tuple | list | set) else (key,):
                if isinstance(layer, nn.Module) and layer not in own:
                    raise ArgumentError(
                        f"{name}: a {type(layer).__name__} among its keys is no layer of the model, so "
                        "nothing would follow from it; give layers of the very model that is pruned"
                    )


def _check_heads(options: Mapping[str, Any]) -> None:
    ratio = options.get("head_pruning_ratio")
    by_layer = options.get("head_pruning_ratio_dict")
    asked = [name for name in ("head_pruning_ratio", "head_pruning_ratio_dict") if options.get(name)]
    if not options.get("prune_num_heads"):
        if asked:
            raise ArgumentError(
                f"{asked[0]}={options[asked[0]]!r}: without prune_num_heads=True no head goes; give both"
            )
        return
    if options.get("prune_head_dims", True):
        raise ArgumentError(
            "prune_num_heads=True with prune_head_dims=True: the heads left would be ranked by what their "
            "channels no longer are; give prune_head_dims=False, or prune the channels of heads in a second "
            "pruner"
        )
    if not options.get("num_heads"):
        raise ArgumentError(
            f"prune_num_heads=True with num_heads={options.get('num_heads')!r}: no layer is known to have "
            "heads; give num_heads={model.attention.qkv: 8}, or leave prune_num_heads out"
        )
    if not ratio and not any((by_layer or {}).values()):
        raise ArgumentError(
            f"prune_num_heads=True with head_pruning_ratio={ratio!r}: no head would go; give "
            "head_pruning_ratio above 0, or head_pruning_ratio_dict"
        )
    if ratio and not options.get("pruning_ratio", 0.5):
        raise ArgumentError(
            f"head_pruning_ratio={ratio} with pruning_ratio=0: heads go along with channels only; give a "
            "pruning_ratio above 0, and ignored_layers for the rest"
        )


def _check_targets(options: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    given = [name for name in TARGETS if own.get(name) is not None]
    if not given:
        return
    beside = [name for name in ("pruning_ratio", "ch_sparsity") if name in options]
    if len(given) + len(beside) > 1:
        pairs = [f"{name}={own.get(name, options.get(name))!r}" for name in (*given, *beside)]
        raise ArgumentError(f"{' and '.join(pairs)}: each says how much goes; give only one of them")
    [name] = given
    value = own[name]
    number = isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < math.inf
    if name == "max_divergence" and not number:
        raise ArgumentError(f"max_divergence={value!r}: expected a finite number above 0")
    if name != "max_divergence" and (not number or value == 1):
        raise ArgumentError(
            f"{name}={value!r}: expected a fraction of the network in (0, 1), such as 0.5 to leave "
            "half of it, or a number above 1"
        )


def _check_rounding(model: nn.Module, options: Mapping[str, Any]) -> None:
    step = options.get("round_to")
    if not step:
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd) and 1 < module.groups == step < module.out_channels:
            raise ArgumentError(
                f"round_to={step}: equals the groups of {name!r}, where the host then prunes nothing; take a "
                f"multiple such as {2 * step}, or ignore that layer"
            )


def _check_unwrapped(given: Any) -> None:
    if given is None:
        return
    for pair in pairs_of(given):
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], nn.Parameter)):
            raise ArgumentError(
                f"unwrapped_parameters={given!r}: expected a list of (parameter, dimension), as in "
                "[(model.pos_embed, 2)]"
            )


def pairs_of(given: Any) -> list[Any]:
    """Return unwrapped parameters as the list that the host reads, and adds to."""
    return list(given.items()) if isinstance(given, Mapping) else list(given)
