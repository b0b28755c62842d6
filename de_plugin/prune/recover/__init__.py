"""What brings the survivors back after a cut: statistics, biases, least squares, distillation."""

from de_plugin.prune.recover.base import Recovery, Sequence, recoveries, recovery
from de_plugin.prune.recover.batchnorm import BatchNormMatching
from de_plugin.prune.recover.bias import BiasCorrection
from de_plugin.prune.recover.distill import Distillation
from de_plugin.prune.recover.hints import Hints
from de_plugin.prune.recover.leastsquares import LeastSquares
from de_plugin.prune.recover.obs import SurgeonUpdate
from de_plugin.prune.recover.reconstruct import Reconstruction

__all__ = [
    "BatchNormMatching",
    "BiasCorrection",
    "Distillation",
    "Hints",
    "LeastSquares",
    "Reconstruction",
    "Recovery",
    "Sequence",
    "SurgeonUpdate",
    "recoveries",
    "recovery",
]
