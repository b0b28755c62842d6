"""One run of the student as it stands: which prunable weights are used, in what order, with what result.

A function mode sees the calls wherever they are made (in modules, in `torch.nn.functional`, inside
attention), so that nothing depends on how the model is written and nothing has to be traced.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from de_plugin.assess.changes import TOUCHED
from de_plugin.assess.repair import Statistics

_PRODUCTS = {
    "linear",
    *(f"conv{d}d" for d in (1, 2, 3)),
    *(f"conv_transpose{d}d" for d in (1, 2, 3)),
    "embedding",
    "embedding_bag",
    "multi_head_attention_forward",
}
"""Functions whose result can stand for the call: what a prefix keeps."""
_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_VALUES = {"T", "mT", "H", "mH", "data"}
"""Attributes of a tensor that give its values again."""


def tensors(*trees: Any) -> list[Tensor]:
    """Return the tensors in arguments: tuples, lists and dicts of any nesting."""
    found: list[Tensor] = []
    for x in trees:
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, tuple | list):
            found += tensors(*x)
        elif isinstance(x, dict):
            found += tensors(*x.values())
    return found


def flexible(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[..., Any]:
    """Return `func`, or what gives the same for any memory layout.

    A `view` becomes a `reshape`; pooling to one value, which restrides its result, becomes a mean.
    """
    if kwargs:
        return func
    if func is Tensor.view_as:
        return torch.Tensor.reshape_as
    if func is Tensor.view and not any(isinstance(x, torch.dtype) for x in args):
        return torch.Tensor.reshape
    if func is torch.nn.functional.linear and _is_transposed(args[0]):
        return _from_the_left
    if getattr(func, "__name__", "") == "adaptive_avg_pool2d" and args[1:] in ((1,), ((1, 1),)):
        return _mean_pool
    return func


def _is_transposed(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dim() > 1 and x.stride(-2) == 1 != x.stride(-1)


def _from_the_left(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a linear layer's outputs, transposed in memory as its inputs are."""
    y = torch.matmul(weight.detach(), x.mT)  # of a weight that needs a gradient matmul makes one copy more
    return (y if bias is None else y + bias[:, None]).mT


def _mean_pool(x: Tensor, _size: Any) -> Tensor:
    return x.mean((-2, -1), keepdim=True)


def channels_last(func: Callable[..., Any], result: Any) -> Any:
    """Return the images that a convolution gives with their channels last in memory.

    That order is what processors pool and convolve fastest; what follows keeps it.
    """
    if getattr(func, "__name__", "") == "conv2d" and result.dim() == 4:
        return result.contiguous(memory_format=torch.channels_last)
    return result


def is_product(func: Callable[..., Any]) -> bool:
    """Tell whether a function's result can be kept and given back for the same call."""
    return getattr(func, "__name__", "") in _PRODUCTS


def is_getter(func: Callable[..., Any]) -> bool:
    """Tell whether a function only reads an attribute such as `shape`, not the values (as `T` does)."""
    attribute = getattr(getattr(func, "__self__", None), "__name__", "")
    return getattr(func, "__name__", "") == "__get__" and attribute not in _VALUES


def version(x: Tensor) -> int:
    """Return how often a tensor has been changed in place; what was made in inference mode doesn't tell."""
    return -1 if x.is_inference() else x._version


@dataclass
class Step:
    """One function call of a run.

    Attributes:
        result: what the function returned; None where that is no tensor, or is not kept.
        versions: of the result's tensors when they were returned.
        work: multiplications with prunable weights, for all samples.
        numel: numbers in the result.
        filled: the number of the last step that wrote other tensors into the result; -1 for none.
        spends: the number of the step that made the memory of the first argument, where no other step
            reads that: the present one may overwrite it. -1 where it may not.
    """

    result: Any
    versions: tuple[int, ...]
    work: float
    numel: int
    filled: int = -1
    spends: int = -1

    @property
    def overwritten(self) -> bool:
        """Whether the model has changed the result in place since, as far as that can be known."""
        return -1 in self.versions or tuple(version(x) for x in tensors(self.result)) != self.versions


@dataclass
class Record:
    """What one run has shown.

    Attributes:
        steps: the function calls, in order.
        first: for each layer that was used, the number of the step that used it first.
        outputs: what the forward returned.
    """

    steps: list[Step] = field(default_factory=list)
    first: dict[int, int] = field(default_factory=dict)
    outputs: Any = None

    @property
    def in_place(self) -> bool:
        """Whether the model has overwritten what is kept."""
        return any(step.overwritten for step in self.steps)

    @property
    def bytes(self) -> int:
        """Memory of what is kept."""
        kept = {x.data_ptr(): x.numel() * x.element_size() for s in self.steps for x in tensors(s.result)}
        return sum(kept.values())

    @property
    def cost_before(self) -> list[float]:
        """About how long what comes before each step takes, and all of it, in multiplications."""
        return [0.0, *accumulate(step.work + TOUCHED * step.numel for step in self.steps)]

    def work_from(self, start: int) -> float:
        """Return the multiplications of the steps from number `start` on."""
        return sum(step.work for step in self.steps[start:])

    def largest_from(self, start: int) -> int:
        """Return the numbers in the largest result from step `start` on."""
        return max([step.numel for step in self.steps[start:]], default=1)


class Watching(TorchFunctionMode):
    """Hands every function call of a run on, but for the reading of attributes.

    Args:
        layers: the layer of each prunable parameter, by ``id``.
        statistics: what gives batch norms their statistics, by ``id`` of the running mean.
    """

    def __init__(self, layers: Mapping[int, int], statistics: Mapping[int, Statistics] | None = None) -> None:
        super().__init__()
        self._layers = layers
        self._statistics = statistics or {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if is_getter(func):
            return func(*args, **kwargs)
        if getattr(func, "__name__", "") == "batch_norm":
            given = {**dict(zip(_NORM, args, strict=False)), **kwargs}
            statistics = self._statistics.get(id(given.get("running_mean")))
            if statistics is not None or not given.get("training", False):
                return self.call(partial(normalised, statistics), (given.pop("input"),), given)
        return self.call(func, args, kwargs)

    @abstractmethod
    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what stands for the call's result."""

    def used(self, args: Any, kwargs: Any) -> list[Tensor]:
        """Return the prunable parameters among the arguments."""
        return [x for x in tensors(args, kwargs) if id(x) in self._layers]


def normalised(
    statistics: Statistics | None,
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    **_: Any,
) -> Tensor:
    """Return what a batch norm gives, with other statistics than its own where `statistics` gives them.

    One multiplication and addition; torch's own function copies its inputs twice inside `vmap`.
    """
    mean, var = (running_mean, running_var) if statistics is None else statistics(x)
    scale = (var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    shape = (1, -1, *([1] * (x.dim() - 2)))
    wide = torch.promote_types(x.dtype, torch.float32)  # half precision would round the shift
    result = torch.addcmul(shift.to(wide).reshape(shape), x.to(wide), scale.to(wide).reshape(shape))
    return result.to(x.dtype)


def copied(result: Any) -> Any:
    """Return a copy of a function's result."""
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, result)
