"""Which units should go first: criteria, their registry and ways to combine them."""

from de_plugin.criteria.activation import Activation
from de_plugin.criteria.base import Criterion, criterion, describe, names, register
from de_plugin.criteria.combine import Blend, Nest, blend, nest
from de_plugin.criteria.fisher import Fisher, diagonal
from de_plugin.criteria.magnitude import Magnitude
from de_plugin.criteria.obs import OBS
from de_plugin.criteria.random import Random
from de_plugin.criteria.taylor import Taylor

__all__ = [
    "OBS",
    "Activation",
    "Blend",
    "Criterion",
    "Fisher",
    "Magnitude",
    "Nest",
    "Random",
    "Taylor",
    "blend",
    "criterion",
    "describe",
    "diagonal",
    "names",
    "nest",
    "register",
]
