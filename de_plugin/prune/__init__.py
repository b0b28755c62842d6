"""Masks: Directed Evolution, targets and schedules, recovery, and the cycle that joins them."""

from de_plugin.prune.cycle import Progress, prune
from de_plugin.prune.directed_evolution import DirectedEvolution, Evolving
from de_plugin.prune.masks import apply, bake, remove
from de_plugin.prune.report import CycleReport, LayerReport, Report
from de_plugin.prune.swap import Swaps
from de_plugin.prune.target import Budget, Schedule

__all__ = [
    "Budget",
    "CycleReport",
    "DirectedEvolution",
    "Evolving",
    "LayerReport",
    "Progress",
    "Report",
    "Schedule",
    "Swaps",
    "apply",
    "bake",
    "prune",
    "remove",
]
