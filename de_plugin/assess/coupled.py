"""Units that reach over several parameters: a channel with its norm and with what reads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from de_plugin.assess.bits import zero_
from de_plugin.assess.granularity import Weight
from de_plugin.assess.layers import Layer, describe
from de_plugin.assess.units import ParameterUnits
from de_plugin.errors import ArgumentError, SelectionError
from de_plugin.types import Mask, Masks


@dataclass(frozen=True)
class Tie:
    """Which numbers of a parameter go with which unit of a coupling.

    Attributes:
        parameter: a parameter of the model.
        units: int64 that broadcasts to the parameter's shape: the unit that each number goes with, -1 for
            none. ``arange(n)[:, None]`` are the rows of a matrix, ``arange(n)`` its columns.
    """

    parameter: Tensor
    units: Tensor


@dataclass(frozen=True)
class Coupling:
    """Units that are of one kind: the channels of a layer, or of several that must agree.

    Attributes:
        name: for reports.
        count: how many units there are.
        ties: what goes with them; the first names the layer that they are counted to.
    """

    name: str
    count: int
    ties: tuple[Tie, ...]


@dataclass(frozen=True)
class Coupled:
    """Stands for the granularity of units that reach over several parameters."""

    @property
    def name(self) -> str:
        """Return "coupled"."""
        return "coupled"

    def count(self, shape: torch.Size) -> int:
        """Refuse: a shape does not tell."""
        raise ArgumentError("coupled units are not counted by shapes; ask CoupledUnits")

    def expand(self, units: Tensor, shape: torch.Size) -> Tensor:
        """Refuse: a shape does not tell."""
        raise ArgumentError("coupled units are not spread by shapes; ask CoupledUnits")

    def reduce(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Refuse: a shape does not tell."""
        raise ArgumentError("coupled units are not summed up by shapes; ask CoupledUnits")


class CoupledUnits(ParameterUnits):
    """The units of couplings, each zeroed wherever it reaches.

    Each coupling is a layer, that of its first parameter that is no other coupling's; the parameters that
    are left over are layers without units of their own, so that criteria see their weights.

    Args:
        model: any module.
        couplings: the units; a parameter may be in several (its rows in one, its columns in another).

    Raises:
        ArgumentError: a tie does not fit its parameter or its coupling.
        SelectionError: there are no units, or a parameter is not the model's.
    """

    side_by_side: ClassVar[bool] = False

    def __init__(self, model: nn.Module, couplings: Sequence[Coupling]) -> None:
        self.model = model
        self.granularity = Coupled()
        self.couplings = tuple(couplings)
        if not any(c.count for c in couplings):
            raise SelectionError("couplings: hold no unit; give at least one with parameters that can go")
        self.layers = self._found()
        self.count = sum(c.count for c in couplings)
        self.device = self.layers[0].parameter.device
        self.layer_counts = torch.tensor([layer.count for layer in self.layers])

    def _found(self) -> list[Layer]:
        places: dict[int, tuple[str, nn.Module, str]] = {}
        for prefix, module in self.model.named_modules():
            for own, parameter in module.named_parameters(recurse=False):
                places.setdefault(id(parameter), (f"{prefix}.{own}" if prefix else own, module, own))
        layers: dict[int, Layer] = {}
        start = 0
        for coupling in self.couplings:
            for tie in coupling.ties:
                self._check(coupling, tie, places)
            free = [t.parameter for t in coupling.ties if id(t.parameter) not in layers]
            if not free:
                raise ArgumentError(
                    f"couplings: {coupling.name!r} has no parameter that is not another coupling's first; "
                    "put both into one coupling"
                )
            stop = start + coupling.count
            layers[id(free[0])] = _layer(*places[id(free[0])], start, stop)
            start = stop
        for tie in (t for coupling in self.couplings for t in coupling.ties):
            key = id(tie.parameter)
            if key not in layers:
                layers[key] = _layer(*places[key], start, start)
        return list(layers.values())

    @staticmethod
    def _check(coupling: Coupling, tie: Tie, places: Mapping[int, object]) -> None:
        if id(tie.parameter) not in places:
            raise SelectionError(f"couplings: {coupling.name!r} has a parameter that is not the model's")
        shape, units = tuple(tie.parameter.shape), tie.units
        fits = units.dim() <= len(shape) and all(
            a in (1, b) for a, b in zip(reversed(units.shape), reversed(shape), strict=False)
        )
        if units.dtype != torch.int64 or not fits:
            raise ArgumentError(
                f"couplings: {coupling.name!r} has units {units.dtype} {tuple(units.shape)}, which don't "
                f"broadcast to a parameter {shape}; give int64"
            )
        if units.numel() and not (int(units.min()) >= -1 and int(units.max()) < coupling.count):
            raise ArgumentError(
                f"couplings: {coupling.name!r} names units {int(units.min())} to {int(units.max())}, "
                f"expected -1 to {coupling.count - 1}"
            )

    @cached_property
    def _ties(self) -> list[list[Tensor]]:
        """For each layer the units of its ties, numbered over all couplings, -1 for none."""
        at = {id(layer.parameter): n for n, layer in enumerate(self.layers)}
        ties: list[list[Tensor]] = [[] for _ in self.layers]
        start = 0
        for coupling in self.couplings:
            for tie in coupling.ties:
                units = tie.units.reshape(*[1] * (tie.parameter.dim() - tie.units.dim()), *tie.units.shape)
                ties[at[id(tie.parameter)]].append(torch.where(units < 0, -1, units + start).cpu())
            start += coupling.count
        return ties

    # -- units and weights -----------------------------------------------------------------------

    def parts(self, values: Iterable[Tensor]) -> list[Tensor]:
        """Sum one tensor a layer ``(..., *parameter.shape)`` over units; a number counts for all its own."""
        result: Tensor | None = None
        for layer, units, value in zip(self.layers, self._ties, values, strict=True):
            lead = value.shape[: value.dim() - layer.parameter.dim()]
            if result is None:
                result = value.new_zeros(*lead, self.count)
            for ids in units:
                narrow = [d - ids.dim() for d, size in enumerate(ids.shape) if size == 1]
                part = value.sum(narrow, keepdim=True) if narrow else value
                some = ids.flatten() >= 0
                found = part.flatten(len(lead))[..., some.to(part.device)]
                result.index_add_(-1, ids.flatten()[some].to(part.device), found.to(result.dtype))
        if result is None:
            raise ArgumentError("values: expected one tensor a layer, got none")
        return [result[..., layer.start : layer.stop] for layer in self.layers]

    def expand(self, units: Tensor) -> list[Tensor]:
        """Spread a mask ``(..., units)`` over weights: true where none of a weight's units is false.

        Raises:
            ArgumentError: `units` are no bools.
        """
        if units.dtype != torch.bool:
            raise ArgumentError(f"units: got {units.dtype}; only masks can be spread over coupled weights")
        result = []
        for layer, ties in zip(self.layers, self._ties, strict=True):
            mask = torch.ones(
                (*units.shape[:-1], *layer.parameter.shape), dtype=torch.bool, device=units.device
            )
            for ids in ties:
                at = ids.to(units.device)
                mask &= units[..., at.clamp_min(0)] | (at < 0)
            result.append(mask)
        return result

    def expand_layer(self, layer: Layer, units: Tensor) -> Tensor:
        """Refuse: a layer's own units do not tell what is left of it."""
        raise ArgumentError(f"{layer.name}: coupled units are spread over all layers at once; use expand")

    def masks(self, kept: Masks | Mask) -> dict[str, Tensor]:
        """Return ``{parameter name: bool mask}`` in each parameter's own shape (True = kept)."""
        return {layer.name: mask for layer, mask in zip(self.layers, self.expand(kept), strict=True)}

    @contextmanager
    def zeroed(self, kept: Mask) -> Iterator[Mapping[int, Tensor]]:
        """Zero every unit that is not kept; bit-exact restoration, also on an exception.

        Raises:
            ArgumentError: `kept` is not a bool vector with one entry a unit.
        """
        if kept.dtype != torch.bool or kept.shape != (self.count,):
            raise ArgumentError(
                f"kept: got {kept.dtype} {tuple(kept.shape)}, expected torch.bool ({self.count},)"
            )
        kept = kept.cpu()
        if bool(kept.all()):
            yield {}
            return
        saved: list[tuple[nn.Parameter, Tensor]] = []
        try:
            for layer, ties in zip(self.layers, self._ties, strict=True):
                masks = [kept[ids.clamp_min(0)] | (ids < 0) for ids in ties]
                masks = [mask for mask in masks if not bool(mask.all())]
                if not masks:
                    continue
                parameter = layer.parameter
                saved.append((parameter, parameter.data.clone()))
                for mask in masks:
                    zero_(parameter.data, mask.to(parameter.device).expand(parameter.shape).contiguous())
            yield {id(parameter): value for parameter, value in saved}
        finally:
            for parameter, value in saved:
                parameter.data.copy_(value)


def _layer(name: str, module: nn.Module, own: str, start: int, stop: int) -> Layer:
    parameter = module.get_parameter(own)
    if parameter.dim() > 1:
        return replace(describe(name, module, own, parameter, start, Weight()), stop=stop)
    return Layer(name, module, parameter, None, None, 1, parameter.shape, start, stop)
