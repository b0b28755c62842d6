"""Contract tests for your own criteria, granularities, units, divergences, recoveries and codebooks.

Each function raises an AssertionError that names the broken promise, with any test runner or none.

>>> import de_plugin
>>> check_criterion(de_plugin.Magnitude())
"""

from de_plugin.testing.codebook import check_codebook
from de_plugin.testing.criterion import check_criterion
from de_plugin.testing.divergence import check_divergence
from de_plugin.testing.granularity import SHAPES, check_granularity
from de_plugin.testing.problems import MakeProblem, small_problem
from de_plugin.testing.recovery import check_recovery
from de_plugin.testing.units import check_units

__all__ = [
    "SHAPES",
    "MakeProblem",
    "check_codebook",
    "check_criterion",
    "check_divergence",
    "check_granularity",
    "check_recovery",
    "check_units",
    "small_problem",
]
