"""What is asked: the divergence of the student from its teacher when only some units are left."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from de_plugin.assess.batches import Batch, Pool, Spill, read
from de_plugin.assess.divergence import Curved, Custom, Divergence, divergence, leaves
from de_plugin.assess.evaluate import Evaluator, evaluator
from de_plugin.assess.granularity import NM, Granularity
from de_plugin.assess.guard import require_eval
from de_plugin.assess.select import lowest
from de_plugin.assess.units import ParameterUnits, Pattern
from de_plugin.errors import ArgumentError, DataError, DEWarning, OutputError
from de_plugin.types import Mask, Masks, PyTree, Scores, Values

Forward = Callable[[nn.Module, Any], Any]
Repair = Callable[["Problem", list[Batch]], AbstractContextManager[None]]
"""A cheap correction of the zeroed student, undone on exit (batch-norm matching, say)."""


def plain_forward(model: nn.Module, inputs: PyTree) -> PyTree:
    """Call the model: a dict as keywords, a tuple or list as positions, anything else as it is."""
    if isinstance(inputs, dict):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


class Problem:
    """The student, its teacher's answers and the measure between them.

    The model itself is the student. Its weights always hold dense values; `kept` says which of them
    count, and every question is asked with the rest zeroed tentatively. The teacher's outputs are
    computed here, once, before anything changes.

    Args:
        model: any module, in eval mode.
        batches: calibration data, see `de_plugin.assess.batches.read`.
        divergence: name, `Divergence` or callable ``fn(student outputs, teacher outputs)``.
        forward: ``fn(model, inputs) -> outputs`` for models that need more than a call.
        granularity: what is zeroed together.
        include: name patterns and module types to prune; default all prunable weights.
        exclude: name patterns and module types to leave alone.
        samples: read at most this many calibration samples; None reads all.
        batch_size: samples in a forward pass.
        holdout: fraction of the samples kept from the search, for the gate.
        memory: bytes for inputs, and again for teacher outputs in memory; more go to a mapped file.
        seed: of every draw.
        evaluate: "auto", "serial" or "stacked", see `de_plugin.assess.evaluate`.

    Raises:
        ModeError: the model is in train mode.
        SelectionError: there is nothing to prune.
        DataError: there are no samples.
        OutputError: outputs are not finite, or the divergence of the teacher from itself is not zero.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Any,
        *,
        divergence: str | Divergence | Callable[[Any, Any], Any] = "kl",
        forward: Forward | None = None,
        granularity: str | Granularity = "weight",
        include: Sequence[Pattern] = (),
        exclude: Sequence[Pattern] = (),
        samples: int | None = None,
        batch_size: int = 256,
        holdout: float = 0.1,
        memory: int = 4 << 30,
        seed: int = 0,
        evaluate: str = "auto",
    ) -> None:
        if not 0 <= holdout < 1:
            raise ArgumentError(f"holdout={holdout}: expected a fraction in [0, 1)")
        if batch_size < 1:
            raise ArgumentError(f"batch_size={batch_size}: expected a positive number")
        require_eval(model)
        self.model = model
        self.forward: Forward = forward or plain_forward
        self.divergence = _resolve(divergence)
        self.units = ParameterUnits(model, granularity, include=include, exclude=exclude)
        self.device = self.units.device
        self.seed = seed
        self.kept: Mask = torch.ones(self.units.count, dtype=torch.bool)
        """The units that have not been zeroed for good."""
        self.protected: Mask = torch.zeros(self.units.count, dtype=torch.bool)
        """The units that must never be zeroed."""
        self.quota: Tensor | None = None
        """How many units of each layer are zeroed, in all, when the allocation is fixed; else None."""
        self.repair: Repair | None = None
        self.out_of_budget: Callable[[], bool] = lambda: False
        """Asked between generations and rounds: whether the search must come to an end."""
        self.events: list[dict[str, Any]] = []
        """What criteria have to say for the report, in order."""
        self.evaluations = 0
        self.sample_evaluations = 0
        self._memory: dict[Any, Any] = {}
        self._draws = 0
        spill = Spill(memory)
        self.pool = Pool(self._ask_teacher(batches, samples, batch_size, memory, spill), batch_size, spill)
        self.search, self.held_back = self._partition(holdout)
        self._evaluator: Evaluator = evaluator(self, evaluate)
        self._check_zero()

    # -- set-up ----------------------------------------------------------------------------------

    def _ask_teacher(
        self, batches: Any, samples: int | None, batch_size: int, memory: int, spill: Spill
    ) -> list[Batch]:
        result = []
        for inputs, labels, size in read(batches, samples=samples, memory=memory, device=self.device):
            parts = []
            for part in _chunks((inputs, labels), size, batch_size):
                with torch.no_grad():
                    outputs = self.forward(self.model, part[0])
                self._check_outputs(outputs)
                kept = tree_map(lambda x: spill.keep(x.detach()) if isinstance(x, Tensor) else x, outputs)
                parts.append(Batch(part[0], part[1], kept, part[2]))
            result.extend(parts)
        return result

    @staticmethod
    def _check_outputs(outputs: PyTree) -> None:
        tensors = leaves(outputs)
        if not tensors:
            raise OutputError(
                f"model: its output is a {type(outputs).__name__} without floating-point tensors; "
                "give forward=fn(model, inputs) that returns what is to be compared"
            )
        for x in tensors:
            if not bool(torch.isfinite(x).all()):
                raise OutputError(
                    "model: the teacher's outputs hold NaN or infinite values; check the weights, the "
                    "inputs' normalisation and the precision"
                )

    def _partition(self, holdout: float) -> tuple[Tensor, Tensor]:
        order = torch.randperm(self.pool.count, generator=torch.Generator().manual_seed(self.seed))
        cut = min(round(holdout * self.pool.count), self.pool.count - 1)
        if holdout > 0 and cut == 0:
            warnings.warn(
                f"batches: {self.pool.count} sample(s) are too few to hold any back; the gate decides on "
                "the data of the search",
                DEWarning,
                stacklevel=4,
            )
        search = order[cut:].sort().values
        return search, (order[:cut].sort().values if cut else search)

    def _check_zero(self) -> None:
        batch = self.pool.take(self.search[:1])[0]
        value = float(self.divergence(batch.teacher, batch.teacher, batch.labels))
        if not abs(value) <= 1e-4:
            raise OutputError(
                f"divergence={self.divergence.name!r}: the teacher's divergence from itself is {value}, "
                "expected 0; where a larger value is better wrap the function: Score(fn, against='teacher')"
            )

    # -- asking ----------------------------------------------------------------------------------

    def __call__(self, kept: Mask) -> float:
        """Return the divergence over all search samples when only `kept` is left."""
        return float(self.assess(kept[None], self.search)[0])

    def assess(self, masks: Masks, index: Tensor, *, repair: bool = True) -> Values:
        """Return the divergence of each candidate ``(candidates, units)`` on the samples `index`.

        Non-finite outputs of a candidate count as infinitely bad.
        """
        self.evaluations += len(masks)
        self.sample_evaluations += len(masks) * len(index)
        values = self._evaluator(masks.to(self.device), index, repair and self.repair is not None)
        return torch.nan_to_num(values.double(), nan=float("inf"), posinf=float("inf"), neginf=float("inf"))

    def gate(self, masks: Masks, *, repair: bool = True) -> Values:
        """Return the divergence of each candidate on the data held back from the search."""
        return self.assess(masks, self.held_back, repair=repair)

    def measure(self, batches: list[Batch]) -> Tensor:
        """Return the divergence of the model as it stands, a 0-dim tensor, mean over samples."""
        total = torch.zeros((), device=self.device)
        count = 0
        for batch in batches:
            value = self.divergence(self.forward(self.model, batch.inputs), batch.teacher, batch.labels).to(
                self.device
            )
            total = total + value * batch.size
            count += batch.size
        return total / count

    def repaired(self, batches: list[Batch]) -> AbstractContextManager[None]:
        """Apply the cheap repair that really follows a cut, undone on exit."""
        return self.repair(self, batches) if self.repair is not None else nullcontext()

    # -- choosing --------------------------------------------------------------------------------

    def select(self, scores: Scores | Tensor, eligible: Mask, count: int) -> Masks:
        """Zero the `count` lowest-scoring eligible units of each row ``(..., units)``, ties by index.

        Units that are zeroed already stay so; quotas a layer and N:M limits are honoured.

        Returns:
            What is kept, ``(..., units)``.

        Raises:
            TargetError: there are not enough units that may be zeroed.
        """
        nm = self.units.granularity
        limit = (nm.m - nm.n, nm.m) if isinstance(nm, NM) else None
        return lowest(self.units, scores, eligible, count, self.kept, self.quota, limit)

    @property
    def eligible(self) -> Mask:
        """The units that are still kept and not protected."""
        return self.kept & ~self.protected

    # -- randomness and memory -------------------------------------------------------------------

    def generator(self, *key: int) -> torch.Generator:
        """Return a generator that depends on the seed and the key alone."""
        value = self.seed
        for part in key:
            value = (value * 6364136223846793005 + part * 1442695040888963407 + 1) % (1 << 63)
        return torch.Generator().manual_seed(value)

    def draw(self, count: int) -> Tensor:
        """Draw fresh search samples: `count` of them, or all when there are fewer."""
        self._draws += 1
        if count >= len(self.search):
            return self.search
        order = torch.randperm(len(self.search), generator=self.generator(1, self._draws))
        return self.search[order[:count]]

    def remember(self, key: Any, default: Callable[[], Any]) -> Any:
        """Return what a criterion has stored under `key`, made by `default` the first time."""
        if key not in self._memory:
            self._memory[key] = default()
        return self._memory[key]

    def store(self, key: Any, value: Any) -> None:
        """Keep a criterion's state for its next call."""
        self._memory[key] = value

    # -- gradients -------------------------------------------------------------------------------

    @property
    def has_gradient(self) -> bool:
        """Whether the divergence is differentiable with respect to the weights; tried once."""
        return bool(self.remember("has_gradient", self._try_gradient))

    def _try_gradient(self) -> bool:
        from de_plugin.assess.gradients import mean_gradient

        if not self.divergence.differentiable:
            return False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a measure that leaves the graph warns in torch
                mean_gradient(self, self.search[:1])
        except (RuntimeError, OutputError):
            return False
        return True

    @property
    def has_curvature(self) -> bool:
        """Whether the Fisher information can be sampled (a gradient and a curved divergence)."""
        return self.has_gradient and isinstance(self.divergence, Curved | Custom)

    def require_labels(self, who: str) -> None:
        """Raise a DataError when the calibration data hold no labels."""
        if not self.pool.has_labels:
            raise DataError(
                f"{who}: needs labels and the batches have none; give batches of (inputs, labels) or "
                "turn labels off"
            )


def _resolve(spec: str | Divergence | Callable[[Any, Any], Any]) -> Divergence:
    return divergence(spec)


def _chunks(pair: tuple[PyTree, Any], size: int, batch_size: int) -> list[tuple[PyTree, Any, int]]:
    """Cut ``(inputs, labels)`` along the samples where every tensor allows it."""
    tensors: list[Tensor] = []
    tree_map(lambda x: tensors.append(x) if isinstance(x, Tensor) else None, pair)
    if size <= batch_size or any(x.dim() == 0 or x.shape[0] != size for x in tensors):
        return [(*pair, size)]
    result = []
    for start in range(0, size, batch_size):
        stop = min(size, start + batch_size)
        inputs, labels = tree_map(lambda x, a=start, b=stop: x[a:b] if isinstance(x, Tensor) else x, pair)
        result.append((inputs, labels, stop - start))
    return result
