"""NNI's target spaces as couplings of the engine: what goes together, and how its metric is laid out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from de_plugin.assess.coupled import Coupling, Tie

Spaces = Mapping[str, Mapping[str, Any]]

TARGETS = "nni targets"
"""Under this key a problem remembers its `Group`s, in the order of its units."""


@dataclass(frozen=True)
class Target:
    """A parameter that is pruned.

    Attributes:
        module: name of its module.
        name: of the parameter in the module.
        shape: of the host's metric.
        ids: int64 of the parameter's shape: the entry of the metric that each number goes with.
        space: the host's.
    """

    module: str
    name: str
    shape: torch.Size
    ids: Tensor
    space: Any

    @property
    def removed(self) -> Tensor:
        """The entries of which the mask leaves nothing, ``(count,)`` bool."""
        mask = self.space.mask
        if mask is None:
            return torch.zeros(self.shape.numel(), dtype=torch.bool)
        return removed(self, mask)


@dataclass(frozen=True)
class Group:
    """Targets that lose the same entries: a target alone, or a dependency group.

    Attributes:
        kind: who decides how many go: "ratio", "dependency", "global" or "threshold".
        targets: sorted by name.
        parts: equal parts that lose equally many.
    """

    kind: str
    targets: tuple[Target, ...]
    parts: int = 1

    @property
    def name(self) -> str:
        """Return its targets' names."""
        return " + ".join(f"{t.module}.{t.name}" for t in self.targets)

    @property
    def count(self) -> int:
        """Return how many units there are."""
        return self.targets[0].shape.numel()

    @property
    def grain(self) -> int:
        """Return how many numbers a unit has, as the host counts them in a global group."""
        return self.targets[0].ids.numel() // self.count

    @property
    def setting(self) -> Any:
        """Return the host's target space that says how many go."""
        return next(
            (t.space for t in self.targets if t.space.sparse_ratio is not None), self.targets[0].space
        )

    @cached_property
    def removed(self) -> Tensor:
        """The units that are gone already, ``(count,)`` bool."""
        return torch.stack([t.removed for t in self.targets]).all(0)


def removed(target: Target, mask: Tensor) -> Tensor:
    """Return the entries of a target's metric of which a mask leaves nothing, ``(count,)`` bool."""
    full = mask.detach().cpu().expand(target.ids.shape) != 0
    left = torch.zeros(target.shape.numel(), dtype=torch.int64)
    return left.index_add_(0, target.ids.flatten(), full.flatten().long()) == 0


def groups_of(spaces: Spaces) -> list[Group]:
    """Return what the target spaces prune, sorted by the first target's name."""
    found: dict[Any, list[Target]] = {}
    kinds: dict[Any, str] = {}
    for module in sorted(spaces):
        for name in sorted(spaces[module]):
            space = spaces[module][name]
            kind = _kind(space)
            if kind is None or not isinstance(space.target, Tensor):
                continue
            key = ("group", space.dependency_group_id) if kind == "dependency" else (module, name)
            found.setdefault(key, []).append(_target(module, name, space))
            kinds[key] = kind
    return [Group(kinds[key], tuple(t), _parts(kinds[key], t)) for key, t in found.items()]


def _kind(space: Any) -> str | None:
    if space.sparse_threshold is not None:
        return "threshold"
    if space.dependency_group_id is not None:
        return "dependency"
    if space.global_group_id is not None:
        return "global"
    return "ratio" if space.sparse_ratio is not None else None


def _parts(kind: str, targets: Sequence[Target]) -> int:
    if kind != "dependency":
        return 1
    return math.lcm(*(t.space.internal_metric_block or 1 for t in targets))


def _target(module: str, name: str, space: Any) -> Target:
    shape = space.target.shape
    scaler = space._scaler
    small = shape if scaler is None else scaler.shrink(torch.empty(shape), keepdim=True).shape
    ids = torch.arange(small.numel()).reshape(small)
    return Target(module, name, small, ids if scaler is None else _spread(scaler, ids, shape), space)


def _spread(scaler: Any, values: Tensor, shape: torch.Size) -> Tensor:
    result: Tensor = scaler.expand(values, list(shape), keepdim=True)
    return result


def couplings(
    groups: Sequence[Group], spaces: Spaces, model: nn.Module, norms: Mapping[str, Sequence[str]], align: bool
) -> list[Coupling]:
    """Return the units of some groups, with all that goes with them.

    Args:
        groups: what is pruned.
        spaces: the host's, for parameters that are aligned to others.
        model: unwrapped; where a group has parts it gets parameters without effect, one a part.
        norms: batch norms that directly follow a module.
        align: whether an output channel takes its bias and its batch norms along.
    """
    modules = dict(model.named_modules())
    taken = {id(getattr(modules[t.module], t.name)) for g in groups for t in g.targets}
    aligned = _aligned(groups, spaces, modules)
    taken |= {id(parameter) for ties in aligned.values() for parameter, _ in ties}
    result = []
    for number, group in enumerate(groups):
        ties: list[tuple[nn.Parameter, Tensor]] = []
        for target in group.targets:
            module = modules[target.module]
            ties.append((getattr(module, target.name), target.ids))
            ties += aligned.get((target.module, target.name), [])
            if not align or target.name != "weight":
                continue
            channels = _outputs(module, target.ids)
            owners = [module.bias] if isinstance(getattr(module, "bias", None), nn.Parameter) else []
            for norm in norms.get(target.module, ()):
                owners += list(modules[norm].parameters(recurse=False))
            for owner in owners:
                if id(owner) not in taken and owner.shape == channels.shape:
                    ties.append((owner, channels))
                    taken.add(id(owner))
        result += _coupled(group, number, ties, model)
    return result


def _coupled(
    group: Group, number: int, ties: list[tuple[nn.Parameter, Tensor]], model: nn.Module
) -> list[Coupling]:
    ties = [(parameter, ids) for parameter, ids in ties if bool((ids >= 0).any())]
    if group.parts == 1:
        return [Coupling(group.name, group.count, tuple(Tie(p, _narrow(ids)) for p, ids in ties))]
    size = group.count // group.parts
    result = []
    for part in range(group.parts):
        # The engine counts units to the first parameter that is no other coupling's.
        own = nn.Parameter(torch.zeros(size, device=ties[0][0].device), requires_grad=False)
        model.register_parameter(f"de_part_{number}_{part}", own)
        mine = [Tie(own, torch.arange(size))]
        for parameter, ids in ties:
            here = (ids >= part * size) & (ids < (part + 1) * size)
            if bool(here.any()):
                mine.append(Tie(parameter, _narrow(torch.where(here, ids - part * size, -1))))
        result.append(Coupling(f"{group.name} part {part}", size, tuple(mine)))
    return result


def _narrow(ids: Tensor) -> Tensor:
    """Return ids with dimensions of one where they are all the same along it: less to hold and to sum."""
    for dim in range(ids.dim()):
        first = ids.narrow(dim, 0, 1)
        if bool((ids == first).all()):
            ids = first
    return ids


def _aligned(
    groups: Sequence[Group], spaces: Spaces, modules: Mapping[str, nn.Module]
) -> dict[tuple[str, str], list[tuple[nn.Parameter, Tensor]]]:
    """Return what the host aligns to each target: parameters and the units their numbers go with."""
    known = {(t.module, t.name): t.ids for g in groups for t in g.targets}
    result: dict[tuple[str, str], list[tuple[nn.Parameter, Tensor]]] = {}
    for module in sorted(spaces):
        for name in sorted(spaces[module]):
            space = spaces[module][name]
            parameter = getattr(modules.get(module), name, None)
            if (module, name) in known or space.align is None or not isinstance(parameter, nn.Parameter):
                continue
            source = (space.align["module_name"] or module, space.align["target_name"])
            ids = known.get(source)
            if ids is None:
                continue
            dims = [d % ids.dim() for d in space.align["dims"]]
            rest = [d for d in range(ids.dim()) if d not in dims]
            if rest:  # without any the host sums over all of it, and aligns nothing
                units = _common(ids, rest)
                if space._scaler is not None:
                    units = _spread(space._scaler, _blocks(space._scaler, units), parameter.shape)
                if units.shape == parameter.shape:
                    result.setdefault(source, []).append((parameter, units))
    return result


def _common(ids: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the unit that all numbers along some dimensions go with, -1 where they differ."""
    low, high = ids.amin(list(dims)), ids.amax(list(dims))
    return torch.where(low == high, low, -1)


def _blocks(scaler: Any, units: Tensor) -> Tensor:
    low = scaler.shrink(units, lambda x: x.amin(-1), keepdim=True)
    high = scaler.shrink(units, lambda x: x.amax(-1), keepdim=True)
    return torch.where(low == high, low, -1)


def _outputs(module: nn.Module, ids: Tensor) -> Tensor:
    """Return the unit that takes all of an output channel, -1 where none does, ``(channels,)``."""
    if ids.dim() == 1:
        return ids
    if isinstance(module, nn.Embedding):
        return _common(ids, [0])
    if isinstance(module, _ConvTransposeNd):
        grouped = ids.reshape(module.groups, ids.shape[0] // module.groups, ids.shape[1], -1)
        return _common(grouped, [1, 3]).flatten()
    return _common(ids.flatten(1), [1])
