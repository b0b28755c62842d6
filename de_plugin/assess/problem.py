"""What is asked: the divergence of the student from its teacher when only some units are left."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from de_plugin.assess.batches import Batch, Pool, Spill
from de_plugin.assess.candidates import Candidates, candidates
from de_plugin.assess.divergence import Curved, Custom, Divergence
from de_plugin.assess.divergence import divergence as resolved
from de_plugin.assess.evaluate import Evaluator, evaluator
from de_plugin.assess.fingerprint import fingerprint
from de_plugin.assess.granularity import NM, Granularity
from de_plugin.assess.guard import check_counts, require_eval, require_gradients_possible
from de_plugin.assess.halfway import Halfway
from de_plugin.assess.ranks import Ranks
from de_plugin.assess.repair import Repair
from de_plugin.assess.select import lowest
from de_plugin.assess.teacher import Forward, ask, check_zero, plain_forward
from de_plugin.assess.units import ParameterUnits, Pattern
from de_plugin.errors import ArgumentError, DataError, DEWarning, OutputError
from de_plugin.types import Mask, Masks, Scores, Values


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
        holdout: fraction of the samples kept from the search, for the gate; or which ones, bool
            ``(samples,)``, where some belong together, such as crops of a photograph.
        memory: bytes for inputs, and again for teacher outputs in memory; more go to a mapped file.
        seed: of every draw.
        evaluate: "auto", "serial", or ``fn(problem) -> Evaluator``, see `de_plugin.assess.evaluate`.
        units: made already, such as `de_plugin.assess.coupled.CoupledUnits` of this very model, instead of
            `granularity`, `include` and `exclude`.
        teacher: gives the answers instead of `model` itself; in eval mode, on the same device.

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
        holdout: float | Tensor = 0.1,
        memory: int = 4 << 30,
        seed: int = 0,
        evaluate: str | Callable[[Problem], Evaluator] = "auto",
        units: ParameterUnits | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        if not isinstance(holdout, Tensor) and not 0 <= holdout < 1:
            raise ArgumentError(f"holdout={holdout}: expected a fraction in [0, 1), or a bool tensor")
        check_counts(
            batch_size=batch_size, memory=memory, **({} if samples is None else {"samples": samples})
        )
        require_gradients_possible(model)
        require_eval(model)
        self.model = model
        self.forward: Forward = forward or plain_forward
        self.divergence = resolved(divergence)
        if units is not None and (granularity != "weight" or include or exclude or units.model is not model):
            raise ArgumentError(
                "units: stand for granularity, include and exclude, and must be those of `model` itself"
            )
        self.units = units or ParameterUnits(model, granularity, include=include, exclude=exclude)
        self.device = self.units.device
        self.ranks = Ranks(self.device)
        self.seed = seed
        self.memory = memory
        """Bytes that a pass may take, about."""
        self.kept: Mask = torch.ones(self.units.count, dtype=torch.bool)
        """The units that have not been zeroed for good."""
        self.protected: Mask = torch.zeros(self.units.count, dtype=torch.bool)
        """The units that must never be zeroed."""
        self.quota: Tensor | None = None
        """How many units of each layer are zeroed, in all, when the allocation is fixed; else None."""
        self.repair: Repair | None = None
        """The cheap correction that really follows a cut, which candidates get as well."""
        self.out_of_budget: Callable[[], bool] = lambda: False
        """Asked between generations and rounds: whether the search must come to an end."""
        self.halfway: Callable[[str], Halfway] | None = None
        """Gives the place where a piece of work that takes long is kept half-way, by its name."""
        self.events: list[dict[str, Any]] = []
        """What criteria have to say for the report, in order."""
        self.evaluations = 0
        self.sample_evaluations = 0
        self.state: dict[str, dict[str, Any]] = {}
        """What searches have learnt so far, see `state_of`."""
        self._owners: list[object] = []
        self._memory: dict[Any, Any] = {}
        spill = Spill(memory)
        self.teacher: nn.Module = model if teacher is None else teacher
        """What gave the answers: the model itself, before anything changed, or another."""
        if not isinstance(self.teacher, nn.Module):
            raise ArgumentError(f"teacher={teacher!r}: expected a module, or None for the model as it is")
        require_eval(self.teacher, "teacher")
        answered = ask(
            self.forward,
            self.teacher,
            model,
            batches,
            samples,
            batch_size,
            memory,
            spill,
            self.device,
        )
        self.pool = Pool(answered, batch_size, spill)
        self.search, self.held_back = self._partition(holdout)
        if self.ranks.world > 1:
            self.ranks.check_equal("model", fingerprint((*model.parameters(), *model.buffers())))
            self.ranks.check_equal("batches", self.pool.digest)
        self._evaluator: Evaluator = evaluator(self, evaluate)
        check_zero(self.divergence, self.pool.take(self.search[:1])[0])

    # -- set-up ----------------------------------------------------------------------------------

    def _partition(self, holdout: float | Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(holdout, Tensor):
            if holdout.dtype != torch.bool or holdout.shape != (self.pool.count,) or bool(holdout.all()):
                raise ArgumentError(
                    f"holdout: a {holdout.dtype} tensor {tuple(holdout.shape)} with {int(holdout.sum())} "
                    f"held back; expected bool ({self.pool.count},), one for each sample read, some False"
                )
            search, held_back = (x.nonzero().flatten().cpu() for x in (~holdout, holdout))
            return search, held_back if len(held_back) else search
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

    # -- asking ----------------------------------------------------------------------------------

    def __call__(self, kept: Mask) -> float:
        """Return the divergence over all search samples when only `kept` is left."""
        return float(self.assess(kept[None], self.search)[0])

    def assess(self, population: Masks | Candidates, index: Tensor, *, repair: bool = True) -> Values:
        """Return the divergence of each candidate, masks ``(candidates, units)``, on the samples `index`.

        Non-finite outputs of a candidate count as infinitely bad.
        """
        self.evaluations += len(population)
        self.sample_evaluations += len(population) * len(index)
        values = self._evaluator(candidates(population), index, self.repair if repair else None)
        return torch.nan_to_num(values.double(), nan=float("inf"), posinf=float("inf"), neginf=float("inf"))

    def gate(self, population: Masks | Candidates, *, repair: bool = True) -> Values:
        """Return the divergence of each candidate on the data held back from the search."""
        return self.assess(population, self.held_back, repair=repair)

    def batches(self, index: Tensor) -> list[Batch]:
        """Return the samples `index` in batches: larger ones than asked for where activations are small."""
        return self.pool.take(index, max(self.pool.batch_size, self._evaluator.samples))

    def measure(self, batches: list[Batch], model: nn.Module | None = None) -> Tensor:
        """Return the divergence of a model as it stands, a 0-dim tensor, mean over samples.

        Args:
            batches: the samples.
            model: in place of the student, such as a really pruned copy.
        """
        student = self.model if model is None else model
        total = torch.zeros((), device=self.device)
        count = 0
        for batch in batches:
            outputs = self.forward(student, batch.inputs)
            value = self.divergence(outputs, batch.teacher, batch.labels).to(self.device)
            total = total + value * batch.size
            count += batch.size
        return total / count

    def repaired(self, batches: list[Batch]) -> AbstractContextManager[None]:
        """Apply the cheap repair that really follows a cut, undone on exit."""
        return self.repair(self, batches) if self.repair is not None else nullcontext()

    @contextmanager
    def guided(self, divergence: Divergence) -> Iterator[None]:
        """Measure by another divergence inside the block."""
        asked, self.divergence = self.divergence, divergence
        try:
            yield
        finally:
            self.divergence = asked

    @contextmanager
    def afresh(self) -> Iterator[None]:
        """Let searches inside the block begin with nothing learnt, and forget what they learn.

        What measuring has learnt of the model and of the memory stays, and stays known afterwards.
        """
        evaluator = self.state_of("evaluator")
        learnt, self.state = self.state, {"evaluator": evaluator}
        try:
            yield
        finally:
            self.state = learnt

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
        mine = self.state_of("problem")
        mine["draws"] = mine.get("draws", 0) + 1
        if count >= len(self.search):
            return self.search
        order = torch.randperm(len(self.search), generator=self.generator(1, mine["draws"]))
        return self.search[order[:count]]

    def state_of(self, owner: object) -> dict[str, Any]:
        """Return the lasting state of a criterion or recovery, an empty dict the first time.

        It holds plain data and tensors, and is all that a search may carry from one cycle to the next:
        a checkpoint keeps it. Objects are told apart by the order in which they first ask, texts by name.
        """
        if isinstance(owner, str):
            return self.state.setdefault(owner, {})
        number = next((n for n, known in enumerate(self._owners) if known is owner), len(self._owners))
        if number == len(self._owners):
            self._owners.append(owner)
        return self.state.setdefault(f"{type(owner).__name__} {number}", {})

    def remember(self, key: Any, default: Callable[[], Any]) -> Any:
        """Return what is cached under `key`, made by `default` the first time; for what can be made again."""
        if key not in self._memory:
            self._memory[key] = default()
        return self._memory[key]

    def store(self, key: Any, value: Any) -> None:
        """Replace what is cached under `key`."""
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
