"""What one step of a Torch-Pruning pruner is about to decide: its groups, and how much of each scope goes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from de_plugin.adapters.torch_pruning.ties import coupling, positions
from de_plugin.assess.coupled import Coupling, Tie

_HEADS = "attention heads"


@dataclass(frozen=True)
class Entry:
    """One group that may lose channels in this step.

    Attributes:
        group: the host's, with all channels.
        key: tells it from the others, also when the host makes it anew.
        name: of its root layer.
        scope: groups of one scope are ranked against each other.
        ratio: share of the scope's first channels that is gone after the step.
        parts: how many times the host repeats a choice of channels; 1 where whole heads go.
        heads: attention heads, where whole heads go; else 0.
        coupling: the units: channels, tiled over parts, or heads.
        least: units that must stay.
        exact: whether zeroing the units is what removing them is.
    """

    group: Any
    key: tuple[Any, ...]
    name: str
    scope: str
    ratio: float
    parts: int
    heads: int
    coupling: Coupling
    least: int
    exact: bool

    def scores(self, units: Tensor) -> Tensor:
        """Spread one score a unit over the root's channels."""
        if self.heads:
            return units.repeat_interleave(positions(self.group) // self.heads)
        return units.repeat(self.parts)


def key_of(group: Any) -> tuple[Any, ...]:
    """Return what is the same for a group that the host makes anew on the same model."""
    return id(group[0].dep.target.module), group[0].dep.handler


def entries(pruner: Any) -> Iterator[Entry]:
    """Yield the groups that a pruner's next ranking looks at, in its order."""
    for group in pruner.DG.get_all_groups(
        ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types
    ):
        if not pruner._check_pruning_ratio(group):
            continue
        attention, projections = pruner._is_atten_group(group)
        if attention:
            group = pruner._downstream_node_as_root_if_attention(group)
            if group is None:
                continue
        parts = pruner._get_channel_groups(group)
        heads = 0
        if attention and pruner.prune_num_heads and not pruner.prune_head_dims:
            heads, parts = max(pruner.num_heads[layer] for layer in projections), 1
        scope, ratio = _scope(pruner, group)
        if heads:
            scope, ratio = _head_scope(pruner, group, projections)
        name = pruner.DG._module2name[group[0].dep.target.module]
        units = _heads(group, name, heads) if heads else coupling(group, name, parts)
        if units.count > 1:
            least = _least(pruner, group, units.count)
            yield Entry(
                group, key_of(group), name, scope, ratio, parts, heads, units, least, _exact(group, attention)
            )


def counts(pruner: Any, found: list[Entry]) -> dict[str, int]:
    """Return how many units go of each scope in this step, as the host counts them, within its limits."""
    result = {}
    for scope in dict.fromkeys(entry.scope for entry in found):
        mine = [entry for entry in found if entry.scope == scope]
        total = sum(entry.coupling.count for entry in mine)
        if mine[0].heads:
            first = pruner.initial_total_heads if pruner.global_pruning else total
            gone = math.ceil(mine[0].ratio * total)
            wanted = total - int(first * (1 - mine[0].ratio)) if pruner.global_pruning else gone
        else:
            first = pruner._scope_initial_channels.setdefault(scope, total)
            wanted = total - int(first * (1 - mine[0].ratio))
        room = sum(max(0, entry.coupling.count - entry.least) for entry in mine)
        result[scope] = max(0, min(wanted, room))
        if pruner.round_to and len(mine) == 1 and not mine[0].heads and wanted > 0:
            result[scope] = _rounded_alone(pruner, mine[0], result[scope], room)
    return result


def _rounded_alone(pruner: Any, entry: Entry, wanted: int, room: int) -> int:
    """Return what the host makes of a count; nothing where it would take all, which it refuses."""
    count = int(pruner._round_to(wanted, channels_of(pruner, entry.group), pruner.round_to))
    if count <= room:
        return count
    if count >= entry.coupling.count:
        return 0
    return entry.coupling.count - rounded(entry, entry.coupling.count - wanted, pruner.round_to)


def rounded(entry: Entry, left: int, round_to: int) -> int:
    """Return how many units of a group are left when the channels left must be a multiple of a number."""
    count = entry.coupling.count
    if left == count or entry.heads:
        return left
    step = round_to // math.gcd(round_to, entry.parts)
    return min(count, max(left // step, -(-entry.least // step)) * step)


def channels_of(pruner: Any, group: Any) -> int:
    """Return how many channels the root of a group has now."""
    dep = group[0].dep
    outputs = pruner.DG.is_out_channel_pruning_fn(dep.handler)
    return int((pruner.DG.get_out_channels if outputs else pruner.DG.get_in_channels)(dep.target.module))


def _scope(pruner: Any, group: Any) -> tuple[str, float]:
    """Return the scope in which the host ranks a group, and its ratio after this step."""
    for dep, _ in group:
        for module, function in ((dep.source.module, dep.trigger), (dep.target.module, dep.handler)):
            if module in pruner._layer_to_scope and pruner.DG.is_out_channel_pruning_fn(function):
                name, _ = pruner._layer_to_scope[module]
                return name, pruner.get_target_pruning_ratio(module, step=pruner.current_step)
    ratio = pruner.per_step_pruning_ratio[pruner.current_step]
    if pruner.isomorphic:
        return _isomorphic(pruner, group), ratio
    if pruner.global_pruning:
        return "DEFAULT_SCOPE", ratio
    return pruner.DG._module2name[group[0].dep.source.module], ratio


def _isomorphic(pruner: Any, group: Any) -> str:
    """Return the host's tag of groups of the same structure."""
    tag = "Isomorphic_"
    for dep, _ in group:
        side = "out" if pruner.DG.is_out_channel_pruning_fn(dep.handler) else "in"
        tag += f"{type(dep.source.module)}_{side}_{type(dep.target.module)}_{side}"
    return tag


def _head_scope(pruner: Any, group: Any, projections: list[nn.Module]) -> tuple[str, float]:
    ratio = pruner.get_target_head_pruning_ratio(projections[0])
    if pruner.global_pruning:
        return _HEADS, ratio
    return f"{_HEADS} of {pruner.DG._module2name[group[0].dep.target.module]}", ratio


def _heads(group: Any, name: str, heads: int) -> Coupling:
    """Return whole heads as units."""
    channels = coupling(group, name)
    width = channels.count // heads
    ties = [Tie(t.parameter, torch.where(t.units < 0, -1, t.units // width)) for t in channels.ties]
    return Coupling(name, heads, tuple(ties))


def _least(pruner: Any, group: Any, count: int) -> int:
    """Return how many units must stay under the host's highest ratio; at least one."""
    module, handler = group[0].dep.target.module, group[0].dep.handler
    outputs = pruner.DG.is_out_channel_pruning_fn(handler)
    first = (pruner.layer_init_out_ch if outputs else pruner.layer_init_in_ch).get(module)
    now = (pruner.DG.get_out_channels if outputs else pruner.DG.get_in_channels)(module)
    if not first or not now:
        return 1
    ratio = float(pruner.max_pruning_ratio)
    return max(1, math.ceil(count * (float(first) / float(now)) * (1 - ratio) - 1e-9))


def _exact(group: Any, attention: bool) -> bool:
    """Tell whether zeroing a group's channels is what removing them is: no norm runs over channels."""
    inexact = (nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention)
    return not attention and not any(isinstance(dep.target.module, inexact) for dep, _ in group)
