"""What a config list asks for, checked before NNI changes anything in the model."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from nni.compression.base.compressor import register_scalers
from nni.compression.base.config import (
    default_config_schema,
    select_modules_by_config,
    trans_legacy_config_list,
)
from nni.compression.base.setting import INPUT_PREFIX, OUTPUT_PREFIX, PruningSetting
from nni.compression.base.target_space import TargetType
from schema import SchemaError
from torch import Tensor, nn

from de_plugin.errors import ArgumentError, SelectionError

Key = tuple[str, str]
Settings = dict[Key, dict[str, Any]]


@dataclass
class _Space:
    """As much of a target space as the host's granularities look at."""

    granularity: Any
    _target_type: TargetType
    _scaler: Any = None


def check(
    model: nn.Module, config_list: Sequence[Mapping[str, Any]], fine: bool, existed: Mapping[str, Any]
) -> None:
    """Refuse config lists that cannot work or would do nothing.

    Args:
        model: unwrapped.
        config_list: NNI's.
        fine: whether single weights are the default granularity, instead of output channels.
        existed: wrappers that an earlier compressor hands on.

    Raises:
        SelectionError: a name, type or target is not the model's, or nothing is selected.
        ArgumentError: a value is out of range, or settings contradict each other.
    """
    if not isinstance(config_list, Sequence) or not config_list or isinstance(config_list, str):
        raise ArgumentError(
            f"config_list={config_list!r}: expected a list of dicts, as in "
            "[{'op_types': ['Conv2d'], 'sparse_ratio': 0.5}]"
        )
    wrapped = [n for n, m in model.named_modules() if "_nni_wrapper" in m._modules]
    if wrapped:
        raise ArgumentError(
            f"model: {wrapped[0] or type(model).__name__} is wrapped by another compressor; use "
            "DEPruner.from_compressor(compressor, config_list, ...), or compressor.unwrap_model() first"
        )
    settings = _settings(model, config_list, existed)
    modules = dict(model.named_modules(remove_duplicate=False))
    values = {key: getattr(modules[key[0]], key[1], None) for key in settings}
    ranked = {key: s for key, s in settings.items() if _is_ranked(s)}
    for key, setting in ranked.items():
        _check_amounts(key, setting)
    if not any(isinstance(values[key], Tensor) for key in ranked):
        raise ArgumentError(
            "config_list: prunes nothing; give a sparse_ratio or a sparse_threshold to at least one target "
            "that an earlier compressor has not taken"
        )
    shapes = {key: _metric_shape(key, settings[key], values[key], fine) for key in ranked}
    for kind in ("dependency_group_id", "global_group_id"):
        _check_groups(kind, ranked, shapes, values)
    for key, setting in settings.items():
        if key not in ranked and setting.get("align") is not None and isinstance(values[key], Tensor):
            _check_align(key, setting["align"], ranked, values)


def _is_ranked(setting: Mapping[str, Any]) -> bool:
    names = ("sparse_ratio", "sparse_threshold", "dependency_group_id", "global_group_id")
    return any(setting.get(name) is not None for name in names)


def _settings(model: nn.Module, config_list: Sequence[Any], existed: Mapping[str, Any]) -> Settings:
    """Return the setting of each target that is new, by module and target."""
    try:
        configs = trans_legacy_config_list(deepcopy(list(config_list)))
    except (AttributeError, TypeError) as error:
        raise ArgumentError(f"config_list={config_list!r}: expected a list of dicts ({error})") from error
    schema = default_config_schema("pruning")
    modules = dict(model.named_modules(remove_duplicate=False))
    result: Settings = {}
    names: dict[int, str] = {}
    for number, config in enumerate(configs):
        where = f"config_list[{number}]"
        try:
            schema.validate(config)
        except SchemaError as error:
            hint = (
                "; NNI takes one such key an entry, target_settings included: write an entry for each target"
            )
            reason = " ".join(error.code.split())
            raise ArgumentError(
                f"{where}={config!r}: {reason}{hint if 'multiple keys' in reason else ''}"
            ) from error
        for argument in ("op_names", "exclude_op_names"):
            for name in config.get(argument, ()):
                if name not in modules:
                    near = difflib.get_close_matches(name, modules, n=3, cutoff=0.3) or list(modules)[1:4]
                    raise SelectionError(
                        f"{where}: {argument} has {name!r}, which is no module of the model; did you mean "
                        f"{', '.join(near)}?"
                    )
        selected, public, _ = select_modules_by_config(model, config)
        if not selected:
            types = sorted({type(m).__name__ for m in modules.values() if not list(m.children())})
            raise SelectionError(
                f"{where}={config!r}: selects no module; the model's leaves are of the types "
                f"{', '.join(types)}"
            )
        for name in sorted(selected):
            other = names.setdefault(id(selected[name]), name)
            if other != name:
                raise SelectionError(
                    f"{where}: selects one module by two names, {other!r} and {name!r}; put one of them into "
                    "exclude_op_names"
                )
            for target, setting in _of_module(where, name, selected[name], public).items():
                taken = getattr(existed.get(name), "pruning_target_spaces", ())
                if (name, target) not in result and target not in taken:
                    result[name, target] = setting
    return result


def _of_module(where: str, name: str, module: nn.Module, public: dict[str, Any]) -> dict[str, Any]:
    kind = type(module).__name__
    try:
        found: dict[str, Any] = PruningSetting.get(module, public)
    except AssertionError as error:
        raise SelectionError(
            f"{where}: NNI has no settings for {kind} ({name!r}); exclude it, or tell NNI which targets it "
            f"has: nni.compression.base.setting.PruningSetting.register({kind!r}, {{...}})"
        ) from error
    except KeyError as error:
        raise SelectionError(
            f"{where}: target_names has {error.args[0]!r}, which is no target of {kind} ({name!r}); expected "
            f"some of {', '.join(PruningSetting.registry[kind])}, or a target in target_settings"
        ) from error
    for target in found:
        if not target.startswith((INPUT_PREFIX, OUTPUT_PREFIX)) and not hasattr(module, target):
            raise SelectionError(f"{where}: {name!r} ({kind}) has no attribute {target!r}")
    return found


def _check_amounts(key: Key, setting: Mapping[str, Any]) -> None:
    what = f"config_list: {'.'.join(key)}"
    if key[1].startswith((INPUT_PREFIX, OUTPUT_PREFIX)):
        raise ArgumentError(
            f"{what}: inputs and outputs hold no values to rank; prune the weight and let them follow with "
            "'align'"
        )
    ratio, threshold = setting.get("sparse_ratio"), setting.get("sparse_threshold")
    if ratio is not None and threshold is not None:
        raise ArgumentError(f"{what}: has sparse_ratio={ratio} and sparse_threshold={threshold}; give one")
    if ratio is not None and not 0 <= ratio <= 1:
        raise ArgumentError(f"{what}: sparse_ratio={ratio}, expected a fraction in [0, 1]")
    if threshold is not None and not 0 < threshold < math.inf:
        raise ArgumentError(
            f"{what}: sparse_threshold={threshold}, expected a finite divergence > 0; for fixed amounts give "
            "sparse_ratio"
        )
    low, high = _bounds(setting)
    if low > high:
        raise ArgumentError(f"{what}: min_sparse_ratio={low} is above max_sparse_ratio={high}")
    together, over = setting.get("dependency_group_id"), setting.get("global_group_id")
    if together is not None and over is not None:
        raise ArgumentError(
            f"{what}: has dependency_group_id={together!r} and global_group_id={over!r}, of which NNI "
            "ignores the second; give one"
        )
    block = setting.get("internal_metric_block")
    if block is not None and together is None:
        raise ArgumentError(
            f"{what}: internal_metric_block={block} counts in a dependency group only; give a "
            "dependency_group_id (one target may be all of a group), or leave it out"
        )


def _bounds(setting: Mapping[str, Any]) -> tuple[float, float]:
    return setting.get("min_sparse_ratio") or 0.0, setting.get("max_sparse_ratio") or 1.0


def _metric_shape(key: Key, setting: Mapping[str, Any], value: Any, fine: bool) -> torch.Size:
    """Return the shape of a target's metric."""
    what = f"config_list: {'.'.join(key)}: granularity={setting.get('granularity')!r}"
    if not isinstance(value, Tensor):
        return torch.Size()
    space = _Space(setting.get("granularity"), TargetType.PARAMETER)
    try:
        register_scalers({key[0]: {key[1]: space}}, lambda _: None if fine else "out_channel")
        if space._scaler is None:
            return value.shape
        shape: torch.Size = space._scaler.shrink(torch.empty(value.shape), keepdim=True).shape
    except (AssertionError, RuntimeError, IndexError, TypeError, ValueError) as error:
        raise ArgumentError(
            f"{what}: does not divide a parameter {tuple(value.shape)}; expected 'default', 'in_channel', "
            "'out_channel', or block sizes such as [1, 4] or [[4], 'back']"
        ) from error
    return shape


def _check_groups(
    kind: str, ranked: Settings, shapes: Mapping[Key, torch.Size], values: Mapping[Key, Any]
) -> None:
    groups: dict[Any, list[Key]] = {}
    for key, setting in ranked.items():
        if setting.get(kind) is not None and shapes[key]:
            groups.setdefault(setting[kind], []).append(key)
    for name, keys in groups.items():
        what = f"config_list: {kind}={name!r} ({', '.join('.'.join(k) for k in keys)})"
        given = [ranked[k].get("sparse_ratio") for k in keys]
        ratios = {ratio for ratio in given if ratio is not None}
        if len(ratios) != 1 or any(ranked[k].get("sparse_threshold") is not None for k in keys):
            raise ArgumentError(f"{what}: expected one sparse_ratio for all of it, got {sorted(ratios)}")
        members = [(ranked[k], values[k].numel()) for k in keys]
        if kind == "global_group_id":
            _check_caps(what, ratios.pop(), members)
            continue
        _check_kept(what, ratios.pop(), [setting for setting, _ in members])
        sizes = {shapes[k] for k in keys}
        if len(sizes) > 1:
            raise ArgumentError(
                f"{what}: its members have {', '.join(str(tuple(s)) for s in sorted(sizes))} units, expected "
                "the same; set granularity alike or give them groups of their own"
            )
        blocks = [ranked[k].get("internal_metric_block") or 1 for k in keys]
        if next(iter(sizes)).numel() % math.lcm(*blocks):
            raise ArgumentError(
                f"{what}: internal_metric_block={blocks} does not divide {next(iter(sizes)).numel()} units"
            )


def _check_caps(what: str, ratio: float, members: Sequence[tuple[Mapping[str, Any], int]]) -> None:
    """Refuse a global group of which the host takes nothing since it is to take all that it may."""
    most = sum(int(count * _bounds(setting)[1]) for setting, count in members)
    uncapped = any(setting.get("max_sparse_ratio") is None for setting, _ in members)
    if uncapped and int(sum(count for _, count in members) * ratio) >= most:
        raise ArgumentError(
            f"{what}: sparse_ratio={ratio} is all that may go, and then NNI prunes nothing of targets "
            "without max_sparse_ratio; give them one, or a smaller sparse_ratio"
        )


def _check_kept(what: str, ratio: float, settings: Sequence[Mapping[str, Any]]) -> None:
    """Refuse bounds that a dependency group's ratio passes: the host ignores them there."""
    for low, high in map(_bounds, settings):
        if not low <= ratio <= high:
            bound = f"max_sparse_ratio={high}" if ratio > high else f"min_sparse_ratio={low}"
            raise ArgumentError(
                f"{what}: sparse_ratio={ratio} and {bound}, which NNI ignores in a dependency group; give "
                "the sparse_ratio that is meant"
            )


def _check_align(key: Key, align: Mapping[str, Any], ranked: Settings, values: Mapping[Key, Any]) -> None:
    what = f"config_list: {'.'.join(key)}: align={dict(align)!r}"
    source = (align["module_name"] or key[0], align["target_name"])
    if source not in ranked:
        raise ArgumentError(
            f"{what}: {'.'.join(source)} is not pruned; give it a sparse_ratio, or leave {key[1]!r} out of "
            "target_names"
        )
    shape = values[source].shape
    dims = align["dims"]
    if any(not isinstance(d, int) or not -len(shape) <= d < len(shape) for d in dims):
        raise ArgumentError(f"{what}: dims are not those of a parameter {tuple(shape)}")
    left = [n for d, n in enumerate(shape) if d in dims or d - len(shape) in dims]
    if len(left) < len(shape) and left != list(values[key].shape):
        raise ArgumentError(
            f"{what}: gives {tuple(left)} for a parameter {tuple(values[key].shape)}; choose other dims (the "
            "outputs of a transposed convolution are dimension 1), or leave it out of target_names"
        )
