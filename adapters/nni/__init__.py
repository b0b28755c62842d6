"""Directed Evolution inside NNI: a pruner, its criteria in the engine, its speed-up, and a tuner."""

import warnings

from de_plugin.errors import MissingDependencyError

try:
    with warnings.catch_warnings():  # the host registers types with torch that torch already knows
        warnings.simplefilter("ignore")
        import nni.compression.pruning as _host  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(
        f"de_plugin.adapters.nni: needs {error.name}; pip install 'de_plugin[nni]'"
    ) from error

from de_plugin.adapters.nni.algorithm import register_tuner, unregister_tuner
from de_plugin.adapters.nni.asking import StepReport
from de_plugin.adapters.nni.criterion import HostCriterion, as_criterion
from de_plugin.adapters.nni.pruner import DEPruner
from de_plugin.adapters.nni.registering import register, unregister
from de_plugin.adapters.nni.speedup import speedup
from de_plugin.adapters.nni.tuner import DETuner

__all__ = [
    "DEPruner",
    "DETuner",
    "HostCriterion",
    "StepReport",
    "as_criterion",
    "register",
    "register_tuner",
    "speedup",
    "unregister",
    "unregister_tuner",
]
