"""Pruners of Torch-Pruning that evolve what goes of all groups of a step together."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import torch_pruning as tp
from torch import Tensor, nn

from de_plugin.adapters.torch_pruning.asking import Asking, evaluating, teacher_of
from de_plugin.adapters.torch_pruning.checks import OWN, TARGETS, check_options, pairs_of
from de_plugin.adapters.torch_pruning.copies import plan
from de_plugin.adapters.torch_pruning.cutting import Cut, leaves_some, whole_heads
from de_plugin.adapters.torch_pruning.entries import Entry, counts, entries, key_of
from de_plugin.adapters.torch_pruning.importance import DEImportance
from de_plugin.adapters.torch_pruning.ladder import Ladder, ratio_of, rounded_choice, spans
from de_plugin.adapters.torch_pruning.sizes import Size
from de_plugin.adapters.torch_pruning.steps import Step, StepReport
from de_plugin.adapters.torch_pruning.targets import SAMPLES, Aim, Target, share_of
from de_plugin.criteria import criterion as resolved
from de_plugin.errors import DEWarning
from de_plugin.prune import DirectedEvolution
from de_plugin.prune.recover import BatchNormMatching
from de_plugin.types import Mask

__all__ = [
    "DEBNScalePruner",
    "DEGroupNormPruner",
    "DEGrowingRegPruner",
    "DEPruner",
    "Evolving",
    "StepReport",
]

if TYPE_CHECKING:
    _Host = Any  # one of the host's pruners, which come without types
else:
    _Host = object


class Evolving(_Host):
    """Mixed into a pruner of the host: it hands the engine the count and all groups of a step at once."""

    current_step: int
    per_step_pruning_ratio: list[float]

    def __init__(self, model: nn.Module, example_inputs: Any, batches: Any = None, **options: Any) -> None:
        own = {name: options.pop(name) for name in OWN if name in options}
        importance = options.pop("importance", None)
        if isinstance(batches, DEImportance) and importance is None:
            importance, batches = batches, None
        check_options(model, type(self), options, own, batches, importance)
        for name in ("in_channel_groups", "out_channel_groups", "num_heads", "channel_groups"):
            options[name] = dict(options.get(name) or {})  # the host's own default is one dict for all
        asked = {name: value for name in TARGETS if (value := own.pop(name, None)) is not None}
        criterion = own.pop("criterion", None)
        match = own.pop("match_batchnorm", True)
        if isinstance(importance, DEImportance):
            self._asking, self.criterion = importance.asking, importance.criterion
        else:
            self._asking = Asking(teacher_of(model), batches, **own)
            self.criterion = DirectedEvolution.brief() if criterion is None else resolved(criterion)
        self._match = BatchNormMatching() if match else None
        self._chosen: dict[Any, Tensor] = {}
        self._reports: list[StepReport] = []
        if options.get("unwrapped_parameters") is not None:
            options["unwrapped_parameters"] = pairs_of(options["unwrapped_parameters"])
        modes = [(m, m.training) for m in model.modules()]
        try:
            super().__init__(model, example_inputs, importance or _CHEAP, **options)
            self._size = partial(Size, inputs=example_inputs, forward=options.get("forward_fn"))
            self._target: Target | None = None
            for name, value in asked.items():
                with evaluating(model):
                    self._target = Target(name, float(value)).resolved(self)
        finally:  # the host leaves the model in eval mode
            for module, training in modes:
                module.training = training

    # -- the host's seams ------------------------------------------------------------------------

    def estimate_importance(self, group: Any) -> Tensor:
        """Return scores that make the host choose what has been evolved.

        Outside a step they are magnitudes: pruners that regularize ask on every batch.
        """
        chosen: Tensor | None = self._chosen.get(key_of(group))
        found: Tensor = _CHEAP(group) if chosen is None else chosen
        return found

    def _prune(self) -> Iterator[Any]:
        self._chosen = {}
        if self.current_step > self.iterative_steps:
            yield from super()._prune()  # it warns
            return
        cut: Cut | None = None
        ratios = self.per_step_pruning_ratio
        try:
            with evaluating(self.model):
                found = list(entries(self))
                cut = self._evolve(found) if found else None
        except BaseException:
            self.current_step, self.per_step_pruning_ratio = self.current_step - 1, ratios
            raise
        if cut is not None:
            try:
                with closing(self._cut(found)) as groups:
                    for group in groups:
                        yield cut.offer(group)
            finally:
                self._chosen = {}
                with evaluating(self.model):
                    cut.close()
        if (cut is None or not cut.offered) and (self._target is None or not self._target.sized):
            warnings.warn(
                f"step {self.current_step} of {self.iterative_steps} has removed nothing: {self._remedy()}",
                DEWarning,
                stacklevel=2,
            )

    def _remedy(self) -> str:
        if self._target is None:
            return (
                "raise pruning_ratio, lower round_to, ignore fewer layers, or see whether every group has "
                "reached max_pruning_ratio"
            )
        return (
            f"max_divergence={self._target.value:g} lets nothing more go, or too little for this part of the "
            "way; raise it, lower round_to, take fewer steps, or see whether every group has reached "
            "max_pruning_ratio"
        )

    def _cut(self, found: list[Entry]) -> Generator[Any, None, None]:
        """Yield what has been chosen, which the host's ratios cannot always say.

        Whole heads go by way of the host, which keeps count of them.
        """
        gone = [(self._chosen[entry.key] < 0.5).nonzero()[:, 0].tolist() for entry in found]
        heads = [
            (entry, len(units) * entry.heads // len(self._chosen[entry.key]))
            for entry, units in zip(found, gone, strict=True)
            if entry.heads and units
        ]
        if heads:
            left = {entry.key: entry.name for entry, _ in heads}
            with whole_heads(self, heads):
                for group in super()._prune():
                    if left.pop(key_of(group), None) is not None:
                        yield group
            if left:
                names = ", ".join(left.values())
                warnings.warn(
                    f"head_pruning_ratio: the host removes no heads in front of {names}, as "
                    "where queries share keys and values; give prune_head_dims=True without prune_num_heads, "
                    "which removes channels of every head",
                    DEWarning,
                    stacklevel=3,
                )
        for entry, units in zip(found, gone, strict=True):
            root = entry.group[0]
            if units and not entry.heads:
                channels = [int(root.idxs[n]) for n in units]
                group = self.DG.get_pruning_group(root.dep.target.module, root.dep.handler, channels)
                if leaves_some(self.DG, group):
                    yield group

    # -- the search ------------------------------------------------------------------------------

    def _evolve(self, found: list[Entry]) -> Cut | None:
        wanted = counts(self, found)
        if self._target is None and not any(wanted.values()):
            return None
        how = plan(self.model, found)
        size = self._size(self.model, how, spans(found)[-1].stop)
        step = Step(self._asking, self.model, found, how, self.criterion, self._match)
        try:
            if self._target is None:
                kept, scores = step.search(wanted)
                kept = rounded_choice(found, kept, scores, step.problem.protected, self.round_to or 1)
            else:
                kept, scores = self._aimed(self._target, step, size)
            after = step.settle(kept)
        except BaseException:
            step.restore()
            raise
        if bool(kept.all()):
            step.restore()
            return None
        self._chosen = step.scores(kept, scores)
        macs, params = size.both()
        evaluations, events = step.problem.evaluations, step.problem.events
        sizes = ((params, params), (macs, macs))
        report = StepReport(
            self.current_step, {}, step.before, after, step.copied, evaluations, *sizes, events
        )
        return Cut(self, step, kept, report, size)

    def _aimed(self, target: Target, step: Step, size: Size) -> tuple[Mask, Tensor]:
        """Return what is kept at a target and a ranking of the units."""
        problem, found = step.problem, step.found
        index = problem.draw(SAMPLES)
        aim = Aim(
            target,
            share_of(self),
            ladder=partial(Ladder.of, self, found, problem.protected),
            size=size,
            search=lambda gone, scores: step.search(gone, scores)[1],
            estimate=lambda kept: float(problem.assess(kept[None], index)[0]),
            settled=step.settle,
        )
        kept, scores = aim(step.magnitudes())
        self.per_step_pruning_ratio = list(self.per_step_pruning_ratio)
        self.per_step_pruning_ratio[self.current_step] = ratio_of(self, found, kept)
        return kept, scores

    def report(self) -> list[StepReport]:
        """Return what each step has removed and what that has cost, in order."""
        return list(self._reports)


_CHEAP = tp.importance.GroupMagnitudeImportance()


class DEPruner(Evolving, tp.pruner.BasePruner):
    """`torch_pruning.pruner.BasePruner` that evolves what goes of all groups of a step together.

    Args:
        model: the network; a copy of it is the teacher.
        example_inputs: traces the network, as the host's.
        batches: calibration data, see `de_plugin.prune`; or a `DEImportance`, whose settings count.
        target_macs: leave no more MACs than this: a fraction of the network's, or a number above 1.
        target_params: the same of parameters.
        max_divergence: remove as much as can go with the divergence on the data held back at most this.
            Of these three at most one, in place of ``pruning_ratio``. A step goes its part of the way by the
            host's schedule; the ratio found is in ``per_step_pruning_ratio``. Heads and layers in
            ``pruning_ratio_dict`` keep the ratios given; the rest shares the one that is sought.
        options: ``criterion``, ``divergence``, ``forward``, ``samples``, ``batch_size``, ``holdout``,
            ``seed`` and ``match_batchnorm`` (running statistics follow each cut; default True) as well as
            all of the host's.

    Raises:
        ArgumentError: an option is unknown, or together with others would make the host do nothing.
        TargetError: the network cannot become as small; at a step, that ratios given break the divergence.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> x = torch.randn(64, 8)
    >>> pruner = DEPruner(model, x[:1], x, pruning_ratio=0.5, ignored_layers=[model[2]])
    >>> pruner.step()
    >>> model[0].out_features, pruner.report()[0].removed
    (8, {'0': (16, 8)})
    """


class DEBNScalePruner(Evolving, tp.pruner.BNScalePruner):
    """`torch_pruning.pruner.BNScalePruner` that evolves what goes; see `DEPruner`."""


class DEGroupNormPruner(Evolving, tp.pruner.GroupNormPruner):
    """`torch_pruning.pruner.GroupNormPruner` that evolves what goes; see `DEPruner`."""


class DEGrowingRegPruner(Evolving, tp.pruner.GrowingRegPruner):
    """`torch_pruning.pruner.GrowingRegPruner` that evolves what goes; see `DEPruner`."""
