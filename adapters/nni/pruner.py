"""Directed Evolution as a pruner of NNI: the metric is the order of removal, all else stays the host's."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from nni.compression.base.compressor import Pruner
from nni.compression.pruning import L1NormPruner
from torch import Tensor, nn

from de_plugin.adapters.nni.asking import Asking, StepReport, check_evaluator, idle
from de_plugin.adapters.nni.capture import Capture, captured
from de_plugin.adapters.nni.config import check
from de_plugin.adapters.nni.order import Order
from de_plugin.adapters.nni.student import followers, student
from de_plugin.adapters.nni.student import teacher as answering
from de_plugin.adapters.nni.targets import TARGETS, Group, couplings, groups_of, removed
from de_plugin.assess.batches import read
from de_plugin.assess.coupled import CoupledUnits
from de_plugin.assess.divergence import Divergence
from de_plugin.assess.problem import Problem
from de_plugin.assess.teacher import Forward, plain_forward
from de_plugin.criteria import Criterion
from de_plugin.criteria import criterion as resolved
from de_plugin.errors import DataError, DEWarning
from de_plugin.prune import DirectedEvolution

Metrics = dict[str, dict[str, Tensor]]


class DEPruner(L1NormPruner):  # schedules know the norm pruners as what they work with
    """A drop-in for NNI's norm pruners that evolves what goes by the divergence that it causes.

    Every config key keeps the host's meaning but one: `sparse_threshold` is a divergence, and as much of its
    targets goes as keeps the model's below it. `max_sparse_ratio` and `min_sparse_ratio` also hold within a
    global group. Candidates are measured on an unwrapped copy in eval mode, with the masks of earlier steps
    and of other pruners in force; the user's model is not touched.

    In `LinearPruner` and `AGPPruner` it prunes when they say. Where 4,096 units or more of its own have gone
    (by earlier steps, or by masks that were set), a step also searches as if none of them had, and keeps
    what is better on the samples held back: some may come back, and the step takes twice as long.

    Trained together with a distiller or a quantizer it prunes every `interval_steps` steps; where none are
    set, once it has its samples. A setting that has removed nothing by the end gets a `DEWarning`.

    Args:
        model: to be pruned.
        config_list: see NNI's documentation.
        evaluator: NNI's; gives calibration data where there are no `batches`: what its training calls the
            model with, or else its dummy input.
        existed_wrappers: what `from_compressor` hands on.
        batches: calibration data, see `de_plugin.prune`.
        criterion: orders units; a name, a criterion, or a host's by `as_criterion`.
        divergence: between outputs of the teacher and of the student.
        forward: ``fn(model, inputs) -> outputs`` for models that need more than a call.
        teacher: gives the answers; None: a copy of `model` as it is now, without any masks.
        samples: read at most this many samples.
        batch_size: samples in a forward pass.
        holdout: share of the samples that the gate decides on.
        align: measure as after the speed-up: a pruned channel takes its bias and its batch norm along.
        fine: let ``granularity="default"`` stand for single weights, as in `LevelPruner`.
        seed: of every draw, in [0, 2**31).

    Raises:
        SelectionError: the config list names what is not there, or selects nothing.
        ArgumentError: another argument cannot work.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> config = [{"op_names": ["0"], "sparse_ratio": 0.5}]
    >>> _, masks = DEPruner(model, config, batches=torch.randn(64, 8)).compress()
    >>> int(masks["0"]["bias"].sum())
    8
    """

    _target_spaces: dict[str, dict[str, Any]]
    _module_wrappers: dict[str, Any]

    def __init__(
        self,
        model: nn.Module,
        config_list: Sequence[Mapping[str, Any]],
        evaluator: Any = None,
        existed_wrappers: Mapping[str, Any] | None = None,
        *,
        batches: Any = None,
        criterion: Criterion | str | None = None,
        divergence: str | Divergence | Callable[[Any, Any], Any] = "kl",
        forward: Forward | None = None,
        teacher: nn.Module | None = None,
        samples: int = 1024,
        batch_size: int = 256,
        holdout: float = 0.1,
        align: bool = True,
        fine: bool = False,
        seed: int = 0,
    ) -> None:
        check_evaluator(evaluator)
        self.asking = Asking(divergence, forward, samples, batch_size, holdout, align, seed)
        self.criterion = DirectedEvolution.brief() if criterion is None else resolved(criterion)
        self._fine = fine
        self._teacher = answering(model if teacher is None else teacher)
        check(model, config_list, fine, existed_wrappers or {})
        super().__init__(model, config_list, evaluator, existed_wrappers)
        self._sort()
        self._batches = batches
        self._read: list[Any] | None = None
        self._capture = Capture(samples)
        self._waiting = False
        self._pending: tuple[Problem, list[Group], Tensor] | None = None
        self._reports: list[StepReport] = []
        self._idle: list[str] = []

    def _sort(self) -> None:
        """Put the host's dicts, which are in the order of a set, in that of their names."""
        for found in (self._target_spaces, self._module_wrappers):
            for name in sorted(found):
                found[name] = found.pop(name)
        for name, spaces in self._target_spaces.items():
            self._target_spaces[name] = dict(sorted(spaces.items()))

    @classmethod
    def from_compressor(
        cls, compressor: Any, new_config_list: Any, evaluator: Any = None, **options: Any
    ) -> DEPruner:
        """Return a pruner for a model that another compressor has wrapped, with its masks in force.

        Args:
            compressor: of NNI; it is unwrapped, and wrapped again where this fails.
            new_config_list: as of the class.
            evaluator: as of the class, where the compressor has none.
            options: keyword arguments of the class.
        """
        wrapped = compressor._is_wrapped
        try:
            # The norm pruners' own drops keyword arguments.
            made: DEPruner = Pruner.from_compressor.__func__(
                cls, compressor, new_config_list, evaluator=evaluator, **options
            )
        except BaseException:
            if wrapped and not compressor._is_wrapped:
                compressor.wrap_model()
            raise
        return made

    def report(self) -> list[StepReport]:
        """Return what each generation of masks has done, in order."""
        return list(self._reports)

    # -- the host's seams ------------------------------------------------------------------------

    def _set_default_sparse_granularity(self, target_space: Any) -> Any:
        return None if self._fine else super()._set_default_sparse_granularity(target_space)

    def _calculate_metrics(self, data: Metrics) -> Metrics:
        with torch.enable_grad():
            problem, groups = self._problem()
            start = ~torch.cat([g.removed for g in groups])
            removals = Order(problem, groups, self.criterion)()
        self._pending = (problem, groups, start)
        metrics: Metrics = defaultdict(dict)
        for group, removal in zip(groups, removals, strict=True):
            for target in group.targets:
                device = target.space.target.device
                metrics[target.module][target.name] = removal.metric.reshape(target.shape).to(device)
        return metrics

    def _generate_sparsity(self, metrics: Metrics) -> Metrics:
        masks: Metrics = super()._generate_sparsity(metrics)
        if self._pending is None:
            return masks
        (problem, groups, start), self._pending = self._pending, None
        gone = [_gone(group, masks) for group in groups]
        self._idle = idle(groups, gone)
        both = torch.stack([start, ~torch.cat(gone)])
        before, after = problem.assess(both, torch.arange(problem.pool.count)).tolist()
        counts = {
            g.name: (int(g.removed.sum()), int(now.sum()), g.count)
            for g, now in zip(groups, gone, strict=True)
        }
        step = len(self._reports) + 1
        self._reports.append(StepReport(step, counts, before, after, problem.evaluations, problem.events))
        return masks

    def _fuse_preprocess(self, evaluator: Any) -> None:
        if self._batches is None and self._read is None:
            self._capture.during(evaluator, self.bound_model)  # schedules and others run the training
        self._idle = []
        super()._fuse_preprocess(evaluator)

    def _fuse_postprocess(self, evaluator: Any) -> None:
        if self._waiting:
            self._prune_once()
        self._tell_idle()

    def _single_compress(self, max_steps: None, max_epochs: None) -> None:
        super()._single_compress(max_steps, max_epochs)
        self._tell_idle()

    def _tell_idle(self) -> None:
        """Warn of settings that the last masks leave without any effect."""
        if self._idle:
            warnings.warn(
                f"config_list: nothing is pruned of {'; '.join(self._idle)}; ask for more, set a "
                "finer granularity, or leave it out",
                DEWarning,
                stacklevel=6,  # who called compress()
            )

    def _register_trigger(self, evaluator: Any) -> None:
        self._waiting = self.interval_steps < 1 and not self.first_step_gen
        if not self._waiting:
            super()._register_trigger(evaluator)
            return

        def when_ready() -> None:
            if self._waiting and (self._batches is not None or self._read is not None or self._capture.full):
                self._prune_once()

        evaluator.patch_optimizer_step(before_step_tasks=[], after_step_tasks=[when_ready])

    def _prune_once(self) -> None:
        self._waiting = False
        self.update_masks(self.generate_masks())

    # -- what is asked ---------------------------------------------------------------------------

    def _problem(self) -> tuple[Problem, list[Group]]:
        own = [space for spaces in self._target_spaces.values() for space in spaces.values()]
        model = student(self.bound_model, own)
        groups = groups_of(self._target_spaces)
        data = self._data(model)
        forward = self.asking.forward or plain_forward
        norms = followers(model, data[0][0], forward) if self.asking.align else {}
        units = CoupledUnits(model, couplings(groups, self._target_spaces, model, norms, self.asking.align))
        device = units.device
        problem = Problem(
            model,
            data,
            divergence=self.asking.divergence,
            forward=self.asking.forward,
            batch_size=self.asking.batch_size,
            holdout=self.asking.holdout,
            seed=self.asking.seed,
            units=units,
            teacher=self._teacher.to(device),
        )
        problem.store(TARGETS, groups)
        return problem, groups

    def _data(self, model: nn.Module) -> list[Any]:
        """Return the calibration data, read once: batches of (inputs,) or (inputs, labels)."""
        if self._read is None:
            source = self._batches
            if source is None:
                source = self._capture.batches or self._captured(model)
            device = next(model.parameters()).device
            found = read(source, samples=self.asking.samples, memory=4 << 30, device=device)
            self._read = [(inputs,) if labels is None else (inputs, labels) for inputs, labels, _ in found]
            self._capture.stop()
        return self._read

    def _captured(self, model: nn.Module) -> list[Any]:
        if self.evaluator is None:
            raise DataError(
                "batches: none are given, and no evaluator's training has called the model; write "
                "DEPruner(..., batches=data), or evaluator=TorchEvaluator(...), whose training gives them"
            )
        self._capture.stop()
        return captured(self.evaluator, student(model), self.asking.samples)


def _gone(group: Group, masks: Metrics) -> Tensor:
    """Return the units that the host's masks leave nothing of."""
    found = [removed(t, masks[t.module][t.name]) for t in group.targets]
    return torch.stack(found).all(0)
