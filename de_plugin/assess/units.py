"""Where the units are: the prunable parameters of a model, and zeroing any set of them tentatively."""

from __future__ import annotations

import difflib
import fnmatch
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from de_plugin.assess.bits import zero_
from de_plugin.assess.granularity import NM, Granularity, granularity
from de_plugin.assess.layers import EMBEDDING, PRUNABLE, Layer, describe, is_masked, usable, weight_names
from de_plugin.errors import ArgumentError, DEWarning, SelectionError
from de_plugin.types import Mask, Masks

__all__ = ["EMBEDDING", "PRUNABLE", "Layer", "ParameterUnits", "Pattern", "Units"]

Pattern = str | type[nn.Module]


@runtime_checkable
class Units(Protocol):
    """What is zeroed together; a new kind of unit implements this."""

    @property
    def count(self) -> int:
        """Return the number of units."""

    def zeroed(self, kept: Mask) -> AbstractContextManager[object]:
        """Zero every unit that is not kept; the values come back bit-exactly, also on an exception."""


class ParameterUnits:
    """The units of a model's weights.

    Args:
        model: any module; parameters that occur twice are counted once.
        granularity: what is zeroed together, see `de_plugin.assess.granularity.granularity`.
        include: name patterns (``"encoder.*"``, of a module or of a parameter) and module types; the
            weights that match at least one. Default: the types in `PRUNABLE`.
        exclude: as `include`; what matches is left alone.

    Raises:
        SelectionError: a pattern matches nothing, nothing is left to prune, or a weight that is selected
            carries a mask of `torch.nn.utils.prune`.
    """

    side_by_side: ClassVar[bool] = True
    """Whether candidates can be measured side by side."""

    def __init__(
        self,
        model: nn.Module,
        granularity_: str | Granularity = "weight",
        *,
        include: Sequence[Pattern] = (),
        exclude: Sequence[Pattern] = (),
    ) -> None:
        self.model = model
        self.granularity = granularity(granularity_)
        self.layers = self._layers(include, exclude)
        self.count = self.layers[-1].stop
        self.device = self.layers[0].parameter.device
        counts = torch.tensor([layer.count for layer in self.layers])
        self.layer_counts = counts
        """Units in each layer, ``(layers,)``."""

    @property
    def layer_of(self) -> Tensor:
        """The layer of each unit, ``(units,)``; made at each call, for it takes twice a model's memory."""
        return torch.repeat_interleave(torch.arange(len(self.layers)), self.layer_counts)

    def per_layer(self, values: Tensor) -> Tensor:
        """Spread one number a layer over its units, ``(units,)``."""
        return torch.cat([v.expand(x.count) for v, x in zip(values, self.layers, strict=True)])

    @property
    def sizes(self) -> Tensor:
        """Weights in each unit, ``(units,)``; made at each call."""
        return self.reduce([torch.ones_like(layer.parameter, device="cpu") for layer in self.layers])

    # -- finding ---------------------------------------------------------------------------------

    def _layers(self, include: Sequence[Pattern], exclude: Sequence[Pattern]) -> list[Layer]:
        for argument, patterns in (("include", include), ("exclude", exclude)):
            if isinstance(patterns, str | type):
                raise ArgumentError(
                    f"{argument}={patterns!r}: expected a list of name patterns and module types, "
                    f"as in [{patterns!r}]"
                )
        found: dict[int, Layer] = {}
        names: list[str] = []
        used: set[int] = set()
        refused: list[str] = []
        masked: list[str] = []
        start = 0
        for prefix, module in self.model.named_modules(remove_duplicate=False):
            for own in weight_names(module):
                hidden = is_masked(module, own)
                parameter = module._parameters.get(f"{own}_orig" if hidden else own)
                if parameter is None or not usable(parameter):
                    continue
                name = f"{prefix}.{own}" if prefix else own
                names.append(name)
                if id(parameter) in found and not hidden:
                    known = found[id(parameter)]
                    if name != known.name:
                        found[id(parameter)] = known.with_alias(name)
                    continue
                hit = _matching(include, prefix, name, module)
                out = _matching(exclude, prefix, name, module)
                used.update(id(p) for p in (*hit, *out))
                if (include and not hit) or out:
                    continue
                if hidden:
                    masked.append(prefix or type(module).__name__)
                    continue
                layer = describe(name, module, own, parameter, start, self.granularity)
                if isinstance(self.granularity, NM) and not self.granularity.fits(layer.shape):
                    refused.append(f"{name} {tuple(parameter.shape)}")
                    continue
                if layer.bias is not None and any(layer.bias is known.bias for known in found.values()):
                    # A bias of two layers is zeroed with the channels of the first alone.
                    layer = replace(layer, bias=None, bias_name=None)
                found[id(parameter)] = layer
                start = layer.stop
        self._check_patterns("include", include, used, names)
        self._check_patterns("exclude", exclude, used, names)
        if masked:
            raise SelectionError(
                f"model {type(self.model).__name__}: torch.nn.utils.prune masks are attached to "
                f"{', '.join(dict.fromkeys(masked))}, which hides these weights; make the masks permanent "
                "first with de_plugin.remove(model), or exclude these modules"
            )
        if refused:
            warnings.warn(
                f"granularity={self.granularity.name!r}: the inputs of {', '.join(refused)} don't "
                "divide into groups; these layers stay dense",
                DEWarning,
                stacklevel=4,
            )
        if not found:
            raise SelectionError(
                f"model {type(self.model).__name__}: no prunable units are left. Prunable weights: "
                f"{names or 'none'}; include={list(include)!r}, exclude={list(exclude)!r}. Prunable "
                f"are the weights of {', '.join(t.__name__ for t in PRUNABLE)}; widen include, "
                "narrow exclude, or remove parametrizations first"
            )
        return list(found.values())

    @staticmethod
    def _check_patterns(argument: str, patterns: Sequence[Pattern], used: set[int], names: list[str]) -> None:
        for pattern in patterns:
            if id(pattern) in used:
                continue
            near = difflib.get_close_matches(str(pattern), names, n=3, cutoff=0.3) or names[:3]
            raise SelectionError(
                f"{argument}: {pattern!r} matches none of the {len(names)} prunable weights "
                f"(such as {', '.join(near) or 'none'}); patterns are globs like 'encoder.*' on "
                "module or parameter names, or module types"
            )

    # -- units and weights -----------------------------------------------------------------------

    def values(self) -> list[Tensor]:
        """Return the weight tensors, one a layer, detached, not copied."""
        return [layer.parameter.detach() for layer in self.layers]

    def reduce(self, values: Sequence[Tensor]) -> Tensor:
        """Sum one tensor a layer ``(..., *parameter.shape)`` over units: ``(..., units)``."""
        return torch.cat(self.parts(values), -1)

    def parts(self, values: Iterable[Tensor]) -> list[Tensor]:
        """Sum one tensor a layer ``(..., *parameter.shape)`` over the layer's units, one by one."""
        return [
            self.granularity.reduce(layer.canonical(value), layer.shape)
            for layer, value in zip(self.layers, values, strict=True)
        ]

    def expand(self, units: Tensor) -> list[Tensor]:
        """Spread ``(..., units)`` over weights: one ``(..., *parameter.shape)`` a layer."""
        return [self.expand_layer(layer, units[..., layer.start : layer.stop]) for layer in self.layers]

    def expand_layer(self, layer: Layer, units: Tensor) -> Tensor:
        """Spread one layer's units ``(..., layer.count)`` over its weights."""
        return layer.native(self.granularity.expand(units, layer.shape))

    def masks(self, kept: Masks | Mask) -> dict[str, Tensor]:
        """Return ``{parameter name: bool mask}`` in each parameter's own shape (True = kept).

        Channels take their bias along. Leading dimensions of `kept` lead every mask.
        """
        result: dict[str, Tensor] = {}
        for layer, mask in zip(self.layers, self.expand(kept), strict=True):
            result[layer.name] = mask
            if layer.bias_name is not None:
                result[layer.bias_name] = kept[..., layer.start : layer.stop]
        return result

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return every parameter that a mask can touch, by name."""
        result: dict[str, nn.Parameter] = {}
        for layer in self.layers:
            result[layer.name] = layer.parameter
            if layer.bias_name is not None and layer.bias is not None:
                result[layer.bias_name] = layer.bias
        return result

    def weight_sparsity(self, kept: Mask) -> float:
        """Return the fraction of weights, not of units, that are zeroed."""
        sizes = self.sizes
        return float(sizes[~kept.cpu()].sum() / sizes.sum())

    @contextmanager
    def zeroed(self, kept: Mask) -> Iterator[Mapping[int, Tensor]]:
        """Zero every unit that is not kept; bit-exact restoration, also on an exception.

        The values of the parameters that are touched, as they are outside, are given by ``id``.

        Raises:
            ArgumentError: `kept` is not a bool vector with one entry a unit.
        """
        if kept.dtype != torch.bool or kept.shape != (self.count,):
            raise ArgumentError(
                f"kept: got {kept.dtype} {tuple(kept.shape)}, expected torch.bool ({self.count},)"
            )
        saved: list[tuple[nn.Parameter, Tensor]] = []
        try:
            for layer in self.layers:
                part = kept[layer.start : layer.stop]
                if bool(part.view(torch.uint8).min()):
                    continue
                part = part.to(layer.parameter.device)
                self._zero(layer.parameter, self.expand_layer(layer, part), saved)
                if layer.bias is not None:
                    self._zero(layer.bias, part, saved)
            yield {id(parameter): value for parameter, value in saved}
        finally:
            for parameter, value in saved:
                parameter.data.copy_(value)

    @staticmethod
    def _zero(parameter: nn.Parameter, kept: Tensor, saved: list[tuple[nn.Parameter, Tensor]]) -> None:
        saved.append((parameter, parameter.data.clone()))
        zero_(parameter.data, kept)


def _matching(patterns: Sequence[Pattern], prefix: str, name: str, module: nn.Module) -> list[Pattern]:
    return [p for p in patterns if (isinstance(module, p) if isinstance(p, type) else _glob(p, prefix, name))]


def _glob(pattern: str, prefix: str, name: str) -> bool:
    return fnmatch.fnmatchcase(prefix, pattern) or fnmatch.fnmatchcase(name, pattern)
