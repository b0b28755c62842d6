"""What a method is handed, what it gives back, and how a host offers its methods.

A host is compared by a function that returns a `Host`, named by an entry point of the group
``de_plugin.compare`` whose name is the host's:

    [project.entry-points."de_plugin.compare"]
    my-host = "my_package.comparing:host"
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from de_plugin.assess.divergence import Divergence
from de_plugin.assess.labels import check_labels
from de_plugin.assess.teacher import Forward, plain_forward
from de_plugin.assess.units import Pattern
from de_plugin.compare.row import TASKS
from de_plugin.encode.quantized import Quantized
from de_plugin.errors import ArgumentError, DataError
from de_plugin.prune import Budget
from de_plugin.quantize.cost import counted

Loss = Callable[[Any, Any], Tensor]
"""``fn(outputs, labels) -> (samples,)``, for methods that read labels."""


@dataclass(frozen=True)
class Case:
    """What a method is to do: the same for all methods of a cell.

    Attributes:
        task: "weights", "channels" or "bits".
        model: intact, in eval mode; a method prunes a `copy` of it.
        batches: calibration data, ``[(inputs,) or (inputs, labels), ...]``.
        sparsity: fraction of weights or of each layer's channels that goes; of "bits" the bits a weight.
        seed: of every draw; torch's own generator is seeded with it already.
        budget: what a search may cost.
        divergence: between outputs of the pruned and of the intact model.
        forward: calls the model.
        loss: for methods that read labels.
        granularity: what is zeroed together in the task "weights".
        include: name patterns and module types to prune.
        exclude: name patterns and module types to leave alone.
        weights: names of the parameters that are pruned.
        modules: names of the modules that lose channels.
        keep: names of the modules that keep all their channels.
        samples: calibration samples.
        batch_size: samples in a forward pass.
    """

    task: str
    model: nn.Module
    batches: Sequence[tuple[Any, ...]]
    sparsity: float
    seed: int
    budget: Budget
    divergence: Divergence
    forward: Forward
    loss: Loss
    granularity: Any
    include: tuple[Pattern, ...]
    exclude: tuple[Pattern, ...]
    weights: tuple[str, ...]
    modules: tuple[str, ...]
    keep: tuple[str, ...]
    samples: int
    batch_size: int

    def copy(self) -> nn.Module:
        """Return a copy of the intact model, in eval mode."""
        return copy.deepcopy(self.model)

    def asked(self) -> dict[str, Any]:
        """Return the options that `prune` and the adapters' pruners have in common."""
        return {
            "divergence": self.divergence,
            "forward": None if self.forward is plain_forward else self.forward,
            "samples": self.samples,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    @property
    def weight_count(self) -> int:
        """Return how many weights `weights` have."""
        return sum(self.model.get_parameter(name).numel() for name in self.weights)

    @property
    def inputs(self) -> Tensor:
        """Return all inputs as one tensor ``(samples, ...)``.

        Raises:
            DataError: they are dicts or tuples.
        """
        parts = [batch[0] for batch in self.batches]
        if not all(isinstance(x, Tensor) for x in parts):
            raise DataError("data: this method takes inputs of one tensor, and these are tuples or dicts")
        return torch.cat(parts)

    @property
    def labels(self) -> Tensor:
        """Return all labels as one tensor ``(samples, ...)``.

        Raises:
            DataError: there are none, or they are no tensors.
        """
        parts = [batch[1] for batch in self.batches if len(batch) > 1 and isinstance(batch[1], Tensor)]
        if len(parts) < len(self.batches):
            raise DataError("data: this method reads labels and there are none; give (inputs, labels)")
        return torch.cat(parts)

    @property
    def bits(self) -> int:
        """Return the bits a weight that the task "bits" asks for, for methods that know whole numbers only.

        Raises:
            ArgumentError: it is no whole number from 2 to 8.
        """
        if self.sparsity not in range(2, 9):
            raise ArgumentError(
                f"bits={self.sparsity:g}: this method knows whole numbers from 2 to 8; give some of these, "
                "as in bits=[4, 3, 2]"
            )
        return int(self.sparsity)

    def check_single_weights(self) -> None:
        """Refuse other granularities than single weights, for methods that know no other.

        Raises:
            ArgumentError: the granularity is another one.
        """
        if self.granularity != "weight":
            raise ArgumentError(f"granularity={self.granularity!r}: this method zeroes single weights only")


@dataclass(frozen=True)
class Pruned:
    """What a method leaves.

    Attributes:
        model: to be measured; masked or with parts really removed.
        small: the same with the masked parts removed, where `model` holds masks; its size counts.
        evaluations: candidate sets that were measured; None where nobody counts.
        bits: mean bits a weight, in the task "bits".
        layers: the bits a weight of each layer, by name, in the task "bits".
        curve: the best divergence after so many evaluations.
    """

    model: nn.Module
    small: nn.Module | None = None
    evaluations: int | None = None
    bits: float | None = None
    layers: tuple[tuple[str, float], ...] = ()
    curve: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Method:
    """One way to make a model small.

    Attributes:
        task: "weights", "channels" or "bits".
        host: whose it is.
        name: in tables and for ``methods=``.
        run: does it; what it raises becomes the row's error.
        about: what a reader should know, one sentence.
    """

    task: str
    host: str
    name: str
    run: Callable[[Case], Pruned]
    about: str = ""

    def __post_init__(self) -> None:
        """Refuse what no table can show."""
        if self.task not in TASKS:
            raise ArgumentError(f"Method(task={self.task!r}): expected one of {', '.join(TASKS)}")
        if not self.host or not self.name:
            raise ArgumentError(f"Method(host={self.host!r}, name={self.name!r}): neither may be empty")


@dataclass(frozen=True)
class Host:
    """A framework and the methods that it offers.

    Attributes:
        name: as in ``hosts=``, and that of its entry point.
        versions: of what its results depend on.
        methods: for any task.
        notes: what a reader of its results should know: which methods are left out, and why.
    """

    name: str
    versions: Mapping[str, str]
    methods: tuple[Method, ...]
    notes: tuple[str, ...] = ()


def mean_bits(levels: Iterable[Quantized]) -> float:
    """Return the bits that a weight takes in a file, level tables included: a method's `Pruned.bits`."""
    found = list(levels)
    return 8 * sum(map(counted, found)) / sum(q.symbols.numel() for q in found)


def layer_bits(levels: Mapping[str, Quantized]) -> tuple[tuple[str, float], ...]:
    """Return the same for each tensor by name: a method's `Pruned.layers`."""
    return tuple((name, mean_bits([q])) for name, q in levels.items())


def cross_entropies(outputs: Any, labels: Any) -> Tensor:
    """Return the cross-entropy of each sample, ``(samples,)``: the loss where no other is given.

    Raises:
        DataError: outputs are no logits ``(samples, classes)``, or labels no classes.
    """
    if not (isinstance(outputs, Tensor) and isinstance(labels, Tensor) and outputs.dim() == 2):
        raise DataError(
            "data: outputs and labels must be tensors, (samples, classes) and (samples,); give loss="
        )
    check_labels(outputs, labels)
    return F.cross_entropy(outputs, labels.long(), reduction="none")
