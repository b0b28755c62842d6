"""Directed Evolution as an importance of Torch-Pruning: a drop-in for its own criteria."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn

from de_plugin.adapters.torch_pruning.asking import Asking, device_of, evaluating, teacher_of
from de_plugin.adapters.torch_pruning.criterion import GROUPS, Ranked
from de_plugin.adapters.torch_pruning.scores import costs, order_of
from de_plugin.adapters.torch_pruning.ties import coupling, positions
from de_plugin.assess.divergence import Divergence
from de_plugin.assess.teacher import Forward
from de_plugin.criteria import Criterion
from de_plugin.criteria import criterion as resolved
from de_plugin.prune import DirectedEvolution


class DEImportance(tp.importance.Importance):
    """Scores of a group's channels: what each adds to the measured divergence when it goes.

    The criterion orders the channels; the divergence along that order gives the scores, so that those of
    different groups can be compared. They are finite, positive and strictly ordered. A group object that
    is asked for again, as regularizing pruners do on every batch, gets the scores it had, also where weights
    have been trained meanwhile; their `update_regularizer` makes new ones.

    The host tells an importance nothing of a pruner's `num_heads`, `in_channel_groups` and
    `out_channel_groups`: only parts that a group's own modules have (grouped convolutions, group norms) are
    scored as what goes together. With heads or channel groups of your own take
    `de_plugin.adapters.torch_pruning.DEPruner`, which measures them as the host will remove them.

    Args:
        model: the network that is to be pruned; a copy of it is the teacher from now on.
        batches: calibration data, see `de_plugin.prune`.
        criterion: orders channels; a name, a criterion, or a host's by `as_criterion`.
        divergence: between outputs of the teacher and of the student.
        forward: ``fn(model, inputs) -> outputs`` for models that need more than a call.
        samples: read at most this many samples.
        batch_size: samples in a forward pass.
        seed: of every draw.

    Raises:
        ArgumentError: `model` is no module.

    >>> import torch, torch_pruning as tp
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> x = torch.randn(64, 8)
    >>> pruner = tp.pruner.BasePruner(model, x[:1], DEImportance(model, x), ignored_layers=[model[2]])
    >>> pruner.step()
    >>> model[0].out_features
    8
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Any,
        criterion: Criterion | str | None = None,
        *,
        divergence: str | Divergence | Callable[[Any, Any], Any] = "kl",
        forward: Forward | None = None,
        samples: int | None = None,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        self.criterion = DirectedEvolution.brief() if criterion is None else resolved(criterion)
        self.asking = Asking(teacher_of(model), batches, divergence, forward, samples, batch_size, 0.1, seed)
        self._known: weakref.WeakKeyDictionary[Any, Tensor] = weakref.WeakKeyDictionary()

    def __call__(self, group: Any, **_: Any) -> Tensor:
        """Return one score a channel of ``group[0].idxs``, float32."""
        found = self._known.get(group)
        if found is None or len(found) != positions(group):
            found = self._known[group] = self._scores(group)
        return found.to(device_of(group._DG.model)).clone()

    def _scores(self, group: Any) -> Tensor:
        model, parts = group._DG.model, channel_groups(group)
        if positions(group) // parts < 2:
            return torch.ones(positions(group))
        units = coupling(group, _name(group), parts)
        with evaluating(model):
            problem = self.asking.problem(model, [units])
            problem.store(GROUPS, [Ranked(group, parts)])
            count = units.count // 2
            order = order_of(self.criterion(problem, problem.eligible, count), problem.eligible)
            each = costs(problem, order, problem.draw(self.asking.batch_size))
        scores = torch.empty(units.count)
        scores[order] = rising(each)
        return scores.repeat(parts)


def rising(values: Tensor) -> Tensor:
    """Return values that never fall as float32 that always rise and are positive."""
    result = values.float().numpy().copy()
    last = np.float32(0)
    for n in range(len(result)):
        last = result[n] = max(result[n], np.nextafter(last, np.float32(np.inf)))
    return torch.from_numpy(result)


def channel_groups(group: Any) -> int:
    """Return in how many parts of one size the channels of a group must stay: by its modules alone."""
    most = 1
    for dep, _ in group:
        module = dep.target.module
        if isinstance(module, nn.modules.conv._ConvNd) and not _depthwise(module):
            most = max(most, module.groups)
        elif isinstance(module, nn.GroupNorm):
            most = max(most, module.num_groups)
    return most if positions(group) % most == 0 else 1


def _depthwise(module: nn.modules.conv._ConvNd) -> bool:
    return module.groups == module.out_channels


def _name(group: Any) -> str:
    name: str = group._DG._module2name.get(group[0].dep.target.module, "group")
    return name
