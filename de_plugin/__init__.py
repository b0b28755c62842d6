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
    Detector,
    Divergence,
    Head,
    Kernel,
    ParameterUnits,
    Problem,
    Score,
    Units,
    Weight,
)
from de_plugin.compare import Comparison, compare
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
from de_plugin.encode import Quantized, inspect, load, save
from de_plugin.errors import DEError, DEWarning
from de_plugin.pipeline import Compression, compress
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
from de_plugin.quantize import QuantizationReport, codebook, quantize
from de_plugin.version import __version__

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
    "Comparison",
    "Compression",
    "Cosine",
    "Criterion",
    "Custom",
    "DEError",
    "DEWarning",
    "Detector",
    "DirectedEvolution",
    "Divergence",
    "Fisher",
    "Head",
    "Kernel",
    "Magnitude",
    "ParameterUnits",
    "Problem",
    "Progress",
    "QuantizationReport",
    "Quantized",
    "Random",
    "Report",
    "Schedule",
    "Score",
    "Swaps",
    "Taylor",
    "Units",
    "Weight",
    "__version__",
    "apply",
    "bake",
    "blend",
    "codebook",
    "compare",
    "compress",
    "criterion",
    "describe",
    "inspect",
    "load",
    "names",
    "nest",
    "prune",
    "quantize",
    "register",
    "remove",
    "save",
]
