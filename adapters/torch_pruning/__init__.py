"""Directed Evolution in Torch-Pruning: an importance, pruners, and the host's criteria in the engine."""

from de_plugin.errors import MissingDependencyError

try:
    import torch_pruning as _host  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(
        "de_plugin.adapters.torch_pruning: needs Torch-Pruning; pip install 'de_plugin[torch-pruning]'"
    ) from error

from de_plugin.adapters.torch_pruning.criterion import HostCriterion, as_criterion
from de_plugin.adapters.torch_pruning.importance import DEImportance
from de_plugin.adapters.torch_pruning.pruner import (
    DEBNScalePruner,
    DEGroupNormPruner,
    DEGrowingRegPruner,
    DEPruner,
    StepReport,
)
from de_plugin.adapters.torch_pruning.registering import register, unregister

__all__ = [
    "DEBNScalePruner",
    "DEGroupNormPruner",
    "DEGrowingRegPruner",
    "DEImportance",
    "DEPruner",
    "HostCriterion",
    "StepReport",
    "as_criterion",
    "register",
    "unregister",
]
