"""Directed Evolution for neural networks: what can be zeroed, found by trying.

>>> import torch, de_plugin
>>> model = torch.nn.Linear(8, 4).eval()
>>> report = de_plugin.prune(model, torch.randn(64, 8), sparsity=0.5)
>>> report.sparsity
0.5
"""

from de_plugin.assess import (
    JS,
    KL,
    MSE,
    NM,
    Autocast,
    Block,
    Channel,
    Cosine,
    Custom,
    Divergence,
    Kernel,
    ParameterUnits,
    Problem,
    Score,
    Units,
    Weight,
)
from de_plugin.criteria import (
    OBS,
    Activation,
    Criterion,
    Fisher,
    Magnitude,
    Random,
    Taylor,
    blend,
    criterion,
    describe,
    names,
    nest,
    register,
)
from de_plugin.errors import DEError, DEWarning
from de_plugin.prune import (
    Budget,
    DirectedEvolution,
    Progress,
    Report,
    Schedule,
    Swaps,
    apply,
    bake,
    prune,
    remove,
)

__version__ = "0.1.0"

__all__ = [
    "JS",
    "KL",
    "MSE",
    "NM",
    "OBS",
    "Activation",
    "Autocast",
    "Block",
    "Budget",
    "Channel",
    "Cosine",
    "Criterion",
    "Custom",
    "DEError",
    "DEWarning",
    "DirectedEvolution",
    "Divergence",
    "Fisher",
    "Kernel",
    "Magnitude",
    "ParameterUnits",
    "Problem",
    "Progress",
    "Random",
    "Report",
    "Schedule",
    "Score",
    "Swaps",
    "Taylor",
    "Units",
    "Weight",
    "apply",
    "bake",
    "blend",
    "criterion",
    "describe",
    "names",
    "nest",
    "prune",
    "register",
    "remove",
]
