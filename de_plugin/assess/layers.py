"""What can be pruned in a model: its prunable weights, and their one canonical layout.

Frameworks store the weights of linear, transposed and embedding layers in different orders; canonical is
``(out, in per group, *kernel)`` for all of them, so that granularities need to know only one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from de_plugin.assess.granularity import Channel, Granularity

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
EMBEDDING = (nn.Embedding, nn.EmbeddingBag)
PRUNABLE: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    *TRANSPOSED,
    *EMBEDDING,
    nn.MultiheadAttention,
)
"""Modules whose weights are pruned unless `include` says otherwise; `Conv1D` of transformers as well."""

_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


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

    @property
    def outputs_first(self) -> bool:
        """Whether the parameter's own order of dimensions is the canonical one, that of a plain product."""
        return not inputs_first(self.module) and not isinstance(self.module, TRANSPOSED)

    def canonical(self, values: Tensor) -> Tensor:
        """Bring ``(..., *parameter.shape)`` to ``(..., out, in, *kernel)``."""
        lead = values.shape[: values.dim() - self.parameter.dim()]
        at = len(lead)
        if inputs_first(self.module):
            return values.transpose(at, at + 1)
        if isinstance(self.module, TRANSPOSED):
            inputs, outputs, *kernel = self.parameter.shape
            grouped = values.reshape(*lead, self.groups, inputs // self.groups, outputs, *kernel)
            return grouped.transpose(at + 1, at + 2).reshape(*lead, *self.shape)
        return values

    def native(self, values: Tensor) -> Tensor:
        """Bring ``(..., out, in, *kernel)`` back to ``(..., *parameter.shape)``."""
        lead = values.shape[: values.dim() - len(self.shape)]
        at = len(lead)
        if inputs_first(self.module):
            return values.transpose(at, at + 1)
        if isinstance(self.module, TRANSPOSED):
            outputs, inputs, *kernel = self.shape
            grouped = values.reshape(*lead, self.groups, outputs // self.groups, inputs, *kernel)
            return grouped.transpose(at + 1, at + 2).reshape(*lead, *self.parameter.shape)
        return values

    def with_alias(self, name: str) -> Layer:
        """Return the same layer with one more name under which its tensor is known."""
        return replace(self, aliases=(*self.aliases, name))


def is_conv1d_of_transformers(module: nn.Module) -> bool:
    """Say whether a module is the linear layer of GPT-2 in the package transformers, which need not be there.

    Despite its name it is no convolution; its weight is ``(in, out)``.
    """
    if type(module).__name__ != "Conv1D":
        return False
    weight, outputs = getattr(module, "weight", None), getattr(module, "nf", None)
    return isinstance(weight, Tensor) and weight.dim() == 2 and weight.shape[1] == outputs


def inputs_first(module: nn.Module) -> bool:
    """Say whether a module's weight is the canonical one transposed."""
    return isinstance(module, EMBEDDING) or is_conv1d_of_transformers(module)


def output_dim(module: nn.Module) -> int:
    """Return the dimension of a module's weight that counts outputs."""
    return 1 if isinstance(module, TRANSPOSED) or inputs_first(module) else 0


def weight_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names that the prunable weights of a module of this type have."""
    if isinstance(module, nn.MultiheadAttention):
        return _ATTENTION_WEIGHTS
    return ("weight",) if isinstance(module, PRUNABLE) or is_conv1d_of_transformers(module) else ()


def is_masked(module: nn.Module, own: str) -> bool:
    """Say whether `torch.nn.utils.prune` has put a mask on this weight, which then is no parameter."""
    attached = f"{own}_orig" in module._parameters and f"{own}_mask" in module._buffers
    return attached and own not in module._parameters


def usable(parameter: nn.Parameter) -> bool:
    """Say whether there is something to zero: an initialized, non-empty matrix or tensor of floats."""
    lazy = isinstance(parameter, nn.parameter.UninitializedParameter)
    return not lazy and parameter.is_floating_point() and parameter.dim() > 1 and parameter.numel() > 0


def describe(
    name: str,
    module: nn.Module,
    own: str,
    parameter: nn.Parameter,
    start: int,
    granularity_: Granularity,
) -> Layer:
    """Describe one prunable weight.

    Args:
        name: its full name.
        module: whose parameter it is.
        own: its name in that module.
        parameter: the weight itself.
        start: number of its first unit.
        granularity_: what is zeroed together; channels take their bias along.
    """
    groups = int(getattr(module, "groups", 1))
    shape = parameter.shape
    if inputs_first(module):
        shape = torch.Size((shape[1], shape[0]))
    elif isinstance(module, TRANSPOSED):
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
