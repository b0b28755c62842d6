"""What removing a channel of a Torch-Pruning group takes out of each parameter, as ties of the engine."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning.ops import _SplitOp

from de_plugin.assess.coupled import Coupling, Tie
from de_plugin.errors import SelectionError


def positions(group: Any) -> int:
    """Return how many channels the root of a group has in it."""
    return len(group[0].idxs)


def coupling(group: Any, name: str, channel_groups: int = 1) -> Coupling:
    """Return a group's channels as units; where channels are grouped a unit is one of each group.

    Args:
        group: a `torch_pruning.Group` with all channels that may go.
        name: for reports.
        channel_groups: parts of the channels that must stay of one size.

    Raises:
        SelectionError: a module's pruning function cannot be followed.
    """
    ties = [tie for item in owners(group, channel_groups) for tie in _ties(*item)]
    return Coupling(name, positions(group) // channel_groups, tuple(ties))


def owners(group: Any, channel_groups: int = 1) -> list[tuple[Any, Tensor, Tensor]]:
    """Return each dependency of a group with its channels and the unit that each belongs to, -1 for none."""
    roots = {int(index): n for n, index in enumerate(group[0].idxs)}
    size = len(roots) // channel_groups
    _check_splits(group)
    return [
        (
            dep,
            torch.tensor(channels, dtype=torch.int64),
            torch.tensor([roots[r] % size if r in roots else -1 for r in from_root], dtype=torch.int64),
        )
        for dep, channels, from_root in _items(group)
    ]


def _check_splits(group: Any) -> None:
    """Refuse a graph that is older than the model: the host keeps the sizes that a split had at first.

    Raises:
        SelectionError: a split's parts no longer make up its channels.
    """
    if not any(isinstance(dep.target.module, _SplitOp) for dep, _ in group):
        return
    graph, root = group._DG, group[0].dep
    outputs = graph.is_out_channel_pruning_fn(root.handler)
    count = (graph.get_out_channels if outputs else graph.get_in_channels)(root.target.module)
    for dep, channels in graph.get_pruning_group(root.target.module, root.handler, list(range(count))):
        split = dep.target.module
        if isinstance(split, _SplitOp) and split.offsets and max(channels, default=0) + 1 < split.offsets[-1]:
            raise SelectionError(
                f"{dep.target.name}: the host's graph still has the sizes that this split had before the "
                "model was pruned, and would cut the wrong channels; make a new pruner for each step"
            )


def _items(group: Any) -> list[tuple[Any, list[int], list[int]]]:
    """Return for each dependency its channels and the root's channels that they belong to."""
    known = [(item.dep, list(item.idxs), item.root_idxs) for item in group]
    if all(roots is not None and None not in roots for _, _, roots in known):
        return [(dep, idxs, [int(r) for r in roots]) for dep, idxs, roots in known]
    # The host has lost the map (grouped-query attention): ask for each channel by itself.
    root = group[0].dep
    found: dict[int, tuple[Any, list[int], list[int]]] = {
        n: (dep, [], []) for n, (dep, _, _) in enumerate(known)
    }
    place = {(id(dep.target), dep.handler): n for n, (dep, _, _) in enumerate(known)}
    for channel in group[0].idxs:
        for dep, idxs in group._DG.get_pruning_group(root.target.module, root.handler, [int(channel)]):
            n = place.get((id(dep.target), dep.handler))
            if n is not None:
                found[n][1].extend(int(i) for i in idxs)
                found[n][2].extend([int(channel)] * len(idxs))
    return list(found.values())


def _ties(dep: Any, channels: Tensor, units: Tensor) -> list[Tie]:
    module, handler = dep.target.module, dep.handler
    owner, outputs = type(handler.__self__).__name__, handler.__name__ == "prune_out_channels"
    if isinstance(module, nn.Parameter):
        return [_along(module, dep.target.pruning_dim, channels, units)]
    if not any(True for _ in module.parameters()):
        return []
    if owner == "ConvPruner" and not outputs:
        return [_conv_inputs(module, channels, units)]
    if owner == "ConvPruner" and module.transposed and module.groups > 1:
        return _traced(module, handler, channels, units)
    if owner in ("ConvPruner", "DepthwiseConvPruner"):
        transposed = module.transposed and owner == "ConvPruner"
        return _rows(module, 1 if transposed else 0, channels, units)
    if owner == "LinearPruner":
        if outputs:
            return _rows(module, 0, channels, units)
        return [_along(module.weight, 1, channels, units)]
    if owner in ("BatchnormPruner", "GroupNormPruner", "InstanceNormPruner"):
        return _rows(module, 0, channels, units)
    if owner == "LayernormPruner":
        return _rows(module, handler.__self__.pruning_dim, channels, units)
    if owner == "EmbeddingPruner":
        return [_along(module.weight, 1, channels, units)]
    if owner == "MultiheadAttentionPruner":
        return _attention(module, channels, units)
    return _traced(module, handler, channels, units)


def _along(parameter: Tensor, dim: int, channels: Tensor, units: Tensor) -> Tie:
    """Tie slices of a parameter along one dimension.

    Raises:
        SelectionError: it has fewer channels than are named.
    """
    width = parameter.shape[dim]
    if len(channels) and int(channels.max()) >= width:
        raise SelectionError(
            f"the host's graph names channel {int(channels.max())} of a parameter {tuple(parameter.shape)}, "
            f"which has {width}: after a step it no longer knows heads of queries that share keys and "
            "values; prune these in one step, or add their layers to ignored_layers"
        )
    ids = torch.full((width,), -1, dtype=torch.int64)
    ids[channels] = units
    shape = [1] * parameter.dim()
    shape[dim] = -1
    return Tie(parameter, ids.reshape(shape))


def _rows(module: nn.Module, dim: int, channels: Tensor, units: Tensor) -> list[Tie]:
    """Tie slices of a module's weight and the entries of its bias."""
    ties = []
    for name, at in (("weight", dim), ("bias", -1)):
        parameter = getattr(module, name, None)
        if isinstance(parameter, nn.Parameter):
            ties.append(_along(parameter, at, channels, units))
    return ties


def _conv_inputs(module: Any, channels: Tensor, units: Tensor) -> Tie:
    """Tie the inputs of a convolution: each group of outputs sees inputs of its own."""
    ids = torch.full((module.in_channels,), -1, dtype=torch.int64)
    ids[channels] = units
    kernel = [1] * (module.weight.dim() - 2)
    if module.transposed:
        return Tie(module.weight, ids.reshape(-1, 1, *kernel))
    outputs = torch.arange(module.out_channels) // (module.out_channels // module.groups)
    return Tie(
        module.weight, ids.reshape(module.groups, -1)[outputs].reshape(module.out_channels, -1, *kernel)
    )


def _attention(module: nn.MultiheadAttention, channels: Tensor, units: Tensor) -> list[Tie]:
    width = module.embed_dim
    thrice = torch.cat([channels + part * width for part in range(3)])
    ties = _rows(module.out_proj, 0, channels, units)
    ties.append(_along(module.out_proj.weight, 1, channels, units))
    if isinstance(module.in_proj_weight, nn.Parameter):
        ties.append(_along(module.in_proj_weight, 0, thrice, units.repeat(3)))
        ties.append(_along(module.in_proj_weight, 1, channels, units))
    for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        weight = getattr(module, name)
        if isinstance(weight, nn.Parameter):
            ties.append(_along(weight, 0, channels, units))
    if isinstance(module.in_proj_bias, nn.Parameter):
        ties.append(_along(module.in_proj_bias, 0, thrice, units.repeat(3)))
    ties += [
        _along(bias, 2, channels, units)
        for bias in (module.bias_k, module.bias_v)
        if isinstance(bias, nn.Parameter)
    ]
    return ties


def _traced(module: nn.Module, handler: Any, channels: Tensor, units: Tensor) -> list[Tie]:
    """Tie what a pruning function really removes: it is run on parameters that hold their own places."""
    marked = copy.deepcopy(module)
    before = dict(module.named_parameters())
    with torch.no_grad():
        for parameter in marked.parameters():
            parameter.data = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
            parameter.grad = None
    owner = copy.copy(handler.__self__)
    ids = {name: torch.full((p.numel(),), -1, dtype=torch.int64) for name, p in before.items()}
    for unit in units.unique().tolist():
        if unit < 0:
            continue
        cut = copy.deepcopy(marked)
        here: Sequence[int] = channels[units == unit].tolist()
        try:
            getattr(owner, handler.__name__)(cut, list(here))
        except (RuntimeError, ValueError, IndexError, AttributeError, AssertionError) as error:
            raise SelectionError(
                f"{type(module).__name__}: {type(owner).__name__}.{handler.__name__} failed on a copy "
                f"({error}); add the layer to ignored_layers, or give a pruner in customized_pruners"
            ) from error
        for name, left in cut.named_parameters():
            gone = torch.ones(len(ids[name]), dtype=torch.bool)
            gone[left.detach().flatten().long()] = False
            ids[name][gone] = unit
    return [
        Tie(before[name], found.reshape(before[name].shape))
        for name, found in ids.items()
        if bool((found >= 0).any())
    ]
