"""What is asked: units, divergences, calibration data and how a population is measured."""

from de_plugin.assess.detector import Detector, Head
from de_plugin.assess.divergence import (
    JS,
    KL,
    MSE,
    CalibratedKL,
    Cosine,
    Custom,
    Divergence,
    Score,
    divergence,
)
from de_plugin.assess.granularity import (
    NM,
    Block,
    Channel,
    Granularity,
    Kernel,
    Weight,
    granularity,
)
from de_plugin.assess.problem import Problem
from de_plugin.assess.teacher import Autocast
from de_plugin.assess.units import ParameterUnits, Units

__all__ = [
    "JS",
    "KL",
    "MSE",
    "NM",
    "Autocast",
    "Block",
    "CalibratedKL",
    "Channel",
    "Cosine",
    "Custom",
    "Detector",
    "Divergence",
    "Granularity",
    "Head",
    "Kernel",
    "ParameterUnits",
    "Problem",
    "Score",
    "Units",
    "Weight",
    "divergence",
    "granularity",
]
