"""What a pruned model is measured by: what is left of it, divergence and score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from de_plugin.assess.layers import output_dim
from de_plugin.compare.case import Case
from de_plugin.compare.sizes import Size, size
from de_plugin.errors import DataError, OutputError

Metric = Callable[[nn.Module], float]
"""``fn(model) -> score``, higher is better."""


class Ruler:
    """Measures pruned models against the intact one.

    Args:
        case: what was asked of the methods; its calibration data are measured on where there are no others.
        test: held-out data, ``[(inputs,) or (inputs, labels), ...]``, or None.
        metric: gives the score; None: the percentage of right labels of the test data, if it has labels.
    """

    def __init__(self, case: Case, test: Sequence[tuple[Any, ...]] | None, metric: Metric | None) -> None:
        self.model, self.metric = case.model, metric
        self.divergence, self.forward = case.divergence, case.forward
        self.data = case.batches if test is None else test
        self.weights, self.channels = case.weights, case.task == "channels"
        self.example = tree_map(_first, case.batches[0][0])
        self._whole = {n: self._size(case.model, n) for n in self.weights}
        self._labelled = test is not None and all(len(x) > 1 and isinstance(x[1], Tensor) for x in test)
        with torch.no_grad():
            self._answers = [case.forward(case.model, batch[0]) for batch in self.data]

    @property
    def scores(self) -> str:
        """Return what the score is, empty where there is none."""
        if self.metric is not None:
            return str(getattr(self.metric, "__name__", "metric"))
        return "test accuracy, %" if self._labelled else ""

    def compared(self, pruned: nn.Module) -> tuple[float, float | None]:
        """Return divergence and score of a model in eval mode.

        Raises:
            OutputError: its outputs are not finite.
            DataError: there is no class among its outputs.
        """
        total, right, samples = 0.0, 0, 0
        with torch.no_grad():
            for batch, answer in zip(self.data, self._answers, strict=True):
                outputs, count = self.forward(pruned, batch[0]), length(batch[0])
                total += count * float(self.divergence(outputs, answer, batch[1] if len(batch) > 1 else None))
                samples += count
                if self._labelled and self.metric is None:
                    right += _right(outputs, batch[1])
        value = total / samples
        if not value < torch.finfo(torch.float32).max:
            raise OutputError(f"the pruned model's outputs are not finite: its divergence is {value}")
        if self.metric is not None:
            return value, float(self.metric(pruned))
        return value, 100.0 * right / samples if self._labelled else None

    def size(self, pruned: nn.Module) -> Size:
        """Return the multiplications a sample and the parameters that are left."""
        return size(pruned, self.example, self.forward, self.weights)

    def layers(self, pruned: nn.Module) -> tuple[tuple[str, float], ...]:
        """Return the fraction of each parameter's weights, or channels, that is gone."""
        return tuple((n, 1 - self._left(pruned, n) / self._whole[n]) for n in self.weights)

    def density(self, pruned: nn.Module) -> float:
        """Return the fraction of all prunable weights, or channels, that is left."""
        return sum(self._left(pruned, n) for n in self.weights) / sum(self._whole[n] for n in self.weights)

    def _size(self, model: nn.Module, name: str) -> int:
        """Return how many weights or channels a parameter has."""
        owner, _, own = name.rpartition(".")
        module = model.get_submodule(owner)
        shape = module.get_parameter(own).shape
        if not self.channels:
            return shape.numel()
        return shape[output_dim(module)]

    def _left(self, model: nn.Module, name: str) -> int:
        """Return how many weights or channels of a parameter are other than zero."""
        owner, _, own = name.rpartition(".")
        try:
            module = model.get_submodule(owner)
            used = module.get_parameter(own).detach() != 0
        except AttributeError:  # it is gone as a whole
            return 0
        if self.channels:
            dim = output_dim(module)
            used = used.movedim(dim, 0).flatten(1).any(1)
        return int(used.sum())


def _right(outputs: Any, labels: Tensor) -> int:
    if not isinstance(outputs, Tensor) or outputs.dim() != labels.dim() + 1:
        raise DataError(
            "test: accuracy needs outputs (samples, classes) for labels (samples,); give metric= instead"
        )
    return int((outputs.argmax(1) == labels.to(outputs.device)).sum())


def _first(x: Any) -> Any:
    return x[:1] if isinstance(x, Tensor) and x.dim() else x


def length(tree: Any) -> int:
    """Return how many samples there are in inputs.

    Raises:
        DataError: they hold no tensor.
    """
    tensors = [x for x in tree_flatten(tree)[0] if isinstance(x, Tensor)]
    if not tensors:
        raise DataError("data: a batch holds no tensor; give tensors, tuples or dicts of them")
    return int(tensors[0].shape[0]) if tensors[0].dim() else 1
