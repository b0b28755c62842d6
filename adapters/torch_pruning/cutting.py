"""What a step of a Torch-Pruning pruner offers its user to remove, and what has really gone of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from de_plugin.adapters.torch_pruning.entries import Entry, channels_of, key_of
from de_plugin.adapters.torch_pruning.ladder import kept_of
from de_plugin.adapters.torch_pruning.sizes import Size
from de_plugin.adapters.torch_pruning.steps import Step, StepReport
from de_plugin.types import Mask


class Cut:
    """Follows which of a step's groups are pruned: report and statistics are of those alone.

    Args:
        pruner: of the step.
        step: which has settled a choice.
        kept: the choice.
        report: of the step as if all of it goes.
        size: counts the network.
    """

    def __init__(self, pruner: Any, step: Step, kept: Mask, report: StepReport, size: Size) -> None:
        self._pruner, self._step, self._kept = pruner, step, kept
        self._report, self._size = report, size
        self._offered: list[tuple[Any, int]] = []
        self._asked: dict[Any, list[int]] = {}
        self._closed = False

    @property
    def offered(self) -> bool:
        """Whether there was anything to remove."""
        return bool(self._offered)

    def offer(self, group: Any) -> Any:
        """Return a group of the host that tells when it is pruned, also after the step is over."""
        pruner, whole, key = self._pruner, group.prune, key_of(group)
        heads = {n: pruner.num_heads[n] for n in pruner._is_atten_group(group)[1]}
        self._offered.append((group, channels_of(pruner, group)))

        def prune(idxs: Any = None, record_history: bool = True) -> None:
            whole(idxs, record_history)
            if pruner.prune_num_heads:  # counted back where the step was over before
                pruner.num_heads.update(heads)
                pruner.out_channel_groups.update(heads)
            if idxs is not None:
                self._asked[key] = [int(n) for n in idxs]
            if self._closed:
                self._match()

        group.prune = prune
        return group

    def close(self) -> None:
        """End the step: statistics and report become those of what has gone."""
        self._closed = True
        if torch.equal(kept_of(self._step.found, self._taken()), self._kept):
            self._told(self._report.after)
        else:
            self._match()

    def _taken(self) -> dict[Any, list[int]]:
        """Return the channels that the roots of groups have lost, by the groups' keys."""
        result = {}
        for group, before in self._offered:
            lost = before - channels_of(self._pruner, group)
            if lost > 0:
                result[key_of(group)] = self._asked.get(key_of(group), list(group[0].idxs))[:lost]
        return result

    def _match(self) -> None:
        taken = self._taken()
        if taken:
            self._told(self._step.resettle(kept_of(self._step.found, taken)))
        else:
            self._step.restore()

    def _told(self, after: float) -> None:
        """Put the report among the pruner's, in place of an earlier one of this step."""
        pruner, taken = self._pruner, self._taken()
        old = self._report
        new = replace(old, after=after, removed={}).sized(*self._size.both(kept_of(self._step.found, taken)))
        for group, before in self._offered:
            if key_of(group) in taken:
                name = pruner.DG._module2name[group[0].dep.target.module]
                new.removed[name] = (before, channels_of(pruner, group))
        reports: list[StepReport] = pruner._reports
        place = next((n for n, known in enumerate(reports) if known is old), len(reports))
        reports[place:] = [new, *reports[place + 1 :]]
        self._report = new


def leaves_some(graph: Any, group: Any) -> bool:
    """Tell whether every layer of a group keeps channels.

    The host's own check counts a channel once for each head of queries that reads it, and so prunes nothing
    where heads share keys and values.
    """
    for dep, idxs in group:
        outputs = graph.is_out_channel_pruning_fn(dep.handler)
        inputs = graph.is_in_channel_pruning_fn(dep.handler)
        counts = [
            count(dep.target.module)
            for asked, count in ((outputs, graph.get_out_channels), (inputs, graph.get_in_channels))
            if asked
        ]
        if any(n is not None and n <= len(set(map(int, idxs))) for n in counts):
            return False
    return True


@contextmanager
def whole_heads(pruner: Any, gone: list[tuple[Entry, int]]) -> Iterator[None]:
    """Make the host remove so many heads of each group, whatever its ratios; it keeps count of them.

    The host skips the heads of a group none of whose channels go, and counts heads as removed that are not
    removed then: neither happens here.
    """
    step, initial = pruner.current_step, pruner.initial_total_heads
    saved = pruner.per_step_pruning_ratio, pruner.per_step_head_pruning_ratio, pruner.head_pruning_ratio_dict
    layers = {entry.key: pruner._is_atten_group(entry.group)[1] for entry, _ in gone}
    before = {entry.key: channels_of(pruner, entry.group) for entry, _ in gone}
    counts = dict(pruner.num_heads), dict(pruner.out_channel_groups)
    total, now = sum(n for _, n in gone), sum(entry.coupling.count for entry, _ in gone)
    nothing = dict.fromkeys(pruner.num_heads, [-1.0] * (step + 1))
    by_layer = {
        layer: [(n - 0.5) / entry.coupling.count] * (step + 1)
        for entry, n in gone
        for layer in layers[entry.key]
    }
    pruner.per_step_pruning_ratio = [1.0] * (step + 1)
    pruner.per_step_head_pruning_ratio = [1 - (now - total + 0.5) / max(1, initial)] * (step + 1)
    pruner.head_pruning_ratio_dict = {**nothing, **by_layer}
    try:
        yield
    finally:
        pruner.per_step_pruning_ratio, pruner.per_step_head_pruning_ratio, pruner.head_pruning_ratio_dict = (
            saved
        )
        for entry, _ in gone:
            if channels_of(pruner, entry.group) == before[entry.key]:
                for layer in layers[entry.key]:
                    pruner.num_heads[layer] = counts[0][layer]
                    pruner.out_channel_groups[layer] = counts[1][layer]
