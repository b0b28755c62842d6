"""Directed Evolution inside Intel Neural Compressor: an algorithm, a tuner, and small files."""

import warnings

from de_plugin.errors import MissingDependencyError

try:
    with warnings.catch_warnings():  # the host and what it imports are older than the torch they run on
        warnings.simplefilter("ignore")
        import neural_compressor.torch.quantization as _host  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(
        f"de_plugin.adapters.neural_compressor: needs {error.name}; pip install "
        "'de_plugin[neural-compressor]'"
    ) from error

from de_plugin.adapters.neural_compressor.agreeing import agreement
from de_plugin.adapters.neural_compressor.algorithm import de_quant_entry
from de_plugin.adapters.neural_compressor.config import DEQuantConfig
from de_plugin.adapters.neural_compressor.registering import register, unregister
from de_plugin.adapters.neural_compressor.results import Tuned
from de_plugin.adapters.neural_compressor.saving import load, save
from de_plugin.adapters.neural_compressor.trials import Trial
from de_plugin.adapters.neural_compressor.tuner import DETuner
from de_plugin.adapters.neural_compressor.tuning import tune

__all__ = [
    "DEQuantConfig",
    "DETuner",
    "Trial",
    "Tuned",
    "agreement",
    "de_quant_entry",
    "load",
    "register",
    "save",
    "tune",
    "unregister",
]
