"""How few levels: codebooks for the survivors, and the levels and bits that a network needs."""

from de_plugin.encode.quantized import Quantized
from de_plugin.quantize.between import LevelRecovery
from de_plugin.quantize.bits import quantize
from de_plugin.quantize.codebook import Codebook, codebook, codebooks, register
from de_plugin.quantize.entropy import EntropyConstrained
from de_plugin.quantize.evolve import RateSearch
from de_plugin.quantize.kmeans import KMeans
from de_plugin.quantize.levels import LevelSearch
from de_plugin.quantize.power import PowerOfTwo
from de_plugin.quantize.report import LayerBits, Point, QuantizationReport
from de_plugin.quantize.retrain import LevelTraining, StraightThrough
from de_plugin.quantize.rounding import Compensated
from de_plugin.quantize.uniform import Affine, Uniform

__all__ = [
    "Affine",
    "Codebook",
    "Compensated",
    "EntropyConstrained",
    "KMeans",
    "LayerBits",
    "LevelRecovery",
    "LevelSearch",
    "LevelTraining",
    "Point",
    "PowerOfTwo",
    "QuantizationReport",
    "Quantized",
    "RateSearch",
    "StraightThrough",
    "Uniform",
    "codebook",
    "codebooks",
    "quantize",
    "register",
]
