"""Pruners of NNI as criteria of the engine: the host's metric of each unit, on a copy of the student."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import nni
import torch
from nni.compression.base.compressor import Pruner
from nni.compression.pruning import MovementPruner
from nni.compression.pruning.scheduled_pruner import ScheduledPruner
from nni.compression.utils import Evaluator, TorchEvaluator
from torch import Tensor, nn
from torch.nn import functional as F

from de_plugin.adapters.nni.pruner import DEPruner
from de_plugin.adapters.nni.targets import TARGETS, Group, Target
from de_plugin.assess.batches import Batch
from de_plugin.assess.coupled import CoupledUnits
from de_plugin.assess.guard import check_counts
from de_plugin.assess.problem import Problem
from de_plugin.criteria.scoring import finish, require_gradient
from de_plugin.errors import ArgumentError, GradientError
from de_plugin.types import Mask, Scores

_GIVEN = ("self", "model", "config_list", "evaluator", "existed_wrappers")


@dataclass(frozen=True)
class HostCriterion:
    """A pruner of NNI that ranks units; made by `as_criterion`.

    Args:
        pruner: its class.
        options: what its constructor takes besides model, config list and evaluator.
        evaluator: ``fn(model) -> Evaluator`` for pruners that train; None: one that goes through the
            calibration data.
        samples: calibration samples for those.
        batch_size: and how many make a step.
    """

    pruner: type
    options: tuple[tuple[str, Any], ...] = ()
    evaluator: Callable[[nn.Module], Any] | None = None
    samples: int = 512
    batch_size: int = 32

    @property
    def name(self) -> str:
        """Return the pruner's class name."""
        return self.pruner.__name__

    @property
    def needs_gradient(self) -> bool:
        """Whether the pruner trains, and by the problem's own divergence."""
        return _trains(self.pruner) and self.evaluator is None

    def __call__(self, problem: Problem, eligible: Mask, count: int) -> Scores:
        """Return the host's metric of each unit, the mean over what goes together, ``(units,)``."""
        if self.needs_gradient:
            require_gradient(problem, self.name)
        groups: list[Group] = problem.remember(TARGETS, partial(_groups, problem))
        with problem.units.zeroed(problem.kept), torch.no_grad():
            model = copy.deepcopy(problem.model)
        metrics = self._metrics(problem, model, groups)
        parts = []
        for group in groups:
            found = [_of_units(t, metrics[t.module][t.name].detach().cpu().double()) for t in group.targets]
            parts.append(torch.stack(found).mean(0))
        return finish(problem, eligible, torch.cat(parts), self.name)

    def _metrics(self, problem: Problem, model: nn.Module, groups: list[Group]) -> Any:
        config = [_entry(t) for group in groups for t in group.targets]
        options = dict(self.options)
        if not _trains(self.pruner):
            return self._asked(self._made(model, config, options), groups)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        batches = problem.pool.take(problem.draw(self.samples), self.batch_size)
        self._check_slope(problem, batches)
        if "training_steps" in inspect.signature(self.pruner).parameters:
            options.setdefault("training_steps", len(batches))
        evaluator = self.evaluator(model) if self.evaluator else _evaluator(problem, model, batches)
        if not isinstance(evaluator, Evaluator):
            raise ArgumentError(f"evaluator: gave {evaluator!r}, expected an Evaluator of NNI")
        pruner = self._made(model, config, {**options, "evaluator": evaluator})
        with torch.enable_grad():
            evaluator.bind_model(pruner.bound_model, pruner._get_param_names_map())
            try:
                pruner._fuse_preprocess(evaluator)
                evaluator.train(options.get("training_steps", len(batches)), None)
                return self._asked(pruner, groups)
            finally:
                evaluator.unbind_model()

    def _check_slope(self, problem: Problem, batches: list[Batch]) -> None:
        """Refuse a student that gives what its teacher gives, where nothing but that is measured."""
        if self.evaluator is not None or _are_logits(batches[0].teacher):
            return
        with problem.units.zeroed(problem.kept), torch.no_grad():
            value = float(problem.measure(batches))
        if value <= 1e-7:
            raise GradientError(
                f"criterion {self.name}: the student gives what its teacher gives, and "
                f"divergence={problem.divergence.name!r} has no slope there; give "
                "as_criterion(..., evaluator=fn) with a loss of your own"
            )

    def _made(self, model: nn.Module, config: list[dict[str, Any]], options: Mapping[str, Any]) -> Any:
        try:
            return self.pruner(model, config, **options)
        except (AssertionError, KeyError, TypeError) as error:
            raise ArgumentError(
                f"criterion {self.name}: cannot be made for these layers ({type(error).__name__}: {error}); "
                "give its options to as_criterion, and exclude layers that NNI does not know"
            ) from error

    def _asked(self, pruner: Any, groups: list[Group]) -> Any:
        for target in (t for group in groups for t in group.targets if _granularity(t) is None):
            pruner._target_spaces[target.module][
                target.name
            ]._scaler = None  # the host's own for single weights
        try:
            return pruner._calculate_metrics(pruner._collect_data())
        except AssertionError as error:
            raise ArgumentError(f"criterion {self.name}: {error}") from error


def as_criterion(
    pruner: type,
    *,
    evaluator: Callable[[nn.Module], Any] | None = None,
    samples: int = 512,
    batch_size: int = 32,
    **options: Any,
) -> HostCriterion:
    """Return a pruner class of NNI as a criterion that nests and blends with the engine's.

    It ranks single weights and channels, and inside `DEPruner` whatever the config list says. Pruners that
    train (Taylor, Slim) go through the calibration data on a copy whose weights stay as they are: the loss is
    the cross-entropy with the batches' labels or the teacher's decisions, or the divergence where the outputs
    are no logits.

    Args:
        pruner: the class, such as ``L1NormPruner``.
        evaluator: ``fn(model) -> Evaluator`` made for that very model, in place of the above.
        samples: calibration samples for pruners that train.
        batch_size: samples in a step of theirs.
        options: other arguments of the class, such as ``regular_scale``.

    Raises:
        ArgumentError: it is no pruner that ranks, or does not take these options.

    >>> import de_plugin
    >>> from nni.compression.pruning import FPGMPruner
    >>> de_plugin.nest(de_plugin.DirectedEvolution(), as_criterion(FPGMPruner)).name
    'nest(de, FPGMPruner)'
    """
    if not (isinstance(pruner, type) and issubclass(pruner, Pruner)):
        raise ArgumentError(f"pruner={pruner!r}: expected a pruner class of NNI, as in L1NormPruner")
    if issubclass(pruner, MovementPruner):
        raise ArgumentError(
            f"pruner={pruner.__name__}: learns its scores while the model is trained and pruned, which a "
            "search does not do; give TaylorPruner, or prune with it first and go on with "
            "DEPruner.from_compressor"
        )
    if issubclass(pruner, ScheduledPruner):
        raise ArgumentError(f"pruner={pruner.__name__}: only schedules another pruner; give that one's class")
    if issubclass(pruner, DEPruner):
        raise ArgumentError("pruner=DEPruner: give the engine's own criterion, DirectedEvolution()")
    if evaluator is not None and (isinstance(evaluator, Evaluator) or not callable(evaluator)):
        raise ArgumentError(
            f"evaluator={evaluator!r}: expected a function that makes one for a copy of the model, as in "
            "evaluator=lambda model: TorchEvaluator(train, nni.trace(SGD)(model.parameters(), lr=0.1), step)"
        )
    if evaluator is not None and not _trains(pruner):
        raise ArgumentError(f"evaluator: {pruner.__name__} does not train; leave it out")
    check_counts("as_criterion", samples=samples, batch_size=batch_size)
    known = [n for n in inspect.signature(pruner.__init__).parameters if n not in _GIVEN]
    for name in options:
        if name not in known:
            raise ArgumentError(
                f"{name}: is no option of {pruner.__name__}; it takes {', '.join(known) or 'none'}"
            )
    return HostCriterion(pruner, tuple(options.items()), evaluator, samples, batch_size)


def _trains(pruner: type) -> bool:
    """Whether a pruner cannot be made without an evaluator."""
    parameter = inspect.signature(pruner).parameters.get("evaluator")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _groups(problem: Problem) -> list[Group]:
    """Return each layer of an ordinary problem as a target; the host must have its granularity."""
    units = problem.units
    if isinstance(units, CoupledUnits):
        raise ArgumentError(
            "units: coupled ones are ranked by NNI's pruners inside DEPruner only; give a granularity instead"
        )
    result = []
    for layer in units.layers:
        module, _, name = layer.name.rpartition(".")
        ids = units.expand_layer(layer, torch.arange(layer.count)).cpu()
        kind = _kind(ids, layer.count)
        if not kind:
            raise ArgumentError(
                f"granularity={units.granularity.name!r}: NNI's pruners have no metric of such units "
                f"({layer.name}); use granularity='weight' or 'channel', or DEPruner"
            )
        result.append(Group("ratio", (Target(module, name, ids.shape, ids, kind),)))
    return result


def _kind(ids: Tensor, count: int) -> str:
    """Tell whether units are single weights or slices along the first or second dimension; "" for others."""
    if ids.numel() == count:
        return "fine"
    for dim, kind in ((0, "out_channel"), (1, "in_channel")):
        if ids.dim() > dim and ids.shape[dim] == count:
            line = ids.transpose(0, dim).flatten(1)
            if bool((line == line[:, :1]).all()):
                return kind
    return ""


def _granularity(target: Target) -> Any:
    """Return the host's granularity, None for single weights."""
    kind = target.space if isinstance(target.space, str) else target.space.granularity
    return None if kind == "fine" else kind


def _entry(target: Target) -> dict[str, Any]:
    """Return a config that makes the host rank a target."""
    kind = _granularity(target)
    given = [1] if kind is None else list(kind) if isinstance(kind, tuple) else kind
    setting: dict[str, Any] = {"sparse_ratio": 0.5, "granularity": given}
    return {
        "op_names": [target.module],
        "target_names": [target.name],
        "target_settings": {target.name: {**setting, "apply_method": "mul"}},
    }


def _of_units(target: Target, metric: Tensor) -> Tensor:
    """Return a metric as one number a unit."""
    scaler = getattr(target.space, "_scaler", None)
    shape = target.ids.shape
    full = metric.expand(shape) if scaler is None else scaler.expand(metric, list(shape), keepdim=True)
    result = torch.zeros(int(target.ids.max()) + 1, dtype=torch.float64)
    result[target.ids.flatten()] = full.flatten()
    return result


def _are_logits(outputs: Any) -> bool:
    return isinstance(outputs, Tensor) and outputs.dim() == 2


def _evaluator(problem: Problem, model: nn.Module, batches: list[Batch]) -> Any:
    """Return an evaluator that goes through batches and leaves the weights as they are."""

    def step(batch: Batch, student: nn.Module) -> Tensor:
        outputs = problem.forward(student, batch.inputs)
        if _are_logits(batch.teacher):
            labels = batch.labels
            fits = isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point()
            return F.cross_entropy(outputs, labels if fits else batch.teacher.argmax(1))
        return problem.divergence(outputs, batch.teacher, batch.labels)

    def train(
        student: nn.Module,
        optimizer: Any,
        training_step: Any,
        _schedulers: Any = None,
        max_steps: int | None = None,
        _max_epochs: int | None = None,
    ) -> None:
        for number in range(max_steps or len(batches)):
            optimizer.zero_grad()
            training_step(batches[number % len(batches)], student).backward()
            optimizer.step()

    return TorchEvaluator(train, nni.trace(torch.optim.SGD)(list(model.parameters()), lr=0.0), step)
