"""Where the units are: the prunable parameters of a model, and zeroing any set of them tentatively."""

from __future__ import annotations

import difflib
import fnmatch
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from de_plugin.assess.granularity import NM, Channel, Granularity, granularity
from de_plugin.errors import ArgumentError, DEWarning, SelectionError
from de_plugin.types import Mask, Masks

Pattern = str | type[nn.Module]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
EMBEDDING = (nn.Embedding, nn.EmbeddingBag)
PRUNABLE: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    *_TRANSPOSED,
    *EMBEDDING,
    nn.MultiheadAttention,
)
"""Modules whose weights are pruned unless `include` says otherwise."""

_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@runtime_checkable
class Units(Protocol):
    """What is zeroed together; a new kind of unit implements this."""

    @property
    def count(self) -> int:
        """Return the number of units."""

    def zeroed(self, kept: Mask) -> AbstractContextManager[None]:
        """Zero every unit that is not kept; the values come back bit-exactly, also on an exception."""


@dataclass(frozen=True)
class Layer:
    """One prunable weight tensor and its place in the vector of units."""

    name: str
    """Full name of the parameter, as in ``state_dict``."""
    module: nn.Module
    parameter: nn.Parameter
    bias: nn.Parameter | None
    bias_name: str | None
    groups: int
    shape: torch.Size
    """Canonical: (out, in per group, *kernel)."""
    start: int
    stop: int
    aliases: tuple[str, ...] = ()
    """Other names under which the same tensor is known."""

    @property
    def count(self) -> int:
        """Number of units."""
        return self.stop - self.start

    def canonical(self, values: Tensor) -> Tensor:
        """Bring ``(..., *parameter.shape)`` to ``(..., out, in, *kernel)``."""
        lead = values.shape[: values.dim() - self.parameter.dim()]
        at = len(lead)
        if isinstance(self.module, EMBEDDING):
            return values.transpose(at, at + 1)
        if isinstance(self.module, _TRANSPOSED):
            inputs, outputs, *kernel = self.parameter.shape
            grouped = values.reshape(*lead, self.groups, inputs // self.groups, outputs, *kernel)
            return grouped.transpose(at + 1, at + 2).reshape(*lead, *self.shape)
        return values

    def native(self, values: Tensor) -> Tensor:
        """Bring ``(..., out, in, *kernel)`` back to ``(..., *parameter.shape)``."""
        lead = values.shape[: values.dim() - len(self.shape)]
        at = len(lead)
        if isinstance(self.module, EMBEDDING):
            return values.transpose(at, at + 1)
        if isinstance(self.module, _TRANSPOSED):
            outputs, inputs, *kernel = self.shape
            grouped = values.reshape(*lead, self.groups, outputs // self.groups, inputs, *kernel)
            return grouped.transpose(at + 1, at + 2).reshape(*lead, *self.parameter.shape)
        return values


class ParameterUnits:
    """The units of a model's weights.

    Args:
        model: any module; parameters that occur twice are counted once.
        granularity: what is zeroed together, see `de_plugin.assess.granularity.granularity`.
        include: name patterns (``"encoder.*"``, of a module or of a parameter) and module types; the
            weights that match at least one. Default: the types in `PRUNABLE`.
        exclude: as `include`; what matches is left alone.

    Raises:
        SelectionError: a pattern matches nothing, or nothing is left to prune.
    """

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
        self.layer_of = torch.repeat_interleave(torch.arange(len(counts)), counts)
        """The layer of each unit, ``(units,)``."""
        self.sizes = self.reduce([torch.ones_like(layer.parameter, device="cpu") for layer in self.layers])
        """Weights in each unit, ``(units,)``."""

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
        start = 0
        for prefix, module in self.model.named_modules(remove_duplicate=False):
            for own in _weights(module):
                parameter = module._parameters.get(own)
                if parameter is None or not _usable(parameter):
                    continue
                name = f"{prefix}.{own}" if prefix else own
                names.append(name)
                if id(parameter) in found:
                    known = found[id(parameter)]
                    if name != known.name:
                        found[id(parameter)] = _with_alias(known, name)
                    continue
                hit = _matching(include, prefix, name, module)
                out = _matching(exclude, prefix, name, module)
                used.update(id(p) for p in (*hit, *out))
                if (include and not hit) or out:
                    continue
                layer = _layer(name, module, own, parameter, start, self.granularity)
                if isinstance(self.granularity, NM) and not self.granularity.fits(layer.shape):
                    refused.append(f"{name} {tuple(parameter.shape)}")
                    continue
                found[id(parameter)] = layer
                start = layer.stop
        self._check_patterns("include", include, used, names)
        self._check_patterns("exclude", exclude, used, names)
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
        parts = [
            self.granularity.reduce(layer.canonical(value), layer.shape)
            for layer, value in zip(self.layers, values, strict=True)
        ]
        return torch.cat(parts, -1)

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
        return float(self.sizes[~kept.cpu()].sum() / self.sizes.sum())

    @contextmanager
    def zeroed(self, kept: Mask) -> Iterator[None]:
        """Zero every unit that is not kept; bit-exact restoration, also on an exception.

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
                if bool(part.all()):
                    continue
                part = part.to(layer.parameter.device)
                self._zero(layer.parameter, self.expand_layer(layer, part), saved)
                if layer.bias is not None:
                    self._zero(layer.bias, part, saved)
            yield
        finally:
            for parameter, value in saved:
                parameter.data.copy_(value)

    @staticmethod
    def _zero(parameter: nn.Parameter, kept: Tensor, saved: list[tuple[nn.Parameter, Tensor]]) -> None:
        saved.append((parameter, parameter.data.clone()))
        parameter.data.masked_fill_(~kept, 0)


def _weights(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, nn.MultiheadAttention):
        return _ATTENTION_WEIGHTS
    return ("weight",) if isinstance(module, PRUNABLE) else ()


def _usable(parameter: nn.Parameter) -> bool:
    lazy = isinstance(parameter, nn.parameter.UninitializedParameter)
    return not lazy and parameter.is_floating_point() and parameter.dim() > 1 and parameter.numel() > 0


def _matching(patterns: Sequence[Pattern], prefix: str, name: str, module: nn.Module) -> list[Pattern]:
    return [p for p in patterns if (isinstance(module, p) if isinstance(p, type) else _glob(p, prefix, name))]


def _glob(pattern: str, prefix: str, name: str) -> bool:
    return fnmatch.fnmatchcase(prefix, pattern) or fnmatch.fnmatchcase(name, pattern)


def _with_alias(layer: Layer, name: str) -> Layer:
    return Layer(**{**layer.__dict__, "aliases": (*layer.aliases, name)})


def _layer(
    name: str,
    module: nn.Module,
    own: str,
    parameter: nn.Parameter,
    start: int,
    granularity_: Granularity,
) -> Layer:
    groups = int(getattr(module, "groups", 1))
    shape = parameter.shape
    if isinstance(module, EMBEDDING):
        shape = torch.Size((shape[1], shape[0]))
    elif isinstance(module, _TRANSPOSED):
        shape = torch.Size((shape[1] * groups, shape[0] // groups, *shape[2:]))
    bias_own = "in_proj_bias" if own == "in_proj_weight" else "bias"
    bias = module._parameters.get(bias_own) if isinstance(granularity_, Channel) else None
    if own in _ATTENTION_WEIGHTS[1:]:
        bias = None
    return Layer(
        name=name,
        module=module,
        parameter=parameter,
        bias=bias,
        bias_name=None if bias is None else name[: -len(own)] + bias_own,
        groups=groups,
        shape=shape,
        start=start,
        stop=start + granularity_.count(shape),
    )
